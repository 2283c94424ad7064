"""The journal: every sequenced command, on disk before anybody hears of it.

A directory of segments, each preallocated, a header and then frames. A frame is one group commit:
its commands, the digest of the frame before it and a digest over both, so that no frame can be
changed, dropped or moved unseen. Invariant: `append` has returned only when fdatasync has, and
after any error of the disk nothing is ever appended again (a failed fsync may have dropped the
pages; a retry would lie). A frame never splits a command of several records, so a torn one loses
the whole command or nothing of it. One writer, held by a lock on the directory. Called by
`pipeline` and `replay`.

A segment says which build started it. Another build may make another state of the same commands,
so it writes here only after `Journal.adopt`; everybody may read.

    header, 64 B: magic 8, format 2, layout 2, file size 4, first sequence 8, build 8, chain 16,
                  digest 16
    frame, 64 B: magic 8, first sequence 8, count 8, zero 8, chain 16, digest 16
                 then count x 64 B commands

Everything lies at multiples of 64 bytes, and a frame's magic, read as the sequence a command has
in its place, is above any sequence there will ever be: no command looks like a frame. Only one
frame is ever on its way to the disk, so what a crash leaves behind the last good frame is at most
one frame long and holds no other frame's magic. That may be cut; anything else is damage. What
cannot be told from a torn frame is damage to the very last one, with nothing written after it.
A segment has its size on disk before its header, which states it: a shorter file is a cut copy.
"""

import fcntl
import hashlib
import os
import shlex
import struct
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from engine.kernel import build_hash
from engine.records import COMMAND, LAYOUT_VERSION, PARTS_MAX, READABLE_LAYOUTS, CommandArray
from engine.rejects import DamagedJournal, DiskFailed, JournalError, OtherBuild

FORMAT_VERSION: Final = 3
READABLE_FORMATS: Final = (2, 3)
BUILD: Final = build_hash()  # of what runs: the sources may change under it
SEGMENT_BYTES: Final = 16 << 20  # preallocated: a sync then writes data, not file sizes
FRAME_COMMANDS_MAX: Final = 4096
SEGMENT_MAGIC: Final = b"CXSEGMNT"
FRAME_MAGIC: Final = b"CXFRAME\xff"
_SEGMENT: Final = struct.Struct("<8sHHIQ8s16s")
_FRAME: Final = struct.Struct("<8sQQQ16s")  # magic, first sequence, count, zero, chain
DIGEST_BYTES: Final = 16
ALIGNMENT: Final = COMMAND.itemsize
HEADER_BYTES: Final = 64
FRAME_HEADER_BYTES: Final = 64
FRAME_BYTES_MAX: Final = FRAME_HEADER_BYTES + FRAME_COMMANDS_MAX * COMMAND.itemsize
assert _SEGMENT.size + DIGEST_BYTES == HEADER_BYTES
assert _FRAME.size + DIGEST_BYTES == FRAME_HEADER_BYTES
assert HEADER_BYTES % ALIGNMENT == FRAME_HEADER_BYTES % ALIGNMENT == 0
assert HEADER_BYTES + FRAME_BYTES_MAX < SEGMENT_BYTES
assert 1 + PARTS_MAX <= FRAME_COMMANDS_MAX, "a frame holds any command whole"
assert COMMAND.fields is not None and COMMAND.fields["sequence"][1] == 0
assert int.from_bytes(FRAME_MAGIC, "little") >= 1 << 63, "above any sequence"


class Disk(Protocol):
    """What the journal asks of a disk; tests give one that fails."""

    def create(self, path: Path, size: int) -> int: ...
    def open(self, path: Path) -> int: ...
    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None: ...
    def sync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def rename(self, path: Path, to: Path) -> None: ...
    def free_bytes(self, directory: Path) -> int: ...


class SystemDisk:
    """The real one. Raises OSError."""

    def create(self, path: Path, size: int) -> int:
        """A new file with its blocks allocated and its directory entry durable."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
            _sync_directory(path.parent)
        except OSError:
            os.close(fd)
            raise
        return fd

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
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

    def rename(self, path: Path, to: Path) -> None:
        """Durable on return."""
        path.rename(to)
        _sync_directory(to.parent)

    def free_bytes(self, directory: Path) -> int:
        """What a process without privileges may still write where this directory is."""
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_directory(directory: Path) -> None:
    """Make it and its parents, each one's entry durable in its own parent."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


class Mark(NamedTuple):
    """A place between two frames: the sequence before it, and the digest of the frame that ends
    there."""

    sequence: int
    chain: bytes


class Frame(NamedTuple):
    """One whose own digest holds."""

    offset: int  # in its segment
    first_sequence: int
    chain: bytes  # digest of the frame before
    digest: bytes
    body: memoryview  # its commands as they were read, not copied

    @property
    def commands(self) -> CommandArray:
        """Shape (n,), dtype COMMAND, read-only."""
        return np.frombuffer(self.body, COMMAND)

    @property
    def end(self) -> Mark:
        return Mark(self.first_sequence + len(self.body) // ALIGNMENT - 1, self.digest)


class Header(NamedTuple):
    """What a segment says of itself before its first frame."""

    form: int
    layout: int
    file_bytes: int  # which were allocated before it was written; 0: format 2 does not say
    first_sequence: int
    build: str  # 16 hex digits, `kernel.build_hash` of who started it
    chain: bytes  # digest of the frame before, in the segment before


class _Place(NamedTuple):
    """Where the next frame goes and what it is chained to."""

    offset: int
    sequence: int
    chain: bytes


_ORIGIN: Final = _Place(0, 1, bytes(DIGEST_BYTES))
BEGINNING: Final = Mark(0, _ORIGIN.chain)


_FRESH_HASHER: Final = hashlib.blake2b(digest_size=DIGEST_BYTES)


def digest_of(head: bytes | memoryview, body: bytes | memoryview = b"") -> bytes:
    hasher = _FRESH_HASHER.copy()  # a fifth faster than making one, where frames are small
    hasher.update(head)
    hasher.update(body)
    return hasher.digest()


def _header(place: _Place, build: str, file_bytes: int) -> bytes:
    about = (FORMAT_VERSION, LAYOUT_VERSION, file_bytes, place.sequence)
    head = _SEGMENT.pack(SEGMENT_MAGIC, *about, bytes.fromhex(build), place.chain)
    return head + digest_of(head)


def _read_header(path: Path) -> Header:
    """The header alone, without its frames. Raises DamagedJournal or JournalError."""
    try:
        with path.open("rb") as file:
            return _parse_header(path, file.read(HEADER_BYTES), file.seek(0, os.SEEK_END))
    except OSError as error:
        raise DiskFailed(f"{path}: cannot be read: {error}") from error


def _parse_header(path: Path, data: bytes, size: int) -> Header:
    """Of a file of so many bytes. Raises DamagedJournal or JournalError, naming the file."""
    head = data[: _SEGMENT.size]
    if len(data) < HEADER_BYTES or data[_SEGMENT.size : HEADER_BYTES] != digest_of(head):
        raise DamagedJournal(f"{path}: the header at offset 0 is damaged")
    magic, form, layout, file_bytes, first, build, chain = _SEGMENT.unpack(head)
    if form == 2:
        layout, file_bytes = file_bytes, 0  # the layout was where the size is now
    if magic != SEGMENT_MAGIC or form not in READABLE_FORMATS or layout not in READABLE_LAYOUTS:
        raise JournalError(
            f"{path}: written with format {form}, layout {layout}; "
            f"this build reads formats {READABLE_FORMATS}, layouts {READABLE_LAYOUTS}"
        )
    if size < file_bytes:
        raise DamagedJournal(
            f"{path}: damaged at offset {size}, where it ends: it had {file_bytes} bytes from "
            "the start, so this is a copy that was cut short: restore the file from another"
        )
    return Header(form, layout, file_bytes, first, build.hex(), chain)


def _check_continues(path: Path, header: Header, expected: _Place) -> None:
    if (header.first_sequence, header.chain) != (expected.sequence, expected.chain):
        raise DamagedJournal(
            f"{path}: damaged at offset 0, the header does not continue what comes before it, "
            f"which ends before sequence {expected.sequence}: a segment is missing or cut short"
        )


def _parse_frame(data: memoryview, offset: int) -> Frame | None:
    """What stands there, wherever it belongs, if it is a whole frame."""
    begin = offset + FRAME_HEADER_BYTES
    if begin > len(data):
        return None
    magic, first, count, zero, chain = _FRAME.unpack_from(data, offset)
    if magic != FRAME_MAGIC or zero != 0 or not 0 < count <= FRAME_COMMANDS_MAX:
        return None
    end = begin + count * ALIGNMENT
    head_end = offset + _FRAME.size
    body = data[begin:end]
    digest = digest_of(data[offset:head_end], body)
    if end > len(data) or digest != bytes(data[head_end:begin]):
        return None
    return Frame(offset, first, chain, digest, body)


def _find_magic(data: bytes, start: int) -> int:
    """The first frame's magic where a frame can start, from `start` on; -1 if there is none."""
    offset = data.find(FRAME_MAGIC, start)
    while offset >= 0 and offset % ALIGNMENT != 0:
        offset = data.find(FRAME_MAGIC, offset + 1)
    return offset


def _damage(data: bytes, at: _Place, end: int, is_last: bool) -> str:
    """Why what follows the last good frame is neither zeros nor one torn frame; empty if it is.

    end: where nothing but zeros follows.
    """
    if end == at.offset:
        return ""
    if not is_last:
        return "a later segment follows"
    if _parse_frame(memoryview(data), at.offset) is not None:
        return "a whole frame stands there that does not continue the one before it"
    if (later := _find_magic(data, at.offset + ALIGNMENT)) >= 0:
        return f"a later frame stands at offset {later}"
    if end > at.offset + FRAME_BYTES_MAX:
        return f"bytes follow to offset {end}, further than any frame"
    return ""


class Segment(NamedTuple):
    """A segment as it was read: what is good of it, and what was wrong behind that, if anything."""

    path: Path
    header: Header
    frames: list[Frame]
    end: int  # offset after the last good frame
    torn_bytes: int  # what a crash left behind the end, or a writer is just writing there
    damage: str  # in words; empty if there is none
    next_sequence: int
    next_chain: bytes

    def check(self) -> None:
        """Raises DamagedJournal where bytes that are not a torn tail are not what was written."""
        if self.damage:
            raise DamagedJournal(
                f"{self.path}: damaged at offset {self.end}, in the frame of sequence "
                f"{self.next_sequence}: {self.damage}; this is not a torn tail, so nothing was "
                "cut: restore the file from a copy, then have all of it checked: "
                f"compex replay --verify {shlex.quote(str(self.path.parent))}"
            )


def _parse_segment(path: Path, data: bytes, expected: _Place, is_last: bool) -> Segment:
    header = _parse_header(path, data, len(data))
    _check_continues(path, header, expected)
    _, sequence, chain = expected
    offset = HEADER_BYTES
    view = memoryview(data)
    frames: list[Frame] = []
    while (frame := _parse_frame(view, offset)) is not None:
        if frame.first_sequence != sequence or frame.chain != chain:
            break
        frames.append(frame)
        size = len(frame.body)
        sequence += size // ALIGNMENT
        offset += FRAME_HEADER_BYTES + size
        chain = frame.digest
    torn = len(data[offset:].rstrip(b"\0"))
    damage = _damage(data, _Place(offset, sequence, chain), offset + torn, is_last)
    return Segment(path, header, frames, offset, torn, damage, sequence, chain)


def _read_segment(path: Path, expected: _Place, is_last: bool) -> Segment:
    """A segment that a writer may be writing.

    A file is not read at one moment: a frame may be missing in what was read first, and the next
    one be there in what was read last. Reading again finds it, unless it is damage.
    """
    data = _read_file(path)
    segment = _parse_segment(path, data, expected, is_last)
    while segment.damage and (now := _read_file(path)) != data:
        data, again = now, _parse_segment(path, now, expected, is_last)
        if again.end == segment.end:
            return again
        segment = again
    return segment


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DiskFailed(f"{path}: cannot be read: {error}") from error


def segments(directory: Path) -> tuple[list[Path], Path | None]:
    """The segment files in sequence order, and the one that never got a whole header.

    In that one there is no more than the beginning of a header: it was made, and no command was
    ever in it.
    """
    paths = sorted(directory.glob("*.cxj"))
    if paths and _is_unborn(paths[-1]):
        return paths[:-1], paths[-1]
    return paths, None


def _is_unborn(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begun = file.read(HEADER_BYTES)
            if len(begun) < HEADER_BYTES:  # the header comes after all of the file's bytes
                return not begun.rstrip(b"\0")
            if begun[-1] or begun[_SEGMENT.size :] == digest_of(begun[: _SEGMENT.size]):
                return False
            is_ours = SEGMENT_MAGIC.startswith(begun[: len(SEGMENT_MAGIC)].rstrip(b"\0"))
            return is_ours and not file.read().rstrip(b"\0")
    except OSError as error:
        raise DiskFailed(f"{path}: cannot be read: {error}") from error


def scan(directory: Path, after: Mark = BEGINNING) -> Iterator[Segment]:
    """Every segment in order up to a damaged one, without writing anything.

    From the one on that the mark lies in; without a mark, from the journal's beginning. Raises
    JournalError where a header is not one that continues the journal, or what is before the mark
    is not what the mark says. While the caller is busy with one segment, the next is read and
    checked; not before the second is asked for, as some want but one.
    """
    paths, unborn = segments(directory)
    place = _ORIGIN
    if after != BEGINNING:
        if not paths:
            raise JournalError(f"{directory}: no segment is left of this journal")
        paths = paths[_holding(paths, after.sequence + 1) :]
        header = _read_header(paths[0])
        place = _Place(0, header.first_sequence, header.chain)
    if not paths:
        return
    segment = _read_segment(paths[0], place, len(paths) == 1 and unborn is None)
    _check_mark(segment, after)
    yield segment
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        ahead = iter(paths[1:])

        def begin(last: Segment) -> Future[Segment] | None:
            path = None if last.damage else next(ahead, None)
            if path is None:
                return None
            place = _Place(last.end, last.next_sequence, last.next_chain)
            return reader.submit(_read_segment, path, place, path == paths[-1] and unborn is None)

        coming = begin(segment)
        while coming is not None:
            segment = coming.result()
            coming = begin(segment)
            yield segment


def first_sequence(path: Path) -> int:
    """Of a segment, by its name."""
    return int(path.stem)


def _holding(paths: list[Path], sequence: int) -> int:
    """Which segment the sequence is in, or would be; 0 if it is before all of them."""
    return max(bisect_right(paths, sequence, key=first_sequence) - 1, 0)


def _check_mark(segment: Segment, mark: Mark) -> None:
    """Raises JournalError unless a frame of this journal ends at the mark."""
    begin = Mark(segment.header.first_sequence - 1, segment.header.chain)
    if mark != begin and mark not in {frame.end for frame in segment.frames}:
        raise JournalError(
            f"{segment.path}: no frame with digest {mark.chain.hex()} ends at sequence "
            f"{mark.sequence}: this journal does not continue from there"
        )


def check_mark(directory: Path, mark: Mark) -> None:
    """Raises JournalError unless the journal goes on from there, or ends there."""
    next(scan(directory, mark), None)


def read(directory: Path, after: Mark = BEGINNING) -> Iterator[Frame]:
    """Every frame in order behind the mark, without writing anything. Raises JournalError."""
    for segment in scan(directory, after):
        segment.check()
        yield from _behind(segment, after)


def _behind(segment: Segment, mark: Mark) -> Iterator[Frame]:
    return (frame for frame in segment.frames if frame.first_sequence > mark.sequence)


def oldest(directory: Path) -> Mark:
    """The mark before all that is still there: BEGINNING, unless `retire` was called."""
    paths, _ = segments(directory)
    if not paths or first_sequence(paths[0]) == 1:
        return BEGINNING
    header = _read_header(paths[0])
    return Mark(header.first_sequence - 1, header.chain)


def retire(directory: Path, before: int) -> list[Path]:
    """Remove the segments that hold nothing from sequence `before` on; the oldest first, so that
    a crash leaves a journal without a gap. What was removed."""
    paths, _ = segments(directory)
    retired = paths[: _holding(paths, before)]
    for path in retired:
        path.unlink()
    return retired


class Journal:
    """The writer. Use `recover` to the end once, then `append`."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        segment_bytes: int = SEGMENT_BYTES,
        build: str = BUILD,
    ) -> None:
        """Raises JournalError when another process writes here, or the directory cannot be had.

        A segment takes at least one frame, however small `segment_bytes` is.
        """
        assert segment_bytes < 1 << 32, "a header states it in four bytes"
        self.directory: Final = directory
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._build = build
        self._last_build = build  # of the last segment
        self._lock = _lock(directory)
        self._fd = -1
        self._place = _ORIGIN
        self._failed = ""

    def recover(self, after: Mark = BEGINNING, *, adopting: bool = False) -> Iterator[Frame]:
        """Cut the torn tail, then every frame behind the mark; after them `append` may follow.

        Raises JournalError, with nothing written when the last segment is another build's; unless
        it is for `adopt`, which must then come before `append`.
        """
        paths, unborn = segments(self.directory)
        if paths:
            self._last_build = _read_header(paths[-1]).build
        if self._last_build != self._build and not adopting:
            where = shlex.quote(str(self.directory))
            raise OtherBuild(
                f"{paths[-1]}: of build {self._last_build}, this is build {self._build}, which may "
                "make another state of the same commands; nothing was written; to go on with this "
                f"build: compex journal adopt {where}"
            )
        try:
            for segment in scan(self.directory, after):
                segment.check()
                if segment.path == paths[-1]:
                    self._reopen(segment)
                yield from _behind(segment, after)
            if unborn is not None:
                unborn.unlink()
                _sync_directory(self.directory)  # back again, it would follow what is written now
            if not paths:
                self._start_segment()
        except OSError as error:
            raise self._fail(error) from error

    def _reopen(self, segment: Segment) -> None:
        """Make the last segment's end durable again, before anybody hears of what is in it.

        The process that wrote the last frame may have died before its sync, or because of it: then
        the frame may stand in the page cache alone, and only writing it again makes a sync honest.
        """
        start = segment.frames[-1].offset if segment.frames else 0
        data = _read_file(segment.path)
        self._fd = self._disk.open(segment.path)
        self._disk.write(self._fd, data[start : segment.end] + bytes(segment.torn_bytes), start)
        self._disk.sync(self._fd)
        self._place = _Place(segment.end, segment.next_sequence, segment.next_chain)

    def adopt(self) -> str:
        """Go on with this build in a new segment, after `recover`; the build that was before.

        A crash leaves the journal the old build's or this one's. Raises JournalError.
        """
        before = self._last_build
        if before != self._build:
            try:
                if self._place.offset == HEADER_BYTES:  # it has the new one's name, and no command
                    self._next_path().unlink()
                self._start_segment()
            except OSError as error:
                raise self._fail(error) from error
        return before

    def _next_path(self) -> Path:
        return self.directory / f"{self._place.sequence:020d}.cxj"

    def _start_segment(self) -> None:
        place = self._place
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)
        self._fd = self._disk.create(self._next_path(), self._segment_bytes)
        self._disk.write(self._fd, _header(place, self._build, self._segment_bytes), 0)
        self._disk.sync(self._fd)
        self._last_build = self._build
        self._place = place._replace(offset=HEADER_BYTES)

    def fits(self, commands_bytes: int) -> bool:
        """Whether `append` of so many writes one frame and no more: a new segment takes longer."""
        place = self._place
        fresh = place.offset == HEADER_BYTES
        return fresh or place.offset + FRAME_HEADER_BYTES + commands_bytes <= self._segment_bytes

    def append(self, commands: bytes) -> None:
        """One frame of whole commands, durable on return. Blocks for as long as the disk does.

        Their sequences continue the journal's, and a head stands with all its parts. Raises
        JournalError, now and at every later call, when the disk fails.
        """
        count, torn = divmod(len(commands), COMMAND.itemsize)
        assert torn == 0 and 0 < count <= FRAME_COMMANDS_MAX
        if self._failed:
            raise DiskFailed(self._failed)
        assert self._last_build == self._build, "adopted"
        sequence = self._place.sequence
        assert int.from_bytes(commands[:8], "little") == sequence, "no gap, nothing twice"
        length = FRAME_HEADER_BYTES + len(commands)
        try:
            if not self.fits(len(commands)):
                self._start_segment()
            place = self._place
            head = _FRAME.pack(FRAME_MAGIC, sequence, count, 0, place.chain)
            digest = digest_of(head, commands)
            self._disk.write(self._fd, head + digest + commands, place.offset)
            self._disk.sync(self._fd)
        except OSError as error:
            raise self._fail(error) from error
        self._place = _Place(place.offset + length, sequence + count, digest)

    def _fail(self, error: OSError) -> DiskFailed:
        self._failed = f"the journal's disk failed, nothing more is taken: {error}"
        return DiskFailed(self._failed)

    def free_bytes(self) -> int:
        """Where the journal is. Raises OSError. Blocks, as every call of a disk may."""
        return self._disk.free_bytes(self.directory)

    def close(self) -> None:
        """Give the directory to the next writer. Closing twice is harmless."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)


def _lock(directory: Path) -> int:
    try:
        _make_directory(directory)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalError(f"{directory}: cannot keep a journal here: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise JournalError(f"{directory}: another process writes this journal") from error
    return lock
