"""A spec's bytes become plain values, each with its place; nothing that YAML would guess or repeat survives.

YAML is read event by event, never composed: an alias is refused before it is followed, and depth and number of
values are counted before they cost anything. A plain scalar is a value only if YAML 1.1 (PyYAML, Ruby, most tools)
and YAML 1.2 (editors, Go) read it alike and print it as it was written; anything else is `Unclear`.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mlimg.runtime.errors import LimitError, LocalIOError, SpecError, printable
from mlimg.spec.grammar import shown
from mlimg.spec.problems import Code, InvalidSpecError, Place, Problem

MAX_SPEC_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 10_000

KeyPath = tuple[str | int, ...]
"""The way to a value: ``("server", "requirements", 0)``."""

# Characters that make what an editor shows differ from what YAML reads: controls, line breaks known to YAML alone,
# text that runs backwards (https://trojansource.codes), marks of byte order, halves of characters.
_DECEPTIVE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,127}")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]{0,127})\.[0-9]{1,128}(?:[eE][-+][0-9]{1,4})?")
# https://yaml.org/spec/1.2.2/#1032-tag-resolution, as far as PyYAML does not know it.
_NUMBER_OF_YAML_1_2 = re.compile(
    r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
)
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Unclear:
    """A plain scalar that is not the same to everyone: ``1_000``, ``no``, ``12:30``, ``null``, or nothing at all."""

    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands where a problem is already told: an alias, a tagged value."""


@dataclass(frozen=True, slots=True)
class Document:
    """A spec as read. `written` keeps the text of plain scalars, which ``1.50`` and its value do not share."""

    name: str
    root: Any
    values: Mapping[KeyPath, Place]
    keys: Mapping[KeyPath, Place]
    written: Mapping[KeyPath, str]
    problems: tuple[Problem, ...]


def read_spec_file(path: Path, name: str) -> bytes:
    """Read a spec of at most 1 MiB; what is no regular file is refused before anything is read from it.

    Raises SpecError, LocalIOError.
    """
    try:
        # Non-blocking: opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 (a descriptor, not a path)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SpecError(f"{printable(name)} is not a regular file")
            data = file.read(MAX_SPEC_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise SpecError(f"there is no {printable(name)}", hint="`mlimg init` writes one") from None
    except IsADirectoryError:
        raise SpecError(f"{printable(name)} is a folder") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise LocalIOError(f"{printable(name)} cannot be read: {reason}") from error
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"{printable(name)} is over 1 MiB: not a spec")
    return data


def parse(data: bytes, name: str) -> Document:
    """Read one YAML document. Raises InvalidSpecError where YAML ends in a syntax error, LimitError for a bomb."""
    text = _decode(data, name)
    reader = _Reader(name, text)
    try:
        root = reader.document()
    except yaml.MarkedYAMLError as error:
        reader.refuse(error.problem_mark or error.context_mark, "", _syntax(error), Code.SYNTAX)
        raise InvalidSpecError(name, reader.problems) from error
    except yaml.YAMLError as error:
        reader.refuse(None, "", "not YAML", Code.SYNTAX)
        raise InvalidSpecError(name, reader.problems) from error
    return Document(name, root, reader.values, reader.keys, reader.written, tuple(reader.problems))


def parse_list(text: str) -> tuple[str, ...]:
    """Read ``[a, "b, c"]``, every item as text. Raises ValueError, LimitError."""
    try:
        reader = _Reader("", text)
        root = reader.document()
    except yaml.YAMLError:
        root = None
    if not isinstance(root, tuple) or reader.problems:
        raise ValueError(f"{shown(text)} is not a list such as [a, b]")
    if any(isinstance(item, dict | tuple) for item in root):
        raise ValueError(f"{shown(text)} holds more than texts")
    return tuple(reader.written.get((number,), item) for number, item in enumerate(root))


def _decode(data: bytes, name: str) -> str:
    place = Place.in_file(name, 1, 1)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        message = "is not UTF-8 (it looks like UTF-16 or UTF-32): save it as UTF-8"
        raise InvalidSpecError(name, [Problem(place, "", message, Code.SYNTAX)])
    if data.startswith(b"\xef\xbb\xbf"):
        message = "begins with a byte-order mark: save it as UTF-8 without one"
        raise InvalidSpecError(name, [Problem(place, "", message, Code.SYNTAX)])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_of_offset(data[: error.start].decode("utf-8"), name)
        raise InvalidSpecError(name, [Problem(place, "", "is not UTF-8 from here on", Code.SYNTAX)]) from error
    deceptive = _DECEPTIVE.search(text)
    if deceptive:
        place = _place_of_offset(text[: deceptive.start()], name)
        message = f"the character U+{ord(deceptive[0]):04X} cannot be seen in an editor; remove it or write an escape"
        raise InvalidSpecError(name, [Problem(place, "", message, Code.SYNTAX)])
    return text


def _place_of_offset(before: str, name: str) -> Place:
    lines = re.split(r"\r\n|\r|\n", before)
    return Place.in_file(name, len(lines), len(lines[-1]) + 1)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if "'\\t'" in problem:
        return "a tab cannot indent YAML: use spaces"
    return f"{problem} ({error.context})" if error.context else problem


class _Reader:
    """Walks the events of one document and notes where everything is."""

    def __init__(self, name: str, text: str) -> None:
        self.problems: list[Problem] = []
        self.values: dict[KeyPath, Place] = {}
        self.keys: dict[KeyPath, Place] = {}
        self.written: dict[KeyPath, str] = {}
        self._name = name
        self._loader: Any = yaml.SafeLoader(text)  # its stubs lack the methods of the parser
        self._count = 0

    def document(self) -> Any:
        """The values of the one document. Raises yaml.YAMLError, LimitError."""
        self._next()  # the stream's start
        if not self._loader.check_event(yaml.DocumentStartEvent):
            self.refuse(None, "", "is empty", Code.SYNTAX)
            return Refused()
        self._next()
        root = self._value(self._next(), ())
        self._next()  # the document's end
        if self._loader.check_event(yaml.DocumentStartEvent):
            mark = self._loader.peek_event().start_mark
            self.refuse(mark, "", "a second document begins here: a spec is one", Code.SYNTAX)
        return root

    def refuse(self, mark: yaml.Mark | None, key: str, message: str, code: Code) -> None:
        """Note a problem where `mark` stands."""
        self.problems.append(Problem(self._place(mark), key, message, code))

    def _next(self) -> Any:
        return self._loader.get_event()

    def _place(self, mark: yaml.Mark | None) -> Place:
        return Place.in_file(self._name, mark.line + 1, mark.column + 1) if mark else Place.in_file(self._name, 1, 1)

    def _value(self, event: Any, path: KeyPath) -> Any:
        self._count_in(event, len(path))
        self.values[path] = self._place(event.start_mark)
        refused = self._refuse_sharing(event, path)
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(path)
        return Refused() if refused else value

    def _count_in(self, event: Any, depth: int) -> None:
        self._count += 1
        if depth > MAX_DEPTH:
            raise LimitError(f"{printable(str(self._place(event.start_mark)))}: nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_VALUES:
            raise LimitError(f"{printable(str(self._place(event.start_mark)))}: more than {MAX_VALUES} values")

    def _refuse_sharing(self, event: Any, path: KeyPath) -> bool:
        mark, key = event.start_mark, dotted(path)
        if isinstance(event, yaml.AliasEvent):
            self.refuse(
                mark, key, f"the alias {shown(f'*{event.anchor}')} is not followed: write the value", Code.ALIAS
            )
        elif event.anchor is not None:
            self.refuse(mark, key, f"the anchor {shown('&' + event.anchor)}: aliases are not followed", Code.ALIAS)
        elif event.tag is not None:
            self.refuse(mark, key, f"the tag {shown(event.tag)}: tags are not read", Code.TAG)
        else:
            return False
        return True

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        if not event.implicit[0]:  # quoted, or a block: text by its form
            return event.value
        self.written[path] = event.value
        return self._plain(event.value)

    def _plain(self, text: str) -> Any:
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        tag = self._loader.resolve(yaml.ScalarNode, text, (True, False))
        return text if tag == _TEXT_TAG and not _NUMBER_OF_YAML_1_2.fullmatch(text) else Unclear(text)

    def _sequence(self, path: KeyPath) -> tuple[Any, ...]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return tuple(items)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key is not None and key in values:
                message = f"the key is there already, in line {self.keys[*path, key].line}"
                self.refuse(event.start_mark, dotted((*path, key)), message, Code.DUPLICATE_KEY)
                key = None
            if key is None:
                self._skip(self._next(), len(path) + 1)
                continue
            self.keys[*path, key] = self._place(event.start_mark)
            values[key] = self._value(self._next(), (*path, key))
        return values

    def _key(self, event: Any, path: KeyPath) -> str | None:
        """The key that `event` begins, or None when a problem is told instead."""
        mark, where = event.start_mark, dotted(path)
        if self._refuse_sharing(event, path):
            self._skip(event, len(path) + 1)
        elif not isinstance(event, yaml.ScalarEvent):
            self.refuse(mark, where, "a key is one text", Code.SYNTAX)
            self._skip(event, len(path) + 1)
        elif event.implicit[0] and event.value == "<<":
            self.refuse(mark, where, "a merge key overrides others unseen: write the keys", Code.DUPLICATE_KEY)
        elif event.implicit[0] and not isinstance(self._plain(event.value), str):
            self.refuse(mark, where, f"YAML does not read the key {shown(event.value)} as text: quote it", Code.TYPE)
        else:
            return str(event.value)
        return None

    def _skip(self, event: Any, depth: int) -> None:
        """Read past a value that has no place in the result."""
        level = depth
        while True:
            self._count_in(event, level)
            if isinstance(event, yaml.CollectionStartEvent):
                level += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                level -= 1
            if level == depth:
                return
            event = self._next()


def dotted(path: KeyPath) -> str:
    """A way as people write it: ``server.requirements[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
