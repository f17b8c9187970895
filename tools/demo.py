"""What `make demo` runs: a model is trained, delivered in both patterns, and both servers are asked what it knows.

Fails when the two answers differ, or differ from the model's own. Works in examples/digits, where what it made stays.
"""

import contextlib
import csv
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits"
MLIMG = Path(sys.executable).with_name("mlimg")
PUBLIC_BASE = "python:3.13-slim"
PATTERNS = ("in-image", "load")
# Averages over a hundred trees, summed in another order by another numpy.
TOLERANCE = 1e-12


@dataclass(frozen=True)
class Delivered:
    """A release that was built, served and asked."""

    release: dict[str, Any]
    answer: list[list[float]]
    build_seconds: float
    ready_seconds: float


def main() -> int:
    """Run it all; 1 when something is wrong."""
    started = time.monotonic()
    settings = ["--set", f"server.base={base}"] if (base := base_image()) != PUBLIC_BASE else []
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    if index:
        settings += ["--set", f"build.index={index}"]
    say("training examples/digits")
    subprocess.run([sys.executable, "train.py"], cwd=EXAMPLE, check=True)
    delivered = {pattern: deliver(pattern, settings) for pattern in PATTERNS}
    show(delivered)
    wrong = list(differences(delivered))
    for line in wrong:
        say(f"WRONG: {line}")
    if not wrong:
        rows = len(delivered["load"].answer)
        took = time.monotonic() - started
        say(f"both servers and the model itself agree on {rows} held-out rows ({took:.1f} s in all)")
        say("next: `mlimg inspect examples/digits`, `mlimg run examples/digits`, README.md")
    return 1 if wrong else 0


def base_image() -> str:
    """The base that `make base` saw to."""
    found = subprocess.run([ROOT / "tools" / "base-image.sh"], stdout=subprocess.PIPE, text=True, check=True)
    return found.stdout.strip().splitlines()[-1]


def deliver(pattern: str, settings: list[str]) -> Delivered:
    """Build, start and ask one release; the container is gone afterwards."""
    begun = time.monotonic()
    release = mlimg("build", str(EXAMPLE), "--pattern", pattern, *settings)
    built = time.monotonic()
    with server() as url:
        ready = time.monotonic()
        answer = mlimg("predict", str(EXAMPLE / "held-out.csv"), str(EXAMPLE), "--url", url)
    [output] = answer["outputs"]
    count, width = output["shape"]
    rows = [output["data"][row * width : (row + 1) * width] for row in range(count)]
    return Delivered(release, rows, built - begun, ready - built)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A container of the last release, on a free port."""
    started = mlimg("run", str(EXAMPLE), "--detach", "--port", "0")
    try:
        yield started["url"]
    finally:
        subprocess.run(["docker", "rm", "--force", started["container"]], stdout=subprocess.DEVNULL, check=True)


def mlimg(command: str, *arguments: str) -> dict[str, Any]:
    """Run a command of mlimg as a person would, and return what it prints."""
    say("$ " + shlex.join(["mlimg", command, *arguments]).replace(f"{ROOT}/", ""))
    done = subprocess.run([MLIMG, command, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # mlimg has said why
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def differences(delivered: dict[str, Delivered]) -> Iterator[str]:
    """Whatever keeps the demo from being a success."""
    with (EXAMPLE / "expected.csv").open(encoding="utf-8") as file:
        expected = [[float(cell) for cell in row] for row in csv.reader(file)]
    if delivered["in-image"].answer != delivered["load"].answer:
        yield "the two patterns answer differently"
    for pattern, one in delivered.items():
        if not same(one.answer, expected):
            yield f"{pattern} does not answer as the model itself does"
    first, second = (delivered[pattern].release for pattern in PATTERNS)
    for part in ("server", "model"):
        if first[part]["digest"] != second[part]["digest"]:
            yield f"the two patterns have different {part}s"


def same(answer: list[list[float]], expected: list[list[float]]) -> bool:
    """Whether two tables hold the same numbers."""
    return len(answer) == len(expected) and all(
        len(got) == len(wanted) and all(math.isclose(a, b, abs_tol=TOLERANCE) for a, b in zip(got, wanted, strict=True))
        for got, wanted in zip(answer, expected, strict=True)
    )


def show(delivered: dict[str, Delivered]) -> None:
    """Print what was made."""
    print(f"\n{'pattern':<9} {'part':<7} {'reference':<58} {'digest':<20} {'MB':>8}")
    for pattern, one in delivered.items():
        for part in ("server", "model", "image"):
            made = one.release.get(part)
            if made:
                size = made["size_bytes"] / 1e6
                reference = made["reference"].partition("@")[0].replace(f"{ROOT}/", "")
                print(f"{pattern:<9} {part:<7} {reference:<58} {made['digest'][:19]:<20} {size:>8.1f}")
        print(f"{pattern:<9} built in {one.build_seconds:.1f} s, ready {one.ready_seconds:.1f} s after the start")
    print(flush=True)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
