"""A web server that fails on purpose: it cuts, stalls, lies and redirects, and logs what it was asked.

Behind it stands a *backend*: a registry in memory, or `forward_to` a real one. A `Fault` counts how often it fired,
so that a test can prove that it did.
"""

import gzip
import http.client
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Request:
    """A request as it arrived. `body` is what came of it, which a fault may have cut."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What a backend says. An iterator as `body` is sent without a length until the client hangs up."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""


Backend = Callable[[Request], Answer]


@dataclass
class Fault:
    """What goes wrong for requests whose method and path match, `times` times after letting `skip` pass.

    `answer` is given instead of asking the backend; `change` alters what the backend said. At `cut_at`, `reset_at` and
    `stall_at` bytes of the answer's body the connection is closed, reset, or kept silent. `cut_request_at` closes it
    while the request's body arrives, by RST with `reset_request`; with `pass_cut` the backend gets what had arrived, as
    from a connection that broke. `lose_answer` closes it after the backend has done its work.
    """

    method: str = ".*"
    path: str = ".*"
    times: int = 1
    skip: int = 0
    answer: Answer | None = None
    change: Callable[[Answer], Answer] | None = None
    delay_seconds: float = 0
    bytes_per_second: float = 0
    cut_at: int | None = None
    reset_at: int | None = None
    stall_at: int | None = None
    cut_request_at: int | None = None
    reset_request: bool = False
    pass_cut: bool = False
    lose_answer: bool = False
    fired: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is one to fail; counts it."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path) or self.fired >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.fired += 1
        return True


class FaultServer:
    """Serves on loopback while the ``with`` block lasts. `requests` is the log."""

    def __init__(self, backend: Backend, *faults: Fault, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.backend = backend
        self.faults = list(faults)
        self.requests: list[Request] = []
        self.open_stalls = threading.Event()  # set: whoever is kept waiting is let go
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of_faults = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are the point
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open_stalls.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str = ".*", path: str = ".*") -> int:
        """How many requests matched."""
        return len(self.matching(method, path))

    def matching(self, method: str = ".*", path: str = ".*") -> list[Request]:
        """The requests that matched."""
        with self._lock:
            return [r for r in self.requests if re.fullmatch(method, r.method) and re.search(path, r.path)]

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def fault_for(self, method: str, path: str) -> Fault:
        with self._lock:
            return next((fault for fault in self.faults if fault.takes(method, path)), Fault(times=0))


class _Handler(BaseHTTPRequestHandler):
    server_of_faults: FaultServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        owner = self.server_of_faults
        fault = owner.fault_for(self.command, self.path)
        headers = dict(self.headers)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._chunks()
            headers = {name: text for name, text in headers.items() if name.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(len(body))
            body = body[: fault.cut_request_at]
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length if fault.cut_request_at is None else min(length, fault.cut_request_at))
        request = Request(self.command, self.path, headers, body)
        owner.record(request)
        if fault.cut_request_at is not None:
            if fault.pass_cut:
                owner.backend(request)
            return self._end(reset=fault.reset_request)
        if fault.delay_seconds:
            owner.open_stalls.wait(fault.delay_seconds)
        answer = fault.answer or owner.backend(request)
        if fault.lose_answer:
            return self._end(reset=False)
        self._send(fault.change(answer) if fault.change else answer, fault)
        return None

    def _chunks(self) -> bytes:
        """A body whose length nobody said beforehand."""
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _send(self, answer: Answer, fault: Fault) -> None:
        self.send_response_only(answer.status)  # no Date and Server of its own
        for name, value in answer.headers.items():
            self.send_header(name, value)
        pieces: Iterable[bytes]
        if isinstance(answer.body, bytes):
            if "content-length" not in {name.lower() for name in answer.headers}:
                self.send_header("Content-Length", str(len(answer.body)))
            pieces = [answer.body]
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
            pieces = answer.body
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(OSError):
            self._send_body(pieces, fault)

    def _send_body(self, pieces: Iterable[bytes], fault: Fault) -> None:
        limits = [at for at in (fault.cut_at, fault.reset_at, fault.stall_at) if at is not None]
        sent, limit = 0, min(limits, default=None)
        for piece in pieces:
            part = piece if limit is None else piece[: limit - sent]
            self._drip(part, fault.bytes_per_second)
            sent += len(part)
            if limit is not None and sent >= limit:
                break
        if fault.stall_at is not None:
            self.wfile.flush()
            self.server_of_faults.open_stalls.wait(30)
        if limits:
            self._end(reset=fault.reset_at is not None)

    def _drip(self, data: bytes, bytes_per_second: float) -> None:
        if not bytes_per_second:
            self.wfile.write(data)
            return
        step = max(1, int(bytes_per_second / 20))
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            if self.server_of_faults.open_stalls.wait(0.05):
                return

    def _end(self, *, reset: bool) -> None:
        self.close_connection = True
        with suppress(OSError):
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()


def forward_to(host: str) -> Backend:
    """A backend that passes every request on to a real server, for tests that judge by what that holds."""

    def ask(request: Request) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request(request.method, request.path, request.body, dict(request.headers))
            if len(request.body) < int(request.headers.get("Content-Length", 0)):
                return Answer(499)  # the sender was cut: so is this
            response = connection.getresponse()
            # Python's client has undone the chunking; everything else passes as it is.
            headers: dict[str, str] = {}
            for name, text in response.getheaders():
                if name.lower() not in {"transfer-encoding", "connection"}:
                    headers[name] = f"{headers[name]}, {text}" if name in headers else text
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    return ask


def flip(answer: Answer, at: int = 0) -> Answer:
    """The same answer with one bit of one byte changed."""
    assert isinstance(answer.body, bytes)
    body = bytearray(answer.body)
    body[at] ^= 1
    return Answer(answer.status, answer.headers, bytes(body))


def with_headers(**headers: str) -> Callable[[Answer], Answer]:
    """A change that adds headers, or puts other texts into them; `Docker_Content_Digest` is written with hyphens."""
    added = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda answer: Answer(answer.status, {**answer.headers, **added}, answer.body)


def longer(answer: Answer, by: bytes = b"x") -> Answer:
    """The same answer with more at its end, and a length that says so."""
    assert isinstance(answer.body, bytes)
    headers = {name: text for name, text in answer.headers.items() if name.lower() != "content-length"}
    return Answer(answer.status, headers, answer.body + by)


def zipped(answer: Answer) -> Answer:
    """The same answer compressed on the way, as `Content-Encoding` says."""
    assert isinstance(answer.body, bytes)
    plain = longer(answer, b"")
    return Answer(answer.status, {**plain.headers, "Content-Encoding": "gzip"}, gzip.compress(answer.body))


def endless(piece: bytes = bytes(65536)) -> Iterator[bytes]:
    """A body that never ends."""
    while True:
        yield piece


def dripping(data: bytes, seconds: float) -> Iterator[bytes]:
    """A body that comes a byte at a time, over and over."""
    while True:
        for byte in data:
            time.sleep(seconds)
            yield bytes([byte])
