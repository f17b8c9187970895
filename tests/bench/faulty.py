"""How often a push or a fetch succeeds where every request may fail, and whether a success ever is none.

Between mlimg and docker-registry stands a proxy that fails each request with the same chance: 5xx, a reset or a cut in
the middle of a request or an answer, an answer that is lost after the work was done. Each push is a new model of random
bytes, judged by what the registry itself holds then; each fetch by the files it left. mlimg has its own patience only.
"""

import argparse
import filecmp
import hashlib
import http.client
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import MLIMG, PYTHON, Row, table
from places import RealRegistry, docker_registry
from project import ROOT, base_image, write_random
from release import IMAGE, LOAD, MIB, PUSH, SERVER, Bench

sys.path.insert(0, str(ROOT))

from tests.support.engines import Engine, default_host
from tests.support.faults import Answer, Fault, FaultServer, Request, forward_to

# Faults per request, and how many of a hundred runs must succeed nevertheless.
BARS = {1: 100.0, 5: 99.0, 20: 90.0}
SMALL_FILES = 8
KINDS = ("5xx", "reset while sending", "cut while sending", "reset while reading", "cut while reading", "answer lost")


class RandomFaults(FaultServer):
    """Hands requests on to a registry; each fails with the chance `percent`."""

    def __init__(self, target: str, largest_bytes: int, seed: int) -> None:
        super().__init__(forward_to(target))
        self.percent = 0
        self.seen = 0
        self.fired: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._largest_bytes = largest_bytes

    def record(self, request: Request) -> None:
        """Models are too large to be kept."""

    def fault_for(self, method: str, path: str) -> Fault:
        """Draw."""
        with self._lock:
            self.seen += 1
            if self._random.random() * 100 >= self.percent:
                return Fault(times=0)
            kind = self._random.choice(KINDS)
            self.fired[kind] += 1
            # As many faults within the first kilobyte as in the last megabytes.
            at = int(self._largest_bytes ** self._random.random()) - 1
            return {
                "5xx": Fault(answer=Answer(self._random.choice((500, 502, 503, 504)))),
                "reset while sending": Fault(cut_request_at=at, reset_request=True),
                "cut while sending": Fault(cut_request_at=at, pass_cut=True),
                "reset while reading": Fault(reset_at=at),
                "cut while reading": Fault(cut_at=at),
                "answer lost": Fault(lose_answer=True),
            }[kind]


@dataclass
class Judge:
    """Reads what a registry holds, past the proxy and without mlimg."""

    host: str
    _whole: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def holds(self, tag: str, model: Path) -> bool | None:
        """Whether the image of a tag is whole and has exactly this model; None without the tag."""
        status, data = self._get("manifests", tag)
        if status == 404:
            return None
        manifest = json.loads(data)
        files: dict[str, bytes] = {}
        for blob in (manifest["config"], *manifest["layers"]):
            digest = blob["digest"]
            if digest in self._whole:  # a server's layer; it cannot change, only go
                if self._get("blobs", digest, "HEAD")[0] != 200:
                    return False
                continue
            status, data = self._get("blobs", digest)
            if status != 200 or len(data) != blob["size"] or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                return False
            if not self._collect(data, files):
                with self._lock:
                    self._whole.add(digest)
        wanted = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
        return files == wanted

    def _collect(self, data: bytes, files: dict[str, bytes]) -> bool:
        """Add a layer's model files; False for a blob that is no layer of a model."""
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = [member for member in tar if member.name.startswith("models/")]
                for member in members:
                    opened = tar.extractfile(member)
                    if opened is not None and not member.name.endswith("/mlimg.manifest"):
                        files[member.name.removeprefix("models/")] = opened.read()
        except tarfile.TarError:
            return False
        return bool(members)

    def _get(self, kind: str, name: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        accept = "application/vnd.oci.image.manifest.v1+json"
        connection.request(method, f"/v2/bench/app/{kind}/{name}", headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.read()


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    succeeded: bool
    truly: bool  # what it left is bit for bit what it should be, or it left nothing
    seconds: float
    said: str


def environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}


def write_model(folder: Path, size_bytes: int) -> Path:
    """One large file and a few small ones, two folders deep."""
    model = folder / "model"
    (model / "parts").mkdir(parents=True)
    write_random(model / "weights.bin", size_bytes)
    for number in range(SMALL_FILES):
        write_random(model / "parts" / f"{number}.bin", 1000 * number)
    return model


def push(number: int, work: Path, spec: str, judge: Judge, size_bytes: int) -> Outcome:
    """Push a model that nobody has seen, once, and look at what is there."""
    folder = work / f"push-{number}"
    shutil.copytree(work / "serve", folder / "serve")
    (folder / "mlimg.yaml").write_text(spec, encoding="utf-8")
    model = write_model(folder, size_bytes)
    argv = [MLIMG, *IMAGE, PUSH, "--quiet", "--debug", "--set", f"model.version={number}"]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=folder, env=environ(folder), capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    there = judge.holds(str(number), model)
    shutil.rmtree(folder)
    # A push that failed has left no tag, or has done all of its work and lost the last answer.
    return Outcome(done.returncode == 0, there is True or (there is None and done.returncode != 0), took, done.stderr)


def fetch(number: int, work: Path, uri: str, model: Path) -> Outcome:
    """Fetch a model into an empty folder, once, and compare the files."""
    folder = work / f"fetch-{number}"
    folder.mkdir()
    argv = [PYTHON, "-m", "mlimg.runtime", "fetch", uri, str(folder / "models")]
    started = time.monotonic()
    done = subprocess.run(argv, cwd=ROOT, env=environ(folder), capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    names = [path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()]
    truly = True
    if done.returncode == 0:
        _, wrong, missing = filecmp.cmpfiles(model, done.stdout.strip().splitlines()[-1], names, shallow=False)
        truly = not wrong and not missing
    shutil.rmtree(folder)
    return Outcome(done.returncode == 0, truly, took, done.stderr)


def prove(judge: Judge, bench: Bench, model: Path) -> None:
    """A judge that cannot say no is none: it must see one byte that is another."""
    bench.mlimg(*IMAGE, PUSH)
    if judge.holds(str(bench.version), model) is not True:
        raise SystemExit("the judge does not find a model that was pushed without faults")
    weights = bytearray((model / "weights.bin").read_bytes())
    weights[-1] ^= 1
    (model / "weights.bin").write_bytes(weights)
    if judge.holds(str(bench.version), model) is not False:
        raise SystemExit("the judge does not see a changed byte")
    weights[-1] ^= 1
    (model / "weights.bin").write_bytes(weights)


def rows(what: str, percent: int, outcomes: Sequence[Outcome], proxy: RandomFaults) -> list[Row]:
    """Two figures of one rate: how many succeeded, and how many of them only said so."""
    good = sum(outcome.succeeded for outcome in outcomes)
    slowest = max(outcome.seconds for outcome in outcomes)
    note = f"{good} of {len(outcomes)}; {proxy.fired.total()} of {proxy.seen} requests failed; at most {slowest:.0f} s"
    for outcome in outcomes:
        if not outcome.succeeded or not outcome.truly:
            print(f"  {what}: {outcome.said.strip()}", file=sys.stderr)
    return [
        Row(
            f"{what}, {percent} % faults: succeeded",
            100 * good / len(outcomes),
            BARS[percent],
            "%",
            note,
            at_least=True,
        ),
        Row(f"{what}, {percent} % faults: not what it said", sum(not one.truly for one in outcomes), 0, "n"),
    ]


def measure(bench: Bench, registry: RealRegistry, given: argparse.Namespace) -> list[Row]:
    """All rates, pushes and then fetches, several runs at once: most of the time they wait."""
    size_bytes, judge = given.size_mib * MIB, Judge(registry.host)
    found: list[Row] = []
    numbers = itertools.count(bench.version + 1)
    with RandomFaults(registry.host, size_bytes, given.seed) as proxy, ThreadPoolExecutor(given.jobs) as pool:
        spec = (bench.folder / "mlimg.yaml").read_text().replace(registry.host, proxy.host)
        shutil.rmtree(bench.folder / "model")
        model = write_model(bench.folder, size_bytes)
        release = json.loads(bench.mlimg(*LOAD, PUSH, "--json").stdout)
        uri = release["model"]["reference"].replace(registry.host, proxy.host)

        prove(judge, bench, model)

        def run_all(what: str, percent: int, one: Callable[[int], Outcome]) -> None:
            proxy.percent, proxy.seen, proxy.fired = percent, 0, Counter()
            outcomes = list(pool.map(one, [next(numbers) for _ in range(given.runs)]))
            found.extend(rows(what, percent, outcomes, proxy))
            print(f"  {found[-2].figure}: {found[-2].value:.1f} % ({found[-2].spread})", file=sys.stderr, flush=True)

        for percent in given.rates:
            run_all("push", percent, lambda number: push(number, bench.folder, spec, judge, size_bytes))
        for percent in given.rates:
            run_all("fetch", percent, lambda number: fetch(number, bench.folder, uri, model))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of each kind at each rate")
    parser.add_argument("--size-mib", type=int, default=4, help="of the model's large file")
    parser.add_argument(
        "--rates", type=int, nargs="+", choices=list(BARS), default=list(BARS), help="faults in percent"
    )
    parser.add_argument("--jobs", type=int, default=4, help="runs at once")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the faults")
    given = parser.parse_args()
    base, shared = base_image(), Path("/dev/shm")
    print(f"{given.runs} runs of {given.size_mib} MiB, seed {given.seed}, {os.cpu_count()} cores", flush=True)
    with (
        TemporaryDirectory(prefix="mlimg-bench.", dir=shared if shared.is_dir() else None) as name,
        docker_registry(Path(name)) as registry,
    ):
        bench = Bench(Path(name), MIB, 1, 1)
        try:
            bench.settle(registry.host, base)
            bench.mlimg(*SERVER, PUSH)
            found = measure(bench, registry, given)
        finally:
            bench.leave(Engine.at(default_host()))
    table(found)


if __name__ == "__main__":
    main()
