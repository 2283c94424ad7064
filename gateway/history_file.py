"""The file in which private streams are kept: one SQLite database in the node's directory.

Invariant: a group of messages, and the number of the last event that they cover, are in it together
or not at all; of each account there is every message from its oldest kept one on. `History` calls,
from one thread at a time; what others ask for goes through it.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from compex_client import messages as m
from compex_client.messages import NUMBERED

from engine.rejects import CompexError
from gateway.schema import migrate

BUSY_SECONDS: Final = 5.0  # for a reader elsewhere to let go
# SQLite's module gives the interpreter away for each step, and may wait long to have it back, so
# many rows go with one; each of these numbers is one prepared statement.
ROWS_PER_STATEMENT: Final = (256, 32, 4, 1)
KIND_OF: Final = {kind: number for number, kind in enumerate(NUMBERED, 1)}  # append-only
ORDER, FILL, LEASE = KIND_OF[m.Order], KIND_OF[m.Fill], KIND_OF[m.Lease]
MIGRATIONS: Final = (
    f"""
    CREATE TABLE private (
        account INTEGER NOT NULL, aseq INTEGER NOT NULL, event INTEGER NOT NULL,
        kind INTEGER NOT NULL, client_id INTEGER NOT NULL, time_us INTEGER NOT NULL,
        message BLOB NOT NULL,
        PRIMARY KEY (account, aseq)
    ) WITHOUT ROWID;
    CREATE INDEX private_fill ON private (account, aseq) WHERE kind = {FILL};
    CREATE INDEX private_lease ON private (account, aseq) WHERE kind = {LEASE};
    CREATE INDEX private_client ON private (account, client_id, aseq) WHERE client_id > 0;
    CREATE TABLE kept (account INTEGER PRIMARY KEY, oldest INTEGER NOT NULL);
    CREATE TABLE covered (one INTEGER PRIMARY KEY CHECK (one = 1), event INTEGER NOT NULL,
        raw BLOB NOT NULL);
    INSERT INTO covered VALUES (1, 0, x'');
    CREATE TABLE armed (
        account INTEGER NOT NULL, session INTEGER NOT NULL, what TEXT NOT NULL,
        scope TEXT NOT NULL, ms INTEGER NOT NULL, on_close INTEGER NOT NULL,
        PRIMARY KEY (account, session, what)
    ) WITHOUT ROWID;
    """,
)


class HistoryError(CompexError):
    """The file cannot be used; the message says what to do."""


class Row(NamedTuple):
    """One message as it is kept; `message` is its msgpack."""

    account: int
    aseq: int
    event: int
    kind: int  # KIND_OF its type
    client_id: int
    time_us: int
    message: bytes


class ArmedRow(NamedTuple):
    """What was armed for an account's session, as a start finds it again."""

    account: int
    session: int
    what: str
    scope: str
    ms: int
    on_close: int


class HistoryFile:
    """`path` None keeps everything in memory. Raises HistoryError where it cannot be opened."""

    def __init__(self, path: Path | None, *, reads_only: bool = False) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(
                path or ":memory:", BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            if reads_only:
                self._db.execute("PRAGMA query_only = 1")
            else:
                self._open()
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: {error}; without it, it is made anew") from error

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint = 0")  # `checkpoint` says what is safe
        if not migrate(self._db, MIGRATIONS):
            raise HistoryError(f"{self._path}: a later build wrote it; move it away")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    def _together(self, work: Callable[[], None]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            work()
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- messages ------------------------------------------------------------------------------
    def covered(self) -> tuple[int, bytes]:
        """The last event of which everything is here, and what it was; 0 if none is."""
        [found] = self._all("SELECT event, raw FROM covered")
        return found

    def oldest(self) -> dict[int, int]:
        """The oldest kept number of each account that has any."""
        return dict(self._all("SELECT account, oldest FROM kept"))

    def write(self, rows: Sequence[Row], event: int, raw: bytes) -> None:
        """One group, all that follows from the events up to `event`. What is there stays."""

        def work() -> None:
            done = 0
            for size in ROWS_PER_STATEMENT:
                sql = _insert(size)
                while len(rows) - done >= size:
                    self._db.execute(sql, [x for row in rows[done : done + size] for x in row])
                    done += size
            first: dict[int, int] = {}
            for row in rows:
                first.setdefault(row.account, row.aseq)
            self._db.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", first.items())
            self._db.execute("UPDATE covered SET event = ?, raw = ?", (event, raw))

        self._together(work)

    def page(self, account: int, from_aseq: int, limit: int) -> list[tuple[int, bytes]]:
        """(aseq, message) from that number on, without a gap."""
        return self._all(
            "SELECT aseq, message FROM private WHERE account = ? AND aseq >= ?"
            " ORDER BY aseq LIMIT ?",
            (account, from_aseq, limit),
        )

    def of_kind(self, kind: int, account: int, from_aseq: int, limit: int) -> list[bytes]:
        found = self._all(
            # The kind stands there itself: only so its partial index is used.
            f"SELECT message FROM private WHERE account = ? AND kind = {kind} AND aseq >= ?"
            " ORDER BY aseq LIMIT ?",
            (account, from_aseq, limit),
        )
        return [message for (message,) in found]

    def of_order(self, account: int, client_id: int) -> list[bytes]:
        """The first message about the order of a client id, the last `order` and the last of any
        kind; fewer, if they are the same or are not kept any more."""
        found: dict[int, bytes] = {}
        last_of_order = f"AND kind = {ORDER} ORDER BY aseq DESC"
        for which in ("ORDER BY aseq", last_of_order, "ORDER BY aseq DESC"):
            found |= self._all(
                "SELECT aseq, message FROM private WHERE account = ? AND client_id = ?"
                f" AND client_id > 0 AND kind IN ({ORDER}, {FILL}) {which} LIMIT 1",
                (account, client_id),
            )
        return [found[aseq] for aseq in sorted(found)]

    def trim(self, account: int, below: int) -> None:
        """Forget the account's messages before that number."""

        def work() -> None:
            self._db.execute("DELETE FROM private WHERE account = ? AND aseq < ?", (account, below))
            self._db.execute("UPDATE kept SET oldest = ? WHERE account = ?", (below, account))

        self._together(work)

    def first_since(self, account: int, time_us: int) -> int:
        """The number of the account's first kept message that is not older; 0 if all are."""
        found = self._all(
            "SELECT aseq FROM private WHERE account = ? AND time_us >= ? ORDER BY aseq LIMIT 1",
            (account, time_us),
        )
        return found[0][0] if found else 0

    # --- what is armed -------------------------------------------------------------------------
    def arm(self, row: ArmedRow) -> None:
        """On the disk when this returns."""
        self._synced("INSERT OR REPLACE INTO armed VALUES (?, ?, ?, ?, ?, ?)", row)

    def disarm(self, account: int, session: int, what: str) -> None:
        self._synced(
            "DELETE FROM armed WHERE account = ? AND session = ? AND what = ?",
            (account, session, what),
        )

    def armed(self) -> list[ArmedRow]:
        return [ArmedRow(*row) for row in self._all("SELECT * FROM armed")]

    def _synced(self, sql: str, values: Iterable[Any]) -> None:
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._db.execute(sql, tuple(values))
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    # --- the file ------------------------------------------------------------------------------
    def checkpoint(self) -> int:
        """Bring it to the disk: up to which event a power cut takes nothing any more; 0: not so
        far that one could say."""
        event, _ = self.covered()
        [(is_busy, logged, moved)] = self._all("PRAGMA wal_checkpoint(PASSIVE)")
        return event if not is_busy and logged == moved else 0

    def close(self) -> None:
        self._db.close()


def _insert(rows: int) -> str:
    return "INSERT OR IGNORE INTO private VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)
