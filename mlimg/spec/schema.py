"""What a person may write in `mlimg.yaml`, typed.

`load.py` reads text into these values and keeps where each came from; nothing else builds them.
"""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mlimg.runtime.reference import ImageReference, ModelUri, check_tag


class Pattern(StrEnum):
    """How the model reaches the server."""

    IN_IMAGE = "in-image"
    LOAD = "load"


def _fullmatch(pattern: str, rule: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


def _image_name(text: str) -> str:
    reference = ImageReference.parse(text)
    if reference.tag or reference.digest:
        raise ValueError("the image is named without tag or digest: mlimg gives the tag")
    return text


def _reference(text: str) -> str:
    ImageReference.parse(text)
    return text


ImageName = Annotated[str, AfterValidator(_image_name)]
BaseImage = Annotated[str, AfterValidator(_reference)]
Version = Annotated[str, AfterValidator(check_tag)]
Identifier = Annotated[str, _fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", "letters, digits, `_`, `.` and `-`")]


class Section(BaseModel):
    """A mapping of the spec: closed, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# NOTE: the helper who owns spec/ completes fields, grammars, descriptions (for the JSON Schema) and validation.
class ServerSpec(Section):
    """`server:`"""

    template: str
    image: ImageName | None = None
    version: Version | None = None
    base: BaseImage | None = None
    requirements: tuple[str, ...] | str = ()
    code: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)


class ModelSpec(Section):
    """`model:`"""

    name: Identifier | None = None
    version: Version
    source: str
    store: str | None = None
    allow_pickle: bool = False
    follow_links: bool = False


class BuildSpec(Section):
    """`build:`"""

    platform: str | None = None
    index: str | None = None
    secrets: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()


class Spec(Section):
    """A whole `mlimg.yaml`."""

    image: ImageName
    pattern: Pattern | None = None
    server: ServerSpec
    model: ModelSpec
    build: BuildSpec = BuildSpec()
