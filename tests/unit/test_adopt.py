"""A journal of another build is not written to until that build's commands were replayed with this
one; wherever that is cut off, no command is lost and the way on is said."""

import errno
from contextlib import closing
from pathlib import Path

import pytest

from engine.book import StateArray
from engine.journal import BUILD, Journal, SystemDisk, read, scan, segments
from engine.records import COMMAND
from engine.rejects import JournalError
from engine.replay import adopt, verify
from tests.disks import FailingDisk, numbered

OLD = "0123456789abcdef"
OLDER = "fedcba9876543210"
SMALL = 1 << 11


def written(directory: Path, groups: int, build: str = OLD) -> None:
    """Groups of ten commands, continuing what is there."""
    with closing(Journal(directory, SystemDisk(), SMALL, build)) as journal:
        last = sum(len(frame.commands) for frame in journal.recover())
        for _ in range(groups):
            journal.append(numbered(last + 1, 10))
            last += 10


def commands(directory: Path) -> bytes:
    return b"".join(frame.commands.tobytes() for frame in read(directory))


def builds(directory: Path) -> list[str]:
    return [segment.header.build for segment in scan(directory)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def opened(directory: Path, build: str = BUILD) -> bytes:
    with closing(Journal(directory, SystemDisk(), SMALL, build)) as journal:
        return b"".join(frame.commands.tobytes() for frame in journal.recover())


def test_another_builds_journal_is_refused_with_both_builds_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    written(tmp_path, 5)
    before = contents(tmp_path)
    with pytest.raises(JournalError) as refused:
        opened(tmp_path)
    for said in (OLD, BUILD, f"compex journal adopt {tmp_path}", str(segments(tmp_path)[0][-1])):
        assert said in str(refused.value)
    assert contents(tmp_path) == before
    assert commands(tmp_path) == opened(tmp_path, OLD) == numbered(1, 50)


def test_the_last_segments_build_alone_decides(tmp_path: Path) -> None:
    written(tmp_path, 5, OLDER)
    assert adopt(tmp_path, SystemDisk(), OLD).old_build == OLDER
    written(tmp_path, 5, OLD)
    assert set(builds(tmp_path)) == {OLD, OLDER}
    assert opened(tmp_path, OLD) == numbered(1, 100)
    with pytest.raises(JournalError, match=f"of build {OLD}, this is build {BUILD}"):
        opened(tmp_path)


def test_an_adopted_journal_has_the_same_commands_and_goes_on_with_this_build(
    tmp_path: Path,
) -> None:
    written(tmp_path, 5)
    old = verify(tmp_path)
    adopted = adopt(tmp_path, SystemDisk())
    assert (adopted.old_build, adopted.new_build) == (OLD, BUILD)
    assert adopted.replayed[:3] == old[:3]
    assert builds(tmp_path) == [OLD] * (len(builds(tmp_path)) - 1) + [BUILD]
    written(tmp_path, 5, BUILD)
    assert commands(tmp_path) == numbered(1, 100)
    assert verify(tmp_path).sequence == 100
    with pytest.raises(JournalError, match=f"of build {BUILD}, this is build {OLD}"):
        opened(tmp_path, OLD)


def test_adopting_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    written(tmp_path, 3)
    adopt(tmp_path, SystemDisk())
    before = contents(tmp_path)
    again = adopt(tmp_path, SystemDisk())
    assert again.old_build == again.new_build == BUILD
    assert contents(tmp_path) == before


def test_a_journal_that_is_written_is_not_adopted(tmp_path: Path) -> None:
    written(tmp_path, 3)
    with (
        closing(Journal(tmp_path, SystemDisk(), SMALL, OLD)),
        pytest.raises(JournalError, match="another process writes this journal"),
    ):
        adopt(tmp_path, SystemDisk())


@pytest.mark.parametrize("groups", [0, 3])
def test_a_segment_without_commands_is_replaced(tmp_path: Path, groups: int) -> None:
    """As a crash right after a segment was started leaves it, or an adoption without trading."""
    written(tmp_path, groups, OLDER)
    adopt(tmp_path, SystemDisk(), OLD)
    assert builds(tmp_path)[-1] == OLD
    count = len(builds(tmp_path))
    adopt(tmp_path, SystemDisk())
    assert builds(tmp_path)[-1] == BUILD and len(builds(tmp_path)) == count
    assert opened(tmp_path) == numbered(1, 10 * groups)


def test_a_torn_tail_is_cut_before_a_segment_follows_it(tmp_path: Path) -> None:
    written(tmp_path, 2)
    path = segments(tmp_path)[0][-1]
    data = path.read_bytes()
    path.write_bytes(data[: len(data.rstrip(b"\0")) - 40].ljust(len(data), b"\0"))
    assert commands(tmp_path) == numbered(1, 10)
    assert adopt(tmp_path, SystemDisk()).replayed.sequence == 10
    assert opened(tmp_path) == numbered(1, 10)


def test_a_state_that_breaks_an_invariant_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 2)
    before = contents(tmp_path)

    def broken(_state: StateArray) -> None:
        raise AssertionError("money is not conserved")

    monkeypatch.setattr("engine.invariants.check_invariants", broken)
    with pytest.raises(JournalError, match=r"breaks an invariant.*money is not conserved"):
        adopt(tmp_path, SystemDisk())
    assert contents(tmp_path) == before


def test_a_damaged_journal_is_not_adopted(tmp_path: Path) -> None:
    written(tmp_path, 5)
    path = segments(tmp_path)[0][0]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(bytes(data))
    before = contents(tmp_path)
    with pytest.raises(JournalError, match="damaged at offset 64"):
        adopt(tmp_path, SystemDisk())
    assert contents(tmp_path) == before


class CuttingDisk(FailingDisk):
    """A crash: after the failing call nothing reaches the disk, and what it had half done stays."""

    def create(self, path: Path, size: int) -> int:
        if self.fail_at == ("create", 0):
            path.write_bytes(bytes(size))  # it is there, and its header never comes
        return super().create(path, size)


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("disk_type", [FailingDisk, CuttingDisk])
def test_an_adoption_cut_off_at_any_call_can_be_done_again(
    tmp_path: Path, disk_type: type[FailingDisk], groups: int
) -> None:
    """0: the last segment has a header alone, and is itself replaced."""
    cut = 0
    for call in ("open", "create", "write", "sync"):
        for succeed in range(9):
            directory = tmp_path / f"{call}-{succeed}"
            written(directory, 4, OLDER)
            adopt(directory, SystemDisk(), OLD)
            written(directory, groups)
            whole = numbered(1, 40 + 10 * groups)
            disk = disk_type(errno.EIO)
            disk.fail_at = (call, succeed)
            try:
                adopt(directory, disk)
                break
            except JournalError:
                cut += 1
            assert commands(directory) == whole
            if builds(directory)[-1] != BUILD:
                with pytest.raises(JournalError, match="compex journal adopt"):
                    opened(directory)
            assert adopt(directory, SystemDisk()).new_build == BUILD
            assert opened(directory) == whole
            written(directory, 2, BUILD)
            assert commands(directory) == numbered(1, len(whole) // COMMAND.itemsize + 20)
        else:
            pytest.fail("there are fewer calls than this")
    assert cut == 6, "open, create, two writes and two syncs"


def test_a_crash_that_loses_the_new_header_can_be_done_again(tmp_path: Path) -> None:
    """The new segment's blocks are allocated, and the power fails before its header is there."""
    written(tmp_path, 3)
    adopt(tmp_path, SystemDisk())
    last = segments(tmp_path)[0][-1]
    for size in (0, 64, SMALL):
        last.write_bytes(bytes(size))
        with pytest.raises(JournalError, match=f"of build {OLD}, this is build {BUILD}"):
            opened(tmp_path)
        assert last.stat().st_size == size, "a refused writer deletes nothing"
        assert adopt(tmp_path, SystemDisk()).old_build == OLD
        assert opened(tmp_path) == numbered(1, 30)
