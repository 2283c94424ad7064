"""What it costs that nothing is lost: journal, acknowledgement and restart beside the bare disk.

    python -m benchmarks.durability [--runs N] [--dir DIR] [--json PATH] [--quick] [SECTION ...]

Each section measures ours and what no engine on this disk could beat, in turns within each round
(see `table`); who goes first changes. A ratio is always ours through the bare one's. DIR lies on
the disk that is meant. Speed never fails the command, a wrong state does. To add a figure, write a
`Section` and name it in SECTIONS.

journal: frames of as many commands as a group may have, digested, written and synced one by one;
beside it the same bytes written and synced in the same blocks, in files made the same way.
acks: see `acks`. The target is set against the disk's own p99 of a write with its sync.
replay: a journal back to its state, from the page cache, in full frames and in ones as small as
they are when trading is quiet; beside it reading the same files. Its parts are measured alone.
snapshot, pause: see `snapshots`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console

from benchmarks import snapshots
from benchmarks.acks import Delays, Engine, bare
from benchmarks.match_all import machine
from benchmarks.table import (
    TABLE_COLUMNS,
    Rounds,
    Row,
    Section,
    parse_sections,
    section_parser,
    show,
)
from benchmarks.workload import opening, order_flow
from engine.journal import (
    FRAME_COMMANDS_MAX,
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    Journal,
    SystemDisk,
    read,
    segments,
)
from engine.records import COMMAND, CommandArray
from engine.replay import Matcher, replay
from engine.snapshot import state_hash

RUNS: Final = 5
SEED: Final = 3
APPENDED_FRAMES: Final = 256  # a round: a million commands
OFFERED_PER_SECOND: Final = 10_000
OFFERED: Final = 20_000  # a round: two seconds
REPLAYED: Final = 3_000_000
REPLAYED_SMALL: Final = 500_000
SMALL_FRAME: Final = 8
QUICK_DIVISOR: Final = 50
APPEND_PER_SECOND_MIN: Final = 1_000_000
ACK_P99_MAX: Final = 2.0  # in p99s of the disk's own write and sync
SNAPSHOT_ORDERS: Final = 1_000_000
SNAPSHOT_SECONDS_MAX: Final = 1.0
PAUSE_ORDERS: Final = 100_000
PAUSE_MS_MAX: Final = 5.0
REPLAY_PER_SECOND_MIN: Final = 3_000_000


class JournalSection:
    """Full frames, one after the other."""

    def __init__(self, directory: Path, scale: int) -> None:
        self._directory = directory / "append"
        size = FRAME_COMMANDS_MAX * max(APPENDED_FRAMES // scale, 1)
        flow = order_flow(SEED, size)[:size].tobytes()
        step = FRAME_COMMANDS_MAX * COMMAND.itemsize
        self._frames = [flow[at : at + step] for at in range(0, len(flow), step)]
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        runs = [("ours", self._append), ("bare", self._write)]
        for name, run in runs if number % 2 else runs[::-1]:
            self._directory.mkdir()
            seconds = run()
            self._rounds.add(name, len(self._frames) * FRAME_COMMANDS_MAX / seconds)
            shutil.rmtree(self._directory)

    def _append(self) -> float:
        journal = Journal(self._directory, SystemDisk())
        assert list(journal.recover()) == []
        begin = time.perf_counter()
        for frame in self._frames:
            journal.append(frame)
        seconds = time.perf_counter() - begin
        journal.close()
        found = sum(len(frame.commands) for frame in read(self._directory))
        assert found == len(self._frames) * FRAME_COMMANDS_MAX
        return seconds

    def _write(self) -> float:
        disk = SystemDisk()
        blocks = [bytes(FRAME_HEADER_BYTES) + frame for frame in self._frames]
        fd, offset = disk.create(self._directory / "0", SEGMENT_BYTES), HEADER_BYTES
        begin = time.perf_counter()
        for number, block in enumerate(blocks, 1):
            if offset + len(block) > SEGMENT_BYTES:
                disk.close(fd)
                fd, offset = disk.create(self._directory / str(number), SEGMENT_BYTES), HEADER_BYTES
            disk.write(fd, block, offset)
            disk.sync(fd)
            offset += len(block)
        seconds = time.perf_counter() - begin
        disk.close(fd)
        return seconds

    def rows(self) -> list[Row]:
        found = self._rounds.median("ours")
        return [
            Row(
                f"journal, {FRAME_COMMANDS_MAX:,} commands a frame",
                found,
                "commands/s",
                self._rounds.median("bare"),
                self._rounds.ratio("ours", "bare"),
                f"at least {APPEND_PER_SECOND_MIN:,}/s",
                found >= APPEND_PER_SECOND_MIN,
            )
        ]


class AcksSection:
    """Commands at a rate that leaves most groups small."""

    def __init__(self, directory: Path, scale: int, runs: int) -> None:
        self._path = directory / "bare.cxj"
        self._count = OFFERED // scale
        flow = order_flow(SEED, self._count * runs)
        self._engine = Engine(directory / "acks", flow)
        self._engine.open(len(opening()))
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        gap_ns = 1_000_000_000 // OFFERED_PER_SECOND
        found: dict[str, Delays] = {}
        for name in ("ours", "bare") if number % 2 else ("bare", "ours"):
            if name == "ours":
                found[name] = self._engine.round(gap_ns, self._count, number)
            else:
                found[name] = bare(self._path, gap_ns, self._count, number)
        for name, delays in found.items():
            self._rounds.add(f"{name} group", self._count / delays.groups)
            for percent in (50, 99):
                self._rounds.add(f"{name} p{percent}", percentile_us(delays.acks, percent))
        for percent in (50, 99):
            self._rounds.add(f"sync p{percent}", percentile_us(found["bare"].syncs, percent))

    def _row(self, name: str, ours: str, held_against: str) -> Row:
        measured, other = self._rounds.median(ours), self._rounds.median(held_against)
        return Row(name, measured, "µs", other, self._rounds.ratio(ours, held_against))

    def rows(self) -> list[Row]:
        self._engine.close()
        rate = f"{OFFERED_PER_SECOND:,}/s"
        strict = self._row(f"ack at {rate}, p99, by one write's", "ours p99", "sync p99")
        best = self._row("  bare groups' p99, by one write's", "bare p99", "sync p99")
        assert strict.ratio is not None
        within = strict.ratio < ACK_P99_MAX
        return [
            self._row(f"ack at {rate}, p50, by bare groups'", "ours p50", "bare p50"),
            self._row(f"ack at {rate}, p99, by bare groups'", "ours p99", "bare p99"),
            strict._replace(target=f"under {ACK_P99_MAX:g}", within=within),
            best,
            Row("  commands a group", self._rounds.median("ours group"), "",
                self._rounds.median("bare group")),
        ]  # fmt: skip


class UnsyncedDisk(SystemDisk):
    """Makes journals to be read, quickly."""

    def sync(self, fd: int) -> None:
        pass


class ReplaySection:
    """One journal in frames of one size."""

    def __init__(self, directory: Path, commands: int, frame: int) -> None:
        self._directory = directory / f"replay-{frame}"
        self._frame = frame
        self._flow: CommandArray = order_flow(SEED, commands)
        self._hash = state_hash(self._match().state)
        self._rounds = Rounds()
        journal = Journal(self._directory, UnsyncedDisk())
        assert list(journal.recover()) == []
        data, step = self._flow.tobytes(), frame * COMMAND.itemsize
        for at in range(0, len(data), step):
            journal.append(data[at : at + step])
        journal.close()

    def round(self, number: int) -> None:
        runs = [self._replay, self._read, self._check, self._time_match]
        for run in runs if number % 2 else runs[::-1]:
            run()

    def _add(self, name: str, seconds: float) -> None:
        self._rounds.add(name, seconds * 1e9 / len(self._flow))

    def _replay(self) -> None:
        replayed = replay(self._directory)
        assert (replayed.sequence, replayed.state_hash) == (len(self._flow), self._hash)
        self._add("replay", replayed.seconds)

    def _read(self) -> None:
        """Every byte into memory that is there already."""
        buffer = bytearray(SEGMENT_BYTES)
        begin = time.perf_counter()
        for path in segments(self._directory)[0]:
            with path.open("rb", buffering=0) as file:
                assert file.readinto(buffer) == SEGMENT_BYTES
        self._add("read", time.perf_counter() - begin)

    def _check(self) -> None:
        begin = time.perf_counter()
        found = sum(len(frame.commands) for frame in read(self._directory))
        self._add("check", time.perf_counter() - begin)
        assert found == len(self._flow)

    def _match(self) -> Matcher:
        matcher = Matcher()
        for at in range(0, len(self._flow), FRAME_COMMANDS_MAX):
            matcher.pass_over(self._flow[at : at + FRAME_COMMANDS_MAX])
        return matcher

    def _time_match(self) -> None:
        begin = time.perf_counter()
        self._match()
        self._add("match", time.perf_counter() - begin)

    def rows(self) -> list[Row]:
        frames = f"{self._frame:,} a frame"
        found = 1e9 / self._rounds.median("replay")
        is_full = self._frame == FRAME_COMMANDS_MAX
        name = f"replay, {len(self._flow) / 1e6:.1f} million commands, {frames}"
        whole = Row(
            name,
            found,
            "commands/s",
            1e9 / self._rounds.median("read"),
            self._rounds.ratio("read", "replay"),
            f"at least {REPLAY_PER_SECOND_MIN:,}/s" if is_full else "",
            found >= REPLAY_PER_SECOND_MIN if is_full else None,
        )
        parts = (("read", "read"), ("read and check the digests", "check"), ("match", "match"))
        alone = [
            Row(f"  {part}", self._rounds.median(figure), "ns/command") for part, figure in parts
        ]
        return [whole, *alone]


def percentile_us(ascending_ns: Sequence[int], percent: int) -> float:
    """The smallest that so many per cent do not exceed."""
    return ascending_ns[-(-len(ascending_ns) * percent // 100) - 1] / 1000


class SnapshotSection:
    """A state of many resting orders to a file and back."""

    def __init__(self, directory: Path, orders: int) -> None:
        self._directory = directory
        self._orders = orders
        self._state = snapshots.state_of(snapshots.resting(orders))
        assert self._state["open_orders"][0] == orders
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        for name, seconds in (
            snapshots.timed(self._directory, self._state, number)._asdict().items()
        ):
            self._rounds.add(name, seconds)

    def rows(self) -> list[Row]:
        return [
            Row(
                f"snapshot of {self._orders:,} resting orders, {name}",
                self._rounds.median(name),
                "s",
                self._rounds.median(f"bare_{name}"),
                self._rounds.ratio(name, f"bare_{name}"),
                f"at most {SNAPSHOT_SECONDS_MAX:g} s",
                self._rounds.median(name) <= SNAPSHOT_SECONDS_MAX,
            )
            for name in ("written", "loaded")
        ]


class PauseSection:
    """What an engine feels of a snapshot that is made of its journal."""

    def __init__(self, directory: Path, orders: int) -> None:
        self._directory = directory / "journal"
        snapshots.write_journal(self._directory, snapshots.resting(orders))
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        del number  # a process cannot be measured before it is there
        found = uvloop.run(snapshots.pauses(self._directory))
        self._rounds.add("beside", found.beside)
        self._rounds.add("alone", found.alone)

    def rows(self) -> list[Row]:
        return [
            Row(
                "event loop late at most, while a snapshot is made",
                self._rounds.median("beside"),
                "ms",
                self._rounds.median("alone"),
                self._rounds.ratio("beside", "alone"),
                f"at most {PAUSE_MS_MAX:g} ms",
                self._rounds.median("beside") <= PAUSE_MS_MAX,
            )
        ]


SECTIONS: Final = ("journal", "acks", "replay", "replay-small", "snapshot", "pause")


def _section(name: str, directory: Path, scale: int, runs: int) -> Section:
    if name == "journal":
        return JournalSection(directory, scale)
    if name == "acks":
        return AcksSection(directory, scale, runs)
    if name == "replay":
        return ReplaySection(directory, REPLAYED // scale, FRAME_COMMANDS_MAX)
    if name == "snapshot":
        return SnapshotSection(directory, SNAPSHOT_ORDERS // scale)
    if name == "pause":
        return PauseSection(directory, PAUSE_ORDERS // scale)
    return ReplaySection(directory, REPLAYED_SMALL // scale, SMALL_FRAME)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    quick = "cap all sizes: shows that it works, measures nothing"
    parser = section_parser("durability", SECTIONS, RUNS, quick)
    return parse_sections(parser, SECTIONS, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    progress = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    for name in options.sections or SECTIONS:
        with tempfile.TemporaryDirectory(dir=options.dir) as directory:
            progress.print(f"{name}: draw the commands")
            scale = QUICK_DIVISOR if options.quick else 1
            section = _section(name, Path(directory), scale, options.runs)
            for number in range(options.runs):
                progress.print(f"{name}: round {number + 1} of {options.runs}")
                section.round(number)
            rows += section.rows()
    about = machine(None)
    console = Console(width=TABLE_COLUMNS, highlight=False)
    console.print(f"{about['cpu']}, medians of {options.runs} interleaved runs")
    console.print("QUICK: sizes are capped, the figures say nothing\n" if options.quick else "")
    show(console, rows)
    if options.json is not None:
        measured = {
            "machine": about,
            "runs": options.runs,
            "quick": options.quick,
            "rows": [row._asdict() for row in rows],
            "within": all(row.within is not False for row in rows),
        }
        options.json.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
