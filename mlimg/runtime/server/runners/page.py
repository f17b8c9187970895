"""A page of memory that a server shares with one worker: each tells the other a number there, which costs nothing."""

import mmap
import os
from typing import Final

_SIZE: Final = mmap.PAGESIZE
_AT, _TAKEN_BACK = 0, 1


def make_page() -> int:
    """The descriptor of a new page, which another process may be given."""
    descriptor = os.memfd_create("mlimg")
    os.truncate(descriptor, _SIZE)
    return descriptor


class Page:
    """Jobs' numbers, which grow from 1. Each is written by one side, in one piece. The descriptor is closed."""

    def __init__(self, descriptor: int) -> None:
        try:
            self._cells = memoryview(mmap.mmap(descriptor, _SIZE)).cast("Q")
        finally:
            os.close(descriptor)

    @property
    def at(self) -> int:
        """The job that the worker is at, until its answer is sent; 0 between jobs. The worker writes it."""
        return self._cells[_AT]

    @at.setter
    def at(self, number: int) -> None:
        self._cells[_AT] = number

    @property
    def taken_back(self) -> int:
        """Jobs up to this one are not to be begun any more. The server writes it."""
        return self._cells[_TAKEN_BACK]

    @taken_back.setter
    def taken_back(self, number: int) -> None:
        self._cells[_TAKEN_BACK] = number
