"""What runs predictions beside the event loop: a model that is loaded, in threads or in processes of its own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from mlimg.runtime.prepare import PreparedModel
from mlimg.runtime.server.exchange import Call, Outcome
from mlimg.runtime.server.metadata import ModelMetadata

Done = Callable[[Sequence[Outcome]], None]
Work = tuple[Sequence[Call], Done]
More = Callable[[], Work | None]
Wanted = Callable[[], bool]


class Runner(Protocol):
    """A loaded model and its workers. The event loop alone calls it."""

    metadata: ModelMetadata

    @property
    def free(self) -> bool:
        """Whether a worker takes something. One does when nothing is under way."""
        ...

    def start(self, calls: Sequence[Call], done: Done, more: More, wanted: Wanted) -> None:
        """Give `calls` to a free worker; `done` is told their outcomes, in their order, in the event loop.

        A worker that has answered may ask `more`, from its own thread, for what it is to do next, and is not free then.
        What has not been begun need not be once `wanted`, asked in the event loop, is false: `done` is told of none.
        """
        ...

    def close(self) -> None:
        """Let go of the model; nothing is under way."""
        ...


class Loader(Protocol):
    """Brings models up. A thread beside the event loop calls it."""

    def load(self, prepared: PreparedModel, warming: Callable[[], None]) -> Runner:
        """Load a model and let it answer once; `warming` is told when it is loaded. Raises MlimgError."""
        ...
