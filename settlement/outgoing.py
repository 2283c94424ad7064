"""What the vault is told: each row once, whatever crashes, is lost or reorganised when.

Owns the table outgoing, the state of every row. Each step is written down before the side effect
it permits, in a transaction that only the one writer can commit: what is simulated, then what is
signed, then it is sent. Invariant: at most IN_FLIGHT_MAX nonces are on their way, none is skipped,
and a row changes or ends without effect only when nothing signed for it can be mined any more.
Only settlement's service calls it. What differs between kinds of rows is their `Handling`.

    OPEN ─▶ SEALED ─▶ SIMULATED ─▶ SIGNED ─▶ SENT ─▶ MINED ─▶ SAFE ─▶ FINAL ─▶ RECONCILED
               └▶ REFUSED ─▶ RETURNED

OPEN are the fills that are in no batch yet, before there is a row. Signed again for a higher fee:
SENT to SIGNED. Its nonce was spent without effect: back to SEALED. Its block was reorganised away:
back to SENT, and the stored bytes are sent again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

from settlement.attempts import Attempt, Attempts
from settlement.chain import Call, Chain, Heights, Receipt
from settlement.database import Database
from settlement.errors import (
    ChainUnavailable,
    ContractRejected,
    IdOutOfOrder,
    NonceUsed,
    NotNow,
    PartRejected,
    SettlementHalted,
    TransactionRefused,
    Underpriced,
)
from settlement.fees import FeePolicy, Fees
from settlement.fence import Fence

IN_FLIGHT_MAX: Final = 3  # nonces signed and not used: what one lost transaction can hold up
ATTEMPTS_MAX: Final = 8  # nonces spent on one row before a person looks
STEPS_PER_TURN_MAX: Final = 256  # bounds one turn; the rest waits for the next
# Kinds whose ids do not wait for each other: else whoever answers its own questions between our
# simulation and the block could make us miss the time for the others.
UNORDERED: Final = ("answer",)

Told: TypeAlias = Literal["settle", "withdraw", "return", "exit"]
# Which transfer of the ledger shows that the engine was told.
_BOOKED_AS: Final[dict[Told, str]] = {
    "settle": "escrow",
    "withdraw": "withdraw",
    "return": "return",
}
# Of one id, as of the end of a block: the vault can still execute it; it has; it has not and never
# will; it has executed something else under this id.
Standing: TypeAlias = Literal["open", "done", "passed", "foreign"]

log = logging.getLogger("compex.settlement")


class Handling(Protocol):
    """How one kind of transaction is simulated, prepared and recognised as done; everything else,
    from the nonce to finality, is the same for all kinds.

    Ids of a kind are prepared in their order, but for UNORDERED. The vault refuses to execute an
    id twice, or doing so is harmless: a transaction that was given up for lost may be mined all
    the same.
    """

    async def simulate(self, number: int) -> None:
        """On top of what is pending. Raises ContractRejected as the vault would."""
        ...

    async def call(self, number: int) -> Call:
        """What to sign: the same for an id for as long as something signed may be mined."""
        ...

    async def renew(self, number: int) -> bool:
        """Nothing signed for the id can be mined any more: change it if by now it must not be sent
        as it is, within the caller's transaction. Whether it was changed, or is gone."""
        ...

    async def standing(self, number: int, block: int) -> Standing:
        """As of the end of `block`."""
        ...

    async def leave_out(self, number: int, error: PartRejected) -> bool:
        """The vault refuses the id because of one part, and nothing signed for it can be mined any
        more: change it so that it is not refused, within the caller's transaction. False if
        there is nothing to change; then the whole of it is REFUSED."""
        ...

    async def due(self, number: int) -> Mapping[int, int]:
        """µUSDC by account that the engine is to be told of once it is final; empty: nothing."""
        ...


class Outgoing(NamedTuple):
    """One row of the table: how far one of a kind has come."""

    kind: str
    id: int
    state: str
    attempts: int  # nonces
    nonce: int  # the last one
    block_number: int
    block_hash: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Payment(NamedTuple):
    """What the engine is to be told once it is final: a buyer's part of a batch, a withdrawal, one
    that was refused and returns, what an owner took out of the vault without us."""

    kind: Told
    id: int  # of the batch or the withdrawal; for an exit, its place among the account's own
    account: int
    amount_usdc6: int


class _Now(NamedTuple):
    """What the next row is prepared by."""

    heights: Heights
    used: int  # the settler's next nonce by the newest block
    fees: Fees
    is_alone: bool  # nothing of ours is on its way


class Outbox:
    """Moves rows of `outgoing` on. `kinds` come in the order in which they are sent when several
    wait; `clock` gives time_ns."""

    def __init__(
        self,
        database: Database,
        fence: Fence,
        chain: Chain,
        clock: Callable[[], int],
        kinds: Mapping[str, Handling],
        policy: FeePolicy,
    ) -> None:
        self._database = database
        self._fence = fence
        self._chain = chain
        self._clock = clock
        self._kinds = kinds
        self._policy = policy
        self._attempts = Attempts(database, clock)
        self._sent: set[bytes] = set()  # in this turn
        self._waiting = ""
        self._held: Mapping[str, str] = {}  # in this turn

    @property
    def waiting(self) -> str:
        """Why something that could be sent is not, in words; empty when nothing waits."""
        return self._waiting

    async def advance(self, held: Mapping[str, str] | None = None) -> int:
        """Move everything on as far as it goes now; returns how many steps were taken. Of the kinds
        `held` nothing more is signed, for the reason given in words.

        Raises ChainUnavailable and the like with everything so far kept; FencedOff when another
        process writes by now; SettlementHalted when only a person can go on.
        """
        self._sent.clear()
        self._held = held or {}
        waited, self._waiting = self._waiting, ""
        steps = 0
        while steps < STEPS_PER_TURN_MAX:
            taken = await self._step()
            if not taken:
                break
            steps += taken
        if self._waiting and self._waiting != waited:
            log.warning("settlement waits: %s", self._waiting)
        return steps

    async def _step(self) -> int:
        """Whatever can be done by what the chain is at one block."""
        heights = await self._chain.heights()
        used = await self._chain.settler_nonce(heights.newest)
        steps = await self._resolve(heights.newest, used)
        steps += await self._follow_mined(heights)
        steps += await self._prepare(heights, used)
        return steps + await self._push(used)

    # --- what became of them ------------------------------------------------------------------
    async def _resolve(self, newest: int, used: int) -> int:
        """What became of the rows on their way whose nonces are used by the newest block."""
        if unknown := await self._attempts.unknown_nonces(used):
            await self._announce(unknown, newest)
        rows = await self._rows("state IN ('SIGNED', 'SENT') AND nonce < $1 ORDER BY nonce", used)
        for row in rows:
            if await self._adopt(row, newest):
                continue
            reverted = await self._reverted(row)
            if reverted is None:
                await self._announce([row.nonce], newest)
            async with self._fence.transaction():
                if reverted is not None:
                    await self._attempts.mined(reverted)
                await self._move(row, "SEALED")
        for attempt in await self._attempts.undecided(used):
            receipt = await self._chain.receipt(attempt.tx_hash)
            if receipt is not None:
                async with self._fence.transaction():
                    await self._attempts.mined(receipt)
        return len(rows)

    async def _adopt(self, row: Outgoing, newest: int) -> bool:
        """Count it as mined if any of its transactions was, or the vault has it by `newest`.

        By whose transaction is then not known; the block stands for the one it was mined in.
        """
        for attempt in await self._attempts.of_row(row.kind, row.id):
            receipt = await self._chain.receipt(attempt.tx_hash)
            if receipt is not None and receipt.succeeded:
                await self._mined(row, receipt, attempt.nonce)
                return True
        standing = await self._kinds[row.kind].standing(row.id, newest)
        if standing == "foreign":
            raise SettlementHalted(f"the vault has something else as {row}")
        if standing != "done":
            return False
        block_hash = await self._chain.block_hash(newest)
        if block_hash is None:
            raise ChainUnavailable(f"the node has not got block {newest}, which it had just now")
        await self._mined(row, Receipt(b"", newest, block_hash, True, 0), row.nonce)
        return True

    async def _mined(self, row: Outgoing, receipt: Receipt, nonce: int) -> None:
        async with self._fence.transaction():
            if receipt.hash:
                await self._attempts.mined(receipt)
            await self._move(
                row, "MINED", "nonce = $4, block_number = $5, block_hash = $6, gas_used = $7",
                *(nonce, receipt.block_number, receipt.block_hash, receipt.gas_used),
            )  # fmt: skip

    async def _reverted(self, row: Outgoing) -> Receipt | None:
        for attempt in await self._attempts.of_row(row.kind, row.id):
            if attempt.nonce == row.nonce:
                receipt = await self._chain.receipt(attempt.tx_hash)
                if receipt is not None:
                    return receipt
        return None

    async def _announce(self, nonces: Sequence[int], block: int) -> None:
        async with self._fence.transaction():
            await self._attempts.announce_foreign(nonces, block)

    async def _follow_mined(self, heights: Heights) -> int:
        steps = 0
        for row in await self._rows("state IN ('MINED', 'SAFE') ORDER BY nonce"):
            if await self._chain.block_hash(row.block_number) != row.block_hash:
                log.warning("%s: block %d is not canonical any more", row, row.block_number)
                async with self._fence.transaction():
                    await self._move(row, "SENT")
                    await self._attempts.reopened(row.nonce)
                steps += 1
            else:
                steps += await self._deepen(row, heights)
        return steps

    async def _deepen(self, row: Outgoing, heights: Heights) -> int:
        steps = 0
        if row.state == "MINED" and row.block_number <= heights.safe:
            await self._fenced_move(row, "SAFE")
            row = row._replace(state="SAFE")
            steps += 1
        if row.state == "SAFE" and row.block_number <= heights.final:
            await self._fenced_move(row, "FINAL")
            steps += 1
        return steps

    # --- the next one -------------------------------------------------------------------------
    async def _prepare(self, heights: Heights, used: int) -> int:
        """Simulate, sign and store the next row of the first kind that has one to be sent."""
        rows = await self._rows(
            "state IN ('SEALED', 'SIMULATED') AND kind = ANY($1::outgoing_kind[]) AND NOT EXISTS"
            " (SELECT FROM outgoing o WHERE o.kind = outgoing.kind AND o.id < outgoing.id"
            " AND o.state IN ('SEALED', 'SIMULATED')"
            " AND o.kind <> ALL($2::outgoing_kind[])) ORDER BY id",
            *(list(self._kinds), list(UNORDERED)),
        )
        in_flight = await self._attempts.in_flight(used)
        if not rows or in_flight >= IN_FLIGHT_MAX:
            return 0
        market = await self._chain.market()
        fees = self._policy.first(market)
        if fees is None:
            self._waiting = f"the base fee is {market.base_fee_wei} wei, too much to begin"
            return 0
        now = _Now(heights, used, fees, is_alone=in_flight == 0)
        order = list(self._kinds)
        for row in sorted(rows, key=lambda row: order.index(row.kind)):
            if why := self._held.get(row.kind):
                self._waiting = f"{row} is held back: {why}"
                continue
            if row.attempts and row.nonce >= used:
                continue  # what was signed for it is on its way again, after a reorganisation
            if await self._prepare_row(row, now):
                return 1
        return 0

    async def _prepare_row(self, row: Outgoing, now: _Now) -> bool:
        if row.attempts >= ATTEMPTS_MAX:
            raise SettlementHalted(f"{row} failed {row.attempts} times")
        if await self._is_given_up(row, now.heights.final) and await self._is_renewed(row):
            return True
        if row.state == "SEALED":
            try:
                await self._kinds[row.kind].simulate(row.id)
            except ContractRejected as error:
                # While others are on their way, they may be the reason.
                return now.is_alone and await self._rejected(row, now.heights, error)
            await self._fenced_move(row, "SIMULATED")
            row = row._replace(state="SIMULATED")
        nonce = await self._attempts.next_nonce(now.used)
        call = await self._kinds[row.kind].call(row.id)
        signed = await self._chain.sign(call, nonce, now.fees)
        async with self._fence.transaction():
            await self._attempts.add(row.kind, row.id, signed, now.fees)
            await self._move(row, "SIGNED", "attempts = attempts + 1, nonce = $4", nonce)
        return True

    async def _is_renewed(self, row: Outgoing) -> bool:
        async with self._fence.transaction():
            return await self._kinds[row.kind].renew(row.id)

    async def _rejected(self, row: Outgoing, heights: Heights, error: ContractRejected) -> bool:
        """The vault refuses it, and nothing on its way is why. Whether anything was done."""
        if isinstance(error, NotNow):
            self._waiting = f"the vault refuses {row}: {error}"
            return False
        if isinstance(error, IdOutOfOrder) and error.expected < row.id:
            # Those before it are mined, or it would not be its turn: another node has them.
            self._waiting = f"the node lags behind, by which the vault refuses {row}: {error}"
            return False
        if row.attempts and await self._adopt(row, heights.newest):
            return True
        if not await self._is_given_up(row, heights.final):
            self._waiting = f"what was signed for {row} may still be mined, and is refused: {error}"
            return False
        if row.attempts and await self._kinds[row.kind].standing(row.id, heights.final) == "passed":
            await self._refuse(row, error)
            return True
        if not isinstance(error, PartRejected):
            raise SettlementHalted(f"the vault refuses {row}: {error}") from error
        async with self._fence.transaction():
            is_changed = await self._kinds[row.kind].leave_out(row.id, error)
        if not is_changed:
            await self._refuse(row, error)
        return True

    async def _refuse(self, row: Outgoing, error: ContractRejected) -> None:
        async with self._fence.transaction():
            await self._move(row, "REFUSED", "refusal = $4", str(error))

    async def _is_given_up(self, row: Outgoing, final_block: int) -> bool:
        """Whether nothing signed for it, or for one behind it, can be mined any more."""
        highest = await self._attempts.highest_nonce(row.kind, row.id)
        return highest < 0 or await self._chain.settler_nonce(final_block) > highest

    async def _is_over(self, row: Outgoing, final_block: int) -> bool:
        """Whether nothing signed for it can be mined any more. Of a row that is changed no more:
        what is behind it may be anything, and goes on all the time."""
        signed = await self._attempts.of_row(row.kind, row.id)
        return not signed or await self._chain.settler_nonce(final_block) > signed[0].nonce

    # --- on their way -------------------------------------------------------------------------
    async def _push(self, used: int) -> int:
        """Send, or send again, the newest transaction of each nonce that is not used yet.

        Of rows that have gone back to SEALED too, if a reorganisation gave their nonce back: those
        behind it wait for it.
        """
        unmined = await self._attempts.unmined(used)
        if unmined and unmined[0].nonce > used:
            return await self._fill_gap(unmined[0], used)
        steps = 0
        rows = {row.nonce: row for row in await self._rows("state IN ('SIGNED', 'SENT')")}
        for attempt in unmined:
            row = rows.get(attempt.nonce)
            is_cheap = not await self._send(attempt)
            if row is not None and row.state == "SIGNED":
                await self._fenced_move(row, "SENT")
                steps += 1
            elif is_cheap or self._policy.is_stuck(attempt.signed_ns, self._clock()):
                steps += await self._raise(attempt, row)
        return steps

    async def _fill_gap(self, attempt: Attempt, nonce: int) -> int:
        """A foreign transaction was reorganised away, and nothing of ours has its nonce: what waits
        behind it is signed with that one, too. The vault executes it once."""
        fees = self._policy.first(await self._chain.market())
        if fees is None:
            return 0
        call = await self._kinds[attempt.kind].call(attempt.id)
        signed = await self._chain.sign(call, nonce, fees)
        async with self._fence.transaction():
            await self._attempts.add(attempt.kind, attempt.id, signed, fees)
        return 1

    async def _send(self, attempt: Attempt) -> bool:
        """Once a turn. False if the node finds that it offers too little."""
        if attempt.tx_hash in self._sent:
            return True
        try:
            await self._chain.send(attempt.signed)
        except NonceUsed as error:
            log.info("%s %d: %s", attempt.kind, attempt.id, error)  # the next step sees by what
        except Underpriced as error:
            log.warning("%s %d: %s", attempt.kind, attempt.id, error)
            return False
        except TransactionRefused as error:  # no ether, no room: it is stored, and sent again
            self._waiting = f"the node does not take {attempt.kind} {attempt.id}: {error}"
        self._sent.add(attempt.tx_hash)
        return True

    async def _raise(self, attempt: Attempt, row: Outgoing | None) -> int:
        """Sign the same once more for a higher fee; the older one stays valid, and stored."""
        fees = self._policy.raised(attempt.fees, await self._chain.market())
        if fees is None:
            self._waiting = self._waiting or (
                f"{attempt.kind} {attempt.id} is not mined for {attempt.fee_cap_wei} wei per gas,"
                " and an eighth more is above the limit"
            )
            return 0
        call = await self._kinds[attempt.kind].call(attempt.id)
        signed = await self._chain.sign(call, attempt.nonce, fees)
        async with self._fence.transaction():
            await self._attempts.add(attempt.kind, attempt.id, signed, fees)
            if row is not None:
                await self._move(row, "SIGNED")
        return 1

    # --- back to the engine ---------------------------------------------------------------------
    async def confirmations(self, final_block: int) -> list[Payment]:
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
            if refused and row.attempts and not await self._is_over(row, final_block):
                break
            missing = await self._unconfirmed(row, "return" if refused else row.kind)
            if not missing:
                await self._fenced_move(row, "RETURNED" if refused else "RECONCILED")
            payments += missing
        return payments

    async def executed(self, block: int) -> list[Payment]:
        """What the vault has executed by the end of `block` and the engine has not confirmed."""
        payments: list[Payment] = []
        for row in await self._rows(
            "attempts > 0 AND state NOT IN ('RECONCILED', 'REFUSED', 'RETURNED') ORDER BY kind, id"
        ):
            if await self._kinds[row.kind].standing(row.id, block) == "done":
                payments += await self._unconfirmed(row, row.kind)
        return payments

    async def confirmed_after(self, block: int) -> list[Payment]:
        """What the engine has confirmed and the vault had not executed by the end of `block`."""
        payments: list[Payment] = []
        for row in await self._rows(
            "attempts > 0 AND state IN ('FINAL', 'RECONCILED') AND block_number > $1"
            " ORDER BY kind, id",
            block,
        ):
            if await self._kinds[row.kind].standing(row.id, block) == "done":
                continue  # of a foreign transaction only a later block is known
            due = await self._kinds[row.kind].due(row.id)
            if not due:
                continue
            told = row.kind
            assert told in ("settle", "withdraw"), "the engine knows of no others"
            missing = {payment.account for payment in await self._unconfirmed(row, told)}
            payments += [
                Payment(told, row.id, account, amount)
                for account, amount in due.items()
                if account not in missing
            ]
        return payments

    async def _unconfirmed(self, row: Outgoing, told: str) -> list[Payment]:
        due = await self._kinds[row.kind].due(row.id)
        if not due:
            return []
        assert told in ("settle", "withdraw", "return"), "the engine knows of no others"
        booked = await self._database.rows(
            "SELECT from_account, amount_usdc6 FROM booked WHERE kind = $1 AND reference = $2",
            *(_BOOKED_AS[told], row.id),
        )
        done: dict[int, int] = {r["from_account"]: r["amount_usdc6"] for r in booked}
        if any(due.get(account) != amount for account, amount in done.items()):
            raise SettlementHalted(f"the engine confirmed {row} otherwise")
        return [
            Payment(told, row.id, account, amount)
            for account, amount in due.items()
            if account not in done
        ]

    # --- rows ---------------------------------------------------------------------------------
    async def _rows(self, where: str, *arguments: object) -> list[Outgoing]:
        rows = await self._database.rows(
            "SELECT kind, id, state, attempts, nonce, block_number, block_hash"
            f" FROM outgoing WHERE {where}",
            *arguments,
        )
        return [Outgoing._make(row.values()) for row in rows]

    async def _fenced_move(self, row: Outgoing, state: str) -> None:
        async with self._fence.transaction():
            await self._move(row, state)

    async def _move(self, row: Outgoing, state: str, also: str = "", *values: object) -> None:
        """To another state, with the columns that come with it, if it is still where it was."""
        moved = await self._database.execute(
            f"UPDATE outgoing SET state = $3{', ' + also if also else ''}"
            f" WHERE kind = $1 AND id = $2 AND state = '{row.state}'",
            *(row.kind, row.id, state, *values),
        )
        assert moved == 1, "nobody else writes"
