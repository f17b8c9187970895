"""Python requirements as the spec takes them: names and versions, one a line.

A subset of https://packaging.python.org/en/latest/specifications/dependency-specifiers/ that cannot hold an
installer's option or lead to a local file. The installer judges what the versions mean.
"""

import re
from collections.abc import Iterator
from typing import Final

from mlimg.spec import grammar
from mlimg.spec.problems import Code, InvalidSpecError, Place, Problem

FILE_SUFFIXES: Final = (".txt", ".lock")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?"
_EXTRAS = rf"(?: ?\[{_NAME}(?: ?, ?{_NAME}){{0,63}}\])?"
_CLAUSE = r"(?:===|==|~=|!=|<=|>=|<|>) ?[A-Za-z0-9][A-Za-z0-9._*+!-]{0,126}"
_VERSIONS = rf"(?: ?{_CLAUSE}(?: ?, ?{_CLAUSE}){{0,31}})?"
_ADDRESS = r"(?: ?@ ?https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[A-Za-z0-9._~%+/-]+(?:#sha256=[0-9a-f]{64})?)"
# The variables of a marker and what they are compared with; uv reads the logic. The groups are possessive:
# `<===` reads as two operators in two ways, and many of them would be tried in every combination.
_MARKER = (
    r"(?: ?; ?(?>\(|\)| |and\b|or\b|in\b|not\b|===|==|~=|!=|<=|>=|<|>"
    r"|python_full_version|python_version|os_name|sys_platform|platform_[a-z_]{1,30}|implementation_[a-z]{1,10}"
    r"|\"[A-Za-z0-9._*+ -]{0,64}\"|'[A-Za-z0-9._*+ -]{0,64}'){1,200}+)?"
)
_HASHES = r"(?:(?: |(?<= ))--hash=sha256:[0-9a-f]{64}){0,200}"
_REQUIREMENT = re.compile(rf"{_NAME}{_EXTRAS}(?:{_ADDRESS}|{_VERSIONS}){_MARKER}{_HASHES}")


def requirement(text: str) -> str:
    """One requirement. Raises ValueError, without the text where it has an address: credentials may be in it."""
    if len(text) > 16 * 1024:
        raise ValueError("a requirement is longer than 16 KiB")
    if _REQUIREMENT.fullmatch(text) and not text.endswith(FILE_SUFFIXES):
        return text
    if text.startswith("-"):
        option = re.split("[ =]", text, maxsplit=1)[0]  # what follows may be an address
        raise ValueError(f"{grammar.shown(option)} is an option: the index is build.index, a file is written alone")
    if "://" in text or "@" in text:
        raise ValueError("a requirement's address is https://host/path, with neither credentials nor query")
    if text.endswith(FILE_SUFFIXES):
        raise ValueError(f"{grammar.shown(text)} is a file: write it alone, not in a list")
    raise ValueError(f"{grammar.shown(text)} is not a requirement such as scikit-learn==1.7.2")


def required_package(line: str) -> str:
    """The name of the package that a requirement asks for, as indexes have it."""
    matched = re.match(_NAME, line)
    return grammar.package_name(matched[0]) if matched else ""


def with_package(line: str, package: str) -> str:
    """The same requirement of another package; `package` may be empty for its own."""
    return re.sub(_NAME, package, line, count=1) if package else line


def requirements_file(text: str) -> str:
    """The path of a file with requirements. Raises ValueError."""
    if not text.endswith(FILE_SUFFIXES):
        raise ValueError(
            f"{grammar.shown(text)} is not a file ending in .txt or .lock; requirements themselves are a list: "
            "[scikit-learn==1.7.2]"
        )
    return grammar.path(text)


def requirements_in(text: str, name: str) -> tuple[str, ...]:
    """The requirements that the text of a file holds, as pip and uv read it: locks with hashes, too.

    Raises InvalidSpecError with every line that is none; `name` is the file's in its message.
    """
    found, problems = [], []
    for number, line in _logical_lines(text):
        try:
            found.append(requirement(line))
        except ValueError as error:
            problems.append(Problem(Place.in_file(name, number, 1), "", str(error), Code.VALUE))
    if problems:
        raise InvalidSpecError(name, problems)
    return tuple(found)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without comments and empty ones; those that end in a backslash go on."""
    begun, number_begun = "", 0
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        written = re.sub(r"(?:^|[ \t]+)#.*", "", line.removesuffix("\r"))
        number_begun = number_begun if begun else number
        begun += written.removesuffix("\\")
        if written.endswith("\\"):
            begun += " "
            continue
        if begun.strip():
            yield number_begun, re.sub(r"[ \t]+", " ", begun).strip(" ")
        begun = ""
