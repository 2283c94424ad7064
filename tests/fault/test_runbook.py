"""The runbook, typed: each situation made with a real node, then the page's own lines, whose output
must be what the page shows, but for numbers and what it leaves out by dots."""

import asyncio
import importlib
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from compex_client import Disconnected, connect

from engine import journal, snapshot
from engine.journal import Journal, SystemDisk
from gateway.ending import Ending
from tests.passable import passable_directory
from tests.running import COMPEX, ENVIRONMENT, SYMBOL, Running, running_node, write_settings

PAGE: Final = (Path(__file__).parents[2] / "gateway" / "RUNBOOK.md").read_text("utf-8")
PORT_OF_THE_PAGE: Final = "8765"
COMMAND_SECONDS_MAX: Final = 60
OTHER_BUILD: Final = "ab" * 8
ABUNDANT: Final = "[journal]\nfree_bytes_low = {low}\nfree_bytes_too_low = {too_low}\n"
HUGE: Final = 1 << 50  # bytes; no disk has as many free

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")


class Typed(NamedTuple):
    command: str
    shown: list[str]  # what the page says it prints


def blocks(heading: str, language: str) -> list[list[str]]:
    """The lines of each such block in the section of this heading."""
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in found]


def session(lines: list[str]) -> list[Typed]:
    typed: list[Typed] = []
    for line in lines:
        if line.startswith("$ "):
            typed.append(Typed(line[2:], []))
        else:
            typed[-1].shown.append(line)
    return typed


def loosely(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.split()))


def assert_shown(shown: list[str], printed: str) -> None:
    """Each shown line is printed, in this order; dots stand for anything."""
    rest = [loosely(line) for line in printed.splitlines()]
    for line in shown:
        pattern = ".*".join(re.escape(part) for part in loosely(line).split("..."))
        while rest and not re.search(pattern, rest[0]):
            rest.pop(0)
        assert rest, f"the page shows {line!r}; printed was:\n{printed}"
        rest.pop(0)


class Terminal:
    """Where `.compex` is. What `compex up` starts runs until it ends or is killed by a line."""

    def __init__(self, directory: Path, nodes: AsyncExitStack) -> None:
        self.directory = directory
        self.home = directory / ".compex"
        self.node: Running | None = None
        self.status = 0  # of the last command
        self._nodes = nodes
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.configure()

    def configure(self, more: str = "") -> None:
        write_settings(self.directory / "compex.toml", self._port, more)

    async def type_all(self, lines: list[str]) -> None:
        typed = session(lines)
        assert typed
        for command, shown in typed:
            assert_shown(shown, await self.type(command))

    async def type(self, command: str) -> str:
        """What it prints."""
        if command == "echo $?":
            return str(self.status)
        if command.startswith("uv run compex up"):
            return await self.up(*command.split()[4:])
        command = command.replace(PORT_OF_THE_PAGE, str(self._port))
        command = re.sub(r"^uv run compex", " ".join(COMPEX), command)
        ended = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", command], cwd=self.directory, env=ENVIRONMENT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            timeout=COMMAND_SECONDS_MAX,
        )  # fmt: skip
        self.status = ended.returncode
        if command.startswith(("kill -KILL", "kill -TERM")) and self.node is not None:
            self.status = await self.node.ended()
        return ended.stdout.decode()

    async def up(self, *arguments: str) -> str:
        node = await self._nodes.enter_async_context(running_node(Path(".compex"), *arguments))
        self.node = node
        if await node.started():
            return node.said()
        self.status = await node.ended()
        return node.said()


@pytest.fixture(scope="module")
def traded() -> Generator[Path]:
    """A directory with a node's `.compex`, which ran and was stopped; to be copied."""

    async def trade(directory: Path) -> None:
        write_settings(directory / "compex.toml")
        async with running_node(Path(".compex"), "--settings", "compex.toml") as node:
            async with await connect(await node.websocket(), node.administrator()) as client:
                await client.halt_market(SYMBOL)
                await client.resume_market(SYMBOL)
            assert await node.stop() == Ending.DONE

    with passable_directory() as directory:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            asyncio.run(trade(directory))
        yield directory


@asynccontextmanager
async def terminal(traded: Path, patch: pytest.MonkeyPatch) -> AsyncGenerator[Terminal]:
    with passable_directory() as directory:
        copying = ["cp", "-a", traded / ".compex", directory]  # PostgreSQL's files keep their owner
        await asyncio.to_thread(subprocess.run, copying, check=True)
        patch.chdir(directory)
        async with AsyncExitStack() as nodes:
            yield Terminal(directory, nodes)


UP: Final = ("--settings", "compex.toml")


async def test_first_of_all(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await typing.up(*UP)
        assert typing.node is not None
        [first] = blocks("Runbook", "console")
        await typing.type_all(first)
        assert int(await typing.type("cat .compex.lock")) == typing.node.process.pid


async def test_a_disk_that_fills_up(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        typing.configure(ABUNDANT.format(low=HUGE, too_low=1 << 25))
        said = await typing.up(*UP)
        assert "the journal's space is low" in said
        [low] = blocks("The disk fills up", "console")
        await typing.type_all(low)
        await typing.type("kill -TERM $(cat .compex.lock)")
        typing.configure(ABUNDANT.format(low=HUGE, too_low=HUGE - 1))
        await typing.up(*UP)
        [too_low] = blocks("And is nearly full", "console")
        await typing.type_all(too_low)


async def test_a_disk_that_is_full(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await typing.up(*UP)
        node = typing.node
        assert node is not None
        async with await connect(await node.websocket(), node.administrator()) as client:
            node.cut_off(100)
            with pytest.raises(Disconnected):
                await client.halt_market(SYMBOL)
        assert await node.ended() == Ending.DISK_FAILED
        [log] = blocks("The disk is full, or fails", "text")
        assert_shown(log, node.said())
        [commands] = blocks("The disk is full, or fails", "console")
        await typing.type_all(commands)


async def test_a_damaged_segment(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        shutil.copytree(typing.home / "journal", typing.directory / "backup")
        [segment] = (typing.home / "journal").glob("*.cxj")
        with segment.open("r+b") as file:
            file.seek(150)
            file.write(b"\xff")
        seen, done = blocks("A segment is damaged", "console")
        await typing.type_all(seen)
        await typing.type_all(done)
        assert (typing.directory / "damaged.cxj").exists()


async def test_a_damaged_history(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        with (typing.home / "history.sqlite3").open("r+b") as file:
            file.write(b"\xff" * 4096)
        [commands] = blocks("The history's file", "console")
        await typing.type_all(commands)
        assert (typing.home / "history.sqlite3").stat().st_size


async def test_settlement_that_has_halted(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        journal, backup = typing.home / "journal", typing.directory / "backup"
        older = typing.directory / "older"
        shutil.copytree(journal, older)
        await typing.up(*UP)
        assert typing.node is not None
        async with await connect(
            await typing.node.websocket(), typing.node.administrator()
        ) as client:
            await client.halt_market(SYMBOL)
            await client.resume_market(SYMBOL)
        await typing.type("kill -TERM $(cat .compex.lock)")
        await booked(typing)
        shutil.copytree(journal, backup)
        shutil.rmtree(journal)
        shutil.copytree(older, journal)
        for path in typing.home.glob("history.sqlite3*"):
            path.unlink()  # as the start would ask for
        said = await typing.up(*UP)
        assert "settlement starts late" in said
        seen, done = blocks("Settlement has halted, or waits", "console")
        await typing.type_all(seen)
        await typing.type_all(done)


async def booked(typing: Terminal) -> None:
    """A start has the ledger book all that it did not before the node was stopped; without that a
    snapshot of it is of no use."""
    await typing.up(*UP)
    await typing.type("kill -TERM $(cat .compex.lock)")


async def test_a_damaged_snapshot(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await booked(typing)
        await typing.type("uv run compex snapshot")
        [path] = snapshot.paths(typing.home / "journal")
        with path.open("r+b") as file:
            file.seek(snapshot.read(path).sections["state.orders"].offset)
            file.write(b"\xff")
        seen, done = blocks("A snapshot is lost or damaged", "console")
        await typing.type_all(seen)
        await typing.type_all(done)


async def test_a_lost_snapshot_without_history(
    traded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await booked(typing)
        path = typing.home / "journal"
        in_small_segments(path)
        await typing.type("uv run compex snapshot")
        [taken] = snapshot.paths(path)
        assert journal.retire(path, snapshot.sequence_of(taken) + 1)
        (typing.directory / "backup").mkdir()
        shutil.move(taken, typing.directory / "backup")
        seen, done = blocks("And the history before it was removed", "console")
        await typing.type_all(seen)
        await typing.type_all(done)


async def test_a_stuck_node(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await typing.up(*UP)
        stuck = typing.node
        assert stuck is not None
        stuck.process.send_signal(signal.SIGSTOP)
        seen, done = blocks("A node is stuck", "console")
        await typing.type_all(seen)
        await typing.type_all(done)
        assert stuck.process.returncode == -signal.SIGKILL


def rewrite(directory: Path, new: Callable[[Path], Journal]) -> None:
    """The same frames, by another writer."""
    frames = [frame.commands.tobytes() for frame in journal.read(directory)]
    shutil.rmtree(directory)
    writer = new(directory)
    assert list(writer.recover()) == []
    for commands in frames:
        writer.append(commands)
    writer.close()


def rewrite_as_another_builds(directory: Path) -> None:
    rewrite(directory, lambda path: Journal(path, SystemDisk(), build=OTHER_BUILD))


def in_small_segments(directory: Path) -> None:
    """One frame in each."""
    rewrite(directory, lambda path: Journal(path, SystemDisk(), segment_bytes=1 << 7))


async def test_an_upgrade(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        before, refused, adopted = blocks("An upgrade", "console")
        await typing.up(*UP)
        await typing.type_all(before)
        rewrite_as_another_builds(typing.home / "journal")
        await typing.type_all(refused)
        await typing.type_all(adopted)


async def test_a_vault_of_an_earlier_version(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        contracts = typing.home / "contracts.json"
        fields = json.loads(contracts.read_text("utf-8"))
        del fields["vault_version"]  # which the first did not write
        contracts.write_text(json.dumps(fields), "utf-8")
        before = kept(typing.home)
        said = await typing.up(*UP)
        [shown] = blocks("The vault is of an earlier version", "text")
        assert_shown(shown, said)
        assert typing.status == Ending.VAULT_OUTDATED
        assert kept(typing.home) == before, "nothing was written"


def kept(home: Path) -> list[bytes]:
    """Of what the node is made of: what was agreed upon, on chain and in the exchange."""
    files = [home / "contracts.json", *sorted((home / "journal").glob("*.cxj"))]
    return [path.read_bytes() for path in [*files, *sorted((home / "chain").iterdir())]]


async def test_what_a_node_counts(traded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with terminal(traded, monkeypatch) as typing:
        await typing.up(*UP)
        [told] = blocks("What a node counts", "console")
        await typing.type_all(told)


def test_every_block_of_the_page_is_typed_by_a_test() -> None:
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    assert {heading: len(blocks(heading, "console")) for heading in headings} == {
        "Runbook": 1,
        "The disk fills up": 1,
        "And is nearly full": 1,
        "The disk is full, or fails": 1,
        "A segment is damaged": 2,
        "A snapshot is lost or damaged": 2,
        "And the history before it was removed": 2,
        "A node is stuck": 2,
        "An upgrade": 3,
        "The vault is of an earlier version": 0,
        "Settlement has halted, or waits": 2,
        "The history's file": 1,
        "Every queue between a socket and the disk": 0,
        "What a node counts": 1,
    }


def test_every_queue_has_the_bound_that_the_page_says() -> None:
    [table] = re.findall(r"^\| queue .*?\n\|[-|]+\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    for row in table.splitlines():
        _, _, bound, when_full, _ = row.split("|")
        found = re.match(r" ([\d,]+)[^`]*\(`([\w.]+?)\.([A-Z]\w+(?:\.\w+)?)`\)", bound)
        assert found and when_full.strip(), row
        module, path = importlib.import_module(found[2]), found[3].split(".")
        value = getattr(module, path[0])
        if path[1:]:
            value = getattr(value() if isinstance(value, type) else value, path[1])
        assert value == int(found[1].replace(",", "")), row


def test_dots_and_numbers_are_all_that_may_differ() -> None:
    assert_shown(["a  12 ... z"], "first\na 3456 and so on z\n")
    with pytest.raises(AssertionError, match="the page shows"):
        assert_shown(["a 12", "b"], "b\na 3\n")
    with pytest.raises(AssertionError, match="the page shows"):
        assert_shown(["all hold"], "all broke\n")
