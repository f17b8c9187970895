"""Whole flows through the console script, on the machine's own engine and a real registry."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "custom-handler"
MLIMG = Path(sys.executable).with_name("mlimg")


@dataclass(frozen=True)
class Project:
    """A copy of an example, under an image name of this run's own."""

    folder: Path
    image: str
    base: str

    @property
    def settings(self) -> list[str]:
        return ["--set", f"image={self.image}", "--set", f"server.base={self.base}"]

    def start(self, command: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [MLIMG, command, *arguments],
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str, *arguments: str, status: int = 0, **environment: str) -> str:
        with self.start(command, *arguments, **environment) as process:
            out, err = process.communicate(timeout=600)
        assert process.returncode == status, err
        return out

    def build(self, *arguments: str) -> dict[str, str]:
        lines = self("build", *self.settings, *arguments).splitlines()
        return dict(line.split("=", 1) for line in lines)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def images(name: str) -> list[str]:
    return docker("image", "ls", "--quiet", "--filter", f"reference={name}*:*").split()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, base_image: str) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project") / "diabetes"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".mlimg", "model", "*.csv", "__pycache__"))
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    project = Project(folder, f"mlimg.local/cli-{os.getpid()}/diabetes", base_image)
    yield project
    project("run", "--stop")
    for image in set(images(project.image)):
        docker("image", "rm", "--force", image)


@pytest.fixture
def server(project: Project) -> Iterator[str]:
    """What was built last, served; its address."""
    started = json.loads(project("run", "--detach", "--port", "0", "--json"))
    yield started["url"]
    project("run", "--stop")
    assert not docker("ps", "--all", "--quiet", "--filter", f"id={started['container']}")


def expected(project: Project) -> list[float]:
    return [float(line) for line in (project.folder / "expected.csv").read_text().splitlines()]


def answers(project: Project) -> list[float]:
    rows = list(csv.reader(project("predict", "held-out.csv").splitlines()))
    assert rows[0] == ["progression"]
    return [float(row[0]) for row in rows[1:]]


def test_in_image_is_built_served_and_asked(project: Project, request: pytest.FixtureRequest) -> None:
    built = project.build()
    assert built == {
        "image": f"{project.image}:1",
        "server": f"{project.image}-server:1.0",
        "model": "diabetes:1",
    }
    request.getfixturevalue("server")
    assert answers(project) == pytest.approx(expected(project), rel=1e-12)


def test_load_mounts_the_local_store_and_answers_the_same(project: Project, request: pytest.FixtureRequest) -> None:
    built = project.build("--pattern", "load")
    assert set(built) == {"server", "model"}
    assert built["model"].startswith(f"file://{project.folder}/.mlimg/store/diabetes/1@sha256:")
    request.getfixturevalue("server")
    assert answers(project) == pytest.approx(expected(project), rel=1e-12)


def test_a_second_build_with_another_model_moves_only_the_model(project: Project) -> None:
    first = json.loads(project("build", *project.settings, "--json"))
    (project.folder / "model" / "note.txt").write_text("another model")
    try:
        second = json.loads(project("build", *project.settings, "--set", "model.version=2", "--json"))
    finally:
        (project.folder / "model" / "note.txt").unlink()
    assert second["server"]["how"] == "reused"
    assert second["server"]["digest"] == first["server"]["digest"]
    assert second["image"]["moved_bytes"] == second["model"]["size_bytes"] < 10_000


@pytest.fixture
def project_there(project: Project, registry: str) -> Iterator[Project]:
    """The same project, its image named in the registry."""
    there = Project(project.folder, f"{registry}/diabetes", project.base)
    yield there
    for image in set(images(there.image)):
        docker("image", "rm", "--force", image)


def test_pushed_references_are_pinned_and_a_loopback_registry_is_reached(
    project_there: Project, registry: str, request: pytest.FixtureRequest
) -> None:
    built = project_there.build("--pattern", "load", "--push", "--set", f"model.store=oci://{registry}/models")
    assert built["server"].startswith(f"{registry}/diabetes-server:1.0@sha256:")
    assert built["model"].startswith(f"oci://{registry}/models/diabetes:1@sha256:")
    request.getfixturevalue("server")
    assert answers(project_there) == pytest.approx(expected(project_there), rel=1e-12)


def test_an_altered_model_ends_the_container_and_us_with_18(project: Project) -> None:
    """The container's own status and last lines; G2's command line side."""
    project.build("--pattern", "load")
    [stored] = (project.folder / ".mlimg" / "store" / "diabetes").glob("1/columns.json")
    content = stored.read_bytes()
    stored.write_bytes(content.replace(b"age", b"agf"))
    try:
        with project.start("run", "--detach", "--port", "0") as process:
            out, err = process.communicate(timeout=60)
    finally:
        stored.write_bytes(content)
    assert (process.returncode, out) == (18, "")
    assert "columns.json" in err
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=io.mlimg.run.project={project.folder}")
    project("run", "--detach", "--port", "0")  # twin: one byte away
    project("run", "--stop")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupting_run_stops_and_removes_the_container(
    project: Project, number: signal.Signals, status: int
) -> None:
    """I1."""
    project.build()
    with project.start("run", "--port", "0") as process:
        assert process.stderr is not None
        assert any("Ctrl-C stops it" in line for line in process.stderr)
        assert docker("ps", "--quiet", "--filter", f"label=io.mlimg.run.project={project.folder}")
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(15) == status
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=io.mlimg.run.project={project.folder}")


def builders(marker: Path) -> list[str]:
    """Command lines of living builders that name a file below `marker`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "buildx build" in words and str(marker) in words:
            found.append(words)
    return found


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    # Python itself catches SIGINT from its first moment, and mlimg all three at once.
    return bool(caught >> (signal.SIGTERM - 1) & 1 and caught >> (number - 1) & 1)


@pytest.mark.parametrize("seconds", [0.4, 1.5, None], ids=["0.4", "1.5", "builder"])  # None: while a builder runs
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_an_interrupted_build_leaves_no_tag_and_no_builder(
    project: Project, tmp_path: Path, seconds: float | None, number: signal.Signals, status: int
) -> None:
    """D12, I1."""
    name = f"{project.image}-interrupted"
    settings = ["--set", f"image={name}", "--set", f"server.base={project.base}"]
    with project.start("build", *settings, "--no-cache", TMPDIR=str(tmp_path)) as process:
        while not catches(process.pid, number):  # until then the kernel ends it, as it does any Python that starts
            time.sleep(0.01)
        while seconds is None and not builders(tmp_path) and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1 if seconds is None else seconds)
        assert process.poll() is None, "the build was over before the fault"
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        took = time.monotonic() - begun
    assert (process.returncode, out) == (status, "")
    assert took < 2.5
    assert "Traceback" not in err
    assert not images(name)
    while builders(tmp_path) and time.monotonic() < begun + 4:  # a killed process takes a moment to be gone
        time.sleep(0.05)
    assert not builders(tmp_path)
    assert not list(tmp_path.iterdir()), "scratch was left"


def test_a_closed_pipe_loses_the_report_and_not_the_work(project: Project) -> None:
    """I5."""
    record = project.folder / ".mlimg" / "release.json"
    record.unlink(missing_ok=True)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [MLIMG, "build", *project.settings, "--json"],
        cwd=project.folder,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 141
    assert json.loads(record.read_text())["image"]["reference"] == f"{project.image}:1"


def test_a_full_disk_behind_stdout_is_20_and_the_work_is_done(project: Project) -> None:
    """I5."""
    record = project.folder / ".mlimg" / "release.json"
    record.unlink(missing_ok=True)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [MLIMG, "build", *project.settings],
            cwd=project.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 20
    assert "only its report is lost" in done.stderr
    assert record.exists()
