"""Every transaction that the settler's key has signed for the vault, and the nonces they took.

Owns the tables attempt and foreign_nonce. Invariant: a transaction is stored before it is sent and
never forgotten; nonces follow each other here, whatever a node says is pending; all transactions
of one nonce are the same call, each for more than the one before. Writes are the caller's
transactions. Only the outbox calls it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from settlement.chain import Receipt, SignedTransaction
from settlement.database import Database
from settlement.fees import Fees

log = logging.getLogger("compex.settlement")

NONCES_LOOKED_AT: Final = 16  # of those used last
_COLUMNS: Final = "kind, id, nonce, fee_cap_wei, tip_wei, raw, tx_hash, signed_ns"


class Attempt(NamedTuple):
    kind: str
    id: int
    nonce: int
    fee_cap_wei: int
    tip_wei: int
    raw: bytes
    tx_hash: bytes
    signed_ns: int

    @property
    def fees(self) -> Fees:
        return Fees(self.fee_cap_wei, self.tip_wei)

    @property
    def signed(self) -> SignedTransaction:
        return SignedTransaction(self.nonce, self.raw, self.tx_hash)


class Attempts:
    """`used` is the settler's next nonce by some block of the chain; `clock` gives time_ns."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def next_nonce(self, used: int) -> int:
        """The nonce after all of ours, and after those that others have used."""
        return max(used, await self._after_ours() or 0)

    async def in_flight(self, used: int) -> int:
        """How many nonces of ours are signed and not used yet."""
        return max(0, (await self._after_ours() or 0) - used)

    async def _after_ours(self) -> int | None:
        return await self._database.value("SELECT max(nonce) + 1 FROM attempt")

    async def add(self, kind: str, number: int, signed: SignedTransaction, fees: Fees) -> None:
        await self._database.execute(
            f"INSERT INTO attempt ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            *(kind, number, signed.nonce, *fees, signed.raw, signed.hash, self._clock()),
        )

    async def unmined(self, used: int) -> Sequence[Attempt]:
        """The newest attempt of each nonce that is not used yet, lowest nonce first."""
        return await self._select(
            "DISTINCT ON (nonce)", "nonce >= $1 ORDER BY nonce, fee_cap_wei DESC", used
        )

    async def undecided(self, used: int) -> Sequence[Attempt]:
        """Of which it is not known what became of them though their nonces are used, and whose
        rows wait for nothing: they were sent for their nonce's sake. Older ones stay so."""
        return await self._select(
            "",
            "outcome = 'OPEN' AND nonce >= $1 AND nonce < $2 AND NOT EXISTS"
            " (SELECT FROM outgoing o WHERE (o.kind, o.id) = (attempt.kind, attempt.id)"
            " AND o.state IN ('SIGNED', 'SENT'))",
            *(used - NONCES_LOOKED_AT, used),
        )

    async def of_row(self, kind: str, number: int) -> Sequence[Attempt]:
        """All that was ever signed for it, the newest first."""
        return await self._select(
            "", "kind = $1 AND id = $2 ORDER BY nonce DESC, fee_cap_wei DESC", kind, number
        )

    async def _select(self, distinct: str, where: str, *arguments: object) -> Sequence[Attempt]:
        rows = await self._database.rows(
            f"SELECT {distinct} {_COLUMNS} FROM attempt WHERE {where}", *arguments
        )
        return [Attempt._make(row.values()) for row in rows]

    async def highest_nonce(self, kind: str, first: int) -> int:
        """Of all that was signed for rows of a kind from this one on; -1 if nothing was."""
        return await self._database.value(
            "SELECT coalesce(max(nonce), -1) FROM attempt WHERE kind = $1 AND id >= $2",
            *(kind, first),
        )

    # --- what became of them ----------------------------------------------------------------------
    async def mined(self, receipt: Receipt) -> None:
        """This one was; the others of its nonce never will be, unless blocks are reorganised."""
        await self._database.execute(
            "UPDATE attempt SET outcome = $2, block_number = $3, block_hash = $4, gas_used = $5"
            " WHERE tx_hash = $1",
            *(receipt.hash, "SUCCEEDED" if receipt.succeeded else "REVERTED"),
            *(receipt.block_number, receipt.block_hash, receipt.gas_used),
        )
        await self._database.execute(
            "UPDATE attempt SET outcome = 'OVERTAKEN' WHERE outcome = 'OPEN' AND tx_hash <> $1"
            " AND nonce = (SELECT nonce FROM attempt WHERE tx_hash = $1)",
            receipt.hash,
        )

    async def reopened(self, nonce: int) -> None:
        """The block that used it is no longer canonical."""
        await self._database.execute(
            "UPDATE attempt SET outcome = 'OPEN', block_number = NULL, block_hash = NULL,"
            " gas_used = NULL WHERE nonce = $1",
            nonce,
        )

    # --- somebody else ----------------------------------------------------------------------------
    async def unknown_nonces(self, used: int) -> list[int]:
        """Those used behind ours that nothing was signed with here, and that nobody has been told
        of. What was before our first transaction is nobody's business."""
        rows = await self._database.rows(
            "SELECT nonce FROM generate_series((SELECT max(nonce) + 1 FROM attempt), $1) nonce"
            " WHERE nonce NOT IN (SELECT nonce FROM foreign_nonce) ORDER BY nonce",
            used - 1,
        )
        return [row["nonce"] for row in rows]

    async def announce_foreign(self, nonces: Sequence[int], block: int) -> None:
        for nonce in nonces:
            log.error("nonce %d of the settler's key was used, by block %d, by nobody here:"
                      " somebody else has the key", nonce, block)  # fmt: skip
            await self._database.execute(
                "UPDATE attempt SET outcome = 'OVERTAKEN' WHERE nonce = $1 AND outcome = 'OPEN'",
                nonce,
            )
            await self._database.execute(
                "INSERT INTO foreign_nonce VALUES ($1, $2, $3) ON CONFLICT (nonce) DO NOTHING",
                *(nonce, block, self._clock()),
            )
