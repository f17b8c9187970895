"""Which models are predicted with where handing over would cost as much."""

import pytest

from mlimg.runtime.server.runners.pace import Pace


class Clock:
    """What the time is said to be."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mlimg.runtime.server.runners.pace.time.monotonic", clock)
    return clock


def test_the_mean_decides_and_one_long_prediction_hardly_counts() -> None:
    pace = Pace()
    assert pace.is_small
    pace.note(60.0)
    assert pace.is_small
    for _ in range(20):
        pace.note(0.0015)
    assert not pace.is_small
    assert not pace.is_steady
    for _ in range(40):
        pace.note(0.0001)
    assert pace.is_small


def test_two_long_predictions_in_a_second_are_too_many(clock: Clock) -> None:
    pace = Pace()
    pace.note(0.1)
    assert pace.is_steady
    clock.now += 0.1
    pace.note(0.1)
    assert pace.is_small
    assert not pace.is_steady
    clock.now += 1.0
    assert pace.is_steady


def test_one_in_a_second_is_bearable(clock: Clock) -> None:
    pace = Pace()
    for _ in range(100):
        pace.held_up()
        assert pace.is_steady
        clock.now += 1.1


def test_many_are_forgotten_as_soon_as_few(clock: Clock) -> None:
    pace = Pace()
    for _ in range(1000):
        pace.held_up()
    clock.now += 0.9
    assert not pace.is_steady
    clock.now += 0.2
    assert pace.is_steady
