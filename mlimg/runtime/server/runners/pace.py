"""Whether a model's predictions are so small that handing them over costs as much as they do."""

import time
from typing import Final

_SMALL_SECONDS: Final = 0.001  # what a prediction takes, with its request read and its answer written
_WEIGHT: Final = 1 / 16  # of the last prediction in the mean
# One that takes longer costs a penalty, which is repaid with time: two a second are too many.
_LONG_SECONDS: Final = 0.02
_PENALTY_SECONDS: Final = 0.02  # how long it would have held up an event loop, at most
_REPAID: Final = 0.02  # of a second, each second
_BEARABLE_SECONDS: Final = 0.03
_MOST_SECONDS: Final = 0.05


class Pace:
    """How long a model's predictions take of late."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._penalty_seconds, self._since = 0.0, 0.0

    @property
    def is_small(self) -> bool:
        """Whether the mean is less than a millisecond; so it is while nothing is known."""
        return self._seconds < _SMALL_SECONDS

    @property
    def is_steady(self) -> bool:
        """Whether it is small, and no more than one a second is long: who predicts is held up for 2 % of the time."""
        return self.is_small and (not self._penalty_seconds or self._left() < _BEARABLE_SECONDS)

    def note(self, seconds: float) -> None:
        """Take a prediction into the mean."""
        # One that takes long for once, as when the processor is somebody else's, says little of the next.
        self._seconds += (min(seconds, 2 * _SMALL_SECONDS) - self._seconds) * _WEIGHT
        if seconds > _LONG_SECONDS:
            self.held_up()

    def held_up(self) -> None:
        """Take into account that a prediction is long, which may not have ended."""
        self._penalty_seconds = min(self._left() + _PENALTY_SECONDS, _MOST_SECONDS)
        self._since = time.monotonic()

    def _left(self) -> float:
        return max(0.0, self._penalty_seconds - _REPAID * (time.monotonic() - self._since))
