"""Models switched, unloaded and loaded by request, in a real server that fetches from a real registry under load."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import urllib3

from mlimg.runtime.descriptor import OCI_MANIFEST
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from tests.support.payloads import payload
from tests.support.servers import Reply, ServerProcess, ask, rows, running, server_folder
from tests.support.stores import docker_registry

# A model is a number: the answer for each row. It sleeps for as many seconds as the row says.
HANDLER = """
import time, numpy
def load(model_dir, options): return float((model_dir / "number").read_text())
def predict(model, inputs):
    time.sleep(float(inputs["input"].max()))
    return {"output": numpy.full(len(inputs["input"]), model)}
"""
VERSIONS = {"1": b"1.5", "2": b"2.5", "3": b"not a number"}
INFER = "/v2/models/digits/infer"
INDEX = "/v2/repository/index"
CLIENTS = 6
SWITCHES = 6


@pytest.fixture(scope="module")
def registry(memory_folder: Path) -> Iterator[str]:
    """A registry with three versions of `digits`, the last of which cannot be loaded, and another model."""
    folder = memory_folder / "switch"
    folder.mkdir()
    with docker_registry(folder) as host:
        store = open_store(f"oci://{host}/models", Access())
        for version, number in VERSIONS.items():
            store.publish(payload({"number": number}, version=version))
        store.publish(payload({"number": b"7"}, name="other", version="1"))
        yield host


def move_tag(host: str, version: str, tag: str = "live") -> None:
    """Let `tag` name a version."""
    manifests = f"http://{host}/v2/models/digits/manifests"
    manifest = urllib3.request("GET", f"{manifests}/{version}", headers={"Accept": OCI_MANIFEST})
    kind = {"Content-Type": OCI_MANIFEST}
    assert urllib3.request("PUT", f"{manifests}/{tag}", body=manifest.data, headers=kind).status == 201


@contextmanager
def serving(registry: str, tmp_path: Path, reference: str = "digits:1", **environ: str) -> Iterator[ServerProcess]:
    settings = {
        "MLIMG_SERVER_DIR": str(server_folder(tmp_path / "server", HANDLER)),
        "MLIMG_MODEL_DIR": str(tmp_path / "models"),
        "MLIMG_MODEL": f"oci://{registry}/models/{reference}",
        "MLIMG_REPOSITORY_API": "on",
        "MLIMG_WORKERS": "4",
        **environ,
    }
    with running(settings) as server:
        server.wait_until(200)
        yield server


def load(server: ServerProcess, reference: str | None = None, name: str = "digits") -> Reply:
    body = {"parameters": {"model": reference}} if reference else {}
    return ask(server.port, f"/v2/repository/models/{name}/load", body)


def unload(server: ServerProcess, name: str = "digits") -> Reply:
    return ask(server.port, f"/v2/repository/models/{name}/unload", {})


def answer(server: ServerProcess, seconds: float = 0.0) -> Reply:
    return ask(server.port, INFER, rows([[seconds]] * 8))


def number(reply: Reply) -> float:
    """The one number of an answer, which is its version's."""
    assert reply.status == 200, reply.body
    (output,) = reply.json["outputs"]
    (found,) = set(output["data"])
    assert float(VERSIONS[reply.json["model_version"]]) == found
    return float(found)


def eventually(found: Any, expected: Any) -> None:
    deadline = time.monotonic() + 20
    while found() != expected:
        assert time.monotonic() < deadline, found()
        time.sleep(0.05)


def index(server: ServerProcess) -> list[tuple[str, str, str]]:
    return [(entry["name"], entry["version"], entry["state"]) for entry in ask(server.port, INDEX, b"").json]


def test_no_request_is_dropped_while_versions_are_switched_there_and_back(registry: str, tmp_path: Path) -> None:
    stop = threading.Event()

    def asking(server: ServerProcess) -> list[float]:
        found = []
        while not stop.is_set():
            found.append(number(answer(server, 0.005)))
        return found

    with serving(registry, tmp_path) as server, ThreadPoolExecutor(CLIENTS) as clients:
        loops = [clients.submit(asking, server) for _ in range(CLIENTS)]
        try:
            for turn in range(SWITCHES):
                version = "21"[turn % 2]
                done = load(server, f"oci://{registry}/models/digits:{version}")
                assert (done.status, done.json["version"]) == (200, version)
                assert number(answer(server)) == float(VERSIONS[version])  # from the load's answer on
                refused = load(server, f"oci://{registry}/models/digits:3")
                assert refused.status == 422
                assert "cannot be loaded" in refused.json["error"]
                assert number(answer(server)) == float(VERSIONS[version])
                assert ask(server.port, "/v2/health/ready").status == 200
        finally:
            stop.set()
        answers = [loop.result() for loop in loops]
        assert all(set(found) == {1.5, 2.5} for found in answers)
        assert all(sum(a != b for a, b in pairwise(found)) <= SWITCHES for found in answers)
        versions = tmp_path / "models" / ".mlimg"
        eventually(lambda: len([path for path in versions.iterdir() if path.is_dir()]), 1)
        server.signal()
        assert server.end()[0] == 0


def test_a_request_under_way_is_answered_by_the_version_that_began_it(registry: str, tmp_path: Path) -> None:
    with serving(registry, tmp_path) as server, ThreadPoolExecutor(1) as clients:
        slow = clients.submit(answer, server, 1.5)
        time.sleep(0.3)
        assert load(server, f"oci://{registry}/models/digits:2").status == 200
        assert not slow.done()
        assert number(answer(server)) == 2.5
        assert number(slow.result()) == 1.5
        slow = clients.submit(answer, server, 1.5)
        time.sleep(0.3)
        assert unload(server).status == 200
        assert index(server) == [("digits", "", "UNLOADING")]
        assert answer(server).status == 404
        assert number(slow.result()) == 2.5
        eventually(lambda: index(server), [("digits", "", "UNAVAILABLE")])
        assert ask(server.port, "/v2/health/ready").status == 200
        assert load(server).status == 200
        assert number(answer(server)) == 2.5


def test_a_load_without_reference_takes_what_the_tag_names_now(registry: str, tmp_path: Path) -> None:
    move_tag(registry, "1")
    with serving(registry, tmp_path, "digits:live") as server:
        assert load(server).json["version"] == "1"
        move_tag(registry, "2")
        assert number(answer(server)) == 1.5
        assert load(server).json["version"] == "2"
        assert number(answer(server)) == 2.5


def test_only_what_may_be_loaded_is_loaded(registry: str, tmp_path: Path) -> None:
    other = f"oci://{registry}/models/other:1"
    with serving(registry, tmp_path) as server:
        assert load(server, other, "other").status == 403
        assert load(server, f"oci://{registry}/models/digits:9").status == 502
        assert load(server, f"oci://{registry}/models/digits:2", "other").status == 409
        assert load(server, name="other").status == 404
        assert number(answer(server)) == 1.5
    with serving(registry, tmp_path, MLIMG_REPOSITORY_ALLOW=f"oci://{registry}/models") as server:
        assert load(server, other, "other").status == 200
        assert index(server) == [("digits", "1", "READY"), ("other", "1", "READY")]
        assert ask(server.port, "/v2/models/other/infer", rows([[0.0]])).json["outputs"][0]["data"] == [7.0]
        assert unload(server, "digits").status == 200
        assert ask(server.port, "/v2/models/other/infer", rows([[0.0]])).status == 200


def test_a_signal_ends_a_load_that_hangs_and_loses_nothing(registry: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(2) as clients:
        name = f"oci://127.0.0.1:{silent.getsockname()[1]}/models/digits"
        with serving(registry, tmp_path, MLIMG_REPOSITORY_ALLOW=name) as server:
            loading = clients.submit(load, server, f"{name}:2")
            with silent.accept()[0]:
                assert load(server, f"{name}:2").status == 409  # it is being loaded
                assert unload(server).status == 409
                assert index(server) == [("digits", "1", "READY"), ("digits", "", "LOADING")]
                slow = clients.submit(answer, server, 1.0)
                time.sleep(0.3)
                server.signal()
                assert loading.result().status == 503
                assert number(slow.result()) == 1.5
                assert server.end()[0] == 0


CLIENT = """
import json, sys
import tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
def index(): return [(model["name"], model["state"]) for model in client.get_model_repository_index()]
client.load_model("digits")
before = index(), client.is_model_ready("digits")
client.unload_model("digits")
try:
    unloaded = client.is_model_ready("digits")
except Exception as error:
    unloaded = repr(error)
client.load_model("digits")
try:
    client.load_model("wine")
    refused = ""
except http.InferenceServerException as error:
    refused = error.status()
print(json.dumps([*before, unloaded, index(), client.is_server_ready(), refused]))
"""


def test_tritonclient_loads_unloads_and_lists(registry: str, tmp_path: Path) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    words = [uv, "run", "--quiet", "--no-project", "--python", sys.executable, "--with", "tritonclient[http]"]
    with serving(registry, tmp_path) as server:
        command = [*words, "python", "-c", CLIENT, f"127.0.0.1:{server.port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    ready = [["digits", "READY"]]
    assert json.loads(done.stdout) == [ready, True, False, ready, True, "404"]
