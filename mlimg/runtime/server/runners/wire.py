"""Values between the server and its workers, over a pair of sockets: each a packet, or a file that a packet brings.

Both ends are our own processes, and what is pickled is read by nobody else. A socket's buffer is small (208 KiB where
nobody raised it): what is large would pass through it in pieces, and wake both ends with each. So it is written to a
file in memory, which the other end reads; large bodies are copied into it and out of it, and nowhere else.

https://man7.org/linux/man-pages/man2/memfd_create.2.html
https://man7.org/linux/man-pages/man7/unix.7.html: SCM_RIGHTS
"""

import os
import pickle
import socket
import struct
from typing import Any, Final

_PACKET_BYTES: Final = 32 * 1024
_FILE: Final = b"file"  # the packet that brings one
_ONE_DESCRIPTOR: Final = struct.Struct("i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_ONE_DESCRIPTOR.size)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends. What one sends as a packet, the other receives as one."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(link: socket.socket, value: object) -> None:
    """Send a value, wholly or not at all. Raises BlockingIOError when there is no room for it now, OSError."""
    parts = _Parts()
    pickle.Pickler(parts, pickle.HIGHEST_PROTOCOL).dump(value)
    if sum(map(len, parts)) <= _PACKET_BYTES:
        link.sendmsg(parts)
        return
    file = os.memfd_create("mlimg")
    try:
        for part in parts:
            _write(file, part)
        link.sendmsg([_FILE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _ONE_DESCRIPTOR.pack(file))])
    finally:
        os.close(file)


def receive(link: socket.socket) -> Any:
    """Take a value. Raises EOFError when the other end is gone, BlockingIOError when there is none yet, OSError."""
    packet, ancillary, _, _ = link.recvmsg(_PACKET_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    if not packet:
        raise EOFError
    if not ancillary:
        return pickle.loads(packet)  # noqa: S301 (it comes from our own process)
    (descriptor,) = _ONE_DESCRIPTOR.unpack(ancillary[0][2])
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)  # its place is shared with the other end
        return pickle.load(file)  # noqa: S301 (as above)


class _Parts(list[bytes]):
    """What a pickle consists of. Large bytes are parts of their own: themselves, not copies."""

    write = list.append


def _write(file: int, part: bytes) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(file, rest) :]
