"""Values in a Dockerfile: A9, A13 to A15, A17 and A18 of the fault matrix, as far as no engine is needed."""

import json
import re
import time

import pytest

from mlimg.dockerfile import MAX_DOCKERFILE_LENGTH, Instruction, parse_dockerfile, write_dockerfile
from mlimg.runtime.errors import LimitError, TemplateError


def write(text: str, values: dict[str, object] | None = None, **sources: str) -> str:
    return write_dockerfile("Dockerfile.j2", {"Dockerfile.j2": text, **sources}, values or {})


@pytest.mark.parametrize(
    ("expression", "value", "written"),
    [
        ("quoted", 'a"b', r'"a\"b"'),
        ("quoted", "a\\", r'"a\\"'),
        ("quoted", "$HOME ${HOME}", r'"\$HOME \${HOME}"'),
        ("sh", "a b; $(c) 'd'", "'a b; $(c) '\"'\"'d'\"'\"''"),
        ("sh_list", ["a", "b c"], "a 'b c'"),
        ("exec_form", ["a", 'b "c"', "$d"], r'["a", "b \"c\"", "$d"]'),
        ("env", {"A": "1", "B": "$x"}, 'A="1" \\\n    B="\\$x"'),
        ("word", "mlimg-1.0_x", "mlimg-1.0_x"),
        ("image", "registry.test:5000/a/b:1", "registry.test:5000/a/b:1"),
        ("secret_mounts", [], ""),
        ("secret_mounts", ["netrc"], " \\\n    --mount=type=secret,id=netrc,required=true"),
    ],
)
def test_each_filter_quotes_for_its_place(expression: str, value: object, written: str) -> None:
    assert write(f"{{{{ value | {expression} }}}}", {"value": value}) == written


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("quoted", "a\nRUN id"),
        ("quoted", "a\rb"),
        ("quoted", "a\0b"),
        ("quoted", "a\x85b"),
        ("quoted", "half a character \ud800"),
        ("quoted", 3),
        ("sh", "a\nb"),
        ("sh_list", "not a list"),
        ("exec_form", ["a\nb"]),
        ("exec_form", [1]),
        ("env", {"A B": "1"}),
        ("env", {"A\nRUN id": "1"}),
        ("env", ["A"]),
        ("word", "a b"),
        ("word", "a\n"),
        ("word", ""),
        ("image", "python:3.13 AS x"),
        ("image", "python\nRUN id"),
        ("secret_mounts", ["a,required=false"]),
    ],
)
def test_a_filter_refuses_what_cannot_stand_in_its_place(expression: str, value: object) -> None:
    with pytest.raises(TemplateError) as caught:
        write(f"{{{{ value | {expression} }}}}", {"value": value})
    assert caught.value.message.startswith("Dockerfile.j2:1: ")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "expression",
    ["value", "value | upper", "(value | quoted) ~ 'x'", "(value | quoted).lower()", "'constant'", "1", "value | safe"],
)
def test_a_value_that_no_filter_quoted_is_refused(expression: str) -> None:
    with pytest.raises(TemplateError, match=r"Dockerfile\.j2:2: a value is placed without a filter"):
        write(f"FROM x\nRUN {{{{ {expression} }}}}\n", {"value": "fine"})
    assert write("RUN {{ value | quoted }}", {"value": "fine"}) == 'RUN "fine"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM x\nRUN {{ misspelt | sh }}\n", "Dockerfile.j2:2: 'misspelt' is undefined"),
        ("FROM x\n\n{% if misspelt %}{% endif %}", "Dockerfile.j2:3: 'misspelt' is undefined"),
        ("{{ value.misspelt | sh }}", "Dockerfile.j2:1: 'str object' has no attribute 'misspelt'"),
        ("FROM x\n{% if %}", "Dockerfile.j2:2: Expected an expression"),
        ("FROM x\n{{ value | nofilter }}", "Dockerfile.j2:2: No filter named 'nofilter'"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(text: str, message: str) -> None:
    """A13."""
    with pytest.raises(TemplateError, match=re.escape(message)):
        write(text, {"value": "x"})


def test_a_mistake_in_an_included_file_is_told_with_that_file() -> None:
    with pytest.raises(TemplateError, match=r"^part\.j2:2: 'gone' is undefined"):
        write("FROM x\n{% include 'part.j2' %}", **{"part.j2": "RUN a\nRUN {{ gone | sh }}"})


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "part/../../secret", "absent.j2"])
def test_only_the_given_texts_can_be_included(name: str) -> None:
    """A15: there is no file system behind the loader."""
    with pytest.raises(TemplateError, match="there is no"):
        write(f"FROM x\n{{% include '{name}' %}}")
    assert write("FROM x\n{% include 'part.j2' %}", **{"part.j2": "RUN a"}) == "FROM x\nRUN a"


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "value.__class__.__init__.__globals__",
        "self.__init__.__globals__",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "lipsum.__globals__['os'].environ",
        "(value | attr('__class__')).__base__",
        "'{0.__class__.__mro__}'.format(value)",
        "items.append(1)",
        "options.update(a=1)",
        "joiner.__init__.__builtins__",
        "namespace.__class__",
    ],
)
def test_a_template_cannot_reach_python(expression: str) -> None:
    """A14, the sandbox."""
    values: dict[str, object] = {"value": "x", "items": [], "options": {}}
    with pytest.raises(TemplateError):
        write(f"{{{{ ({expression}) | sh }}}}", values)
    assert values == {"value": "x", "items": [], "options": {}}


def test_output_without_end_is_stopped() -> None:
    """A14, the cap on output."""
    started = time.monotonic()
    line = "RUN " + "x" * 1000
    with pytest.raises(LimitError, match="what it renders is over"):
        write(f"{{% for a in range(100000) %}}{line}\n{{% endfor %}}")
    assert time.monotonic() - started < 5
    rounds = MAX_DOCKERFILE_LENGTH // 1005
    assert len(write(f"{{% for a in range({rounds}) %}}{line}\n{{% endfor %}}")) == rounds * 1005


@pytest.mark.parametrize(
    "head",
    [
        "# syntax=docker/dockerfile:1",
        "#syntax=a",
        "# SYNTAX = a",
        "# escape=`",
        "# check=skip=all",
        "// syntax=a",
        "//syntax=a",
        '{"syntax": "a"}',
        "#!/bin/sh",
        "# a comment first\n# syntax=a",
        "\n\n# syntax=a",
        "\ufeff# syntax=a",
        "  # escape=`",
    ],
)
def test_a_dockerfile_that_chooses_how_it_is_read_is_refused(head: str) -> None:
    """A17."""
    with pytest.raises(TemplateError, match="the Dockerfile begins with"):
        write(f"{head}\nFROM x\n")


@pytest.mark.parametrize("head", ["# syntax", "# the syntax is = that of Docker", "FROM x\n# syntax=a", "# see a=b"])
def test_a_comment_that_is_no_directive_stays(head: str) -> None:
    """A17, the twins."""
    assert write(f"{head}\nFROM y\n") == f"{head}\nFROM y\n"


def test_a_line_that_no_engine_reads_is_refused() -> None:
    """A18."""
    longest = "x" * (65_535 - len('ENV A=""'))
    assert len(write("ENV A={{ value | quoted }}", {"value": longest})) == 65_535
    with pytest.raises(LimitError, match="line 2 of the Dockerfile is over 65535 bytes"):
        write("FROM x\nENV A={{ value | quoted }}", {"value": longest + "x"})
    with pytest.raises(LimitError):
        write("ENV A={{ value | quoted }}", {"value": "é" * 40_000})


def test_a_dockerfile_is_read_back() -> None:
    text = (
        "# comment\nFROM a AS b\n\n"
        'ENV A="1" \\\n# inside\n\n    B="2 # no comment"\n'
        "RUN <<EOF cat\nFROM inside\nEOF\n"
        'run ["a", "b"]\nLABEL x="<<EOF"\nRUN echo $((1<<2)) \'<<EOF\'\nCMD\t["serve"]'
    )
    assert parse_dockerfile(text) == (
        Instruction("FROM", "a AS b"),
        Instruction("ENV", 'A="1"     B="2 # no comment"'),
        Instruction("RUN", "<<EOF cat\nFROM inside\nEOF"),
        Instruction("RUN", '["a", "b"]'),
        Instruction("LABEL", 'x="<<EOF"'),
        Instruction("RUN", "echo $((1<<2)) '<<EOF'"),
        Instruction("CMD", '["serve"]'),
    )
    assert json.loads(parse_dockerfile(text)[-1].rest) == ["serve"]
