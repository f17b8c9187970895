"""Pickles, and what packages the classes in them are of."""

import re
from typing import Final

from mlimg.formats.looks import Looks
from mlimg.peek import Peek, compression_is_cut, decompressed_head, pickle_head

_FRAMEWORKS: Final = {  # by the package whose class is pickled
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "torch": "pytorch",
}
# scikit-learn's estimators keep the version that pickled them in their state: the key and the text are opcodes with
# their arguments, a reference to what was written before (MEMOIZE, BINPUT, LONG_BINPUT, PUT) may stand between.
_SKLEARN_VERSION: Final = re.compile(
    rb"_sklearn_version(?:\x94|q.|r.{4}|\n(?:p\d+\n)?)?(?:\x8c(.)|X(.{4})|V)(\d{1,4}\.\d{1,4}[0-9a-z.+]{0,20})",
    re.DOTALL,
)


def pickled(ends: Peek) -> Looks | None:
    """Pickles by themselves, and joblib's: with raw arrays inside, or compressed."""
    compressed = decompressed_head(ends.head)
    head = ends.head if compressed is None else compressed
    start = pickle_head(head)
    if start is None:
        return None
    packages = [module.partition(".")[0] for module in start.modules]
    named_joblib = ends.path.suffix.lower() == ".joblib"
    by_joblib = compressed is not None or named_joblib or b"joblib.numpy_pickle" in head
    if compressed is None:
        # A pickle's last byte is STOP. One that is seen before may be a byte of joblib's arrays, which are raw.
        cut = not ends.tail.endswith(b".") and (by_joblib or not start.complete)
    else:
        cut = compression_is_cut(ends)
    framework = next((_FRAMEWORKS[name] for name in packages if name in _FRAMEWORKS), "")
    version = _version(head) or (_version(ends.tail) if compressed is None else "")
    return Looks(
        "joblib" if by_joblib else "pickle",
        framework=framework,
        damage="it has no end" if cut else "",
        version=version if framework == "sklearn" else "",
        runs_code=True,
    )


def _version(data: bytes) -> str:
    """The version that pickled an estimator, as long as its opcode says: the next may look like a part of it."""
    found = _SKLEARN_VERSION.search(data)
    if found is None:
        return ""
    length = found[1] or found[2]  # protocol 0 has none, and a line end
    return found[3][: int.from_bytes(length, "little") if length else None].decode()
