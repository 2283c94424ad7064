"""What the settler tells the vault unasked: earnings made free, and that somebody is there.

Owns the tables collection and heartbeat. Invariant: doing either twice, or after somebody else did
it, is harmless; a heartbeat goes out long before anybody may freeze the vault for silence. Two of
the outbox's kinds; settlement's service has them planned.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from settlement import vault as v
from settlement.chain import Chain
from settlement.database import Database
from settlement.errors import PartRejected
from settlement.fence import Fence
from settlement.outgoing import Standing

COLLECT_USDC6_MIN: Final = 1_000_000  # less is not worth the gas yet
COLLECTIONS_PER_PLAN_MAX: Final = 256
PLAN_SECONDS: Final = 3_600  # between two looks; earnings mature once a day
QUIET_SECONDS_MAX: Final = 3 * 86_400  # without a batch, a release or a withdrawal
LOW_BOND_PENALTIES: Final = 4  # so many wrong fills away from settling nothing, it is announced

assert QUIET_SECONDS_MAX < v.SILENCE_SECONDS // 2, "there is time for a second try"

log = logging.getLogger("compex.settlement")


class Upkeep:
    """`clock` gives time_ns."""

    def __init__(
        self, database: Database, fence: Fence, chain: Chain, clock: Callable[[], int]
    ) -> None:
        self._database = database
        self._fence = fence
        self._chain = chain
        self._clock = clock
        self._planned_s = 0
        self._warning = ""

    @property
    def warning(self) -> str:
        """What will stop settlement unless somebody acts, in words; empty while all is well."""
        return self._warning

    async def plan(self, final_block: int) -> int:
        """Once an hour: look, and write down what is to be told; how many rows that were."""
        now_s = self._clock() // 1_000_000_000
        # Below zero: the time of day was set back since; nobody waits until it has come again.
        if 0 <= now_s - self._planned_s < PLAN_SECONDS:
            return 0
        state = await self._chain.vault_state(final_block)
        self._look_at_bond(state)
        planned = await self._plan_heartbeat(state, now_s)
        planned += await self._plan_collections()
        self._planned_s = now_s
        return planned

    def _look_at_bond(self, state: v.VaultState) -> None:
        bond_usdc6, least_usdc6 = state.settler_bond_usdc6, v.SETTLER_BOND_MIN_USDC6
        low_usdc6 = least_usdc6 + LOW_BOND_PENALTIES * v.PENALTY_USDC6
        before, self._warning = self._warning, ""
        if bond_usdc6 < low_usdc6:
            effect = "nothing is settled" if bond_usdc6 < least_usdc6 else "it is nearly too low"
            self._warning = (
                f"the settler's bond is {bond_usdc6} µUSDC, of which {least_usdc6} are needed:"
                f" {effect}; add to it with `compex bond`"
            )
        if self._warning and self._warning != before:
            log.warning(self._warning)

    async def _plan_heartbeat(self, state: v.VaultState, now_s: int) -> int:
        if state.is_frozen or now_s - state.last_heard_s < QUIET_SECONDS_MAX:
            return 0
        if await self._database.value(
            "SELECT 1 FROM outgoing"
            " WHERE state IN ('SIGNED', 'SENT', 'MINED', 'SAFE')"
            " OR (kind = 'heartbeat' AND state IN ('SEALED', 'SIMULATED'))"
        ):
            return 0  # what is on its way is a sign of life, too; what was and has failed is none
        async with self._fence.transaction():
            number = await self._next_id("heartbeat")
            await self._database.execute(
                "INSERT INTO heartbeat (id, heard_s) VALUES ($1, $2)", number, state.last_heard_s
            )
            await self._database.execute(
                "INSERT INTO outgoing (kind, id) VALUES ('heartbeat', $1)", number
            )
        return 1

    async def _plan_collections(self) -> int:
        under_way = {
            row["account"]
            for row in await self._database.rows(
                "SELECT account FROM collection JOIN outgoing USING (id)"
                " WHERE kind = 'collect' AND state NOT IN ('RECONCILED', 'REFUSED', 'RETURNED')"
            )
        }
        due = [
            slots
            for slots in await self._chain.vault_accounts()
            if slots.account != v.EXCHANGE
            and slots.matured_usdc6 >= COLLECT_USDC6_MIN
            and slots.account not in under_way
        ][:COLLECTIONS_PER_PLAN_MAX]
        if not due:
            return 0
        async with self._fence.transaction():
            first = await self._next_id("collection")
            rows = [(first + i, s.account, s.matured_usdc6) for i, s in enumerate(due)]
            await self._database.copy("collection", ("id", "account", "matured_usdc6"), rows)
            ids = [("collect", number) for number, _, _ in rows]
            await self._database.copy("outgoing", ("kind", "id"), ids)
        return len(due)

    async def _next_id(self, table: str) -> int:
        return await self._database.value(f"SELECT coalesce(max(id), 0) + 1 FROM {table}")


class _Told:
    """What both kinds have alike: no part to leave out, and nothing for the engine."""

    def __init__(self, database: Database, chain: Chain) -> None:
        self._database = database
        self._chain = chain

    async def renew(self, number: int) -> bool:  # noqa: ARG002
        return False  # doing it late is harmless

    async def leave_out(self, number: int, error: PartRejected) -> bool:  # noqa: ARG002
        return False

    async def due(self, number: int) -> Mapping[int, int]:  # noqa: ARG002
        return {}


class Collections(_Told):
    """Matured earnings become free; the vault's log of it is what the engine hears."""

    async def simulate(self, number: int) -> None:
        await self._chain.simulate(await self.call(number))

    async def call(self, number: int) -> v.Call:
        return self._chain.collect_call(await self._account(number))

    async def standing(self, number: int, block: int) -> Standing:
        """Whoever did it."""
        slots = await self._chain.vault_account(await self._account(number), block)
        return "open" if slots.matured_usdc6 else "done"

    async def _account(self, number: int) -> int:
        return await self._database.value("SELECT account FROM collection WHERE id = $1", number)


class Heartbeats(_Told):
    """A sign of life, when nothing else has been one for long."""

    async def simulate(self, number: int) -> None:
        await self._chain.simulate(await self.call(number))

    async def call(self, number: int) -> v.Call:  # noqa: ARG002
        return self._chain.heartbeat_call()

    async def standing(self, number: int, block: int) -> Standing:
        before_s: int = await self._database.value(
            "SELECT heard_s FROM heartbeat WHERE id = $1", number
        )
        heard_s = (await self._chain.vault_state(block)).last_heard_s
        return "done" if heard_s > before_s else "open"
