"""Where a release goes: what `--force` may take over in a store. The stores' own tests have its races."""

import pytest

from mlimg.release import build
from mlimg.runtime.digest import Digest
from mlimg.runtime.errors import ConflictError, EngineError
from mlimg.runtime.stores.directory import CLAIM, DirectoryStore
from mlimg.spec.schema import Pattern
from tests.unit.test_release import Machine, machine

__all__ = ["machine"]


def test_a_build_takes_over_an_abandoned_version_by_force_alone(machine: Machine) -> None:
    machine.publish_server()
    store = machine.folder / "models"
    loaded = machine.loaded("model.store=./models", "model.name=scores", "model.version=3")
    folder = store / "scores" / "3"
    folder.mkdir(parents=True)
    (folder / CLAIM).write_text(f"{Digest.of(b'another')}\n")
    (folder / "half.bin").write_bytes(b"of it")
    with pytest.raises(ConflictError, match="never finished") as caught:
        build(loaded, machine.means(), pattern=Pattern.LOAD)
    assert "--force" in caught.value.hint
    # The model comes first: it is published before an engine is asked for, which is not there.
    with pytest.raises(EngineError):
        build(loaded, machine.means(), pattern=Pattern.LOAD, force=True)
    assert DirectoryStore(store).published("scores", "3") is not None
    assert not (folder / "half.bin").exists()
