"""Formats of gradient boosting libraries: XGBoost and LightGBM."""

import re
from typing import Final

from mlimg.formats.looks import Looks
from mlimg.peek import Peek

_XGBOOST: Final = (  # format, how its files begin, how they end
    (
        "xgboost-json",
        rb'\s*\{\s*"learner"\s*:',
        rb'"version"\s*:\s*\[\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\]\s*\}\s*\Z',
    ),
    ("xgboost-ubj", rb"\{[iUIlL]\x00*\x07learner", rb"version\[#L\x00{7}\x03i(.)i(.)i(.)\}\Z"),
)


def xgboost(ends: Peek) -> Looks | None:
    """https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html: an object of learner and, last, version."""
    for name, start, end in _XGBOOST:
        if re.match(start, ends.head):
            found = re.search(end, ends.tail, re.DOTALL)
            if not found:
                return Looks(name, damage="it ends within the object")
            # UBJSON has each number in one byte.
            parts = [part.decode() if name == "xgboost-json" else str(part[0]) for part in found.groups()]
            return Looks(name, version=".".join(parts))
    return None


def lightgbm(ends: Peek) -> Looks | None:
    """https://github.com/microsoft/LightGBM/blob/v4.6.0/src/boosting/gbdt_model_text.cpp: LightGBM 4 writes `v4`.

    Its parameters come last; after them Python's package adds the categories of pandas' columns, in one line.
    """
    found = re.match(rb"tree\nversion=v(\d{1,9})\n", ends.head)
    if not found:
        return None
    text = ends.tail.rstrip()
    last = text.rpartition(b"\n")[2]
    # The line may be longer than what was looked at.
    categories = last.startswith(b"pandas_categorical:") or last == text
    whole = (categories and last.endswith((b":null", b"]"))) or last == b"end of parameters"
    return Looks("lightgbm", damage="" if whole else "it has no end", version=found[1].decode())
