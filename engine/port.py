"""The only door of the engine: submit commands, subscribe to what they caused, read balances.

Gateway and settlement know the engine through this protocol alone. Invariant: a subscriber sees
every event exactly once, in order, and only after the command behind it is durable and matched.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, TypeAlias

from engine.records import Balances, Command, Event, EventArray

JournalSpace: TypeAlias = Literal["enough", "low", "too_low"]
MARK_BYTES_MIN: Final = 32 << 20  # of free bytes: the journal's next two segments


class Sequenced(NamedTuple):
    """The place a command got in the total order.

    For a repeated client id with the same body, `duplicate` is true, `sequence` is the first
    one's, and `answer` is the first one's terminal event, or None while it is still in flight.
    """

    sequence: int
    duplicate: bool = False
    answer: Event | None = None


class Batch(NamedTuple):
    """Consecutive events, durable. Event i of the batch has the number first_number + i."""

    first_number: int
    array: EventArray
    events: list[Event]
    replayed: bool  # from the journal at start, not live


class Market(NamedTuple):
    """What is listed under an instrument number."""

    instrument: int
    product: int  # catalog.unpack_product
    status: int  # records.MarketStatus
    lot_multiple: int
    bond_usdc6_per_lot: int


class Rates(NamedTuple):
    """What orders that come now are charged, parts per million of price times quantity."""

    maker_ppm: int
    taker_ppm: int


class SpaceMarks(NamedTuple):
    """Below how many free bytes, where the journal is, its space is low, and too low.

    Between too low and none there is room for what is still taken: a cancel on its own is 128
    bytes of the journal, so the default leaves two million of them.
    """

    low_bytes: int = 1 << 30
    too_low_bytes: int = 256 << 20


class Readiness(NamedTuple):
    """For `/ready`: `stopped` is empty while commands are taken, else the reason in words.

    `has_room` is false while only cancels are taken, because a subscriber is far behind; so they
    are while `journal_space` is too low. `journal_bytes_free` is as of the last look.
    `started_from` is the last sequence in the snapshot that the start began with; 0: none.
    """

    last_sequence: int
    durable_sequence: int
    event_number: int
    stopped: str
    has_room: bool = True
    started_from: int = 0
    journal_bytes_free: int = 0
    journal_space: JournalSpace = "enough"


class Subscriber(Protocol):
    """Called with each batch, in order; must not block and must not raise."""

    def __call__(self, batch: Batch, /) -> None: ...


class Keeper(Protocol):
    """A subscriber's memory of all events so far, which a snapshot keeps for it."""

    name: ClassVar[str]  # at most 40 letters, with the version of what is saved: of another
    # version nothing is given back

    def save(self) -> bytes:
        """Called between two commands."""
        ...

    def load(self, saved: bytes) -> None:
        """What `save` gave, before the first batch. Raises ValueError or msgspec.MsgspecError for
        anything else."""
        ...


class Source(Protocol):
    """Where events come from: the running engine, or a replica that follows its journal."""

    def subscribe(
        self,
        subscriber: Subscriber,
        has_room: Callable[[], bool] | None = None,
        *,
        keeper: Keeper | None = None,
        heard: Callable[[], int] | None = None,
    ) -> None:
        """Before start: the journal's events are delivered first, then live ones.

        From the first event on, unless a start may leave out what a snapshot has: for a `keeper`,
        which gets back what it saved; or of the events up to the number that `heard` says, because
        the subscriber has them safe elsewhere (read at start, and when history is thrown away).
        While `has_room` returns false, submit refuses with BUSY instead of queueing without end;
        cancels are taken all the same, as they only lessen what is at risk.
        """
        ...

    def balances(self, account: int) -> Balances:
        """As of the last published group of commands. Zeros for an unknown account."""
        ...


class Port(Source, Protocol):
    def submit(self, command: Command, parts: Sequence[Command] = ()) -> Sequenced:
        """Sequence one command (its own `sequence` and `time_ns` are ignored), or one of several
        records: its head, of a kind in OF_SEVERAL, and its parts, of kind PART.

        A client id of the head names head and parts together. Raises Refused (BUSY, STOPPED,
        CLIENT_ID_REUSED, CLIENT_ID_OUT_OF_RANGE, INVALID_FIELD for a number its field cannot hold,
        UNKNOWN_COMMAND for a part alone, TOO_MANY_LEGS beyond PARTS_MAX, INVALID_LEGS for records
        that are no head and its parts; DISK_NEARLY_FULL for what is no cancel while the
        journal's space is too low) with nothing changed. Everything else is answered by the
        command's one terminal event.
        """
        ...

    def is_used(self, account: int, client_id: int) -> bool:
        """Whether a client id names a command of the account already, done or in flight: sent
        again, it would be answered as a duplicate or with CLIENT_ID_REUSED."""
        ...

    def when_stopped(self, listener: Callable[[str], None]) -> None:
        """Called once, with the reason, if the engine stops by itself. What became of commands
        still in flight is then unknown: they are neither accepted nor refused."""
        ...

    async def settled(self) -> None:
        """Return when everything submitted so far has been published."""
        ...

    def account_of(self, owner: bytes) -> int:
        """The account of a 20-byte wallet address; 0 if there is none."""
        ...

    def owner_of(self, account: int) -> bytes:
        """The 20-byte wallet address of an account; 20 zero bytes if there is none."""
        ...

    def markets(self) -> list[Market]: ...

    def rates(self, fee_tier: int) -> Rates:
        """As of the last published group of commands. Tiers count from 0."""
        ...

    def ready(self) -> Readiness: ...

    def state_hash(self) -> str:
        """Of everything sequenced so far; two engines agree on it when both are settled."""
        ...
