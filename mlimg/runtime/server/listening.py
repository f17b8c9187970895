"""The port: opened before anything else, and closed so that no connection is lost."""

import ctypes
import socket
import struct
from typing import Final

from mlimg.runtime.errors import LocalIOError
from mlimg.runtime.server.settings import Settings

BACKLOG: Final = 2048
_SO_ATTACH_FILTER: Final = 26
# https://www.kernel.org/doc/html/latest/networking/filter.html: of the packets for a socket, drop each with the flag
# SYN. A filter of a listening socket sees packets from their TCP header on.
_NO_SYN: Final = (
    (0x30, 0, 0, 13),  # ldb [13], the flags
    (0x45, 0, 1, 0x02),  # jset #SYN
    (0x06, 0, 0, 0),  # ret #0, which drops
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1, which keeps
)


def listen(settings: Settings) -> socket.socket:
    """Open the port. Connections wait in the backlog until the event loop runs. Raises LocalIOError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=settings.host == "::" and socket.has_dualstack_ipv6(),
        )
        # Connections inherit it. An answer goes out in two writes, head and body: without it, the second would wait for
        # the client's delayed acknowledgement of the first, 40 ms. asyncio sets it where a socket names its protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise LocalIOError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            hint="set PORT or HOST",
        ) from error


def turn_away(listener: socket.socket) -> None:
    """Let no new connection begin, while those that have begun can still be accepted.

    Closing a socket resets what waits to be accepted: its client cannot know whether the request was worked on. Whoever
    comes now hears nothing, tries again after a second, and is refused by name, as the socket is closed then.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        )
    except OSError:  # a sandbox, or a system, without filters: a short queue is the most there is
        listener.listen(0)
