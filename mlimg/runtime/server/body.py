"""JSON of requests, read strictly, and of answers."""

import json
from collections import Counter
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.tensors import shown

MAX_DEPTH: Final = 100  # of lists and objects in each other
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_ELSE: Final = bytes(set(range(256)) - set(b"[]{}"))
_fast: Final = msgspec.json.Decoder()
written: Final = msgspec.json.Encoder().encode  # NaN and infinities become null
_STRETCH: Final = 65_536  # brackets that are counted at once: their sums take eight times as much memory


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object, as strictly as `parse`. Raises InputError."""
    value = parse(body)
    if not isinstance(value, dict):
        raise InputError("the body is not a JSON object")
    return value


def parse(body: bytes) -> Any:
    """Read JSON. Duplicate keys, `NaN`, `Infinity` and more than MAX_DEPTH levels are refused. Raises InputError."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:  # few bodies are worth a second look
        _check_depth(body)
    try:
        value = _fast.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _slowly(body)  # which knows what is wrong, if anything is
    # It takes the last of equal keys. Each has a colon of its own: as many colons as different keys is no key twice.
    return value if _keys(value) == body.count(b":") else _slowly(body)


def _slowly(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
    except ValueError:  # what is left: Python refuses integers of more than 4300 digits
        raise InputError("the body has a number of too many digits") from None


def text(value: object, what: str) -> str:
    """`value`, if it is a text of at most 1024 characters that can be sent back. Raises InputError."""
    if not isinstance(value, str) or len(value) > 1024:
        raise InputError(f"{what} must be a text of at most 1024 characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not Unicode") from None
    return value


def _check_depth(body: bytes) -> None:
    """Refuse what is nested too deeply; of what is not JSON, at least where its beginning is. Raises InputError."""
    if b"\\" in body:  # afterwards each quote begins or ends a text
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(body.split(b'"')[::2]).translate(_ONE_KIND, _ELSE)
    depth = 0
    for start in range(0, len(brackets), _STRETCH):
        stretch = np.frombuffer(brackets[start : start + _STRETCH], np.int8)
        depths = depth + np.cumsum(ord("\\") - stretch, dtype=np.int64)  # which stands between the two in ASCII
        if depths.max() > MAX_DEPTH:
            raise InputError(f"the body is nested more than {MAX_DEPTH} levels deep")
        depth = int(depths[-1])


def _keys(value: Any) -> int:
    """How many keys the objects have; those of lists that do not begin with one may not be counted."""
    if type(value) is dict:
        return len(value) + sum(map(_keys, value.values()))
    if type(value) is list and value and type(value[0]) in (dict, list):
        return sum(map(_keys, value))
    return 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the key `{shown(twice)}` is there twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON: send null for a missing number")
