"""A spec of several models: each is read as a single one is, under keys of its own."""

from typing import Any

import jsonschema
import pytest
import yaml

from mlimg.spec.load import json_schema
from mlimg.spec.problems import InvalidSpecError
from tests.unit.spec.conftest import Load

HEAD = "image: registry.example.com/serving/both\nserver: {template: sklearn}\n"
BOTH = f"""{HEAD}version: 5
models:
  - {{name: digits, version: "3", source: ./digits, include: ["*.skops"]}}
  - {{name: wine, version: 7, source: ./wine, allow_pickle: true}}
"""


def valid_by_schema(text: str) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text))


def told(load: Load, text: str, *sets: str) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpecError) as caught:
        load(text, *sets)
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_each_model_has_a_spec_of_its_own(load: Load) -> None:
    loaded = load(BOTH)
    assert (loaded.spec.model.version, loaded.origins["model.version"]) == ("5", "mlimg.yaml:3:10")
    digits, wine = loaded.models
    assert (digits.spec.model.name, digits.spec.model.version, digits.spec.model.include) == (
        "digits",
        "3",
        ("*.skops",),
    )
    assert (wine.spec.model.name, wine.spec.model.version, wine.spec.model.allow_pickle) == ("wine", "7", True)
    assert digits.spec.server == wine.spec.server == loaded.spec.server
    assert wine.origins["model.source"] == "mlimg.yaml:6:38"
    assert wine.shown("model.source") == "models[1].source"
    assert valid_by_schema(BOTH)


def test_settings_reach_what_the_models_share(load: Load) -> None:
    loaded = load(BOTH, "server.version=2")
    assert {part.spec.server.version for part in (loaded, *loaded.models)} == {"2"}


@pytest.mark.parametrize("key", ["models", "models.digits.version", "models[0].version", "version"])
def test_the_models_are_set_in_the_file_alone(load: Load, key: str) -> None:
    ((found, message),) = told(load, BOTH, f"{key}=1")
    assert (found, message) == (key, "is written in the file alone")


def test_a_setting_of_a_single_model_is_refused_with_who_made_it(load: Load) -> None:
    with pytest.raises(InvalidSpecError, match=r"^--set: model: is there beside `models`"):
        load(BOTH, "model.version=2")


def test_a_wrong_store_is_told_once_for_each_model_that_has_it(load: Load) -> None:
    text = BOTH.replace("source:", "store: ftp://x, source:")
    assert [key for key, _ in told(load, text)] == ["models[0].store", "models[1].store"]


def test_problems_have_the_keys_of_the_file(load: Load) -> None:
    text = BOTH.replace("name: digits", "nam: digits").replace("version: 7", "version: 1.10")
    text = text.replace("./wine", "../../wine").replace("template", "tempalte")
    found = dict(told(load, text))
    assert found.keys() == {
        "server.tempalte", "server.template", "models[0].nam", "models[1].version", "models[1].source",
    }  # fmt: skip
    assert "did you mean `name`" in found["models[0].nam"]
    assert "quote it" in found["models[1].version"]
    assert "leads out of the project" in found["models[1].source"]


MODEL = "{name: digits, version: 3, source: ./digits}"


@pytest.mark.parametrize(
    ("rest", "key", "message"),
    [
        (f"models: [{MODEL}]", "version", "is missing"),
        (f"version: 1.10\nmodels: [{MODEL}]", "version", "quote it"),
        ("version: 5\nmodels: []", "models", "expected a list"),
        ("version: 5\nmodels: {name: digits}", "models", "expected a list"),
        ("version: 5\nmodels: digits", "models", "expected a list"),
        ("version: 5\nmodels: [digits]", "models[0]", "expected keys and values"),
        ("version: 5\nmodels: [{version: 3, source: ./digits}]", "models[0].name", "is missing"),
        (
            "version: 5\nmodels: [{name: mlimg.manifest, version: 3, source: ./digits}]",
            "models[0].name",
            "mlimg writes",
        ),
        (f"version: 5\nmodels: [{MODEL}, {MODEL}]", "models[1].name", "another model is named `digits`"),
        (
            "version: 5\nmodels: [{name: a, version: 1, source: a, store: ./x}, {name: b, version: 1, source: b}]",
            "models",
            "one store",
        ),
        (f"version: 5\nmodel: {MODEL}\nmodels: [{MODEL}]", "model", "write one of the two"),
        (f"version: 5\nmodel: {MODEL}", "version", "unknown key"),
    ],
)
def test_a_list_that_is_none_is_refused(load: Load, rest: str, key: str, message: str) -> None:
    ((found, said),) = told(load, f"{HEAD}{rest}\n")
    assert found == key
    assert message in said


def test_the_schema_knows_when_it_is_one_and_when_several(load: Load) -> None:
    rests: dict[str, Any] = {
        f"model: {MODEL}": True,
        f"version: 5\nmodels: [{MODEL}]": True,
        f"models: [{MODEL}]": False,
        "version: 5\nmodels: [{version: 3, source: ./digits}]": False,
        f"version: 5\nmodel: {MODEL}": False,
        f"version: 5\nmodel: {MODEL}\nmodels: [{MODEL}]": False,
        "": False,
    }
    assert {rest: valid_by_schema(f"{HEAD}{rest}\n") for rest in rests} == rests
    for rest, right in rests.items():
        if right:
            assert load(f"{HEAD}{rest}\n")
