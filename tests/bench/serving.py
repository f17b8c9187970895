"""How the built-in server does against MLServer 1.7.1 and the KServe SDK 0.21: rate, latency, memory, start.

Closed-loop rates come from `wrk` (Debian: wrk), sixteen connections, the servers in turn, round after round. Latencies
come from an open loop: requests are sent when they are due, whether earlier ones are answered or not, and each is timed
from the moment it was due.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Row, run, table
from servers import SKLEARN, Contender, Started, by_hand, kserve, mlserver, ours, python, started, train

ROW = [float(number % 17) for number in range(64)]
JSON_BODY = json.dumps({"inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 64], "data": ROW}]}).encode()
SETTLED_SECONDS = 1.5  # after a server says that it is ready
BINARY_ROWS = 2048  # of 64 FP64: 1 MiB
IN_PROCESS = """\
import sys, time, joblib, numpy
model = joblib.load(sys.argv[1])
row = numpy.array([[float(number % 17) for number in range(64)]])
def once():
    start = time.perf_counter()
    model.predict(row)
    time.sleep(0.002)
    return time.perf_counter() - start - 0.002
seconds = sorted(once() for _ in range(1000))
print(seconds[500], seconds[950])
"""


def binary_body() -> tuple[bytes, int]:
    """A request whose tensor follows its JSON, and the JSON's length."""
    size = BINARY_ROWS * 64 * 8
    tensor = {"name": "input", "datatype": "FP64", "shape": [BINARY_ROWS, 64], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + bytes(size), len(head)


def rate(url: str, script: Path, seconds: int) -> float:
    """Answers a second on sixteen connections.

    0 where a server does not take what is sent: MLServer takes no bytes over REST.
    """
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(script), url]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        print(f"  {url} does not answer with 200")
        return 0.0
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", told)[0])


def script(folder: Path, name: str, body: bytes, headers: dict[str, str]) -> Path:
    """What `wrk` sends."""
    (folder / f"{name}.bin").write_bytes(body)
    lines = ['wrk.method = "POST"', f'wrk.body = io.open("{folder / name}.bin", "rb"):read("*a")']
    lines += [f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()]
    (folder / f"{name}.lua").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.lua"


def open_loop(contender: Contender, per_second: float, seconds: float) -> list[float]:
    """Send one-row requests when they are due, on one connection; the seconds to each answer's end.

    They count from when a request was due if an earlier one held it up, else from when it was sent: how late this
    process wakes is no fault of the server's.
    """
    head = f"POST /v2/models/{contender.model}/infer HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(JSON_BODY)}\r\n\r\n".encode() + JSON_BODY
    taken: list[float] = []
    with socket.create_connection(("127.0.0.1", contender.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        for number in range(round(per_second * seconds)):
            begun = due = start + number / per_second
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
                begun = time.perf_counter()
            connection.sendall(request)
            _receive(contender, connection)
            taken.append(time.perf_counter() - begun)
    return sorted(taken)


def _receive(contender: Contender, connection: socket.socket) -> None:
    """Take one answer."""
    answer = connection.recv(65_536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += connection.recv(65_536)
    length = re.search(rb"(?i)content-length: *(\d+)", answer)
    if not answer.startswith(b"HTTP/1.1 200") or length is None:
        raise SystemExit(f"{contender.name}: {answer!r}")
    while len(answer) < end + 4 + int(length[1]):
        answer += connection.recv(65_536)


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def alternate(rounds: int, measure: Callable[[Started], float], servers: Sequence[Started]) -> dict[str, list[float]]:
    """Measure each server in turn, round after round."""
    found: dict[str, list[float]] = {server.contender.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            found[server.contender.name].append(measure(server))
    for name, values in found.items():
        print(f"  {name:<18} {statistics.median(values):>10.1f}   {spread(values)}")
    return found


def over_others(
    found: Mapping[str, Sequence[float]], ours: str, better: Callable[[Iterable[float]], float]
) -> list[float]:
    """Each round's figure of `ours` over the better of the others'."""
    others = [values for name, values in found.items() if not name.startswith("mlimg")]
    return [mine / better(theirs) for mine, *theirs in zip(found[ours], *others, strict=True)]


def rates(servers: Sequence[Started], folder: Path, rounds: int, seconds: int) -> list[Row]:
    """Requests a second, as JSON and as binary tensors."""
    binary, head = binary_body()
    scripts = {
        "one row, JSON": script(folder, "row", JSON_BODY, {"Content-Type": "application/json"}),
        "1 MiB, binary": script(
            folder,
            "binary",
            binary,
            {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)},
        ),
    }
    rows = []
    for what, body in scripts.items():
        print(f"requests a second, {what}")
        able = [server for server in servers if rate(server.contender.url, body, 2)]
        found = alternate(rounds, lambda server, body=body: rate(server.contender.url, body, seconds), able)
        for name in found:
            if name.startswith("mlimg"):
                values = over_others(found, name, max)
                figure = f"requests a second, {what}: {name} over the best of the others"
                rows.append(Row(figure, statistics.median(values), 3.0, "x", spread(values), at_least=True))
    return rows


def latency(server: Started, model: Path, rounds: int) -> list[Row]:
    """What the server adds to `predict`, at 200 requests a second."""
    added: list[tuple[float, float]] = []
    open_loop(server.contender, 200, 2)
    for _ in range(rounds):
        p50, p95 = map(float, run([*python(SKLEARN, "joblib"), "-c", IN_PROCESS, str(model)]).stdout.split())
        taken = open_loop(server.contender, 200, 5)
        added.append(((taken[len(taken) // 2] - p50) * 1000, (taken[len(taken) * 95 // 100] - p95) * 1000))
    return [
        Row(
            f"{name} over predict in process: {server.contender.name}",
            statistics.median(values),
            bar,
            "ms",
            spread(values),
        )
        for name, values, bar in zip(("p50", "p95"), zip(*added, strict=True), (1.0, 5.0), strict=True)
    ]


def memory(contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """What idle servers hold, before anything was asked of them: each alone, as in a container.

    Side by side they would share the interpreter's pages, of which each counts its part only.
    """
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with started(contender) as server:
                time.sleep(SETTLED_SECONDS)
                found[contender.name].append(server.resident_mib())
    print("memory, MiB")
    rows = []
    for name, held in found.items():
        print(f"  {name:<25} {statistics.median(held):>6.1f}   {spread(held)}")
        if name.startswith("mlimg"):
            values = over_others(found, name, min)
            figure = f"idle memory: {name} over the smaller of the others'"
            rows.append(Row(figure, statistics.median(values), 0.5, "x", spread(values)))
    return rows


def start_up(contender: Contender, model: Path, rounds: int) -> Row:
    """From the process' start to its first 200, against importing the framework and loading the model by hand."""
    values = []
    for _ in range(rounds):
        hand = run(by_hand(model)).seconds
        with started(contender) as server:
            values.append(server.seconds / hand)
    return Row("start to ready over import and load by hand", statistics.median(values), 1.3, "x", spread(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure idle memory and nothing else")
    parser.add_argument("--seconds", type=int, default=5, help="of each measured rate")
    parser.add_argument("--batches", action="store_true", help="ask servers that predict up to 16 requests as one, too")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="mlimg-bench.") as name, ExitStack() as stack:
        folder = Path(name)
        model = train(folder)
        mine = ours(model, folder, 47411)
        apart = ours(
            model, folder, 47413, "mlimg, one worker process", MLIMG_WORKER_KIND="processes", MLIMG_WORKERS="1"
        )
        contenders = [mine, mlserver(model, folder, 47421), kserve(model, folder, 47431)]
        idle = memory([*contenders, apart], min(given.rounds, 3))
        if given.memory:
            table(idle)
            return
        start_row = start_up(mine, model, given.rounds)
        servers = [stack.enter_context(started(contender)) for contender in (*contenders, apart)]
        if given.batches:
            batching = [
                ours(model, folder, 47412, "mlimg, batches", MLIMG_MAX_BATCH_SIZE="16"),
                mlserver(model, folder, 47451, "MLServer, batches", max_batch_size=16, max_batch_time=0.002),
            ]
            servers += [stack.enter_context(started(contender)) for contender in batching]
        rows = rates(servers, folder, given.rounds, given.seconds)
        for server in servers:
            if server.contender in (mine, apart):
                rows += latency(server, model, given.rounds)
    table([*rows, *idle, start_row])


if __name__ == "__main__":
    main()
