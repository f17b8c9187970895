"""Packages that only some sources need: they are installed on request."""

from importlib import import_module
from types import ModuleType

from mlimg.runtime.errors import UsageError


def need(module: str, extra: str) -> ModuleType:
    """Import a module of an extra. Raises UsageError with the way to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"model.source: {module} is not installed, which such an address needs",
            hint=f"pip install 'mlimg[{extra}]'",
        ) from error
