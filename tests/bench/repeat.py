"""The rows of `docs/faults.md` whose fault may strike at any moment, in full count: signals, kills, races of writers.

`repeat.py F14 H12` runs those rows alone, `--rounds 50` with another count. Without either this takes hours.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from measure import Row, table

ROOT = Path(__file__).parents[2]
VARIABLE = "MLIMG_TEST_ROUNDS"  # read by tests/support/rounds.py


@dataclass(frozen=True)
class Repeated:
    """A test that repeats, and its full count."""

    row: str
    what: str
    rounds: int
    test: str


REPEATED = (
    Repeated(
        "B3",
        "a writer that never stops",
        1000,
        "unit/test_pack.py::test_a_writer_that_never_stops_gets_no_mixed_layer_through",
    ),
    Repeated(
        "E13",
        "two pushers of one version, each pattern",
        200,
        "unit/test_release.py::test_e13_of_two_pushers_with_different_models_at_most_one_succeeds",
    ),
    Repeated(
        "E13",
        "two machines with docker-registry, each pattern",
        200,
        "integration/test_release_jobs.py::test_e13_of_two_machines_that_push_other_models_at_once_at_most_one_succeeds",
    ),
    Repeated(
        "F5",
        "two writers of one version, in a folder, S3 and Azure",
        200,
        "integration/test_stores.py::test_f5_of_two_writers_of_different_models_one_wins_whole",
    ),
    Repeated(
        "F14",
        "two writers of one version",
        200,
        "unit/runtime/stores/test_directory.py::test_f14_of_two_writers_of_different_models_one_wins_whole",
    ),
    Repeated(
        "G10",
        "a signal while a server starts",
        200,
        "integration/test_fetch_stopped.py::test_g10_a_server_that_is_stopped_at_any_moment_leaves_what_the_next_takes_up",
    ),
    Repeated("H12", "SIGTERM under load", 100, "integration/test_serving.py::test_h12_nothing_is_lost_under_load"),
    Repeated(
        "L13",
        "a server replaced under load",
        500,  # in which about 100 000 requests are answered
        "integration/test_rolling.py::test_l13_servers_are_replaced_under_load_and_every_request_is_answered",
    ),
    Repeated(
        "L14",
        "an answer to each of 16 clients",
        62_500,  # a million answers
        "integration/test_load.py::test_l14_answers_never_cross",
    ),
    Repeated(
        "I1",
        "a signal in a build, on each image store",
        250,
        "integration/test_release_killed.py::test_stopped_at_any_moment_nothing_is_half_published",
    ),
)


def repeat(repeated: Repeated, rounds: int) -> Row:
    """Run one; a violation ends it, and pytest says which."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / repeated.test)]
    status = subprocess.run(
        command, cwd=ROOT, env={**os.environ, VARIABLE: str(rounds)}, stdout=sys.stderr, check=False
    ).returncode
    took = f"{time.monotonic() - started:.0f} s"
    return Row(f"{repeated.row}: {repeated.what}, {rounds} times", float(status != 0), 0, "violations", took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as I1; all where none is named")
    parser.add_argument("--rounds", type=int, help="for every row, instead of its own full count")
    asked = parser.parse_args()
    known = {repeated.row for repeated in REPEATED}
    if unknown := set(asked.rows) - known:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(sorted(known))}")
    chosen = [repeated for repeated in REPEATED if not asked.rows or repeated.row in asked.rows]
    table([repeat(repeated, asked.rounds or repeated.rounds) for repeated in chosen])


if __name__ == "__main__":
    main()
