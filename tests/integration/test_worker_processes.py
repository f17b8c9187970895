"""Workers that are processes: what dies, dies alone; what hangs is replaced; nothing is left behind."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Reply, ServerProcess, ask, rows, running, server_folder

INFER = "/v2/models/model/infer"
# What to do is the name of the input; what to do it with, its value.
HANDLER = """
import os, sqlite3, sys, time
import numpy as np

def load(model_dir, options):
    return None

def predict(model, inputs):
    ((name, array),) = inputs.items()
    value = array.flat[0]
    if name == "kill":
        os.kill(os.getpid(), int(value))
    elif name == "exit":
        os._exit(int(value))
    elif name == "leave-a-child":
        if os.fork() == 0:  # it has the worker's socket, too
            os.closerange(1, 3)
            time.sleep(45)
        os._exit(int(value))
    elif name == "sleep":
        time.sleep(value)
    elif name == "spin":
        end = time.monotonic() + value
        while time.monotonic() < end:
            pass
    elif name == "echo":
        return {"answer": array}
    elif name == "has-http":
        return {"answer": np.array([int("starlette" in sys.modules)])}
    elif name == "threads":
        return {"answer": np.array([int(os.environ["OMP_NUM_THREADS"])])}
    elif name == "malloc":
        return {"answer": np.array([int(os.environ["MALLOC_TRIM_THRESHOLD_"])])}
    elif name == "raise":
        class Unknown(Exception):
            pass
        raise Unknown("of this process alone")
    return {"answer": np.array([os.getpid()])}
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A server with two worker processes."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    return {
        "MLIMG_MODEL_DIR": str(tmp_path / "model"),
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", HANDLER)),
        "MLIMG_WORKER_KIND": "processes",
        "MLIMG_WORKERS": "2",
    }


def tell(serving: ServerProcess, what: str, value: float = 0) -> Reply:
    return ask(serving.port, INFER, rows([[value]], what))


def number(reply: Reply) -> int:
    assert reply.status == 200, reply.body
    found: int = reply.json["outputs"][0]["data"][0]
    return found


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def workers_of(serving: ServerProcess) -> list[int]:
    """The processes that a server has started, and not reaped."""
    tasks = Path(f"/proc/{serving.process.pid}/task").glob("*/children")
    return [int(pid) for path in tasks for pid in path.read_text().split()]


def has_restarted(serving: ServerProcess, times: int) -> bool:
    return f"mlimg_worker_restarts_total {times}.0".encode() in ask(serving.port, "/metrics").body


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never"
        time.sleep(0.02)


def test_h9_a_worker_that_dies_costs_its_own_requests_alone(environ: dict[str, str]) -> None:
    deaths = [("kill", signal.SIGSEGV), ("exit", 0), ("kill", signal.SIGKILL), ("leave-a-child", 1), ("exit", 3)]
    with running(environ) as serving, ThreadPoolExecutor(4) as clients:
        serving.wait_until(200)
        for restarts, (what, value) in enumerate(deaths, start=1):
            slow = clients.submit(tell, serving, "sleep", 0.5)
            time.sleep(0.2)
            lost = clients.submit(tell, serving, what, value)
            queued = [clients.submit(tell, serving, "pid") for _ in range(2)]
            assert lost.result().status == 503
            assert lost.result().headers["retry-after"] == "1"
            assert "died" in lost.result().json["error"]
            assert [reply.result().status for reply in (slow, *queued)] == [200] * 3
            assert serving.ready() == 200
            wait_for(partial(has_restarted, serving, restarts))
        serving.signal()
        code, errors = serving.end()
    assert code == 0
    assert errors.count("it is replaced") == 5
    assert "Traceback" not in errors


def test_h9_among_many_small_requests_a_crash_costs_itself_alone_and_no_answer_is_another_s(
    environ: dict[str, str],
) -> None:
    with running({**environ, "MLIMG_WORKERS": "1"}) as serving, ThreadPoolExecutor(16) as clients:
        serving.wait_until(200)
        for turn in range(3):
            replies = [clients.submit(tell, serving, "echo", value) for value in range(60)]
            crash = clients.submit(tell, serving, "kill", signal.SIGSEGV)
            replies += [clients.submit(tell, serving, "echo", value) for value in range(60, 120)]
            assert [number(reply.result()) for reply in replies] == list(range(120))
            assert crash.result().status == 503
            wait_for(partial(has_restarted, serving, turn + 1))


def test_small_requests_do_not_wait_behind_a_slow_one_while_another_worker_is_free(environ: dict[str, str]) -> None:
    with running(environ) as serving, ThreadPoolExecutor(16) as clients:
        serving.wait_until(200)
        replies = [clients.submit(tell, serving, "echo", value) for value in range(60)]
        slow = clients.submit(tell, serving, "sleep", 5)
        replies += [clients.submit(tell, serving, "echo", value) for value in range(60, 160)]
        assert [number(reply.result()) for reply in replies] == list(range(160))
        assert not slow.done()
        assert slow.result().status == 200


def test_what_is_large_arrives_whole_there_and_back(environ: dict[str, str]) -> None:
    values = [float(value) for value in range(100_000)]
    with running(environ) as serving:
        serving.wait_until(200)
        reply = ask(serving.port, INFER, rows([values], "echo"))
    assert reply.json["outputs"][0]["data"] == values


def test_a_worker_that_dies_in_its_sleep_costs_nothing(environ: dict[str, str]) -> None:
    with running({**environ, "MLIMG_WORKERS": "1"}) as serving:
        serving.wait_until(200)
        before = number(tell(serving, "pid"))
        os.kill(before, signal.SIGKILL)
        assert number(tell(serving, "pid")) != before  # it waited for the next one
        assert serving.ready() == 200


def test_l10_workers_that_keep_dying_end_the_server_with_one_line(environ: dict[str, str]) -> None:
    with running({**environ, "MLIMG_WORKERS": "1"}) as serving, ThreadPoolExecutor(8) as clients:
        serving.wait_until(200)
        replies = [clients.submit(tell, serving, "kill", signal.SIGSEGV) for _ in range(5)]
        unready = 0
        while serving.process.poll() is None:
            unready += serving.ready() == 503
            time.sleep(0.02)
        code, errors = serving.end()
        statuses = [reply.result().status for reply in replies if reply.exception() is None]
    assert unready > 0
    assert statuses.count(503) >= 4
    assert code == 12
    assert [line for line in errors.splitlines() if not line[:4].isdigit()] == [
        "error: a worker process was killed: Segmentation fault (hint: the log above may tell more)"
    ]


def test_a_prediction_that_hangs_is_504_and_its_worker_replaced(environ: dict[str, str]) -> None:
    with running({**environ, "MLIMG_WORKERS": "1", "MLIMG_REQUEST_TIMEOUT_SECONDS": "2"}) as serving:
        serving.wait_until(200)
        before = number(tell(serving, "pid"))
        assert number(tell(serving, "sleep", 1)) == before
        assert tell(serving, "sleep", 60).status == 504
        wait_for(lambda: not is_there(before))
        serving.wait_until(200)
        assert number(tell(serving, "pid")) != before


def test_l1_health_answers_while_every_worker_holds_its_processor_lock(environ: dict[str, str]) -> None:
    with running(environ) as serving, ThreadPoolExecutor(2) as clients:
        serving.wait_until(200)
        busy = [clients.submit(tell, serving, "spin", 2) for _ in range(2)]
        time.sleep(0.3)
        seconds = []
        for _ in range(20):
            start = time.monotonic()
            assert serving.ready() == 200
            seconds.append(time.monotonic() - start)
        assert not any(reply.done() for reply in busy), "the workers were not busy"
        assert sorted(seconds)[10] < 0.25  # 50 ms, and more for a test machine whose every processor is taken
        assert {number(reply.result()) for reply in busy} == set(workers_of(serving))


def test_h12_sigterm_to_all_processes_loses_nothing_and_leaves_none(environ: dict[str, str]) -> None:
    with running(environ) as serving, ThreadPoolExecutor(4) as clients:
        serving.wait_until(200)
        workers = workers_of(serving)
        assert len(workers) == 2
        replies = [clients.submit(tell, serving, "sleep", 1) for _ in range(4)]
        time.sleep(0.5)
        serving.signal()
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        assert {number(reply.result()) for reply in replies} == set(workers)
        assert serving.end()[0] == 0
    wait_for(lambda: not any(map(is_there, workers)))


def test_no_worker_outlives_a_server_that_is_killed(environ: dict[str, str]) -> None:
    with running(environ) as serving, ThreadPoolExecutor(1) as clients:
        serving.wait_until(200)
        workers = workers_of(serving)
        assert len(workers) == 2
        assert all(map(is_there, workers))
        lost = clients.submit(tell, serving, "sleep", 60)  # one is idle, one busy
        time.sleep(0.5)
        serving.signal(signal.SIGKILL)
        assert lost.exception() is not None
    wait_for(lambda: not any(map(is_there, workers)))


def test_the_model_is_in_the_workers_alone(environ: dict[str, str]) -> None:
    def has_library(pid: int) -> bool:
        return "_sqlite3" in Path(f"/proc/{pid}/maps").read_text()

    with running(environ) as serving:
        serving.wait_until(200)
        assert [has_library(pid) for pid in workers_of(serving)] == [True, True]
        assert not has_library(serving.process.pid)
        assert number(tell(serving, "threads")) == max(1, len(os.sched_getaffinity(0)) // 2)
        assert number(tell(serving, "malloc")) == 16 * 2**20
        failed = tell(serving, "raise")
        assert failed.status == 500
        assert "of this process alone" not in failed.body.decode()
        serving.signal()
        assert "Unknown: of this process alone" in serving.end()[1]


@pytest.mark.parametrize(("kind", "has_http"), [("processes", 0), ("threads", 1)])
def test_workers_that_are_processes_import_nothing_of_http(environ: dict[str, str], kind: str, has_http: int) -> None:
    with running({**environ, "MLIMG_WORKER_KIND": kind, "MLIMG_WORKERS": "1"}) as serving:
        serving.wait_until(200)
        assert number(tell(serving, "has-http")) == has_http


def test_threads_and_thresholds_that_somebody_set_stay_as_set(environ: dict[str, str]) -> None:
    somebodys = {"OMP_NUM_THREADS": "7", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    with running({**environ, "MLIMG_WORKERS": "1", **somebodys}) as serving:
        serving.wait_until(200)
        assert number(tell(serving, "malloc")) == 1_000_000
        assert number(tell(serving, "threads")) == 7


@pytest.mark.parametrize(
    ("instead_of", "wrong", "status", "line"),
    [
        ("import os, ", "import not_there_at_all, ", 11, "No module named 'not_there_at_all'"),
        ("    return None", "    raise ValueError('bad magic')", 12, "bad magic"),
        ("    return None", "    os._exit(0)", 12, "a worker process ended with status 0"),
        ("    return None", "    os.kill(os.getpid(), 9)", 21, "out of memory?"),
    ],
)
def test_g13_a_worker_that_cannot_load_ends_the_server_which_was_never_ready(
    environ: dict[str, str], instead_of: str, wrong: str, status: int, line: str
) -> None:
    server_folder(Path(environ["MLIMG_SERVER_DIR"]), HANDLER.replace(instead_of, wrong, 1))
    with running(environ) as serving:
        while serving.process.poll() is None:
            assert serving.ready() != 200
            time.sleep(0.02)
        code, errors = serving.end()
    assert code == status, errors
    (said,) = [line for line in errors.splitlines() if not line[:4].isdigit()]
    assert said.startswith("error: ")
    assert line in said
