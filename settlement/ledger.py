"""The double-entry ledger: the engine's money events, each booked exactly once.

Owns the tables ledger_account, transfer, fill, withdrawal, closed_account and watermark.
Invariant: the postings, the fills and the watermark of a run of events are written in one database
transaction, so the ledger always stands at exactly one event number; what it is given again is
skipped, a gap is refused. The schema refuses whatever does not balance. Only settlement's service
calls it.
"""

from collections.abc import Sequence
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
from settlement.database import Database
from settlement.errors import LedgerOutOfStep
from settlement.products import settled

SHARD: Final = 0  # the one shard there is
VAULT_ACCOUNT: Final = 0
USER_BUCKETS: Final = ("cash", "pending", "escrow", "leaving", "bond")

_TRANSFER_COLUMNS: Final = (
    "event_number", "shard", "sequence", "ordinal", "time_ns", "kind", "reference",
    "from_account", "from_bucket", "to_account", "to_bucket", "amount_usdc6",
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


class Holdings(NamedTuple):
    """One account's buckets in the ledger, µUSDC."""

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


async def _stored_watermark(database: Database) -> Watermark:
    row = await database.row("SELECT * FROM watermark WHERE shard = $1", SHARD)
    assert row is not None, "the first migration writes it"
    return Watermark(row["event_number"], row["sequence"], row["ordinal"], row["event"])


class Ledger:
    def __init__(self, database: Database, watermark: Watermark) -> None:
        self._database = database
        self._watermark = watermark

    @classmethod
    async def open(cls, database: Database) -> "Ledger":
        return cls(database, await _stored_watermark(database))

    async def reopen(self) -> None:
        """After the connection was lost: see whether what was being booked then is."""
        self._watermark = await _stored_watermark(self._database)

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
            await self._write(entries)
            moved = await self._database.execute(
                "UPDATE watermark SET event_number = $2, sequence = $3, ordinal = $4, event = $5"
                " WHERE shard = $1 AND event_number = $6",
                *(SHARD, *after, mark.event_number),
            )
            if moved != 1:
                raise LedgerOutOfStep("somebody else has booked events")
        self._watermark = after
        return len(fresh)

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
        if entries.listed:
            await database.copy("listed", ("instrument", "product"), entries.listed)
        for account, emptied in entries.closings:
            if emptied is None:
                await database.execute("DELETE FROM closed_account WHERE account = $1", account)
            else:
                await database.execute(
                    "INSERT INTO closed_account VALUES ($1, $2)"
                    " ON CONFLICT (account) DO UPDATE SET emptied = $2",
                    *(account, emptied),
                )

    async def last_deposit(self) -> int:
        """Number of the last deposit that the engine credited; 0 before the first."""
        return await self._database.value(
            "SELECT coalesce(max(reference), 0) FROM transfer WHERE kind = 'deposit'"
        )

    async def unsealed_fills(self, limit: int) -> tuple[Fills, Amounts]:
        """Fills that are in no batch and not void, and their event numbers, ascending; without
        quarantined accounts, and only those whose orders both parties have signed."""
        rows = await self._database.rows(
            "SELECT f.event_number, f.instrument, f.buyer, f.seller, f.price_ticks, f.qty_lots,"
            " CASE WHEN f.taker = f.buyer THEN t.number ELSE m.number END AS buyer_number,"
            " CASE WHEN f.taker = f.buyer THEN m.number ELSE t.number END AS seller_number,"
            " f.buyer_fee_ppm, f.seller_fee_ppm, l.product FROM fill f"
            " JOIN listed l USING (instrument)"
            " JOIN signed_order t ON t.account = f.taker AND t.order_id = f.taker_order_id"
            " JOIN signed_order m ON m.account = f.maker AND m.order_id = f.maker_order_id"
            " WHERE f.batch_id IS NULL AND f.void_number IS NULL AND t.verified AND m.verified"
            " AND NOT EXISTS (SELECT FROM quarantine q WHERE q.account IN (f.buyer, f.seller))"
            " ORDER BY f.event_number LIMIT $1",
            limit,
        )
        fills = np.zeros(len(rows), FILL)
        for i, row in enumerate(rows):
            fills[i] = (
                row["buyer"], row["seller"], row["price_ticks"], row["qty_lots"],
                *settled(row["product"]), row["buyer_number"], row["seller_number"],
                row["buyer_fee_ppm"], row["seller_fee_ppm"],
            )  # fmt: skip
        return fills, np.array([row["event_number"] for row in rows], np.int64)

    async def balances(self) -> dict[int, Holdings]:
        """Every account's buckets as of the watermark."""
        rows = await self._database.rows(
            "SELECT account, array_agg(balance_usdc6 ORDER BY bucket) AS held"
            " FROM ledger_account WHERE account <> $1 GROUP BY account ORDER BY account",
            VAULT_ACCOUNT,
        )
        return {row["account"]: Holdings._make(row["held"]) for row in rows}

    async def trial_balance(self) -> Trial:
        row = await self._database.row(
            "SELECT coalesce(sum(balance_usdc6), 0)::bigint,"
            " coalesce(sum(lines_usdc6), 0)::bigint,"
            " count(*) FILTER (WHERE balance_usdc6 <> coalesce(lines_usdc6, 0))"
            " FROM ledger_account LEFT JOIN ("
            "  SELECT account, bucket, sum(amount_usdc6) AS lines_usdc6 FROM posting"
            "  GROUP BY account, bucket"
            " ) lines USING (account, bucket)"
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
                vault_to_user = (VAULT_ACCOUNT, "vault", user, bucket)
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
                ends = (user, "leaving", VAULT_ACCOUNT, "vault")
                self._transfer(number, event, "withdraw", event.reference, ends, amount)
            case EventKind.WITHDRAWAL_CANCELLED:
                ends = (user, "leaving", user, "cash")
                self._transfer(number, event, "return", event.reference, ends, amount)
            case EventKind.FILL_VOIDED:
                ends = (user, "pending", user, "cash")
                voided = cost_usdc6(event.price_ticks, event.qty_lots, event.taker_fee_ppm)
                self._transfer(number, event, "void", event.reference, ends, voided)
            case EventKind.EXIT_CONFIRMED:
                ends = (user, "cash", VAULT_ACCOUNT, "vault")
                self._transfer(number, event, "exit", event.reference, ends, amount)
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
    ) -> None:
        self.transfers.append((
            number, SHARD, event.sequence, self.ordinal, event.time_ns, kind, reference, *ends,
            amount_usdc6,
        ))  # fmt: skip
