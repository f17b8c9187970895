"""One suite over every kind of store: a folder, docker-registry, S3 (OpenStack Swift) and Azure (Azurite).

Bars: E14 and F1 to F12. What a store keeps is judged by its own interface, what moves by the proxy in front of it.
"""

import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mlimg.cli.main import run
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import (
    ConflictError,
    CredentialsError,
    IntegrityError,
    LimitError,
    MlimgError,
    ModelError,
    RemoteError,
    RemoteTemporaryError,
)
from mlimg.runtime.fetch import FetchedModel, fetch
from mlimg.runtime.oci import Access
from mlimg.runtime.reference import ModelUri, ObjectPlace
from mlimg.runtime.stores import open_store
from mlimg.runtime.stores.objects import Bucket
from mlimg.runtime.verify import read_manifest, verify_folder
from mlimg.verify import Verified, verify_image, verify_objects, verify_version
from tests.support.azurite import Azurite
from tests.support.faults import Answer, Fault, Request, flip
from tests.support.payloads import payload
from tests.support.reports import Titles
from tests.support.rounds import rounds
from tests.support.stores import (
    Place,
    azurite_place,
    docker_registry,
    folder_place,
    registry_place,
    swift_place,
)
from tests.support.swift import Swift

# Large enough for several parts; none of it repeats, so that damage is found where it is made.
WEIGHTS = b"".join(number.to_bytes(8, "big") for number in range(2_400_000))
FILES = {
    "weights.bin": WEIGHTS,
    "labels with blanks, ü and %41+&=.txt": "Größe\n".encode(),
    "vocabulary/words.txt": b"one two three",
    "empty": b"",
}
OTHER = {**FILES, "vocabulary/words.txt": b"one two four!"}
OBJECTS = ("s3", "azure")
Opener = Callable[[], Place]


@pytest.fixture(scope="module")
def registry_host(memory_folder: Path) -> Iterator[tuple[str, Path]]:
    folder = memory_folder / "registry"
    folder.mkdir()
    with docker_registry(folder) as host:
        yield host, folder / "data"


def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Place]:
    prefix = f"tests/{folder.name.lower()}"  # pytest's own name for this very test
    if kind == "folder":
        yield folder_place(folder / "store")
    elif kind == "registry":
        host, data = request.getfixturevalue("registry_host")
        with registry_place(host, data, prefix) as place:
            yield place
    elif kind == "s3":
        with swift_place(request.getfixturevalue("swift"), prefix) as place:
            yield place
    else:
        with azurite_place(request.getfixturevalue("azurite"), prefix) as place:
            yield place


@pytest.fixture(params=["folder", "registry", "s3", "azure"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each kind of store in turn, empty."""
    yield from opened(request.param, request, tmp_path)


@pytest.fixture(params=OBJECTS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each object store in turn, with an empty prefix."""
    yield from opened(request.param, request, tmp_path)


def keys(place: Place) -> dict[str, int]:
    """The objects below the prefix, by the store's own listing."""
    assert isinstance(place.kept, Swift | Azurite)
    prefix = ObjectPlace.parse(place.text).prefix
    return {
        str(PurePosixPath(key).relative_to(prefix)): size
        for key, size in place.kept.keys().items()
        if key.startswith(f"{prefix}/")
    }


def brought(place: Place, uri: ModelUri, folder: Path) -> dict[str, bytes]:
    """The files of a published model on this machine, fetched and verified."""
    if uri.scheme == "file":
        where = Path(uri.path())
        found = read_manifest(where)
        assert found is not None
        verify_folder(where, found[0], "digests")
    else:
        where = fetched(place, uri, folder).folder
    contents = {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()}
    return {name: data for name, data in contents.items() if name not in {"mlimg.manifest", ".claim"}}


def fetched(place: Place, uri: ModelUri, folder: Path) -> FetchedModel:
    stop = threading.Event()
    return fetch(uri, [folder], access=place.access, progress=lambda _: None, stop=stop, patience_seconds=2)


def test_a_model_is_published_found_and_fetched(place: Place, tmp_path: Path) -> None:
    store = place.open()
    assert store.published("digits", "3") is None
    moved: list[int] = []
    stored = store.publish(payload(FILES), on_bytes=moved.append)
    assert not stored.existed
    assert stored.moved_bytes + stored.reused_bytes >= len(WEIGHTS)
    found = place.open().published("digits", "3")
    assert found is not None
    assert found.manifest == payload(FILES).manifest
    assert found.uri == stored.uri
    assert brought(place, stored.uri, tmp_path / "pinned") == FILES
    if place.kind != "folder":
        # A URI as a deployment may have it, with the version alone.
        unpinned = replace(stored.uri, digest=None)
        assert brought(place, unpinned, tmp_path / "unpinned") == FILES


def test_e14_the_same_again_moves_nothing(place: Place) -> None:
    first = place.open().publish(payload(FILES))
    before = place.sent_bytes() if place.proxy else 0
    again = place.open().publish(payload(FILES))
    assert again.existed
    assert (again.uri, again.moved_bytes) == (first.uri, 0)
    if place.proxy:
        assert place.sent_bytes() == before


def test_e14_other_content_is_a_conflict_and_nothing_changes(place: Place, tmp_path: Path) -> None:
    stored = place.open().publish(payload(FILES))
    with pytest.raises(ConflictError, match="published with other content"):
        place.open().publish(payload(OTHER))
    assert brought(place, stored.uri, tmp_path / "model") == FILES
    assert not place.open().publish(payload(OTHER, version="4")).existed  # the twin


def publish_slowly(text: str, environ: Mapping[str, str], mark: Path) -> None:
    """Publish, and never come to the end of the last file that is opened."""
    model = payload(FILES)

    def dawdle(path: PurePosixPath) -> io.BytesIO:
        if path.name == "words.txt" or not FILES[str(path)]:
            mark.touch()
            time.sleep(60)
        return io.BytesIO(FILES[str(path)])

    # One at a time, so that the large file is there when the process dies.
    slow = replace(model, open=dawdle, layers=tuple(_Dawdling(layer, mark) for layer in model.layers))
    open_store(text, Access(environ=environ)).publish(slow)


class _Dawdling:
    """A layer that stops in the middle."""

    def __init__(self, layer: Any, mark: Path) -> None:
        self._layer = layer
        self._mark = mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def chunks(self) -> Iterator[bytes]:
        for number, chunk in enumerate(self._layer.chunks()):
            if number == 2:
                self._mark.touch()
                time.sleep(60)
            yield bytes(chunk)


def test_f2_a_publisher_that_is_killed_is_finished_by_the_next(place: Place, tmp_path: Path) -> None:
    """F7: the weights are sent in parts, so that their ETag is no checksum; they are known all the same."""
    mark = tmp_path / "half way"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=publish_slowly, args=(place.text, dict(place.environ), mark))
    process.start()
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if place.kind in OBJECTS:
        while "digits/3/weights.bin" not in keys(place):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert place.open().published("digits", "3") is None
    if place.kind in OBJECTS:
        with pytest.raises(RemoteError, match="not published"):
            fetched(place, ModelUri.parse(f"{place.text}/digits/3"), tmp_path / "early")
    stored = place.open().publish(payload(FILES))
    assert not stored.existed
    assert brought(place, stored.uri, tmp_path / "model") == FILES
    if place.kind in OBJECTS:
        assert stored.moved_bytes < 100  # the weights had been sent
        assert keys(place) == {
            **{f"digits/3/{name}": len(data) for name, data in FILES.items()},
            "digits/3/.claim": 72,
            "digits/3/mlimg.manifest": len(payload(FILES).manifest.to_bytes()),
        }


@pytest.fixture(params=["folder", "s3", "azure"])
def creating(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The stores that create atomically. A registry moves tags: `test_release_push` has its races."""
    yield from opened(request.param, request, tmp_path)


def test_f5_of_two_writers_of_different_models_one_wins_whole(creating: Place, tmp_path: Path) -> None:
    small = {name: data for name, data in FILES.items() if data != WEIGHTS}
    models = {"one": {**small, "x": b"one"}, "two": {**small, "x": b"two"}}
    start = threading.Barrier(2)

    def publish(files: Mapping[str, bytes], version: str) -> str:
        model = payload(files, version=version)
        start.wait()
        try:
            creating.open().publish(model)
        except ConflictError:
            return "conflict"
        return "published"

    for number in range(rounds(5)):
        with ThreadPoolExecutor(2) as writers:
            ends = [writers.submit(publish, files, str(number)) for files in models.values()]
        results = [end.result() for end in ends]
        assert sorted(results) == ["conflict", "published"]
        found = creating.open().published("digits", str(number))
        assert found is not None
        winner = list(models.values())[results.index("published")]
        assert brought(creating, found.uri, tmp_path / str(number)) == winner


def test_two_writers_of_one_model_both_succeed(creating: Place, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as writers:
        ends = [writers.submit(lambda: creating.open().publish(payload(FILES))) for _ in range(2)]
    uris = {end.result().uri for end in ends}
    assert len(uris) == 1
    assert brought(creating, uris.pop(), tmp_path / "model") == FILES


def abandon(place: Place, files: Mapping[str, bytes]) -> None:
    """Publish as far as the last file that is opened, and leave it at that."""

    def end(path: PurePosixPath) -> io.BytesIO:
        if path.name == "words.txt":
            raise ModelError("the end of this run")
        return io.BytesIO(files[str(path)])

    with pytest.raises(ModelError, match="end of this run"):
        place.open().publish(replace(payload(files), open=end))


def test_f2_an_abandoned_claim_of_another_model_gives_way_to_force_alone(creating: Place, tmp_path: Path) -> None:
    abandon(creating, {**OTHER, "leftover.bin": b"of the other"})
    with pytest.raises(ConflictError, match="never finished") as caught:
        creating.open().publish(payload(FILES))
    assert "--force" in caught.value.hint
    stored = open_store(creating.text, creating.access, force=True).publish(payload(FILES))
    assert not stored.existed
    assert brought(creating, stored.uri, tmp_path / "model") == FILES
    if creating.kind != "folder":
        assert sorted(keys(creating)) == sorted(f"digits/3/{name}" for name in (*FILES, ".claim", "mlimg.manifest"))
    with pytest.raises(ConflictError, match="published with other content"):  # one manifest away
        open_store(creating.text, creating.access, force=True).publish(payload(OTHER))
    assert brought(creating, stored.uri, tmp_path / "again") == FILES


@pytest.mark.parametrize("stays", ["words.txt", "weights.bin"])
def test_f5_who_lost_a_claim_to_force_neither_publishes_nor_alters_what_was(
    objects: Place, tmp_path: Path, stays: str
) -> None:
    """`stays` is what the first is about to send when it is taken for dead: in one part, or in several."""
    waits, goes_on = threading.Event(), threading.Event()

    def dawdle(path: PurePosixPath) -> io.BytesIO:
        if path.name == stays:
            waits.set()
            assert goes_on.wait(60)
        return io.BytesIO(FILES[str(path)])

    other = {**FILES, "weights.bin": WEIGHTS[::-1], "vocabulary/words.txt": b"one two four!"}
    with ThreadPoolExecutor(1) as writers:
        first = writers.submit(objects.open().publish, replace(payload(FILES), open=dawdle))
        assert waits.wait(60)
        try:
            stored = open_store(objects.text, objects.access, force=True).publish(payload(other))
        finally:
            goes_on.set()
        with pytest.raises(ConflictError):
            first.result()
    assert brought(objects, stored.uri, tmp_path / "model") == other


def test_f5_a_manifest_that_comes_while_its_claim_is_taken_over_is_not_lost_with_it(
    objects: Place, tmp_path: Path
) -> None:
    """The other ends just before its claim is taken from it: then it stays, whole."""
    assert objects.proxy is not None
    abandon(objects, {**OTHER, "leftover.bin": b"of the other"})
    forward, finished = objects.proxy.backend, []

    def finish_after(request: Request) -> Answer:
        answer = forward(request)
        if request.method == "GET" and request.path.partition("?")[0].endswith("/.claim") and not finished:
            finished.append(request.path)
            objects.open().publish(payload({**OTHER, "leftover.bin": b"of the other"}))
        return answer

    objects.proxy.backend = finish_after
    with pytest.raises(ConflictError, match="finished by the other"):
        open_store(objects.text, objects.access, force=True).publish(payload(FILES))
    assert len(finished) == 1
    found = objects.open().published("digits", "3")
    assert found is not None
    assert brought(objects, found.uri, tmp_path / "model") == {**OTHER, "leftover.bin": b"of the other"}


def test_f5_a_manifest_whose_claim_is_gone_once_it_is_there_is_taken_back(objects: Place) -> None:
    assert objects.proxy is not None
    assert isinstance(objects.kept, Swift | Azurite)
    forward, taken = objects.proxy.backend, []
    claim = f"{ObjectPlace.parse(objects.text).prefix}/digits/3/.claim"

    def take_after(request: Request) -> Answer:
        answer = forward(request)
        if request.method == "PUT" and request.path.partition("?")[0].endswith("/mlimg.manifest") and not taken:
            taken.append(request.path)
            objects.kept.put(claim, b"somebody else's")  # type: ignore[attr-defined]
        return answer

    objects.proxy.backend = take_after
    with pytest.raises(ConflictError, match="somebody removed or replaced"):
        objects.open().publish(payload(FILES))
    assert len(taken) == 1
    assert objects.open().published("digits", "3") is None


def test_f8_what_rots_at_rest_is_never_used(place: Place, tmp_path: Path) -> None:
    weights = f"weights of {place.text}".encode() * 1000
    stored = place.open().publish(payload({"weights.bin": weights, "x": b"1"}))
    assert place.kept.damage(weights) == 1
    with pytest.raises(MlimgError) as caught:
        brought(place, stored.uri, tmp_path / "model")
    # Swift finds the damage too, while it sends the object, and hides it from then on.
    assert isinstance(caught.value, IntegrityError) or (place.kind == "s3" and isinstance(caught.value, RemoteError))
    assert not list((tmp_path / "model").rglob("weights.bin"))


def test_inspect_shows_the_model_in_each_kind_of_store(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    packed = payload(FILES)
    stored = place.open().publish(packed)
    pinned = str(stored.uri)
    for named in (pinned, pinned.partition("@")[0]):
        assert run(["inspect", named, "--json"]) == 0
        shown = json.loads(capfd.readouterr().out)
        assert shown["digests"] == [pinned.removeprefix("oci://")]
        assert shown["model"]["manifest_digest"] == Digest.of(packed.manifest.to_bytes()).text
        assert (shown["model"]["files"], shown["model"]["size_bytes"]) == (4, packed.manifest.size_bytes)
    assert run(["inspect", pinned.partition("@")[0].removesuffix("3") + "4"]) in {12, 16}
    assert capfd.readouterr().out == ""


def test_e27_verify_reads_what_a_store_has_and_names_what_rotted_or_is_lost(place: Place) -> None:
    """F8: found before anybody fetches it."""
    weights = f"weights of {place.text}".encode() * 1000
    stored = place.open().publish(payload({"weights.bin": weights, "words.txt": b"one two three", "empty": b""}))

    def verify() -> Verified:
        if place.kind == "folder":
            return verify_version(Path(stored.uri.path()), Titles(), digest=stored.uri.digest)
        if place.kind == "registry":
            return verify_image(stored.uri.image(), place.access, Titles())
        return verify_objects(stored.uri, place.access, Titles())

    found = verify()
    assert found.reference.endswith(str(stored.uri).partition("://")[2])
    assert found.size_bytes >= len(weights)
    assert place.kept.damage(weights) == 1
    with pytest.raises(IntegrityError) as caught:
        verify()
    if place.kind != "registry":  # which knows no files
        assert "weights.bin" in caught.value.message
        assert "words.txt" not in caught.value.message
    if isinstance(place.kept, Swift | Azurite):
        place.kept.delete(f"{ObjectPlace.parse(place.text).prefix}/digits/3/words.txt")
        with pytest.raises(IntegrityError, match=r"2 of 3 damaged or lost: .*words\.txt"):
            verify()


def test_f4_files_without_their_manifest_are_no_model(objects: Place, tmp_path: Path) -> None:
    stored = objects.open().publish(payload(FILES))
    assert isinstance(objects.kept, Swift | Azurite)
    prefix = ObjectPlace.parse(objects.text).prefix
    objects.kept.delete(f"{prefix}/digits/3/mlimg.manifest")
    for uri in (stored.uri, replace(stored.uri, digest=None)):
        with pytest.raises(RemoteError, match="not published"):
            fetched(objects, uri, tmp_path / "model")
    assert not objects.open().publish(payload(FILES)).existed
    assert brought(objects, stored.uri, tmp_path / "model") == FILES


def test_f9_only_what_the_manifest_names_is_fetched(objects: Place, tmp_path: Path) -> None:
    stored = objects.open().publish(payload(FILES))
    assert isinstance(objects.kept, Swift | Azurite)
    prefix = f"{ObjectPlace.parse(objects.text).prefix}/digits/3"
    hostile = ["extra.pkl", "vocabulary/words.txt.bak", "-option"]
    if objects.kind == "s3":
        hostile += ["a/../../x", "//x", "new\nline", "k" * 900]
    for name in hostile:
        objects.kept.put(f"{prefix}/{name}", b"evil")
    assert brought(objects, stored.uri, tmp_path / "model") == FILES
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]
    if objects.kind == "s3":
        with pytest.raises(RemoteError, match=r"empty, `\.` or `\.\.` part"):
            list(Bucket.open(objects.text, objects.access).list())


def test_f9_a_manifest_with_hostile_paths_is_refused(objects: Place, tmp_path: Path) -> None:
    objects.open().publish(payload({"model.bin": b"1"}))
    assert isinstance(objects.kept, Swift | Azurite)
    key = f"{ObjectPlace.parse(objects.text).prefix}/digits/3/mlimg.manifest"
    data = objects.kept.read(key)
    uri = ModelUri.parse(f"{objects.text}/digits/3")
    for path in (b"../../x", b"/etc/x", b"a//b", b"a\\u000ab"):
        objects.kept.put(key, data.replace(b"model.bin", path))
        with pytest.raises(IntegrityError):
            fetched(objects, uri, tmp_path / "model")
    objects.kept.put(key, data)
    assert brought(objects, uri, tmp_path / "model") == {"model.bin": b"1"}


def test_f9_a_key_is_at_most_1024_bytes(objects: Place) -> None:
    prefix = len(f"{ObjectPlace.parse(objects.text).prefix}/digits/3/")
    names = ["/".join(["d" * 200] * 4 + ["f" * (size - prefix - 4 * 201)]) for size in (1024, 1025)]
    with pytest.raises(LimitError, match="1025 bytes"):
        objects.open().publish(payload({names[1]: b"1"}))
    assert keys(objects) == {}
    objects.open().publish(payload({names[0]: b"1"}))


@pytest.fixture
def s3(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Swift, with an empty prefix."""
    yield from opened("s3", request, tmp_path)


@pytest.mark.parametrize("size", [8 * 2**20, 8 * 2**20 + 1])
def test_f8_a_byte_that_flips_on_its_way_up_is_refused_by_s3(s3: Place, size: int) -> None:
    objects = s3  # obstore's clients of Azure and Google send no checksums: there TLS has to do
    assert objects.proxy is not None
    forward, flipped = objects.proxy.backend, []

    def flip_first(request: Request) -> Answer:
        if request.method == "PUT" and "weights.bin" in request.path and not flipped:
            flipped.append(request.path)
            return forward(replace(request, body=bytes([request.body[0] ^ 1]) + request.body[1:]))
        return forward(request)

    objects.proxy.backend = flip_first
    with pytest.raises(RemoteError, match=r"BadDigest|XAmzContentSHA256Mismatch"):
        objects.open().publish(payload({"weights.bin": WEIGHTS[:size]}))
    assert len(flipped) == 1
    assert "digits/3/mlimg.manifest" not in keys(objects)
    assert not objects.open().publish(payload({"weights.bin": WEIGHTS[:size]})).existed


def publish_half(text: str, environ: Mapping[str, str]) -> None:
    """Publish, and stop for good when two parts of the large file have been read."""
    model = payload(FILES)

    class Half(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 17 * 2**20:
                time.sleep(60)
            return super().read(size)

    half = replace(model, open=lambda path: Half(FILES[str(path)]))
    open_store(text, Access(environ=environ)).publish(half)


def parts_of(place: Place) -> set[str]:
    assert isinstance(place.kept, Swift)
    prefix = f"{ObjectPlace.parse(place.text).prefix}/"
    return {name for name in place.kept.parts() if name.startswith(prefix)}


def test_f2_parts_that_a_killed_publisher_left_are_gone_once_the_version_is_there(s3: Place, tmp_path: Path) -> None:
    assert s3.proxy is not None
    process = multiprocessing.get_context("spawn").Process(target=publish_half, args=(s3.text, dict(s3.environ)))
    process.start()
    deadline = time.monotonic() + 60
    while not any("weights.bin" in name and "/2" in name[-3:] for name in parts_of(s3)):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    left = parts_of(s3)
    # Another version is another's business, whoever is at it.
    other = Bucket.open(f"{s3.text}/digits/33", s3.access)
    other.put_small_new(PurePosixPath("weights.bin"), b"x")
    stored = s3.open().publish(payload(FILES))
    assert not stored.existed
    assert left
    assert not left & parts_of(s3)
    assert brought(s3, stored.uri, tmp_path / "model") == FILES
    assert s3.proxy.count("DELETE", "uploadId=") == 1


def test_f2_a_store_that_aborts_no_uploads_publishes_all_the_same(s3: Place) -> None:
    assert s3.proxy is not None
    denied = Fault("GET", r"\?uploads=", answer=Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>"))
    s3.proxy.faults = [denied]
    assert not s3.open().publish(payload()).existed
    assert denied.fired == 1
    assert s3.open().publish(payload()).existed


PART = {"s3": "partNumber=2", "azure": "comp=block&"}
DONE = {"s3": ("POST", "uploadId="), "azure": ("PUT", "comp=blocklist")}
BREAKS = {
    "busy": {"answer": Answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")},
    "broken": {"answer": Answer(500)},
    "cut": {"cut_request_at": 1000},
    "lost": {"lose_answer": True},
}


@pytest.mark.parametrize("fault", BREAKS)
def test_f1_a_part_that_fails_is_sent_again_and_no_other(objects: Place, fault: str, tmp_path: Path) -> None:
    assert objects.proxy is not None
    objects.proxy.faults = [broken := Fault("PUT", path=PART[objects.kind], **BREAKS[fault])]
    stored = objects.open().publish(payload(FILES))
    assert broken.fired == 1
    assert objects.sent_bytes() < len(WEIGHTS) + 8 * 2**20 + 20_000
    assert brought(objects, stored.uri, tmp_path / "model") == FILES


def test_f3_an_answer_that_is_lost_loses_nothing(objects: Place, tmp_path: Path) -> None:
    assert objects.proxy is not None
    for number, (method, path) in enumerate(
        [("PUT", r"\.claim"), DONE[objects.kind], ("PUT", "words.txt"), ("PUT", "mlimg.manifest")]
    ):
        objects.proxy.faults = [lost := Fault(method, path=path, lose_answer=True)]
        stored = objects.open().publish(payload(FILES, version=str(number)))
        assert lost.fired == 1
        assert brought(objects, stored.uri, tmp_path / str(number)) == FILES
    # Once more with a client that does not try again by itself: what is there is looked at.
    objects.proxy.faults = [lost := Fault("PUT", path="words.txt", lose_answer=True)]
    impatient = replace(objects.access, attempts=1)
    stored = open_store(objects.text, impatient).publish(payload(FILES, version="impatient"))
    assert lost.fired == 1
    assert brought(objects, stored.uri, tmp_path / "impatient") == FILES


def test_f2_a_publisher_that_loses_its_store_at_any_request_is_finished_by_the_next(
    objects: Place, tmp_path: Path
) -> None:
    assert objects.proxy is not None
    files = {**FILES, "weights.bin": WEIGHTS[: 9 * 2**20]}
    impatient = replace(objects.access, attempts=1)
    for number in range(100):
        store = open_store(objects.text, impatient)
        objects.proxy.faults = [gone := Fault(skip=number, times=10**6, cut_request_at=0)]
        finished = False
        try:
            store.publish(payload(files, version=str(number)))
            finished = True
        except RemoteTemporaryError:
            assert gone.fired
        objects.proxy.faults = []
        manifest = f"digits/{number}/mlimg.manifest" in keys(objects)
        assert manifest or not finished
        stored = store.publish(payload(files, version=str(number)))
        assert stored.existed == manifest
        if finished:
            break
    assert number > 10  # requests of one release, at each of which the store was gone
    assert brought(objects, stored.uri, tmp_path / "model") == files
    names = [*files, ".claim", "mlimg.manifest"]
    assert sorted(keys(objects)) == sorted(f"digits/{n}/{name}" for n in range(number + 1) for name in names)


@pytest.mark.parametrize("times", [1, 2])
def test_f5_a_conflict_with_a_writer_that_gave_up_is_tried_once_more(objects: Place, times: int) -> None:
    assert objects.proxy is not None
    said = Answer(409, {}, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
    objects.proxy.faults = [fault := Fault("PUT", path=r"\.claim", times=times, answer=said)]
    if times == 1:
        assert not objects.open().publish(payload(FILES)).existed
    else:
        with pytest.raises(ConflictError):
            objects.open().publish(payload(FILES))
        assert keys(objects) == {}
    assert fault.fired == times


def test_f6_a_store_that_ignores_preconditions_is_refused(objects: Place) -> None:
    assert objects.proxy is not None
    forward, ignored = objects.proxy.backend, []

    def ignore_preconditions(request: Request) -> Answer:
        answer = forward(request)
        if request.method == "PUT" and answer.status in {409, 412}:
            ignored.append(request.path)
            return Answer(201 if objects.kind == "azure" else 200, {"ETag": '"0"'})
        return answer

    objects.proxy.backend = ignore_preconditions
    with pytest.raises(RemoteError, match="ignores `If-None-Match`"):
        objects.open().publish(payload(FILES))
    assert ignored
    assert keys(objects) == {}
    objects.proxy.backend = forward  # the twin
    assert not objects.open().publish(payload(FILES)).existed


def test_f8_a_byte_that_flips_on_its_way_down_is_noticed(objects: Place, tmp_path: Path) -> None:
    stored = objects.open().publish(payload(FILES))
    assert objects.proxy is not None
    for name in ("weights.bin", "mlimg.manifest"):
        objects.proxy.faults = [flipped := Fault("GET", path=name, times=10**6, change=lambda answer: flip(answer, 40))]
        with pytest.raises(IntegrityError):
            fetched(objects, stored.uri, tmp_path / name)
        assert flipped.fired
        objects.proxy.faults = []
        assert brought(objects, stored.uri, tmp_path / name) == FILES


def test_f10_credentials_that_expire_midway_are_told_and_the_next_run_goes_on(objects: Place) -> None:
    assert objects.proxy is not None
    expired = Answer(403, {}, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>")
    objects.proxy.faults = [fault := Fault("PUT", path="words.txt", times=10**6, answer=expired)]
    with pytest.raises(CredentialsError, match="ExpiredToken") as caught:
        objects.open().publish(payload({"vocabulary/words.txt": b"one", "a": b"1"}))
    assert "expired" in caught.value.hint
    assert fault.fired == 1  # asking again with the same token would be of no use
    objects.proxy.faults = []
    assert not objects.open().publish(payload({"vocabulary/words.txt": b"one", "a": b"1"})).existed


def test_f10_credentials_that_are_wrong_are_15_and_a_missing_bucket_is_16(objects: Place) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong", "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    refused = open_store(objects.text, Access(environ={**objects.environ, **wrong}, attempts=1))
    with pytest.raises(CredentialsError):
        refused.published("digits", "3")
    with pytest.raises(CredentialsError):
        refused.publish(payload(FILES))
    elsewhere = open_store(objects.text.replace("models", "nonesuch", 1), objects.access)
    for ask in (lambda: elsewhere.published("digits", "3"), lambda: elsewhere.publish(payload(FILES))):
        with pytest.raises(RemoteError, match=r"NoSuchBucket|ContainerNotFound"):
            ask()


def test_a_file_that_changed_since_it_was_packed_is_not_published(objects: Place) -> None:
    changed = replace(payload(FILES), open=lambda path: io.BytesIO(FILES[str(path)][:-1] + b"?"))
    with pytest.raises(ModelError, match="changed"):
        objects.open().publish(changed)
    assert "digits/3/mlimg.manifest" not in keys(objects)
    assert "digits/3/weights.bin" not in keys(objects)
    assert not objects.open().publish(payload(FILES)).existed  # the twin


def test_a_program_is_a_program_again(objects: Place, tmp_path: Path) -> None:
    for name, mode in (("run", 0o755), ("data", 0o644)):
        (tmp_path / name).write_bytes(b"#!/bin/sh\n" + name.encode())
        (tmp_path / name).chmod(mode)
    files = {name: (tmp_path / name).read_bytes() for name in ("run", "data")}
    model = replace(payload(files), open=lambda path: (tmp_path / path).open("rb", buffering=0))
    where = fetched(objects, objects.open().publish(model).uri, tmp_path / "model").folder
    assert {name: (where / name).stat().st_mode & 0o777 for name in files} == {"run": 0o755, "data": 0o644}


def test_a_signature_is_enough_for_azure(azurite: Azurite, tmp_path: Path) -> None:
    with azurite_place(azurite, f"tests/{tmp_path.name}") as place:
        signed = {name: value for name, value in place.environ.items() if not name.endswith("_KEY")}
        place.environ = {**signed, "AZURE_STORAGE_SAS_TOKEN": azurite.sas()}
        assert place.open().published("digits", "3") is None
        stored = place.open().publish(payload(FILES))
        assert brought(place, stored.uri, tmp_path / "model") == FILES
        assert place.proxy is not None
        assert not place.proxy.matching(path="^(?!.*sig=)")  # every request had the signature, and no key
        place.environ = {**place.environ, "AZURE_STORAGE_SAS_TOKEN": azurite.sas().replace("sig=", "sig=x")}
        with pytest.raises(CredentialsError):
            place.open().published("digits", "3")
