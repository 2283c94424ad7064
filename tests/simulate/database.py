"""The real PostgreSQL, met at points that the seed chooses, one statement after the other.

Owns the way from the virtual loop to a server that lives in real time: each statement is run while
the virtual loop stands still, so the order of things stays the seed's.
Invariant: what PostgreSQL did is never undone here; a lost connection loses only the answer, or
everything of the transaction that was open. `Databases` gives each seed an empty one.
"""

import asyncio
import gc
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import Any, Final, cast

import asyncpg

from settlement import database as db
from tests.simulate.faults import Chance, Faults

STATEMENT_SECONDS: Final = (0.0001, 0.003)
_numbers = count(1)


@contextmanager
def _running(loop: Any) -> Generator[None]:
    """As the loop that runs, in place of the virtual one."""
    outer = events._get_running_loop()
    events._set_running_loop(loop)
    try:
        yield
    finally:
        events._set_running_loop(outer)


class _RealTime:
    """A loop of real time within a callback of the virtual one, which stands still meanwhile."""

    def __init__(self) -> None:
        self._loop: Any = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        with _running(None):
            return self._loop.run_until_complete(work)

    def step(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The same for a statement, which needs no task: there are thousands in a seed."""
        with _running(self._loop):
            try:
                while True:
                    awaited = work.send(None)
                    while not awaited.done():
                        self._loop._run_once()
            except StopIteration as done:
                return done.value

    def close(self) -> None:
        self._loop.close()


class Databases:
    """One database on a server, for one seed after the other, each of which finds it as it was
    when the schema was put in place: a new one for each takes a tenth of a seed's time."""

    def __init__(self, server: db.Server) -> None:
        self._real_time = _RealTime()
        gc.freeze()  # what is there now outlives all seeds: `run` collects what one leaves behind
        self._connections: list[Any] = self._real_time.run(self._open(server))
        self._tables = set(self._real_time.run(_tables(self._connections[0])))
        self._refill: str = self._real_time.run(_keep(self._connections[0], self._tables))

    async def _open(self, server: db.Server) -> list[Any]:
        connect: Any = partial(
            cast("Any", asyncpg.connect),
            statement_cache_size=1_000,
            max_cached_statement_lifetime=0,
        )
        name = f"simulated_{next(_numbers)}"
        admin = await connect(server.url_of("postgres"))
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        url = server.url_of(name)
        await (await db.connect(url)).close()
        return [await connect(url), await connect(url)]

    @contextmanager
    def fresh(self) -> Generator[Callable[..., "Sessions"]]:
        """Makes `Sessions` of the empty database."""
        self._real_time.run(self._empty())
        yield lambda *parts: Sessions(self._real_time, *self._connections, *parts)

    async def _empty(self) -> None:
        for connection in self._connections:
            await connection.reset()
        first = self._connections[0]
        async with first.transaction():
            await first.execute("SET LOCAL session_replication_role = replica")  # no triggers
            for table in await _tables(first):
                if table not in self._tables:
                    await first.execute(f"DROP TABLE {table}")
            await first.execute(f"TRUNCATE {', '.join(sorted(self._tables))} RESTART IDENTITY")
            await first.execute(self._refill)

    def close(self) -> None:
        gc.unfreeze()
        for connection in self._connections:
            self._real_time.run(connection.close())
        self._real_time.close()


async def _tables(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = 'public'::regnamespace ORDER BY relname"
    )
    return [row["relname"] for row in rows]


async def _keep(connection: Any, tables: set[str]) -> str:
    """Keep a copy of what the schema begins with; the statements that put it back."""
    await connection.execute("CREATE SCHEMA kept")
    statements: list[str] = []
    for table in sorted(tables):
        if not await connection.fetchval(f"SELECT EXISTS (SELECT FROM ONLY {table})"):
            continue
        columns = await connection.fetchval(
            "SELECT string_agg(attname, ', ') FROM pg_attribute WHERE attrelid = $1::regclass"
            " AND attnum > 0 AND attgenerated = '' AND NOT attisdropped",
            table,
        )
        await connection.execute(f"CREATE TABLE kept.{table} AS SELECT {columns} FROM {table}")
        statements.append(
            f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
            f" SELECT {columns} FROM kept.{table}"
        )
    return "; ".join(statements)


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

    def step(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._real_time.step(work)

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
        answer = sessions.step(getattr(self._physical, method)(*arguments, **named))
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
        sessions.step(transaction.start())
        self._transactions.append(transaction)
        try:
            yield
            await self._edge()
        except BaseException:
            if not self._lost:
                self._transactions.remove(transaction)
                sessions.step(transaction.rollback())
            raise
        self._transactions.remove(transaction)
        sessions.step(transaction.commit())
        await self._edge()  # lost after the commit: done, and nobody heard

    async def close(self, **_named: Any) -> None:
        self.lose()
