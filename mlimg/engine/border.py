"""Where the SDK's and the engine's failures become ours.

An engine says in words why it or a registry failed; the words are all there is to tell the classes apart.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import requests
import urllib3
from docker.errors import APIError, DockerException

from mlimg.runtime.errors import (
    CredentialsError,
    EngineError,
    IntegrityError,
    MlimgError,
    RemoteError,
    RemoteTemporaryError,
    printable,
)

_MAX_WORDS: Final = 600
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
# What registries and engines say, as regular expressions. In this order: a registry's "denied" may come wrapped in the
# engine's own "failed", and "not found" is the rest.
_REMOTE: Final[tuple[tuple[type[MlimgError], str, tuple[str, ...]], ...]] = (
    (
        EngineError,
        "choose an image that exists for this platform, or write build.platform",
        ("no match for platform", "no matching manifest", "does not match the specified platform"),
    ),
    (
        CredentialsError,
        "docker login the registry, or ask its owner for access",
        ("unauthorized", "authentication required", "no basic auth", "denied", "forbidden", r"\b40[13]\b"),
    ),
    (
        IntegrityError,
        "the registry, or something on the way to it, alters what it serves",
        (
            "unexpected commit digest",
            "failed commit on ref",
            "filesystem layer verification failed",
            "manifest verification failed",
            "digest mismatch",
            "does not match digest",
            "failed size validation",
        ),
    ),
    (
        RemoteTemporaryError,
        "run again when the registry can be reached",
        (
            "time-?out",
            "timed out",
            "deadline exceeded",
            "connection (?:refused|reset)",
            "no such host",
            "server misbehaving",
            "name resolution",
            "unreachable",
            r"\bEOF\b",
            "broken pipe",
            "too ?many ?requests",
            r"\b(?:429|50[0234])\b",
        ),
    ),
)


def engine_failed(doing: str, words: str, *, log: Sequence[str] = ()) -> EngineError:
    """The engine's refusal, with its own words and what helps against it."""
    hint = ""
    if _DISK_FULL.search(words) or any(map(_DISK_FULL.search, log)):
        hint = "the engine's disk is full: `docker system df` shows with what, `docker builder prune` frees build cache"
    return EngineError(f"the engine could not {doing}: {shown(words)}", hint=hint, log=log)


def remote_failed(doing: str, words: str) -> MlimgError:
    """A registry's refusal that the engine passed on, as one of our classes."""
    if _DISK_FULL.search(words):
        return engine_failed(doing, words)
    for kind, hint, phrases in _REMOTE:
        if re.search("|".join(phrases), words, re.IGNORECASE):
            return kind(f"the engine could not {doing}: {shown(words)}", hint=hint)
    return RemoteError(f"the engine could not {doing}: {shown(words)}")


def shown(words: str) -> str:
    """Foreign words as one line of bounded length, without passwords in URLs."""
    line = " ".join(words.split())
    line = re.sub(r"://[^/\s@]+@", "://***@", line)
    return printable(line if len(line) <= _MAX_WORDS else line[:_MAX_WORDS] + "…")


@contextmanager
def engine_errors(doing: str, failed: Callable[[str, str], MlimgError] = engine_failed) -> Iterator[None]:
    """Turn what the SDK raises while `doing` something into ours, the engine's refusals by `failed`."""
    try:
        yield
    except APIError as error:
        raise failed(doing, str(error.explanation or error)) from error
    except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise EngineError(
            f"the engine fell silent: it was to {doing}", hint="`docker info` shows whether it still answers"
        ) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, DockerException, OSError) as error:
        raise EngineError(
            f"the engine was lost: it was to {doing} ({shown(str(error))})",
            hint="`docker info` shows whether it still runs; running again is safe",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine answered nonsense: it was to {doing} ({shown(str(error))})") from error
