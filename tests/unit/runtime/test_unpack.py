"""Model layers that try what they must not. Bars: E19, G2 and the unpacking rule of the runtime contract."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, MlimgError, ModelError
from mlimg.runtime.manifest import ModelFile, ModelManifest
from mlimg.runtime.unpack import peek_manifest, unpack

WEIGHTS = b"weights" * 500
MANIFEST = ModelManifest(
    "digits", "3", "sklearn", "joblib",
    (ModelFile(PurePosixPath("model.joblib"), len(WEIGHTS), Digest.of(WEIGHTS)),
     ModelFile(PurePosixPath("sub/words.txt"), 3, Digest.of(b"one"))),
)  # fmt: skip
Entry = tuple[str, bytes | None]
GOOD: list[Entry] = [
    ("models/mlimg.manifest", MANIFEST.to_bytes()),
    ("models/model.joblib", WEIGHTS),
    ("models/sub", None),
    ("models/sub/words.txt", b"one"),
]


def tar(entries: list[Entry], change: Callable[[tarfile.TarInfo], None] = lambda info: None, **options: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:  # type: ignore[call-overload]
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            change(info)
            archive.addfile(info, io.BytesIO(data or b"") if info.isreg() else None)
    return file.getvalue()


def unpack_into(folder: Path, data: bytes, step: int = 700) -> None:
    unpack(iter([data[i : i + step] for i in range(0, len(data), step)]), folder, None)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("step", [1, 511, 10**6])
@pytest.mark.parametrize(
    "data",
    [tar(GOOD), gzip.compress(tar(GOOD)), gzip.compress(tar(GOOD)[:1000]) + gzip.compress(tar(GOOD)[1000:])],
    ids=["plain", "gzip", "gzip in two members"],
)
def test_a_layer_becomes_the_files_that_the_manifest_names(tmp_path: Path, data: bytes, step: int) -> None:
    unpack_into(tmp_path, data, step)
    assert files_in(tmp_path) == ["model.joblib", "sub/words.txt"]
    assert (tmp_path / "model.joblib").read_bytes() == WEIGHTS


def test_a_model_below_a_folder_of_its_own_loses_the_folder(tmp_path: Path) -> None:
    unpack_into(tmp_path, tar([(name.replace("models/", "models/digits/"), data) for name, data in GOOD]))
    assert files_in(tmp_path) == ["model.joblib", "sub/words.txt"]


def test_long_names_arrive(tmp_path: Path) -> None:
    name = "/".join(["f" * 100] * 5)
    manifest = ModelManifest("m", "1", "f", "f", (ModelFile(PurePosixPath(name), 3, Digest.of(b"one")),))
    entries: list[Entry] = [("models/mlimg.manifest", manifest.to_bytes()), (f"models/{name}", b"one")]
    unpack_into(tmp_path, tar(entries, format=tarfile.PAX_FORMAT))
    assert files_in(tmp_path) == [name]


def test_the_manifest_can_be_read_alone() -> None:
    data = tar(GOOD)
    assert peek_manifest(iter([data[:4096]])).manifest == MANIFEST


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "models/../evil", "./models/model.joblib", "models/unnamed", "other/model.joblib",
     "models/.wh.model.joblib", "models//model.joblib", "models/model.joblib\x1b", "models"],
)  # fmt: skip
def test_an_entry_that_the_model_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(IntegrityError):
        unpack_into(inside, tar([*GOOD, (name, b"evil")]))
    assert files_in(tmp_path) == ["inside/model.joblib", "inside/sub/words.txt"]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"?"],
)
def test_links_devices_and_pipes_are_refused(tmp_path: Path, kind: bytes) -> None:
    def change(info: tarfile.TarInfo) -> None:
        if info.name == "models/model.joblib":
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    with pytest.raises(IntegrityError, match="neither a plain file nor a folder"):
        unpack_into(tmp_path, tar(GOOD, change))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([*GOOD, GOOD[1]], IntegrityError),
        ([*GOOD, GOOD[0]], IntegrityError),
        ([*GOOD, ("models/sub", None)], IntegrityError),
        ([*GOOD, ("models/stray", None)], IntegrityError),
        ([("models/stray", None), *GOOD], IntegrityError),
        ([("models", None)] * 20 + GOOD, ModelError),
        ([GOOD[0], ("models/model.joblib", WEIGHTS + b"x")], IntegrityError),
        ([GOOD[0], ("models/model.joblib", WEIGHTS[:-1])], IntegrityError),
        ([GOOD[0], ("models/model.joblib", WEIGHTS[:-1] + b"X")], IntegrityError),
        ([("models/mlimg.manifest", MANIFEST.to_bytes()[:-9])], IntegrityError),
        (GOOD[1:], ModelError),
        ([], ModelError),
    ],
    ids=["file twice", "manifest twice", "folder twice", "stray folder", "stray folder before",
         "folders without end", "long", "short", "altered", "bad manifest",
         "no manifest", "empty"],
)  # fmt: skip
def test_a_layer_that_contradicts_the_manifest_is_refused(
    tmp_path: Path, entries: list[Entry], error: type[MlimgError]
) -> None:
    with pytest.raises(error):
        unpack_into(tmp_path, tar(entries))


@pytest.mark.parametrize(
    "data",
    [tar(GOOD)[:3000], gzip.compress(tar(GOOD))[:-9], tar(GOOD) + b"x", b"no tar" * 200, tar(GOOD) + bytes(2**21)],
    ids=["cut", "gzip cut", "more behind", "no tar", "endless padding"],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack_into(tmp_path, data)


def test_zstd_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="zstd"):
        unpack_into(tmp_path, b"\x28\xb5\x2f\xfd" + bytes(100))
