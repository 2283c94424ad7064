"""The embedded PostgreSQL when its parent dies: found again, with everything that was committed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from settlement import database as db
from settlement.errors import DatabaseError, DatabaseInUse
from tests.passable import passable_directory

PARENT = """
import asyncio, sys, time
from pathlib import Path
from settlement import database as db

async def main():
    server = await db.serve(Path(sys.argv[1]))
    connection = await db.connect(server.url)
    await connection.execute("CREATE TABLE kept (n integer)")
    await connection.execute("INSERT INTO kept VALUES (7)")
    print("ready", flush=True)
    time.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


def servers_in(directory: Path) -> list[psutil.Process]:
    """Living postmasters that were started on a data directory below this one."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command: list[str] = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            part.startswith(str(directory)) for part in command[1:]
        ):
            found.append(process)
    return found


def killed_parent(directory: Path) -> None:
    """Start PostgreSQL from a process of its own, and kill that process, not PostgreSQL."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(directory)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGKILL)


async def test_after_kill_9_the_abandoned_server_is_replaced_and_nothing_is_lost(
    directory: Path,
) -> None:
    killed_parent(directory)
    assert servers_in(directory), "the server outlived its parent: that is the case at hand"
    server = await db.serve(directory)
    connection = await db.connect(server.url)
    assert await connection.value("SELECT n FROM kept") == 7
    await connection.close()
    await server.stop()
    assert not servers_in(directory)


async def test_after_a_power_cut_the_server_recovers(directory: Path) -> None:
    killed_parent(directory)
    for process in servers_in(directory):
        process.kill()
    server = await db.serve(directory)
    connection = await db.connect(server.url)
    assert await connection.value("SELECT n FROM kept") == 7
    await connection.close()
    await server.stop()


async def test_a_process_number_that_now_belongs_to_somebody_else_is_left_alone(
    directory: Path,
) -> None:
    await (await db.serve(directory)).stop()
    (directory / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    server = await db.serve(directory)
    await server.stop()
    assert not servers_in(directory)


async def test_two_processes_do_not_share_a_directory(directory: Path) -> None:
    server = await db.serve(directory)
    with pytest.raises(DatabaseInUse):
        await db.serve(directory)
    await server.stop()
    await server.stop()


async def test_a_first_start_that_was_cut_off_is_made_again(directory: Path) -> None:
    (directory / "postgres" / "data.new").mkdir(parents=True)
    (directory / "postgres" / "data.new" / "PG_VERSION").write_text("18\n")
    server = await db.serve(directory)
    await (await db.connect(server.url)).close()
    await server.stop()


async def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    await (await db.serve(directory)).stop()
    (directory / "postgres" / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(DatabaseError, match="not compatible"):
        await db.serve(directory)
    assert not servers_in(directory)


async def test_a_path_too_long_for_a_socket_is_no_hindrance(directory: Path) -> None:
    deep = directory / ("d" * 100)
    server = await db.serve(deep)
    await (await db.connect(server.url)).close()
    await server.stop()
    assert not servers_in(directory)


async def test_nobody_listens_on_the_network(directory: Path) -> None:
    server = await db.serve(directory)
    (postmaster,) = [p for p in servers_in(directory) if p.name() == "postgres"][:1]
    assert [c for c in postmaster.net_connections("inet") if c.status == "LISTEN"] == []
    await server.stop()
