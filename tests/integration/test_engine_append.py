"""A model laid on a server inside the engine, on both image stores: run, pushed, saved, judged by other programs."""

import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlimg.append import append
from mlimg.engine.base import resolve_base
from mlimg.engine.docker import Engine, EngineImage
from mlimg.engine.load import Appended, load
from mlimg.plan import Platform
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import CredentialsError, EngineError, ModelError, RemoteError, RemoteTemporaryError
from mlimg.runtime.oci import Credentials
from tests.support.engines import Engine as Host


@dataclass(frozen=True)
class Bytes:
    """A layer in memory that may lie about itself."""

    data: bytes
    digest: Digest
    sent: bytes | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    @property
    def resume_key(self) -> None:
        return

    def chunks(self) -> Iterator[bytes]:
        yield self.sent if self.sent is not None else self.data


def layer(name: str, content: bytes) -> Bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(f"models/{name}")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return Bytes(buffer.getvalue(), Digest.of(buffer.getvalue()))


@pytest.fixture
def connected(engine: Host, tmp_path: Path) -> Iterator[Engine]:
    connected = Engine.connect(engine.env | {"XDG_CACHE_HOME": str(tmp_path)})
    yield connected
    connected.close()


@pytest.fixture
def name(engine: Host) -> Iterator[str]:
    """A name of this test's own; whatever carries it is removed."""
    name = f"mlimg.local/test-{uuid.uuid4().hex[:8]}"
    yield name
    for image in engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", f"{name}*").split():
        engine.docker("image", "rm", "--force", image)


@pytest.fixture
def server(engine: Host, connected: Engine, name: str, base_image: str) -> EngineImage:
    dockerfile = f'FROM {base_image}\nRUN mkdir /srv/{name[-8:]}\nUSER 10001:0\nLABEL a=b\nENTRYPOINT ["cat"]\n'
    engine.docker("build", "--tag", f"{name}:server", "-", stdin=dockerfile)
    image = connected.image(f"{name}:server")
    assert image is not None
    return image


def test_an_appended_image_runs(engine: Host, connected: Engine, server: EngineImage, name: str) -> None:
    model = layer("weights", b"the weights")
    image = append(server.image, [model], {"io.mlimg.model.name": "m"})
    image_id = load(connected, server, image, [model], tags=[f"{name}:1", f"{name}:1-1"]).id
    assert engine.docker("run", "--rm", f"{name}:1", "/models/weights") == "the weights"
    assert engine.docker("image", "inspect", "--format", "{{.Id}}", f"{name}:1-1") == image_id
    assert engine.docker("image", "inspect", "--format", "{{.Config.User}}", f"{name}:1") == "10001:0"


def test_an_appended_image_survives_a_registry(
    engine: Host, connected: Engine, server: EngineImage, name: str, registry: str
) -> None:
    model = layer("weights", os.urandom(3_000_000))
    image = append(server.image, [model], {"io.mlimg.model.name": "m"})
    pushed = f"{registry}/{name.partition('/')[2]}:1"
    image_id = load(connected, server, image, [model], tags=[pushed]).id
    digest = connected.push(pushed)
    found = json.loads(engine.docker("manifest", "inspect", "--insecure", "--verbose", f"{pushed}"))
    assert found["Descriptor"]["digest"] == digest.text
    # Nothing of it is in the engine any more, so what comes back comes from the registry.
    engine.docker("image", "rm", "--force", image_id)
    pulled = connected.pull(f"{pushed.rpartition(':')[0]}@{digest}")
    assert pulled.image.identity == image.identity
    assert engine.docker("run", "--rm", "--entrypoint", "sha256sum", pulled.id, "/models/weights")
    engine.docker("image", "rm", "--force", pulled.id)


def test_an_appended_image_survives_save_and_load(
    engine: Host, connected: Engine, server: EngineImage, name: str, tmp_path: Path
) -> None:
    model = layer("weights", b"kept in an archive")
    image = append(server.image, [model], {"io.mlimg.model.name": "m"})
    image_id = load(connected, server, image, [model], tags=[f"{name}:1"]).id
    engine.docker("save", "--output", str(tmp_path / "image.tar"), f"{name}:1")
    engine.docker("image", "rm", "--force", image_id)
    engine.docker("load", "--input", str(tmp_path / "image.tar"))
    assert engine.docker("run", "--rm", f"{name}:1", "/models/weights") == "kept in an archive"


def test_only_what_changed_is_sent(connected: Engine, server: EngineImage, name: str) -> None:
    big, small, other = layer("big", bytes(2_000_000)), layer("small", b"1"), layer("small", b"2")
    first = append(server.image, [big, small], {"io.mlimg.model.name": "m"})
    load(connected, server, first, [big, small], tags=[f"{name}:1"])
    # The large layer could not even be sent again: its bytes are gone.
    gone = Bytes(big.data, big.digest, sent=b"")
    second = append(server.image, [gone, other], {"io.mlimg.model.name": "m"})
    appended = load(connected, server, second, [gone, other], tags=[f"{name}:2"])
    assert appended.sent_bytes == other.size_bytes
    found = connected.image(f"{name}:2")
    assert found is not None
    assert found.image.diff_ids == (*server.image.diff_ids, big.digest, other.digest)


def test_appending_again_sends_nothing(connected: Engine, server: EngineImage, name: str) -> None:
    model = layer("weights", b"once")
    image = append(server.image, [model], {"io.mlimg.model.name": "m"})
    first = load(connected, server, image, [model], tags=[f"{name}:1"]).id
    gone = Bytes(model.data, model.digest, sent=b"")
    assert load(connected, server, image, [gone], tags=[f"{name}:again"]) == Appended(first, 0)


WEIGHTS = os.urandom(3_000_000)
CHANGES = {
    "ends otherwise": lambda sent: sent[:-5000] + b"x" * 5000,
    "begins otherwise and is shorter": lambda sent: b"x" * 5000 + sent[5000:-500_000],
    "empty": lambda _: b"",
    "longer": lambda sent: sent * 2,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_changes_while_it_is_sent_leaves_nothing_and_the_right_one_is_taken_then(
    engine: Host, connected: Engine, server: EngineImage, name: str, change: Callable[[bytes], bytes]
) -> None:
    """B2."""
    model = layer("weights", WEIGHTS + name.encode())
    image = append(server.image, [model], {"test": name})
    with pytest.raises(ModelError, match="changed"):
        load(connected, server, image, [Bytes(model.data, model.digest, change(model.data))], tags=[f"{name}:1"])
    assert not connected.images_by_label(f"test={name}")
    assert connected.image(f"{name}:1") is None
    load(connected, server, image, [model], tags=[f"{name}:1"])
    printed = engine.docker("run", "--rm", "--entrypoint", "sha256sum", f"{name}:1", "/models/weights")
    assert printed.split()[0] == Digest.of(WEIGHTS + name.encode()).hex


def test_an_engine_on_either_store_gives_an_image_the_same_identity(
    connected: Engine, server: EngineImage, name: str
) -> None:
    model = layer("weights", b"w")
    image = append(server.image, [model], {"io.mlimg.model.name": "m"})
    load(connected, server, image, [model], tags=[f"{name}:1"])
    found = connected.image(f"{name}:1")
    assert found is not None
    assert found.image.identity == image.identity
    assert connected.store == "containerd" or found.id == image.identity.text


def test_a_registry_s_refusals_have_their_class(
    engine: Host, connected: Engine, server: EngineImage, registry: str, registry_auth: str
) -> None:
    """D8: missing, refused, not allowed; and the twin that passes."""
    with pytest.raises(RemoteError):
        connected.pull(f"{registry}/nothing/here:1")
    with pytest.raises(RemoteTemporaryError):
        connected.pull("127.0.0.1:9/nothing/here:1")
    repository = uuid.uuid4().hex
    connected.tag(server.id, f"{registry_auth}/{repository}:1")

    def push_as(credentials: Credentials | None) -> Digest:
        with closing(Engine.connect(engine.env, lambda _host: credentials)) as somebody:
            return somebody.push(f"{registry_auth}/{repository}:1")

    for refused in (None, Credentials("alice", "wrong")):
        with pytest.raises(CredentialsError):
            push_as(refused)
    assert push_as(Credentials("alice", "secret")).text.startswith("sha256:")
    engine.docker("image", "rm", f"{registry_auth}/{repository}:1")


def test_a_base_in_a_registry_is_pinned_and_pulled(
    engine: Host, connected: Engine, server: EngineImage, name: str, registry: str
) -> None:
    reference = f"{registry}/{name.partition('/')[2]}:base"
    connected.tag(server.id, reference)
    digest = connected.push(reference)
    engine.docker("image", "rm", "--force", reference)
    base = resolve_base(connected, reference, connected.platform)
    assert base.pinned == f"{reference.rpartition(':')[0]}@{digest}"
    assert base.identity == server.image.identity
    engine.docker("image", "rm", "--force", reference)


def test_a_base_for_another_platform_is_refused(connected: Engine, name: str, server: EngineImage) -> None:
    """D8: wrong architecture."""
    with pytest.raises((EngineError, RemoteTemporaryError)):
        resolve_base(connected, f"{name}:server", Platform("linux", "s390x"))
