"""`docs/spec.md` and the JSON Schema say what the loader does: every key, every example, every code."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mlimg.spec.load import json_schema
from mlimg.spec.problems import Code
from mlimg.spec.schema import Section, Spec, keys

from .conftest import SMALLEST, Load, with_value

DOCUMENT = (Path(__file__).parents[3] / "docs" / "spec.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
KEYS = [key.name for key in keys()]


def section_of(key: str) -> str:
    found = re.search(rf"^### `{re.escape(key)}`\n(.*?)(?=^##)", DOCUMENT, flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/spec.md has no section for {key}"
    return found[1]


def valid_by_schema(value: object) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(value)


def test_the_document_has_a_section_for_every_key_and_for_no_other() -> None:
    assert re.findall(r"^### `(.*)`$", DOCUMENT, flags=re.MULTILINE) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_section_tells_type_default_and_an_example_that_loads(load: Load, key: str) -> None:
    section = section_of(key)
    assert "* Type: " in section
    assert "Default: " in section or "Required." in section
    example = re.search(r"^\* Example: `(.*)`$", section, flags=re.MULTILINE)
    assert example
    (written,) = yaml.safe_load(example[1]).items()
    assert written[0] == key.rpartition(".")[2]
    spec = with_value(key, written[1])
    assert load(spec)
    assert valid_by_schema(spec)


@pytest.mark.parametrize("field", list(keys()), ids=lambda field: field.name)
def test_what_is_required_is_what_the_document_calls_required(field: Any) -> None:
    assert ("Required." in section_of(field.name)) == field.field.is_required()


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_loads_and_is_valid_by_the_schema(load: Load, example: str) -> None:
    assert load(example)
    assert valid_by_schema(yaml.safe_load(example))


def test_the_full_example_has_every_key(load: Load) -> None:
    written = set(load(EXAMPLES[1]).origins)
    assert {
        name.replace(".method", "").replace(".OMP_NUM_THREADS", "").replace(".scikit-learn", "") for name in written
    } == set(KEYS)


def test_the_smallest_example_is_the_smallest(load: Load) -> None:
    assert EXAMPLES[0] == SMALLEST
    smallest = yaml.safe_load(SMALLEST)
    for key in ("image", "server", "model"):
        assert not valid_by_schema({name: value for name, value in smallest.items() if name != key})


def test_every_code_is_in_the_document() -> None:
    assert set(re.findall(r"E-SPEC-[A-Z]+", DOCUMENT)) == {code.value for code in Code}


def test_the_schema_is_a_schema_and_describes_every_key() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def described(section: type[Section], properties: dict[str, Any]) -> None:
        assert set(properties) == set(section.model_fields)
        for name, field in section.model_fields.items():
            assert properties[name]["description"] == field.description
            assert field.description
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                described(inner, schema["$defs"][inner.__name__]["properties"])

    several = {"models", "version"}  # of which a spec of one model is made for each
    described(Spec, {name: value for name, value in schema["properties"].items() if name not in several})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.version", 3),
        ("server.version", 10),
        ("server.version", "1.0"),
        ("server.requirements", "requirements.txt"),
        ("server.requirements", []),
        ("server.options", {"a": 1, "b": 0.5, "c": True, "d": "x", "e": [1, "x"], "f": []}),
        ("server.env", {"A": ""}),
        ("pattern", "load"),
    ],
)
def test_the_schema_takes_what_the_loader_takes(load: Load, key: str, value: object) -> None:
    spec = with_value(key, value)
    assert load(spec)
    assert valid_by_schema(spec)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.version", 1.5),
        ("model.version", True),
        ("model.version", None),
        ("model.version", "a b"),
        ("server.env", {"A": 2}),
        ("server.image", None),
        ("model.allow_pickle", "true"),
        ("pattern", "image"),
        ("unknown", "x"),
        ("server.unknown", "x"),
        ("server.options", {"a": {"b": 1}}),
    ],
)
def test_the_schema_refuses_what_editors_can_tell_is_wrong(key: str, value: object) -> None:
    assert not valid_by_schema(with_value(key, value))
