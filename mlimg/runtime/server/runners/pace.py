"""Whether a model's predictions are so small that handing them over costs as much as they do."""

from typing import Final

_SMALL_SECONDS: Final = 0.001  # what a prediction takes, with its request read and its answer written
_WEIGHT: Final = 1 / 16  # of the last prediction in the mean


class Pace:
    """How long a model's predictions take of late."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @property
    def is_small(self) -> bool:
        """Whether the mean is less than a millisecond; so it is while nothing is known."""
        return self._seconds < _SMALL_SECONDS

    def note(self, seconds: float) -> None:
        """Take a prediction into the mean."""
        # One that takes long for once, as when the processor is somebody else's, says little of the next.
        self._seconds += (min(seconds, 2 * _SMALL_SECONDS) - self._seconds) * _WEIGHT
