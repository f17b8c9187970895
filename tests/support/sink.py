"""A registry that throws blobs away: it counts what arrives and hashes nothing, so that a push waits for itself alone.

`python sink.py [BYTES_PER_SECOND]` serves on loopback, prints its port, and ends with its standard input. With a
number, no connection is read faster than that, as where a link or a gateway limits each connection. Blobs up to 1 MiB
are kept, so that servers can be looked up here; of others only their size is known. `GET /counts` tells what arrived.
"""

import contextlib
import hashlib
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from email.parser import BytesParser
from typing import Final
from urllib.parse import parse_qs, urlsplit

_KEPT_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
# Linux counts and drops what is received so, without copying it to anybody.
_DROP: Final = getattr(socket, "MSG_TRUNC", 0) if sys.platform == "linux" else 0


class Sink:
    """What all connections share."""

    def __init__(self, bytes_per_second: float = 0) -> None:
        self.bytes_per_second = bytes_per_second
        self.sizes: dict[str, int] = {}
        self.kept: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.sessions: dict[str, tuple[int, bytes]] = {}
        self.blob_bytes = 0
        self.requests = 0
        self.numbers = itertools.count()
        self.lock = threading.Lock()


class _Connection:
    def __init__(self, sink: Sink, conn: socket.socket) -> None:
        self._sink = sink
        self._conn = conn
        self._buffer = bytearray(_PIECE_BYTES)
        self._ahead = b""  # read with a head, and belongs to what follows it

    def serve(self) -> None:
        """Answer requests until the client hangs up."""
        with self._conn:
            while head := self._head():
                line, _, rest = head.partition(b"\r\n")
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers = {name.lower(): text for name, text in BytesParser().parsebytes(rest).items()}
                if headers.get("expect"):
                    self._conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._sink.requests += 1
                self._answer(method, *self._routed(method, target, headers))

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._ahead:
            piece = self._conn.recv(65536)
            if not piece:
                return b""
            self._ahead += piece
        head, _, self._ahead = self._ahead.partition(b"\r\n\r\n")
        return head

    def _answer(self, method: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        head = {"Content-Length": str(len(body)), **headers}
        lines = "".join(f"{name}: {text}\r\n" for name, text in head.items())
        self._conn.sendall(f"HTTP/1.1 {status} .\r\n{lines}\r\n".encode() + (b"" if method == "HEAD" else body))

    def _routed(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        sink, parts = self._sink, urlsplit(target)
        size, data = self._body(headers)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/counts":
            return 200, {}, json.dumps({"blob_bytes": sink.blob_bytes, "requests": sink.requests}).encode()
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(uploads/)?([^/]*)", parts.path)
        if match is None:
            return (200 if parts.path in {"/v2/", "/v2"} else 404), {}, b""
        repository, kind, uploads, name = match.groups()
        if uploads is not None:
            sink.blob_bytes += size
            return self._upload(method, repository, name, query, (size, data))
        if kind == "manifests":
            return self._manifest(method, repository, name, headers.get("content-type", ""), data)
        if name not in sink.sizes:
            return 404, {}, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"none"}]}'
        kept = sink.kept.get(name, b"")
        return 200, {"Docker-Content-Digest": name, "Content-Length": str(len(kept) or sink.sizes[name])}, kept

    def _upload(
        self, method: str, repository: str, session: str, query: Mapping[str, str], part: tuple[int, bytes]
    ) -> tuple[int, Mapping[str, str], bytes]:
        sink = self._sink
        if method == "POST":
            if query.get("mount") in sink.sizes:
                return 201, {"Location": f"/v2/{repository}/blobs/{query['mount']}"}, b""
            session = f"s{next(sink.numbers)}"
            sink.sessions[session] = (0, b"")
            return 202, {"Location": f"/v2/{repository}/blobs/uploads/{session}", "Range": "0-0"}, b""
        if session not in sink.sessions:
            return 404, {}, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}'
        size, data = sink.sessions[session][0] + part[0], sink.sessions[session][1] + part[1]
        location = {"Location": f"/v2/{repository}/blobs/uploads/{session}", "Range": f"0-{max(0, size - 1)}"}
        if method in {"GET", "PATCH"}:
            sink.sessions[session] = (size, data if size <= _KEPT_BYTES else b"")
            return (204 if method == "GET" else 202), location, b""
        del sink.sessions[session]
        if method == "PUT":
            sink.sizes[query["digest"]] = size
            if size <= _KEPT_BYTES:
                sink.kept[query["digest"]] = data
            return 201, {"Docker-Content-Digest": query["digest"]}, b""
        return 204, {}, b""

    def _manifest(
        self, method: str, repository: str, name: str, media_type: str, data: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        manifests = self._sink.manifests
        if method == "PUT":
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            manifests[(repository, name)] = manifests[(repository, digest)] = (media_type, data)
            return 201, {"Docker-Content-Digest": digest}, b""
        if (repository, name) not in manifests:
            return 404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"none"}]}'
        media_type, data = manifests[(repository, name)]
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return 200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, data

    # Bodies

    def _body(self, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Receive a body: its size, and its bytes where they are few enough to be kept."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            size, data = 0, b""
            while length := int(self._line().partition(b";")[0], 16):
                part, kept = self._receive(length)
                size, data = size + part, (data + kept if size <= _KEPT_BYTES else b"")
                self._line()
            self._line()
            return size, data
        return self._receive(int(headers.get("content-length") or 0))

    def _line(self) -> bytes:
        while b"\r\n" not in self._ahead:
            piece = self._conn.recv(65536)
            if not piece:
                raise ConnectionError
            self._ahead += piece
        line, _, self._ahead = self._ahead.partition(b"\r\n")
        return line

    def _receive(self, size: int) -> tuple[int, bytes]:
        kept, self._ahead = self._ahead[:size], self._ahead[size:]
        left, few = size - len(kept), size <= _KEPT_BYTES
        started, rate = time.monotonic(), self._sink.bytes_per_second
        while left:
            wanted = min(left, _PIECE_BYTES)
            count = self._conn.recv_into(self._buffer, wanted, 0 if few else _DROP)
            if not count:
                raise ConnectionError
            if few:
                kept += self._buffer[:count]
            left -= count
            if rate and (ahead := (size - left) / rate - (time.monotonic() - started)) > 0:
                time.sleep(ahead)
        return size, kept if few else b""


def _listener(bytes_per_second: float) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    if bytes_per_second:
        # A window that swallows a second's worth would be a burst that no limited link has.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    return listener


def main(bytes_per_second: float) -> None:
    """Serve until standard input ends."""
    sink = Sink(bytes_per_second)
    listener = _listener(bytes_per_second)

    def serve(conn: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client hung up
            _Connection(sink, conn).serve()

    def accept() -> None:
        while True:
            conn, _ = listener.accept()
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(conn,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
