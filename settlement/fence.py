"""Who writes what is told to the vault: whoever took the last token, and nobody else.

Owns the table fence. The connection's lock keeps a second process out while both talk to the same
server; a lock that was lost unnoticed, in a failover or behind a pooler, is what the token is
for. Invariant: a transaction of this module commits only if its token was the newest until it did.
The outbox writes through it.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from settlement.database import Database
from settlement.errors import FencedOff


class Fence:
    def __init__(self, database: Database, token: int) -> None:
        self._database = database
        self._token = token

    @classmethod
    async def take(cls, database: Database) -> "Fence":
        """From here on whoever wrote before writes no more."""
        return cls(database, await _next_token(database))

    async def retake(self) -> None:
        """After the connection was lost and its lock was taken again."""
        self._token = await _next_token(self._database)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Raises FencedOff, with nothing written, when another writer has begun."""
        async with self._database.transaction():
            # The row stays locked until the commit: a newer token waits for it.
            if not await self._database.value(
                "SELECT true FROM fence WHERE token = $1 FOR SHARE", self._token
            ):
                raise FencedOff("another process has begun to settle into this database")
            yield


async def _next_token(database: Database) -> int:
    return await database.value("UPDATE fence SET token = token + 1 RETURNING token")
