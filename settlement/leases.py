"""Leases: what is locked for each fill, until the vault pays it out; and the releases that say so.

    Batch ─▶ lease ─▶ due ─▶ release ─▶ released
               ├▶ stopped or reported by its buyer: due at once, for less
               └▶ claimed or void, by anybody's call of the vault
    over for good ─▶ ended_leases ─▶ the engine: no escrow any more, the seller's bond is free

Owns the tables lease, release and ended_leases. Invariant: a lease is in one release at most,
unless that was undone; none is before everything is read that its buyer may have told the vault
until its end; it is counted once, when nothing can undo its end and nobody can sell its hours any
more; a release that may be mined as it was signed is never changed; what it pays follows from the
fill and from what its buyer told the vault, by the same rule that the vault applies when anybody
claims. The outbox treats releases as one of its kinds; settlement's service has them built.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from engine.port import Market
from engine.records import Command, CommandKind
from settlement import batch, releases
from settlement.batch import Amounts, Fills
from settlement.chain import Call, Chain
from settlement.database import Database
from settlement.errors import LeaseClosed, PartRejected
from settlement.fence import Fence
from settlement.outgoing import Standing
from settlement.products import HOUR_BITS, settled
from settlement.vault import CHALLENGE_SECONDS, EPOCH_SECONDS

HOUR_SECONDS: Final = 3_600
SECONDS_PER_LOT: Final = 36  # of one GPU
SPOT: Final = 0  # of the kinds of window
SPOT_SECONDS_MAX: Final = 60 * 86_400
HOURS_BY_KIND: Final = (0, 1, 24, 168, *(24 * days for days in range(28, 32)))
# What is released in one epoch matures at one time, so all of a batch that falls due in an epoch
# goes out together, in its last hour.
LAST_SECONDS: Final = HOUR_SECONDS
NEVER_S: Final = (1 << 63) - 1  # a lease too large for a record is closed by claim
ASIDE_SECONDS: Final = 600  # a lease that the vault has closed, until its log is final and read


# --- pure -----------------------------------------------------------------------------------------


def spans_s(fills: Fills, posted_at_s: int) -> tuple[Amounts, Amounts]:
    """When the delivery of each begins and ends, Unix seconds. Spot hours begin when their batch is
    posted and end when a single GPU has delivered all of them, the latest that it can be; or, of
    many, after 60 days. As `Fills.span`."""
    windows = fills["window"].astype(np.int64)
    kinds = windows >> HOUR_BITS
    starts = (windows & ((1 << HOUR_BITS) - 1)) * HOUR_SECONDS
    ends = starts + np.array(HOURS_BY_KIND, np.int64)[kinds] * HOUR_SECONDS
    is_spot = kinds == SPOT
    starts = np.where(is_spot, posted_at_s, starts)
    lasting = np.minimum(fills["qty_lots"].astype(np.int64) * SECONDS_PER_LOT, SPOT_SECONDS_MAX)
    return starts, np.where(is_spot, posted_at_s + lasting, ends)


def window_ends_at_s(window: int) -> int:
    """When a window is over, Unix seconds; 0 for spot hours, which have none."""
    kind, start_hours = window >> HOUR_BITS, window & ((1 << HOUR_BITS) - 1)
    return 0 if kind == SPOT else (start_hours + HOURS_BY_KIND[kind]) * HOUR_SECONDS


def due_at_s(fills: Fills, posted_at_s: int) -> Amounts:
    """When each may be released in full: it has ended, and its batch cannot be challenged."""
    _, ends = spans_s(fills, posted_at_s)
    places = np.arange(len(fills))
    whole = releases.records_of(places, fills, batch.notionals_usdc6(fills))
    due = np.maximum(ends, posted_at_s + CHALLENGE_SECONDS)
    return np.where(releases.releasable(whole), due, NEVER_S)


def paid_usdc6(fills: Fills, posted_at_s: int, until_s: Sequence[int | None]) -> Amounts:
    """What each pays of its notional: all of it, or, where its buyer has stopped or reported it,
    what was due by then, rounded down in favour of the buyer."""
    paid = batch.notionals_usdc6(fills)
    starts, ends = spans_s(fills, posted_at_s)
    for i, until in enumerate(until_s):
        if until is not None and until < ends[i]:
            start, end = int(starts[i]), int(ends[i])
            paid[i] = int(paid[i]) * max(0, until - start) // (end - start)
    return paid


# --- building -------------------------------------------------------------------------------------
_ENDED: Final = "buyer IS NOT NULL AND NOT counted AND ended_at_s < $1"
# Over for good before $1, of the markets $2, whose windows end at $3 (0: spot hours). What is
# released can be undone in the epoch in which it was, and in the next; and until a window ends,
# its hours may be sold again, also those that their first buyer has stopped: the bond stands behind
# them.
_OVER: Final = f"""
    SELECT * FROM (
        SELECT batch_id, place, greatest(
            CASE WHEN ended = 'released' THEN (ended_at_s / {EPOCH_SECONDS} + 2) * {EPOCH_SECONDS}
                ELSE ended_at_s END,
            CASE WHEN ended <> 'void' THEN window_ends_at_s END) AS over_at_s
        FROM lease JOIN unnest($2::bigint[], $3::bigint[]) market (instrument, window_ends_at_s)
            USING (instrument)
        WHERE {_ENDED}
    ) ended WHERE over_at_s < $1
"""
# $4 is the bond for a lot of each market.
_COUNT: Final = f"""
    WITH over AS (
        UPDATE lease SET counted = true FROM ({_OVER}) over
        WHERE lease.batch_id = over.batch_id AND lease.place = over.place
        RETURNING over_at_s,
            CASE WHEN ended = 'released' THEN ARRAY[release_id]
                ELSE ARRAY[lease.batch_id, lease.place] END AS what,
            buyer, seller, instrument, qty_lots, cost_usdc6, resold
    ), part AS (
        SELECT over_at_s, what, buyer AS account, cost_usdc6 AS escrow_usdc6, 0 AS bond_usdc6
        FROM over
        UNION ALL
        SELECT over_at_s, what, seller, 0, qty_lots * bond_usdc6_per_lot
        FROM over JOIN unnest($2::bigint[], $4::bigint[]) market (instrument, bond_usdc6_per_lot)
            USING (instrument)
        WHERE NOT resold
    )
    INSERT INTO ended_leases (number, account, escrow_usdc6, bond_usdc6)
    SELECT (SELECT coalesce(max(number), 0) FROM ended_leases)
        + row_number() OVER (ORDER BY over_at_s, what, account),
        account, sum(escrow_usdc6)::bigint, sum(bond_usdc6)::bigint
    FROM part GROUP BY over_at_s, what, account HAVING sum(escrow_usdc6) + sum(bond_usdc6) > 0
"""
_OPEN: Final = "release_id IS NULL AND ended IS NULL AND disputes = 0"


class Leases:
    """`clock` gives time_ns."""

    def __init__(
        self, database: Database, fence: Fence, chain: Chain, clock: Callable[[], int]
    ) -> None:
        self._database = database
        self._fence = fence
        self._chain = chain
        self._clock = clock

    async def build(self, seen: int) -> int:
        """Build the next release if leases are due and none waits to be sent; returns its leases,
        or 0. The vault's logs are read up to the block `seen`: a buyer may have stopped a lease in
        a block behind it that comes before the lease's end, and what that is released for in full
        anybody may have undone at the settler's cost."""
        if await self._database.value(
            "SELECT 1 FROM outgoing WHERE kind = 'release' AND state IN ('SEALED', 'SIMULATED',"
            " 'SIGNED', 'SENT')"
        ):
            return 0
        now_s = self._clock() // 1_000_000_000
        begun_s = now_s - now_s % EPOCH_SECONDS
        is_last_hour = now_s >= begun_s + EPOCH_SECONDS - LAST_SECONDS
        if not await self._database.value(
            f"SELECT EXISTS (SELECT FROM lease WHERE {_OPEN} AND due_at_s <= $1)", now_s
        ):
            return 0
        until_s = min(now_s, await self._chain.past_s(seen))
        batch_id = await self._database.value(
            f"SELECT batch_id FROM lease WHERE {_OPEN} GROUP BY batch_id"
            " HAVING max(due_at_s) <= $1 OR min(due_at_s) <= $2 ORDER BY batch_id LIMIT 1",
            *(until_s, until_s if is_last_hour else min(until_s, begun_s - 1)),
        )
        if batch_id is None:
            return 0
        async with self._fence.transaction():
            release_id: int = await self._database.value(
                "SELECT coalesce(max(id), 0) + 1 FROM release"
            )
            chosen = await self._store(release_id, batch_id, until_s)
            if chosen:
                await self._database.execute(
                    "INSERT INTO outgoing (kind, id) VALUES ('release', $1)", release_id
                )
        return chosen

    async def _store(self, release_id: int, batch_id: int, until_s: int) -> int:
        """Choose what is due of a batch by this time and write the release down; how many leases
        it has."""
        rows = await self._database.rows(
            "SELECT place, posted_at_s, least(stopped_at_s, reported_at_s) AS until_s FROM lease"
            f" WHERE batch_id = $1 AND due_at_s <= $2 AND {_OPEN} ORDER BY place LIMIT $3",
            *(batch_id, until_s, batch.FILLS_MAX),
        )
        if not rows:
            return 0
        packed: bytes = await self._database.value(
            "SELECT packed FROM batch WHERE id = $1", batch_id
        )
        places = np.array([row["place"] for row in rows], np.int64)
        fills = batch.unpack(packed)[places]
        paid = paid_usdc6(fills, rows[0]["posted_at_s"], [row["until_s"] for row in rows])
        records = releases.records_of(places, fills, paid)
        sealed = releases.seal(batch_id, records)
        taken = releases.unpack(sealed.accounts, sealed.packed)["index"].tolist()
        await self._database.execute(
            "INSERT INTO release (id, batch_id, accounts, records) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (id) DO UPDATE SET batch_id = $2, accounts = $3, records = $4",
            *(release_id, batch_id, sealed.accounts, sealed.packed),
        )
        await self._database.execute(
            "UPDATE lease SET release_id = $1 WHERE batch_id = $2 AND place = ANY($3::integer[])",
            *(release_id, batch_id, taken),
        )
        return len(taken)

    # --- what the engine hears of -----------------------------------------------------------------
    async def have_ended(self) -> bool:
        """Whether there may be anything for `count_ends` or `ends`."""
        return await self._database.value(
            "SELECT EXISTS (SELECT FROM lease WHERE buyer IS NOT NULL AND NOT counted"
            " AND ended_at_s > 0)"
            " OR (SELECT max(number) FROM ended_leases) > (SELECT number FROM ended_leases_booked)"
        )

    async def count_ends(self, read_until_s: int, markets: Sequence[Market]) -> None:
        """Add up, by release and account, what leases come to that are over for good before this
        time, of a final block: all logs of before it are read. So their numbers are in the order
        of when they were over, in however many steps the chain was read."""
        rows = await self._database.rows(
            f"SELECT DISTINCT instrument FROM lease WHERE {_ENDED}", read_until_s
        )
        ended = {row["instrument"] for row in rows}
        counted = [market for market in markets if market.instrument in ended]
        if not counted:
            return
        instruments = [market.instrument for market in counted]
        ends = [window_ends_at_s(settled(market.product).window) for market in counted]
        bonds = [market.bond_usdc6_per_lot for market in counted]
        over = read_until_s, instruments, ends
        if not await self._database.value(f"SELECT EXISTS ({_OVER})", *over):
            return
        async with self._fence.transaction():
            await self._database.execute(_COUNT, *over, bonds)

    async def ends(self, limit: int) -> list[Command]:
        """Those that the engine has not taken, oldest first."""
        rows = await self._database.rows(
            "SELECT number, account, escrow_usdc6, bond_usdc6 FROM ended_leases"
            " WHERE number > (SELECT number FROM ended_leases_booked) ORDER BY number LIMIT $1",
            limit,
        )
        return [
            Command(
                kind=CommandKind.END_LEASES,
                account=row["account"],
                client_id=row["number"],  # the bytes of reference
                price_ticks=row["escrow_usdc6"],
                order_id=row["bond_usdc6"],
            )
            for row in rows
        ]

    # --- as a kind of the outbox ------------------------------------------------------------------
    async def simulate(self, number: int) -> None:
        await self._chain.simulate(await self.call(number))

    async def call(self, number: int) -> Call:
        row = await self._database.row(
            "SELECT batch_id, accounts, records FROM release WHERE id = $1", number
        )
        assert row is not None, "written together with its row in outgoing"
        return self._chain.release_call(number, *row.values())

    async def renew(self, number: int) -> bool:  # noqa: ARG002
        return False  # what was due is due

    async def standing(self, number: int, block: int) -> Standing:
        return "done" if (await self._chain.vault_state(block)).releases >= number else "open"

    async def leave_out(self, number: int, error: PartRejected) -> bool:
        """The vault has closed one lease, by somebody's claim or question, before its log is final:
        set it aside and build what remains anew under the same id."""
        if not isinstance(error, LeaseClosed):
            return False
        now_s = self._clock() // 1_000_000_000
        row = await self._database.row("SELECT batch_id FROM release WHERE id = $1", number)
        assert row is not None, "written together with its row in outgoing"
        # Whatever was due when the others were chosen is due now, and nothing else need be.
        until_s: int | None = await self._database.value(
            "SELECT max(due_at_s) FROM lease WHERE release_id = $1 AND place <> $2",
            *(number, error.index),
        )
        await self._database.execute(
            "UPDATE lease SET release_id = NULL,"
            " due_at_s = CASE WHEN place = $2 THEN greatest(due_at_s, $3) ELSE due_at_s END"
            " WHERE release_id = $1",
            *(number, error.index, now_s + ASIDE_SECONDS),
        )
        if until_s is None or not await self._store(number, row["batch_id"], until_s):
            await self._database.execute(
                "DELETE FROM outgoing WHERE kind = 'release' AND id = $1", number
            )
            await self._database.execute("DELETE FROM release WHERE id = $1", number)
        return True

    async def due(self, number: int) -> Mapping[int, int]:  # noqa: ARG002
        return {}  # nothing is free before it is collected
