"""Templates of somebody else's: A14 of the fault matrix."""

import shutil
import subprocess
import sys
import time

import pytest

from mlimg.confined import MEMORY_BYTES, write_confined
from mlimg.dockerfile import write_dockerfile
from mlimg.runtime.errors import TemplateError


def test_a_confined_template_renders_as_any_other() -> None:
    sources = {
        "Dockerfile.j2": "FROM {{ base | image }}\n{% include 'part.j2' %}",
        "part.j2": "CMD {{ a | exec_form }}",
    }
    values = {"base": "python:3.13", "a": ["b", "ü"]}
    assert write_confined("Dockerfile.j2", sources, values) == write_dockerfile("Dockerfile.j2", sources, values)


def test_mlimg_may_be_installed_where_only_this_process_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the user's own site-packages, which isolated Pythons pass over."""
    bare = shutil.which("python3", path=f"{sys.base_prefix}/bin") or ""
    assert subprocess.run([bare, "-I", "-c", "import mlimg"], capture_output=True, check=False).returncode != 0
    monkeypatch.setattr(sys, "executable", bare)
    assert write_confined("Dockerfile.j2", {"Dockerfile.j2": "FROM a"}, {}) == "FROM a"


def test_a_mistake_in_a_confined_template_is_told_as_usual() -> None:
    with pytest.raises(TemplateError, match=r"Dockerfile\.j2:2: 'gone' is undefined") as confined:
        write_confined("Dockerfile.j2", {"Dockerfile.j2": "FROM a\nRUN {{ gone | sh }}"}, {})
    assert confined.value.status == 11


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ '%c' % 65 ** 99999999 | sh }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 10 | sh }}",
        "{{ ('x' * 10 ** 8) | center(10 ** 10) | sh }}",
        "{% set a = namespace(b='x') %}{% for _ in range(99) %}{% set a.b = a.b + a.b %}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_a_bomb_ends_in_an_error_within_seconds_and_bounded_memory(bomb: str) -> None:
    """A14."""
    started = time.monotonic()
    # A process of its own: what a child has used at most begins with what its parent had at most.
    measured = subprocess.run([sys.executable, "-c", MEASURED, bomb], capture_output=True, text=True, check=True)
    message, peak_kib = measured.stdout.splitlines()
    assert message
    assert message.isprintable()
    assert time.monotonic() - started < 15
    assert 0 < int(peak_kib) * 1024 <= MEMORY_BYTES


MEASURED = """
import resource, sys
from mlimg.confined import write_confined
from mlimg.runtime.errors import LimitError, TemplateError

try:
    write_confined("Dockerfile.j2", {"Dockerfile.j2": sys.argv[1]}, {})
except (LimitError, TemplateError) as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
