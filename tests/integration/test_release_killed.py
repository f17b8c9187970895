"""I1, I3: a build that is stopped at any moment leaves nothing half-published, and the next one gives the same digests.

The moments are spread by chance, always the same ones; `tests/bench/repeat.py` has the long run.
"""

import random
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.projects import Done, Project, digest_of, manifest_of, tags_of
from tests.support.rounds import rounds

MOMENTS = rounds(6)  # for each image store
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WAYS = (("in-image", "--push"), ("load", "--push"), ("in-image",), ("load",))
NEW: tuple[str, ...] = ()  # the first way, with a server that has to be built
MODEL_BYTES = 32 << 20


@dataclass
class Names:
    """What a run writes to. A new place has nothing of it yet."""

    project: Project
    place: str
    server: str = "server"
    repositories: list[str] = field(init=False)

    def __post_init__(self) -> None:
        prefix = f"{self.project.prefix}/{self.place}"
        self.image = f"{prefix}/scores"
        self.project.spec["image"] = self.image
        self.project.spec["server"]["image"] = f"{self.project.prefix}/{self.server}"
        self.project.spec["model"]["store"] = f"oci://{prefix}/models"
        self.repositories = [self.image, f"{prefix}/models/scores", self.project.spec["server"]["image"]]


def identities(release: dict[str, Any]) -> list[str | None]:
    return [release[part] and release[part]["digest"] for part in ("server", "model", "image")]


def stopped(project: Project, way: tuple[str, ...], after_seconds: float, number: int) -> Done:
    """Build, and send a signal while it goes on."""
    process = subprocess.Popen(
        project.command("build", "--pattern", *way),
        cwd=project.folder,
        env=project.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(after_seconds)
    process.send_signal(number)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2.5  # two seconds, and the machine's own slowness
    return Done(process.returncode, stdout, stderr)


def assert_whole(reference: str) -> None:
    """Every blob that a tag needs is in its registry."""
    manifest = manifest_of(reference)
    host, _, repository = reference.rpartition(":")[0].partition("/")
    for blob in (manifest["config"], *manifest["layers"]):
        request = urllib.request.Request(f"http://{host}/v2/{repository}/blobs/{blob['digest']}", method="HEAD")
        with urllib.request.urlopen(request) as answer:
            assert int(answer.headers["Content-Length"]) == blob["size"]


def untagged(project: Project, inputs: str) -> list[str]:
    """Images of this project's server that no name is left for."""
    filters = ["--filter", "dangling=true", "--filter", f"label=io.mlimg.server.inputs={inputs}"]
    return project.engine.docker("image", "ls", "--quiet", "--no-trunc", *filters).split()


def test_stopped_at_any_moment_nothing_is_half_published(published: Project, tmp_path: Path) -> None:
    project, chance = published, random.Random(published.engine.store)
    # Its own server, so that what is left of it can be told from all else in the engine.
    project.spec["server"]["env"] = {"PROJECT": project.name}
    (project.folder / "model" / "weights.bin").write_bytes(chance.randbytes(MODEL_BYTES))

    seconds: dict[tuple[str, ...], float] = {}
    wanted: dict[tuple[str, ...], list[str | None]] = {}
    inputs = ""
    project.build("load", "--no-push")  # now the builder has the server's layers, as it has in all runs to come
    for way in (NEW, *WAYS):
        Names(project, "whole" + "".join(way))
        forget_images(project)
        started = time.monotonic()
        release = project.build(*(way or WAYS[0])).release
        seconds[way], wanted[way] = time.monotonic() - started, identities(release)
        inputs = release["server_inputs"]
    statuses = []
    for moment in range(MOMENTS):
        way = WAYS[moment % len(WAYS)]
        number = SIGNALS[moment % len(SIGNALS)]
        new = moment % 3 == 0
        names = Names(project, f"moment{moment}", f"server{moment}" if new else "server")
        scratch = tmp_path / f"scratch{moment}"
        scratch.mkdir()
        project.environ["TMPDIR"] = str(scratch)
        forget_images(project)
        done = stopped(project, way, chance.uniform(0.3, seconds[NEW if new else way]), number)
        statuses.append(done.status)
        assert done.status in {0, -number, 128 + number}, done.stderr
        assert "Traceback" not in done.stderr or done.status == -number  # the interpreter's own first moments
        if number != signal.SIGKILL:
            assert list(scratch.iterdir()) == [], done.stderr
        before = {f"{name}:{tag}": "" for name in names.repositories for tag in tags_of(name)}
        for reference in before:
            assert_whole(reference)
            before[reference] = digest_of(reference)

        again = project.build(*way)
        assert identities(again.release) == wanted[way], again.stderr
        assert {reference: digest_of(reference) for reference in before} == before, "what was published has moved"
    assert sum(map(bool, statuses)) >= MOMENTS / 3, f"too few moments hit a run that was going on: {statuses}"

    known = untagged(project, inputs)
    told = project.mlimg("clean", "--dry-run").stderr
    assert all(image[:19] in told for image in known)
    if project.engine.store == "containerd":  # this engine is ours alone
        assert project.mlimg("clean").status == 0
        assert untagged(project, inputs) == []
        assert project.engine.docker("image", "ls", "--quiet", "mlimg.local/build") == ""
    for image in untagged(project, inputs):
        project.engine.docker("image", "rm", image)


def forget_images(project: Project) -> None:
    """Take from the engine what earlier moments appended, so that it is appended anew."""
    for image in project.images():
        if "/scores:" in image:
            project.engine.docker("image", "rm", image)
