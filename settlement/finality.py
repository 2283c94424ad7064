"""Which blocks are final, and that they stay so.

Owns the table final_block. Invariant: whatever is told to the engine follows from a block whose
number and hash are stored here, so that a chain which takes a final block back is noticed before
anything more follows from it; then only a person can go on. Only settlement's service calls it.
"""

from settlement.chain import Chain
from settlement.database import Database
from settlement.errors import ChainUnavailable, SettlementHalted
from settlement.fence import Fence


class Finality:
    def __init__(self, database: Database, fence: Fence, chain: Chain) -> None:
        self._database = database
        self._fence = fence
        self._chain = chain
        self._waiting = ""

    @property
    def waiting(self) -> str:
        """Why nothing can follow from the newest final block, in words: the vault is younger, so
        that a reorganisation may still take it away; empty once it is not."""
        return self._waiting

    async def look(self) -> int:
        """Number of the newest final block, which is stored; it never goes back.

        Raises SettlementHalted when a block that was final is another one now, ChainUnavailable
        while the node asked lags behind it.
        """
        number, deployed = await self._look(), self._chain.deploy_block
        self._waiting = ""
        if number < deployed:
            self._waiting = f"the vault is of block {deployed}, and final is block {number}"
        return number

    async def _look(self) -> int:
        known = await self._database.row("SELECT number, hash FROM final_block")
        if known is not None:
            await self._check(known["number"], known["hash"])
        number = (await self._chain.heights()).final
        if known is not None and number <= known["number"]:
            return known["number"]
        block_hash = await self._chain.block_hash(number)
        if block_hash is None:
            raise ChainUnavailable(f"the node has not got block {number}, which it calls final")
        async with self._fence.transaction():
            await self._database.execute(
                "INSERT INTO final_block (number, hash) VALUES ($1, $2)"
                " ON CONFLICT (one) DO UPDATE SET number = $1, hash = $2",
                *(number, block_hash),
            )
        return number

    async def _check(self, number: int, known: bytes) -> None:
        found = await self._chain.block_hash(number)
        if found is None:
            raise ChainUnavailable(f"the node has not got block {number}, which was final")
        if found != known:
            raise SettlementHalted(
                f"block {number} was final as 0x{known.hex()} and is 0x{found.hex()} now: what the"
                " engine was told of it may not have happened"
            )
