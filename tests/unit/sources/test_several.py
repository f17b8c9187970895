"""Several models as one: what lies where, and that a model stays what it is alone."""

from dataclasses import replace

import pytest

from mlimg.pack import pack
from mlimg.runtime.errors import ModelError
from mlimg.sources.several import NamedModel, SeveralModels
from tests.support.models import DictSource, content

DIGITS = DictSource({"model.joblib": b"digits", "vocabulary/words.txt": b"one two"})
WINE = DictSource({"model.joblib": b"wine", "run+x": b"#!"})


def several(*, hashed: bool) -> SeveralModels:
    models = []
    for name, source in (("wine", WINE), ("digits", DIGITS)):
        packed = pack(source, name=name, version="3", framework="sklearn", format="joblib")
        models.append(NamedModel(name, "3", "sklearn", "joblib", source, packed.manifest if hashed else None))
    return SeveralModels(models)


def test_each_model_lies_in_a_folder_of_its_name_with_the_manifest_that_it_has_alone() -> None:
    alone = pack(WINE, name="wine", version="3", framework="sklearn", format="joblib")
    found = content(several(hashed=True))
    assert list(found) == sorted(found)
    assert found.pop("wine/mlimg.manifest") == alone.manifest_bytes
    assert found.pop("digits/mlimg.manifest")
    assert found == {
        **{f"digits/{path}": data for path, data in DIGITS.files.items()},
        **{f"wine/{path}": data for path, data in WINE.files.items()},
    }
    assert [str(file.path) for file in several(hashed=True).inventory() if file.executable] == ["wine/run+x"]


def test_sizes_are_known_before_anything_is_hashed() -> None:
    before, after = (several(hashed=hashed).inventory() for hashed in (False, True))
    assert [(file.path, file.size_bytes) for file in before] == [(file.path, file.size_bytes) for file in after]
    assert all(file.sha256 for file in after)


def test_a_model_that_changes_after_it_was_hashed_is_noticed() -> None:
    changed = NamedModel("wine", "3", "sklearn", "joblib", DictSource({"model.joblib": b"vine", "run+x": b"#!"}))
    known = pack(WINE, name="wine", version="3", framework="sklearn", format="joblib").manifest
    source = SeveralModels([replace(changed, manifest=known)])
    with pytest.raises(ModelError, match=r"wine/model\.joblib"):
        pack(source, name="both", version="5", framework="sklearn", format="models")
