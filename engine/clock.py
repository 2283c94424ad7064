"""Time, handed in from outside: the system's, or a script's.

Invariant: nothing in the project reads the time of day but through a `Clock`, so that a whole node
runs in simulation. Anybody may import this module.
"""

import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    def now_ns(self) -> int:
        return time.time_ns()


class ScriptedClock:
    """Stands still until told; for runs that must be the same everywhere."""

    def __init__(self, start_ns: int) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_to(self, now_ns: int) -> None:
        """Never backwards: an earlier time is ignored."""
        self._now_ns = max(self._now_ns, now_ns)
