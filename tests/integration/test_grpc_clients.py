"""V2 over gRPC as its own clients speak it: tritonclient against a server process, to the server's end."""

import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import MANIFEST_NAME, ModelFile, ModelManifest, model_path
from mlimg.runtime.server.grpc_v2.messages import MESSAGES
from tests.integration.test_v2_clients import HANDLER, UV
from tests.support.half_messages import begin
from tests.support.servers import ROOT, free_port, running, server_folder

OURS = "/inference.GRPCInferenceService"
CLIENT = ["--with", "tritonclient[grpc,http]==2.73.0", "--with", "numpy"]
# A first number tells what to do: below zero fail, above one take so many seconds.
MOODY = HANDLER.replace(
    "def predict(model, inputs):",
    """
def predict(model, inputs):
    import time
    mood = float(inputs["FP64"].flat[0]) if len(inputs) == 1 and "FP64" in inputs else 0
    if mood < 0:
        raise RuntimeError("secret")
    time.sleep(mood if 1 < mood < 5 else 0)""",
)


def environ(tmp_path: Path, **variables: str) -> dict[str, str]:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    files = (ModelFile(model_path("weights"), 1, Digest.of_file(folder / "weights")),)
    (folder / MANIFEST_NAME).write_bytes(ModelManifest("echo", "3", "custom", "custom", files).to_bytes())
    server = server_folder(tmp_path / "server", MOODY, serving={"grpc": True})
    return {"MLIMG_MODEL_DIR": str(folder), "MLIMG_SERVER_DIR": str(server), **variables}


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_tritonclient_is_answered_refused_and_at_the_end_told_so(tmp_path: Path) -> None:
    port = free_port()
    variables = {
        "MLIMG_GRPC_PORT": str(port),
        "MLIMG_WORKERS": "1",
        "MLIMG_QUEUE": "2",
        "MLIMG_BODY_LIMIT_MIB": "2",
    }
    with running(environ(tmp_path, **variables)) as serving:
        serving.wait_until(200)
        script = str(ROOT / "tests" / "support" / "triton_grpc.py")
        done = subprocess.run(
            [*UV, *CLIENT, script, f"127.0.0.1:{port}", str(serving.process.pid)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        status, log = serving.end()
        assert status == 0, log
        assert "secret" in log


def test_health_ids_and_the_repository_are_told_to_any_client(tmp_path: Path) -> None:
    port = free_port()
    variables = {"MLIMG_GRPC_PORT": str(port), "MLIMG_REPOSITORY_API": "on"}
    with running(environ(tmp_path, **variables)) as serving, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        serving.wait_until(200)

        def ask(method: str, **request: Any) -> Any:
            name = method.rpartition("/")[2].replace("Check", "HealthCheck")
            call = channel.unary_unary(
                method, MESSAGES[f"{name}Request"].SerializeToString, MESSAGES[f"{name}Response"].FromString
            )
            return call.with_call(MESSAGES[f"{name}Request"](**request), metadata=(("x-request-id", "mine"),))

        answer, told = ask("/grpc.health.v1.Health/Check")
        assert answer.status == 1  # SERVING
        assert ("x-request-id", "mine") in told.trailing_metadata()
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            ask("/grpc.health.v1.Health/Check", service="other")
        ask(f"{OURS}/RepositoryModelLoad", model_name="echo")
        wrong = {"model": {"string_param": "oci://example.com/other:1"}}
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            ask(f"{OURS}/RepositoryModelLoad", model_name="echo", parameters=wrong)
        ask(f"{OURS}/RepositoryModelUnload", model_name="echo")
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            ask(f"{OURS}/ModelMetadata", name="echo")


@pytest.mark.parametrize("text", ["'x' * 100_000", "chr(0x1F600) * 10_000", "chr(0xD800) + chr(10)"])
def test_whatever_a_handler_says_of_a_request_arrives(tmp_path: Path, text: str) -> None:
    variables, port = environ(tmp_path), free_port()
    (tmp_path / "server" / "code" / "handler.py").write_text(
        "from mlimg.runtime.server.errors import InputError\n"
        "def load(model_dir, options): return None\n"
        f"def predict(model, inputs): raise InputError({text})\n"
    )
    request = MESSAGES["ModelInferRequest"](model_name="echo")
    request.inputs.add(name="n", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
    with (
        running({**variables, "MLIMG_GRPC_PORT": str(port)}) as serving,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        serving.wait_until(200)
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            channel.unary_unary(f"{OURS}/ModelInfer", MESSAGES["ModelInferRequest"].SerializeToString)(
                request, timeout=20
            )


def test_a_port_in_use_is_one_line_and_a_free_one_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running(environ(tmp_path, MLIMG_GRPC_PORT=port)) as serving:
            status, log = serving.end()
    assert status == 20
    assert f"error: cannot listen on 127.0.0.1:{port} for gRPC" in log.splitlines()[-1]


@pytest.mark.parametrize("goes_on", [True, False])
def test_h12_a_client_that_takes_its_answer_at_the_end_has_the_grace(tmp_path: Path, *, goes_on: bool) -> None:
    """Through a proxy that passes a megabyte on, and no more until the server was told to end, or never."""
    variables = environ(tmp_path, MLIMG_GRACE_SECONDS="30" if goes_on else "1")
    (tmp_path / "server" / "code" / "handler.py").write_text(
        "import numpy\n"
        "def load(model_dir, options): return None\n"
        "def predict(model, inputs): return {'y': numpy.zeros(int(inputs['n'][0]), 'u1')}\n"
    )
    port, size_bytes, begun, go_on = free_port(), 32 * 2**20, threading.Event(), threading.Event()

    def upwards(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def proxy(listener: socket.socket) -> None:
        client, server = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
        with client, server, suppress(OSError):
            threading.Thread(target=upwards, args=(client, server), daemon=True).start()
            passed_bytes = 0
            while data := server.recv(65536):
                if passed_bytes > 2**20:
                    begun.set()
                    go_on.wait(60)
                passed_bytes += len(data)
                client.sendall(data)

    with (
        running({**variables, "MLIMG_GRPC_PORT": str(port)}) as serving,
        socket.create_server(("127.0.0.1", 0)) as listener,
        grpc.insecure_channel(
            f"127.0.0.1:{listener.getsockname()[1]}", options=[("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        serving.wait_until(200)
        threading.Thread(target=proxy, args=(listener,), daemon=True).start()
        request = MESSAGES["ModelInferRequest"](model_name="echo")
        request.inputs.add(name="n", datatype="INT64", shape=[1]).contents.int64_contents.append(size_bytes)
        method = channel.unary_unary(f"{OURS}/ModelInfer", MESSAGES["ModelInferRequest"].SerializeToString, bytes)
        answer = method.future(request)
        assert begun.wait(30)
        sent = serving.signal()
        if goes_on:
            time.sleep(1)
            go_on.set()
            assert len(answer.result(timeout=30)) > size_bytes
            assert serving.end()[0] == 0
        else:
            code, errors = serving.end()
            assert 1 <= time.monotonic() - sent < 4
            assert (code, "1 requests abandoned" in errors) == (143, True)
            go_on.set()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
def test_l6_messages_that_arrive_take_so_much_memory_and_no_more(tmp_path: Path, method: str) -> None:
    """Of forty that begin and do not end two may go on; of the others there is what came in a tenth of a second."""
    limit_bytes, port = 16 * 2**20, free_port()
    limits = {"MLIMG_WORKERS": "1", "MLIMG_QUEUE": "1", "MLIMG_BODY_LIMIT_MIB": "16"}
    request = MESSAGES["ModelInferRequest"](model_name="echo", raw_input_contents=[bytes(limit_bytes // 2)])
    request.inputs.add(name="UINT8", datatype="UINT8", shape=[limit_bytes // 4, 2])
    with (
        running(environ(tmp_path, MLIMG_GRPC_PORT=str(port), **limits)) as serving,
        grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as channel,
        ThreadPoolExecutor(40) as clients,
        ExitStack() as connections,
    ):
        serving.wait_until(200)
        before = resident_bytes(serving.process.pid)
        most = limit_bytes - 100_000
        half = [clients.submit(begin, port, f"{OURS}/{method}", limit_bytes, most) for _ in range(40)]
        for one in half:
            connections.enter_context(one.result())
        assert resident_bytes(serving.process.pid) - before < 20 * limit_bytes
        small = channel.unary_unary(f"{OURS}/ServerReady")(b"", timeout=30)
        assert small == b"\x08\x01", "what is there at once needs no room"
        connections.close()
        infer = channel.unary_unary(f"{OURS}/ModelInfer")
        assert len(infer(request.SerializeToString(), timeout=30)) > limit_bytes // 2


def test_l10_a_worker_process_that_dies_under_load_costs_its_own_requests_alone(tmp_path: Path) -> None:
    """Two hundred requests at once, of which the hundredth kills its worker; each answer is that of its request."""
    variables, port = environ(tmp_path), free_port()
    (tmp_path / "server" / "code" / "handler.py").write_text(
        "import os, time\n"
        "def load(model_dir, options): return None\n"
        "def predict(model, inputs):\n"
        "    time.sleep(0.005)\n"
        "    if inputs['n'][0] == 100: os.kill(os.getpid(), 9)\n"
        "    return inputs\n"
    )
    limits = {"MLIMG_WORKER_KIND": "processes", "MLIMG_WORKERS": "2", "MLIMG_QUEUE": "200"}
    with (
        running({**variables, **limits, "MLIMG_GRPC_PORT": str(port)}) as serving,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        serving.wait_until(200)
        infer = channel.unary_unary(
            f"{OURS}/ModelInfer",
            MESSAGES["ModelInferRequest"].SerializeToString,
            MESSAGES["ModelInferResponse"].FromString,
        )
        calls = []
        for number in range(200):
            request = MESSAGES["ModelInferRequest"](model_name="echo", id=f"{number}")
            request.inputs.add(name="n", datatype="INT64", shape=[1]).contents.int64_contents.append(number)
            calls.append(infer.future(request, timeout=60))
        lost = {number: call.code() for number, call in enumerate(calls) if call.exception()}
        assert lost == {100: grpc.StatusCode.UNAVAILABLE}
        for number in set(range(200)) - {100}:
            answer = calls[number].result()
            assert (answer.id, answer.raw_output_contents) == (f"{number}", [number.to_bytes(8, "little")])
        serving.signal()
        code, errors = serving.end()
    assert (code, errors.count("it is replaced")) == (0, 1)


def test_h7_a_message_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    port = free_port()
    limits = {"MLIMG_REQUEST_TIMEOUT_SECONDS": "1", "LOG_REQUESTS": "on"}
    with running(environ(tmp_path, MLIMG_GRPC_PORT=str(port), **limits)) as serving:
        serving.wait_until(200)
        for method in ("ModelInfer", "ServerLive"):
            with begin(port, f"{OURS}/{method}", 1000, 999):
                time.sleep(1.5)
            with begin(port, f"{OURS}/{method}", 0, 0):
                time.sleep(0.3)
        serving.signal()
        _, log = serving.end()
    statuses = [line.split()[-3] for line in log.splitlines() if OURS in line]
    assert statuses == ["408", "404", "408", "200"]


def test_l6_so_many_connections_are_taken_on_and_no_more(tmp_path: Path) -> None:
    port = free_port()
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty SETTINGS

    def heard() -> int:
        """To how many of ten connections the server says something."""
        with ExitStack() as connections:
            clients = [connections.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(10)]
            answered = 0
            for client in clients:
                client.settimeout(5)
                with suppress(ConnectionError):
                    client.sendall(hello)
                    answered += client.recv(100) != b""
            return answered

    with running(environ(tmp_path, MLIMG_GRPC_PORT=str(port), MLIMG_CONNECTION_LIMIT="4")) as serving:
        serving.wait_until(200)
        assert heard() == 4
        time.sleep(0.5)
        assert heard() == 4, "places of connections that are gone are free again"
