"""The two ways a model reaches its server."""

from enum import StrEnum


class Pattern(StrEnum):
    """How the model reaches the server."""

    IN_IMAGE = "in-image"
    LOAD = "load"
