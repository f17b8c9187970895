"""Built images as containers: how they are locked down, what process 1 does, and how they end."""

import http.client
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.engines import Engine
from tests.support.projects import Project
from tests.support.servers import Reply, ask

HANDLER = """\
import os
import subprocess
import sys
import time

import numpy as np

ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'pass']); sys.exit(7)"


def load(model_dir, options):
    time.sleep(float(os.environ.get("TEST_LOAD_SECONDS", "0")))
    return (model_dir / "weights.json").read_bytes()


def predict(model, inputs):
    if "sleep" in inputs:
        time.sleep(inputs["sleep"][0])
        return inputs
    # A child that leaves an orphan behind: its own exit status is ours to read, the orphan is not ours to reap.
    status = subprocess.run([sys.executable, "-c", ORPHAN], check=False).returncode
    return {"status": np.array([status]), "uid": np.array([os.getuid()])}
"""
ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'pass'])"
LOCKED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
ZOMBIES = """\
import os, re
stats = [open(f"/proc/{pid}/stat").read() for pid in os.listdir("/proc") if pid.isdigit()]
print(sum(re.search(r"\\) Z ", stat) is not None for stat in stats))
"""
READ_ALL = """\
import glob, sys
print(*(open(path).read().replace("\\0", " ") for path in glob.glob(f"/proc/[0-9]*/{sys.argv[1]}")))
"""


@pytest.fixture(scope="module")
def release(
    engine_host: str, base_image: str, registry: str, tmp_path_factory: pytest.TempPathFactory, user_cache: Path
) -> Iterator[Project]:
    """A release in both patterns: ``scores:1``, and ``server:1.0`` with its model in the registry."""
    folder = tmp_path_factory.mktemp("container") / "project"
    with Project(folder, Engine.at(engine_host), base_image, user_cache, registry) as project:
        (folder / "serve" / "handler.py").write_text(HANDLER)
        for pattern in ("in-image", "load"):
            done = project.build(pattern)
            assert done.status == 0, done.stderr
        yield project


class Container:
    """A running container; its port answers on loopback."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.id = name

    def inspect(self, form: str) -> str:
        return self._engine.docker("inspect", "--format", form, self.id)

    @property
    def running(self) -> bool:
        return self.inspect("{{.State.Running}}") == "true"

    @property
    def port(self) -> int:
        return int(self._engine.docker("port", self.id, "8080/tcp").splitlines()[0].rpartition(":")[2])

    def run(self, *command: str) -> str:
        return self._engine.docker("exec", self.id, *command)

    def logs(self) -> str:
        """Both streams: the server speaks on stderr."""
        command = ["docker", "logs", self.id]
        done = subprocess.run(
            command, env=self._engine.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout

    def stop(self) -> tuple[int, float]:
        """Exit status, and the seconds it took."""
        start = time.monotonic()
        self._engine.docker("stop", "--time", "30", self.id)
        return int(self.inspect("{{.State.ExitCode}}")), time.monotonic() - start

    def ask(self, path: str, body: object = None) -> Reply:
        return ask(self.port, path, body)

    def predict(self, name: str = "x", value: float = 0.0) -> Reply:
        tensor = {"name": name, "datatype": "FP64", "shape": [1], "data": [value]}
        return self.ask("/v2/models/scores/infer", {"inputs": [tensor]})

    def wait_until(self, status: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self.running, self.logs()
            try:
                if ask(self.port, "/v2/health/ready").status == status:
                    return
            except (OSError, http.client.HTTPException):
                pass
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)


@contextmanager
def container(project: Project, image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    engine = project.engine
    name = engine.docker(
        "run", "--detach", "--publish", "127.0.0.1::8080", *options, f"{project.prefix}/{image}", *command
    )
    try:
        yield Container(engine, name)
    finally:
        engine.docker("rm", "--force", "--volumes", name)


@pytest.mark.parametrize(
    "options",
    [
        (),
        (*LOCKED, "--user", "12345:0"),
        (*LOCKED, "--user", "12345:12345", "--env", "HOME="),
        (*LOCKED, "--user", "12345:0", "--tmpfs", "/cache"),
    ],
    ids=["as it is", "nothing writable", "foreign group and no home", "one writable folder"],
)
def test_g5_an_image_with_its_model_serves_locked_down(release: Project, options: tuple[str, ...]) -> None:
    with container(release, "scores:1", *options) as served:
        served.wait_until(200)
        told = served.ask("/v2/health/ready").json
        assert (told["model"], told["version"], told["source"]) == ("scores", "1", "/models")
        assert told["digest"].startswith("sha256:")
        assert served.predict().status == 200
        assert "listening on port 8080: scores:1 from /models" in served.logs()
        assert served.stop()[0] == 0


def test_g5_a_server_fetches_its_model_into_the_one_writable_folder(release: Project) -> None:
    uri = f"oci://{release.prefix}/models/scores:1"
    options = (*LOCKED, "--user", "12345:0", "--tmpfs", "/cache:mode=1777", "--network", "host", "--env")
    with container(release, "server:1.0", *options, f"MLIMG_MODEL={uri}", "--env", "PORT=0") as served:
        deadline = time.monotonic() + 60
        while "listening on port" not in served.logs():
            assert served.running, served.logs()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "scores:1 from oci://" in served.logs()
        assert served.stop()[0] == 0


def test_g13_a_server_without_model_ends_with_12(release: Project) -> None:
    with container(release, "server:1.0") as served:
        release.engine.docker("wait", served.id)
        assert served.inspect("{{.State.ExitCode}}") == "12"
        assert served.logs().splitlines()[-1].startswith("error: ")


def test_g14_process_1_reaps_orphans_and_leaves_the_handlers_children_alone(release: Project) -> None:
    with container(release, "scores:1") as served:
        served.wait_until(200)
        for _ in range(5):
            outputs = {output["name"]: output["data"] for output in served.predict().json["outputs"]}
            assert outputs["status"] == [7]
        deadline = time.monotonic() + 10
        while served.run("python", "-c", ZOMBIES) != "0":
            assert time.monotonic() < deadline, "zombies are left"
        assert served.stop()[0] == 0


def test_g14_a_zombie_is_seen_where_nobody_reaps(release: Project) -> None:
    """The twin: process 1 is a program that reaps nothing, and the same look finds the orphan."""
    code = f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {ORPHAN!r}]); time.sleep(60)"
    with container(release, "scores:1", "--entrypoint", "/opt/venv/bin/python", command=("-c", code)) as served:
        deadline = time.monotonic() + 30
        while served.run("python", "-c", ZOMBIES) == "0":
            assert time.monotonic() < deadline, "the orphan is no zombie: the test proves nothing"


def test_g10_docker_stop_while_loading_ends_within_two_seconds(release: Project) -> None:
    with container(release, "scores:1", "--env", "TEST_LOAD_SECONDS=60") as served:
        served.wait_until(503)
        while served.ask("/v2/health/ready").json["phase"] != "loading":
            time.sleep(0.02)
        code, seconds = served.stop()
    assert code == 143
    assert seconds < 2.5  # two, and what `docker stop` itself takes


def test_h12_docker_stop_lets_requests_finish(release: Project) -> None:
    with container(release, "scores:1") as served, ThreadPoolExecutor(4) as clients:
        served.wait_until(200)
        replies = [clients.submit(served.predict, "sleep", 1.0) for _ in range(4)]
        while b"mlimg_requests_in_progress 4.0" not in served.ask("/metrics").body:
            assert not any(reply.done() for reply in replies)
            time.sleep(0.02)
        assert served.stop()[0] == 0
        assert [reply.result().status for reply in replies] == [200] * 4


def test_g12_exec_leaves_no_credentials_in_any_process(release: Project) -> None:
    code = "import time; time.sleep(60)"
    command = ("exec", "--", "python", "-c", code, "{model_dir}")
    with container(release, "scores:1", "--env", "AWS_SECRET_ACCESS_KEY=canary", command=command) as served:
        deadline = time.monotonic() + 30
        while "time.sleep(60) /models" not in served.run("python", "-c", READ_ALL, "cmdline"):
            assert time.monotonic() < deadline, served.logs()
        # `docker exec` gives its own process the container's environment: that one alone does see it.
        environs = served.run("python", "-c", READ_ALL, "environ")
        assert environs.count("canary") == 1
        assert environs.count("MLIMG_MODEL_DIR=/models") == 2
        code_at_stop, seconds = served.stop()
    assert code_at_stop == 143
    assert seconds < 2.5
