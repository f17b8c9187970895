"""JSON that a client sent, read strictly."""

import json
from collections import Counter
from typing import Any, NoReturn

from mlimg.runtime.server.errors import InputError
from mlimg.runtime.server.tensors import shown


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object, as strictly as `parse`. Raises InputError."""
    value = parse(body)
    if not isinstance(value, dict):
        raise InputError("the body is not a JSON object")
    return value


def parse(body: bytes) -> Any:
    """Read JSON. Duplicate keys, `NaN` and `Infinity` are refused. Raises InputError."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
    except RecursionError:
        raise InputError("the body is nested too deeply") from None
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"the key `{shown(twice)}` is there twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not JSON: send null for a missing number")
