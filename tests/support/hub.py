"""A small hub that speaks as much of the Hugging Face hub's HTTP API as listing and reading a repository takes.

https://huggingface.co/docs/hub/api: `/api/models/{repository}[/revision/{revision}]?blobs=true` lists files, those kept
outside git with size and sha256; `/{repository}/resolve/{revision}/{path}` gives one, large ones by a redirect to
another host, as the real hub does.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.support.faults import Answer, Request
from tests.support.webfiles import WebFiles

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository with one branch. `large` are the files that lie on `store`, another host."""

    files: Mapping[str, bytes]
    large: frozenset[str]
    store: str
    token: str = ""
    repository: str = "organisation/digits"
    branches: Mapping[str, str] = field(default_factory=lambda: {"main": COMMIT})
    sha256s: Mapping[str, str] = field(default_factory=dict)  # other than the true ones

    def __call__(self, request: Request) -> Answer:
        path = unquote(urlsplit(request.path).path)
        if self.token and request.headers.get("Authorization", request.headers.get("authorization")) != (
            f"Bearer {self.token}"
        ):
            return Answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        api = f"/api/models/{self.repository}"
        if path == api:
            return self._info("main")
        if path.startswith(f"{api}/revision/"):
            return self._info(path.removeprefix(f"{api}/revision/"))
        resolve = f"/{self.repository}/resolve/{COMMIT}/"
        if path.startswith(resolve):
            return self._file(request, path.removeprefix(resolve))
        return Answer(404, {"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> Answer:
        commit = self.branches.get(revision, revision if revision == COMMIT else "")
        if not commit:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(name, data) for name, data in self.files.items()]
        body = {"_id": "1", "id": self.repository, "modelId": self.repository, "sha": commit, "siblings": siblings}
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        sibling: dict[str, object] = {"rfilename": name, "blobId": blob, "size": len(data)}
        if name in self.large:
            sha256 = self.sha256s.get(name, hashlib.sha256(data).hexdigest())
            sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return sibling

    def _file(self, request: Request, name: str) -> Answer:
        if name not in self.files:
            return Answer(404, {"X-Error-Code": "EntryNotFound"})
        if name in self.large:
            return Answer(302, {"Location": f"http://{self.store}/{name}?X-Signature=canary-of-the-store"})
        return WebFiles(self.files)(Request("GET", f"/{name}", request.headers))
