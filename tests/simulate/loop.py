"""An event loop whose time is virtual: nothing waits, everything happens in one order.

Owns the clock of a simulation. Invariant: callbacks run in the order of their times and, at one
time, in the order in which they were asked for; no thread, file descriptor or system clock has a
say, so the same program makes the same run. What the node would do in a thread runs at once, and
its answer comes later, when the disk says (`Answering`). The simulation makes one for each seed.
"""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Final, Protocol

RESOLUTION_SECONDS: Final = 1e-9


class NothingLeft(Exception):
    """Every task waits for another one: without a thread or a socket nobody will ever move."""


class Answering(Protocol):
    """Runs a blocking function and says when its answer is to be known."""

    def __call__(self, work: Callable[[], Any], answer: Callable[[Any], None]) -> None: ...


class _NoSelector:
    """Stands where a selector waits for sockets: here waiting is all there is."""

    def __init__(self) -> None:
        self.now_seconds = 0.0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingLeft
        self.now_seconds += timeout
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """`task_owner`, where it is set, is told of every task made in that context."""

    def __init__(self) -> None:
        super().__init__()
        self._waits = _NoSelector()
        self._selector = self._waits  # what BaseEventLoop's one turn asks
        self._clock_resolution = RESOLUTION_SECONDS
        self.task_owner: Final[contextvars.ContextVar[Any]] = contextvars.ContextVar("owner")
        self.failures: list[str] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._waits.now_seconds

    def now_ns(self) -> int:
        """Nanoseconds since this loop was made."""
        return round(self._waits.now_seconds * 1_000_000_000)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """The work is done now, in this thread; when it is known to be done, its owner says."""
        future: asyncio.Future[Any] = self.create_future()

        def answer(outcome: Any) -> None:
            if future.cancelled():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        blocking: Answering = self.task_owner.get().blocking
        blocking(lambda: func(*args), answer)
        return future

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any
    ) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **named)
        owner = self.task_owner.get(None)
        if owner is not None:
            owner.tasks.append(task)
        return task

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(f"{context['message']}: {context.get('exception')!r}")

    # What BaseEventLoop leaves to a loop with sockets.
    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        raise AssertionError("another thread has no business here")
