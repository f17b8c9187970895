"""A line to a server: it counts the bytes that come back, and may be slow, each connection for itself."""

import contextlib
import socket
import threading
import time
from typing import Self


class Line:
    """Passes connections on to `host` while the ``with`` block lasts. `received_bytes` went to its clients."""

    def __init__(self, host: str, *, bytes_per_second: float = 0) -> None:
        name, _, port = host.rpartition(":")
        self._target = (name, int(port))
        self.bytes_per_second = bytes_per_second  # of each connection; 0: as fast as it goes
        self.received_bytes = 0
        self.connections = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._accepting.join()

    def _accept(self) -> None:
        with self._server, contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            there = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            there.start()
            self._copy(server, client, counted=True)
            there.join()

    def _copy(self, source: socket.socket, target: socket.socket, *, counted: bool = False) -> None:
        due = time.monotonic()
        with contextlib.suppress(OSError):
            while piece := source.recv(64 * 1024):
                target.sendall(piece)
                if not counted:
                    continue
                with self._lock:
                    self.received_bytes += len(piece)
                if self.bytes_per_second:
                    due = max(due, time.monotonic() - 0.05) + len(piece) / self.bytes_per_second
                    time.sleep(max(0.0, due - time.monotonic()))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
