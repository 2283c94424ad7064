"""A disk that forgets: what was written is in the page cache, what was synced is on the disk, and a
power cut takes any part of the difference.

Owns the files of the journal, as bytes in three places: the file itself (on a file system of the
machine, for whoever reads), the page cache, and the disk. Invariant: a byte is on the disk once a
sync of its file has been answered, or by luck; after a failed sync the cache no longer knows that
its pages are not on the disk, as Linux does it. Sectors are whole. The node writes through
`engine.journal.Disk`; the simulation says when the power goes.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from engine.journal import SystemDisk
from tests.simulate.faults import Chance, Faults

SYNC_SECONDS: Final = (0.0002, 0.006)
SLOW_SYNC_SECONDS: Final = 0.4
FREE_BYTES: Final = 1 << 40  # it fails with ENOSPC all the same
ERRORS: Final = (errno.EIO, errno.ENOSPC)


class _Op(NamedTuple):
    """What a call did, to be done again on the model, or not."""

    name: str  # create, write, sync, failed sync, rename
    path: Path
    offset: int = 0
    data: bytes = b""


class _Stored:
    """One file: what a reader sees, what is on the disk, and which sectors differ."""

    def __init__(self, size: int) -> None:
        self.cache = bytearray(size)
        self.disk = bytearray(size)
        self.dirty: dict[int, None] = {}  # a set that keeps its order


class Killed(Exception):
    """Whoever wrote is gone, in the midst of it."""


class MortalDisk:
    """The disk as a process beside the node has it, which may be killed before any call."""

    def __init__(self, disk: "SimulatedDisk", chance: Chance, faults: Faults) -> None:
        self._disk = disk
        self._chance = chance
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        if name != "close" and self._chance.happens(self._faults.snapshot_killed_ppm):
            raise Killed
        return getattr(self._disk, name)


class SimulatedDisk:
    """Implements `engine.journal.Disk`. `blocking` runs an append and answers when it is synced."""

    def __init__(
        self, chance: Chance, faults: Faults, later: Callable[[float, Callable[[], Any]], Any]
    ) -> None:
        self._chance = chance
        self._faults = faults
        self._later = later
        self._real = SystemDisk()
        self._sector_bytes = chance.random.choice((512, 4096))
        self._files: dict[Path, _Stored] = {}
        self._paths: dict[int, Path] = {}
        self._call: list[_Op] | None = None  # what the append under way has done
        self._unanswered: list[_Op] = []
        self._waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._life = 0
        self.at_work = asyncio.Event()
        self.lost_bytes = 0  # what power cuts took
        self.errors = 0

    # --- the node's side -----------------------------------------------------------------------
    def create(self, path: Path, size: int) -> int:
        self._fail(self._faults.write_error_ppm)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.truncate(fd, size)
        self._paths[fd] = path
        self._did(_Op("create", path, size))
        return fd

    def open(self, path: Path) -> int:
        fd = self._real.open(path)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        data, path = bytes(data), self._paths[fd]
        try:
            self._fail(self._faults.write_error_ppm)
        except OSError:
            data = data[: self._chance.random.randrange(len(data) + 1)]
            self._real.write(fd, data, offset)
            self._did(_Op("write", path, offset, data))
            raise
        self._real.write(fd, data, offset)
        self._did(_Op("write", path, offset, data))

    def sync(self, fd: int) -> None:
        path = self._paths[fd]
        try:
            self._fail(self._faults.sync_error_ppm)
        except OSError:
            self._did(_Op("failed sync", path))
            raise
        self._did(_Op("sync", path))

    def close(self, fd: int) -> None:
        if self._paths.pop(fd, None) is not None:  # a dead process has no files open
            self._real.close(fd)

    def rename(self, path: Path, to: Path) -> None:
        self._fail(self._faults.write_error_ppm)
        path.rename(to)
        self._did(_Op("rename", path, data=bytes(to)))

    def free_bytes(self, directory: Path) -> int:
        del directory
        return FREE_BYTES

    def blocking(self, work: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Run it when the calls before it are answered, as on one thread; what it synced counts,
        and its answer is known, after a while."""
        self._waiting.append((work, answer))
        if not self.at_work.is_set():
            self._next()

    def _next(self) -> None:
        work, answer = self._waiting.popleft()
        assert not self._unanswered
        self._call = []
        try:
            outcome = work()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            outcome = error
        self._unanswered, self._call = self._call, None
        self.at_work.set()
        most = SYNC_SECONDS[1]
        if self._chance.happens(self._faults.slow_sync_ppm):
            most = SLOW_SYNC_SECONDS
        life = self._life

        def done() -> None:
            if life == self._life:
                for op in self._unanswered:
                    self._apply(op)
                self._unanswered = []
                self.at_work.clear()
                answer(outcome)
                if self._waiting and not self.at_work.is_set():
                    self._next()

        self._later(self._chance.seconds(SYNC_SECONDS[0], most), done)

    def _fail(self, ppm: int) -> None:
        if self._chance.happens(ppm):
            self.errors += 1
            error = self._chance.random.choice(ERRORS)
            raise OSError(error, os.strerror(error))

    def _did(self, op: _Op) -> None:
        if self._call is None:
            self._apply(op)  # at a start: nothing else happens meanwhile
        else:
            self._call.append(op)

    # --- the model -----------------------------------------------------------------------------
    def _apply(self, op: _Op) -> None:
        if op.name in {"create", "rename"}:  # both sync the directory: what is removed stays so
            renamed = self._files.pop(op.path, None)
            for gone in [path for path in self._files if not path.exists()]:
                del self._files[gone]
            if op.name == "create":
                self._files[op.path] = _Stored(op.offset)
            elif renamed is not None:
                self._files[Path(os.fsdecode(op.data))] = renamed
            return
        file = self._files[op.path]
        if op.name == "write":
            self._write(file, op.offset, op.data)
        else:
            for sector in file.dirty:
                if op.name == "sync" or self._chance.random.random() < 0.5:
                    self._reach(file, sector)
            file.dirty.clear()

    def _apply_part(self, op: _Op) -> None:
        """What is there of a call that was cut off in its midst."""
        part = self._chance.random.randrange(len(op.data) + 1)
        if op.name == "write":
            self._apply(op._replace(data=op.data[:part]))
        elif op.name == "create" and self._chance.random.random() < 0.5:
            self._apply(op._replace(offset=0))  # a name without a byte

    def _write(self, file: _Stored, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for stored in (file.cache, file.disk):
            stored.extend(bytes(max(0, end - len(stored))))
        file.cache[offset:end] = data
        if data:
            sectors = range(offset // self._sector_bytes, (end - 1) // self._sector_bytes + 1)
            file.dirty.update(dict.fromkeys(sectors))

    def _reach(self, file: _Stored, sector: int) -> None:
        place = slice(sector * self._sector_bytes, (sector + 1) * self._sector_bytes)
        file.disk[place] = file.cache[place]

    # --- the end of a life ---------------------------------------------------------------------
    def crash(self, *, power: bool) -> None:
        """The process is gone and, with `power`, the page cache as well.

        Of a call under way any first part was done. The node's files are then what survived.
        """
        self._life += 1
        self._waiting.clear()
        self.at_work.clear()
        for fd in list(self._paths):
            self.close(fd)
        random = self._chance.random
        under_way, self._unanswered = self._unanswered, []
        done = random.randrange(len(under_way) + 1)
        for op in under_way[:done]:
            self._apply(op)
        for op in under_way[done : done + 1]:
            self._apply_part(op)
        for op in under_way:
            if op.name == "create" and op.path not in self._files:
                op.path.unlink()
        removed = sorted(path for path in self._files if not path.exists())
        # Removed in this order; the directory was not synced, so the last ones may come back.
        for path in removed[: random.randrange(len(removed) + 1) if power else len(removed)]:
            del self._files[path]
        for path, file in self._files.items():
            if power:
                for sector in file.dirty:
                    if random.random() < 0.5:
                        self._reach(file, sector)
                self.lost_bytes += sum(a != b for a, b in zip(file.cache, file.disk, strict=True))
                file.cache[:] = file.disk
                file.dirty.clear()
            path.write_bytes(file.cache)
