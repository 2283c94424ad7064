"""The real PostgreSQL, met at points that the seed chooses, one statement after the other.

Owns the way from the virtual loop to a server that lives in real time: each statement is run while
the virtual loop stands still, so the order of things stays the seed's.
Invariant: what PostgreSQL did is never undone here; a lost connection loses only the answer, or
everything of the transaction that was open. `Databases` gives each seed an empty database.
"""

import asyncio
import gc
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Final, cast

import asyncpg

from settlement import database as db
from tests.simulate.faults import Chance, Faults

TEMPLATE: Final = "simulated"
STATEMENT_SECONDS: Final = (0.0001, 0.003)
_numbers = count(1)


class _RealTime:
    """A loop of real time within a callback of the virtual one, which stands still meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        outer = events._get_running_loop()
        events._set_running_loop(None)
        try:
            return self._loop.run_until_complete(work)
        finally:
            events._set_running_loop(outer)

    def close(self) -> None:
        self._loop.close()


class Databases:
    """Empty databases on one server, each with the schema in place."""

    def __init__(self, server: db.Server) -> None:
        self._server = server
        self._real_time = _RealTime()
        gc.freeze()  # what is there now outlives all seeds: `run` collects what one leaves behind
        self._admin: Any = self._real_time.run(self._open())

    async def _open(self) -> Any:
        admin = await cast("Any", asyncpg.connect)(self._server.url_of("postgres"))
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", TEMPLATE):
            await admin.execute(f"CREATE DATABASE {TEMPLATE}")
            await (await db.connect(self._server.url_of(TEMPLATE))).close()
        return admin

    @contextmanager
    def fresh(self) -> Generator[Callable[..., "Sessions"]]:
        """Makes `Sessions` of a database that is dropped at the end."""
        name = f"simulated_{next(_numbers)}"
        create = f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"
        self._real_time.run(self._admin.execute(create))
        connect = cast("Any", asyncpg.connect)
        url = self._server.url_of(name)
        physical, beside = (self._real_time.run(connect(url)) for _ in range(2))
        try:
            yield lambda *parts: Sessions(self._real_time, physical, beside, *parts)
        finally:
            self._real_time.run(physical.close())
            self._real_time.run(beside.close())
            self._real_time.run(self._admin.execute(f"DROP DATABASE {name}"))

    def close(self) -> None:
        gc.unfreeze()
        self._real_time.run(self._admin.close())
        self._real_time.close()


class Sessions:
    """One database. The server knows two connections, settlement's and that of the signatures,
    which wait for no lock of each other's; each life of the node has its own."""

    def __init__(
        self,
        real_time: _RealTime,
        physical: Any,
        beside: Any,
        chance: Chance,
        faults: Faults,
        sleep: Callable[[float], Any],
    ) -> None:
        self._real_time = real_time
        self.physical = physical
        self._physical_beside = beside
        self.chance = chance
        self.faults = faults
        self.sleep = sleep
        self._session: _Session | None = None
        self._beside: _Session | None = None
        self.lost = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._real_time.run(work)

    async def connect(self, _url: str) -> db.Database:
        """As `settlement.database.connect`; whoever was connected has lost the connection."""
        if self._session is not None:
            self._session.lose()
        self._session = _Session(self, self.physical)
        return await db.claim(self._session)

    async def connect_beside(self, _url: str) -> db.Database:
        """As `settlement.database.connect_beside`, once for each life."""
        if self._beside is not None:
            self._beside.lose()
        self._beside = _Session(self, self._physical_beside)
        return db.Database(self._beside)

    def end(self) -> None:
        """The process that was connected is gone; the server rolls back and forgets its locks."""
        for session in (self._session, self._beside):
            if session is not None:
                session.lose()
        self._session = self._beside = None


class _Session:
    """What `settlement.database.Database` takes for asyncpg's connection."""

    def __init__(self, sessions: Sessions, physical: Any) -> None:
        self._sessions = sessions
        self._physical = physical
        self._transactions: list[Any] = []  # open, each within the one before it
        self._lost = False

    def lose(self) -> None:
        if self._lost:
            return
        self._lost = True
        sessions = self._sessions
        if self._transactions:
            sessions.run(self._transactions[0].rollback())
            self._transactions.clear()
        sessions.run(self._physical.execute("SELECT pg_advisory_unlock_all()"))

    async def _edge(self) -> None:
        """Time passes, and the connection may be gone afterwards."""
        sessions = self._sessions
        self._check()
        await sessions.sleep(sessions.chance.seconds(*STATEMENT_SECONDS))
        self._check()
        if sessions.chance.happens(sessions.faults.database_lost_ppm):
            sessions.lost += 1
            self.lose()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")

    def _check(self) -> None:
        if self._lost:
            raise asyncpg.InterfaceError("connection is closed")

    async def _do(self, method: str, *arguments: Any, **named: Any) -> Any:
        await self._edge()
        sessions = self._sessions
        answer = sessions.run(getattr(self._physical, method)(*arguments, **named))
        await self._edge()
        return answer

    async def execute(self, sql: str, *arguments: Any, timeout: float) -> str:  # noqa: ASYNC109
        return await self._do("execute", sql, *arguments, timeout=timeout)

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        return await self._do("fetch", sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        return await self._do("fetchrow", sql, *arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        return await self._do("fetchval", sql, *arguments)

    async def copy_records_to_table(self, table: str, **named: Any) -> str:
        return await self._do("copy_records_to_table", table, **named)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        await self._edge()
        sessions = self._sessions
        transaction = self._physical.transaction()
        sessions.run(transaction.start())
        self._transactions.append(transaction)
        try:
            yield
            await self._edge()
        except BaseException:
            if not self._lost:
                self._transactions.remove(transaction)
                sessions.run(transaction.rollback())
            raise
        self._transactions.remove(transaction)
        sessions.run(transaction.commit())
        await self._edge()  # lost after the commit: done, and nobody heard

    async def close(self, **_named: Any) -> None:
        self.lose()
