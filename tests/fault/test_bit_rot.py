"""Every bit of a segment flipped, and a segment cut at every byte: never read as if it were whole.

The segment is one of the sizes in which kills are tried, filled with frames as trading fills them.
Where a later segment follows, all of it is vouched for. In the last segment the very last frame is
in doubt, as nothing tells its damage from a write that a crash broke off, and so is a file without
any byte; the notes in the closing table say how many bits and lengths that is.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import pytest

from benchmarks.workload import order_flow
from engine.journal import (
    ALIGNMENT,
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Journal,
    SystemDisk,
    read,
)
from engine.records import COMMAND
from engine.rejects import JournalError
from tests.promises import Trial, tries

SEED: Final = 5
SEGMENT_BYTES: Final = 1 << 16
GROUP_COMMANDS_MAX: Final = 64
# Coprime to both numbers of places, so that small budgets are spread over the whole segment.
STRIDE: Final = 40_503


class Segment(NamedTuple):
    """A segment's file, what is in it, and whether it is the last of its journal."""

    path: Path
    whole: bytes
    last_frame: int  # its offset
    end: int  # offset behind it
    commands: bytes  # of the whole journal
    doubted: bytes  # of them, what the last frame of the journal holds
    is_last: bool

    def found(self) -> bytes | None:
        """The commands a reader finds now; None if it halts."""
        try:
            return b"".join(frame.commands.tobytes() for frame in read(self.path.parent))
        except JournalError:
            return None


def written(directory: Path, *, is_last: bool) -> Segment:
    """A journal whose first segment is full; unless it is the last, a frame is in the next."""
    flow = order_flow(SEED, SEGMENT_BYTES // COMMAND.itemsize)
    journal = Journal(directory, SystemDisk(), SEGMENT_BYTES)
    list(journal.recover())
    random = Random(SEED)
    at, end, start, last = 0, HEADER_BYTES, HEADER_BYTES, b""
    while True:
        count = random.randint(1, GROUP_COMMANDS_MAX)
        length = FRAME_HEADER_BYTES + count * COMMAND.itemsize
        fits = end + length <= SEGMENT_BYTES
        if not fits and is_last:
            break
        last = flow[at : at + count].tobytes()
        journal.append(last)
        at += count
        if not fits:
            break
        start, end = end, end + length
    journal.close()
    paths = sorted(directory.glob("*.cxj"))
    assert len(paths) == 1 + (not is_last)
    whole = paths[0].read_bytes()
    assert len(whole) == SEGMENT_BYTES and end > SEGMENT_BYTES - GROUP_COMMANDS_MAX * ALIGNMENT * 2
    return Segment(paths[0], whole, start, end, flow[:at].tobytes(), last, is_last)


@contextmanager
def flipped(segment: Segment, bit: int) -> Generator[None]:
    at = bit // 8
    fd = os.open(segment.path, os.O_RDWR)
    try:
        os.pwrite(fd, bytes([segment.whole[at] ^ 1 << bit % 8]), at)
        yield
        os.pwrite(fd, segment.whole[at : at + 1], at)
    finally:
        os.close(fd)


@pytest.fixture(params=[True, False], ids=["the-last-segment", "one-before-it"])
def segment(request: pytest.FixtureRequest, tmp_path: Path) -> Segment:
    return written(tmp_path, is_last=request.param)


@tries("bits")
def test_a_flipped_bit_is_never_read(segment: Segment, trial: Trial) -> None:
    in_doubt = 0
    for n in trial.each(range(trial.budget)):
        bit = n * STRIDE % (SEGMENT_BYTES * 8)
        with flipped(segment, bit):
            found = segment.found()
        if segment.is_last and bit // 8 >= segment.end:
            assert found == segment.commands, f"bit {bit}: nothing is there yet"
        elif segment.is_last and bit // 8 >= segment.last_frame:
            in_doubt += 1
            assert found == segment.commands.removesuffix(segment.doubted), f"bit {bit}"
        else:
            assert found is None, f"bit {bit} was not found out"
    assert segment.path.read_bytes() == segment.whole
    if segment.is_last:
        assert in_doubt
        trial.note = f"in doubt: {in_doubt:,} bits of a journal's very last frame, cut as torn"


@tries("cuts")
def test_a_segment_cut_short_is_never_read_as_whole(segment: Segment, trial: Trial) -> None:
    lengths = [n * STRIDE % SEGMENT_BYTES for n in range(trial.budget)]
    for length in trial.each(sorted(lengths, reverse=True)):
        os.truncate(segment.path, length)
        found = segment.found()
        if length > 0 or not segment.is_last:
            assert found is None, f"cut at {length}, and not found out"
        else:
            assert found == b"", "as a crash leaves it that came before anything was written"
            trial.note = "in doubt: 1 length, of a last segment without any byte"
