"""A balancer of TCP connections, as simple as those of platforms: it knows no HTTP, and tries nothing twice."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle


class Balancer:
    """Passes each connection on to the next of `targets`, which may change between connections."""

    def __init__(self, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._turns: Iterator[int] = iter(())

    def point_to(self, *ports: int) -> None:
        """Pass new connections to these; those that there are stay where they are."""
        self._turns = cycle(ports)

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", next(self._turns))) as server:
            upwards = threading.Thread(target=_copy, args=(client, server), daemon=True)
            upwards.start()
            _copy(server, client)
            upwards.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, and its end."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def balancing() -> Iterator[Balancer]:
    """A balancer on a port of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        balancer = Balancer(listener)
        threading.Thread(target=balancer._accept, daemon=True).start()
        yield balancer
        listener.shutdown(socket.SHUT_RDWR)
