"""The journal: every sequenced command, on disk before anybody hears of it.

A directory of segments, each preallocated, a header and then frames. A frame is one group commit:
its commands and a digest over the frame before it, so that no frame can be changed, dropped or
moved unseen. Invariant: `append` has returned only when fdatasync has, and after any error of the
disk nothing is ever appended again (a failed fsync may have dropped the pages; a retry would lie).
One writer, held by a lock on the directory. Called by `pipeline` and `replay`.

    header, 64 B: magic 8, format 4, layout 4, first sequence 8, build 8, chain 16, digest 16
    frame, 32 B: magic 2, zero 2, count 4, first sequence 8, digest 16; then count x 64 B commands
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from engine.kernel import build_hash
from engine.records import COMMAND, LAYOUT_VERSION, CommandArray
from engine.rejects import DamagedJournal, JournalError

FORMAT_VERSION: Final = 1
SEGMENT_BYTES: Final = 16 << 20  # preallocated: a sync then writes data, not file sizes
FRAME_COMMANDS_MAX: Final = 4096
SEGMENT_MAGIC: Final = b"CXSEGMNT"
FRAME_MAGIC: Final = 0xC0F3
_SEGMENT: Final = struct.Struct("<8sIIQ8s16s")
_FRAME: Final = struct.Struct("<HHIQ")  # magic, zero, count, first sequence; then the digest
_DIGEST_BYTES: Final = 16
HEADER_BYTES: Final = 64
FRAME_HEADER_BYTES: Final = 32
assert _SEGMENT.size + _DIGEST_BYTES == HEADER_BYTES
assert _FRAME.size + _DIGEST_BYTES == FRAME_HEADER_BYTES
assert HEADER_BYTES + FRAME_HEADER_BYTES + FRAME_COMMANDS_MAX * COMMAND.itemsize < SEGMENT_BYTES


class Disk(Protocol):
    """What the journal asks of a disk; tests give one that fails."""

    def create(self, path: Path, size: int) -> int: ...
    def open(self, path: Path) -> int: ...
    def write(self, fd: int, data: bytes, offset: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...


class SystemDisk:
    """The real one. Raises OSError."""

    def create(self, path: Path, size: int) -> int:
        """A new file with its blocks allocated and its directory entry durable."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        os.posix_fallocate(fd, 0, size)
        os.fsync(fd)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
        return fd

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            if written == 0:
                raise OSError("the disk took no bytes")
            offset += written
            view = view[written:]

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)


class Frame(NamedTuple):
    first_sequence: int
    commands: CommandArray  # shape (n,), dtype COMMAND


class _Place(NamedTuple):
    """Where the next frame goes and what it is chained to."""

    offset: int
    sequence: int
    chain: bytes


def _digest(*parts: bytes) -> bytes:
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def _header(first_sequence: int, chain: bytes) -> bytes:
    build = bytes.fromhex(build_hash())
    head = _SEGMENT.pack(
        SEGMENT_MAGIC, FORMAT_VERSION, LAYOUT_VERSION, first_sequence, build, chain
    )
    return head + _digest(head)


def _check_header(path: Path, data: bytes, expected: _Place | None) -> _Place:
    """Raises DamagedJournal or JournalError, naming the file."""
    head = data[: _SEGMENT.size]
    if len(data) < HEADER_BYTES or data[_SEGMENT.size : HEADER_BYTES] != _digest(head):
        raise DamagedJournal(f"{path}: the header at offset 0 is damaged")
    magic, form, layout, first, _build, chain = _SEGMENT.unpack(head)
    if magic != SEGMENT_MAGIC or form != FORMAT_VERSION or layout != LAYOUT_VERSION:
        raise JournalError(
            f"{path}: written with format {form}, layout {layout}; "
            f"this build reads format {FORMAT_VERSION}, layout {LAYOUT_VERSION}"
        )
    if expected is not None and (first, chain) != (expected.sequence, expected.chain):
        raise DamagedJournal(f"{path}: does not continue the segment before it")
    return _Place(HEADER_BYTES, first, chain)


def _read_frame(data: bytes, at: _Place) -> tuple[Frame, _Place] | None:
    """The valid frame at this place, or None."""
    body = at.offset + FRAME_HEADER_BYTES
    if body > len(data):
        return None
    magic, zero, count, first = _FRAME.unpack_from(data, at.offset)
    end = body + count * COMMAND.itemsize
    shaped = magic == FRAME_MAGIC and zero == 0 and 0 < count <= FRAME_COMMANDS_MAX
    if not shaped or first != at.sequence or end > len(data):
        return None
    head = data[at.offset : at.offset + _FRAME.size]
    digest = _digest(at.chain, head, data[body:end])
    if data[at.offset + _FRAME.size : body] != digest:
        return None
    commands = np.frombuffer(data[body:end], COMMAND)
    return Frame(first, commands), _Place(end, first + count, digest)


def _later_frame(data: bytes, at: _Place) -> int | None:
    """The offset of something after a bad frame that only a later frame can be, or None.

    Frames start at multiples of 32 and carry sequences that grow, which the commands inside a
    torn frame cannot imitate: where a header would say its sequence, a command says its time.
    """
    for offset in range(at.offset + FRAME_HEADER_BYTES, len(data) - FRAME_HEADER_BYTES, 32):
        if data[offset : offset + 2] != FRAME_MAGIC.to_bytes(2, "little"):
            continue
        _, zero, count, first = _FRAME.unpack_from(data, offset)
        grows = at.sequence < first <= at.sequence + len(data) // COMMAND.itemsize
        if zero == 0 and 0 < count <= FRAME_COMMANDS_MAX and grows:
            return offset
    return None


def read_segment(
    path: Path, expected: _Place | None, is_last: bool
) -> Iterator[tuple[Frame | None, _Place]]:
    """Yield (frame, place after it); ends with (None, place) for the last segment's clean end.

    Raises DamagedJournal where bytes that are not a torn tail are not what was written.
    """
    data = path.read_bytes()
    place = _check_header(path, data, expected)
    while (found := _read_frame(data, place)) is not None:
        frame, place = found
        yield frame, place
    rest_is_zero = not any(data[place.offset :])
    if rest_is_zero:
        yield None, place
        return
    later = _later_frame(data, place)
    if not is_last or later is not None:
        raise DamagedJournal(
            f"{path}: damaged at offset {place.offset}, in the frame of sequence {place.sequence}; "
            "this is not a torn tail, so nothing was cut: restore the file from a copy"
        )
    yield None, place


def segments(directory: Path) -> list[Path]:
    """The segment files in sequence order."""
    return sorted(directory.glob("*.cxj"))


def read(directory: Path) -> Iterator[Frame]:
    """Every frame in order, without writing anything. Raises JournalError."""
    place: _Place | None = None
    paths = segments(directory)
    for path in paths:
        for frame, after in read_segment(path, place, path == paths[-1]):
            place = after
            if frame is not None:
                yield frame


class Journal:
    """The writer. Use `recover` to the end once, then `append`."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._disk = disk
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise JournalError(f"{directory}: another process writes this journal") from error
        self._fd = -1
        self._place = _Place(0, 1, bytes(_DIGEST_BYTES))
        self._failed = ""

    def recover(self) -> Iterator[Frame]:
        """Every frame in order; at the end the torn tail is cut and `append` may follow."""
        paths = segments(self._directory)
        if paths and is_unborn(paths[-1]):
            # Died between making the file and writing its header: nothing was in it.
            paths.pop().unlink()
        place: _Place | None = None
        for path in paths:
            for frame, after in read_segment(path, place, path == paths[-1]):
                place = after
                if frame is not None:
                    yield frame
        if place is None:
            self._start_segment()
            return
        self._place = place
        self._fd = self._disk.open(paths[-1])
        # Whatever a torn write left behind must not look like a frame one day.
        rest = paths[-1].stat().st_size - place.offset
        self._disk.write(self._fd, bytes(rest), place.offset)
        self._disk.sync(self._fd)

    def _start_segment(self) -> None:
        place = self._place
        if self._fd >= 0:
            self._disk.close(self._fd)
        path = self._directory / f"{place.sequence:020d}.cxj"
        self._fd = self._disk.create(path, SEGMENT_BYTES)
        self._disk.write(self._fd, _header(place.sequence, place.chain), 0)
        self._disk.sync(self._fd)
        self._place = place._replace(offset=HEADER_BYTES)

    def append(self, commands: bytes) -> None:
        """One frame of whole commands, durable on return. Blocks; call it off the event loop.

        Raises JournalError, now and at every later call, when the disk fails.
        """
        count, torn = divmod(len(commands), COMMAND.itemsize)
        assert torn == 0 and 0 < count <= FRAME_COMMANDS_MAX
        if self._failed:
            raise JournalError(self._failed)
        try:
            if self._place.offset + FRAME_HEADER_BYTES + len(commands) > SEGMENT_BYTES:
                self._start_segment()
            place = self._place
            head = _FRAME.pack(FRAME_MAGIC, 0, count, place.sequence)
            digest = _digest(place.chain, head, commands)
            self._disk.write(self._fd, head + digest + commands, place.offset)
            self._disk.sync(self._fd)
        except OSError as error:
            self._failed = f"the journal's disk failed, nothing more is taken: {error}"
            raise JournalError(self._failed) from error
        end = place.offset + FRAME_HEADER_BYTES + len(commands)
        self._place = _Place(end, place.sequence + count, digest)

    def close(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
        os.close(self._lock)


def is_unborn(path: Path) -> bool:
    """Whether a segment was made but never got a header."""
    with path.open("rb") as file:
        return not any(file.read(HEADER_BYTES))
