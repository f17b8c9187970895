"""Releases into a registry in memory, by a machine without an engine: what a training job does."""

import io
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from mlimg.append import Image, Layer
from mlimg.engine.docker import Engine
from mlimg.material import check, check_server
from mlimg.means import Means
from mlimg.model_layer import ModelLayer
from mlimg.plan import Platform
from mlimg.preview import preview
from mlimg.record import Release, read_record
from mlimg.release import build, build_server, make_plan
from mlimg.runtime.descriptor import OCI_LAYER, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    ConflictError,
    EngineError,
    IntegrityError,
    LimitError,
    LocalIOError,
    MlimgError,
    ModelError,
    RemoteError,
    SpecError,
)
from mlimg.runtime.oci import Access
from mlimg.runtime.oci.strategy import Strategy
from mlimg.runtime.reference import SERVER_INPUTS_LABEL
from mlimg.server import survey
from mlimg.sources.local import LocalSource
from mlimg.spec.load import LoadedSpec, Overrides, load_spec
from mlimg.spec.schema import Pattern
from tests.support.faults import Answer, Fault, FaultServer
from tests.support.published import write_project
from tests.support.registry import MemoryRegistry
from tests.support.reports import Titles
from tests.support.rounds import rounds

LAYER = b"a layer of the server" * 100


@dataclass
class Machine:
    """A machine with a project on it and no engine; a registry in memory; its log."""

    folder: Path
    registry: MemoryRegistry
    server: FaultServer

    def loaded(self, *sets: str) -> LoadedSpec:
        return load_spec(self.folder, Overrides(sets=sets))

    def means(self) -> Means:
        return Means(
            access=Access(), report=Titles(), connect=no_engine, today="2026-11-23", folder=self.folder / ".mlimg"
        )

    def build(self, *sets: str, pattern: Pattern = Pattern.IN_IMAGE, push: bool | None = True) -> Release:
        return build(self.loaded(*sets), self.means(), pattern=pattern, push=push)

    def publish_server(self, *sets: str) -> None:
        """Have a server in the registry, as an earlier job with an engine would have left it."""
        loaded = self.loaded(*sets)
        plan = make_plan(check_server(loaded), self.means(), pattern=Pattern.IN_IMAGE, push=True)
        descriptor = Descriptor(OCI_LAYER, Digest.of(LAYER), len(LAYER))
        image = Image.of(
            os="linux",
            architecture="amd64",
            variant="",
            settings={"Labels": {SERVER_INPUTS_LABEL: plan.server.inputs.text}, "User": "10001:0"},
            layers=[Layer(descriptor.digest, descriptor)],
        )
        self.registry.put(plan.server.image.repository, LAYER, image.config())
        self.registry.put_manifest(plan.server.image.repository, plan.server.version, image.manifest())

    def tags(self, repository: str) -> set[str]:
        return {name for place, name in self.registry.manifests if place == repository and ":" not in name}

    def uploads(self) -> int:
        return self.server.count("PUT|PATCH", "/blobs/uploads/")


def no_engine() -> Engine:
    raise EngineError("there is no engine on this machine")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    registry = MemoryRegistry()
    with FaultServer(registry) as server:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
        write_project(tmp_path, server.host)
        with (tmp_path / "mlimg.yaml").open("a") as spec:
            spec.write("build:\n  platform: linux/amd64\n")
        yield Machine(tmp_path, registry, server)


def test_a_published_server_gets_a_model_with_no_engine_at_hand(machine: Machine) -> None:
    machine.publish_server()
    release = machine.build()
    assert machine.tags("serving/echo") == {"1", "1-1.0"}
    assert release.image is not None
    assert release.image.how == "pushed"
    assert release.server.how == "published"
    assert not release.unpublished
    assert read_record(machine.folder) == release
    _, manifest = machine.registry.manifests[("serving/echo", "1")]
    layers = json.loads(manifest)["layers"]
    assert layers[0]["digest"] == Digest.of(LAYER).text
    assert all(("serving/echo", layer["digest"]) in machine.registry.blobs for layer in layers)


def test_the_same_release_again_moves_nothing(machine: Machine) -> None:
    machine.publish_server()
    first = machine.build()
    before = machine.server.count("PUT|POST|PATCH")
    again = machine.build()
    assert machine.server.count("PUT|POST|PATCH") == before
    assert again.image is not None
    assert first.image is not None
    assert again.image.how == "unchanged"
    assert again.image.pinned == first.image.pinned


def test_a_new_model_sends_its_own_layer_and_mounts_the_servers(machine: Machine) -> None:
    machine.publish_server()
    machine.build()
    (machine.folder / "model" / "weights.bin").write_bytes(b"better weights")
    before = machine.uploads()
    release = machine.build("model.version=2")
    assert machine.uploads() - before == 2  # the model's layer and the config
    assert machine.tags("serving/echo") == {"1", "1-1.0", "2", "2-1.0"}
    assert release.image is not None


def test_load_then_in_image_moves_no_model_bytes(machine: Machine) -> None:
    machine.publish_server()
    machine.build(pattern=Pattern.LOAD)
    before = machine.uploads()
    release = machine.build()
    assert machine.uploads() - before == 1  # the config
    assert release.image is not None
    assert release.image.moved_bytes == 0


@pytest.fixture
def large(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A model with a file in a layer of its own, all of it written some time ago."""
    monkeypatch.setattr("mlimg.pack.OWN_LAYER_BYTES", 2**20)
    (machine.folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 2**14)
    now = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: now() + 60_000_000_000)
    machine.publish_server()
    return machine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the model's files, each time that one is opened to be hashed or sent."""
    names: list[str] = []
    real = LocalSource.open

    def counted(self: LocalSource, path: PurePosixPath) -> io.FileIO:
        names.append(str(path))
        return real(self, path)

    monkeypatch.setattr(LocalSource, "open", counted)
    return names


@pytest.mark.parametrize("pattern", Pattern)
def test_a_new_model_is_read_once_and_hashed_while_it_is_sent(
    large: Machine, opened: list[str], pattern: Pattern
) -> None:
    opened.clear()
    (large.folder / "model" / "config.json").write_bytes(b"{}")
    release = large.build(pattern=pattern)
    detected = opened.index("weights.bin") + 1  # its first bytes tell the format
    assert opened[detected:].count("weights.bin") == 1
    repository = "serving/echo" if pattern is Pattern.IN_IMAGE else "models/echo"
    _, manifest = large.registry.manifests[(repository, "1")]
    layers = json.loads(manifest)["layers"]
    assert all(large.registry.blobs[(repository, layer["digest"])] for layer in layers)
    part = release.image or release.model
    assert part.moved_bytes >= 2**22

    opened.clear()
    before = large.server.count("PUT|POST|PATCH")
    again = large.build(pattern=pattern)
    assert large.server.count("PUT|POST|PATCH") == before
    assert (again.image or again.model).pinned == part.pinned
    assert opened.count("weights.bin") <= 1  # to tell its format


@pytest.mark.parametrize("first", Pattern)
def test_what_is_published_in_one_pattern_is_mounted_in_the_other(large: Machine, first: Pattern) -> None:
    """Whoever hashed it: another machine has nothing of what this one knows."""
    other = Pattern.LOAD if first is Pattern.IN_IMAGE else Pattern.IN_IMAGE
    large.build(pattern=first)
    (large.folder / ".mlimg" / "hashes.json").unlink()
    before = sum(len(request.body) for request in large.server.matching("PUT|PATCH", "/blobs/uploads/"))
    release = large.build(pattern=other)
    after = sum(len(request.body) for request in large.server.matching("PUT|PATCH", "/blobs/uploads/"))
    assert after - before < 10_000, "configs"
    assert (release.image or release.model).moved_bytes < 10_000


@pytest.mark.parametrize("pattern", Pattern)
def test_a_conflict_is_found_before_bytes_move_also_by_who_has_hashed_nothing(large: Machine, pattern: Pattern) -> None:
    """E14"""
    large.build(pattern=pattern)
    with (large.folder / "model" / "weights.bin").open("r+b") as file:
        file.write(b"other")
    (large.folder / ".mlimg" / "hashes.json").unlink()
    before = large.server.count("PUT|POST|PATCH")
    with pytest.raises(ConflictError):
        large.build(pattern=pattern)
    assert large.server.count("PUT|POST|PATCH") == before
    large.build("model.version=2", pattern=pattern)


@pytest.mark.parametrize("pattern", Pattern)
def test_a_file_that_changes_while_it_is_hashed_and_sent_is_not_published(
    large: Machine, monkeypatch: pytest.MonkeyPatch, pattern: Pattern
) -> None:
    """B2, B3"""
    path = large.folder / "model" / "weights.bin"
    real = ModelLayer.stream
    fired = threading.Event()

    def changing(self: ModelLayer, learned: dict[PurePosixPath, Digest]) -> Iterator[bytes | memoryview]:
        for number, chunk in enumerate(real(self, learned)):
            yield chunk
            if number == 2 and not fired.is_set():
                fired.set()
                with path.open("r+b") as file:
                    file.write(b"other")

    with monkeypatch.context() as patch:
        patch.setattr(ModelLayer, "stream", changing)
        with pytest.raises(ModelError, match="changed while it was read"):
            large.build(pattern=pattern)
    assert fired.is_set()
    assert not large.tags("serving/echo")
    assert not large.tags("models/echo")
    large.build(pattern=pattern)


@pytest.mark.parametrize("pattern", Pattern)
def test_e10_a_registry_that_lacks_what_it_said_it_has_gets_it_once_more(large: Machine, pattern: Pattern) -> None:
    unknown = b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
    place = "serving/echo" if pattern is Pattern.IN_IMAGE else "models/echo"
    fault = Fault("PUT", f"/{place}/manifests", answer=Answer(404, body=unknown))
    large.server.faults.append(fault)
    release = large.build(pattern=pattern)
    assert fault.fired == 1
    assert "1" in large.tags(place)
    assert (release.image or release.model).moved_bytes >= 2 * 2**22

    large.server.faults.append(Fault("PUT", f"/{place}/manifests", times=99, answer=Answer(404, body=unknown)))
    with pytest.raises(RemoteError) as caught:
        large.build("model.version=2", pattern=pattern)
    assert caught.value.status == 16
    assert "2" not in large.tags(place)


@pytest.mark.parametrize(
    ("method", "path", "lies"),
    [
        ("PUT", "/blobs/uploads/", True),
        ("GET", "/serving/echo/manifests/sha256", True),
        ("GET", "/serving/echo/manifests/1$", True),
        ("PUT", "/serving/echo/manifests/", False),  # of no use to anybody: what was stored is read back
        ("HEAD", "/blobs/", False),
    ],
)
def test_e11_a_header_with_another_digest_is_no_identity(large: Machine, method: str, path: str, lies: bool) -> None:
    def lie(answer: Answer) -> Answer:
        if answer.status >= 400:
            return answer
        return replace(answer, headers={**answer.headers, "Docker-Content-Digest": Digest.of(b"another").text})

    fault = Fault(method, path, times=99, change=lie)
    large.server.faults.append(fault)
    if lies:
        with pytest.raises(IntegrityError) as caught:
            large.build()
        assert caught.value.status == 18
    else:
        release = large.build()
        assert release.image is not None
        assert release.image.pinned.endswith(Digest.of(large.registry.manifests[("serving/echo", "1")][1]).text)
    assert fault.fired


@pytest.mark.parametrize("pattern", Pattern)
def test_a_file_that_the_registry_does_not_take_is_told_before_bytes_move(
    large: Machine, monkeypatch: pytest.MonkeyPatch, pattern: Pattern
) -> None:
    limits = SimpleNamespace(of=lambda _: Strategy(None, 2**22), chunk_refused=None, stream_refused=None)
    with monkeypatch.context() as patch:
        patch.setattr("mlimg.runtime.oci.preflight.STRATEGIES", limits)
        for act in (large.build, lambda pattern: preview(large.loaded(), large.means(), pattern=pattern, push=True)):
            with pytest.raises(LimitError, match=r"`weights\.bin` has \d+ bytes, .* takes layers of 4194304") as caught:
                act(pattern=pattern)
            assert "s3://" in caught.value.hint
        assert not large.server.count("PUT|POST|PATCH")
    large.build(pattern=pattern)


def test_a_push_that_is_not_allowed_is_told_before_anything_is_read(large: Machine, opened: list[str]) -> None:
    large.server.faults.append(Fault("POST", "/serving/echo/blobs/uploads", times=99, answer=Answer(403)))
    with pytest.raises(RemoteError, match="403"):
        large.build()
    assert opened.count("weights.bin") <= 1  # to tell its format
    assert not large.server.count("PUT|PATCH")


class Rivals:
    """Two pushers of one version with different models, whose requests a scheduler interleaves at random."""

    def __init__(self, machine: Machine, folder: Path, pattern: Pattern) -> None:
        self.machine = machine
        self.pattern = pattern
        self.folders = [folder / name for name in ("one", "other")]
        for rival in self.folders:
            (rival / "model").mkdir(parents=True)
            (rival / "model" / "weights.bin").write_bytes(rival.name.encode())
            for name in ("handler.py", "mlimg.yaml"):
                (rival / name).write_bytes((machine.folder / name).read_bytes())

    def race(self, version: int) -> list[Release | MlimgError]:
        """What became of each."""
        barrier = threading.Barrier(len(self.folders))

        def push(folder: Path) -> Release | MlimgError:
            means = Means(access=Access(), report=Titles(), connect=no_engine, folder=folder / ".mlimg")
            loaded = load_spec(folder, Overrides(sets=(f"model.version={version}",)))
            barrier.wait()
            try:
                return build(loaded, means, pattern=self.pattern, push=True)
            except MlimgError as error:
                return error

        with ThreadPoolExecutor(len(self.folders)) as threads:
            return list(threads.map(push, self.folders))


@pytest.mark.parametrize("pattern", Pattern)
def test_e13_of_two_pushers_with_different_models_at_most_one_succeeds(
    machine: Machine, tmp_path: Path, pattern: Pattern
) -> None:
    machine.publish_server()
    rivals = Rivals(machine, tmp_path / "rivals", pattern)
    place = "serving/echo" if pattern is Pattern.IN_IMAGE else "models/echo"
    chance = random.Random(13)
    machine.server.faults.append(
        Fault("GET|PUT", "manifests", times=10**6, change=lambda answer: time.sleep(chance.random() / 50) or answer)
    )
    succeeded = conflicts = 0
    for version in range(1, rounds(10) + 1):
        outcomes = rivals.race(version)
        winners = [outcome for outcome in outcomes if isinstance(outcome, Release)]
        losers = [outcome for outcome in outcomes if isinstance(outcome, MlimgError)]
        assert len(winners) <= 1
        assert all(loser.status == 19 for loser in losers), losers
        for winner in winners:
            final = Digest.of(machine.registry.manifests[(place, str(version))][1])
            assert (winner.image or winner.model).pinned.endswith(f"@{final}")
        succeeded += len(winners)
        conflicts += len(losers)
    assert conflicts
    # The twin: the same bytes are no conflict, whoever comes first.
    for folder in rivals.folders:
        (folder / "model" / "weights.bin").write_bytes(b"the same")
    both = rivals.race(1000)
    assert all(isinstance(outcome, Release) for outcome in both), both


def test_another_model_under_a_published_version_is_refused_before_bytes_move(machine: Machine) -> None:
    machine.publish_server()
    machine.build()
    (machine.folder / "model" / "weights.bin").write_bytes(b"other weights")
    before = machine.server.count("PUT|POST|PATCH")
    with pytest.raises(ConflictError, match="another model"):
        machine.build()
    with pytest.raises(ConflictError, match="another model"):
        preview(machine.loaded(), machine.means(), pattern=Pattern.IN_IMAGE, push=True)
    assert machine.server.count("PUT|POST|PATCH") == before
    machine.build("model.version=2")


def test_another_server_under_a_published_version_is_refused(machine: Machine) -> None:
    machine.publish_server()
    with pytest.raises(ConflictError, match="published with other contents") as caught:
        machine.build("server.env.THREADS=2")
    assert "raise server.version" in caught.value.hint
    machine.publish_server("server.env.THREADS=2", "server.version=1.1")
    machine.build("server.env.THREADS=2", "server.version=1.1")


def test_a_server_made_for_another_kind_of_store_is_refused_with_that_reason(machine: Machine) -> None:
    machine.publish_server()
    with pytest.raises(ConflictError) as caught:
        machine.build("model.store=s3://models/here")
    assert "model.store was no object store, and is an object store" in caught.value.message
    assert "raise server.version" in caught.value.hint
    with pytest.raises(ConflictError) as caught:  # two things differ: which, no digest tells
        machine.build("model.store=s3://models/here", "server.env.THREADS=2")
    assert "model.store" not in caught.value.message
    machine.build()
    machine.publish_server("model.store=s3://models/here")  # somebody moved the server's tag: the image's stays
    with pytest.raises(ConflictError, match=r"another server: model\.store was no object store"):
        machine.build("model.store=s3://models/here")
    machine.publish_server("model.store=s3://models/here", "server.version=2.0")
    with pytest.raises(ConflictError, match="which takes obstore in the server, and is no object store; all else"):
        machine.build("server.version=2.0")


def test_the_moving_tag_follows_the_server_and_the_fixed_one_stays(machine: Machine) -> None:
    machine.publish_server()
    machine.build()
    fixed = machine.registry.manifests[("serving/echo", "1-1.0")]
    machine.publish_server("server.version=1.1")
    machine.build("server.version=1.1")
    assert machine.registry.manifests[("serving/echo", "1-1.0")] == fixed
    assert machine.registry.manifests[("serving/echo", "1")] == machine.registry.manifests[("serving/echo", "1-1.1")]


def test_without_a_published_server_an_engine_is_asked_for(machine: Machine) -> None:
    with pytest.raises(EngineError, match="no engine"):
        machine.build()
    assert not machine.registry.manifests


def test_no_push_sends_nothing(machine: Machine) -> None:
    machine.publish_server()
    before = dict(machine.registry.manifests)
    with pytest.raises(EngineError, match="no engine"):  # the engine is where the server would go
        machine.build(pattern=Pattern.LOAD, push=False)
    assert machine.registry.manifests == before
    assert not machine.server.count("PUT|POST|PATCH")


def test_a_preview_says_what_a_push_would_upload_and_where(machine: Machine) -> None:
    machine.publish_server()
    shown = preview(machine.loaded(), machine.means(), pattern=Pattern.IN_IMAGE, push=True)
    actions = {effect.action: effect for effect in shown.effects}
    assert actions["reuse"].what.endswith("serving/echo-server:1.0")
    assert actions["upload"].size_bytes == actions["pack"].size_bytes
    assert shown.repositories == (f"{machine.server.host}/serving/echo",)  # the server is published already
    assert not machine.server.count("PUT|PATCH")
    assert not machine.registry.sessions, "what was opened to see that a push is allowed is given up"
    machine.build()
    shown = preview(machine.loaded(), machine.means(), pattern=Pattern.IN_IMAGE, push=True)
    assert {effect.action for effect in shown.effects} == {"reuse", "pack"}
    assert shown.repositories == ()


def test_a_preview_refuses_another_model_under_a_published_version(machine: Machine) -> None:
    machine.publish_server()
    machine.build(pattern=Pattern.LOAD)
    shown = preview(machine.loaded(), machine.means(), pattern=Pattern.LOAD, push=True)  # the twin
    assert [effect.action for effect in shown.effects] == ["reuse", "pack", "reuse"]
    assert shown.repositories == ()
    (machine.folder / "model" / "weights.bin").write_bytes(b"weightt")
    with pytest.raises(ConflictError, match="published with other content"):
        preview(machine.loaded(), machine.means(), pattern=Pattern.LOAD, push=True)


def test_a_preview_says_when_only_a_tag_would_move(machine: Machine) -> None:
    machine.publish_server()
    machine.build()
    repository = machine.tags("serving/echo")
    assert repository == {"1", "1-1.0"}
    older = machine.registry.manifests["serving/echo", "1-1.0"]
    other = json.loads(older[1]) | {"annotations": {"org.opencontainers.image.title": "older"}}
    machine.registry.put_manifest("serving/echo", "1", json.dumps(other).encode())
    shown = preview(machine.loaded(), machine.means(), pattern=Pattern.IN_IMAGE, push=True)
    assert [effect.action for effect in shown.effects] == ["reuse", "pack", "tag"]
    assert shown.repositories == (f"{machine.server.host}/serving/echo",)


def test_a_failure_tells_what_was_published_before_it(machine: Machine) -> None:
    machine.publish_server()
    blocked = machine.folder / ".mlimg" / "release.json"
    blocked.mkdir(parents=True)  # where the record would go
    with pytest.raises(LocalIOError) as failed:
        machine.build()
    [image] = failed.value.published
    assert image.startswith(f"{machine.server.host}/serving/echo:1@sha256:")
    assert machine.tags("serving/echo") == {"1", "1-1.0"}  # it is
    with pytest.raises(LocalIOError) as again:
        machine.build()
    assert again.value.published == ()  # by the run before
    blocked.rmdir()
    machine.build()


def test_a_failure_before_anything_left_tells_nothing(machine: Machine) -> None:
    machine.publish_server()
    machine.server.faults.append(Fault("PUT", "/serving/echo/manifests", times=100, answer=Answer(403)))
    with pytest.raises(MlimgError) as failed:
        machine.build()
    assert failed.value.published == ()


def unwritten(machine: Machine) -> None:
    """Let the spec say nothing of the platform."""
    text = (machine.folder / "mlimg.yaml").read_text()
    (machine.folder / "mlimg.yaml").write_text(text.partition("build:")[0])


def test_pushing_from_a_foreign_platform_needs_it_written(machine: Machine) -> None:
    unwritten(machine)
    means = machine.means()
    plan = make_plan(check(machine.loaded()), means, pattern=Pattern.IN_IMAGE, push=True)
    assert str(plan.server.platform) == "linux/amd64"
    vars(means)["engine"] = SimpleNamespace(platform=Platform("linux", "arm64"))
    with pytest.raises(SpecError, match=r"build\.platform is not written, and this engine builds linux/arm64"):
        survey(plan, means, push=True)
    here = make_plan(check(machine.loaded()), means, pattern=Pattern.IN_IMAGE, push=False)
    assert str(here.server.platform) == "linux/arm64"


def test_a_published_server_needs_neither_an_engine_nor_a_written_platform(machine: Machine) -> None:
    unwritten(machine)
    machine.publish_server()
    assert machine.build().image is not None
    assert machine.build(pattern=Pattern.LOAD).server.how == "published"


def test_the_server_alone_needs_no_model(machine: Machine) -> None:
    (machine.folder / "model" / "weights.bin").unlink()
    (machine.folder / "model").rmdir()
    machine.publish_server()
    before = machine.server.count("PUT|POST|PATCH")
    server = build_server(machine.loaded(), machine.means(), push=True)
    assert server.published
    assert server.pinned.startswith(f"{machine.server.host}/serving/echo-server:1.0@sha256:")
    assert machine.server.count("PUT|POST|PATCH") == before
    assert not (machine.folder / ".mlimg").exists(), "it is no release"
    with pytest.raises(ModelError, match="does not exist"):
        machine.build()
    with pytest.raises(ConflictError, match=r"published with other contents"):
        build_server(machine.loaded("server.env.THREADS=2"), machine.means(), push=True)


def test_a_model_that_cannot_leave_is_no_release_to_push(machine: Machine) -> None:
    machine.publish_server()
    with pytest.raises(SpecError, match="names neither registry nor object store"):
        machine.build("model.store=./models", pattern=Pattern.LOAD)
