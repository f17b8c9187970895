"""A registry in memory, to put faults in front of. The integration tests use a real one."""

import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from mlimg.runtime.descriptor import OCI_MANIFEST
from mlimg.runtime.digest import Digest
from tests.support.faults import Answer, Request


@dataclass
class MemoryRegistry:
    """The few routes of the distribution specification that a push and a pull take.

    What arrives of a body that is cut is kept, unless `loses_cut`: then the session is gone, as docker-registry does.
    """

    loses_cut: bool = False
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    sessions: dict[str, bytes] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> Answer:
        parts = urlsplit(request.path)
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(uploads/)?([^/]*)", parts.path)
        if match is None:
            return Answer(404)
        repository, kind, uploads, name = match.groups()
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self._lock:
            if uploads:
                return self._upload(request, repository, name, query)
            if kind == "blobs":
                return self._blob(request, self.blobs.get((repository, name)))
            return self._manifest(request, repository, name)

    def put(self, repository: str, *blobs: bytes) -> None:
        """Have some blobs."""
        self.blobs |= {(repository, Digest.of(blob).text): blob for blob in blobs}

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str = OCI_MANIFEST) -> Digest:
        """Have a manifest."""
        digest = Digest.of(data)
        for name in (tag, digest.text):
            self.manifests[(repository, name)] = (media_type, data)
        return digest

    def _upload(self, request: Request, repository: str, session: str, query: dict[str, str]) -> Answer:
        if request.method == "POST":
            mounted = self.blobs.get((query.get("from", ""), query.get("mount", "")))
            if mounted is not None:
                self.put(repository, mounted)
                return Answer(201)
            session = f"s{next(self._numbers)}"
            self.sessions[session] = b""
            return Answer(202, {"Location": f"/v2/{repository}/blobs/uploads/{session}?state=0"})
        if session not in self.sessions:
            return Answer(404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}')
        return self._session(request, repository, session, query.get("digest", ""))

    def _session(self, request: Request, repository: str, session: str, digest: str) -> Answer:
        if request.method == "DELETE":
            del self.sessions[session]
            return Answer(204)
        held = len(self.sessions[session])
        if request.method == "GET":
            return Answer(204, self._standing(repository, session))
        announced = int(request.headers.get("Content-Length", 0))
        start = re.match(r"(\d+)-", request.headers.get("Content-Range", f"{held}-"))
        if start is None or int(start[1]) != held:
            return Answer(416)
        if len(request.body) < announced and self.loses_cut:
            del self.sessions[session]
            return Answer(499)
        self.sessions[session] += request.body
        if request.method == "PATCH" or len(request.body) < announced:
            return Answer(202, self._standing(repository, session))
        return self._commit(repository, session, digest)

    def _commit(self, repository: str, session: str, digest: str) -> Answer:
        data = self.sessions.pop(session)
        if Digest.of(data).text != digest:
            return Answer(400, body=b'{"errors":[{"code":"DIGEST_INVALID","message":"not what was said"}]}')
        self.put(repository, data)
        return Answer(201, {"Docker-Content-Digest": Digest.of(data).text})

    def _standing(self, repository: str, session: str) -> dict[str, str]:
        held = len(self.sessions[session])
        return {
            "Location": f"/v2/{repository}/blobs/uploads/{session}?state={held}",
            "Range": f"0-{max(0, held - 1)}",
        }

    def _blob(self, request: Request, data: bytes | None) -> Answer:
        if data is None:
            return Answer(404, body=b'{"errors":[{"code":"BLOB_UNKNOWN","message":"none"}]}')
        if range_ := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            start, end = int(range_[1]), min(int(range_[2] or len(data)), len(data) - 1)
            if start >= len(data):
                return Answer(416)
            return Answer(206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])
        return Answer(200, {"Content-Type": "application/octet-stream"}, data)

    def _manifest(self, request: Request, repository: str, name: str) -> Answer:
        if request.method == "PUT":
            named = json.loads(request.body)
            blobs = [named["config"], *named["layers"]] if "layers" in named else []
            lacked = [blob["digest"] for blob in blobs if (repository, blob["digest"]) not in self.blobs]
            if lacked:
                errors = [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "none", "detail": digest} for digest in lacked]
                return Answer(404, body=json.dumps({"errors": errors}).encode())
            digest = self.put_manifest(repository, name, request.body, request.headers["Content-Type"])
            return Answer(201, {"Docker-Content-Digest": digest.text})
        found = self.manifests.get((repository, name))
        if found is None:
            return Answer(404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"none"}]}')
        media_type, data = found
        return Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": Digest.of(data).text}, data)
