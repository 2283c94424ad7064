"""What one connection may take: requests per second, subscriptions, unread bytes.

Invariant: a limit degrades only the connection that meets it. Every limit is told in `hello`.
Sessions and the server call it; time comes in through constructors.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from compex_client import messages as m

from engine.rejects import Reject
from gateway.wire import FRAME_BYTES_MAX

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
# When to try again what the engine refused: after about ten commits, when a person has made room.
RETRY_MS: Final = {Reject.BUSY: 50, Reject.DISK_NEARLY_FULL: 5_000}
PENDING_REPEATS_MAX: Final = 1 << 16  # requests that wait for a command of another request

DEFAULT_LIMITS: Final = m.Limits(
    requests_per_s=1_000,
    requests_burst=2_000,
    cancels_per_s=1_000,
    cancels_burst=2_000,
    frame_bytes=FRAME_BYTES_MAX,
    outbound_bytes=4 << 20,
    subscriptions=256,
)


class TokenBucket:
    """`burst` tokens at most, refilled at `rate_per_s`; integers only, so it never drifts.

    `now_ns` is a clock that never runs backwards.
    """

    def __init__(self, rate_per_s: int, burst: int, now_ns: Callable[[], int]) -> None:
        assert rate_per_s > 0 and burst > 0
        self._rate_per_s = rate_per_s
        self._full = burst * NS_PER_S  # tokens are counted in 1e-9 of one
        self._level = self._full
        self._now_ns = now_ns
        self._filled_ns = now_ns()

    def _refill(self) -> None:
        now_ns = self._now_ns()
        gained = (now_ns - self._filled_ns) * self._rate_per_s
        self._level = min(self._full, self._level + gained)
        self._filled_ns = now_ns

    def take(self) -> int:
        """Take a token: 0, or the milliseconds (rounded up) until there will be one."""
        self._refill()
        if self._level >= NS_PER_S:
            self._level -= NS_PER_S
            return 0
        missing = NS_PER_S - self._level
        return -(-missing // (self._rate_per_s * NS_PER_MS))

    @property
    def left(self) -> int:
        self._refill()
        return self._level // NS_PER_S


class Outbox:
    """Frames on their way to one reader, bounded in bytes.

    One frame counts for at most half the bound, so that a large answer (every open order, a deep
    book) can be asked for one at a time.

    `wake` is called when there is something to take; `overflow` once, when the reader is too far
    behind. From then on, and once closed, frames are dropped: the connection is lost anyway.
    """

    def __init__(
        self, bytes_max: int, wake: Callable[[], None], overflow: Callable[[], None]
    ) -> None:
        self._bytes_max = bytes_max
        self._wake = wake
        self._overflow = overflow
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._open = True

    def push(self, frame: bytes) -> None:
        if not self._open:
            return
        self._frames.append(frame)
        self._bytes += self._cost(frame)
        if self._bytes > self._bytes_max:
            self.close()
            self._overflow()
        else:
            self._wake()

    @property
    def has_room(self) -> bool:
        """For what can as well wait until the reader has taken what there is."""
        return self._bytes * 4 < self._bytes_max

    def take(self) -> list[bytes]:
        """Everything queued, oldest first. Its bytes still count until `sent`."""
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def sent(self, frame: bytes) -> None:
        """One frame is with the operating system, or in the transport's small buffer."""
        self._bytes -= self._cost(frame)

    def _cost(self, frame: bytes) -> int:
        return min(len(frame), self._bytes_max // 2)

    def close(self) -> None:
        self._open = False
        self._frames.clear()
