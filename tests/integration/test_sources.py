"""Models are read from where they are: real registries, object stores and tracking servers, and TLS."""

import json
import os
import random
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, IntegrityError, ModelError, RemoteError, UsageError
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import open_store
from mlimg.sources import ModelSource
from mlimg.sources.remote import Wanted, open_remote
from mlimg.sources.selection import EVERYTHING, Selection
from tests.support.azurite import Azurite
from tests.support.engines import tool
from tests.support.faults import Answer, Fault, FaultServer, forward_to
from tests.support.hub import COMMIT, Hub
from tests.support.payloads import FILES, payload
from tests.support.projects import Project
from tests.support.stores import docker_registry
from tests.support.swift import BUCKET, Swift
from tests.support.tracking import register, tracking_server
from tests.support.webfiles import WebFiles

ROOT = Path(__file__).parents[2]
LARGE = random.Random(3).randbytes(3_000_000)
TREE = {"model.bin": LARGE, "vocabulary/words.txt": b"one two three", "config.json": b"{}"}


def opened(
    address: str, selection: Selection = EVERYTHING, access: Access | None = None, **wanted: object
) -> ModelSource:
    quick = access or Access(backoff_seconds=0.05, stall_seconds=10, attempts=3)
    return open_remote(Wanted(address, selection, **wanted), quick)  # type: ignore[arg-type]


def content(source: ModelSource) -> dict[str, bytes]:
    found = {}
    for file in source.inventory():
        with source.open(file.path) as one:
            found[str(file.path)] = one.read()
            one.seek(max(0, file.size_bytes - 100))
            assert one.read(100) == found[str(file.path)][-100:]
    return found


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# Registries


@pytest.fixture(scope="module")
def host(memory_folder: Path) -> Iterator[str]:
    """A docker-registry of this module's own."""
    tool("test-packages.sh")
    (memory_folder / "sources-registry").mkdir()
    with docker_registry(memory_folder / "sources-registry") as host:
        yield host


def test_what_oras_pushes_is_read_by_its_titles(host: str, tmp_path: Path) -> None:
    write(tmp_path, TREE)
    subprocess.run(
        ["oras", "push", "--plain-http", f"{host}/oras/digits:1", *TREE], cwd=tmp_path, check=True, capture_output=True
    )
    source = opened(f"oci://{host}/oras/digits:1")
    assert content(source) == TREE
    assert all(file.sha256 == Digest.of(TREE[str(file.path)]) for file in source.inventory())
    assert list(content(opened(f"oci://{host}/oras/digits:1", Selection(("**/*.txt",))))) == ["vocabulary/words.txt"]


def test_a_folder_that_oras_packs_is_told(host: str, tmp_path: Path) -> None:
    write(tmp_path / "folder", TREE)
    command = ["oras", "push", "--plain-http", f"{host}/oras/folder:1", "folder"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(ModelError, match="packed and compressed"):
        opened(f"oci://{host}/oras/folder:1")


def test_what_mlimg_publishes_is_read_in_place_and_pinned(host: str) -> None:
    model = payload({**TREE, "large.bin": LARGE * 25}, with_pack=True)  # over 64 MiB: a layer of its own
    stored = open_store(f"oci://{host}/models", Access()).publish(model)
    with FaultServer(forward_to(host)) as proxy:
        source = opened(f"oci://{proxy.host}/models/digits:3")
        assert {str(f.path): f.sha256 for f in source.inventory()} == {
            str(f.path): f.sha256 for f in model.manifest.files
        }
        assert source.inventory().origin == {
            "uri": f"oci://{proxy.host}/models/digits:3",
            "revision": stored.uri.digest.text if stored.uri.digest else "",
        }
    assert content(opened(f"oci://{host}/models/digits:3")) == {**TREE, "large.bin": LARGE * 25}
    assert content(opened(f"oci://{host}/models/digits:3-modelpack")) == {**TREE, "large.bin": LARGE * 25}


# Object stores


def s3(swift: Swift, key: str, **wanted: object) -> ModelSource:
    return opened(
        f"s3://{BUCKET}/{key}", access=Access(environ=swift.environ, attempts=3, backoff_seconds=0.05), **wanted
    )


def test_a_prefix_of_a_bucket_is_a_model(swift: Swift) -> None:
    for name, data in TREE.items():
        swift.put(f"plain/digits/{name}", data)
    swift.put("plain/digits-2/other.bin", b"another model")
    source = s3(swift, "plain/digits/")
    assert content(source) == TREE
    assert source.inventory().origin == {"uri": f"s3://{BUCKET}/plain/digits"}
    assert all(file.fingerprint for file in source.inventory())
    assert content(s3(swift, "plain/digits/model.bin")) == {"model.bin": LARGE}
    with pytest.raises(ModelError, match="holds no files"):
        s3(swift, "plain/nothing")


def test_keys_of_a_bucket_are_names_as_they_are_whatever_their_letters(swift: Swift) -> None:
    names = {"a b+c %41&=?#ü.bin", "a/ß/~*'().txt", 'z<>".bin', *(f"many/{number}" for number in range(5))}
    for name in names:
        swift.put(f"odd/digits+co,@~=/{name}", name.encode())
    swift.put("odd/digits+co,@~=/many/", b"")  # what some clients put for a folder
    source = s3(swift, "odd/digits+co,@~=")
    assert content(source) == {name: name.encode() for name in names}
    swift.put("odd/digits+co,@~=/many//x", b"no file has this name")
    with pytest.raises(RemoteError, match="a key below"):
        s3(swift, "odd/digits+co,@~=")
    for name in (*names, "many/", "many//x"):
        swift.delete(f"odd/digits+co,@~=/{name}")


def test_an_object_that_is_replaced_after_it_was_listed_is_not_read(swift: Swift) -> None:
    swift.put("moving/model.bin", LARGE)
    source = s3(swift, "moving")
    swift.put("moving/model.bin", LARGE[::-1])
    with pytest.raises((RemoteError, IntegrityError)):
        content(source)
    assert content(s3(swift, "moving")) == {"model.bin": LARGE[::-1]}


def test_a_version_that_mlimg_published_is_held_to_its_manifest(swift: Swift) -> None:
    access = Access(environ=swift.environ)
    open_store(f"s3://{BUCKET}/store", access).publish(payload())
    swift.put("store/digits/3/stowaway.bin", b"named by nothing")
    source = s3(swift, "store/digits/3")
    assert content(source) == FILES
    assert {file.sha256 for file in source.inventory()} == {Digest.of(data) for data in FILES.values()}
    name = next(iter(FILES))
    swift.put(f"store/digits/3/{name}", bytes([FILES[name][0] ^ 1]) + FILES[name][1:])
    with pytest.raises(IntegrityError, match="other content"):
        content(s3(swift, "store/digits/3"))


def test_a_version_that_was_begun_is_no_model(swift: Swift) -> None:
    swift.put("begun/digits/3/.claim", b"{}")
    swift.put("begun/digits/3/model.bin", b"half")
    with pytest.raises(ModelError, match="begun and not finished"):
        s3(swift, "begun/digits/3")


def test_wrong_credentials_are_told_without_being_shown(swift: Swift) -> None:
    swift.put("plain/secret/model.bin", b"x")
    environ = {**swift.environ, "AWS_SECRET_ACCESS_KEY": "canary"}
    with pytest.raises(CredentialsError) as caught:
        opened(f"s3://{BUCKET}/plain/secret", access=Access(environ=environ, attempts=2, backoff_seconds=0.05))
    assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value.log}"


def test_a_container_of_azure_is_read_too(azurite: Azurite) -> None:
    access = Access(environ=azurite.environ)
    open_store("az://models/sources", access).publish(payload())
    assert content(opened("az://models/sources/digits/3", access=access)) == FILES
    signed = {name: value for name, value in azurite.environ.items() if not name.endswith("_KEY")}
    names = {"a b+c %41&=#ü.bin", "z<>.bin", *(f"many/{number}" for number in range(5))}
    for name in names:
        azurite.put(f"odd/{name}", name.encode())
    with FaultServer(forward_to(azurite.host)) as proxy:
        endpoint = azurite.environ["AZURE_STORAGE_ENDPOINT"].replace(azurite.host, proxy.host)
        environ = {**signed, "AZURE_STORAGE_ENDPOINT": endpoint, "AZURE_STORAGE_SAS_TOKEN": azurite.sas()}
        assert content(opened("az://models/odd", access=Access(environ=environ))) == {
            name: name.encode() for name in names
        }
        assert proxy.count("GET", "comp=list") == 1


# MLflow


@pytest.fixture(scope="module")
def tracking(memory_folder: Path) -> Iterator[str]:
    """A tracking server with the model `digits`: versions 1 to 3, a bucket's folder, a folder of this machine."""
    tool("test-packages.sh")
    folder = memory_folder / "mlflow"
    folder.mkdir()
    write(folder / "digits", TREE)
    with tracking_server(folder) as address:
        register(address, "digits", folder / "digits", f"s3://{BUCKET}/mlflow/digits")
        yield address


def registered(address: str, tracking: str, access: Access | None = None, **environ: str) -> ModelSource:
    known = {"MLFLOW_TRACKING_URI": tracking, **environ}
    return opened(address, access=access or Access(environ=known, backoff_seconds=0.05, attempts=3))


@pytest.mark.parametrize(
    ("address", "version"),
    [("models:/digits/1", "1"), ("models:/digits@champion", "2"), ("models:/digits/3", "3")],
    ids=["a run", "an alias", "a logged model"],
)
def test_a_registered_version_is_read_from_the_tracking_server(tracking: str, address: str, version: str) -> None:
    source = registered(address, tracking)
    assert content(source) == TREE
    assert source.inventory().origin == {"uri": "models:/digits", "revision": version}


def test_a_registered_version_in_a_bucket_is_read_there(tracking: str, swift: Swift) -> None:
    for name, data in TREE.items():
        swift.put(f"mlflow/digits/{name}", data)
    source = registered("models:/digits/4", tracking, **swift.environ)
    assert content(source) == TREE
    assert source.inventory().origin == {"uri": "models:/digits", "revision": "4"}


@pytest.mark.parametrize("address", ["models:/digits/99", "models:/nothing/1", "models:/digits@nobody"])
def test_what_is_not_registered_is_told(tracking: str, address: str) -> None:
    with pytest.raises(RemoteError, match="not found"):
        registered(address, tracking)


def test_a_registry_needs_a_name() -> None:
    with pytest.raises(UsageError) as caught:
        registered("models:/digits/1", "")
    assert caught.value.hint == "set MLFLOW_TRACKING_URI"


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A CA that nobody knows, which is also a server on this machine."""
    folder = tmp_path_factory.mktemp("authority")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=mlimg test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "ca.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return folder / "ca.pem", context


def test_a_file_comes_over_tls_from_a_server_that_the_ca_bundle_vouches_for(
    authority: tuple[Path, ssl.SSLContext],
) -> None:
    bundle, context = authority
    with FaultServer(WebFiles({"model.bin": LARGE}), tls=context) as server:
        address, sha256 = f"https://{server.host}/model.bin", Digest.of(LARGE)
        trusting = Access(ca_bundle=bundle, backoff_seconds=0.05)
        assert content(opened(address, access=trusting, sha256=sha256)) == {"model.bin": LARGE}
        with pytest.raises(RemoteError, match="no trusted connection"):
            opened(address, sha256=sha256)
        server.faults.append(Fault("GET", times=99, answer=None, change=_to_plain_http))
        with pytest.raises(RemoteError, match="not followed"):
            opened(address, access=trusting, sha256=sha256)


def _to_plain_http(_answer: object) -> Answer:
    return Answer(302, {"Location": "http://127.0.0.1/model.bin"})


def test_a_hub_over_tls_is_trusted_by_the_ca_bundle(authority: tuple[Path, ssl.SSLContext]) -> None:
    bundle, context = authority
    with FaultServer(Hub(TREE, frozenset(), "nowhere"), tls=context) as server:
        environ = {"HF_ENDPOINT": f"https://{server.host}", "HF_TOKEN": "canary"}
        access = Access(ca_bundle=bundle, environ=environ, attempts=2, backoff_seconds=0.05)
        source = opened("hf://organisation/digits", access=access)
        assert source.inventory().origin == {"uri": "hf://organisation/digits", "revision": COMMIT}
        assert content(source) == TREE


# Without a copy

_STREAM = """
import resource, sys
from pathlib import Path

resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))  # a longer file than that ends the process

from mlimg.append import model_image
from mlimg.pack import pack
from mlimg.runtime.digest import Digest
from mlimg.runtime.oci import Access
from mlimg.runtime.stores import ModelPayload, open_store
from mlimg.sources.remote import Wanted, open_remote
from mlimg.sources.selection import EVERYTHING

address, sha256, store = sys.argv[1:]
source = open_remote(Wanted(address, EVERYTHING, sha256=Digest.parse(sha256)), Access())
packed = pack(source, name="digits", version="3", framework="custom", format="custom")
image = model_image(packed.layers, {})
payload = ModelPayload(packed.manifest, packed.layers, image.config(), image.manifest(), packed.open)
stored = open_store(store, Access()).publish(payload)
print(stored.uri)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_a_model_larger_than_any_file_here_may_be_goes_from_its_place_to_a_registry(host: str, tmp_path: Path) -> None:
    """No file of more than 64 KiB can be written, and 192 MiB arrive, in less memory than that."""
    data = random.Random(11).randbytes(64 * 2**20) * 3
    with FaultServer(WebFiles({"folder/model.bin": data})) as server:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _STREAM, f"http://{server.host}/folder/model.bin", Digest.of(data).text,
             f"oci://{host}/streamed"],
            env=os.environ | {"TMPDIR": str(scratch), "HOME": str(scratch), "PYTHONPATH": str(ROOT)},
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    uri, peak_kib = done.stdout.split()
    assert list(scratch.iterdir()) == []
    assert int(peak_kib) < 150 * 1024
    with opened(uri).open(PurePosixPath("model.bin")) as file:
        assert file.read() == data


# The command line


@pytest.mark.parametrize("engine", ["graph"], indirect=True)
def test_a_remote_model_is_checked_offline_and_rendered_from_its_place(project: Project, tmp_path: Path) -> None:
    weights = (project.folder / "model" / "weights.json").read_bytes()
    shutil.rmtree(project.folder / "model")
    with FaultServer(WebFiles({"models/weights.json": weights})) as server:
        address = f"http://{server.host}/models/weights.json"
        project.set(model__source=address, model__sha256=Digest.of(weights).hex)
        checked = project.mlimg("check")
        assert checked.status == 0, checked.stderr
        assert server.count() == 0
        rendered = project.mlimg("render", "--pattern", "in-image", "--output", str(tmp_path / "out"))
        assert rendered.status == 0, rendered.stderr
        assert (tmp_path / "out" / "models" / "weights.json").read_bytes() == weights
        manifest = json.loads((tmp_path / "out" / "models" / "mlimg.manifest").read_text())
        assert manifest["source"] == {"uri": address}
        project.set(model__sha256="0" * 64)
        refused = project.mlimg("render", "--pattern", "in-image", "--output", str(tmp_path / "other"))
        assert refused.status == 18, refused.stderr
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("engine", ["graph"], indirect=True)
def test_a_release_is_made_of_a_model_that_never_was_here(published: Project, registry: str, tmp_path: Path) -> None:
    weights = (published.folder / "model" / "weights.json").read_bytes()
    shutil.rmtree(published.folder / "model")
    write(tmp_path, {"weights.json": weights, "notes.txt": b"no part of the model"})
    reference = f"{published.prefix}/artifacts/digits:7"
    command = ["oras", "push", "--plain-http", reference, "weights.json", "notes.txt"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    published.set(model__source=f"oci://{reference}", model__exclude=["*.txt"])
    release = published.build("in-image", "--push").release
    source = opened(f"oci://{release['image']['pinned']}")
    assert content(source) == {"weights.json": weights}
    assert release["tags"]
    assert not [path for path in published.folder.rglob("*") if path.name == "weights.json"]
    again = published.build("in-image", "--push").release
    assert again["image"]["digest"] == release["image"]["digest"]
