"""What a node counts and times of itself where it happens: plain integers.

Invariant: counting costs less than a microsecond an order. So times are taken of each group of
commands, of each write, and of one frame in `ONE_FRAME_OF`, not of each order. Sessions, the hub
and the transport count; `gateway.metrics` reads.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import Final, NamedTuple

ONE_FRAME_OF: Final = 7  # is timed; odd, as requests and replies take turns
US: Final = 1_000
# From 1 µs to 5 s; the last bucket has what took longer.
BOUNDS_NS: Final = tuple(x * 10**power * US for power in range(7) for x in (1, 2, 5))


class Stage:
    """How long one part of an order's way takes, as a histogram."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0

    def took(self, ns: int) -> None:
        self.counts[bisect_left(BOUNDS_NS, ns)] += 1
        self.sum_ns += ns


class Traffic(NamedTuple):
    """How many connections there are now, and what went over all there ever were."""

    websockets: int = 0
    plain_connections: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    slow_readers_closed: int = 0


class Counts:
    """Of one node. `now_ns` is a steady clock; `sent` is counted by others, too."""

    def __init__(self, now_ns: Callable[[], int], sent: defaultdict[type, int]) -> None:
        self.now_ns: Final = now_ns
        self.received: Final[defaultdict[type, int]] = defaultdict(int)  # by type of request
        self.sent: Final = sent
        self.rejects: Final[defaultdict[int, int]] = defaultdict(int)  # by number
        self.answered: Final[defaultdict[int, int]] = defaultdict(int)  # plain HTTP, by status
        self.commands = 0
        self.decode: Final = Stage()
        self.sequence: Final = Stage()
        self.commit: Final = Stage()
        self.engine: Final = Stage()
        self.encode: Final = Stage()
        self.write: Final = Stage()
        self._until_timed = 1

    def begins(self) -> int:
        """A frame comes or goes: when that was, if it is one of those that are timed, or 0."""
        self._until_timed -= 1
        if self._until_timed:
            return 0
        self._until_timed = ONE_FRAME_OF
        return self.now_ns()

    def group(self, commands: int, commit_ns: int, match_ns: int, publish_ns: int, /) -> None:
        """What a group of commands took: the engine's `GroupListener`."""
        self.commands += commands
        self.commit.took(commit_ns)
        self.engine.took(match_ns + publish_ns)
