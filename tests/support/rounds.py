"""How often a test repeats what may go wrong at any moment: a few times here, in full by `tests/bench/repeat.py`."""

import os

VARIABLE = "MLIMG_TEST_ROUNDS"


def rounds(usually: int = 20) -> int:
    """The number of repetitions: what the variable says, else what keeps `make test` short."""
    return int(os.environ.get(VARIABLE) or usually)
