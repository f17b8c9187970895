"""An engine that is none, for commands that must not get as far as a real one."""

from tests.unit.engine.conftest import stub

__all__ = ["stub"]
