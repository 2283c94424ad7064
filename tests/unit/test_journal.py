"""The journal on a real file system: rotation, torn tails, damage, one writer, failing disks."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import journal as j
from engine.journal import (
    ALIGNMENT,
    FRAME_BYTES_MAX,
    FRAME_COMMANDS_MAX,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    Journal,
    SystemDisk,
    read,
    segments,
)
from engine.records import COMMAND, Command, CommandKind
from engine.rejects import DamagedJournal, JournalError
from tests.disks import FailingDisk, numbered

SMALL = 1 << 16
COMMAND_BYTES = COMMAND.itemsize


def written(directory: Path, counts: list[int], segment_bytes: int = SMALL) -> list[Path]:
    """A journal of frames of these many commands, closed; its segment files."""
    journal = Journal(directory, SystemDisk(), segment_bytes)
    assert list(journal.recover()) == []
    first = 1
    for count in counts:
        journal.append(numbered(first, count))
        first += count
    journal.close()
    return segments(directory)[0]


def recovered(directory: Path, segment_bytes: int = SMALL) -> bytes:
    """The commands that a new writer finds; it must be able to go on, and find that too."""
    journal = Journal(directory, SystemDisk(), segment_bytes)
    found = b"".join(frame.commands.tobytes() for frame in journal.recover())
    count = len(found) // COMMAND_BYTES
    more = numbered(count + 1, 2)
    journal.append(more)
    journal.close()
    assert b"".join(frame.commands.tobytes() for frame in read(directory)) == found + more
    return found


def halted(directory: Path) -> None:
    """A writer that must raise before it may write."""
    with closing(Journal(directory, SystemDisk(), SMALL)) as journal:
        list(journal.recover())


def overwrite(path: Path, data: bytes) -> None:
    """In place: making the file anew costs a flush of the file system each time."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def frame_starts(data: bytes) -> list[int]:
    return [i for i in range(0, len(data), ALIGNMENT) if data[i : i + 8] == FRAME_MAGIC]


def bytes_of(count: int) -> int:
    return FRAME_HEADER_BYTES + count * COMMAND_BYTES


# --- the plain way ------------------------------------------------------------------------------


def test_what_was_appended_is_read_back_in_its_frames(tmp_path: Path) -> None:
    written(tmp_path, [1, 5, 3])
    frames = list(read(tmp_path))
    assert [(f.first_sequence, len(f.commands)) for f in frames] == [(1, 1), (2, 5), (7, 3)]
    assert b"".join(f.commands.tobytes() for f in frames) == numbered(1, 9)
    assert recovered(tmp_path) == numbered(1, 9)


def test_an_empty_journal_goes_on_from_sequence_one(tmp_path: Path) -> None:
    written(tmp_path, [])
    assert list(read(tmp_path)) == []
    assert recovered(tmp_path) == b""


def test_a_journal_that_never_was_has_no_frames(tmp_path: Path) -> None:
    assert list(read(tmp_path / "nowhere")) == []


def test_a_frame_holds_as_many_commands_as_a_group_may(tmp_path: Path) -> None:
    assert len(written(tmp_path, [FRAME_COMMANDS_MAX], 1 << 20)) == 1
    assert recovered(tmp_path, 1 << 20) == numbered(1, FRAME_COMMANDS_MAX)


def test_segments_follow_each_other_and_each_is_preallocated(tmp_path: Path) -> None:
    paths = written(tmp_path, [100] * 40)
    assert len(paths) == 4
    assert all(path.stat().st_size == SMALL for path in paths)
    assert paths[1].name == f"{1001:020d}.cxj", "named by the first sequence"
    assert recovered(tmp_path) == numbered(1, 4000)


def test_a_segment_takes_one_frame_however_small_it_is(tmp_path: Path) -> None:
    assert len(written(tmp_path, [50, 60, 70], 128)) == 3
    assert recovered(tmp_path, 128) == numbered(1, 180)


def test_a_segment_filled_to_the_last_byte_is_followed_by_the_next(tmp_path: Path) -> None:
    exactly = HEADER_BYTES + 2 * bytes_of(3)
    paths = written(tmp_path, [3, 3, 3], exactly)
    assert len(paths) == 2
    assert recovered(tmp_path, exactly) == numbered(1, 9)


def test_an_auditor_reads_while_the_writer_writes_and_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SystemDisk(), SMALL)
    list(journal.recover())
    journal.append(numbered(1, 3))
    before = segments(tmp_path)[0][0].read_bytes()
    assert [len(f.commands) for f in read(tmp_path)] == [3]
    assert segments(tmp_path)[0][0].read_bytes() == before
    journal.close()


def test_commands_out_of_their_place_are_a_broken_invariant(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SystemDisk(), SMALL)
    list(journal.recover())
    for wrong in (numbered(2, 1), b"", numbered(1, 1)[:-1], numbered(1, FRAME_COMMANDS_MAX + 1)):
        with pytest.raises(AssertionError):
            journal.append(wrong)
    journal.append(numbered(1, 1))
    journal.close()


# --- one writer ---------------------------------------------------------------------------------


def test_two_writers_are_refused_and_closing_lets_the_next_in(tmp_path: Path) -> None:
    first = Journal(tmp_path, SystemDisk())
    with pytest.raises(JournalError, match="another process writes this journal"):
        Journal(tmp_path, SystemDisk())
    first.close()
    first.close()
    Journal(tmp_path, SystemDisk()).close()


def test_a_writer_in_another_process_is_refused(tmp_path: Path) -> None:
    first = Journal(tmp_path, SystemDisk())
    attempt = (
        "import sys; from pathlib import Path; from engine.journal import Journal, SystemDisk\n"
        "Journal(Path(sys.argv[1]), SystemDisk())"
    )
    done = subprocess.run(
        [sys.executable, "-c", attempt, str(tmp_path)], capture_output=True, text=True, check=False
    )
    first.close()
    assert done.returncode != 0
    assert "another process writes this journal" in done.stderr


def test_a_place_that_cannot_hold_a_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot keep a journal here"):
        Journal(tmp_path / "file" / "journal", SystemDisk())


def test_the_lock_is_not_inherited_by_programs_we_start(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SystemDisk())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    journal.close()
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)
    child.communicate(b"\n")


# --- what a crash may leave ---------------------------------------------------------------------


def test_a_torn_tail_is_cut_at_every_byte_of_the_last_frame(tmp_path: Path) -> None:
    """Its remaining blocks never reached the disk."""
    [path] = written(tmp_path, [2, 3], 2048)
    whole = path.read_bytes()
    last = frame_starts(whole)[-1]
    for cut in range(last, last + bytes_of(3)):
        left = whole[:cut].ljust(len(whole), b"\0")
        overwrite(path, left)
        count = 5 if left == whole else 2  # a command's last bytes are zeros themselves
        assert recovered(tmp_path, 2048) == numbered(1, count), cut
    overwrite(path, whole)
    assert recovered(tmp_path, 2048) == numbered(1, 5)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_blocks_of_the_last_frame_may_be_missing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The kernel writes pages back in any order."""
    directory = tmp_path_factory.mktemp("torn")
    [path] = written(directory, [2, 300])
    whole = bytearray(path.read_bytes())
    last = frame_starts(bytes(whole))[-1]
    end = last + bytes_of(300)
    missing = data.draw(st.sets(st.integers(last // 512, (end - 1) // 512), min_size=1))
    for block in missing:
        start = max(block * 512, last)
        stop = min((block + 1) * 512, end)
        whole[start:stop] = bytes(stop - start)
    overwrite(path, bytes(whole))
    assert recovered(directory) == numbered(1, 2)


def test_nothing_a_torn_frame_holds_looks_like_a_later_frame(tmp_path: Path) -> None:
    """Every field a trader or settlement can choose says a frame's magic, count and sequence."""
    magic = int.from_bytes(FRAME_MAGIC, "little")
    hostile = [
        Command(
            sequence=3 + i,
            time_ns=4,
            client_id=magic,
            order_id=magic,
            price_ticks=magic - (1 << 64),
            qty_lots=int.from_bytes(FRAME_MAGIC[:4], "little", signed=True),
            expiry_s=magic >> 32,
            account=magic & 0xFFFFFFFF,
            instrument=magic >> 32,
            kind=CommandKind.OPEN_ACCOUNT,
        )
        for i in range(8)
    ]
    journal = Journal(tmp_path, SystemDisk(), SMALL)
    list(journal.recover())
    journal.append(numbered(1, 2))
    journal.append(b"".join(c.pack() for c in hostile))
    journal.close()
    [path] = segments(tmp_path)[0]
    whole = path.read_bytes()
    assert len(frame_starts(whole)) == 2
    last = frame_starts(whole)[-1]
    for lost in range(last, last + bytes_of(8), 8):
        overwrite(path, whole[:lost] + bytes(8) + whole[lost + 8 :])
        found = recovered(tmp_path)
        assert found[: 2 * COMMAND_BYTES] == numbered(1, 2)
        assert len(found) == 2 * COMMAND_BYTES or whole[lost : lost + 8] == bytes(8)


def test_a_crash_between_making_a_segment_and_its_header_loses_nothing(tmp_path: Path) -> None:
    for size in (0, 100, SMALL):
        directory = tmp_path / str(size)
        written(directory, [10] * 5)
        unborn = directory / f"{51:020d}.cxj"
        unborn.write_bytes(bytes(size))
        assert b"".join(f.commands.tobytes() for f in read(directory)) == numbered(1, 50)
        assert recovered(directory) == numbered(1, 50)
        assert not unborn.exists()


def test_a_header_cut_short_anywhere_is_that_of_a_segment_without_commands(tmp_path: Path) -> None:
    paths = written(tmp_path, [400, 700])
    header = paths[-1].read_bytes()[:HEADER_BYTES]
    paths[-1].unlink()
    for length in range(HEADER_BYTES):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / paths[0].name).write_bytes(paths[0].read_bytes())
        (directory / paths[-1].name).write_bytes(header[:length].ljust(SMALL, b"\0"))
        assert b"".join(f.commands.tobytes() for f in read(directory)) == numbered(1, 400)
        assert recovered(directory) == numbered(1, 400)


def test_a_last_segment_that_is_shorter_than_it_was_made_is_a_cut_copy(tmp_path: Path) -> None:
    """No crash leaves one: its bytes were there before its header. Even a cut between two frames
    would silently take every later one."""
    [path] = written(tmp_path, [2, 3], 2048)
    whole = path.read_bytes()
    for length in (1, HEADER_BYTES - 1, HEADER_BYTES, *frame_starts(whole), 2047):
        overwrite(path, whole[:length])
        with pytest.raises(DamagedJournal, match=r"header at offset 0|a copy that was cut"):
            list(read(tmp_path))
        with pytest.raises(DamagedJournal), closing(Journal(tmp_path, SystemDisk(), 2048)) as it:
            list(it.recover())
        assert path.read_bytes() == whole[:length], "nothing is cut, nothing is deleted"
    overwrite(path, whole)
    assert recovered(tmp_path, 2048) == numbered(1, 5)


def test_a_journal_of_the_format_that_states_no_size_is_read_and_goes_on(tmp_path: Path) -> None:
    [path] = written(tmp_path, [2, 3], 2048)
    whole = path.read_bytes()
    layout = whole[10:12]
    older = whole[:8] + b"\2\0\0\0" + layout + b"\0\0" + whole[16:48]
    overwrite(path, older + j.digest_of(older) + whole[64:])
    assert recovered(tmp_path, 2048) == numbered(1, 5)


def test_a_header_without_commands_that_is_whole_and_wrong_is_damage(tmp_path: Path) -> None:
    [path] = written(tmp_path, [])
    whole = path.read_bytes()
    for at in range(HEADER_BYTES):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        if damaged[HEADER_BYTES - 1] == 0:
            continue
        overwrite(path, bytes(damaged))
        with pytest.raises(DamagedJournal, match="header at offset 0"):
            halted(tmp_path)


def test_a_crash_before_the_very_first_header_starts_over(tmp_path: Path) -> None:
    (tmp_path / f"{1:020d}.cxj").write_bytes(bytes(SMALL))
    assert recovered(tmp_path) == b""


class RecordingDisk(SystemDisk):
    """Notes which bytes were written again before a sync."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, int]] = []

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self.calls.append(("write", bytes(data), offset))
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.calls.append(("sync", b"", 0))
        super().sync(fd)


def test_the_last_frame_is_made_durable_before_anybody_hears_of_it(tmp_path: Path) -> None:
    """Its writer may have been killed before its sync, or have stopped because of it."""
    [path] = written(tmp_path, [2, 3])
    whole = path.read_bytes()
    last = frame_starts(whole)[-1]
    disk = RecordingDisk()
    journal = Journal(tmp_path, disk, SMALL)
    frames = journal.recover()
    assert next(frames).first_sequence == 1
    assert disk.calls == [("write", whole[last : last + bytes_of(3)], last), ("sync", b"", 0)]
    assert [f.first_sequence for f in frames] == [3]
    journal.close()


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """One segment of frames with 1, 2 and 1 commands; the path and its bytes."""
    directory = tmp_path_factory.mktemp("damage")
    [path] = written(directory, [1, 2, 1], 1024)
    return path, path.read_bytes()


def _read_or_halt(path: Path, data: bytes) -> bytes:
    overwrite(path, data)
    return b"".join(f.commands.tobytes() for f in read(path.parent))


def test_every_flipped_bit_before_the_last_frame_halts_with_file_and_offset(
    three_frames: tuple[Path, bytes],
) -> None:
    path, whole = three_frames
    starts = [0, *frame_starts(whole)]
    for at in range(starts[-1]):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            with pytest.raises(JournalError) as caught:
                _read_or_halt(path, bytes(damaged))
            frame = max(start for start in starts if start <= at)
            assert f"{path}: " in str(caught.value)
            assert f"offset {frame}" in str(caught.value), (at, bit)


def test_a_bit_flipped_in_the_last_frame_or_behind_it_is_never_read(
    three_frames: tuple[Path, bytes],
) -> None:
    path, whole = three_frames
    for at in range(frame_starts(whole)[-1], len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        in_frame = at < frame_starts(whole)[-1] + bytes_of(1)
        assert _read_or_halt(path, bytes(damaged)) == numbered(1, 3 if in_frame else 4)


def test_frames_cannot_be_dropped_moved_or_repeated(three_frames: tuple[Path, bytes]) -> None:
    path, whole = three_frames
    a, b, c = frame_starts(whole)
    end = c + bytes_of(1)
    first, second, third = whole[a:b], whole[b:c], whole[c:end]
    head = whole[:a]
    for changed in (
        first + third,
        second + third,
        third,
        first + third + second,
        first + first + second + third,
        first + second + third + third,
        first + second + second,
        first + bytes(len(second)) + third,
        bytes(len(first)) + second + third,
    ):
        with pytest.raises(DamagedJournal):
            _read_or_halt(path, (head + changed).ljust(len(whole), b"\0"))


def test_a_lost_block_of_many_frames_halts(tmp_path: Path) -> None:
    [path] = written(tmp_path, [1] * 200)
    whole = path.read_bytes()
    for start in range(0, frame_starts(whole)[-1] - 4096, 4096):
        damaged = whole[:start] + bytes(4096) + whole[start + 4096 :]
        with pytest.raises(DamagedJournal):
            _read_or_halt(path, damaged)
        with pytest.raises(DamagedJournal):
            halted(tmp_path)
        assert path.read_bytes() == damaged, "nothing is cut, nothing is deleted"


def test_a_segment_whose_header_is_lost_is_never_deleted(tmp_path: Path) -> None:
    first, last = written(tmp_path, [400, 800], SMALL)
    whole = last.read_bytes()
    overwrite(last, bytes(HEADER_BYTES) + whole[HEADER_BYTES:])
    with pytest.raises(DamagedJournal, match="header at offset 0"):
        halted(tmp_path)
    assert last.exists()
    assert first.exists()


def test_bytes_further_behind_than_any_frame_are_damage(tmp_path: Path) -> None:
    [path] = written(tmp_path, [1], 1 << 20)
    whole = bytearray(path.read_bytes())
    whole[HEADER_BYTES + bytes_of(1) + FRAME_BYTES_MAX] = 1
    with pytest.raises(DamagedJournal, match="further than any frame"):
        _read_or_halt(path, bytes(whole))


def test_a_missing_or_cut_segment_halts(tmp_path: Path) -> None:
    paths = written(tmp_path, [100] * 40)
    contents = [path.read_bytes() for path in paths]
    for i in range(len(paths) - 1):
        paths[i].unlink()
        with pytest.raises(DamagedJournal, match="offset 0"):
            list(read(tmp_path))
        paths[i].write_bytes(contents[i])
    ends = [HEADER_BYTES, frame_starts(contents[1])[-1], frame_starts(contents[1])[-1] + 100]
    for length in ends:
        for left in (contents[1][:length], contents[1][:length].ljust(SMALL, b"\0")):
            overwrite(paths[1], left)
            with pytest.raises(DamagedJournal):
                list(read(tmp_path))


def test_a_torn_tail_is_allowed_in_the_last_segment_only(tmp_path: Path) -> None:
    paths = written(tmp_path, [100] * 40)
    whole = paths[0].read_bytes()
    end = frame_starts(whole)[-1] + bytes_of(100)
    overwrite(paths[0], whole[:end] + b"\1" + whole[end + 1 :])
    with pytest.raises(DamagedJournal, match="a later segment follows"):
        list(read(tmp_path))


@pytest.mark.parametrize(("offset", "name"), [(8, "format"), (10, "layout")])
def test_another_format_or_layout_is_refused_with_both_numbers(
    tmp_path: Path, offset: int, name: str
) -> None:
    [path] = written(tmp_path, [1])
    whole = bytearray(path.read_bytes())
    whole[offset] = 77
    whole[48:64] = j.digest_of(bytes(whole[:48]))
    with pytest.raises(JournalError, match=f"{name} 77.*this build reads") as caught:
        _read_or_halt(path, bytes(whole))
    assert not isinstance(caught.value, DamagedJournal)


@given(st.binary(max_size=4096))
@settings(max_examples=200, deadline=None)
def test_any_bytes_at_all_raise_only_documented_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("noise")
    (directory / f"{1:020d}.cxj").write_bytes(data)
    try:
        frames = list(read(directory))
    except JournalError:
        return
    assert frames == []


# --- failing disks ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["write", "sync", "create"])
def test_after_an_error_of_the_disk_nothing_is_appended_again(
    tmp_path: Path, call: str, error: int
) -> None:
    disk = FailingDisk(error)
    journal = Journal(tmp_path, disk, 1024)
    list(journal.recover())
    journal.append(numbered(1, 10))
    disk.fail_at = (call, 0)
    with pytest.raises(JournalError, match=os.strerror(error)):
        journal.append(numbered(11, 10))  # in a new segment
    disk.fail_at = ("", 0)
    with pytest.raises(JournalError, match="nothing more is taken"):
        journal.append(numbered(11, 10))
    assert disk.calls_after_failure == [], "a failed disk is not asked again"
    journal.close()
    assert recovered(tmp_path, 1024) == numbered(1, 10)


def test_a_disk_that_fails_at_the_start_is_said_as_the_journals_error(tmp_path: Path) -> None:
    for call in ("create", "write", "sync"):
        disk = FailingDisk()
        disk.fail_at = (call, 0)
        journal = Journal(tmp_path / call, disk, SMALL)
        with pytest.raises(JournalError, match="disk failed"):
            list(journal.recover())
        journal.close()
        assert recovered(tmp_path / call) == b""


def test_each_header_carries_the_digest_of_the_frame_before_it(tmp_path: Path) -> None:
    before = bytes(16)
    for path in written(tmp_path, [100] * 20):
        data = path.read_bytes()
        assert data[32:48] == before
        for start in frame_starts(data):
            assert data[start + 32 : start + 48] == before
            before = data[start + 48 : start + 64]
