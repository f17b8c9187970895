"""What was fixed when the server image was built: `server.json` beside the handler."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from mlimg.runtime.errors import ModelError, TemplateError
from mlimg.runtime.manifest import ModelManifest

CUSTOM: Final = "custom"  # a framework that no template names: a class of the user's in a known format


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Which template made this server, what it serves, the options its handler is given, and the server's own."""

    template: str
    template_version: str
    frameworks: tuple[str, ...]
    formats: tuple[str, ...]  # none, or `any`: the handler is the user's, and takes what it takes
    options: Mapping[str, Any]
    serving: Mapping[str, Any] = field(default_factory=dict)

    @property
    def server_name(self) -> str:
        """What the server calls itself."""
        return f"mlimg-{self.template}"

    @classmethod
    def load(cls, server_dir: Path) -> Self:
        """Read `server.json`. Raises TemplateError."""
        path = server_dir / "server.json"
        try:
            value = json.loads(path.read_bytes())
            return cls(
                template=str(value["template"]),
                template_version=str(value["templateVersion"]),
                frameworks=tuple(map(str, value["frameworks"])),
                formats=tuple(map(str, value["formats"])),
                options=dict(value["options"]),
                serving=dict(value.get("serving", {})),
            )
        except OSError as error:
            raise TemplateError(
                f"{path} cannot be read: {error.strerror}", hint="build the server with mlimg"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise TemplateError(f"{path} is not what mlimg writes: {error!r}") from error

    def check_serves(self, manifest: ModelManifest) -> None:
        """Refuse a model that this server cannot run. Raises ModelError."""
        if not self.formats or "any" in self.formats:
            return
        for what, theirs, ours in (
            ("framework", manifest.framework, self.frameworks),
            ("format", manifest.format, self.formats),
        ):
            if theirs not in (*ours, CUSTOM):
                raise ModelError(
                    f"model {manifest.name}:{manifest.version} is of {what} {theirs}: "
                    f"this server ({self.template}) serves {', '.join(ours)}",
                    hint="deploy the model with a server built from a template that serves it",
                )
