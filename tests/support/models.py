"""Models for tests: sources made from a dict, trees that look old or new."""

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mlimg.sources import Inventory, ModelSource, SourceFile


def content(source: ModelSource) -> dict[str, bytes]:
    """All files of a source, read."""
    found = {}
    for file in source.inventory():
        with source.open(file.path) as opened:
            found[str(file.path)] = opened.read()
    return found


@dataclass(frozen=True)
class DictSource:
    """A model in memory. Files whose name ends in ``+x`` are executable."""

    files: Mapping[str, bytes]

    def inventory(self) -> Inventory:
        return Inventory(
            tuple(
                SourceFile(PurePosixPath(path), len(data), executable=path.endswith("+x"))
                for path, data in sorted(self.files.items())
            )
        )

    def open(self, path: PurePosixPath) -> BinaryIO:
        return io.BytesIO(self.files[str(path)])


@dataclass(frozen=True)
class SizesSource:
    """A model that exists as a listing only: for questions that read nothing."""

    sizes: Mapping[str, int]

    def inventory(self) -> Inventory:
        return Inventory(tuple(SourceFile(PurePosixPath(path), size) for path, size in sorted(self.sizes.items())))

    def open(self, path: PurePosixPath) -> BinaryIO:
        raise AssertionError(f"{path} was opened")


def write_tree(root: Path, files: Mapping[str, bytes], seed: int = 0) -> Path:
    """Write files in an order, with times and umask of their own for each seed; owners too, where root writes."""
    dice = random.Random(seed)
    umask = os.umask(dice.choice([0o022, 0o027, 0o077]))
    try:
        for path in dice.sample(sorted(files), len(files)):
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[path])
            if path.endswith("+x"):
                target.chmod(dice.choice([0o755, 0o700, 0o775]))
            if os.geteuid() == 0:
                os.chown(target, dice.randrange(60000), dice.randrange(60000))
            os.utime(target, (dice.randrange(2**31), dice.randrange(2**31)))
    finally:
        os.umask(umask)
    return root


@contextmanager
def nobody() -> Iterator[None]:
    """Act as a user who may not read everything; root may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def peak_kib(program: str, *arguments: str) -> int:
    """Run a Python program and return its peak memory. (`ru_maxrss` would begin with that of the process here.)"""
    tell = "\nfrom pathlib import Path as P; print(P('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    command = [sys.executable, "-c", program + tell, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
