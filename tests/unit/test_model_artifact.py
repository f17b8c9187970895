"""`docs/model-artifact.md` is a specification: what it says is held to what mlimg does."""

import json
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from mlimg import append, pack
from mlimg.pack import PackedModel
from mlimg.runtime import descriptor, manifest
from mlimg.runtime.digest import Digest
from mlimg.runtime.manifest import ModelFile, ModelManifest
from mlimg.sources import local
from tests.support.models import DictSource

DOCUMENT = (Path(__file__).parents[2] / "docs" / "model-artifact.md").read_text(encoding="utf-8")
FILES = {"model.joblib": bytes(100_000), "a-b": b"", "a/z y": b"z", "é": b"e", "Z": b"Z"}


@pytest.fixture(scope="module")
def packed() -> PackedModel:
    large = {f"weights/{number}.bin": bytes([number]) * pack.OWN_LAYER_BYTES for number in range(1)}
    return pack.pack(DictSource({**FILES, **large}), name="digits", version="3", framework="sklearn", format="joblib")


def check_by_hand(packed: PackedModel, folder: Path) -> "subprocess.CompletedProcess[str]":
    (script,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    (folder / "layers").mkdir()
    for number, layer in enumerate(packed.layers):
        with (folder / "layers" / f"{number}.tar").open("wb") as file:
            file.writelines(layer.chunks())
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_the_check_by_hand_agrees(packed: PackedModel, tmp_path: Path) -> None:
    done = check_by_hand(packed, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert packed.manifest.digest.hex in done.stdout
    for layer in packed.layers:
        assert str(layer.digest).removeprefix("sha256:") in done.stdout


def test_the_check_by_hand_finds_one_other_byte(packed: PackedModel, tmp_path: Path) -> None:
    check_by_hand(packed, tmp_path)
    (script,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    last = tmp_path / "layers" / f"{len(packed.layers) - 1}.tar"
    content = bytearray(last.read_bytes())
    content[content.rindex(b"Z" + bytes(511))] ^= 1
    last.write_bytes(content)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    actual, expected = done.stdout.splitlines()[-2:]
    assert actual.split()[0] != expected.split()[0] == packed.manifest.digest.hex


def test_every_key_of_the_manifest_is_documented_in_its_order() -> None:
    file = ModelFile(PurePosixPath("a"), 1, Digest.of(b""))
    everything = ModelManifest(
        "n", "1", "f", "f", (file,), requires=("x",), inputs=({},), outputs=({},), source={"uri": "u"}
    )
    section = DOCUMENT.split("## The manifest")[1].split("**The set digest**")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    documented = [key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert documented == list(json.loads(everything.to_bytes()))
    assert set(re.findall(r"`(\w+)`", next(row for row in rows if "`files`" in row))) >= {"path", "size", "sha256"}


def test_limits_and_media_types_are_those_of_the_code() -> None:
    for text in (
        f"| {local.MAX_FILE_BYTES // 1024**3} GiB |",
        f"| {local.MAX_FILES:,} |",
        f"| {manifest.MAX_MANIFEST_BYTES // 1024**2} MiB |",
        f"| {pack.MAX_MODEL_LAYERS} |",
        f"| {append.MAX_LAYERS} |",
        f"A file of {pack.OWN_LAYER_BYTES // 1024**2} MiB or more",
        f"{pack.BUNDLE_BYTES // 1024**2} MiB. Bundles",
        *(f"`{name}`" for name in (descriptor.OCI_LAYER, descriptor.OCI_MANIFEST, descriptor.OCI_CONFIG)),
        *(f"`{name}`" for name in manifest.RESERVED_NAMES),
    ):
        assert text in DOCUMENT
