"""What a model that was loaded, or that is gone, leaves in this process."""

import ctypes
import gc
import threading
from contextlib import suppress
from typing import Final

_one_at_a_time: Final = threading.Lock()


def settle() -> None:
    """Give the kernel what is free, and keep the garbage collector from what stays. It takes some 50 ms.

    A framework and its model are a hundred thousand objects and more. Looking through all of them, as the collector
    does again and again, holds every request for as long as this takes; they are looked at here, when some of them
    came or went, and nowhere else. What the allocator keeps of what was freed may be as much again as the model.

    https://docs.python.org/3/library/gc.html#gc.freeze
    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with _one_at_a_time:  # a collection that another thread is at is none, and what is gone would be kept
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
