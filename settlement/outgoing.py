"""What the vault is told, batch settlements and withdrawals: each once, whatever crashes when.

Owns the tables batch, quarantine and outgoing. Every step is written down before the side effect
it permits: the bytes before the simulation, the signed transaction before it is sent. Invariant:
at most one transaction is on its way (SIGNED or SENT) while later ones wait, so a nonce is never
skipped; ids make the vault refuse a repetition. Only settlement's service calls it.

    SEALED ─▶ SIMULATED ─▶ SIGNED ─▶ SENT ─▶ MINED ─▶ FINAL ─▶ RECONCILED
       └▶ REFUSED ─▶ RETURNED

The nonce went elsewhere: back to SEALED; a reorganised block: back to SENT.
"""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from settlement import batch_v1 as batch
from settlement.chain import FILLS_PER_BATCH_MAX, Chain, Receipt, SignedTransaction
from settlement.database import Database
from settlement.errors import (
    AccountRejected,
    BatchOutOfOrder,
    ContractRejected,
    NonceUsed,
    SettlementHalted,
    WithdrawalOutOfOrder,
)
from settlement.ledger import Ledger

ATTEMPTS_MAX: Final = 8  # transactions signed for one batch or withdrawal before a person looks
NO_HASH: Final = bytes(32)
STEPS_PER_TURN_MAX: Final = 256  # bounds one turn; the rest waits for the next

Kind = Literal["settle", "withdraw"]
Told = Literal["settle", "withdraw", "return", "exit"]
# Which transfer of the ledger shows that the engine was told.
_BOOKED_AS: Final[dict[Told, str]] = {
    "settle": "escrow",
    "withdraw": "withdraw",
    "return": "return",
}


class Outgoing(NamedTuple):
    """One row of the table: how far one batch or withdrawal has come."""

    kind: Kind
    id: int
    state: str
    attempts: int
    nonce: int
    raw: bytes
    tx_hash: bytes
    block_number: int
    block_hash: bytes


class Payment(NamedTuple):
    """What the engine is to be told once it is final: a buyer's part of a batch, a withdrawal, one
    that was refused and returns, what an owner took out of the vault without us."""

    kind: Told
    id: int  # of the batch or the withdrawal; for an exit, its place among the account's own
    account: int
    amount_usdc6: int


class Outbox:
    """Moves rows of `outgoing` on. `clock` gives time_ns."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        chain: Chain,
        clock: Callable[[], int],
        fills_per_batch_max: int = FILLS_PER_BATCH_MAX,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._chain = chain
        self._clock = clock
        self._fills_per_batch_max = fills_per_batch_max

    # --- sealing ------------------------------------------------------------------------------
    async def seal(self, oldest_wait_ns: int) -> int:
        """Seal the next batch if there are fills and none is waiting; returns its fills, or 0.

        A batch is sealed when it is full or its oldest fill has waited `oldest_wait_ns`.
        """
        if await self._database.value(
            "SELECT 1 FROM outgoing WHERE kind = 'settle' AND state IN"
            " ('SEALED', 'SIMULATED', 'SIGNED', 'SENT')"
        ):
            return 0  # one at a time: later fills only make the next one fuller, and cheaper
        fills = await self._ledger.unsealed_fills_v1(self._fills_per_batch_max)
        if not fills:
            return 0
        if len(fills) < self._fills_per_batch_max:
            oldest_ns: int = await self._database.value(
                "SELECT time_ns FROM fill WHERE event_number = $1", fills[0].event_number
            )
            # Below zero: the time of day was set back since; nobody waits until it has come again.
            if 0 <= self._clock() - oldest_ns < oldest_wait_ns:
                return 0
        sealed = batch.seal(fills, self._fills_per_batch_max)
        async with self._database.transaction():
            batch_id: int = await self._database.value("SELECT coalesce(max(id), 0) + 1 FROM batch")
            await self._store(batch_id, sealed)
            await self._database.execute(
                "INSERT INTO outgoing (kind, id) VALUES ('settle', $1)", batch_id
            )
        return len(sealed.event_numbers)

    async def _store(self, batch_id: int, sealed: batch.Sealed) -> None:
        await self._database.execute(
            "INSERT INTO batch (id, packed, fills_hash, fills, amount_usdc6, sealed_ns)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET"
            " packed = $2, fills_hash = $3, fills = $4, amount_usdc6 = $5, sealed_ns = $6",
            *(batch_id, sealed.packed, sealed.hash, len(sealed.event_numbers)),
            *(sealed.amount_usdc6, self._clock()),
        )
        marked = await self._database.execute(
            "UPDATE fill SET batch_id = $1"
            " WHERE batch_id IS NULL AND event_number = ANY($2::bigint[])",
            *(batch_id, sealed.event_numbers),
        )
        assert marked == len(sealed.event_numbers), "every sealed fill was in no batch"

    async def _reseal_without(self, batch_id: int, error: AccountRejected) -> None:
        """Quarantine one account and seal what remains under the same id, in one transaction."""
        async with self._database.transaction():
            await self._database.execute(
                "INSERT INTO quarantine (account, batch_id, reason, time_ns)"
                " VALUES ($1, $2, $3, $4)",
                *(error.account, batch_id, str(error), self._clock()),
            )
            await self._database.execute(
                "UPDATE fill SET batch_id = NULL WHERE batch_id = $1", batch_id
            )
            fills = await self._ledger.unsealed_fills_v1(self._fills_per_batch_max)
            if fills:
                await self._store(batch_id, batch.seal(fills, self._fills_per_batch_max))
            else:  # nothing was signed for it yet, so the id is free again
                await self._database.execute(
                    "DELETE FROM outgoing WHERE kind = 'settle' AND id = $1", batch_id
                )
                await self._database.execute("DELETE FROM batch WHERE id = $1", batch_id)

    # --- on the chain ---------------------------------------------------------------------------
    async def advance(self) -> int:
        """Move everything on as far as it goes now; returns how many steps were taken.

        Raises ChainUnavailable and the like with everything so far kept; SettlementHalted when
        only a person can go on.
        """
        steps = 0
        while steps < STEPS_PER_TURN_MAX:
            taken = await self._step()
            if not taken:
                break
            steps += taken
        return steps

    async def _step(self) -> int:
        """Take one step of the first row that can move; 0 if none can."""
        final_block = await self._chain.final_block()
        taken = 0
        # Mined ones first, in the order they were mined: if a block was reorganised away, the
        # transactions in it have to be sent again, lowest nonce first.
        for row in await self._rows("state = 'MINED' ORDER BY nonce"):
            state = await self._look_at_mined(row, final_block)
            if state == "SENT":
                break
            taken += state == "FINAL"
        on_its_way = await self._rows("state IN ('SIGNED', 'SENT') ORDER BY nonce")
        if on_its_way:
            return taken + await self._push(on_its_way[0])
        waiting = await self._rows("state IN ('SEALED', 'SIMULATED') ORDER BY kind, id LIMIT 1")
        if waiting:
            return taken + await self._prepare(waiting[0])
        return taken

    async def _look_at_mined(self, row: Outgoing, final_block: int) -> str:
        if await self._chain.block_hash(row.block_number) != row.block_hash:
            await self._move(row, "SENT")
            return "SENT"
        if row.block_number <= final_block:
            await self._move(row, "FINAL")
            return "FINAL"
        return "MINED"

    async def _prepare(self, row: Outgoing) -> int:
        """Simulate, then sign and store."""
        if row.attempts >= ATTEMPTS_MAX:
            raise SettlementHalted(f"{row.kind} {row.id} failed {row.attempts} times")
        if row.state == "SEALED":
            return await self._simulate(row)
        nonce = await self._chain.settler_nonce()
        if row.kind == "settle":
            packed = await self._packed(row.id)
            signed = await self._chain.prepare_settle(row.id, packed, nonce)
        else:
            account, amount = await self._withdrawal(row.id)
            signed = await self._chain.prepare_withdraw(row.id, account, amount, nonce)
        await self._move(
            row, "SIGNED", "attempts = attempts + 1, nonce = $4, raw = $5, tx_hash = $6", *signed
        )
        return 1

    async def _simulate(self, row: Outgoing) -> int:
        try:
            if row.kind == "settle":
                await self._chain.simulate_settle(row.id, await self._packed(row.id))
            else:
                account, amount = await self._withdrawal(row.id)
                await self._chain.simulate_withdraw(row.id, account, amount)
        except AccountRejected as error:
            if row.kind == "settle":
                await self._reseal_without(row.id, error)
            else:
                await self._move(row, "REFUSED", "refusal = $4", str(error))
            return 1
        except (BatchOutOfOrder, WithdrawalOutOfOrder) as error:
            # An earlier transaction of ours that was given up for lost may have been mined.
            if row.attempts > 0 and not await self._is_foreign(row):
                return await self._adopt(row)
            raise SettlementHalted(f"the vault refuses {row.kind} {row.id}: {error}") from error
        except ContractRejected as error:
            raise SettlementHalted(f"the vault refuses {row.kind} {row.id}: {error}") from error
        await self._move(row, "SIMULATED")
        return 1

    async def _push(self, row: Outgoing) -> int:
        """Send, or send again, what is signed, and look whether it was mined."""
        receipt = await self._chain.receipt(row.tx_hash)
        if receipt is None:
            try:
                await self._chain.send(SignedTransaction(row.nonce, row.raw, row.tx_hash))
            except NonceUsed:
                receipt = await self._chain.receipt(row.tx_hash)
                if receipt is None:
                    return await self._lost(row)
        if row.state == "SIGNED":
            await self._move(row, "SENT")
            return 1
        receipt = receipt or await self._chain.receipt(row.tx_hash)
        if receipt is None:
            return 0
        if not receipt.succeeded:
            return await self._lost(row)
        await self._mined(row, receipt)
        return 1

    async def _lost(self, row: Outgoing) -> int:
        """Its nonce is spent without effect: adopt what an older attempt did, or start over."""
        if not await self._adopt(row):
            await self._move(row, "SEALED")
        return 1

    async def _is_foreign(self, row: Outgoing) -> bool:
        """Whether the vault has another batch under this id."""
        if row.kind != "settle":
            return False
        recorded = await self._chain.batch_hash(row.id)
        return recorded not in (NO_HASH, await self._fills_hash(row.id))

    async def _adopt(self, row: Outgoing) -> int:
        """Count it as mined if, as of the final block, the vault has executed it.

        By which transaction is not known, so the final block stands for the one it was mined in.
        """
        number = await self._chain.final_block()
        if row.kind == "settle":
            done = await self._chain.batch_hash(row.id, number) == await self._fills_hash(row.id)
        else:  # withdrawals are executed in the order of their ids
            done = (await self._chain.vault_state(number)).last_withdrawal >= row.id
        if not done:
            return 0
        block_hash = await self._chain.block_hash(number)
        await self._mined(row, Receipt(row.tx_hash, number, block_hash, True, 0))
        return 1

    async def _mined(self, row: Outgoing, receipt: Receipt) -> None:
        await self._move(
            row, "MINED", "block_number = $4, block_hash = $5, gas_used = $6",
            *(receipt.block_number, receipt.block_hash, receipt.gas_used),
        )  # fmt: skip

    # --- back to the engine ---------------------------------------------------------------------
    async def confirmations(self) -> list[Payment]:
        """What is final on chain or refused and the engine has not been told, in the order of ids.

        Whatever was told entirely becomes RECONCILED or RETURNED on the way.
        """
        payments: list[Payment] = []
        for row in await self._rows(
            "state IN ('FINAL', 'REFUSED') AND NOT EXISTS (SELECT FROM outgoing o"
            " WHERE o.kind = outgoing.kind AND o.id < outgoing.id"
            " AND o.state NOT IN ('FINAL', 'RECONCILED', 'REFUSED', 'RETURNED')) ORDER BY kind, id"
        ):
            refused = row.state == "REFUSED"
            if refused and not await self._is_given_up(row):
                break  # withdrawals come last, and are answered in their order
            missing = await self._unconfirmed(row, "return" if refused else row.kind)
            if not missing:
                await self._move(row, "RETURNED" if refused else "RECONCILED")
            payments += missing
        return payments

    async def _is_given_up(self, row: Outgoing) -> bool:
        """Whether no transaction of ours can execute it any more, whatever is reorganised."""
        if row.attempts == 0:
            return True
        return await self._chain.settler_nonce(await self._chain.final_block()) > row.nonce

    async def executed(self, head: int, last_withdrawal: int) -> list[Payment]:
        """What the vault has executed, going by its counters, and the engine has not confirmed."""
        rows = await self._rows(
            "state NOT IN ('RECONCILED', 'REFUSED', 'RETURNED') AND"
            " id <= CASE kind WHEN 'settle' THEN $1::bigint ELSE $2::bigint END ORDER BY kind, id",
            *(head, last_withdrawal),
        )
        return [payment for row in rows for payment in await self._unconfirmed(row, row.kind)]

    async def _unconfirmed(self, row: Outgoing, told: Told) -> list[Payment]:
        if row.kind == "settle":
            due = batch.totals_usdc6(await self._packed(row.id))
        else:
            account, amount = await self._withdrawal(row.id)
            due = {account: amount}
        booked = await self._database.rows(
            "SELECT from_account, amount_usdc6 FROM booked WHERE kind = $1 AND reference = $2",
            *(_BOOKED_AS[told], row.id),
        )
        done: dict[int, int] = {r["from_account"]: r["amount_usdc6"] for r in booked}
        if any(due.get(account) != amount for account, amount in done.items()):
            raise SettlementHalted(f"the engine confirmed {row.kind} {row.id} otherwise")
        return [
            Payment(told, row.id, account, amount)
            for account, amount in due.items()
            if account not in done
        ]

    # --- rows ---------------------------------------------------------------------------------
    async def last_batch(self) -> int:
        """Id of the last sealed batch; 0 before the first."""
        return await self._database.value("SELECT coalesce(max(id), 0) FROM batch")

    async def has_batch(self, batch_id: int, fills_hash: bytes) -> bool:
        """Whether this is the hash of the batch sealed under this id."""
        return await self._fills_hash(batch_id) == fills_hash

    async def _fills_hash(self, batch_id: int) -> bytes | None:
        return await self._database.value("SELECT fills_hash FROM batch WHERE id = $1", batch_id)

    async def _packed(self, batch_id: int) -> bytes:
        return await self._database.value("SELECT packed FROM batch WHERE id = $1", batch_id)

    async def _withdrawal(self, withdrawal_id: int) -> tuple[int, int]:
        row = await self._database.row(
            "SELECT account, amount_usdc6 FROM withdrawal WHERE id = $1", withdrawal_id
        )
        assert row is not None, "written together with its row in outgoing"
        return row["account"], row["amount_usdc6"]

    async def _rows(self, where: str, *arguments: object) -> list[Outgoing]:
        rows = await self._database.rows(
            "SELECT kind, id, state, attempts, nonce, raw, tx_hash, block_number, block_hash"
            f" FROM outgoing WHERE {where}",
            *arguments,
        )
        return [Outgoing._make(row.values()) for row in rows]

    async def _move(self, row: Outgoing, state: str, also: str = "", *values: object) -> None:
        """To another state, with the columns that come with it, if it is still where it was."""
        moved = await self._database.execute(
            f"UPDATE outgoing SET state = $3{', ' + also if also else ''}"
            f" WHERE kind = $1 AND id = $2 AND state = '{row.state}'",
            *(row.kind, row.id, state, *values),
        )
        assert moved == 1, "nobody else writes"
