"""Dockerfiles and the files that templates render: the one Jinja environment, and a parser that reads Dockerfiles back.

A value reaches an instruction only through a typed filter, which knows how that place is quoted and refuses
what cannot be written there. The environment refuses everything else, so a template cannot forget it.
"""

import json
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from shlex import quote
from typing import Final

from jinja2 import FunctionLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlimg.runtime.errors import LimitError, TemplateError, printable
from mlimg.runtime.reference import ImageReference

MAX_LINE_BYTES: Final = 65_535  # BuildKit's scanner stops there
MAX_DOCKERFILE_LENGTH: Final = 1024 * 1024


class Encoded(str):
    """Text that a typed filter has made fit for its place. Anything computed from it is plain text again."""

    __slots__ = ()


def image(value: object) -> Encoded:
    """An image reference or the name of a build stage, for `FROM`."""
    ImageReference.parse(_text(value))
    return Encoded(value)


def word(value: object) -> Encoded:
    """A name that needs no quoting anywhere: letters, digits, `_`, `.` and `-`."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", _text(value)):
        raise ValueError(f"`{printable(str(value))}` is not a word of letters, digits, `_`, `.` and `-`")
    return Encoded(value)


def quoted(value: object) -> Encoded:
    r"""A value of `ARG`, `ENV` or `LABEL`. The frontend expands `$` and `\` there, and has no way to write a line end.

    https://docs.docker.com/reference/dockerfile/#environment-replacement
    """
    escaped = re.sub(r'[\\"$]', r"\\\g<0>", _line(value))
    return Encoded(f'"{escaped}"')


def env(value: object) -> Encoded:
    """A mapping as the assignments of one `ENV` or `LABEL`, a line each."""
    assignments = [f"{word(name)}={quoted(text)}" for name, text in _mapping(value).items()]
    return Encoded(" \\\n    ".join(assignments))


def sh(value: object) -> Encoded:
    """One word of a shell command."""
    return Encoded(quote(_line(value)))


def sh_list(value: object) -> Encoded:
    """Several words of a shell command."""
    return Encoded(" ".join(sh(item) for item in _sequence(value)))


def exec_form(value: object) -> Encoded:
    """The JSON array of `ENTRYPOINT`, `CMD` or `RUN`."""
    return Encoded(json.dumps([_line(item) for item in _sequence(value)]))


def secret_mounts(value: object) -> Encoded:
    """Ids of secrets, as required mounts that continue the flags of a `RUN`.

    Without `required` a missing secret is an empty one, silently.
    """
    mounts = (f" \\\n    --mount=type=secret,id={word(item)},required=true" for item in _sequence(value))
    return Encoded("".join(mounts))


def json_value(value: object) -> Encoded:
    """A JSON value; one of text, numbers and booleans is one of protobuf's text format, too."""
    return Encoded(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


FILTERS: Final[Mapping[str, Callable[[object], Encoded]]] = {
    filter_.__name__: filter_ for filter_ in (image, word, quoted, env, sh, sh_list, exec_form, secret_mounts)
}

# A file's places are not a Dockerfile's: what is quoted for one could break out of the other.
FILE_FILTERS: Final[Mapping[str, Callable[[object], Encoded]]] = {"json": json_value, "word": word}


def write_dockerfile(name: str, sources: Mapping[str, str], values: Mapping[str, object]) -> str:
    """Render the template `name` of `sources`, which are all that it can include or extend. Pure.

    Raises TemplateError for what the template does wrong, LimitError for a Dockerfile that engines would not read.
    """
    text = _write(name, sources, values, of_dockerfile=True)
    check_dockerfile(name, text)
    return text


def write_file(name: str, sources: Mapping[str, str], values: Mapping[str, object]) -> str:
    """Render the template `name` of `sources` as a file of the image. Raises what `write_dockerfile` does."""
    return _write(name, sources, values, of_dockerfile=False)


def _write(name: str, sources: Mapping[str, str], values: Mapping[str, object], *, of_dockerfile: bool) -> str:
    environment = _environment(tuple(sorted(sources.items())), of_dockerfile=of_dockerfile)
    parts: list[str] = []
    length = 0
    try:
        for part in environment.get_template(name).generate(**values):
            parts.append(part)
            length += len(part)
            if length > MAX_DOCKERFILE_LENGTH:
                raise LimitError(f"{name}: what it renders is over {MAX_DOCKERFILE_LENGTH} characters")
    except TemplateNotFound as error:
        raise TemplateError(
            f"{_place(sources, name, error)}: there is no `{printable(str(error))}` in the template's folder",
            hint="a template includes and extends files of its own folder, and `_python/Dockerfile.j2`",
        ) from error
    except LimitError:
        raise
    except Exception as error:  # a template's expressions can raise what Python can
        raise TemplateError(f"{_place(sources, name, error)}: {printable(str(error))}") from error
    return "".join(parts)


def check_dockerfile(name: str, text: str) -> None:
    """Refuse what changes how a Dockerfile is read (another frontend, another escape) and lines no engine reads.

    Raises TemplateError and LimitError.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line.encode()) > MAX_LINE_BYTES:
            raise LimitError(
                f"{name}: line {number} of the Dockerfile is over {MAX_LINE_BYTES} bytes, which no engine reads",
                hint="shorten the value, or put it into a file of server.code",
            )
    directive = _DIRECTIVE.match(text)
    if directive:
        raise TemplateError(
            f"{name}: the Dockerfile begins with `{printable(directive[1].strip())}`, which chooses how it is read",
            hint="mlimg writes for the engine's own frontend: leave the directive out",
        )


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile: its name in capitals, and the rest with continued lines joined."""

    name: str
    rest: str


def parse_dockerfile(text: str) -> tuple[Instruction, ...]:
    """Read a Dockerfile as BuildKit does, with the usual escape. A here-document belongs to its instruction.

    https://github.com/moby/buildkit/blob/v0.13.0/frontend/dockerfile/parser/parser.go
    """
    instructions = []
    lines = iter(text.split("\n"))
    for first in lines:
        joined, continued = _continuation("" if _is_comment(first) else first.lstrip())
        if not joined and not continued:
            continue
        for line in lines if continued else ():
            if not _is_comment(line) and line.strip():
                part, continued = _continuation(line)
                joined += part
                if not continued:
                    break
        name, _, rest = re.sub(r"\s+", " ", joined.strip(), count=1).partition(" ")
        for marker in _HEREDOC.findall(rest) if name.upper() in {"RUN", "COPY", "ADD"} else ():
            for line in lines:
                rest += f"\n{line}"
                if line.lstrip("\t") == marker:
                    break
        instructions.append(Instruction(name.upper(), rest.strip()))
    return tuple(instructions)


_CONTROL: Final = re.compile("[\0-\x08\n-\x1f\x7f-\x9f\ud800-\udfff]")  # a tab is fine
# A word of its own, unlike the shift in `$((1<<2))`.
_HEREDOC: Final = re.compile(r"(?<!\S)\d*<<-?['\"]?([^\s'\"<]+)")
# `# syntax=`, `// syntax=` and `{"syntax": …}` choose a frontend, `# escape=` the escape character; `#!` hides a line.
# https://github.com/moby/buildkit/blob/v0.19.0/frontend/dockerfile/parser/directives.go
_DIRECTIVE: Final = re.compile(
    r"\ufeff?\s*(?:(?:#|//)(?!!)[^\n]*\n\s*)*?((?:#|//)\s*(?:syntax|escape|check)\s*=|#!|\{)", re.IGNORECASE
)


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _continuation(line: str) -> tuple[str, bool]:
    match = re.fullmatch(r"(.*)\\[ \t]*\r?", line, re.DOTALL)
    return (match[1], True) if match else (line, False)


@lru_cache(maxsize=4)
def _environment(items: tuple[tuple[str, str], ...], *, of_dockerfile: bool) -> ImmutableSandboxedEnvironment:
    sources = dict(items)
    filters = FILTERS if of_dockerfile else FILE_FILTERS
    environment = ImmutableSandboxedEnvironment(
        # The second value is the name in tracebacks.
        loader=FunctionLoader(lambda key: (sources[key], key, None) if key in sources else None),
        undefined=StrictUndefined,
        finalize=partial(_only_encoded, filters),
        autoescape=False,  # this is no HTML: `finalize` refuses what no filter has quoted
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    return environment


def _only_encoded(filters: Iterable[str], value: object) -> object:
    if not isinstance(value, Encoded):
        raise ValueError(f"a value is placed without a filter that quotes it: one of {', '.join(filters)}")
    return value


def _place(sources: Mapping[str, str], name: str, error: BaseException) -> str:
    """Where in a template an error arose, as ``file:line``: Jinja gives its frames the names of templates."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.name or name}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in sources]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "text")
    return value


def _line(value: object) -> str:
    """Text that fits on a line unchanged."""
    text = _text(value)
    if _CONTROL.search(text):
        raise ValueError(f"`{printable(text[:80])}` has a character that no line can hold")
    return text


def _plain(value: object) -> object:
    """A value of JSON whose texts are lines."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {_line(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return _line(value)


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _wrong(value, "a list")
    return value


def _mapping(value: object) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        raise _wrong(value, "a mapping")
    return value


def _wrong(value: object, expected: str) -> ValueError:
    if isinstance(value, StrictUndefined):
        str(value)  # raises, with the name of what is undefined
    return ValueError(f"{type(value).__name__} where {expected} is needed")
