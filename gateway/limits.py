"""What one connection, one account and one address may take: requests per second, subscriptions,
unread bytes.

Invariant: a limit degrades only who meets it. Every limit is told in `hello`. What several
connections share is remembered for as long as one of them is open or it is not yet full again, so
that connecting anew gains nothing and what is kept is bounded by what was asked. Sessions and the
server call it; time comes in through constructors.
"""

import ipaddress
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast, get_args

import msgspec
from compex_client import messages as m

from engine.rejects import Reject
from gateway.wire import FRAME_BYTES_MAX

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000
# When to try again what the engine refused: after about ten commits, when a person has made room.
RETRY_MS: Final = {Reject.BUSY: 50, Reject.DISK_NEARLY_FULL: 5_000}
PENDING_REPEATS_MAX: Final = 1 << 16  # requests that wait for a command of another request
SUBNET_BITS: Final = 64  # of an IPv6 address: whoever has one has all of its /64

# In tokens, by the type of a request; any other takes one.
WEIGHTS: Final = {"replace": 2, "exclusive": 4, "basket": 4, "sign_orders": 4, "block": 8}
ADDRESSES_MAX: Final = 1 << 16  # whose logins are counted

DEFAULT_LIMITS: Final = m.Limits(
    requests_per_s=1_000,
    requests_burst=2_000,
    cancels_per_s=1_000,
    cancels_burst=2_000,
    frame_bytes=FRAME_BYTES_MAX,
    outbound_bytes=4 << 20,
    subscriptions=256,
    account_requests_per_s=4_000,
    account_requests_burst=8_000,
    account_cancels_per_s=4_000,
    account_cancels_burst=8_000,
    address_requests_per_s=10_000,
    address_requests_burst=20_000,
    address_cancels_per_s=10_000,
    address_cancels_burst=20_000,
    weights=WEIGHTS,
)
# Of a bucket: what takes the most tokens at once, a batch, must fit into it.
BURST_MIN: Final = (
    m.BATCH_ITEMS_MAX * WEIGHTS["replace"] + m.QUOTE_LEVELS_MAX // DEFAULT_LIMITS.records_per_token
)


class TokenBucket:
    """`burst` tokens at most, refilled at `rate_per_s`; integers only, so it never drifts.

    One number says how full it is: the time at which it will be full again (the generic cell rate
    algorithm, ITU-T I.371), in nanoseconds times the rate, so that a token is NS_PER_S of them.
    Every `now_ns` is of one clock, which never runs backwards. All is O(1).
    """

    __slots__ = ("full_at", "rate_per_s", "size")

    def __init__(self, rate_per_s: int, burst: int) -> None:
        assert rate_per_s > 0 and burst > 0
        self.rate_per_s: Final = rate_per_s
        self.size: Final = burst * NS_PER_S
        self.full_at = 0

    def take(self, tokens: int, now_ns: int) -> int:
        """Take them and say 0; or none, and the milliseconds (rounded up) until they are there."""
        now = now_ns * self.rate_per_s
        full_at = (self.full_at if self.full_at > now else now) + tokens * NS_PER_S
        missing = full_at - now - self.size
        if missing > 0:
            return -(-missing // (self.rate_per_s * NS_PER_MS))
        self.full_at = full_at
        return 0

    def give_back(self, tokens: int) -> None:
        """What was taken at the same time."""
        self.full_at -= tokens * NS_PER_S

    def owe(self, tokens: int, now_ns: int) -> None:
        """Take them, there or not: if not, there are none until as many have come."""
        self.full_at = max(self.full_at, now_ns * self.rate_per_s) + tokens * NS_PER_S

    def left(self, now_ns: int) -> int:
        taken = self.full_at - now_ns * self.rate_per_s
        return max(0, self.size - taken if taken > 0 else self.size) // NS_PER_S

    def is_full(self, now_ns: int) -> bool:
        return self.full_at <= now_ns * self.rate_per_s


class Budget:
    """What one connection, account or address has: tokens for requests, and others for cancels."""

    __slots__ = ("cancels", "key", "requests", "scope", "users")

    def __init__(self, scope: m.BudgetScope, key: str, requests: TokenBucket, cancels: TokenBucket):
        self.scope: Final[m.BudgetScope] = scope
        self.key: Final = key
        self.requests: Final = requests
        self.cancels: Final = cancels
        self.users = 0  # connections

    def take(self, requests: int, cancels: int, now_ns: int) -> int:
        """As `TokenBucket.take`, of both or of none."""
        if not cancels:
            return self.requests.take(requests, now_ns)
        retry_ms = self.cancels.take(cancels, now_ns)
        if requests and not retry_ms:
            retry_ms = self.requests.take(requests, now_ns)
            if retry_ms:
                self.cancels.give_back(cancels)
        return retry_ms

    def give_back(self, requests: int, cancels: int) -> None:
        self.requests.give_back(requests)
        self.cancels.give_back(cancels)

    def left(self, now_ns: int) -> tuple[int, int]:
        return self.requests.left(now_ns), self.cancels.left(now_ns)

    def is_scarce(self, now_ns: int) -> bool:
        """Less than half of one of them is left."""
        one, other = self.requests, self.cancels
        return (
            2 * (one.full_at - now_ns * one.rate_per_s) > one.size
            or 2 * (other.full_at - now_ns * other.rate_per_s) > other.size
        )

    def is_full(self, now_ns: int) -> bool:
        """As good as a new one."""
        return self.requests.is_full(now_ns) and self.cancels.is_full(now_ns)


_OF_RECORDS: Final = frozenset({m.Batch, m.Quote, m.Block, m.Exclusive, m.Basket, m.SignOrders})
_LISTS_NOTHING: Final = frozenset({
    m.Candle, m.Index, m.Trade, m.Ticker, m.MarketStatus, m.Auction,
})  # fmt: skip


def records_in(told: msgspec.Struct) -> int:
    """How many entries a message or an answer lists; what lists nothing is one itself."""
    if type(told) in _LISTS_NOTHING:  # a look at each field would cost a third of its encoding
        return 1
    fields = msgspec.structs.astuple(told)
    return max(1, sum(len(cast("list[Any]", x)) for x in fields if isinstance(x, list)))


class Tariff:
    """What each request takes: (tokens for requests, tokens for cancels)."""

    def __init__(self, limits: m.Limits) -> None:
        self._records_per_token = limits.records_per_token
        self._costs: dict[type, tuple[int, int]] = {}
        for kind in get_args(m.ClientMessage):
            tokens = limits.weights.get(kind.__struct_config__.tag, 1)
            cancels = issubclass(kind, m.Cancel | m.CancelAll)
            self._costs[kind] = (0, tokens) if cancels else (tokens, 0)

    def of(self, request: m.ClientMessage) -> tuple[int, int]:
        kind = type(request)
        cost = self._costs[kind]
        if kind not in _OF_RECORDS:
            return cost
        match request:
            case m.Batch():
                costs = [self.of(item) for item in request.items]
                return sum(x[0] for x in costs), sum(x[1] for x in costs)
            case m.Quote():
                records = len(request.bids) + len(request.asks)
            case m.Block():
                records = request.hours
            case m.Exclusive() | m.Basket():
                records = len(request.legs)
            case m.SignOrders():
                records = len(request.orders)
            case _:
                raise AssertionError(kind)
        return cost[0] + records // self._records_per_token, cost[1]

    def of_told(self, records: int) -> int:
        """What a request takes besides, of tokens for requests, for what it is told at once."""
        return records // self._records_per_token


class Shortage(NamedTuple):
    scope: m.BudgetScope
    retry_ms: int


def spend(budgets: Sequence[Budget], requests: int, cancels: int, now_ns: int) -> Shortage | None:
    """Take from every one of the budgets, or from none: then, which of them has too little."""
    for place, budget in enumerate(budgets):
        retry_ms = (
            budget.take(requests, cancels, now_ns)
            if cancels
            else budget.requests.take(requests, now_ns)
        )
        if retry_ms:
            for other in budgets[:place]:
                other.give_back(requests, cancels)
            return Shortage(budget.scope, retry_ms)
    return None


def owe(budgets: Sequence[Budget], requests: int, now_ns: int) -> None:
    """Take from every one of the budgets for what is done already: how much a request comes to may
    be known only then. No more than one of them is ever owed, as the next needs a token."""
    for budget in budgets:
        budget.requests.owe(requests, now_ns)


class Budgets:
    """Those that connections share: of accounts, named by their wallets, and of addresses."""

    def __init__(self, limits: m.Limits, now_ns: Callable[[], int]) -> None:
        self._limits = limits
        self._now_ns = now_ns
        self._shared: dict[tuple[m.BudgetScope, str], Budget] = {}
        self._left: deque[Budget] = deque()  # once for each time that its last user left

    def __len__(self) -> int:
        return len(self._shared)

    def of_connection(self) -> Budget:
        x = self._limits
        requests = TokenBucket(x.requests_per_s, x.requests_burst)
        return Budget("connection", "", requests, TokenBucket(x.cancels_per_s, x.cancels_burst))

    def of_account(self, wallet: bytes) -> Budget | None:
        """Until `leave`, like the next. None if accounts have no such limit."""
        x = self._limits
        if not x.account_requests_per_s or not x.account_cancels_per_s:
            return None
        requests = TokenBucket(x.account_requests_per_s, x.account_requests_burst)
        cancels = TokenBucket(x.account_cancels_per_s, x.account_cancels_burst)
        return self._join(Budget("account", wallet.hex(), requests, cancels))

    def of_address(self, address: str) -> Budget | None:
        """None if addresses have no such limit, or this one says nothing about who it is."""
        x = self._limits
        peer = whose(address)
        if not peer or not x.address_requests_per_s or not x.address_cancels_per_s:
            return None
        requests = TokenBucket(x.address_requests_per_s, x.address_requests_burst)
        cancels = TokenBucket(x.address_cancels_per_s, x.address_cancels_burst)
        return self._join(Budget("address", peer, requests, cancels))

    def spend_once(self, address: str, wallet: bytes = b"") -> Shortage | None:
        """One request that comes without a connection of its own: of the address, and of the
        account if there is a wallet. As `spend`."""
        with self._of_once(address, wallet) as budgets:
            return spend(budgets, 1, 0, self._now_ns())

    def owe_once(self, address: str, wallet: bytes, requests: int) -> None:
        """What such a request has come to besides. As `owe`."""
        with self._of_once(address, wallet) as budgets:
            owe(budgets, requests, self._now_ns())

    @contextmanager
    def _of_once(self, address: str, wallet: bytes) -> Generator[list[Budget]]:
        found = [self.of_address(address), self.of_account(wallet) if wallet else None]
        budgets = [budget for budget in found if budget is not None]
        yield budgets
        for budget in budgets:
            self.leave(budget)

    def _join(self, new: Budget) -> Budget:
        self._forget()
        budget = self._shared.setdefault((new.scope, new.key), new)
        budget.users += 1
        return budget

    def leave(self, budget: Budget) -> None:
        budget.users -= 1
        assert budget.users >= 0
        if not budget.users:
            self._left.append(budget)
        self._forget()

    def _forget(self) -> None:
        """What was left first and is full again. One that is not keeps those behind it waiting,
        for no longer than it takes to fill a bucket."""
        now_ns = self._now_ns()
        while self._left and (self._left[0].users or self._left[0].is_full(now_ns)):
            budget = self._left.popleft()
            name = (budget.scope, budget.key)
            if not budget.users and self._shared.get(name) is budget:
                del self._shared[name]


def whose(address: str) -> str:
    """Who is limited by an IP address: itself, or its /64; "" for nobody, where it is none, or of
    this machine, where all that a proxy lets through would be one."""
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return ""
    peer = getattr(peer, "ipv4_mapped", None) or peer
    if peer.is_loopback:
        return ""
    if isinstance(peer, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((peer, SUBNET_BITS), strict=False))
    return str(peer)


class AddressBuckets:
    """A bucket for each address, of IPv6 for each network of 64 bits, which one person has.

    An address that is forgotten begins with a full bucket again, so the table is large: whoever
    can speak from so many addresses needs no second turn.
    """

    def __init__(self, rate_per_s: int, burst: int, now_ns: Callable[[], int]) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._now_ns = now_ns
        self._buckets: dict[str, TokenBucket] = {}  # the longest silent first

    def take(self, address: str) -> int:
        """As a bucket's own."""
        network = whose(address) or address  # this machine's own peers count as well
        bucket = self._buckets.pop(network, None)
        if bucket is None:
            bucket = TokenBucket(self._rate_per_s, self._burst)
            if len(self._buckets) >= ADDRESSES_MAX:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[network] = bucket
        return bucket.take(1, self._now_ns())


class Outbox:
    """Frames on their way to one reader, bounded in bytes.

    One frame counts for at most half the bound, so that a large answer (every open order, a deep
    book) can be asked for one at a time.

    `wake` is called when there is something to take, where there was nothing; `overflow` once, when
    the reader is too far behind. From then on, and once closed, frames are dropped: the connection
    is lost anyway. Neither may call back into who pushes, which is in the middle of something.
    """

    __slots__ = ("_bytes", "_bytes_max", "_frames", "_is_open", "_overflow", "_taken_bytes",
                 "_wake")  # fmt: skip

    def __init__(
        self, bytes_max: int, wake: Callable[[], None], overflow: Callable[[], None]
    ) -> None:
        self._bytes_max = bytes_max
        self._wake = wake
        self._overflow = overflow
        self._frames: list[bytes] = []
        self._bytes = 0  # queued, or taken and not sent
        self._taken_bytes = 0
        self._is_open = True

    def push(self, frame: bytes) -> None:
        if not self._is_open:
            return
        self._frames.append(frame)
        size = len(frame)  # as `_cost` does, without a call: every frame comes through here
        self._bytes += size if size < self._bytes_max >> 1 else self._bytes_max >> 1
        if self._bytes > self._bytes_max:
            self.close()
            self._overflow()
        elif len(self._frames) == 1:
            self._wake()

    @property
    def is_open(self) -> bool:
        """Whether what is pushed is told; if not, nothing needs to be made."""
        return self._is_open

    @property
    def has_room(self) -> bool:
        """For what can as well wait until the reader has taken what there is."""
        return self._bytes * 4 < self._bytes_max

    def take(self) -> list[bytes]:
        """Everything queued, oldest first. Its bytes still count until `sent`."""
        frames, self._frames = self._frames, []
        self._taken_bytes = self._bytes
        return frames

    def sent(self, frame: bytes | None = None) -> None:
        """One frame, or all that were taken, are with the operating system, or in the transport's
        small buffer."""
        bytes_sent = self._taken_bytes if frame is None else self._cost(frame)
        self._bytes -= bytes_sent
        self._taken_bytes -= bytes_sent

    def _cost(self, frame: bytes) -> int:
        return min(len(frame), self._bytes_max >> 1)

    def close(self) -> None:
        self._is_open = False
        self._frames.clear()
