"""Plans of servers to render, made of as little as a test cares about."""

from pathlib import Path, PurePosixPath
from typing import Any

from mlimg.files import ContextFile
from mlimg.plan import BaseImage, Platform, ServerPlan
from mlimg.runtime.digest import Digest
from mlimg.runtime.reference import ImageReference
from mlimg.template import Template, find_template

HANDLER = b"def load(model_dir, options):\n    return None\n\n\ndef predict(model, inputs):\n    return inputs\n"


def code(**files: bytes) -> tuple[ContextFile, ...]:
    """Server code: ``code(handler=b"…")`` is a folder with a handler.py."""
    return tuple(ContextFile(PurePosixPath(f"{name}.py"), data) for name, data in sorted(files.items()))


def base_image(reference: str = "python:3.13-slim", **changes: Any) -> BaseImage:
    """A base; its identity is that of its name unless given."""
    pinned = changes.pop("pinned", f"{reference}@{Digest.of(reference.encode())}")
    identity = changes.pop("identity", Digest.of(f"config of {reference}".encode()))
    return BaseImage(reference, pinned, identity, (Digest.of(b"a layer"),), **changes)


def server_plan(template: str | Path | Template = "sklearn", **changes: Any) -> ServerPlan:
    """A plan with the template's defaults."""
    if not isinstance(template, Template):
        template = find_template(str(template), Path)
    options = changes.pop("options", {})
    values: dict[str, Any] = {
        "image": ImageReference.parse("registry.test/digits-server:1.0"),
        "version": "1.0",
        "template": template,
        "platform": Platform("linux", "amd64"),
        "base_written": "python:3.13-slim",
        "requirements": (),
        "code": code(handler=HANDLER) if template.name == "python" else (),
        "options": template.check_options(options),
        "env": {},
        "index": None,
        "secrets": (),
        "inputs": Digest.of(b"what the user fixed"),
    }
    return ServerPlan(**{**values, **changes})


def write_template(folder: Path, *, manifest: str = "", **files: str) -> Path:
    """Write a template folder; ``Dockerfile="…"`` becomes `Dockerfile.j2`, other names Python files."""
    folder.mkdir(parents=True, exist_ok=True)
    head = f'name: {folder.name}\nversion: "1"\ndescription: a test\nbase: python:3.13-slim\n'
    (folder / "template.yaml").write_text(head + manifest)
    for name, text in {"handler": HANDLER.decode(), **files}.items():
        (folder / ("Dockerfile.j2" if name == "Dockerfile" else f"{name}.py")).write_text(text)
    return folder
