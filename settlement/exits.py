"""Wallets that leave the vault by themselves, or take their bond: what must follow from it.

    ExitRequested ─▶ close the account ─▶ withdraw what is free, again and again; but of who is
                     suspended only when that is over, or by the owner's own call of the vault
    Exited        ─▶ close, undo fills that cannot be paid, take the money off, open again
    ExitCancelled ─▶ open again
    BondRequested ─▶ close for good: the engine cannot take a bond off, and nothing stands behind
                     what is sold from a day later on; so, too, once a bond was slashed

Owns nothing. Invariant: a log of a final block is stored before anything follows from it, and what
follows is decided afresh each turn from what is stored, booked and published, so a repetition finds
nothing left to do. Only settlement's service calls it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from engine.port import Port
from engine.records import AMOUNT_USDC6_MAX, Command, CommandKind
from settlement.chain import Chain
from settlement.database import Database
from settlement.deliver import confirm
from settlement.errors import ContractRejected
from settlement.outgoing import Payment
from settlement.signatures import suspended
from settlement.undoing import MARKED, Undoing

ACCOUNTS_PER_TURN_MAX: Final = 256  # that leave; the others have their turn later
LATER_ID: Final = (1 << 64) - 1  # of a withdrawal, above all there are

# Finished exits the engine has not taken off, with their place among the account's own: `due`.
_DUE: Final = """
    SELECT account, ordinal, amount_usdc6 FROM (
        SELECT number, account, amount_usdc6,
               row_number() OVER (PARTITION BY account ORDER BY number) AS ordinal
        FROM vault_exit WHERE step = 'finished' AND amount_usdc6 > 0
    ) finished
    WHERE NOT EXISTS (
        SELECT FROM booked t
        WHERE t.kind = 'exit' AND t.reference = finished.ordinal
          AND t.from_account = finished.account
    )
    ORDER BY number
"""
# Accounts with less of a bond in the vault than the engine knows of, or soon with none.
_UNBACKED: Final = """
    SELECT account FROM bond_request
    UNION SELECT account FROM ledger_account WHERE bucket = 'bond' AND by_vault_usdc6 < 0
"""
# Accounts that must not trade, and whether their exit is still under way.
_LEAVING: Final = f"""
    SELECT account, step = 'requested' AS exiting FROM (
        SELECT DISTINCT ON (account) account, step FROM vault_exit ORDER BY account, number DESC
    ) latest
    WHERE step = 'requested' OR account IN (SELECT account FROM ({_DUE}) due)
"""
# What these buyers have bought and is in no batch.
_UNPAYABLE: Final = """
    SELECT event_number FROM fill
    WHERE buyer = ANY($2::bigint[]) AND batch_id IS NULL AND void_number IS NULL
"""
_CLOSING: Final = f"SELECT account FROM ({_LEAVING}) leaving UNION ({_UNBACKED})"


class _Closed(NamedTuple):
    account: int
    is_paid: bool


class Exits:
    """Submit `closings` and have them booked, then `entanglements`; `mark`, have what is void
    undone, submit `reopenings`, then `drainings`."""

    def __init__(
        self,
        database: Database,
        chain: Chain,
        port: Port,
        undoing: Undoing,
        clock: Callable[[], int],  # gives time_ns
    ) -> None:
        self._database = database
        self._chain = chain
        self._port = port
        self._undoing = undoing
        self._clock = clock

    async def any(self) -> bool:
        """Whether anybody has ever left or asked for a bond."""
        return await self._database.value(
            f"SELECT EXISTS (SELECT FROM vault_exit) OR EXISTS ({_UNBACKED})"
        )

    async def due(self) -> list[Payment]:
        """What owners have taken and the engine does not know of yet, oldest first."""
        rows = await self._database.rows(_DUE)
        return [
            Payment("exit", row["ordinal"], row["account"], row["amount_usdc6"]) for row in rows
        ]

    # --- first: nobody who leaves trades ---------------------------------------------------------
    async def closings(self) -> list[Command]:
        """Close who leaves, and go on with whoever's orders were more than one command cancels."""
        closing = await self._database.rows(
            f"SELECT account FROM ({_CLOSING} UNION SELECT account FROM closed_account) closing"
            " WHERE NOT EXISTS (SELECT FROM closed_account c"
            " WHERE c.account = closing.account AND c.emptied) ORDER BY account LIMIT $1",
            ACCOUNTS_PER_TURN_MAX,
        )
        return [
            Command(kind=CommandKind.CLOSE_ACCOUNT, account=row["account"])
            for row in closing
            # A deposit that the engine has not had yet opens the account first.
            if any(self._port.owner_of(row["account"]))
        ]

    async def reopenings(self) -> list[Command]:
        """Open who is closed, does not leave, and has bought nothing that is still to be undone."""
        opening = await self._database.rows(
            # Emptied: else there would be more orders again whenever some are cancelled.
            "SELECT account FROM closed_account"
            f" WHERE emptied AND account NOT IN (SELECT account FROM ({_CLOSING}) closing)"
            f" AND account NOT IN (SELECT buyer FROM ({MARKED}) marked)"
            " ORDER BY account LIMIT $1",
            ACCOUNTS_PER_TURN_MAX,
        )
        accounts = [row["account"] for row in opening]
        # What the vault refused because of the exit, it may settle now.
        await self._database.execute(
            "DELETE FROM quarantine WHERE account = ANY($1::bigint[])", accounts
        )
        return [Command(kind=CommandKind.REOPEN_ACCOUNT, account=account) for account in accounts]

    # --- then: what cannot be paid is undone ----------------------------------------------------
    async def entanglements(self) -> list[Command]:
        """Close, for a moment, who has bought again what is to be undone."""
        refused = await self._refused()
        return await self._undoing.closings(_UNPAYABLE, refused) if refused else []

    async def mark(self) -> None:
        """Make void what buyers have bought whom the vault refuses because they leave or have left
        with the money. Without it nothing of them is refused any more: the quarantine ends, and
        what they have sold is settled."""
        async with self._database.transaction():
            refused = await self._refused()
            if not refused:
                return
            await self._undoing.mark(await self._undoing.possible(_UNPAYABLE, refused))
            await self._database.execute(
                "DELETE FROM quarantine WHERE account = ANY($1::bigint[]) AND account NOT IN"
                " (SELECT buyer FROM fill WHERE batch_id IS NULL AND void_number IS NULL)",
                refused,
            )

    async def _refused(self) -> list[int]:
        rows = await self._database.rows(
            f"SELECT account FROM quarantine JOIN ({_LEAVING}) leaving USING (account)"
            " JOIN closed_account USING (account) WHERE emptied"
            " AND (reason LIKE 'AccountExiting(%'"
            f" OR account IN (SELECT account FROM ({_DUE}) due))"
        )
        return [row["account"] for row in rows]

    # --- then: their money goes ------------------------------------------------------------------
    async def drainings(self) -> list[Command]:
        """Take off what owners have taken, and pay the others all they have free, but for those
        who are suspended: their money would come back as somebody else's, who trades on."""
        closed = await self._database.rows(
            f"SELECT account, exiting FROM ({_LEAVING}) leaving"
            " JOIN closed_account USING (account) WHERE emptied ORDER BY account"
        )
        due: dict[int, list[Payment]] = {}
        for payment in await self.due():
            due.setdefault(payment.account, []).append(payment)
        stay = await suspended(self._database, self._clock() // 1_000_000_000) if closed else []
        commands: list[Command] = []
        for row in closed:
            if len(commands) >= ACCOUNTS_PER_TURN_MAX:
                break
            account = _Closed(row["account"], row["exiting"] and row["account"] not in stay)
            commands += await self._draining(account, due.get(account.account, []))
        return commands

    async def _draining(self, closed: _Closed, due: list[Payment]) -> list[Command]:
        free_usdc6 = self._port.balances(closed.account).free_usdc6
        commands: list[Command] = []
        for payment in due:
            # What is missing is still on its way: a withdrawal the vault will refuse, a fill.
            if payment.amount_usdc6 > free_usdc6:
                return commands
            free_usdc6 -= payment.amount_usdc6
            commands.append(confirm(payment))
        amount_usdc6 = min(free_usdc6, AMOUNT_USDC6_MAX)
        if closed.is_paid and amount_usdc6 and await self._is_payable(closed, amount_usdc6):
            commands.append(
                Command(kind=CommandKind.WITHDRAW, account=closed.account, price_ticks=amount_usdc6)
            )
        return commands

    async def _is_payable(self, closed: _Closed, amount_usdc6: int) -> bool:
        """Whether the vault pays this now: its owner may have been quicker, in a newer block, and
        the token may refuse the owner. What is not asked for need not come back, turn by turn."""
        slots = await self._chain.vault_account(closed.account)
        if slots.exit_at_s == 0 or slots.free_usdc6 < amount_usdc6:
            return False
        try:
            await self._chain.simulate_withdraw(LATER_ID, closed.account, amount_usdc6)
        except ContractRejected:
            return False
        return True
