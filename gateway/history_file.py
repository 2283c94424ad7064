"""The file in which private streams are kept: one SQLite database in the node's directory.

A page is consecutive records of one account's stream, in one blob; what is asked for by kind, fills
and leases, is in streams of their own as well. So what a group of messages costs is its accounts
and not its messages. Invariant: a group, and the number of the last event that it covers, are in
the file together or not at all; of each account there is every message from its oldest kept one on.
`History` calls, from one thread at a time; what others ask for goes through it.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from compex_client import messages as m

from engine.records import ACCOUNTS_MAX
from engine.rejects import CompexError
from gateway.facts import (
    FACT_BYTES,
    FILL,
    LEASE,
    aseq_of,
    first_since,
    last_of_client,
    time_ns_of,
)
from gateway.history_rows import Rows
from gateway.schema import migrate

BUSY_SECONDS: Final = 5.0  # for a reader elsewhere to let go
PAGE_RECORDS: Final = 512  # at most, in one page
# SQLite's module gives the interpreter away for each step, and may wait long to have it back, so
# many pages go with one; each of these numbers is one prepared statement.
PAGES_PER_STATEMENT: Final = (128, 16, 4, 1)
PAGES_AT_ONCE: Final = 8  # searched: those of who is told something now and then are short
EVERY: Final = 0  # the stream of all messages; the others have the number of their kind
STREAMS: Final = (EVERY, FILL, LEASE)
# A page's place says whose it is, of which stream, and the number of its last record, whose time it
# has beside it.
_ASEQ_BITS: Final = 39
_STREAM_BITS: Final = 3
ASEQ_MAX: Final = (1 << _ASEQ_BITS) - 1
assert ACCOUNTS_MAX.bit_length() + _STREAM_BITS + _ASEQ_BITS <= 63, "a place is an int64"
assert max(STREAMS) + 1 < 1 << _STREAM_BITS
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
    """
    CREATE TABLE page (
        place INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, records BLOB NOT NULL
    );
    """,
)
Kept: TypeAlias = bytes | m.Numbered  # a record or, of an earlier build, a message


class HistoryError(CompexError):
    """The file cannot be used; the message says what to do."""


class Group:
    """Records that go into the file together, by stream and account, each stream's in order, and
    the last event that they cover."""

    def __init__(self) -> None:
        self.count = 0  # of messages
        self.streams: Final[dict[int, dict[int, list[bytes]]]] = {x: {} for x in STREAMS}
        self.begun: Final[dict[int, int]] = {}  # accounts that had nothing: their first number
        self.event = 0
        self.raw = b""


class Found(NamedTuple):
    """What a search came to, and before which number to go on with it; 0: it is over."""

    fate: bytes | m.OrderInfo | None  # a record or, of an earlier build, what it says
    below: int
    looked: int  # at so many records


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
            self._rows = Rows(self._db)
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

    def write(self, group: Group) -> None:
        """All that follows from the events up to the group's. The same group again is harmless."""

        def work() -> None:
            pages = _pages_of(group)
            for size in PAGES_PER_STATEMENT:
                while len(some := list(islice(pages, size))) == size:
                    self._db.execute(_insert(size), [x for page in some for x in page])
                pages = iter(some)
            self._db.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", group.begun.items())
            self._db.execute("UPDATE covered SET event = ?, raw = ?", (group.event, group.raw))

        self._together(work)

    def read(self, stream: int, account: int, from_aseq: int, limit: int) -> Sequence[Kept]:
        """At most so many of a stream's messages, from that number on, which may be any."""
        if from_aseq > ASEQ_MAX:
            return []  # no place has such a number
        found: list[Kept] = [*self._rows.page(stream, account, from_aseq, limit)]
        if len(found) < limit:
            found += islice(self._records(stream, account, from_aseq), limit - len(found))
        return found

    def _records(self, stream: int, account: int, from_aseq: int) -> Iterator[bytes]:
        pages = self._db.execute(
            "SELECT records FROM page WHERE place BETWEEN ? AND ? ORDER BY place",
            (_place(stream, account, from_aseq), _place(stream + 1, account, 0) - 1),
        )
        with closing(pages):
            for (records,) in pages:
                for begin in range(0, len(records), FACT_BYTES):
                    record = records[begin : begin + FACT_BYTES]
                    if aseq_of(record) >= from_aseq:
                        yield record

    def search(self, account: int, client_id: int, below: int, most: int) -> Found:
        """What is last kept about the order of a client id, in the account's pages that end before
        a number: the newest first, until about so many records were looked at."""
        looked = 0
        pages = self._db.execute(
            "SELECT records FROM page WHERE place BETWEEN ? AND ? ORDER BY place DESC",
            (_place(EVERY, account, 0), _place(EVERY, account, below) - 1),
        )
        with closing(pages):
            while some := pages.fetchmany(PAGES_AT_ONCE):
                records = b"".join([records for (records,) in reversed(some)])
                looked += len(records) // FACT_BYTES
                found = last_of_client(records, client_id)
                if found is not None:
                    return Found(found, 0, looked)
                if looked >= most:
                    return Found(None, aseq_of(records), looked)
        return Found(self._rows.fate(account, client_id), 0, looked)

    def trim(self, account: int, below: int) -> None:
        """Forget the account's messages before that number; a page goes with its last one."""

        def work() -> None:
            self._rows.trim(account, below)
            for stream in STREAMS:
                self._db.execute(
                    "DELETE FROM page WHERE place BETWEEN ? AND ?",
                    (_place(stream, account, 0), _place(stream, account, below) - 1),
                )
            self._db.execute("UPDATE kept SET oldest = ? WHERE account = ?", (below, account))

        self._together(work)

    def first_since(self, account: int, time_ns: int) -> int:
        """The number of the account's first kept message that is not older; 0 if all are."""
        in_rows = self._rows.first_since(account, -(-time_ns // 1_000))
        if in_rows:
            return in_rows
        found = self._all(
            "SELECT records FROM page WHERE place BETWEEN ? AND ? AND time_ns >= ?"
            " ORDER BY place LIMIT 1",
            (_place(EVERY, account, 0), _place(EVERY + 1, account, 0) - 1, time_ns),
        )
        return first_since(found[0][0], time_ns) if found else 0

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


def _place(stream: int, account: int, aseq: int) -> int:
    assert 0 <= stream < 1 << _STREAM_BITS and 0 <= aseq <= ASEQ_MAX, "each in its own bits"
    return (account << _STREAM_BITS | stream) << _ASEQ_BITS | aseq


def _pages_of(group: Group) -> Iterator[tuple[int, int, bytes]]:
    """As rows of `page`."""
    for stream, accounts in group.streams.items():
        for account, records in accounts.items():
            for begin in range(0, len(records), PAGE_RECORDS):
                page = records[begin : begin + PAGE_RECORDS]
                last = page[-1]
                place = _place(stream, account, aseq_of(last))
                yield place, time_ns_of(last), b"".join(page)


def _insert(pages: int) -> str:
    return "INSERT OR IGNORE INTO page VALUES " + ", ".join(["(?, ?, ?)"] * pages)
