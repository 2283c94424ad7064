"""Withdrawals that the engine has reserved money for: how each is paid by the vault, or is not.

Owns how they are sent; the rows of the table withdrawal are the ledger's. Invariant: the vault
pays an id once, and none below one that it has paid. One of the outbox's kinds.
"""

from collections.abc import Mapping

from settlement.chain import Call, Chain
from settlement.database import Database
from settlement.errors import PartRejected
from settlement.outgoing import Standing


class Withdrawals:
    def __init__(self, database: Database, chain: Chain) -> None:
        self._database = database
        self._chain = chain

    async def simulate(self, number: int) -> None:
        await self._chain.simulate_withdraw(number, *await self._of(number))

    async def call(self, number: int) -> Call:
        return self._chain.withdraw_call(number, *await self._of(number))

    async def renew(self, number: int) -> bool:  # noqa: ARG002
        return False  # it is as right as it was

    async def standing(self, number: int, block: int) -> Standing:
        """Passed: another one was paid while this one was refused, though it had not been when it
        was simulated."""
        if (await self._chain.vault_state(block)).last_withdrawal < number:
            return "open"
        return "done" if await self._chain.is_paid(number, block) else "passed"

    async def leave_out(self, number: int, error: PartRejected) -> bool:  # noqa: ARG002
        return False  # there is one account in it

    async def due(self, number: int) -> Mapping[int, int]:
        account, amount_usdc6 = await self._of(number)
        return {account: amount_usdc6}

    async def _of(self, number: int) -> tuple[int, int]:
        row = await self._database.row(
            "SELECT account, amount_usdc6 FROM withdrawal WHERE id = $1", number
        )
        assert row is not None, "written together with its row in outgoing"
        return row["account"], row["amount_usdc6"]
