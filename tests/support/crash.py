"""Runs a function of this process in forked children that die at their n-th call, whichever thread makes it.

The calls are those that change something outside of the process: files, folders, connections (`crash.c`). The library
that counts them has to be loaded before Python starts: `preload` starts the program again with it.
"""

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_VARIABLE = "MLIMG_CRASH_LIBRARY"


def can_compile() -> bool:
    """Whether there is a compiler for the library."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def preload(folder: Path) -> None:
    """Have the library in this process: compile it into `folder`, and start the program again with it."""
    if os.environ.get(_VARIABLE):
        return
    library = folder / "crash.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    os.environ |= {_VARIABLE: str(library), "LD_PRELOAD": str(library)}
    os.execv(sys.executable, [sys.executable, *sys.argv])


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    calls: int
    fatal: str  # the call before which it was killed; empty where it was not
    printed: str


class Children:
    """Forks this process, which must have no other threads, to run a function and die in it.

    `log` is a file that has the last child's output.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._library = ctypes.CDLL(os.environ[_VARIABLE])
        self._library.crash_arm.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._shared))

    def run(self, function: Callable[[], None], *, die_at: int = 0, torn: bool = False) -> Ended:
        """Run `function` in a child, which dies at its `die_at`-th call; a `torn` write or send is half done."""
        self._shared[:32] = bytes(32)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self._be_child(function, die_at, torn)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        calls, fatal = struct.unpack("q24s", self._shared[:32])
        return Ended(status, calls, fatal.rstrip(b"\0").decode(), self._log.read_text(errors="replace"))

    def _be_child(self, function: Callable[[], None], die_at: int, torn: bool) -> None:
        status = 70
        try:
            output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for stream, descriptor in ((0, nothing), (1, output), (2, output)):
                os.dup2(descriptor, stream)
            self._library.crash_arm(self._address, die_at, torn)
            function()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # nothing may unwind into what the parent was about to do
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
