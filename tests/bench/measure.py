"""Whole processes timed and weighed by the operating system, and a table with figure, bar and spread."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

PYTHON = sys.executable
MLIMG = str(Path(sys.executable).with_name("mlimg"))


@dataclass(frozen=True)
class Run:
    """One finished process."""

    seconds: float
    cpu_seconds: float  # user and system: what a busy machine does not stretch
    peak_bytes: int
    stdout: str


def run(argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Run:
    """Run to the end; `peak_bytes` is the largest resident set the process alone had. A failure ends the benchmark."""
    started = time.monotonic()
    with (
        TemporaryFile() as stderr,
        subprocess.Popen(
            list(argv),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        stdout = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(argv)} exited with {process.returncode}\n{said}")
    return Run(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, stdout)


@dataclass(frozen=True)
class Row:
    """A figure in `unit`, and its bar if it has one: `value` at most `bar`, or with `at_least` no less."""

    figure: str
    value: float
    bar: float | None
    unit: str
    spread: str = ""
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether the figure is on the right side of its bar."""
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def ratios(ours: Sequence[str], theirs: Sequence[str], *, rounds: int, cwd: Path | None = None) -> list[float]:
    """Time two commands in turn, after one warm-up of each; the ratio of each pair's processor time."""
    run(ours, cwd=cwd)
    run(theirs, cwd=cwd)
    return [run(ours, cwd=cwd).cpu_seconds / run(theirs, cwd=cwd).cpu_seconds for _ in range(rounds)]


def ratio_row(figure: str, values: Sequence[float], bar: float) -> Row:
    """The median of pairwise ratios, with the smallest and the largest."""
    return Row(figure, statistics.median(values), bar, "x", f"{min(values):.2f} to {max(values):.2f}")


def table(rows: Sequence[Row]) -> None:
    """Print the figures; a bar that is missed is called missed, and makes the exit status 1."""
    width = max(len(row.figure) for row in rows)
    print(f"{'figure':<{width}}  {'value':>10}  {'bar':>10}        spread")
    missed = False
    for row in rows:
        missed = missed or not row.held
        value = f"{row.value:>8.2f} {row.unit}"
        bar = f"{'>' if row.at_least else '<'}{row.bar:>8.2f} {row.unit}" if row.bar is not None else ""
        word = ("ok" if row.held else "MISSED") if bar else "-"
        print(f"{row.figure:<{width}}  {value} {bar:>{10 + len(row.unit)}}  {word:<6}  {row.spread}")
    raise SystemExit(1 if missed else 0)
