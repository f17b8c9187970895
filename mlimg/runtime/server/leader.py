"""The event loop, and the threads of which one at a time leads it: the pattern Leader/Followers.

https://www.dre.vanderbilt.edu/~schmidt/PDF/lf.pdf

What is done soon is done by the thread that leads, while the loop stands still: to wake another thread, whose
processor has nothing of it in its caches, would take as long. If it is not done after 10 to 20 ms, the thread that
follows goes on with the loop, and another one follows it. A callback that holds up the loop itself is not found out.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

from mlimg.runtime.errors import LimitError

_T = TypeVar("_T")
_Step = Callable[[], object]
Pause = Callable[[_Step, _Step], None]  # `Leader.pause`
_PATIENCE_SECONDS: Final = 0.01  # between looks at the leader: at the same work twice, it is held up


class Leader(Generic[_T]):
    """Runs `loop` in threads of its own: what never ends cannot keep the main thread, and with it the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._due: tuple[_Step, _Step] | None = None  # what the loop is stopped for
        # Of the work under way: who takes out what is in it leads, and goes on with that. `pop` is one step for all
        # threads. Each work has its own, as some of it may be under way in threads that led once.
        self._lease: deque[_Step] = deque()
        # The follower sleeps until there is work. The leader counts it and then looks at `_at_work`; the follower
        # clears `_at_work` and then looks at the count: at least one of them sees the other.
        self._count = 0
        self._at_work = threading.Event()
        self._followed = True
        self._spare: deque[threading.Lock] = deque()  # threads that led once, each behind its lock

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run the loop until `main` has ended, and return what it returns. Raises what it raises, LimitError."""
        task = self._loop.create_task(main)
        task.add_done_callback(lambda _: self._loop.stop())
        self._start(task, leads=False)
        self._start(task, leads=True)
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return task.result()

    def pause(self, work: _Step, then: _Step) -> None:
        """Stop the loop after its next turn, do `work`, which raises nothing, and go on with `then` in the loop.

        If that takes long, the loop goes on with `then` beside it, and calls it again when work has ended. Where there
        is no thread to find that out, `then` is called and nothing done.
        """
        self._due = work, then
        self._loop.call_soon(self._loop.stop)

    def _start(self, main: asyncio.Task[_T], *, leads: bool) -> None:
        thread = threading.Thread(target=self._live, args=(main, leads), name="event-loop", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise LimitError("no thread can be started", hint="raise the limit of processes") from error

    def _live(self, main: asyncio.Task[_T], leads: bool) -> None:
        if not leads:
            self._follow()
        while not self._lead(main):
            self._rest()
            self._follow()

    def _lead(self, main: asyncio.Task[_T]) -> bool:
        """Run the loop until another thread does, or its end; whether that has come."""
        try:
            while True:
                self._loop.run_forever()  # until something stops it
                if main.done():
                    self._loop.stop()  # what else was to stop it does so now, and not whoever closes it
                    self._loop.run_forever()
                    break
                if not self._do_work(main):
                    return False
        except BaseException as error:
            self._error = error
        self._ended.set()
        return True

    def _do_work(self, main: asyncio.Task[_T]) -> bool:
        """Do what the loop was stopped for; whether this thread leads still."""
        if self._due is None:
            return True
        (work, then), self._due = self._due, None
        self._followed = self._followed or self._has_follower(main)
        if not self._followed:
            self._loop.call_soon(then)
            return True
        lease = self._lease = deque([then])
        self._count += 1
        if not self._at_work.is_set():
            self._at_work.set()
        Context().run(work)  # what it sets there is not the loop's
        try:
            self._loop.call_soon(lease.pop())
        except IndexError:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(then)
            return False
        return True

    def _follow(self) -> None:
        """Look after the leader while there is work, until it is held up by some."""
        while True:
            self._at_work.wait()
            count, lease = self._count, self._lease
            time.sleep(_PATIENCE_SECONDS)
            if count != self._count:
                continue
            with suppress(IndexError):
                then = lease.pop()
                self._followed = False  # by nobody yet
                self._loop.call_soon(then)
                return
            self._at_work.clear()
            if count != self._count:
                self._at_work.set()

    def _rest(self) -> None:
        """Wait to follow again: what frameworks keep for each thread is not made anew."""
        lock = threading.Lock()
        lock.acquire()
        self._spare.append(lock)
        lock.acquire()

    def _has_follower(self, main: asyncio.Task[_T]) -> bool:
        """Find the next follower; False where there can be none now."""
        with suppress(IndexError):
            self._spare.pop().release()
            return True
        with suppress(LimitError):
            self._start(main, leads=False)
            return True
        return False
