"""Disks that a test holds up, fails or cuts short; behind each is the real file system."""

import errno
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Final

from engine.clock import ScriptedClock
from engine.journal import Disk, SystemDisk
from engine.pipeline import QUICK_NS
from engine.records import Command, CommandKind

WAIT_SECONDS_MAX: Final = 60


class FillingDisk(SystemDisk):
    """Says that it has as many bytes free as `free` is, or nothing where it is None."""

    def __init__(self, free: int | None) -> None:
        self.free = free

    def free_bytes(self, directory: Path) -> int:
        if self.free is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.free


class HeldDisk(SystemDisk):
    """While `hold` is called, a sync does not return until `let_go`. Whoever lets go must not wait
    for the sync itself: give the pipeline `patience(disk)`."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.syncs = 0

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def sync(self, fd: int) -> None:
        assert self._open.wait(WAIT_SECONDS_MAX)
        super().sync(fd)
        self.syncs += 1


class TimedDisk(SystemDisk):
    """A sync takes `takes_ns`; `here` tells of each whether it was this thread's."""

    def __init__(self, clock: ScriptedClock) -> None:
        self._clock = clock
        self._thread = threading.get_ident()
        self.takes_ns = 0
        self.here: list[bool] = []

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._clock.advance_to(self._clock.now_ns() + self.takes_ns)
        self.here.append(threading.get_ident() == self._thread)


def patience(disk: Disk | None) -> int:
    """How quick a pipeline may take this disk for, in ns."""
    return 0 if isinstance(disk, HeldDisk) else QUICK_NS


class FailingDisk(SystemDisk):
    """Fails one call: set `fail_at` to (name, how many such calls from now on succeed).

    A write that fails has written `short_bytes` of its data; a sync that fails `loses` what was
    written since the one before it, or has left it in the page cache.
    """

    def __init__(self, error: int = errno.EIO, short_bytes: int = 0, loses: bool = False) -> None:
        self.error = error
        self.short_bytes = short_bytes
        self.loses = loses
        self.fail_at: tuple[str, int] = ("", 0)
        self.calls: Counter[str] = Counter()
        self.calls_after_failure: list[str] = []
        self.failed = False
        self._before_sync: list[tuple[bytes, int]] = []  # what was overwritten since, and where

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.failed:
            self.calls_after_failure.append(name)
        wanted, left = self.fail_at
        if name != wanted:
            return
        if left == 0:
            self.failed = True
            raise OSError(self.error, os.strerror(self.error))
        self.fail_at = (wanted, left - 1)

    def create(self, path: Path, size: int) -> int:
        self._call("create")
        return super().create(path, size)

    def open(self, path: Path) -> int:
        self._call("open")
        return super().open(path)

    def rename(self, path: Path, to: Path) -> None:
        self._call("rename")
        super().rename(path, to)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._before_sync.append((os.pread(fd, len(data), offset), offset))
        try:
            self._call("write")
        except OSError:
            super().write(fd, data[: self.short_bytes], offset)
            raise
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        try:
            self._call("sync")
        except OSError:
            for overwritten, offset in reversed(self._before_sync if self.loses else []):
                super().write(fd, overwritten, offset)
            raise
        super().sync(fd)
        self._before_sync.clear()


def numbered(first_sequence: int, count: int) -> bytes:
    """`count` commands for a journal, recognisable by their client id."""
    return b"".join(
        Command(
            sequence=sequence,
            time_ns=1_795_219_200_000_000_000 + sequence,
            client_id=sequence * 1000,
            kind=CommandKind.CANCEL,
        ).pack()
        for sequence in range(first_sequence, first_sequence + count)
    )
