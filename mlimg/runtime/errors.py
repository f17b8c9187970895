"""The one family of errors, each with the exit status of the process that reports it.

The command line and the container use the same numbers; `docs/runtime-contract.md` lists them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final

RUN_AGAIN: Final = "running the same again is safe"


class MlimgError(Exception):
    """A failure somebody can act on: one line of what and where, and a hint of what next.

    `log` holds foreign output worth showing (the last lines of a failed build step). `published` names what
    had left the machine by then, as `telling` fills it in.
    """

    status: int = 70  # of the class; a container that ended has its own
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = tuple(log)
        self.published: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The class of the failure as machines read it, such as ``model`` or ``remote-temporary``."""
        return next(_KINDS[known] for known in type(self).__mro__ if known in _KINDS)


class UsageError(MlimgError):
    """The command line asks for something that makes no sense."""

    status = 2


class SpecError(MlimgError):
    """The spec, or a setting laid over it, is not valid."""

    status = 10


class TemplateError(MlimgError):
    """A server template is unknown, malformed or cannot be rendered."""

    status = 11


class ModelError(MlimgError):
    """The model's files are missing, changed while read, or not what they claim to be."""

    status = 12


class ContextError(MlimgError):
    """The build context cannot be written or changed underneath."""

    status = 13


class EngineError(MlimgError):
    """The Docker Engine or its builder is absent, failed, or did something else than asked."""

    status = 14


class CredentialsError(MlimgError):
    """A registry or store refuses the credentials, or they cannot be had."""

    status = 15


class RemoteError(MlimgError):
    """A registry or store refuses for good."""

    status = 16


class RemoteTemporaryError(MlimgError):
    """A registry or store cannot be reached now; running again is safe, which is the hint where there is no other."""

    status = 17
    retry = True

    def __init__(self, message: str, *, hint: str = RUN_AGAIN, log: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, log=log)


class IntegrityError(MlimgError):
    """Bytes do not match their digest, or an archive tries what it must not."""

    status = 18


class ConflictError(MlimgError):
    """That version is published with other content."""

    status = 19


class LocalIOError(MlimgError):
    """A local file, folder or disk fails."""

    status = 20


class LimitError(MlimgError):
    """An input is over a documented limit."""

    status = 21


class BusyError(MlimgError):
    """Another process holds what this one needs."""

    status = 22
    retry = True


class Stopped(Exception):  # noqa: N818 (nothing failed: the caller asked)
    """The caller's stop event was set; what had arrived is kept for the next try."""


@contextmanager
def telling(published: Iterable[str]) -> Iterator[None]:
    """Let an error say what had been published before it; `published` is asked when there is one."""
    try:
        yield
    except MlimgError as error:
        error.published = (*published, *error.published)
        raise


_KINDS: dict[type[MlimgError], str] = {
    MlimgError: "bug",
    UsageError: "usage",
    SpecError: "spec",
    TemplateError: "template",
    ModelError: "model",
    ContextError: "context",
    EngineError: "engine",
    CredentialsError: "credentials",
    RemoteError: "remote",
    RemoteTemporaryError: "remote-temporary",
    IntegrityError: "integrity",
    ConflictError: "conflict",
    LocalIOError: "local-io",
    LimitError: "limit",
    BusyError: "busy",
}


def printable(text: str) -> str:
    """Return `text` safe for a terminal: control, bidi and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
