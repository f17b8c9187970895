"""Reading `template.yaml`."""

import re

import pytest

from mlimg.runtime.errors import LimitError, TemplateError
from mlimg.template_yaml import Manifest, Option, read_manifest

HEAD = 'name: mine\nversion: "1"\ndescription: a test\nbase: python:3.13-slim\n'


def read(text: str) -> Manifest:
    return read_manifest(text.encode(), "template.yaml")


def test_the_smallest_manifest_has_defaults() -> None:
    manifest = read(HEAD)
    assert (manifest.command, manifest.health.port, manifest.health.ready) == (("serve",), 8080, "/v2/health/ready")
    assert manifest.named_options() == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD.replace('"1"', "1.10"), "template.yaml:2:10: version: "),
        (HEAD + "colour: red\n", "template.yaml:5:9: colour: "),
        (HEAD.replace("name: mine\n", ""), "template.yaml:1:1: name: "),
        (HEAD + "name: again\n", "template.yaml:5:1: name: the key is there already"),
        (HEAD + "requirements: [--index-url=https://evil.test]\n", "template.yaml:5:16: requirements[0]: "),
        (HEAD + "base: python 3\n", "template.yaml:5:1: base: the key"),
        (HEAD.replace("python:3.13-slim", "Python!"), "template.yaml:4:7: base: "),
        (HEAD + "health: {port: 0}\n", "template.yaml:5:16: health.port: "),
        (HEAD + "health: {ready: x}\n", "template.yaml:5:17: health.ready: "),
        (HEAD + "command: []\n", "template.yaml:5:10: command: "),
        (HEAD + "options:\n  rows: {type: integer, default: many}\n", "template.yaml:6:9: options.rows: `many` is not"),
        (HEAD + "options:\n  rows: {type: int}\n", "template.yaml:6:16: options.rows.type: "),
        (HEAD + "options:\n  m: {choices: [a, b], default: c}\n", "`c` is not one of `a`, `b`"),
        (HEAD + "variants: {device: {cpu: {}}}\n", "template.yaml:5:26: variants.device.cpu: expected an option"),
        (
            HEAD + "options: {d: {choices: [a], default: a}}\nvariants: {d: {b: {}}}\n",
            "template.yaml:6:19: variants.d.b: expected one of a",
        ),
        (HEAD + "indexes: {a: http://mirror.test/x}\n", "template.yaml:5:14: indexes.a: packages come over https"),
        (HEAD + "size_mib: 0\n", "template.yaml:5:11: size_mib: "),
        ("- a list\n", "template.yaml:1:1"),
        ("a: [", "template.yaml:"),
    ],
)
def test_a_bad_manifest_is_told_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(problem)) as caught:
        read(text)
    assert caught.value.status == 11


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(TemplateError) as caught:
        read(HEAD.replace("a test", '"a\\nb"') + "colour: red\ncommand: x\n")
    assert len(caught.value.message.splitlines()) == 3


def test_a_bomb_is_refused() -> None:
    """A4, A5."""
    with pytest.raises((LimitError, TemplateError)):
        read("a: " + "[" * 20_000)
    with pytest.raises(TemplateError, match="alias"):
        read(HEAD + "requirements: &a [numpy]\nframeworks: *a\n")


@pytest.mark.parametrize(
    ("kind", "value", "parsed"),
    [
        ("text", "a", "a"),
        ("integer", 3, 3),
        ("integer", "-3", -3),
        ("number", 3, 3.0),
        ("number", "1e3", 1000.0),
        ("boolean", True, True),
        ("boolean", "False", False),
    ],
)
def test_a_value_is_read_as_its_options_type(kind: str, value: object, parsed: object) -> None:
    option = Option("x", kind, required=False)  # type: ignore[arg-type]
    assert option.parse(value) == parsed
    assert type(option.parse(value)) is type(parsed)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", 3),
        ("text", "a\nb"),
        ("integer", 3.0),
        ("integer", True),
        ("integer", "3.0"),
        ("integer", "٣"),
        ("integer", "9" * 5000),
        ("number", "inf"),
        ("number", "nan"),
        ("number", 10**400),
        ("number", False),
        ("boolean", "yes"),
        ("boolean", 1),
        ("text", ["a"]),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, value: object) -> None:
    with pytest.raises(ValueError, match=r" is not (a |true)"):
        Option("x", kind, required=False).parse(value)  # type: ignore[arg-type]
