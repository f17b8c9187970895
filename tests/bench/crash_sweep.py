"""SIGKILL before every call that writes, renames, syncs, removes, connects, sends or receives: rows E12 and I3.

Each point is a process that dies at its n-th such call (`tests/support/crash.c`), then an outsider's look at what is
published, then the same command again, which has to end well, with the digests of a run that was never disturbed, every
byte of the model in its place, and, after `mlimg clean`, no more left over than such a run leaves. Where `write` or
`send` is the call, a second point has it do half of its work first. Threads take turns as they like, so that another
round over a command meets other states.

`--stride 40` is a quick look; `--only directory,fetch` sweeps some commands alone. Ctrl-C ends a command's sweep, and
what has been swept is told.
"""

import argparse
import gc
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import sys
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Row, table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mlimg import pack  # noqa: E402 (a benchmark is a command: its own folder alone is on the path)
from mlimg.cli import build as _build  # noqa: E402, F401 (imported once here, and not in each child)
from mlimg.cli import clean as _clean  # noqa: E402, F401
from mlimg.cli.main import main as console_script  # noqa: E402
from mlimg.runtime import execute as _execute  # noqa: E402, F401
from mlimg.runtime.__main__ import main as runtime_main  # noqa: E402
from mlimg.runtime.oci import Access  # noqa: E402
from mlimg.runtime.stores import open_store  # noqa: E402
from mlimg.runtime.stores.directory import DirectoryStore  # noqa: E402
from tests.support.crash import Children, preload  # noqa: E402
from tests.support.payloads import payload  # noqa: E402
from tests.support.published import HANDLER, publish_server  # noqa: E402
from tests.support.stores import docker_registry  # noqa: E402

DICE = random.Random(1)
# Two files with a layer of their own, so that layers are sent side by side, and some that share one.
pack.OWN_LAYER_BYTES = 100_000  # type: ignore[misc]
FILES = {
    "weights-1.bin": DICE.randbytes(300_000),
    "weights-2.bin": DICE.randbytes(200_000),
    **{f"vocabulary/part-{number:02}.txt": DICE.randbytes(50 + number) for number in range(12)},
}
MANIFEST = "mlimg.manifest"
TORN = {"write", "pwrite64", "send", "sendto"}
SPEC = """\
image: {host}/{place}/echo
server:
  template: python
  image: {host}/base/server
  code: ./handler.py
  version: "{server}"
model:
  version: "1"
  source: ./model
  store: oci://{host}/{place}/models
"""
SERVERS = ("1.0", "1.1")
MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


class Violation(Exception):  # noqa: N818 (of a rule, by the thing that is tested; nothing here fails)
    """Something that must never be."""


def insist(condition: object, text: str) -> None:
    """Raise Violation unless it holds."""
    if not condition:
        raise Violation(text)


class Command(ABC):
    """What is killed. `number` gives each point a place of its own, in which nothing is at first."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder / str(number)
        self.place = f"{folder.name}/p{number}"
        (self.folder / "tmp").mkdir(parents=True)
        self.environ = {
            "DOCKER_HOST": "unix:///nowhere/docker.sock",
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "HOME": str(self.folder),
            "LOG_LEVEL": "error",
        }

    def __call__(self) -> None:
        """Run it, in a child."""
        self.enter()
        self.run()

    def enter(self) -> None:
        """Be where its user is."""
        os.environ |= self.environ
        tempfile.tempdir = None
        os.chdir(self.folder)

    @abstractmethod
    def run(self) -> None:
        """The command itself; SystemExit has its status."""

    @abstractmethod
    def published(self) -> dict[str, str]:
        """What an outsider sees: names and digests of what they stand for. Raises Violation for what is not whole."""

    def left_over(self) -> set[str]:
        """Every file of the point's folder, but for what has a random name."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def clean(self) -> None:  # noqa: B027 (there may be nothing to do)
        """What a user does against leftovers."""

    def age(self) -> None:
        """Let an hour pass: temporary folders that are nobody's are not removed in their first minute."""
        for path in (self.folder / "tmp").iterdir():
            os.utime(path, (time.time() - 3600,) * 2)

    def remove(self) -> None:
        """Forget the point."""
        shutil.rmtree(self.folder)


class Directory(Command):
    """Publishing to a folder store."""

    def run(self) -> None:
        """The sink of `build --pattern load`."""
        DirectoryStore(self.folder / "store").publish(payload(FILES))

    def published(self) -> dict[str, str]:
        """A version is there once its manifest is."""
        version = self.folder / "store" / "digits" / "3"
        return folder_digest(version) if (version / MANIFEST).exists() else {}


class Fetch(Command):
    """`python -m mlimg.runtime fetch`, with a cache that versions share."""

    uri = ""

    def run(self) -> None:
        """The init container's command."""
        os.environ["MLIMG_CACHE_DIR"] = str(self.folder / "models-cache")
        runtime_main(["fetch", self.uri, str(self.folder / "models")])

    def published(self) -> dict[str, str]:
        """A version is there once its folder is."""
        found = [path.parent for path in (self.folder / "models").glob(f"**/{MANIFEST}") if ".mlimg" not in str(path)]
        return folder_digest(found[0]) if found else {}


class Push(Command):
    """`mlimg build --push` on a machine without an engine: the server is published."""

    host = ""
    pattern = ""
    newer = False  # the server is newer than the one on which the model's tag stands

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        (self.folder / "handler.py").write_text(HANDLER)
        for name, data in FILES.items():
            path = self.folder / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.write_spec(SERVERS[0])

    def write_spec(self, server: str) -> None:
        """The spec, with one of the two servers."""
        (self.folder / "mlimg.yaml").write_text(SPEC.format(host=self.host, place=self.place, server=server))

    def run(self) -> None:
        """The console script."""
        sys.argv = ["mlimg", "build", "--push", "--json", "--pattern", self.pattern]
        console_script()

    def clean(self) -> None:
        """`mlimg clean` in the project."""
        self.enter()
        sys.argv = ["mlimg", "clean"]
        console_script()

    def published(self) -> dict[str, str]:
        """Every tag, with all that its manifest names read and hashed."""
        tags: dict[str, str] = {}
        for repository in (f"{self.place}/echo", f"{self.place}/models/echo"):
            for tag in self.tags(repository):
                name = f"{repository.removeprefix(self.place)}:{tag}"
                status, data = self.get(f"/v2/{repository}/manifests/{tag}")
                insist(status == 200, f"{name} has no manifest")
                tags[name] = hashlib.sha256(data).hexdigest()
                self.check(repository, name, json.loads(data))
        return tags

    def check(self, repository: str, name: str, manifest: Mapping[str, Any]) -> None:
        """Every blob is there and is what it should be, and the model in them is the model."""
        found: dict[str, bytes] = {}
        for blob in (manifest["config"], *manifest["layers"]):
            status, data = self.get(f"/v2/{repository}/blobs/{blob['digest']}")
            insist(status == 200, f"{name} lacks {blob['digest']}")
            insist(f"sha256:{hashlib.sha256(data).hexdigest()}" == blob["digest"], f"{name}: other bytes")
            with suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(data)) as opened:
                found |= {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}  # type: ignore[union-attr]
        prefix = "models/"
        files = {path.removeprefix(prefix): data for path, data in found.items() if path.startswith(prefix)}
        insist(files.pop(MANIFEST, None), f"{name} has no model manifest")
        insist(files == FILES, f"{name} has another model")

    def tags(self, repository: str) -> list[str]:
        """What the registry lists."""
        status, data = self.get(f"/v2/{repository}/tags/list")
        return sorted(json.loads(data)["tags"] or []) if status == 200 else []

    def get(self, path: str) -> tuple[int, bytes]:
        """One request, by nothing of ours."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request("GET", path, headers={"Accept": MANIFEST_TYPES})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class InImage(Push):
    """The image with the model in it."""

    pattern = "in-image"


class Load(Push):
    """The model on its own."""

    pattern = "load"


class Newer(InImage):
    """The image's tag moves to a newer server."""

    newer = True


COMMANDS: Mapping[str, type[Command]] = {
    "directory": Directory,
    "fetch": Fetch,
    "in-image": InImage,
    "load": Load,
    "newer-server": Newer,
}


def folder_digest(folder: Path) -> dict[str, str]:
    """A folder's model under the name `model`. Raises Violation where it is not the model."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = files.pop(MANIFEST)
    insist({name: data for name, data in files.items() if name != ".claim"} == FILES, "a folder without its files")
    return {"model": hashlib.sha256(manifest).hexdigest()}


def publish_servers(host: str, folder: Path) -> None:
    """Have both servers in the registry, as CI leaves them."""
    Push.host = host
    project = Load(folder / "servers", 0)  # a repository is called so, which a temporary folder's name cannot be
    for version in SERVERS:
        project.write_spec(version)
        publish_server(project.folder)
    project.remove()


@dataclass
class Sweep:
    """One command, killed at many calls."""

    name: str
    folder: Path
    children: Children
    number: int = 0

    def prepared(self) -> tuple[Command, dict[str, str]]:
        """A place of its own, and what is published there beforehand."""
        self.number += 1
        command = COMMANDS[self.name](self.folder / self.name, self.number)
        if isinstance(command, Push) and command.newer:
            first = self.children.run(command)
            insist(first.status == 0, first.printed)
            command.write_spec(SERVERS[1])
        return command, command.published()

    def whole(self) -> tuple[int, dict[str, str], set[str]]:
        """A run that is not disturbed: its calls, what it publishes, what it leaves."""
        command, _ = self.prepared()
        ended = self.children.run(command)
        insist(ended.status == 0, ended.printed)
        result = ended.calls, command.published(), command.left_over()
        command.remove()
        return result

    def point(self, at: int, *, torn: bool, wanted: dict[str, str], left: set[str]) -> str:
        """Die at one call, look, run again, look; the name of the call, empty where the run ended before it."""
        command, before = self.prepared()
        killed = self.children.run(command, die_at=at, torn=torn)
        if not killed.fatal:
            insist(killed.status == 0, killed.printed)
            command.remove()
            return ""
        insist(killed.status == -9, f"{killed.status}: {killed.printed}")
        for name, digest in command.published().items():
            insist(digest in {before.get(name), wanted[name]}, f"{name} is neither old nor new")
        command.age()
        again = self.children.run(command)
        insist(again.status == 0, f"the rerun ends with {again.status}: {again.printed}")
        insist(command.published() == wanted, "the rerun publishes something else")
        cleaned = self.children.run(command.clean)
        insist(cleaned.status == 0, f"`mlimg clean` ends with {cleaned.status}: {cleaned.printed}")
        more = command.left_over() - left
        insist(not more, f"left over: {sorted(more)[:5]}")
        command.remove()
        return killed.fatal

    def points(self, stride: int, rounds: int) -> Iterator[tuple[str, str]]:
        """The call of each point, and what was violated there."""
        calls, wanted, left = self.whole()
        torn_at: set[int] = set()
        for round_ in range(rounds):
            for torn in (False, True):
                for at in range(1 + round_ % stride, calls + 1, stride):
                    if torn and at not in torn_at:
                        continue
                    try:
                        if fatal := self.point(at, torn=torn, wanted=wanted, left=left):
                            torn_at |= {at} if fatal in TORN else set()
                            yield fatal + " in part" * (torn and fatal in TORN), ""
                    except Violation as violation:
                        yield "?", f"{self.name}: call {at}{', torn' * torn}: {violation}"


def main() -> None:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="die at every n-th call only")
    parser.add_argument("--rounds", type=int, default=1, help="sweep each command so many times")
    parser.add_argument("--only", default=",".join(COMMANDS), help="some commands alone")
    asked = parser.parse_args()
    shared = Path("/dev/shm")
    folder = Path(os.environ.get("MLIMG_CRASH_FOLDER") or tempfile.mkdtemp(prefix="mlimg-crash-", dir=shared))
    os.environ["MLIMG_CRASH_FOLDER"] = str(folder)
    preload(folder)
    try:
        (folder / "registry").mkdir()
        with docker_registry(folder / "registry") as host:
            publish_servers(host, folder)
            Fetch.uri = str(open_store(f"oci://{host}/fetched", Access()).publish(payload(FILES)).uri)
            children = Children(folder / "log")
            gc.freeze()  # what is shared with the children is not to be copied for their garbage collections
            rows = [swept(Sweep(name, folder, children), asked.stride, asked.rounds) for name in asked.only.split(",")]
    finally:
        shutil.rmtree(folder)
    table(rows)


def swept(sweep: Sweep, stride: int, rounds: int) -> Row:
    """One command's figure; what is violated is told on stderr."""
    started, calls, violations = time.monotonic(), Counter[str](), 0
    with suppress(KeyboardInterrupt):  # what has been swept counts
        for call, violation in sweep.points(stride, rounds):
            calls[call] += 1
            violations += bool(violation)
            if violation:
                print(violation, file=sys.stderr, flush=True)
            if calls.total() % 50 == 0:
                print(f"{sweep.name}: {calls.total()} points, {violations} violations", file=sys.stderr, flush=True)
    points = sum(calls.values())
    names = ", ".join(f"{name} {count}" for name, count in calls.most_common())
    seconds = time.monotonic() - started
    return Row(f"{sweep.name}: killed at {points} points", violations, 0, "violations", f"{seconds:.0f} s; {names}")


if __name__ == "__main__":
    main()
