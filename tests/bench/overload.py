"""What the built-in server does when more is asked than it can answer, and for an hour when it is not.

Two models that take ten milliseconds: one sleeps, as one that computes on a device does; one computes in Python and so
holds the interpreter's lock. The peak is found by a closed loop, then requests are sent when they are due, at two, five
and ten times that rate, while health is asked twenty times a second. At the end the server is told to stop under load.
`--soak` loads it at 70 % for so many minutes instead, and looks at its memory.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import Row, table
from project import ROOT
from servers import Contender, Started, started

HANDLER = """\
import time


def load(model_dir, options):
    return None


def predict(model, inputs):
    {statement}
    return inputs
"""
KINDS = {
    "sleeping": "time.sleep(0.01)",
    "computing": "end = time.thread_time() + 0.01\n    while time.thread_time() < end: pass",
}
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1]}]}).encode()
LOST = -1  # the connection ended without an answer
REFUSED = 0  # there was no connection
_CHECKS = 20  # of health, a second


@dataclass
class Client:
    """Asks one server on as many connections as it takes, each kept."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, request: bytes) -> tuple[int, str]:
        """The status of the answer, or LOST or REFUSED, and its headers."""
        while self.idle and self.idle[-1][0].at_eof():
            self.idle.pop()
        try:
            reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return REFUSED, ""
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"content-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return LOST, ""
        if "connection: close" in head:
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head.split(" ", 2)[1]), head


@dataclass
class Load:
    """What came of a load: seconds from when each request was due, by status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry: int = 0  # 503 without a whole number in Retry-After
    late_seconds: float = 0.0  # at most, from when a request was due until it was sent: no fault of the server's

    def add(self, status: int, head: str, taken: float) -> None:
        self.seconds.setdefault(status, []).append(taken)
        if status == 503 and not re.search(r"retry-after: \d+\r\n", head):
            self.without_retry += 1

    def count(self, status: int) -> int:
        return len(self.seconds.get(status, []))

    def total(self) -> int:
        return sum(map(len, self.seconds.values()))

    def p99(self, status: int) -> float:
        values = sorted(self.seconds.get(status, [0.0]))
        return values[min(len(values) - 1, len(values) * 99 // 100)]


def request(path: str, body: bytes = b"") -> bytes:
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


PREDICT, HEALTH = request("/v2/models/model/infer", BODY), request("/v2/health/ready")


async def peak(client: Client, seconds: float, at_once: int = 8) -> float:
    """Answers a second when the next request is sent as one is answered."""
    end, count = time.monotonic() + seconds, 0

    async def again() -> None:
        nonlocal count
        while time.monotonic() < end:
            status, _ = await client.ask(PREDICT)
            count += status == 200

    await asyncio.gather(*(again() for _ in range(at_once)))
    return count / seconds


async def at_rate(client: Client, what: bytes, per_second: float, seconds: float, load: Load) -> None:
    """Send requests when they are due, whatever becomes of earlier ones."""
    start, asked = time.monotonic(), set()

    async def one(due: float) -> None:
        status, head = await client.ask(what)
        load.add(status, head, time.monotonic() - due)

    for number in range(round(per_second * seconds)):
        due = start + number / per_second
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        load.late_seconds = max(load.late_seconds, time.monotonic() - due)
        task = asyncio.create_task(one(due))
        asked.add(task)
        task.add_done_callback(asked.discard)
    await asyncio.gather(*asked)


async def overload(server: Started, kind: str, seconds: float) -> list[Row]:
    client, checker = Client(server.contender.port), Client(server.contender.port)
    await peak(client, 2)
    most = await peak(client, seconds)
    print(f"{kind}: peak {most:.0f} answers a second")
    rows = []
    for times in (2, 5, 10):
        load, health = Load(), Load()
        await asyncio.gather(
            at_rate(client, PREDICT, most * times, seconds, load),
            at_rate(checker, HEALTH, _CHECKS, seconds, health),
        )
        statuses = {status: len(values) for status, values in load.seconds.items()}
        print(f"  {times}x: {statuses}; p99 of 200 {load.p99(200) * 1000:.0f} ms, of 503 {load.p99(503) * 1000:.0f} ms")
        unexpected = sum(statuses.values()) - load.count(200) - load.count(503) + load.without_retry
        rows += [
            Row(f"{kind}, {times}x: goodput over the peak", load.count(200) / seconds / most, 0.9, "x", at_least=True),
            Row(f"{kind}, {times}x: p99 of health", health.p99(200) * 1000, 50, "ms"),
            Row(f"{kind}, {times}x: p99 of refusals", load.p99(503) * 1000, 50, "ms"),
            Row(f"{kind}, {times}x: neither answered nor refused by name", unexpected, 0, ""),
        ]
        await asyncio.sleep(2)
        calm = Load()
        await at_rate(client, PREDICT, most / 10, 1, calm)
        rows.append(Row(f"{kind}, {times}x: median 2 s later", statistics.median(calm.seconds[200]) * 1000, 30, "ms"))
    return [*rows, await stopped(server, client, kind, most)]


async def stopped(server: Started, client: Client, kind: str, most: float) -> Row:
    """Tell the server to stop under a load that it can answer: what was sent and never answered is lost."""
    load = Load()
    running = asyncio.create_task(at_rate(client, PREDICT, most * 0.9, 3, load))
    await asyncio.sleep(1)
    os.kill(server.process.pid, signal.SIGTERM)
    await running
    statuses = Counter({status: len(values) for status, values in load.seconds.items()})
    print(f"  stopped under load: {dict(statuses)}")
    return Row(f"{kind}: requests lost at SIGTERM", load.count(LOST), 0, "")


async def soak(server: Started, minutes: float) -> list[Row]:
    """Load at 70 % of the peak; memory is looked at each minute, the first tenth of the time not counted."""
    client, load = Client(server.contender.port), Load()
    most = await peak(client, 5)
    memory: list[float] = []

    async def look() -> None:
        while True:
            memory.append(server.anonymous_mib())
            counts = {status: load.count(status) for status in sorted(load.seconds)}
            told = f"{memory[-1]:.1f} MiB, answers by status {counts}"
            print(f"minute {len(memory) - 1}: {told}, sent up to {load.late_seconds:.2f} s late", flush=True)
            await asyncio.sleep(60)

    looking = asyncio.create_task(look())
    await at_rate(client, PREDICT, most * 0.7, minutes * 60, load)
    looking.cancel()
    settled = memory[len(memory) // 10 :]
    slope = statistics.linear_regression(range(len(settled)), settled).slope * 10 if len(settled) > 1 else 0.0
    total = load.total()
    print(f"{total} requests, {most * 0.7:.0f} a second; memory {settled[0]:.1f} to {settled[-1]:.1f} MiB")
    return [
        Row("soak: answers that are not 200", total - load.count(200), 0, ""),
        Row("soak: memory, each 10 minutes", slope, 1.0, "MiB"),
    ]


def measured(kind: str, folder: Path, measure: Callable[[Started], Coroutine[Any, Any, list[Row]]]) -> list[Row]:
    """What `measure` finds of a server of its own."""
    home = folder / kind
    (home / "code").mkdir(parents=True)
    (home / "code" / "handler.py").write_text(HANDLER.format(statement=KINDS[kind]))
    facts = {"template": "python", "templateVersion": "1", "frameworks": [], "formats": [], "options": {}}
    (home / "server.json").write_text(json.dumps(facts))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "weights").write_text("none")
    environ = {
        "PORT": "47441",
        "PYTHONPATH": str(ROOT),
        "MLIMG_SERVER_DIR": str(home),
        "MLIMG_MODEL_DIR": str(folder / "model"),
    }
    with started(
        Contender("mlimg", 47441, "model", [sys.executable, "-m", "mlimg.runtime", "serve"], environ)
    ) as server:
        return asyncio.run(measure(server))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="mlimg-bench.") as name:
        folder = Path(name)
        if given.soak:
            rows = measured("sleeping", folder, lambda server: soak(server, given.soak))
        else:
            rows = [
                row
                for kind in KINDS
                for row in measured(kind, folder, lambda server, kind=kind: overload(server, kind, given.seconds))
            ]
    table(rows)


if __name__ == "__main__":
    main()
