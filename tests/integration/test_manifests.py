"""One set of blobs under three manifests, and what other clients make of them."""

import base64
import hashlib
import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from mlimg.modelpack import ARTIFACT_TYPE, CONFIG_TYPE
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from tests.support.engines import Engine
from tests.support.payloads import FILES, payload
from tests.support.projects import Project, digest_of, manifest_of, output, tags_of

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
# 77 MB, a layer of its own; clients remember where they have seen a blob, so no two runs have the same.
BIG = {"weights/big.bin": os.urandom(32) + bytes(range(256)) * 300_000, **FILES}
one_store = pytest.mark.parametrize("engine", ["graph"], indirect=True)


@pytest.fixture
def models(registry: str) -> str:
    """The name of a model image whose ModelPack artifact lies beside it."""
    prefix = f"{registry}/test-{uuid.uuid4().hex[:12]}"
    files = {**BIG, "name.txt": prefix.encode()}
    open_store(f"oci://{prefix}", Access(backoff_seconds=0.05)).publish(payload(files, with_pack=True))
    return f"{prefix}/digits:3"


def blobs(reference: str) -> list[str]:
    return [layer["digest"] for layer in manifest_of(reference)["layers"]]


def layout_blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def raw(reference: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        output("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}")
    )
    return value


def test_the_artifact_names_the_layers_of_the_model_image(models: str) -> None:
    image, artifact = raw(models), raw(f"{models}-modelpack")
    assert artifact["artifactType"] == ARTIFACT_TYPE
    assert artifact["config"]["mediaType"] == CONFIG_TYPE
    assert [(layer["digest"], layer["size"]) for layer in artifact["layers"]] == [
        (layer["digest"], layer["size"]) for layer in image["layers"]
    ]
    assert {layer["mediaType"] for layer in image["layers"]} == {OCI_LAYER}
    assert sorted(tags_of(models.rpartition(":")[0])) == ["3", "3-modelpack"]


def test_oras_pulls_the_artifact_as_tars_that_hold_the_model(models: str, tmp_path: Path) -> None:
    output("oras", "pull", "--plain-http", "--output", str(tmp_path / "pulled"), f"{models}-modelpack")
    assert sorted(path.name for path in (tmp_path / "pulled").iterdir()) == ["layer-01.tar", "layer-02.tar"]
    for path in sorted((tmp_path / "pulled").iterdir()):
        subprocess.run(["tar", "-xf", str(path), "-C", str(tmp_path)], check=True)
    assert {name: (tmp_path / "models" / name).read_bytes() for name in BIG} == BIG


@pytest.mark.parametrize("kind", ["", "-modelpack"])
def test_oras_and_skopeo_keep_every_blob(models: str, kind: str, tmp_path: Path) -> None:
    name, copy = f"{models}{kind}", f"{models.replace('/digits:', '/copy:')}{kind}"
    output("oras", "cp", "--from-plain-http", "--to-plain-http", name, copy)
    assert digest_of(copy) == digest_of(name)
    output("oras", "cp", "--from-plain-http", name, "--to-oci-layout", f"{tmp_path}/oras:3")
    skopeo = ("skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
    output(*skopeo, f"docker://{name}", f"docker://{copy}-skopeo")
    assert digest_of(f"{copy}-skopeo") == digest_of(name)
    output(*skopeo, f"docker://{name}", f"oci:{tmp_path}/skopeo:3")
    by_oras, by_skopeo = layout_blobs(tmp_path / "oras"), layout_blobs(tmp_path / "skopeo")
    assert by_oras == by_skopeo
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in by_oras.items())


@pytest.fixture
def elsewhere(registry_auth: str) -> str:
    """A place in another registry, which has nothing of the model."""
    return f"{registry_auth}/test-{uuid.uuid4().hex[:12]}/digits:3"


def manifest_elsewhere(reference: str) -> dict[str, Any]:
    fetch = ("oras", "manifest", "fetch", "--plain-http", "--username", "alice", "--password", "secret")
    value: dict[str, Any] = json.loads(output(*fetch, reference))
    return value


def kinds(manifest: dict[str, Any]) -> set[str]:
    return {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]}


def test_plain_skopeo_copy_into_another_registry_compresses_the_model_again(models: str, elsewhere: str) -> None:
    """Why `--preserve-digests` is needed; the config, and with it the image's identity, stays."""
    skopeo = ("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-creds=alice:secret")
    ours = manifest_of(models)
    output(*skopeo, f"docker://{models}", f"docker://{elsewhere}")  # first: what a registry has is not compressed
    copied = manifest_elsewhere(elsewhere)
    assert copied["config"] == ours["config"]
    assert (kinds(ours), kinds(copied)) == ({"tar"}, {"tar+gzip"})
    output(*skopeo, "--preserve-digests", f"docker://{models}", f"docker://{elsewhere}-kept")
    assert manifest_elsewhere(f"{elsewhere}-kept") == ours


def test_docker_push_into_another_registry_compresses_what_the_graph_driver_holds(
    models: str, elsewhere: str, engine: Engine, tmp_path: Path
) -> None:
    """The containerd store keeps the blobs that it pulled."""
    token = base64.b64encode(b"alice:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {elsewhere.partition("/")[0]: {"auth": token}}}))
    engine.docker("pull", "--quiet", models)
    try:
        engine.docker("tag", models, elsewhere)
        engine.docker("--config", str(tmp_path), "push", "--quiet", elsewhere)
    finally:
        engine.docker("rmi", "--force", models, elsewhere)
    ours, pushed = manifest_of(models), manifest_elsewhere(elsewhere)
    if engine.store == "containerd":
        assert pushed == ours
        return
    assert pushed["config"]["digest"] == ours["config"]["digest"]
    assert kinds(pushed) == {"gzip"}
    assert not {layer["digest"] for layer in pushed["layers"]} & set(blobs(models))


@one_store
def test_a_release_has_one_set_of_blobs_in_all_three_forms(published: Project) -> None:
    published.build("load", "--push")
    published.build("in-image", "--push")
    model = f"{published.prefix}/models/scores:1"
    in_model, in_pack, in_image = blobs(model), blobs(f"{model}-modelpack"), blobs(f"{published.prefix}/scores:1")
    server = blobs(f"{published.prefix}/server:1.0")
    assert in_model == in_pack
    assert in_image == [*server, *in_model]
