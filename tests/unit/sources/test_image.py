"""Models in a registry in memory: images of mlimg and of others, artifacts of files."""

import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mlimg.runtime.descriptor import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, MlimgError, RemoteError
from mlimg.runtime.oci import Access
from mlimg.sources import ModelSource
from mlimg.sources.remote import Wanted, open_remote
from mlimg.sources.selection import EVERYTHING, Selection
from tests.support.faults import Fault, FaultServer, flip
from tests.support.models import content
from tests.support.payloads import FILES, payload, publish_in_memory
from tests.support.registry import MemoryRegistry

QUICK = Access(backoff_seconds=0.01, stall_seconds=0.5)
TITLE = "org.opencontainers.image.title"
EMPTY = "application/vnd.oci.empty.v1+json"


@pytest.fixture
def memory() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def server(memory: MemoryRegistry) -> Iterator[FaultServer]:
    with FaultServer(memory) as server:
        yield server


def opened(server: FaultServer, name: str = "models/digits:3", selection: Selection = EVERYTHING) -> ModelSource:
    return open_remote(Wanted(f"oci://{server.host}/{name}", selection), QUICK)


def put(memory: MemoryRegistry, config_type: str, layers: list[tuple[str, bytes, Mapping[str, str]]]) -> Digest:
    config = b"{}"
    memory.put("a", config, *(data for _, data, _ in layers))
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(config_type, Digest.of(config), len(config)).to_json(),
        "layers": [Descriptor(kind, Digest.of(data), len(data), notes).to_json() for kind, data, notes in layers],
    }
    return memory.put_manifest("a", "1", json.dumps(manifest).encode())


def tar(files: Mapping[str, bytes], *odd: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in odd:
            archive.addfile(info)
    return packed.getvalue()


def refused(server: FaultServer, name: str = "a:1") -> MlimgError:
    with pytest.raises(MlimgError) as caught:
        content(opened(server, name))
    return caught.value


def test_a_model_image_of_mlimg_is_read_in_place(memory: MemoryRegistry, server: FaultServer) -> None:
    digest = publish_in_memory(memory, payload())
    source = opened(server)
    assert content(source) == FILES
    assert source.inventory().origin == {"uri": f"oci://{server.host}/models/digits:3", "revision": digest}
    assert {str(file.path): file.sha256 for file in source.inventory()} == {
        name: Digest.of(data) for name, data in FILES.items()
    }


def test_a_digest_pins_and_a_selection_chooses(memory: MemoryRegistry, server: FaultServer) -> None:
    digest = publish_in_memory(memory, payload())
    selection = Selection(("vocabulary/**",))
    assert list(content(opened(server, f"models/digits@{digest}", selection))) == ["vocabulary/words.txt"]


def test_a_flipped_byte_of_a_model_image_is_found(memory: MemoryRegistry, server: FaultServer) -> None:
    publish_in_memory(memory, payload({"a.bin": b"a" * 100_000}))
    source = opened(server)
    fault = Fault("GET", "/blobs/", times=9, change=lambda answer: flip(answer, 50_000))
    server.faults.append(fault)
    with pytest.raises(IntegrityError, match="other content"):
        content(source)
    assert fault.fired == 1


def test_a_cut_connection_is_taken_up(memory: MemoryRegistry, server: FaultServer) -> None:
    publish_in_memory(memory, payload({"a.bin": b"a" * 100_000}))
    source = opened(server)
    fault = Fault("GET", "/blobs/", times=2, cut_at=30_000)
    server.faults.append(fault)
    assert content(source) == {"a.bin": b"a" * 100_000}
    assert fault.fired == 2


def test_an_artifact_of_titled_files(memory: MemoryRegistry, server: FaultServer) -> None:
    put(
        memory,
        EMPTY,
        [
            (OCI_LAYER, b"weights", {TITLE: "weights/a.bin"}),
            ("text/plain", b"words", {TITLE: "./words.txt"}),
            ("application/json", b"{}", {}),
        ],
    )
    source = opened(server, "a:1")
    assert content(source) == {"weights/a.bin": b"weights", "words.txt": b"words"}
    memory.put("a", b"")
    memory.blobs["a", Digest.of(b"words").text] = b"Words"
    assert isinstance(refused(server), IntegrityError)


@pytest.mark.parametrize("title", ["../a", "/etc/passwd", "a/../../b", "con", "mlimg.manifest", "-rf"])
def test_a_title_that_leads_elsewhere_is_refused(memory: MemoryRegistry, server: FaultServer, title: str) -> None:
    put(memory, EMPTY, [("text/plain", b"x", {TITLE: title})])
    assert refused(server).status == 12


def test_two_files_of_one_name_are_refused(memory: MemoryRegistry, server: FaultServer) -> None:
    put(memory, EMPTY, [("text/plain", b"x", {TITLE: "a"}), ("text/plain", b"y", {TITLE: "A"})])
    assert "one file where case does not count" in refused(server).message
    put(memory, EMPTY, [("text/plain", b"x", {TITLE: "a"}), ("text/plain", b"y", {TITLE: "a"})])
    assert "listed twice" in refused(server).message


def test_a_packed_folder_of_oras_is_told(memory: MemoryRegistry, server: FaultServer) -> None:
    put(memory, EMPTY, [(OCI_LAYER_GZIP, b"x", {TITLE: "a", "io.deis.oras.content.unpack": "true"})])
    assert "packed and compressed folder" in refused(server).message


def test_an_artifact_without_titles_holds_no_files(memory: MemoryRegistry, server: FaultServer) -> None:
    put(memory, EMPTY, [("text/plain", b"x", {})])
    assert "holds no files" in refused(server).message


LONG = "models/" + "x" * 90 + "/" + "y" * 120


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_an_image_of_plain_tars(memory: MemoryRegistry, server: FaultServer, form: int) -> None:
    files = {"models/a.bin": b"a" * 1000, LONG if form != tarfile.USTAR_FORMAT else "models/b": b"", "models/c": b"c"}
    folder = tarfile.TarInfo("models/folder")
    folder.type = tarfile.DIRTYPE
    put(memory, OCI_CONFIG, [(OCI_LAYER, tar(files, folder, form=form), {}), (OCI_LAYER, tar({"models/c": b"C"}), {})])
    found = content(opened(server, "a:1"))
    assert found == {name.removeprefix("models/"): data for name, data in {**files, "models/c": b"C"}.items()}


def test_a_modelpack_of_raw_files_and_tars(memory: MemoryRegistry, server: FaultServer) -> None:
    kind = "application/vnd.cncf.model."
    put(
        memory,
        kind + "config.v1+json",
        [
            (kind + "weight.v1.raw", b"weights", {"org.cncf.model.filepath": "weights/a.bin"}),
            (kind + "weight.config.v1.tar", tar({"config.json": b"{}"}), {}),
        ],
    )
    assert content(opened(server, "a:1")) == {"weights/a.bin": b"weights", "config.json": b"{}"}


def test_a_tar_that_is_not_its_digest_is_refused_when_it_is_listed(memory: MemoryRegistry, server: FaultServer) -> None:
    data = tar({"a": b"a" * 5000})
    put(memory, OCI_CONFIG, [(OCI_LAYER, data, {})])
    assert content(opened(server, "a:1"))
    memory.blobs["a", Digest.of(data).text] = data.replace(b"a" * 5000, b"a" * 4999 + b"b")
    assert isinstance(refused(server), IntegrityError)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_plain_file_is_refused(memory: MemoryRegistry, server: FaultServer, kind: bytes) -> None:
    odd = tarfile.TarInfo("models/x")
    odd.type, odd.linkname = kind, "/etc/passwd"
    put(memory, OCI_CONFIG, [(OCI_LAYER, tar({"models/a": b"a"}, odd), {})])
    assert "not a plain file" in refused(server).message


@pytest.mark.parametrize(
    ("layer", "kind", "words"),
    [
        (tar({"a": b"a"}, mode="w:gz"), OCI_LAYER_GZIP, "no plain tar"),
        (tar({"a": random.Random(1).randbytes(2000)}, mode="w:gz"), OCI_LAYER, "no plain tar"),
        (tar({"a": b"a"})[:700], OCI_LAYER, "ends in the middle"),
        (tar({".wh.a": b""}), OCI_LAYER, "takes a file of an earlier layer away"),
        (tar({"../a": b"a"}), OCI_LAYER, "`.` or `..`"),
        (b"not a tar at all".ljust(1024), OCI_LAYER, "no plain tar"),
    ],
    ids=["gzip", "gzip-in-disguise", "cut", "whiteout", "escape", "text"],
)
def test_a_layer_that_cannot_be_read_in_place_is_refused(
    memory: MemoryRegistry, server: FaultServer, layer: bytes, kind: str, words: str
) -> None:
    put(memory, OCI_CONFIG, [(kind, layer, {})])
    assert words in refused(server).message


def test_what_is_not_there_is_told(server: FaultServer) -> None:
    error = refused(server, "nothing:1")
    assert isinstance(error, RemoteError)
    assert "does not exist" in error.message


def test_a_manifest_that_names_a_file_of_no_layer_is_refused(memory: MemoryRegistry, server: FaultServer) -> None:
    model = payload({"a.bin": b"a" * 10})
    last = b"".join(bytes(chunk) for chunk in model.layers[-1].chunks())
    renamed = last.replace(b"models/a.bin", b"models/b.bin").replace(b"a" * 10, b"c" * 10)
    fixed = _with_checksum(renamed)
    put(memory, OCI_CONFIG, [(OCI_LAYER, fixed, {})])
    assert "is in no layer" in refused(server).message


def _with_checksum(data: bytes) -> bytes:
    """Mend the checksums of headers that were changed."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + f"{total:06o}\0 ".encode() + block[156:]
    return b"".join(blocks)
