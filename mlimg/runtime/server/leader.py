"""The event loop, and the threads of which one at a time leads it: the pattern Leader/Followers.

https://www.dre.vanderbilt.edu/~schmidt/PDF/lf.pdf

What takes less than to wake another thread, whose processor has nothing of it in its caches, is done by the thread that
leads, while the loop stands still. If it takes long after all, the thread that follows goes on with the loop, and a new
one follows it. So nothing can hold up the loop for long.
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
Pause = Callable[[Callable[[], object], Callable[[], object]], None]  # `Leader.pause`
_PATIENCE_SECONDS: Final = 0.01  # between looks at the leader: work that is at it twice takes too long


class Leader(Generic[_T]):
    """Runs `loop` in threads of its own: what never ends cannot keep the main thread, and with it the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._work: Callable[[], object] | None = None
        self._then: Callable[[], object] | None = None
        # Of the work under way: who takes out what is in it leads. A deque's `pop` is one step for all threads.
        self._lease: deque[None] = deque()
        # The follower sleeps until there is work. The leader adds to `_works` and then looks at `_at_work`; the
        # follower clears `_at_work` and then looks at `_works`: at least one of them sees the other.
        self._works = 0
        self._at_work = threading.Event()

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Run the loop until `main` has ended, and return what it returns. Raises what it raises, LimitError."""
        task = self._loop.create_task(main)
        task.add_done_callback(lambda _: self._loop.stop())
        _start(self._follow, task)
        _start(self._lead_until, task)
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return task.result()

    def pause(self, work: Callable[[], object], then: Callable[[], object]) -> None:
        """Stop the loop after its next turn, do `work`, which raises nothing, and go on with `then` in the loop.

        If work takes too long, the loop goes on with `then` beside it, and calls it again when work has ended.
        """
        self._work, self._then = work, then
        self._loop.call_soon(self._loop.stop)

    def _lead_until(self, main: asyncio.Task[_T]) -> None:
        leads = True
        try:
            while leads:
                self._loop.run_forever()  # until something stops it
                if main.done():
                    break
                leads = self._do_work()
        except BaseException as error:
            self._error = error
        if leads:
            self._ended.set()

    def _do_work(self) -> bool:
        """Do what the loop was stopped for. Whether this thread leads still."""
        work, then = self._work, self._then
        if work is None or then is None:
            return True
        self._work = None
        lease = self._lease = deque([None])
        self._works += 1
        if not self._at_work.is_set():
            self._at_work.set()
        Context().run(work)  # what it sets there is not the loop's
        try:
            lease.pop()
        except IndexError:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(then)
            return False
        self._loop.call_soon(then)
        return True

    def _follow(self, main: asyncio.Task[_T]) -> None:
        """Look after the leader while there is work, and lead when it is at it for too long."""
        while not self._is_held_up() or not self._has_follower(main):
            pass
        with suppress(IndexError):  # it has just come to its end
            self._lease.pop()
            if self._then is not None:
                self._loop.call_soon(self._then)
            self._lead_until(main)

    def _is_held_up(self) -> bool:
        """Whether the leader is at the same work for a while. Sleeps until there is any."""
        self._at_work.wait()
        works = self._works
        time.sleep(_PATIENCE_SECONDS)
        if works != self._works:
            return False
        if self._lease:
            return True
        self._at_work.clear()
        if works != self._works:
            self._at_work.set()
        return False

    def _has_follower(self, main: asyncio.Task[_T]) -> bool:
        """Start the next follower. False where there can be none now: without one, a leader is held up for ever."""
        try:
            _start(self._follow, main)
        except LimitError:
            return False
        return True


def _start(target: Callable[[asyncio.Task[_T]], None], main: asyncio.Task[_T]) -> None:
    try:
        threading.Thread(target=target, args=(main,), name="event-loop", daemon=True).start()
    except RuntimeError as error:
        raise LimitError("no thread can be started", hint="raise the limit of processes") from error
