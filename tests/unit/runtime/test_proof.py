"""What is here is believed only when the URI's digest proves it. Bars: G6."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import IntegrityError, ModelError
from mlimg.runtime.fetch import FetchedModel, fetch
from mlimg.runtime.oci import Access
from mlimg.runtime.reference import ModelUri
from tests.support.faults import FaultServer
from tests.support.payloads import payload, publish_in_memory
from tests.support.registry import MemoryRegistry

FILES = {"weights.bin": random.Random(1).randbytes(50_000), "small.txt": b"small"}
EVIL = b"evil!"
QUICK = Access(backoff_seconds=0.01, stall_seconds=1, attempts=2)


def get(uri: ModelUri, into: Path, **options: Any) -> FetchedModel:
    return fetch(uri, [into], access=QUICK, progress=lambda _: None, stop=threading.Event(), **options)


def named(server: FaultServer, version: str = "3") -> ModelUri:
    return ModelUri.parse(f"oci://{server.host}/models/digits:{version}")


def alter(folder: Path) -> None:
    """Put another file into a version, and its manifest right."""
    evil = payload({**FILES, "small.txt": EVIL}).manifest
    path = folder / "small.txt"
    path.unlink()
    path.write_bytes(EVIL)
    (folder / "mlimg.manifest").write_bytes(evil.to_bytes())


def beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.{name}")


def forge_label(folder: Path) -> None:
    alter(folder)
    evil = payload({**FILES, "small.txt": EVIL})
    beside(folder, "config.json").write_bytes(evil.image_config)


def forge_image(folder: Path) -> None:
    forge_label(folder)
    evil = payload({**FILES, "small.txt": EVIL})
    beside(folder, "manifest.json").write_bytes(evil.image_manifest)


def forge_config(folder: Path) -> None:
    """A config that says the right thing, but is not the one of the image's manifest."""
    path = beside(folder, "config.json")
    path.write_bytes(json.dumps(json.loads(path.read_bytes()) | {"author": "somebody"}).encode())


BREACHES: dict[str, Callable[[Path], object]] = {
    "files and manifest": alter,
    "files, manifest and config": forge_label,
    "files, manifest and image": forge_image,
    "config": forge_config,
    "no config": lambda folder: beside(folder, "config.json").unlink(),
    "no manifest": lambda folder: beside(folder, "manifest.json").unlink(),
    "no JSON": lambda folder: beside(folder, "manifest.json").write_bytes(b"?"),
    "endless": lambda folder: beside(folder, "manifest.json").write_bytes(bytes(5 * 2**20)),
}


@pytest.mark.parametrize("how", BREACHES)
def test_g6_a_version_whose_manifest_was_altered_with_its_files_is_not_believed(tmp_path: Path, how: str) -> None:
    memory = MemoryRegistry()
    publish_in_memory(memory, payload(FILES))
    with FaultServer(memory) as server:
        first = get(named(server), tmp_path)
        assert get(first.uri, tmp_path, offline=True).cache_hit  # the twin: nobody altered it
        BREACHES[how](first.folder)
        with pytest.raises(ModelError, match="MLIMG_OFFLINE"):
            get(first.uri, tmp_path, offline=True)
        again = get(first.uri, tmp_path)
        assert not again.cache_hit
        assert {name: (again.folder / name).read_bytes() for name in FILES} == FILES
        assert get(first.uri, tmp_path, offline=True).cache_hit


def test_an_image_without_the_label_of_its_model_is_refused(tmp_path: Path) -> None:
    memory = MemoryRegistry()
    model = payload(FILES)
    config = json.loads(model.image_config)
    del config["config"]["Labels"]["io.mlimg.model.digest"]
    data = json.dumps(config).encode()
    manifest = json.loads(model.image_manifest)
    manifest["config"] |= {"digest": Digest.of(data).text, "size": len(data)}
    publish_in_memory(memory, model)
    memory.put("models/digits", data)
    memory.put_manifest("models/digits", "unlabelled", json.dumps(manifest).encode())
    with FaultServer(memory) as server:
        with pytest.raises(IntegrityError, match="has no label of its model"):
            get(named(server, "unlabelled"), tmp_path)
        assert not get(named(server), tmp_path).cache_hit  # the twin


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_g6_a_version_of_an_object_store_is_held_against_the_digest_in_its_uri(tmp_path: Path, scheme: str) -> None:
    manifest = payload(FILES).manifest
    digest = Digest.of(manifest.to_bytes())
    folder = tmp_path / ".mlimg" / digest.hex
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "mlimg.manifest").write_bytes(manifest.to_bytes())
    uri = ModelUri.parse(f"{scheme}://bucket/digits/3@{digest}")
    assert get(uri, tmp_path, offline=True).cache_hit
    alter(folder)
    with pytest.raises(ModelError, match="MLIMG_OFFLINE"):
        get(uri, tmp_path, offline=True)
