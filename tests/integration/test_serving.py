"""The server as a process of its own: start, answers, signals and statuses."""

import http.client
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from tests.support.rounds import rounds
from tests.support.servers import ECHO, ROOT, ask, rows, running, server_folder

SLOW = ECHO.replace("return inputs", "import time; time.sleep(inputs['input'].flat[0]); return inputs")
INFER = "/v2/models/model/infer"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file in it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    return folder


@pytest.fixture
def environ(tmp_path: Path, model: Path) -> dict[str, str]:
    """A server that gives back what it gets."""
    return {"MLIMG_MODEL_DIR": str(model), "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server"))}


def add_manifest(folder: Path, framework: str, file_format: str) -> ModelManifest:
    files = tuple(
        ModelFile(model_path(path.name), path.stat().st_size, Digest.of_file(path)) for path in sorted(folder.iterdir())
    )
    manifest = ModelManifest("digits", "3", framework, file_format, files)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


def test_a_digits_classifier_answers_as_it_does_by_itself(tmp_path: Path) -> None:
    data, target = load_digits(return_X_y=True)
    estimator = LogisticRegression(max_iter=50, tol=1).fit(data, target)
    folder = tmp_path / "model"
    folder.mkdir()
    joblib.dump(estimator, folder / "model.joblib")
    manifest = add_manifest(folder, "sklearn", "joblib")
    server = server_folder(
        tmp_path / "server",
        None,
        {"method": "predict_proba"},
        template="sklearn",
        frameworks=["sklearn"],
        formats=["joblib"],
    )
    shutil.copy(ROOT / "templates" / "sklearn" / "handler.py", server)
    with running({"MLIMG_MODEL_DIR": str(folder), "MLIMG_SERVER_DIR": str(server)}) as serving:
        serving.wait_until(200)
        told = ask(serving.port, "/v2/health/ready").json
        assert told.pop("seconds") > 0
        assert told == {
            "ready": True,
            "model": "digits",
            "version": "3",
            "digest": manifest.digest.text,
            "source": str(folder),
            "bytes": 0,
            "cacheHit": True,
        }
        reply = ask(serving.port, "/v2/models/digits/versions/3/infer", rows(data[:50].tolist()))
        (answer,) = reply.json["outputs"]
        np.testing.assert_array_equal(np.reshape(answer["data"], answer["shape"]), estimator.predict_proba(data[:50]))
        assert abs(time.time() - parsedate_to_datetime(reply.headers["date"]).timestamp()) < 60
        serving.signal()
        assert serving.end()[0] == 0


def test_the_port_answers_before_the_handler_is_imported(tmp_path: Path, environ: dict[str, str]) -> None:
    server_folder(tmp_path / "server", f"import time; time.sleep(3)\n{ECHO}")
    with running(environ) as serving:
        serving.wait_until(503)
        reply = ask(serving.port, "/v2/health/ready")
        assert reply.json["ready"] is False
        assert reply.json["phase"] in {"starting", "verifying", "loading"}  # to import it is the first part of loading
        assert ask(serving.port, "/v2/health/live").status == 200
        assert ask(serving.port, INFER, rows([[1.0]])).status == 503
        serving.wait_until(200)


def served(folder: Path, model: Path, case: str) -> dict[str, str]:
    """A server that is right but for one thing."""
    server = server_folder(folder / "server")
    environ = {"MLIMG_MODEL_DIR": str(model), "MLIMG_SERVER_DIR": str(server)}
    match case:
        case "model that load refuses":
            server_folder(server, ECHO.replace("return None", "raise ValueError('bad\\nmagic')"))
        case "warm-up of a wrong shape":
            described = "[{'name': 'x', 'datatype': 'FP64', 'shape': [-1, 2]}]"
            wrong = ECHO.replace("return inputs", "return {'x': inputs['x'][:, :1]}")
            server_folder(server, f"{wrong}def signature(model): return {described}, {described}\n")
        case "load that exits with 0":
            server_folder(server, ECHO.replace("return None", "import sys; sys.exit(0)"))
        case "another framework":
            server_folder(server, frameworks=["sklearn"], formats=["joblib"])
            add_manifest(model, "xgboost", "xgboost-ubj")
        case "altered file":
            add_manifest(model, "custom", "custom")
            (model / "weights").write_bytes(b"2")
            environ["MLIMG_VERIFY"] = "full"  # this test's folder is on `/`, as if in the image's own layers
        case "no model":
            shutil.rmtree(model)
        case "no handler":
            (server / "code" / "handler.py").unlink()
        case "handler that lacks a package":
            server_folder(server, f"import not_there_at_all\n{ECHO}")
        case "no server.json":
            (server / "server.json").unlink()
        case "wrong port":
            environ["PORT"] = "http"
        case "wrong log level":
            environ["LOG_LEVEL"] = "loud"
    return environ


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("model that load refuses", 12),
        ("warm-up of a wrong shape", 12),
        ("load that exits with 0", 12),
        ("another framework", 12),
        ("altered file", 18),
        ("no model", 12),
        ("no handler", 11),
        ("handler that lacks a package", 11),
        ("no server.json", 11),
        ("wrong port", 10),
        ("wrong log level", 10),
    ],
)
def test_g13_a_server_that_cannot_serve_ends_with_one_line_and_was_never_ready(
    tmp_path: Path, model: Path, case: str, status: int
) -> None:
    with running(served(tmp_path, model, case)) as serving:
        while serving.process.poll() is None:
            assert serving.ready() != 200
        code, errors = serving.end()
    assert code == status
    lines = [line for line in errors.splitlines() if not line[:4].isdigit()]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert "Traceback" not in errors


def test_g13_the_same_server_with_nothing_wrong_is_ready(tmp_path: Path, model: Path) -> None:
    with running(served(tmp_path, model, "nothing")) as serving:
        serving.wait_until(200)


@pytest.mark.parametrize(("content", "status", "opened"), [(b"2", 18, 1), (b"1", 12, 2)], ids=["altered", "the twin"])
def test_g2_an_altered_file_is_opened_to_be_hashed_and_never_to_be_loaded(
    tmp_path: Path, environ: dict[str, str], content: bytes, status: int, opened: int
) -> None:
    """The kernel's word, by strace. The handler opens the file, then ends the server."""
    model = Path(environ["MLIMG_MODEL_DIR"])
    read = "(model_dir / 'weights').read_bytes(); raise ValueError('enough')"
    server_folder(tmp_path / "server", ECHO.replace("return None", read))
    add_manifest(model, "custom", "custom")
    (model / "weights").write_bytes(content)
    trace = tmp_path / "trace"
    tracer = ("strace", "-f", "-qq", "-e", "trace=open,openat", "-o", str(trace))
    with running({**environ, "MLIMG_VERIFY": "full"}, tracer=tracer) as serving:
        assert serving.end()[0] == status
    lines = trace.read_text(errors="replace").splitlines()
    assert any(str(model / MANIFEST_NAME) in line for line in lines), "strace saw nothing"
    assert sum(f'"{model / "weights"}"' in line for line in lines) == opened


def test_a_traceback_is_there_for_debugging(tmp_path: Path, model: Path) -> None:
    with running({**served(tmp_path, model, "model that load refuses"), "LOG_LEVEL": "debug"}) as serving:
        code, errors = serving.end()
    assert code == 12
    assert "Traceback" in errors


def test_a_port_that_is_taken_is_a_local_error(environ: dict[str, str]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        running({**environ, "PORT": str(taken.getsockname()[1])}) as serving,
    ):
        code, errors = serving.end()
    assert code == 20
    assert errors.startswith("error: cannot listen on")


@pytest.fixture
def silent_registry() -> Iterator[tuple[str, threading.Event]]:
    """A registry that takes connections and says nothing; the event tells that somebody asked."""
    asked = threading.Event()
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connections.append(listener.accept()[0])
                except OSError:
                    return
                asked.set()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_g10_a_signal_while_fetching_ends_within_two_seconds(
    environ: dict[str, str], tmp_path: Path, silent_registry: tuple[str, threading.Event], number: int
) -> None:
    name, asked = silent_registry
    environ |= {"MLIMG_MODEL_DIR": str(tmp_path / "models"), "MLIMG_MODEL": f"oci://{name}/digits:3"}
    with running(environ) as serving:
        assert asked.wait(60), "the fetch never began"
        serving.wait_until(503)
        sent = serving.signal(number)
        code, errors = serving.end()
        assert time.monotonic() - sent < 2
    assert code == 128 + number
    assert "Traceback" not in errors


@pytest.mark.parametrize("moment", ["import", "load", "warm-up"])
def test_g10_a_signal_while_loading_ends_within_two_seconds(
    tmp_path: Path, environ: dict[str, str], moment: str
) -> None:
    mark = tmp_path / "there"
    wait = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    handler = {
        "import": f"{wait}\n{ECHO}",
        "load": ECHO.replace("return None", wait),
        "warm-up": f"{ECHO}def warm_up(model): {wait}\n",
    }[moment]
    server_folder(tmp_path / "server", handler)
    with running(environ) as serving:
        while not mark.exists():
            assert serving.process.poll() is None
            time.sleep(0.01)
        serving.wait_until(503)
        sent = serving.signal()
        code, _ = serving.end()
        assert time.monotonic() - sent < 2
    assert code == 143


def test_an_idle_server_is_gone_within_a_second(environ: dict[str, str]) -> None:
    with running(environ) as serving:
        serving.wait_until(200)
        connection = http.client.HTTPConnection("127.0.0.1", serving.port)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()  # and the connection stays open
        sent = serving.signal()
        code, _ = serving.end()
        assert time.monotonic() - sent < 2  # one second, and one for a busy test machine
        connection.close()
    assert code == 0


def test_h12_requests_that_keep_coming_on_kept_connections_are_refused_by_name(environ: dict[str, str]) -> None:
    with running(environ) as serving:
        serving.wait_until(200)
        kept = [http.client.HTTPConnection("127.0.0.1", serving.port) for _ in range(40)]
        for connection in kept:
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
        last = serving.signal()
        answers = []
        for connection in kept:  # for twice as long as a quiet server would wait
            time.sleep(0.01)
            try:
                connection.request("GET", "/v2/health/ready")
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException):
                assert time.monotonic() - last > 0.15, "a request was lost, though the one before came a moment ago"
                break
            answers.append((answer.status, answer.getheader("connection")))
            answer.read()
            last = time.monotonic()
        code, _ = serving.end()
        for connection in kept:
            connection.close()
    assert code == 0
    assert set(answers[1:]) == {(503, "close")}


def test_h12_every_request_that_was_taken_is_answered(tmp_path: Path, environ: dict[str, str]) -> None:
    server_folder(tmp_path / "server", SLOW)
    with running({**environ, "MLIMG_WORKERS": "2", "MLIMG_QUEUE": "18"}) as serving, ThreadPoolExecutor(20) as clients:
        serving.wait_until(200)
        replies = [clients.submit(ask, serving.port, INFER, rows([[0.3]])) for _ in range(20)]
        time.sleep(0.5)
        sent = serving.signal()
        serving.wait_until(503)
        assert time.monotonic() - sent < 1
        refused = ask(serving.port, INFER, rows([[0.0]]))
        assert refused.status == 503
        assert refused.headers["retry-after"].isdigit()
        assert refused.headers["connection"] == "close"
        assert ask(serving.port, "/v2/health/live").status == 200
        assert [reply.result().status for reply in replies] == [200] * 20
        assert serving.end()[0] == 0


def test_h12_nothing_is_lost_under_load(tmp_path: Path, environ: dict[str, str]) -> None:
    """Clients that never pause: what was sent before the signal is answered with 200; later, 503 or none."""
    server_folder(tmp_path / "server", SLOW)
    told = float("inf")
    answered: list[tuple[float, int]] = []
    lost: list[float] = []

    def client(port: int) -> None:
        while True:
            start = time.monotonic()
            try:
                answered.append((start, ask(port, INFER, rows([[0.02]])).status))
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException):
                lost.append(start)
                return

    for _ in range(rounds(8)):
        answered.clear()
        lost.clear()
        with running({**environ, "MLIMG_WORKERS": "4"}) as serving, ThreadPoolExecutor(8) as clients:
            serving.wait_until(200)
            looping = [clients.submit(client, serving.port) for _ in range(8)]
            time.sleep(0.5)
            told = serving.signal()
            assert serving.end()[0] == 0
            for loop in looping:
                loop.result()
        # A request may be on its way when the signal comes: 20 ms are more than its way takes.
        before = [status for start, status in answered if start < told - 0.02]
        assert len(before) > 20
        assert set(before) == {200}
        assert {status for _, status in answered} <= {200, 503}
        assert not lost  # who comes after the signal is refused by name too, never cut off


def test_h12_a_second_signal_ends_at_once_and_counts_what_is_abandoned(tmp_path: Path, environ: dict[str, str]) -> None:
    """Row L3, too."""
    server_folder(tmp_path / "server", SLOW)
    with running({**environ, "MLIMG_WORKERS": "3"}) as serving, ThreadPoolExecutor(3) as clients:
        serving.wait_until(200)
        replies = [clients.submit(ask, serving.port, INFER, rows([[20.0]])) for _ in range(3)]
        time.sleep(0.5)
        serving.signal()
        serving.wait_until(503)
        sent = serving.signal()
        code, errors = serving.end()
        assert time.monotonic() - sent < 2
        assert all(isinstance(reply.exception(), OSError | http.client.HTTPException) for reply in replies)
    assert code == 143
    assert "3 requests abandoned" in errors


def test_h12_a_grace_that_is_over_ends_and_counts_what_is_abandoned(tmp_path: Path, environ: dict[str, str]) -> None:
    """Row L3, too."""
    server_folder(tmp_path / "server", SLOW)
    with running({**environ, "MLIMG_GRACE_SECONDS": "1"}) as serving, ThreadPoolExecutor(1) as clients:
        serving.wait_until(200)
        reply = clients.submit(ask, serving.port, INFER, rows([[20.0]]))
        time.sleep(0.5)
        sent = serving.signal()
        code, errors = serving.end()
        assert 1 <= time.monotonic() - sent < 3
        assert reply.exception() is not None
    assert code == 143
    assert "1 requests abandoned" in errors


def test_h12_a_load_that_goes_on_at_the_end_holds_the_server_no_longer_than_its_grace(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for version, weights in (("1", b"0"), ("2", b"30")):
        folder = store / "digits" / version
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(weights)
        add_manifest(folder, "custom", "custom")
    slow = ECHO.replace("return None", "import time; time.sleep(float((model_dir / 'weights').read_text()))")
    environ = {
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", slow)),
        "MLIMG_STORE_DIR": str(store),
        "MLIMG_MODEL": f"file://{store}/digits/1",
        "MLIMG_REPOSITORY_API": "on",
        "MLIMG_GRACE_SECONDS": "1",
    }
    with running(environ) as serving, ThreadPoolExecutor(1) as clients:
        serving.wait_until(200)
        wanted = {"parameters": {"model": f"file://{store}/digits/2"}}
        load = clients.submit(ask, serving.port, "/v2/repository/models/digits/load", wanted)
        while b'"reason": "loading"' not in ask(serving.port, "/v2/repository/index", {}).body:
            time.sleep(0.05)
        sent = serving.signal()
        code, errors = serving.end()
        assert 1 <= time.monotonic() - sent < 4
        assert load.exception() is not None
    assert code == 143
    assert "1 requests abandoned" in errors


def test_h8_a_client_that_hangs_up_in_its_request_is_nobodys_error(environ: dict[str, str]) -> None:
    with running(environ) as serving:
        serving.wait_until(200)
        with socket.create_connection(("127.0.0.1", serving.port)) as client:
            client.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            time.sleep(0.2)
        assert ask(serving.port, INFER, rows([[1.0]])).status == 200
        serving.signal()
        code, errors = serving.end()
    assert code == 0
    assert " error " not in errors


PRINT_ENVIRON = "import sys; print(sys.argv[1:]); print(open('/proc/self/environ').read())"


def test_g12_exec_verifies_the_model_and_passes_no_credentials_on(environ: dict[str, str], model: Path) -> None:
    add_manifest(model, "custom", "custom")
    canary = {"AWS_SECRET_ACCESS_KEY": "canary-1", "DOCKER_CONFIG": "/canary-2"}
    command = ("exec", "--", sys.executable, "-c", PRINT_ENVIRON, "--model={model_dir}", "{model_name}")
    with running({**environ, **canary}, *command) as serving:
        output, errors = serving.process.communicate(timeout=60)
    assert serving.process.returncode == 0, errors
    assert f"['--model={model}', 'digits']" in output
    assert "canary" not in output


def test_g12_exec_starts_nothing_on_an_altered_model(environ: dict[str, str], model: Path, tmp_path: Path) -> None:
    add_manifest(model, "custom", "custom")
    (model / "weights").write_bytes(b"2")
    mark = tmp_path / "started"
    with running({**environ, "MLIMG_VERIFY": "full"}, "exec", "--", "touch", str(mark)) as serving:
        code, errors = serving.end()
    assert code == 18
    assert errors.count("error: ") == 1
    assert not mark.exists()


def test_exec_of_no_such_command_is_127(environ: dict[str, str]) -> None:
    with running(environ, "exec", "--", "not-there-at-all") as serving:
        code, errors = serving.end()
    assert code == 127
    assert "not-there-at-all" in errors


def test_g10_exec_ends_within_two_seconds_of_a_signal(
    environ: dict[str, str], tmp_path: Path, silent_registry: tuple[str, threading.Event]
) -> None:
    name, asked = silent_registry
    environ |= {"MLIMG_MODEL_DIR": str(tmp_path / "models"), "MLIMG_MODEL": f"oci://{name}/digits:3"}
    with running(environ, "exec", "--", "true") as serving:
        assert asked.wait(60), "the fetch never began"
        sent = serving.signal()
        code, _ = serving.end()
        assert time.monotonic() - sent < 2
    assert code == 143


@pytest.mark.parametrize("arguments", [["exec"], ["exec", "--"], ["fetch", "x"], ["serve", "now"], ["help"]])
def test_what_is_no_command_is_usage(arguments: list[str]) -> None:
    with running({}, *arguments) as serving:
        code, errors = serving.end()
    assert code == 2
    assert errors.startswith("usage:")
