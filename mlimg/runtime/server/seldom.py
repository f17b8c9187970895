"""What frameworks import at their start and servers seldom use is imported when it is used.

SciPy looks at all that numpy has, its tools for tests and for Fortran among it: 6 MiB. scikit-learn takes a dozen
functions out of SciPy that bring most of it along: 30 MiB, and half a second; and it imports pandas where that is
installed: 25 MiB, and half a second.
"""

import builtins
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, Final

_OF_NUMPY: Final = ("testing", "f2py", "polynomial")
# Parts of SciPy, and what scikit-learn 1.3 to 1.9 takes out of them by name. SciPy has had all of it since 1.9, the
# first for Python 3.11. For any other name the part is imported, so that scikit-learn sees what is missing.
_OF_SCIPY: Final[Mapping[str, frozenset[str]]] = {
    "scipy.integrate": frozenset({"trapezoid"}),
    "scipy.interpolate": frozenset({"BSpline"}),
    "scipy.optimize": frozenset({"fmin_bfgs", "linear_sum_assignment", "linprog", "minimize", "minimize_scalar"}),
    "scipy.optimize._linesearch": frozenset({"line_search_wolfe1", "line_search_wolfe2", "scalar_search_wolfe1"}),
    "scipy.spatial": frozenset({"distance"}),
    "scipy.spatial.distance": frozenset({"cdist", "pdist", "squareform"}),
    "scipy.stats": frozenset({"chi2", "gmean", "rankdata", "spearmanr"}),
    "scipy.stats.mstats": frozenset({"mquantiles"}),
}
# Who imports what of the standard library: 2 MiB for what coroutines answer to be kept, and 0.5 for documentation.
_STANDARD: Final = {"joblib.memory": ("asyncio", "pydoc"), "scipy._lib._docscrape": ("pydoc",)}
_PANDAS: Final = "pandas"
_TAKER: Final = "sklearn."


@contextmanager
def imported_when_used() -> Iterator[None]:
    """Put stand-ins in the place of such modules where a framework is imported meanwhile. One thread at a time.

    They stay where they were put, and import what they stand for when something is asked of them. A module that is
    imported by anybody else comes as always.
    """
    if numpy := sys.modules.get("numpy"):
        for name in _OF_NUMPY:
            vars(numpy).setdefault(name, _Module(f"numpy.{name}"))
    builtins.__import__, before = _import, builtins.__import__
    try:
        yield
    finally:
        if builtins.__import__ is _import:  # else it is a hook of the handler's, which stays
            builtins.__import__ = before


class _Module(ModuleType):
    """Stands for a module, as an attribute of its package; not in `sys.modules`, so that an import statement works."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self.__name__))


class _Name:
    """Stands for what is taken out of a module: called, asked for attributes, derived from, or isinstance's class."""

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._find()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "_place" not in vars(self):  # a copy that is being made is asked how it is made
            raise AttributeError(name)
        return getattr(self._find(), name)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type]:
        return (self._find(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._find())

    def _find(self) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)


_really_import: Final = builtins.__import__


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002 (so are they called)
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """Do what an import statement calls for.

    https://docs.python.org/3/library/functions.html#import__
    """
    found = None
    taker = str(globals.get("__name__")) if level == 0 and globals else ""
    if taker.startswith(_TAKER):
        if name == "scipy" or name in _OF_SCIPY:
            found = _part_of_scipy(name, fromlist or ())
        elif name == _PANDAS and not fromlist and name not in sys.modules:
            found = _pandas()
    elif name in _STANDARD.get(taker, ()) and not fromlist and name not in sys.modules:
        found = _Module(name)
    return _really_import(name, globals, locals, fromlist or (), level) if found is None else found


def _part_of_scipy(name: str, fromlist: Sequence[str]) -> Any:
    """What scikit-learn gets of parts of SciPy that are not imported; None for what is."""
    scipy = _really_import("scipy")
    # For `import scipy.stats` and `from scipy import stats`; an import in earnest puts the module in its place.
    for part in fromlist if name == "scipy" else (name.split(".")[1],):
        if (whole := f"scipy.{part}") in _OF_SCIPY and whole not in sys.modules:
            vars(scipy).setdefault(part, _Module(whole))
    if name == "scipy" or name in sys.modules or not _OF_SCIPY[name].issuperset(fromlist):
        return None
    return SimpleNamespace(**{taken: _Name(name, taken) for taken in fromlist}) if fromlist else scipy


def _pandas() -> _Module | None:
    """What scikit-learn gets of a pandas that is not imported, and asks for its version; None where there is none."""
    if find_spec(_PANDAS) is None:
        return None
    from importlib import metadata  # noqa: PLC0415 (1 MiB that servers without pandas do without)

    module = _Module(_PANDAS)
    try:
        vars(module)["__version__"] = metadata.version(_PANDAS)
    except metadata.PackageNotFoundError:
        return None
    return module
