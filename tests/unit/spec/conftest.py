"""A spec in a folder of its own, and the fewest words to load it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlimg.spec.load import LoadedSpec, Overrides, load_spec
from mlimg.spec.problems import InvalidSpecError

SMALLEST = """\
image: registry.example.com/serving/digits
server:
  template: sklearn
model:
  version: "3"
  source: ./model
"""

Load = Callable[..., LoadedSpec]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, and the current directory."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def load(folder: Path) -> Load:
    """Write text, bytes or values as `mlimg.yaml` and load it, with settings over it."""

    def write_and_load(
        spec: str | bytes | dict[str, Any] = SMALLEST, *sets: str, environment: str = "", allow: tuple[Path, ...] = ()
    ) -> LoadedSpec:
        # JSON is YAML in which every text is quoted.
        text = json.dumps(spec) if isinstance(spec, dict) else spec
        data = text.encode() if isinstance(text, str) else text
        # A new file: ext4 flushes one that is cut to nothing and written anew, and this happens thousands of times.
        (folder / "mlimg.yaml").unlink(missing_ok=True)
        (folder / "mlimg.yaml").write_bytes(data)
        return load_spec(Path("mlimg.yaml"), Overrides(environment, sets, allow))

    return write_and_load


def attempt(load: Load, spec: str | dict[str, Any], *sets: str) -> LoadedSpec | InvalidSpecError:
    """Load, and return the refusal where there is one."""
    try:
        return load(spec, *sets)
    except InvalidSpecError as error:
        return error


def with_value(key: str, value: object) -> dict[str, Any]:
    """The smallest spec with one more key, given dotted."""
    spec: dict[str, Any] = {
        "image": "registry.example.com/serving/digits",
        "server": {"template": "sklearn"},
        "model": {"version": "3", "source": "./model"},
    }
    *sections, name = key.split(".")
    section = spec
    for part in sections:
        section = section.setdefault(part, {})
    section[name] = value
    if key == "model.sha256":
        spec["model"]["source"] = "https://models.example.com/digits.skops"
    return spec


def value_of(loaded: LoadedSpec, key: str) -> Any:
    """What a dotted key holds after loading."""
    value: Any = loaded.spec
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
