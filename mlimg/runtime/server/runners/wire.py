"""Values between the server and its workers, over a pair of sockets: a head, a pickle, and what is large behind it.

Both ends are our own processes, and the pickle is read by nobody else. Large bodies are not part of it, so that they
are copied no more often than the kernel copies them.
"""

import io
import pickle
import socket
import struct
from typing import Any, Final

_HEAD: Final = struct.Struct("=QQ")  # lengths of the pickle and of what is behind it, in bytes
HEAD_BYTES: Final = _HEAD.size
_LARGE_BYTES: Final = 64 * 1024


def pack(value: object) -> list[bytes]:
    """What to send, in its order."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    pickled = file.getvalue()
    return [_HEAD.pack(len(pickled), pickler.apart_bytes) + pickled, *pickler.apart]


def size_bytes(head: bytes | bytearray) -> int:
    """How much comes after a head."""
    return sum(_HEAD.unpack(head))


def unpack(head: bytes | bytearray, data: bytes | bytearray) -> Any:
    """The value that was packed."""
    pickled_bytes, _ = _HEAD.unpack(head)
    view = memoryview(data)
    return _Unpickler(io.BytesIO(view[:pickled_bytes]), view[pickled_bytes:]).load()


def send(link: socket.socket, value: object) -> None:
    """Send a value over a socket that blocks. Raises OSError."""
    for part in pack(value):
        link.sendall(part)


def receive(link: socket.socket) -> Any:
    """Wait for a value on a socket that blocks. Raises EOFError when the other end is gone, OSError."""
    head = _exactly(link, HEAD_BYTES)
    return unpack(head, _exactly(link, size_bytes(head)))


def _exactly(link: socket.socket, size: int) -> bytes:
    data = link.recv(size, socket.MSG_WAITALL)
    if len(data) == size:
        return data
    parts = [data]  # a signal came in between, or the end
    while parts[-1] and (missing := size - sum(map(len, parts))):
        parts.append(link.recv(missing, socket.MSG_WAITALL))
    if not parts[-1]:
        raise EOFError
    return b"".join(parts)


class _Pickler(pickle.Pickler):
    """Leaves large bytes out, and keeps them apart."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.apart: list[bytes] = []
        self.apart_bytes = 0

    def persistent_id(self, item: Any) -> Any:
        """Where an object is that the pickle is not to hold; None for all others."""
        if type(item) is not bytes or len(item) < _LARGE_BYTES:
            return None
        self.apart.append(item)
        self.apart_bytes += len(item)
        return self.apart_bytes - len(item), self.apart_bytes


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, apart: memoryview) -> None:
        super().__init__(file)
        self._apart = apart

    def persistent_load(self, place: Any) -> bytes:
        """The bytes that were kept apart."""
        start, end = place
        return bytes(self._apart[start:end])
