"""Python requirements as the spec takes them: names and versions, one a line.

A subset of https://packaging.python.org/en/latest/specifications/dependency-specifiers/ that cannot hold an
installer's option or lead to a local file. The installer judges what the versions mean.
"""

import re
from typing import Final

from mlimg.spec import grammar

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
    if "://" in text or "@" in text:
        raise ValueError("a requirement's address is https://host/path, with neither credentials nor query")
    if text.startswith("-"):
        raise ValueError(f"{grammar.shown(text)} is an option: the index is build.index, a file is written alone")
    if text.endswith(FILE_SUFFIXES):
        raise ValueError(f"{grammar.shown(text)} is a file: write it alone, not in a list")
    raise ValueError(f"{grammar.shown(text)} is not a requirement such as scikit-learn==1.7.2")


def requirements_file(text: str) -> str:
    """The path of a file with requirements. Raises ValueError."""
    if not text.endswith(FILE_SUFFIXES):
        raise ValueError(
            f"{grammar.shown(text)} is not a file ending in .txt or .lock; requirements themselves are a list: "
            "[scikit-learn==1.7.2]"
        )
    return grammar.path(text)
