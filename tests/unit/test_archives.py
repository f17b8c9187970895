"""Archives and file modes. Bars: B5, B10, B11.

mlimg never opens a user's archive: it is a file like any other. Those of a registry, the model's layers, are opened by
the fetch, which writes what the manifest names and nothing else.
"""

import gzip
import io
import os
import random
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlimg.pack import pack
from mlimg.runtime.errors import IntegrityError, MlimgError
from mlimg.runtime.unpack import unpack
from mlimg.sources.local import open_source
from tests.support.models import peak_kib
from tests.unit.runtime.test_unpack import GOOD, files_in, tar, unpack_into

MIB = 1024**2
CANARY = b"nobody may write this"
TRAVERSALS = (
    "../evil", "models/../../evil", "/evil", "models/sub/../../../evil", "models/./../../evil", "//evil",
    "models\\..\\..\\evil", "models/sub/words.txt/../../../evil", "\x00evil", "models/\x00", "models/evil\n", "~/evil",
    "models/sub/..", "models/..", "..", ".", "", "models/" + "d/" * 300 + "evil", "models/" + "n" * 300,
    "models/mlimg.manifest/evil", "models/model.joblib/evil", "c:/evil", "models/sub//words.txt", "MODELS/model.joblib",
)  # fmt: skip
KINDS = (
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE, b"D", b"M", b"V", b"Z",
)  # fmt: skip


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """Where a model goes. Around it lies what must stay as it is."""
    (tmp_path / "evil").write_bytes(CANARY)
    folder = tmp_path / "a" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "evil").write_bytes(CANARY)
    return folder


def around(inside: Path) -> list[tuple[str, bytes]]:
    """All that is outside of the model."""
    root = inside.parents[1]
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(inside))
    return sorted((str(path.relative_to(root)), path.read_bytes()) for path in found)


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("zipped", [False, True])
def test_b10_a_layer_writes_nothing_outside_whatever_its_names(inside: Path, name: str, zipped: bool) -> None:
    before = around(inside)
    data = tar([*GOOD, (name, b"evil")], format=tarfile.PAX_FORMAT)
    with pytest.raises(IntegrityError):
        unpack_into(inside, gzip.compress(data) if zipped else data)
    assert around(inside) == before
    assert set(files_in(inside)) <= {"model.joblib", "sub/words.txt"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["../../evil", "/etc/passwd", "model.joblib"])
def test_b10_a_link_and_what_would_be_written_through_it_are_refused(inside: Path, kind: bytes, target: str) -> None:
    before = around(inside)

    def change(info: tarfile.TarInfo) -> None:
        if info.name == "models/sub":
            info.type, info.linkname, info.size = kind, target, 0

    with pytest.raises(MlimgError):
        unpack_into(inside, tar(GOOD, change))
    assert around(inside) == before
    assert not any(path.is_symlink() for path in inside.rglob("*"))
    clean = inside.with_name("clean")
    clean.mkdir()
    unpack_into(clean, tar(GOOD))  # the twin
    assert files_in(clean) == ["model.joblib", "sub/words.txt"]


def bomb(zeros: int) -> Iterator[bytes]:
    """A gzipped tar that goes on with so many zeros, made as it is read."""
    squeeze = zlib.compressobj(9, wbits=31)
    yield squeeze.compress(tar(GOOD).rstrip(bytes(1)))
    for _ in range(zeros // MIB):
        yield squeeze.compress(bytes(MIB))
    yield squeeze.flush()


def test_b11_a_bomb_is_given_up_after_little_and_fills_neither_memory_nor_disk(inside: Path) -> None:
    given = 0

    def counted() -> Iterator[bytes]:
        nonlocal given
        for piece in bomb(4096 * MIB):
            given += 1
            yield piece

    with pytest.raises(IntegrityError):
        unpack(counted(), inside, None)
    assert given < 50  # MiB of zeros, of 4096
    assert sum(path.stat().st_size for path in inside.rglob("*") if path.is_file()) < 10_000


def test_b11_what_is_compressed_twice_is_refused(inside: Path) -> None:
    """gzip in gzip: one is undone, as clients of registries compress once; the rest is no tar."""
    with pytest.raises(IntegrityError):
        unpack_into(inside, gzip.compress(gzip.compress(tar(GOOD))))
    assert files_in(inside) == []


def test_b11_a_small_archive_of_many_zeros_takes_little_memory() -> None:
    program = (
        "import sys, tempfile; from pathlib import Path; from mlimg.runtime.unpack import unpack\n"
        "from mlimg.runtime.errors import MlimgError\n"
        "try: unpack(iter([Path(sys.argv[1]).read_bytes()]), Path(tempfile.mkdtemp(dir=sys.argv[2])), None)\n"
        "except MlimgError: pass\n"
        "else: raise SystemExit('taken')\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("bomb", 500 * MIB), ("twin", 1)):
            squeeze = zlib.compressobj(9, wbits=31)
            pieces = [squeeze.compress(bytes(min(size, MIB))) for _ in range(0, size, MIB)]
            (Path(folder) / name).write_bytes(b"".join(pieces) + squeeze.flush())
        grown = peak_kib(program, f"{folder}/bomb", folder) - peak_kib(program, f"{folder}/twin", folder)
    assert grown < 32 * 1024


def evil_archives(folder: Path) -> None:
    """Archives that would do harm to whoever unpacks them."""
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        for name in ("../evil", "/evil", "ok"):
            archive.writestr(name, b"evil")
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(30 * MIB))
    (folder / "model.tar.gz").write_bytes(gzip.compress(tar([(name, b"evil") for name in TRAVERSALS])))
    (folder / "bomb.gz").write_bytes(b"".join(gzip.compress(bytes(10 * MIB)) for _ in range(3)))
    (folder / "model.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + random.Random(1).randbytes(100))


def test_b10_an_archive_of_the_user_is_a_file_that_nobody_opens(inside: Path) -> None:
    """B11 too: its layer is as long as the archive, not as what is in it."""
    evil_archives(inside)
    before = around(inside)
    files = {path.name: path.read_bytes() for path in inside.iterdir()}
    packed = pack(open_source(inside), name="m", version="1", framework="f", format="f")
    assert around(inside) == before
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(bytes(c) for layer in packed.layers for c in layer.chunks()))
    ) as all_:
        found = {m.name.removeprefix("models/"): all_.extractfile(m).read() for m in all_ if m.isfile()}  # type: ignore[union-attr]
    found.pop("mlimg.manifest")
    assert found == files


def test_b5_setuid_sticky_and_extended_attributes_do_not_travel(tmp_path: Path) -> None:
    layers = []
    for name in ("plain", "special"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.joblib").write_bytes(b"weights")
        (folder / "tool").write_bytes(b"#!/bin/sh\n")
        (folder / "tool").chmod(0o755)
        if name == "special":
            (folder / "model.joblib").chmod(0o2666)
            (folder / "tool").chmod(0o6777)
            folder.chmod(0o3777)
            os.setxattr(folder / "tool", "user.mlimg.test", b"travels")
            assert (folder / "tool").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
            assert os.listxattr(folder / "tool")
        packed = pack(open_source(folder), name="m", version="1", framework="f", format="f")
        layers.append(b"".join(bytes(chunk) for layer in packed.layers for chunk in layer.chunks()))
    assert layers[0] == layers[1]
    with tarfile.open(fileobj=io.BytesIO(layers[1])) as opened:
        members = list(opened)
    assert {member.mode & 0o7777 for member in members} <= {0o644, 0o755}
    assert not any(member.pax_headers for member in members)
    (tmp_path / "special" / "model.joblib").chmod(0o744)  # the twin: the owner's execute bit does travel
    twin = pack(open_source(tmp_path / "special"), name="m", version="1", framework="f", format="f")
    assert b"".join(bytes(chunk) for layer in twin.layers for chunk in layer.chunks()) != layers[0]
