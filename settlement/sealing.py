"""Batches of fills: when one is sealed, what is in it, and who is left out.

Owns the tables batch and quarantine, and which fill is in which batch. Invariant: a batch that may
be mined as it was signed is never changed; a fill is in one batch, and what is signed is covered by
orders that can be shown for a batch of that time. Until a batch is sealed its
fills are OPEN: they have no row of their own. The outbox treats batches as one of its kinds;
settlement's service has them sealed.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from settlement import batch
from settlement.batch import Amounts, Fills
from settlement.chain import Call, Chain
from settlement.database import Database
from settlement.errors import AccountRejected, PartRejected
from settlement.fence import Fence
from settlement.ledger import Ledger
from settlement.outgoing import Standing
from settlement.signatures import POSTING_S
from settlement.vault import NO_ROOT, ROOT_BYTES

RENEWED_AFTER_S: Final = 600  # what has waited so long is sealed anew before it is signed

assert RENEWED_AFTER_S < POSTING_S // 2, "a covered fill stays so until its batch is looked at"


class Triggers(NamedTuple):
    """A batch is sealed as soon as one of them holds."""

    fills_max: int = batch.FILLS_MAX  # it is full
    wait_ns: int = 0  # its oldest fill has waited so long
    value_usdc6: int = 10_000_000_000  # so much is promised to sellers and not in escrow


class Batches:
    """`clock` gives time_ns."""

    def __init__(
        self,
        database: Database,
        fence: Fence,
        ledger: Ledger,
        chain: Chain,
        clock: Callable[[], int],
        triggers: Triggers,
    ) -> None:
        self._database = database
        self._fence = fence
        self._ledger = ledger
        self._chain = chain
        self._clock = clock
        self._triggers = triggers

    async def seal(self) -> int:
        """Seal the next batch if it is time and none waits to be sent; returns its fills, or 0.

        While one is on its way the next one gathers more, unless it is full or worth enough.
        """
        if await self._database.value(
            "SELECT 1 FROM outgoing WHERE kind = 'settle' AND state IN ('SEALED', 'SIMULATED')"
        ):
            return 0  # later fills only make the next one fuller, and cheaper
        fills, numbers = await self._unsealed()
        if not len(fills):
            return 0
        sealed = batch.seal(fills, numbers, self._triggers.fills_max)
        if not await self._is_time(sealed):
            return 0
        async with self._fence.transaction():
            batch_id: int = await self.last() + 1
            await self._store(batch_id, sealed)
            await self._database.execute(
                "INSERT INTO outgoing (kind, id) VALUES ('settle', $1)", batch_id
            )
        return len(sealed.event_numbers)

    async def _unsealed(self) -> tuple[Fills, Amounts]:
        now_s = self._clock() // 1_000_000_000
        return await self._ledger.unsealed_fills(self._triggers.fills_max, now_s)

    async def _is_time(self, sealed: batch.Sealed) -> bool:
        if len(sealed.event_numbers) >= self._triggers.fills_max:
            return True
        if sealed.amount_usdc6 >= self._triggers.value_usdc6:
            return True
        if await self._database.value(
            "SELECT 1 FROM outgoing WHERE kind = 'settle' AND state IN ('SIGNED', 'SENT')"
        ):
            return False
        oldest_ns: int = await self._database.value(
            "SELECT time_ns FROM fill WHERE event_number = $1", sealed.event_numbers[0]
        )
        # Below zero: the time of day was set back since; nobody waits until it has come again.
        return not 0 <= self._clock() - oldest_ns < self._triggers.wait_ns

    async def _store(self, batch_id: int, sealed: batch.Sealed) -> None:
        await self._database.execute(
            "INSERT INTO batch (id, packed, fills_hash, fills, amount_usdc6, sealed_ns)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET"
            " packed = $2, fills_hash = $3, fills = $4, amount_usdc6 = $5, sealed_ns = $6",
            *(batch_id, sealed.packed, sealed.root, len(sealed.event_numbers)),
            *(sealed.amount_usdc6, self._clock()),
        )
        marked = await self._database.execute(
            "UPDATE fill SET batch_id = $1"
            " WHERE batch_id IS NULL AND event_number = ANY($2::bigint[])",
            *(batch_id, sealed.event_numbers),
        )
        assert marked == len(sealed.event_numbers), "every sealed fill was in no batch"

    async def last(self) -> int:
        """Id of the last sealed batch; 0 before the first."""
        return await self._database.value("SELECT coalesce(max(id), 0) FROM batch")

    async def last_reconciled(self) -> int:
        """Id of the last batch that the engine has confirmed; 0 before the first."""
        return await self._database.value(
            "SELECT coalesce(max(id), 0) FROM outgoing"
            " WHERE kind = 'settle' AND state = 'RECONCILED'"
        )

    async def has(self, batch_id: int, root: bytes) -> bool:
        """Whether this is the root, as the vault keeps it, of the batch sealed under this id."""
        return await self._root(batch_id) == root

    async def _root(self, batch_id: int) -> bytes | None:
        whole: bytes | None = await self._database.value(
            "SELECT fills_hash FROM batch WHERE id = $1", batch_id
        )
        return None if whole is None else whole[:ROOT_BYTES]

    async def _packed(self, batch_id: int) -> bytes:
        return await self._database.value("SELECT packed FROM batch WHERE id = $1", batch_id)

    # --- as a kind of the outbox ------------------------------------------------------------------
    async def simulate(self, number: int) -> None:
        await self._chain.simulate_settle(number, await self._packed(number))

    async def call(self, number: int) -> Call:
        return self._chain.settle_call(number, await self._packed(number))

    async def standing(self, number: int, block: int) -> Standing:
        recorded = await self._chain.batch_root(number, block)
        if recorded == NO_ROOT:
            return "open"
        return "done" if recorded == await self._root(number) else "foreign"

    async def leave_out(self, number: int, error: PartRejected) -> bool:
        """Quarantine one account and seal what remains under the same id."""
        if not isinstance(error, AccountRejected):
            return False
        await self._database.execute(
            "INSERT INTO quarantine (account, batch_id, reason, time_ns) VALUES ($1, $2, $3, $4)"
            # Of another batch already: one that was there before, or whose block was taken back.
            " ON CONFLICT (account) DO UPDATE SET batch_id = $2, reason = $3, time_ns = $4",
            *(error.account, number, str(error), self._clock()),
        )
        await self._reseal(number)
        return True

    async def renew(self, number: int) -> bool:
        """While a batch waits, for a paused vault or cheaper gas, orders end or are taken back:
        fills that they do not cover any more would be void at the settler's cost."""
        row = await self._database.row("SELECT packed, sealed_ns FROM batch WHERE id = $1", number)
        assert row is not None, "written together with its row in outgoing"
        # Below zero: the time of day was set back since.
        if 0 <= self._clock() - row["sealed_ns"] < RENEWED_AFTER_S * 1_000_000_000:
            return False
        if await self._chain.batch_root(number) != NO_ROOT:
            return False  # somebody else has sent it
        await self._reseal(number)
        return (
            await self._database.value("SELECT packed FROM batch WHERE id = $1", number)
            != (row["packed"])
        )

    async def _reseal(self, number: int) -> None:
        """Under the same id what may be sealed now. Batches behind it, which cannot have been
        settled, are opened again; there may be nothing left for this one."""
        await self._database.execute("UPDATE fill SET batch_id = NULL WHERE batch_id >= $1", number)
        fills, numbers = await self._unsealed()
        if len(fills):
            await self._store(number, batch.seal(fills, numbers, self._triggers.fills_max))
        first_gone = number + 1 if len(fills) else number
        await self._database.execute(
            "DELETE FROM outgoing WHERE kind = 'settle' AND id >= $1", first_gone
        )
        await self._database.execute("DELETE FROM batch WHERE id >= $1", first_gone)

    async def due(self, number: int) -> Mapping[int, int]:
        return batch.totals_usdc6(await self._packed(number))
