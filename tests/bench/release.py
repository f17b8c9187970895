"""What it takes to release a new model: against `docker build` and `docker push`, and against the bytes themselves.

Each figure is a ratio of two things measured in turn in this run, or a count made outside mlimg. Models are fresh
random bytes each time; models and the registries' data lie in memory. `--size-mib 256 --rounds 1` is a quick look,
`--only sink,files` measures some figures alone.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import MLIMG, Row, Run, run, table
from places import docker_registry, sink
from project import HANDLER, ROOT, base_image, write_random

sys.path.insert(0, str(ROOT))

from tests.support.engines import Engine, default_host, environment, tool

SPEC = """\
image: {host}/bench/app
server:
  template: python
  image: {host}/bench/server
  version: "1.0"
  base: {base}
  code: ./serve
model:
  name: bench
  version: "0"
  source: ./model
{store}build:
  platform: linux/amd64
"""
STORE = "  store: oci://{host}/bench/models\n"
LOCAL = "mlimg.local"
SERVER = ("build", "--only", "server")
IMAGE = ("build", "--pattern", "in-image")
LOAD = ("build", "--pattern", "load")
PUSH = "--push"
DOCKERFILE = "FROM {server}\nCOPY model /models/bench\n"
LINK_BYTES_PER_SECOND = 50e6
MIB = 2**20


@dataclass
class Bench:
    """A project in memory. Names are those of one registry at a time."""

    folder: Path
    size_bytes: int
    rounds: int
    append_rounds: int
    version: int = 0
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.folder / "serve").mkdir()
        (self.folder / "serve" / "handler.py").write_text(HANDLER, encoding="utf-8")
        self.train(size_bytes=MIB)

    @property
    def weights(self) -> Path:
        """The one file of a model in one file."""
        return self.folder / "model" / "weights.bin"

    def train(self, *, files: int = 1, size_bytes: int | None = None) -> None:
        """Write the next version of the model."""
        self.version += 1
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        (self.folder / "model").mkdir()
        names = [f"weights-{number}.bin" for number in range(files)] if files > 1 else [self.weights.name]
        for name in names:
            write_random(self.folder / "model" / name, (size_bytes or self.size_bytes) // files)

    def settle(self, host: str, base: str) -> None:
        """Name everything in a registry, or locally."""
        self.hosts.add(host)
        store = "" if host == LOCAL else STORE.format(host=host)
        spec = SPEC.format(host=host, base=base, store=store)
        (self.folder / "mlimg.yaml").write_text(spec, encoding="utf-8")
        (self.folder / "Dockerfile").write_text(DOCKERFILE.format(server=f"{host}/bench/server:1.0"), encoding="utf-8")

    def mlimg(self, *arguments: str, engine: str | None = None) -> Run:
        """Run mlimg on the model as it is now, with its number as the version."""
        environ = {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            # Installed packages have their bytecode; a checkout that is worked on may not.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
            **({"DOCKER_HOST": engine} if engine else {}),
        }
        argv = [MLIMG, *arguments, "--set", f"model.version={self.version}", "--quiet"]
        return run(argv, cwd=self.folder, env=environ)

    def docker_build(self, tag: str, engine: str) -> Run:
        """What everybody does instead: copy the model onto the server."""
        return run(["docker", "build", "-q", "-t", tag, "."], cwd=self.folder, env=environment(engine))

    def forget(self, engine: Engine, *tags: str) -> None:
        """Remove images, and what the builder keeps of models, from an engine."""
        subprocess.run(["docker", "rmi", "-f", *tags], env=engine.env, check=False, capture_output=True)
        for line in engine.docker("buildx", "du").splitlines():
            fields = line.split()
            if len(fields) > 2 and _megabytes(fields[2]) > self.size_bytes / 2e6:
                prune = ["docker", "builder", "prune", "-f", "--filter", f"id={fields[0].rstrip('*')}"]
                subprocess.run(prune, env=engine.env, check=False, capture_output=True)

    def leave(self, engine: Engine) -> None:
        """Take the servers out of an engine again."""
        references = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
        ours = [name for name in references if name.split("/bench/")[0] in self.hosts and "/bench/" in name]
        subprocess.run(["docker", "rmi", "-f", *ours], env=engine.env, check=False, capture_output=True)

    def openssl(self) -> float:
        """How long OpenSSL takes to hash the model's one file."""
        return run(["openssl", "dgst", "-sha256", str(self.weights)]).seconds

    def curl(self, host: str) -> float:
        """How long curl takes to upload that file in one stream."""
        digest = run(["openssl", "dgst", "-sha256", "-r", str(self.weights)]).stdout.split()[0]
        opened = run(["curl", "-sS", "-D", "-", "-X", "POST", f"http://{host}/v2/bench/raw/blobs/uploads/"]).stdout
        (location,) = (line.split()[1] for line in opened.splitlines() if line.lower().startswith("location:"))
        url = location if "://" in location else f"http://{host}{location}"
        url += ("&" if "?" in url else "?") + f"digest=sha256:{digest}"
        return run(["curl", "-sS", "-f", "-o", "-", "-T", str(self.weights), url]).seconds


def _megabytes(shown: str) -> float:
    """A size as the builder shows it; 0 for what is too small to matter."""
    units = {"GB": 1000.0, "MB": 1.0}
    number = shown[:-2]
    return float(number) * units[shown[-2:]] if shown[-2:] in units else 0.0


def ratio(figure: str, values: Sequence[float], bar: float, note: str, *, at_least: bool = False) -> Row:
    """The median of ratios, with their spread and what they are made of."""
    spread = f"{min(values):.2f} to {max(values):.2f} ({note})"
    return Row(figure, statistics.median(values), bar, "x", spread, at_least)


def medians(**sides: Sequence[float]) -> str:
    """The times that a ratio is made of."""
    return ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in sides.items())


def real_registry(bench: Bench, base: str) -> Iterator[Row]:
    """Into docker-registry: the raw limit, mlimg, mlimg again with nothing changed, and docker."""
    engine = Engine(default_host(), "graph")
    hashed, sent, ours, again, built, pushed, peaks, moved = ([] for _ in range(8))
    with docker_registry(bench.folder) as registry:
        bench.settle(registry.host, base)
        for _ in range(bench.rounds):
            bench.train()
            hashed.append(bench.openssl())
            sent.append(bench.curl(registry.host))
            registry.empty()
            bench.mlimg(*SERVER, PUSH)
            done = bench.mlimg(*IMAGE, PUSH)
            ours.append(done.seconds)
            peaks.append(done.peak_bytes / MIB)
            before = registry.read_bytes()
            again.append(bench.mlimg(*IMAGE, PUSH).seconds)
            moved.append((registry.read_bytes() - before) / MIB)
            registry.empty()
            bench.mlimg(*SERVER, PUSH)
            tag = f"{registry.host}/bench/docker:{bench.version}"
            built.append(bench.docker_build(tag, engine.host).seconds)
            pushed.append(run(["docker", "push", "-q", tag], env=engine.env).seconds)
            bench.forget(engine, tag)
            registry.empty()
    docker = [build + push for build, push in zip(built, pushed, strict=True)]
    limits = [max(pair) for pair in zip(hashed, sent, strict=True)]
    yield ratio(
        "new version: docker build + push / mlimg", [d / m for d, m in zip(docker, ours, strict=True)], 6,
        medians(build=built, push=pushed, mlimg=ours), at_least=True,
    )  # fmt: skip
    yield ratio(
        "new version: mlimg / slower of openssl and curl", [m / raw for m, raw in zip(ours, limits, strict=True)], 1.25,
        medians(mlimg=ours, openssl=hashed, curl=sent),
    )  # fmt: skip
    yield Row("nothing changed: the second run", statistics.median(again), 1.5, "s", f"at most {max(again):.2f} s")
    yield Row("nothing changed: all the registry read", max(moved), 0.25, "MiB", "its connections and its files")
    yield Row("peak memory of the push", max(peaks), 150, "MiB", f"from {min(peaks):.0f} MiB")


def own_pace(bench: Bench, base: str) -> Iterator[Row]:
    """Into the sink: mlimg has nobody to wait for."""
    hashed, ours, peaks, counted = [], [], [], []
    with sink() as place:
        bench.settle(place.host, base)
        bench.mlimg(*SERVER, PUSH)
        for _ in range(bench.rounds):
            bench.train()
            hashed.append(bench.openssl())
            before = place.blob_bytes()
            done = bench.mlimg(*IMAGE, PUSH)
            ours.append(done.seconds)
            peaks.append(done.peak_bytes / MIB)
            counted.append(place.blob_bytes() - before - bench.size_bytes)
    assert all(0 < more < MIB for more in counted), f"the sink counted {counted} bytes more than the model has"
    yield ratio(
        "into a sink: mlimg / openssl", [m / h for m, h in zip(ours, hashed, strict=True)], 1.3,
        medians(mlimg=ours, openssl=hashed),
    )  # fmt: skip
    yield Row("peak memory of the push into a sink", max(peaks), 150, "MiB", f"from {min(peaks):.0f} MiB")


def from_load(bench: Bench, base: str) -> Iterator[Row]:
    """From `load` to `in-image`, in one registry."""
    took, moved, blobs = [], [], []
    with docker_registry(bench.folder) as registry:
        bench.settle(registry.host, base)
        for _ in range(bench.rounds):
            bench.train()
            bench.mlimg(*LOAD, PUSH)
            before = registry.read_bytes()
            took.append(bench.mlimg(*IMAGE, PUSH).seconds)
            moved.append((registry.read_bytes() - before) / MIB)
            registry.empty()
    with sink() as place:
        bench.settle(place.host, base)
        bench.train()
        bench.mlimg(*LOAD, PUSH)
        before = place.blob_bytes()
        bench.mlimg(*IMAGE, PUSH)
        blobs.append((place.blob_bytes() - before) / MIB)
    yield Row("load to in-image", statistics.median(took), 2, "s", f"at most {max(took):.2f} s")
    yield Row("load to in-image: all the registry read", max(moved), 0.25, "MiB", "its connections and its files")
    yield Row("load to in-image: blob bytes sent", max(blobs), 0.05, "MiB", "a config; counted by the sink")


def parallel(bench: Bench, base: str) -> Iterator[Row]:
    """Eight files against one, where each connection is limited."""
    one, eight = [], []
    with sink(LINK_BYTES_PER_SECOND) as place:
        bench.settle(place.host, base)
        bench.mlimg(*SERVER, PUSH)
        for _ in range(bench.rounds):
            for files, times in ((1, one), (8, eight)):
                bench.train(files=files)
                times.append(bench.mlimg(*IMAGE, PUSH).seconds)
    yield ratio(
        f"{LINK_BYTES_PER_SECOND / 1e6:.0f} MB/s a connection: one file / 8 files",
        [a / b for a, b in zip(one, eight, strict=True)], 3, medians(one=one, eight=eight), at_least=True,
    )  # fmt: skip


def into_engines(bench: Bench, base: str) -> Iterator[Row]:
    """Into the local engine, on both image stores."""
    own = Engine.at(default_host())
    yield from into_engine(bench, base, own)
    if own.store == "graph" and os.geteuid() == 0:
        name = str(os.getpid())
        host = tool("containerd-engine.sh", "start", name)
        try:
            tool("base-image.sh", *(["--local"] if base.startswith(LOCAL) else []), host=host)
            yield from into_engine(bench, base, Engine(host, "containerd"))
        finally:
            tool("containerd-engine.sh", "stop", name)


def into_engine(bench: Bench, base: str, engine: Engine) -> Iterator[Row]:
    """Append to the server there, hashing included, against a build that copies the model onto it."""
    ours, theirs = [], []
    bench.settle(LOCAL, base)
    bench.train(size_bytes=MIB)
    bench.mlimg(*IMAGE, engine=engine.host)  # builds the server, and looks once at what the engine has of it
    for _ in range(bench.append_rounds):
        tag = f"{LOCAL}/bench/docker:{bench.version}"
        bench.train()
        os.sync()  # nobody pays for what another has written
        theirs.append(bench.docker_build(tag, engine.host).seconds)
        bench.forget(engine, tag)
        bench.train()
        os.sync()
        ours.append(bench.mlimg(*IMAGE, engine=engine.host).seconds)
        bench.forget(engine, *(f"{LOCAL}/bench/app:{bench.version}{server}" for server in ("", "-1.0")))
    yield ratio(
        f"into the engine, {engine.store} store: mlimg / docker build",
        [m / d for m, d in zip(ours, theirs, strict=True)],
        1.2 if engine.store == "graph" else 0.5, medians(mlimg=ours, docker=theirs),
    )  # fmt: skip


FIGURES = {
    "registry": real_registry,
    "sink": own_pace,
    "load": from_load,
    "files": parallel,
    "engine": into_engines,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size-mib", type=int, default=2048, help="of the model; eight files are eight layers from 512 on"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append-rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(FIGURES), help=f"of {', '.join(FIGURES)}")
    given = parser.parse_args()
    base, shared = base_image(), Path("/dev/shm")
    print(f"{given.size_mib} MiB, {given.rounds} rounds, {os.cpu_count()} cores, {platform.platform()}", flush=True)
    rows = []
    with TemporaryDirectory(prefix="mlimg-bench.", dir=shared if shared.is_dir() else None) as name:
        bench = Bench(Path(name), given.size_mib * MIB, given.rounds, given.append_rounds)
        try:
            for figure in given.only.split(","):
                for row in FIGURES[figure](bench, base):
                    rows.append(row)
                    print(f"  {row.figure}: {row.value:.2f} {row.unit}", file=sys.stderr, flush=True)
        finally:
            bench.leave(Engine.at(default_host()))
    table(rows)


if __name__ == "__main__":
    main()
