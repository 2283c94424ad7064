"""The double-entry ledger: the engine's money events, each booked exactly once.

Owns the tables ledger_account, transfer, booked, fill, listed, withdrawal, closed_account, period,
closing, ended_leases_booked and watermark. Invariant: the postings, the fills and the watermark of
a run of events are written in one database transaction, so the ledger always stands at exactly one
event number; what it is given again is skipped, a gap is refused. So it is with the vault's logs,
which are a shard of their own. The schema refuses whatever does not balance; one vault holds one
token, so a ledger is of one asset. Transfers and fills are in periods of event numbers, opened
ahead of need; what is over can be closed and taken out. Only settlement's service calls it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from engine.records import (
    EVENT_STRUCT,
    CancelReason,
    Event,
    EventKind,
    FillNote,
    Purse,
    Side,
    cost_usdc6,
)
from settlement.batch import FILL, Amounts, Fills
from settlement.database import REWRITE_SECONDS_MAX, Database
from settlement.errors import LedgerOutOfStep
from settlement.postings import EXCHANGE, Bucket, Line
from settlement.products import settled

SHARD: Final = 0  # the one shard there is
VAULT_SHARD: Final = (1 << 15) - 1  # the vault's logs: block for sequence, place for ordinal
USER_BUCKETS: Final[tuple[Bucket, ...]] = (
    "cash", "pending", "escrow", "leaving", "bond", "earnings",
)  # fmt: skip
PERIOD_EVENTS: Final = 1 << 22
LINES_PER_LOG_MAX: Final = 1 << 15  # numbered by a smallint

_TRANSFER_COLUMNS: Final = (
    "event_number", "shard", "sequence", "ordinal", "time_ns", "kind", "reference",
    "from_account", "from_bucket", "to_account", "to_bucket", "amount_usdc6", "line",
)  # fmt: skip
_FILL_COLUMNS: Final = (
    "event_number", "sequence", "time_ns", "instrument", "taker_order_id", "maker_order_id",
    "taker", "maker", "buyer", "seller", "price_ticks", "qty_lots", "buyer_fee_ppm",
    "seller_fee_ppm", "resold",
)  # fmt: skip


class Numbered(NamedTuple):
    """An event with its place among all events, from 1."""

    number: int
    event: Event


class Log(NamedTuple):
    """A log of the vault's that moved money, and how. Logs come in the order of the chain."""

    block_number: int
    log_index: int
    time_ns: int
    lines: Sequence[Line]


class Holdings(NamedTuple):
    """One account's buckets as the engine has them, µUSDC."""

    cash_usdc6: int
    pending_usdc6: int
    escrow_usdc6: int
    leaving_usdc6: int
    bond_usdc6: int


class Watermark(NamedTuple):
    """The last event booked. `event` is its 64 bytes, empty before the first."""

    event_number: int
    sequence: int
    ordinal: int  # of the event among those of its sequence, from 0
    event: bytes


class Trial(NamedTuple):
    """Sums over the whole ledger, µUSDC; a sound ledger has 0, 0 and no differing account."""

    balances_usdc6: int  # all balances, the vault's included
    postings_usdc6: int  # all signed lines
    differing_accounts: int  # whose balance is not the sum of their lines


async def _stored_watermark(database: Database, shard: int) -> Watermark:
    row = await database.row("SELECT * FROM watermark WHERE shard = $1", shard)
    assert row is not None, "a migration writes it"
    return Watermark(row["event_number"], row["sequence"], row["ordinal"], row["event"])


class Ledger:
    """`period_events`: how many event numbers a period has that is opened from now on."""

    def __init__(
        self,
        database: Database,
        watermark: Watermark,
        vault_mark: Watermark,
        open_until: int,
        period_events: int,
    ) -> None:
        self._database = database
        self._watermark = watermark
        self._vault_mark = vault_mark
        self._open_until = open_until  # the first event number without a period
        self._period_events = period_events

    @classmethod
    async def open(cls, database: Database, period_events: int = PERIOD_EVENTS) -> "Ledger":
        return cls(database, *await cls._stored(database), period_events)

    async def reopen(self) -> None:
        """After the connection was lost: see whether what was being booked then is."""
        self._watermark, self._vault_mark, self._open_until = await self._stored(self._database)

    @staticmethod
    async def _stored(database: Database) -> tuple[Watermark, Watermark, int]:
        return (
            await _stored_watermark(database, SHARD),
            await _stored_watermark(database, VAULT_SHARD),
            await database.value("SELECT max(end_event) FROM period"),
        )

    @property
    def watermark(self) -> Watermark:
        return self._watermark

    async def post(self, events: Sequence[Numbered]) -> int:
        """Book consecutive events; those at or below the watermark are skipped.

        Returns how many were new. Raises LedgerOutOfStep when they do not follow the watermark,
        PostingRefused when the schema refuses one of them; then none is booked.
        """
        mark = self._watermark
        fresh = [e for e in events if e.number > mark.event_number]
        if not fresh:
            return 0
        last = fresh[-1].number
        if fresh[0].number != mark.event_number + 1 or last != mark.event_number + len(fresh):
            raise LedgerOutOfStep(
                f"events {fresh[0].number} to {last} do not follow {mark.event_number}"
            )
        entries = _Entries(mark)
        for number, event in fresh:
            entries.add(number, event)
        after = Watermark(
            last, entries.sequence, entries.ordinal, EVENT_STRUCT.pack(*fresh[-1].event)
        )
        async with self._database.transaction():
            open_until = await self._open_periods(last)
            await self._write(entries)
            await self._move_watermark(SHARD, mark, after)
        self._watermark, self._open_until = after, open_until
        return len(fresh)

    async def post_logs(self, logs: Sequence[Log]) -> int:
        """Book what final logs of the vault moved; those at or below the last one are skipped.

        Returns how many were new. Raises as `post`; logs must come in order, but they may leave
        out others.
        """
        mark = self._vault_mark
        fresh = [log for log in logs if (log.block_number, log.log_index) > mark[1:3]]
        if not fresh:
            return 0
        places = [(log.block_number, log.log_index) for log in fresh]
        if any(later <= earlier for earlier, later in pairwise(places)):
            raise LedgerOutOfStep("logs of the vault are not in the order of the chain")
        assert all(len(log.lines) <= LINES_PER_LOG_MAX for log in fresh)
        number = max(1, self._watermark.event_number)  # the vault was there before any event
        rows = [
            (number, VAULT_SHARD, block, index, log.time_ns, *line, i)
            for (block, index), log in zip(places, fresh, strict=True)
            for i, line in enumerate(log.lines)
        ]
        after = Watermark(number, *places[-1], b"")
        async with self._database.transaction():
            await self._database.copy("transfer", _TRANSFER_COLUMNS, rows)
            await self._move_watermark(VAULT_SHARD, mark, after)
        self._vault_mark = after
        return len(fresh)

    async def _move_watermark(self, shard: int, mark: Watermark, after: Watermark) -> None:
        moved = await self._database.execute(
            "UPDATE watermark SET event_number = $2, sequence = $3, ordinal = $4, event = $5"
            " WHERE shard = $1 AND (event_number, sequence, ordinal) = ($6, $7, $8)",
            *(shard, *after, *mark[:3]),
        )
        if moved != 1:
            raise LedgerOutOfStep("somebody else has booked events")

    async def _open_periods(self, last: int) -> int:
        """So that there is one for this event and the half of another; where they end."""
        open_until = self._open_until
        while open_until <= last + self._period_events // 2:
            open_until = await self._database.value("SELECT open_period($1)", self._period_events)
        return open_until

    async def _write(self, entries: "_Entries") -> None:
        database = self._database
        if entries.opened:
            await database.execute(
                "INSERT INTO ledger_account (account, bucket)"
                " SELECT account, bucket FROM unnest($1::bigint[]) account,"
                " unnest($2::bucket[]) bucket",
                *(entries.opened, USER_BUCKETS),
            )
        if entries.transfers:
            await database.copy("transfer", _TRANSFER_COLUMNS, entries.transfers)
        if entries.fills:
            await database.copy("fill", _FILL_COLUMNS, entries.fills)
        if entries.withdrawals:
            await database.copy(
                "withdrawal", ("id", "account", "amount_usdc6"), entries.withdrawals
            )
            ids = [("withdraw", withdrawal_id) for withdrawal_id, _, _ in entries.withdrawals]
            await database.copy("outgoing", ("kind", "id"), ids)
        if entries.ended:
            await database.execute("UPDATE ended_leases_booked SET number = $1", entries.ended)
        await self.list_products(entries.listed)
        for account, emptied in entries.closings:
            if emptied is None:
                await database.execute("DELETE FROM closed_account WHERE account = $1", account)
            else:
                await database.execute(
                    "INSERT INTO closed_account VALUES ($1, $2)"
                    " ON CONFLICT (account) DO UPDATE SET emptied = $2",
                    *(account, emptied),
                )

    async def list_products(self, listed: Sequence[tuple[int, int]]) -> None:
        """What is traded under which instrument's number; what is known of one stays."""
        if listed:
            await self._database.execute(
                "INSERT INTO listed SELECT * FROM unnest($1::bigint[], $2::bigint[])"
                " ON CONFLICT (instrument) DO NOTHING",
                *zip(*listed, strict=True),
            )

    async def last_deposit(self) -> int:
        """Number of the last deposit that the engine credited; 0 before the first."""
        return await self._database.value(
            "SELECT coalesce(max(reference), 0) FROM booked WHERE kind = 'deposit'"
        )

    async def unsealed_fills(self, limit: int, now_s: int) -> tuple[Fills, Amounts]:
        """Fills that are in no batch and not void, and their event numbers, ascending: those which
        both parties have signed for, without quarantined accounts."""
        rows = await self._database.rows(
            "SELECT f.event_number, l.product, f.buyer, f.seller, f.price_ticks, f.qty_lots,"
            " o.buyer_number, o.seller_number, f.buyer_fee_ppm, f.seller_fee_ppm"
            " FROM fill f JOIN listed l USING (instrument)"
            " JOIN sealable_fills($2) o USING (event_number)"
            " WHERE f.batch_id IS NULL AND f.void_number IS NULL"
            " AND NOT EXISTS (SELECT FROM quarantine q WHERE q.account IN (f.buyer, f.seller))"
            " ORDER BY f.event_number LIMIT $1",
            *(limit, now_s),
        )
        columns = np.array([tuple(row.values()) for row in rows], np.int64).reshape(-1, 10).T
        numbers, products, *others = columns
        fills = np.empty(len(rows), FILL)
        plain = [name for name in FILL.names or () if name not in ("series", "window")]
        for name, column in zip(plain, others, strict=True):
            fills[name] = column
        for product in np.unique(products).tolist():
            of_it = products == product
            fills["series"][of_it], fills["window"][of_it] = settled(product)
        return fills, numbers

    async def balances(self) -> dict[int, Holdings]:
        """Every account's buckets as of the watermark."""
        rows = await self._database.rows(
            "SELECT account, array_agg(balance_usdc6 - by_vault_usdc6 ORDER BY bucket) AS held"
            " FROM ledger_account WHERE account <> $1 AND bucket <> 'earnings'"
            " GROUP BY account ORDER BY account",
            EXCHANGE,
        )
        return {row["account"]: Holdings._make(row["held"]) for row in rows}

    async def moved_by_vault(self) -> dict[tuple[int, Bucket], int]:
        """What `post_logs` has moved, µUSDC by account and bucket, signed: the ledger has it beside
        what the engine has, where neither is zero."""
        rows = await self._database.rows(
            "SELECT account, bucket, by_vault_usdc6 FROM ledger_account WHERE by_vault_usdc6 <> 0"
        )
        return {(row["account"], row["bucket"]): row["by_vault_usdc6"] for row in rows}

    async def close_periods(self) -> int:
        """Close what is over and wholly settled, oldest first; returns how many were closed."""
        closed = 0
        for row in await self._database.rows(
            "SELECT number FROM period WHERE NOT closed AND end_event <= $1 ORDER BY number",
            self._watermark.event_number,
        ):
            if not await self._database.value("SELECT is_settled($1)", row["number"]):
                break
            await self._database.execute(
                "SELECT close_period($1)", row["number"], seconds_max=REWRITE_SECONDS_MAX
            )
            closed += 1
        return closed

    async def trial_balance(self) -> Trial:
        """From the closing of the last closed period on, so that it takes no longer each year."""
        row = await self._database.row(
            "WITH line AS ("
            "  SELECT account, bucket, amount_usdc6 FROM posting"
            "  WHERE event_number >= (SELECT opening_event())"
            "  UNION ALL SELECT account, bucket, balance_usdc6 FROM opening"
            " ), lines AS ("
            "  SELECT account, bucket, sum(amount_usdc6) AS lines_usdc6 FROM line"
            "  GROUP BY account, bucket"
            " ) SELECT coalesce(sum(balance_usdc6), 0)::bigint,"
            " coalesce(sum(lines_usdc6), 0)::bigint,"
            " count(*) FILTER (WHERE balance_usdc6 <> coalesce(lines_usdc6, 0))"
            " FROM ledger_account LEFT JOIN lines USING (account, bucket)"
        )
        assert row is not None
        return Trial._make(row.values())


class _Entries:
    """Rows that a run of events becomes."""

    def __init__(self, mark: Watermark) -> None:
        self.sequence = mark.sequence
        self.ordinal = mark.ordinal
        self.opened: list[int] = []
        self.transfers: list[tuple[object, ...]] = []
        self.fills: list[tuple[int, ...]] = []
        self.withdrawals: list[tuple[int, int, int]] = []
        self.listed: list[tuple[int, int]] = []  # (instrument, product)
        self.ended = 0  # the number of the last end of leases
        self.closings: list[tuple[int, bool | None]] = []  # whether emptied; None: reopened

    def add(self, number: int, event: Event) -> None:
        if event.sequence < self.sequence:
            raise LedgerOutOfStep(f"event {number} has sequence {event.sequence}, a past one")
        self.ordinal = self.ordinal + 1 if event.sequence == self.sequence else 0
        self.sequence = event.sequence
        user, amount = event.account, event.amount_usdc6
        match event.kind:
            case EventKind.ACCOUNT_OPENED:
                self.opened.append(user)
            case EventKind.DEPOSITED:
                bucket = "bond" if event.side == Purse.BOND else "cash"
                vault_to_user = (EXCHANGE, "vault", user, bucket)
                self._transfer(number, event, "deposit", event.reference, vault_to_user, amount)
            case EventKind.FILL:
                self._fill(number, event)
            case EventKind.ESCROW_CONFIRMED:
                ends = (user, "pending", user, "escrow")
                self._transfer(number, event, "escrow", event.reference, ends, amount)
            case EventKind.WITHDRAWAL_RESERVED:
                ends = (user, "cash", user, "leaving")
                self._transfer(number, event, "reserve", event.reference, ends, amount)
                self.withdrawals.append((event.reference, user, amount))
            case EventKind.WITHDRAWAL_CONFIRMED:
                ends = (user, "leaving", EXCHANGE, "vault")
                self._transfer(number, event, "withdraw", event.reference, ends, amount)
            case EventKind.WITHDRAWAL_CANCELLED:
                ends = (user, "leaving", user, "cash")
                self._transfer(number, event, "return", event.reference, ends, amount)
            case EventKind.FILL_VOIDED:
                ends = (user, "pending", user, "cash")
                voided = cost_usdc6(event.price_ticks, event.qty_lots, event.taker_fee_ppm)
                self._transfer(number, event, "void", event.reference, ends, voided)
            case EventKind.EXIT_CONFIRMED:
                ends = (user, "cash", EXCHANGE, "vault")
                self._transfer(number, event, "exit", event.reference, ends, amount)
            case EventKind.LEASES_ENDED:
                self.ended = event.reference
                if amount:
                    # The vault has moved it out of the escrow already: that is taken back first.
                    ends = (EXCHANGE, "vault", user, "escrow")
                    self._transfer(number, event, "handed", event.reference, ends, amount)
                    ends = (user, "escrow", EXCHANGE, "vault")
                    self._transfer(number, event, "ended", event.reference, ends, amount, line=1)
            case EventKind.MARKET_LISTED:
                self.listed.append((event.instrument, event.product))
            case EventKind.ACCOUNT_CLOSED:
                self.closings.append((user, event.reason != CancelReason.EFFECTS_LIMIT))
            case EventKind.ACCOUNT_REOPENED:
                self.closings.append((user, None))
            case _:
                pass  # moves no money that the ledger tells apart

    def _fill(self, number: int, event: Event) -> None:
        taker, maker = event.account, event.counter_account
        buyer, seller = taker, maker
        buyer_fee_ppm, seller_fee_ppm = event.taker_fee_ppm, event.maker_fee_ppm
        if event.side == Side.SELL:
            buyer, seller = seller, buyer
            buyer_fee_ppm, seller_fee_ppm = seller_fee_ppm, buyer_fee_ppm
        ends = (buyer, "cash", buyer, "pending")
        cost = cost_usdc6(event.price_ticks, event.qty_lots, buyer_fee_ppm)
        self._transfer(number, event, "fill", number, ends, cost)
        self.fills.append((
            number, event.sequence, event.time_ns, event.instrument, event.order_id,
            event.counter_order_id, taker, maker, buyer, seller, event.price_ticks,
            event.qty_lots, buyer_fee_ppm, seller_fee_ppm, bool(event.reason & FillNote.RESOLD),
        ))  # fmt: skip

    def _transfer(
        self,
        number: int,
        event: Event,
        kind: str,
        reference: int,
        ends: tuple[int, str, int, str],
        amount_usdc6: int,
        line: int = 0,
    ) -> None:
        self.transfers.append((
            number, SHARD, event.sequence, self.ordinal, event.time_ns, kind, reference, *ends,
            amount_usdc6, line,
        ))  # fmt: skip
