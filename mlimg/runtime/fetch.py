"""Fetch a published model into a version directory: download, verify, unpack, rename, marker last."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["resolving", "fetching", "verifying"]


class Stopped(Exception):  # noqa: N818 (nothing failed: the caller asked)
    """The caller's stop event was set; what had arrived is kept for the next try."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a model's way to this machine is. `bytes_total` is 0 while it is not known."""

    phase: Phase
    bytes_done: int = 0
    bytes_total: int = 0
