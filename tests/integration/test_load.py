"""A server that is asked too much, too slowly, or by too many: as a process of its own, over real sockets."""

import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.rounds import rounds
from tests.support.servers import ECHO, ServerProcess, ask, rows, running, server_folder

INFER = "/v2/models/model/infer"
SLOW = ECHO.replace("return inputs", "import time; time.sleep(inputs['input'].flat[0]); return inputs")
SPIN = ECHO.replace(
    "return inputs",
    "\n    import time\n    end = time.monotonic() + inputs['input'].flat[0]\n"
    "    while time.monotonic() < end: sum(range(1000))\n    return inputs",
)
FORKING = """
import os, signal, time
def load(model_dir, options): return None
def predict(model, inputs):
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(1)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    return {"ended_by": [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]}
"""
# What a server of rows says of itself, so that requests are batched; a batch takes a moment, so that others gather.
ROWS = """
import time
def load(model_dir, options): return None
def predict(model, inputs):
    time.sleep(0.002)
    return {"y": inputs["x"] * 2}
def signature(model):
    return [{"name": "x", "datatype": "FP64", "shape": [-1]}], [{"name": "y", "datatype": "FP64", "shape": [-1]}]
"""


@contextmanager
def serving(folder: Path, handler: str = ECHO, **environ: str) -> Iterator[ServerProcess]:
    """A server that is ready."""
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"1")
    server = server_folder(folder / "server", handler)
    with running({"MLIMG_MODEL_DIR": str(folder / "model"), "MLIMG_SERVER_DIR": str(server), **environ}) as process:
        process.wait_until(200)
        yield process


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def head(size_bytes: int) -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {size_bytes}\r\n\r\n".encode()


def answered(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    heard = b""
    while received := connection.recv(65536):
        heard += received
    return heard


def resident_bytes(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_h7_slow_clients_and_idle_connections_keep_nobody_waiting(tmp_path: Path) -> None:
    with serving(tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(150)]
        for number, client in enumerate(clients[:50]):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" if number % 2 else head(100_000) + b"{")
        assert [ask(server.port, INFER, rows([[1.0]])).status for _ in range(50)] == [200] * 50
        clients[60].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert clients[60].recv(65536).startswith(b"HTTP/1.1 200")


def test_h4_a_client_that_does_not_stop_sending_hears_why_and_is_not_listened_to(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request(
            "POST", INFER, iter([b" " * 2**20] * 68), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        assert client.getresponse().status == 413
        with connect(server.port) as endless:
            endless.sendall(head(2**40))
            sent = 0
            with suppress(ConnectionError):
                while sent < 2**30:
                    sent += endless.send(b" " * 2**20)
            assert sent < 2**26


def test_l6_abuse_does_not_make_the_server_grow(tmp_path: Path) -> None:
    def abuse() -> None:
        for number in range(100):
            with connect(server.port) as client:
                match number % 4:
                    case 0:
                        client.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000 + b"\r\n\r\n")
                    case 1:
                        client.sendall(head(2**30) + b" " * 100_000)
                    case 2:
                        client.sendall(head(10).replace(b"Content-Length: 10", b"Transfer-Encoding: chunked"))
                        client.sendall(b"1\r\n \r\n" * 70_000)
                    case _:
                        client.sendall(head(100_000) + b"{")
                        continue
                assert answered(client).count(b"HTTP/1.1 4") == 1

    with serving(tmp_path) as server:
        abuse()
        before = resident_bytes(server)
        abuse()
        abuse()
        assert resident_bytes(server) - before < 2 * 3 * 2**20  # 1 MiB a hundred is the bar, 3 the test's


def test_h8_the_place_of_a_client_that_hangs_up_is_free_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, SLOW, MLIMG_WORKERS="1", MLIMG_QUEUE="1") as server, ThreadPoolExecutor(2) as clients:
        body = json.dumps(rows([[1.0]])).encode()
        first = clients.submit(ask, server.port, INFER, rows([[2.0]]))
        time.sleep(0.3)
        with connect(server.port) as waiting:
            waiting.sendall(head(len(body)) + body)
            time.sleep(0.3)
            assert ask(server.port, INFER, rows([[0.0]])).status == 503
        time.sleep(0.3)  # 0.1 s is the bar
        assert clients.submit(ask, server.port, INFER, rows([[0.0]])).result().status == 200
        assert first.result().status == 200


def open_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("limit", ["", "1000"], ids=["told", "not told"])
def test_h13_a_server_without_open_files_left_answers_again(tmp_path: Path, limit: str) -> None:
    """With the limit that it finds it turns clients away by 503; with one that is too high it runs out of files."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    folder = server_folder(tmp_path / "server")
    environ = {
        "MLIMG_MODEL_DIR": str(tmp_path / "model"),
        "MLIMG_SERVER_DIR": str(folder),
        "MLIMG_CONNECTION_LIMIT": limit,
    }
    with running(environ, tracer=(sys.executable, "-c", LIMITED)) as server:
        server.wait_until(200)
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(server.port)) for _ in range(200)]
            time.sleep(1)
            if not limit:
                assert clients[70].recv(65536).startswith(b"HTTP/1.1 503")
            deadline = time.monotonic() + 10  # for a busy machine to turn the last ones away
            while not limit and open_files(server) >= 127 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert (open_files(server) >= 127) == bool(limit)
        server.wait_until(200, seconds=10)
        server.signal()
        code, errors = server.end()
    assert code == 0
    assert errors.count("out of system resource") < 100


@pytest.mark.parametrize("output", ["closed", "/dev/full"])
def test_h14_a_server_that_cannot_write_its_log_serves_on(tmp_path: Path, output: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    failing = ECHO.replace("return inputs", "print('x', flush=False); 1 / (inputs['input'].flat[0] - 1); return inputs")
    folder = server_folder(tmp_path / "server", failing)
    redirect = '"$@" >&- 2>&-' if output == "closed" else f'"$@" >{output} 2>&1'
    environ = {"MLIMG_MODEL_DIR": str(tmp_path / "model"), "MLIMG_SERVER_DIR": str(folder)}
    with running(environ, tracer=("sh", "-c", f"exec {redirect}", "sh")) as server:
        server.wait_until(200)
        assert ask(server.port, INFER, rows([[0.0]])).status == 200
        assert ask(server.port, INFER, rows([[float(1)]])).status in {200, 500}
        assert ask(server.port, INFER, rows([[0.0]])).status == 200


@pytest.mark.parametrize("handler", [SLOW, SPIN], ids=["sleeping", "holding the interpreter"])
def test_l1_health_answers_while_every_worker_is_busy(tmp_path: Path, handler: str) -> None:
    with serving(tmp_path, handler, MLIMG_WORKERS="2") as server, ThreadPoolExecutor(2) as clients:
        busy = [clients.submit(ask, server.port, INFER, rows([[4.0]])) for _ in range(2)]
        time.sleep(0.3)
        seconds = []
        for _ in range(10):
            start = time.monotonic()
            assert ask(server.port, "/v2/health/ready").status == 200
            seconds.append(time.monotonic() - start)
        assert not any(future.done() for future in busy)
        assert sorted(seconds)[5] < 0.25  # 50 ms is the bar, on a machine that does nothing else
        assert [future.result().status for future in busy] == [200, 200]


def test_a_process_that_a_handler_forks_is_ended_and_not_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, FORKING) as server:
        for _ in range(2):
            assert ask(server.port, INFER, rows([[1.0]])).json["outputs"][0]["data"] == [-15]
        assert ask(server.port, "/v2/health/ready").status == 200


def test_l14_answers_never_cross(tmp_path: Path) -> None:
    """As many clients as a batch has room, each request with an id and a payload that no other has."""
    each = rounds(100)

    def client(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        crossed = 0
        for turn in range(each):
            values = [float(number * 1_000_000 + turn), *range(turn % 7)]
            body = {
                "id": f"{number}-{turn}",
                "inputs": [{"name": "x", "datatype": "FP64", "shape": [len(values)], "data": values}],
            }
            connection.request("POST", INFER, json.dumps(body))
            answer = json.loads(connection.getresponse().read())
            crossed += answer["id"] != body["id"] or answer["outputs"][0]["data"] != [value * 2 for value in values]
        connection.close()
        return crossed

    with (
        serving(tmp_path, ROWS, MLIMG_MAX_BATCH_SIZE="16", MLIMG_WORKERS="2") as server,
        ThreadPoolExecutor(16) as pool,
    ):
        assert sum(pool.map(client, range(16))) == 0
        metrics = ask(server.port, "/metrics").body.decode()
    sizes = [line for line in metrics.splitlines() if line.startswith("mlimg_batch_size_sum")]
    counts = [line for line in metrics.splitlines() if line.startswith("mlimg_batch_size_count")]
    assert sum(float(line.split()[-1]) for line in sizes) > 1.5 * sum(float(line.split()[-1]) for line in counts) > 0
