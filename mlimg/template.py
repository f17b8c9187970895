"""A server template: a folder that says how a server is made. `docs/templates.md` shows how to write one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlimg.runtime.digest import Digest


# NOTE: the helper who owns template.py completes this.
@dataclass(frozen=True, slots=True)
class Template:
    """A template folder, read and checked."""

    name: str
    version: str
    builtin: bool
    folder: Path
    base: str
    requirements: tuple[str, ...]
    frameworks: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ("serve",)
    digest: Digest | None = None
