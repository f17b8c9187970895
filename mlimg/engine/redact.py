"""Secrets kept out of what is shown."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from mlimg.engine.lines import clean_line
from mlimg.runtime.errors import CredentialsError

MAX_SECRET_BYTES: Final = 512 * 1024  # BuildKit's own limit
_SHORTEST: Final = 6
# The words of netrc and of pip's and uv's configuration: no secrets, and to blot them out would hide what went wrong.
_KEYWORDS: Final = frozenset(
    {"machine", "login", "password", "account", "default", "macdef", "index-url", "extra-index-url"}
)
_MACHINE: Final = re.compile(r"\bmachine\s+\S+")  # a host's name helps to understand, and is no secret
_URL_USER: Final = re.compile(r"(?<=://)[^/\s@]+@")


class Redactor:
    """Blots out the values of secrets, and the user part of every URL."""

    def __init__(self, values: Iterable[str]) -> None:
        # Longest first: a value may hold another.
        ordered = sorted({value for value in values if len(value) >= _SHORTEST}, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    @classmethod
    def of_files(cls, paths: Iterable[Path]) -> Self:
        """Know the words of the files of secrets. Raises CredentialsError for one that cannot be read."""
        return cls(value for path in paths for value in _values(path))

    def __call__(self, text: str) -> str:
        """The text with `***` in place of each secret."""
        text = _URL_USER.sub("***@", text)
        return self._values.sub("***", text) if self._values else text


def _values(path: Path) -> Iterable[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise CredentialsError(f"cannot read the secret in {path}: {error.strerror}") from error
    if len(data) > MAX_SECRET_BYTES:
        raise CredentialsError(f"the secret in {path} is over {MAX_SECRET_BYTES // 1024} KiB")
    for line in data.decode("utf-8", errors="replace").splitlines():
        # As it is shown: what a line looks like in a log went through the same cleaning.
        clean = clean_line(line).strip()
        yield clean
        for word in re.split(r"[\s=:@,'\"]+", _MACHINE.sub("", clean)):
            if word.lower() not in _KEYWORDS:
                yield word
