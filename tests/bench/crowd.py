"""What slow clients and idle connections take from those that ask: rows H7 and L9 in full.

A thousand connections that are kept after a request, and two hundred clients that are slow: a quarter each with their
headers, with a body, with a body in chunks, and in taking an answer of a megabyte. Answers a second with and without
them, in turn, by the models of `overload.py`.
"""

import argparse
import asyncio
import resource
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Row, table
from overload import BODY, HEALTH, KINDS, Client, measured, peak, request
from servers import Started

PATH = "/v2/models/model/infer"
LARGE = BODY.replace(b"[1]", b"[300000]", 1).replace(b"[1]", b"[" + b"1," * 299_999 + b"1]")
# What a slow client begins with, and what it sends each second then: enough for it not to be cut off.
SLOW = (
    (b"GET /v2 HTTP/1.1\r\nHost: bench\r\nX: ", b"x"),
    (f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Length: 1000000\r\n\r\n".encode(), b" " * 2048),
    (f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: chunked\r\n\r\n".encode(), b"800\r\n%2048b\r\n" % b""),
    (request(PATH, LARGE), b""),
)


@asynccontextmanager
async def crowd(port: int, idle: int, slow: int) -> AsyncIterator[None]:
    """As many connections as these, while the context lasts."""
    kept = Client(port)
    for _ in range(idle):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        kept.idle.append((reader, writer))
        await kept.ask(HEALTH)
        kept.idle.insert(0, kept.idle.pop())
    clients = []
    for begin, each_second in islice(cycle(SLOW), slow):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(begin)
        if not each_second:
            await reader.readexactly(1)  # of the rest, what fits into no buffer is the server's to keep
        clients.append((writer, each_second))

    async def drip() -> None:
        while True:
            await asyncio.sleep(1)
            for writer, each_second in clients:
                writer.write(each_second)

    dripping = asyncio.create_task(drip())
    try:
        yield
    finally:
        dripping.cancel()
        for writer in (*(writer for writer, _ in clients), *(writer for _, writer in kept.idle)):
            writer.close()


async def crowded(server: Started, kind: str, seconds: float, rounds: int) -> list[Row]:
    client, ratios = Client(server.contender.port), list[float]()
    await peak(client, 1)
    for _ in range(rounds):
        quiet = await peak(client, seconds)
        async with crowd(server.contender.port, 1000, 200):
            ratios.append(await peak(client, seconds) / quiet)
    print(f"{kind}: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    return [Row(f"{kind}: goodput in a crowd over that without", statistics.median(ratios), 0.95, "x", at_least=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each load; less than 8, when headers are given up")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with TemporaryDirectory(prefix="mlimg-bench.") as name:
        table(
            [
                row
                for kind in KINDS
                for row in measured(
                    kind,
                    Path(name),
                    lambda server, kind=kind: crowded(server, kind, given.seconds, given.rounds),
                )
            ]
        )


if __name__ == "__main__":
    main()
