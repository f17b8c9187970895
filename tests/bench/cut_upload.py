"""A layer of 1 GiB whose upload is cut: what is sent again, and what it costs to be ready for that.

The cut is of the TCP connection, at a share of the layer's bytes, in a proxy that counts them. docker-registry gives up
a session in whose chunk a connection broke; the sink keeps whole chunks, as do registries behind a proxy that buffers.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measure import PYTHON, Row, ratio_row, run, table
from places import docker_registry, sink

from mlimg.runtime.digest import READ_SIZE_BYTES, Digest
from mlimg.runtime.oci import Access, Journal, push_blobs, strategy
from mlimg.runtime.reference import ImageReference

LAYER_BYTES = 1024**3
PERCENT = (0, 1, 50, 99)
ROUNDS = 3
_PIECE_BYTES = 1024**2


@dataclass(frozen=True)
class FileBlob:
    """A file as a blob."""

    path: Path
    digest: Digest

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.path.stat().st_size

    @property
    def resume_key(self) -> str:
        """Its digest is known."""
        return self.digest.text

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes."""
        buffer = memoryview(bytearray(READ_SIZE_BYTES))
        with self.path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield buffer[:size]


@dataclass
class CuttingProxy:
    """Hands TCP connections on to `target`; the first time that `cut_at` bytes went there, all of them break."""

    target: str
    cut_at: int | None = None
    bytes_there: int = 0
    cuts: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Serve meanwhile; gives ``host:port``."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"

    def _accept(self, listener: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                with self._lock:
                    self._open += [client, server]
                threading.Thread(target=self._relay, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, client, False), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        buffer = memoryview(bytearray(_PIECE_BYTES))
        with contextlib.suppress(OSError):
            while size := source.recv_into(buffer):
                if counted and self.cut_at is not None and not self.cuts:
                    size = min(size, self.cut_at - self.bytes_there)
                sink.sendall(buffer[:size])
                if counted:
                    self.bytes_there += size
                    if self.bytes_there == self.cut_at and not self.cuts:
                        self.cuts += 1
                        break
        with self._lock:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def push_command(host: str, blob: FileBlob, *, journal: Path | None = None, in_chunks: bool = True) -> list[str]:
    """A process that pushes the layer, and says how many bytes it sent."""
    name = f"{host}/bench/app:1"
    return [PYTHON, __file__, name, str(blob.path), blob.digest.text, str(journal or ""), "chunks" * in_chunks]


def push(name: str, path: str, digest: str, journal: str, in_chunks: str) -> None:
    """What that process does."""
    if not in_chunks:
        strategy.CHUNK_BYTES = 1 << 60  # type: ignore[misc]
    blob = FileBlob(Path(path), Digest(digest))
    (pushed,) = push_blobs(
        Access(backoff_seconds=0.1),
        ImageReference.parse(name),
        [blob],
        journal=Journal(Path(journal)) if journal else None,
        on_note=lambda text: print(text, file=sys.stderr),
    )
    assert pushed.how == "sent"


def cut(host: str, blob: FileBlob, percent: int) -> float:
    """Bytes that went to the registry, over those of the layer, when the connection breaks once."""
    # Three requests' heads go before the first byte of the layer: 4 KiB are in its first chunk.
    proxy = CuttingProxy(host, max(4096, LAYER_BYTES * percent // 100))
    with proxy.listening() as between:
        run(push_command(between, blob))
    assert proxy.cuts == 1
    return proxy.bytes_there / LAYER_BYTES


def killed(host: str, blob: FileBlob, journal: Path) -> float:
    """The same when the process is killed half way and run again."""
    proxy = CuttingProxy(host)
    with proxy.listening() as between:
        command = push_command(between, blob, journal=journal)
        with subprocess.Popen(command) as process:
            while proxy.bytes_there < LAYER_BYTES // 2:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        run(command)
    return proxy.bytes_there / LAYER_BYTES


def slowdown(host: str, blob: FileBlob, empty: Callable[[], None]) -> list[float]:
    """Seconds in chunks over seconds in one stream, in turn, after a warm-up."""
    ratios: list[float] = []
    for _ in range(ROUNDS + 1):
        seconds: list[float] = []
        for in_chunks in (True, False):
            seconds.append(run(push_command(host, blob, in_chunks=in_chunks)).seconds)
            empty()
        ratios.append(seconds[0] / seconds[1])
    return ratios[1:]


def rows(folder: Path) -> Iterator[Row]:
    """All figures."""
    path = folder / "layer"
    with path.open("wb") as file:
        for _ in range(LAYER_BYTES // _PIECE_BYTES):
            file.write(os.urandom(_PIECE_BYTES))
    blob = FileBlob(path, Digest.of_file(path))
    for percent in PERCENT:
        with sink() as place:
            yield Row(f"sent, cut at {percent} %, whole chunks kept", cut(place.host, blob, percent), 1.05, "x")
    with sink() as place:
        yield Row("sent, killed half way, whole chunks kept", killed(place.host, blob, folder / "kept"), 1.05, "x")
    with docker_registry(folder) as registry:
        for percent in PERCENT:
            yield Row(f"sent, cut at {percent} %, docker-registry", cut(registry.host, blob, percent), 2.0, "x")
            registry.empty()
        yield Row("sent, killed half way, docker-registry", killed(registry.host, blob, folder / "lost"), 2.0, "x")
        registry.empty()
        values = slowdown(registry.host, blob, registry.empty)
        yield ratio_row("seconds in chunks over one stream, docker-registry", values, 1.25)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mlimg-cut-") as folder:
        table(list(rows(Path(folder))))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        push(*sys.argv[1:])
    else:
        main()
