"""The registry client and the stores against a real registry, judged by other clients. Bars: E5, E6, E14, G10."""

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from mlimg.runtime.cache import version_folders
from mlimg.runtime.descriptor import MemoryBlob
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, CredentialsError
from mlimg.runtime.oci import Access, Registry, credentials_from
from mlimg.runtime.prepare import PreparedModel, prepare
from mlimg.runtime.reference import ImageReference
from mlimg.runtime.stores import open_store
from tests.support.blobs import OnItsWay
from tests.support.engines import Engine
from tests.support.faults import Fault, FaultServer, forward_to
from tests.support.payloads import FILES, payload

DATA = random.Random(3).randbytes(3_000_000)
QUICK = Access(backoff_seconds=0.05)


@pytest.fixture
def models(registry: str) -> str:
    """A repository prefix of the real registry that nobody else uses."""
    return f"{registry}/test-{uuid.uuid4().hex[:12]}"


def reference(models: str, name: str = "digits", tag: str = "3") -> ImageReference:
    return ImageReference.parse(f"{models}/{name}:{tag}")


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def fetched(models: str, into: Path, tag: str = "3", **environ: str) -> PreparedModel:
    variables = {"MLIMG_MODEL": f"oci://{models}/digits:{tag}", "MLIMG_MODEL_DIR": str(into), **environ}
    return prepare(variables, lambda _: None, threading.Event())


def test_a_published_model_is_what_other_clients_read(models: str, tmp_path: Path) -> None:
    stored = open_store(f"oci://{models}", QUICK).publish(payload())
    name = str(reference(models))
    manifest = output("oras", "manifest", "fetch", "--plain-http", name)
    assert manifest == payload().image_manifest.decode()
    seen = json.loads(output("skopeo", "inspect", "--tls-verify=false", f"docker://{name}"))
    assert seen["Digest"] == str(stored.uri.digest)
    output(
        "skopeo", "copy", "--src-tls-verify=false", "--preserve-digests", f"docker://{name}", f"oci:{tmp_path}/layout:3"
    )
    output("oras", "cp", "--from-plain-http", name, "--to-oci-layout", f"{tmp_path}/oras:3")


def test_an_engine_pulls_a_model_and_finds_its_files(models: str, engine: Engine, tmp_path: Path) -> None:
    open_store(f"oci://{models}", QUICK).publish(payload())
    name = str(reference(models))
    engine.docker("pull", "--quiet", name)
    try:
        container = engine.docker("create", name, "none")
        engine.docker("cp", f"{container}:/models", str(tmp_path))
        engine.docker("rm", container)
        assert {path: (tmp_path / "models" / path).read_bytes() for path in FILES} == FILES
        # What an engine pushes again may be compressed anew: the reader looks, and finds the same model.
        engine.docker("tag", name, f"{name}-again")
        engine.docker("push", "--quiet", f"{name}-again")
        model = fetched(models, tmp_path / "into", tag="3-again")
        assert model.manifest == payload().manifest
    finally:
        engine.docker("rmi", "--force", name, f"{name}-again")


def test_e14_the_same_model_again_moves_nothing_and_another_is_a_conflict(models: str) -> None:
    store = open_store(f"oci://{models}", QUICK)
    first = store.publish(payload())
    again = store.publish(payload())
    assert (again.existed, again.moved_bytes, again.uri) == (True, 0, first.uri)
    with pytest.raises(ConflictError):
        store.publish(payload({"model.joblib": b"other"}))
    assert output("oras", "resolve", "--plain-http", str(reference(models))) == str(first.uri.digest)


def test_layers_are_mounted_between_repositories(models: str) -> None:
    registry = Registry(QUICK)
    source, target = reference(models, "source"), reference(models, "target")
    assert registry.push_blob(source, MemoryBlob(DATA)).how == "sent"
    assert registry.push_blob(target, MemoryBlob(DATA), mount_from=[source.repository]).how == "mounted"
    assert registry.push_blob(target, MemoryBlob(DATA)).how == "exists"
    assert registry.has_blob(target, Digest.of(DATA)) == len(DATA)


def test_a_blob_is_hashed_on_its_way(models: str) -> None:
    pushed = Registry(QUICK).push_blob(reference(models), OnItsWay(DATA))
    assert (pushed.digest, pushed.how, pushed.sent_bytes) == (Digest.of(DATA), "sent", len(DATA))
    name = f"{models}/digits@{pushed.digest}"
    data = subprocess.run(
        ["oras", "blob", "fetch", "--plain-http", "--output", "-", name], check=True, capture_output=True
    ).stdout
    assert data == DATA


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "uploads", cut_request_at=len(DATA) // 2),
        Fault("PUT", "uploads", lose_answer=True),
        Fault("GET", "blobs", cut_at=1000),
        Fault("PUT", "manifests", lose_answer=True),
    ],
    ids=["E5 upload cut", "E6 answer lost", "E5 download cut", "E7 manifest answer lost"],
)
def test_a_model_survives_a_bad_line(models: str, registry: str, fault: Fault, tmp_path: Path) -> None:
    files = {"model.joblib": DATA}
    with FaultServer(forward_to(registry), fault) as line:
        through = models.replace(registry, line.host)
        open_store(f"oci://{through}", QUICK).publish(payload(files))
        model = fetched(through, tmp_path)
    assert fault.fired == 1
    assert (model.folder / "model.joblib").read_bytes() == DATA
    seen = json.loads(output("skopeo", "inspect", "--tls-verify=false", f"docker://{reference(models)}"))
    assert seen["Digest"] == Digest.of(payload(files).image_manifest).text


def test_g10_sigterm_ends_a_fetch_within_two_seconds_and_its_work_is_taken_up(
    models: str, registry: str, tmp_path: Path
) -> None:
    open_store(f"oci://{models}", QUICK).publish(payload({"model.joblib": DATA}))
    program = (
        "import os, signal, threading\n"
        "from mlimg.runtime.errors import Stopped\n"
        "from mlimg.runtime.prepare import prepare\n"
        "stop = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: stop.set())\n"
        "try:\n    prepare(os.environ, lambda progress: print(progress.phase, flush=True), stop)\n"
        "except Stopped:\n    os._exit(143)\n"
    )
    slow = Fault("GET", "blobs/sha256", skip=2, times=99, stall_at=1_000_000)  # after the config and a look
    with FaultServer(forward_to(registry), slow) as line:
        through = models.replace(registry, line.host)
        environ = {"MLIMG_MODEL": f"oci://{through}/digits:3", "MLIMG_MODEL_DIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-c", program], env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.strip() == "fetching":
                break
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        process.stdout.close()
        assert process.wait(10) == 143
        assert time.monotonic() - started < 2
        assert slow.fired == 1
    assert list(tmp_path.glob(".mlimg-scratch/*/bundles/*.part"))
    assert not version_folders(tmp_path)
    assert (fetched(models, tmp_path).folder / "model.joblib").read_bytes() == DATA
    assert not list(tmp_path.glob(".mlimg-scratch/*/*"))


def test_credentials_come_from_dockers_configuration(registry_auth: str, tmp_path: Path) -> None:
    def access(password: str) -> Access:
        packed = base64.b64encode(f"alice:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry_auth: {"auth": packed}}}))
        return Access(credentials_from({"DOCKER_CONFIG": str(tmp_path)}))

    store = f"oci://{registry_auth}/test-{uuid.uuid4().hex[:12]}"
    with pytest.raises(CredentialsError, match="refuses"):
        open_store(store, access("wrong")).publish(payload())
    stored = open_store(store, access("secret")).publish(payload())
    environ = {"MLIMG_MODEL": str(stored.uri), "MLIMG_MODEL_DIR": str(tmp_path / "into")}
    with pytest.raises(CredentialsError, match="none for it"):
        prepare(environ, lambda _: None, threading.Event())
    model = prepare(environ | {"DOCKER_CONFIG": str(tmp_path)}, lambda _: None, threading.Event())
    assert model.manifest == payload().manifest
