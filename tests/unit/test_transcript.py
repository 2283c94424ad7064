"""A journal as text: everything that is in it, in order, and what is wrong with it, where it is."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workload import order_flow
from engine import journal as j
from engine.journal import FRAME_HEADER_BYTES, HEADER_BYTES, Journal, SystemDisk, segments
from engine.kernel import build_hash
from engine.records import COMMAND, LAYOUT_VERSION, Command, CommandKind, command_array
from engine.transcript import NAMES, command_text, field_bytes, transcript
from gateway.cli import main
from gateway.ending import Ending
from tests.disks import numbered

SMALL = 1 << 12


def written(directory: Path, *groups: bytes) -> list[Path]:
    with closing(Journal(directory, SystemDisk(), SMALL)) as journal:
        assert list(journal.recover()) == []
        for group in groups:
            journal.append(group)
    return segments(directory)[0]


def text_of(**fields: int) -> str:
    return command_text(command_array([Command(sequence=7, **fields)]))


def test_a_command_is_its_sequence_its_kind_and_what_is_not_zero() -> None:
    assert (
        text_of(kind=CommandKind.CANCEL, account=3, order_id=9) == "7 CANCEL order_id=9 account=3"
    )
    assert text_of(kind=CommandKind.MASS_QUOTE, parts=2) == "7 MASS_QUOTE parts=2"
    assert text_of(kind=250, price_ticks=-1) == "7 KIND_250 price_ticks=-1"


def test_the_kind_says_what_bytes_that_are_shared_mean() -> None:
    deposit = text_of(kind=CommandKind.DEPOSIT, client_id=4, price_ticks=10, account=1, side=1)
    assert deposit == "7 DEPOSIT reference=4 amount_usdc6=10 account=1 side=1"
    iceberg = text_of(kind=CommandKind.NEW_ORDER, order_id=5 | 6 << 32, price_ticks=2)
    assert iceberg == "7 NEW_ORDER display_lots=5 min_lots=6 price_ticks=2"
    fees = text_of(kind=CommandKind.SET_FEES, order_id=200 | 500 << 16, side=3)
    assert fees == "7 SET_FEES maker_fee_ppm=200 taker_fee_ppm=500 fee_tier=3"
    owner = int.from_bytes(bytes([0xAB] * 8), "little")
    assert text_of(kind=CommandKind.OPEN_ACCOUNT, order_id=owner).endswith(
        "owner=0x" + "ab" * 8 + "00" * 12
    )


@pytest.mark.parametrize("kind", [*CommandKind, 0, 250])
def test_no_byte_of_a_command_is_kept_from_the_reader(kind: int) -> None:
    """Whichever byte alone is not zero, exactly one field speaks of it, or the sequence or kind."""
    for byte in range(COMMAND.itemsize):
        raw = bytearray(COMMAND.itemsize)
        raw[56] = kind
        plain = command_text(np.frombuffer(bytes(raw), COMMAND))
        raw[byte] = kind if byte == 56 else 1
        text = command_text(np.frombuffer(bytes(raw), COMMAND))
        spoken = len(text.split()) - len(plain.split())
        assert spoken == (0 if byte < 8 or byte == 56 else 1), (byte, text)
        assert text != plain or byte == 56


def test_the_names_of_a_kind_do_not_overlap() -> None:
    for kind, names in NAMES.items():
        taken = [byte for name in names for byte in field_bytes(name)]
        assert len(taken) == len(set(taken)), kind


def test_every_segment_frame_and_command_has_its_line(tmp_path: Path) -> None:
    flow = order_flow(3, 120)
    groups = [flow[start : start + 40].tobytes() for start in range(0, 120, 40)]
    paths = written(tmp_path, *groups)
    assert len(paths) == 3
    lines = list(transcript(tmp_path))
    heads = [line for line in lines if line.startswith("segment")]
    assert heads == [
        f"segment {path.name} format={j.FORMAT_VERSION} layout={LAYOUT_VERSION} "
        f"build={build_hash()} first_sequence={first}"
        for path, first in zip(paths, (1, 41, 81), strict=True)
    ]
    frames = [line for line in lines if line.startswith("  frame")]
    assert frames == [f"  frame offset=64 first_sequence={n} count=40" for n in (1, 41, 81)]
    commands = [line.strip() for line in lines if line.startswith("    ")]
    assert commands == [command_text(flow[i : i + 1]) for i in range(120)]


def test_a_range_shows_its_commands_alone(tmp_path: Path) -> None:
    written(tmp_path, numbered(1, 3), numbered(4, 3), numbered(7, 3))
    lines = list(transcript(tmp_path, 3, 5))
    assert [line.split()[0] for line in lines if line.startswith("    ")] == ["3", "4", "5"]
    assert [line for line in lines if line.startswith("  frame")] == [
        f"  frame offset={HEADER_BYTES} first_sequence=1 count=3",
        f"  frame offset={HEADER_BYTES + FRAME_HEADER_BYTES + 3 * 64} first_sequence=4 count=3",
    ]


def test_a_journal_that_is_being_written_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, SystemDisk(), SMALL)) as journal:
        assert list(journal.recover()) == []
        journal.append(numbered(1, 2))
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert [line.split()[0] for line in transcript(tmp_path)][-2:] == ["1", "2"]
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        journal.append(numbered(3, 1))
    assert list(transcript(tmp_path))[-1].split()[0] == "3"


def test_frames_written_while_the_file_is_read_are_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first read sees the third frame and not the second; the next ones see a bit more."""
    [path] = written(tmp_path, *(numbered(n, 1) for n in range(1, 7)))
    whole = path.read_bytes()
    frame = FRAME_HEADER_BYTES + 64
    seen: list[bytes] = []
    for missing in (2, 4):
        gap = HEADER_BYTES + (missing - 1) * frame
        end = gap + 2 * frame
        read = whole[:gap] + bytes(frame) + whole[gap + frame : end]
        seen.append(read.ljust(len(whole), b"\0"))
    seen.append(whole)

    def read_file(_path: Path) -> bytes:
        return seen.pop(0)

    monkeypatch.setattr(j, "_read_file", read_file)
    assert [line.split()[0] for line in transcript(tmp_path)][-1] == "6"
    assert seen == []


def test_a_torn_tail_is_shown_and_is_no_damage(tmp_path: Path) -> None:
    [path] = written(tmp_path, numbered(1, 2), numbered(3, 2))
    whole = path.read_bytes()
    last = whole.rfind(j.FRAME_MAGIC)
    path.write_bytes(whole[: last + 100].ljust(len(whole), b"\0"))
    assert list(transcript(tmp_path))[-1].startswith(f"  tail offset={last} bytes=")


def test_a_segment_that_was_only_made_is_shown(tmp_path: Path) -> None:
    written(tmp_path, numbered(1, 2))
    (tmp_path / f"{3:020d}.cxj").write_bytes(bytes(SMALL))
    assert list(transcript(tmp_path))[-1].startswith(f"segment {3:020d}.cxj without a whole header")


def test_damage_is_told_with_file_and_offset_after_all_that_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = written(tmp_path, numbered(1, 2), numbered(3, 2), numbered(5, 2))
    data = bytearray(path.read_bytes())
    second = HEADER_BYTES + FRAME_HEADER_BYTES + 2 * 64
    data[second + 70] ^= 1
    path.write_bytes(bytes(data))
    assert main(["journal", "inspect", str(tmp_path)]) == Ending.DAMAGED
    *good, reason = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in good if line.startswith("    ")] == ["1", "2"]
    assert f"{path}: damaged at offset {second}, in the frame of sequence 3" in reason
    assert "a later frame stands at offset" in reason
    assert path.read_bytes() == data


def test_the_command_prints_the_range_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "journal", numbered(1, 9))
    assert main(["journal", "inspect", str(tmp_path), "--from", "4", "--to", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["4", "CANCEL"], ["5", "CANCEL"]]
