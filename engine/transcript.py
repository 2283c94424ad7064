"""A journal as text: a line for each segment, each frame in it and each command in that.

For people who look for what happened, or for what is wrong with a file. Invariant: nothing is
written, and a line says every byte of its command that is not zero; where fields share bytes, the
kind decides which names apply. `compex journal inspect` prints it, also while a node writes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from engine import journal
from engine.journal import Frame, Segment
from engine.records import COMMAND, Command, CommandArray, CommandKind

# The fields of each kind that share bytes with those of an order, and mean something else.
NAMES: Final[dict[int, tuple[str, ...]]] = {
    CommandKind.NEW_ORDER: ("display_lots", "min_lots"),
    CommandKind.NEW_STOP: ("stop_ticks",),
    CommandKind.WITHDRAW: ("amount_usdc6",),
    CommandKind.OPEN_ACCOUNT: ("owner",),
    CommandKind.DEPOSIT: ("reference", "amount_usdc6"),
    CommandKind.CONFIRM_ESCROW: ("reference", "amount_usdc6"),
    CommandKind.CONFIRM_WITHDRAWAL: ("reference", "amount_usdc6"),
    CommandKind.CANCEL_WITHDRAWAL: ("reference", "amount_usdc6"),
    CommandKind.VOID_FILL: ("reference", "counter_account", "void_number", "buyer_fee_ppm"),
    CommandKind.CONFIRM_EXIT: ("reference", "amount_usdc6"),
    CommandKind.END_LEASES: ("reference", "amount_usdc6", "bond_usdc6"),
    CommandKind.LIST_MARKET: (
        "product", "bond_usdc6_per_lot", "lot_multiple", "closes_s", "opens_s", "closing_call_s",
    ),
    CommandKind.SET_BANDS: ("static_ppm", "dynamic_ppm", "call_seconds"),
    CommandKind.SET_FEES: ("maker_fee_ppm", "taker_fee_ppm", "fee_tier"),
    CommandKind.SET_FEE_TIER: ("fee_tier",),
}  # fmt: skip
_FIELDS: Final = cast("Mapping[str, Any]", COMMAND.fields)
_PLAIN: Final = tuple(name for name in Command._fields if name not in ("sequence", "kind"))
_NO_SEQUENCE: Final = 1 << 64


def field_bytes(name: str) -> range:
    """The bytes of a field in its command."""
    form, offset = _FIELDS[name][:2]
    return range(offset, offset + form.itemsize)


def _columns(kind: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The fields of this kind, each with the bytes that it is shown for: those of its own names,
    then the plain ones, for what those leave over."""
    own = NAMES.get(kind, ())
    covered = {byte for name in own for byte in field_bytes(name)}
    left = (
        (name, tuple(byte for byte in field_bytes(name) if byte not in covered)) for name in _PLAIN
    )
    return tuple((name, tuple(field_bytes(name))) for name in own) + tuple(
        (name, over) for name, over in left if over
    )


_COLUMNS: Final = {kind: _columns(kind) for kind in range(256)}
_KINDS: Final = {int(kind): kind.name for kind in CommandKind}


def command_text(command: CommandArray) -> str:
    """One command as its sequence, its kind and each field that is not zero.

    command: shape (1,), dtype COMMAND.
    """
    raw = command.tobytes()
    kind = int(command["kind"][0])
    said = [str(int(command["sequence"][0])), _KINDS.get(kind, f"KIND_{kind}")]
    for name, shown_for in _COLUMNS[kind]:
        if any(raw[byte] for byte in shown_for):
            value = command[name][0]
            said.append(f"{name}={'0x' + value.tobytes().hex() if name == 'owner' else value}")
    return " ".join(said)


def _segment_line(segment: Segment) -> str:
    header = segment.header
    return (
        f"segment {segment.path.name} format={header.form} layout={header.layout} "
        f"build={header.build} first_sequence={header.first_sequence}"
    )


def _frame_lines(frame: Frame, first: int, last: int) -> Iterator[str]:
    start = max(first - frame.first_sequence, 0)
    wanted = frame.commands[start : max(last - frame.first_sequence + 1, 0)]
    if len(wanted) == 0:
        return
    yield (
        f"  frame offset={frame.offset} first_sequence={frame.first_sequence} "
        f"count={len(frame.commands)}"
    )
    for place in range(len(wanted)):
        yield f"    {command_text(wanted[place : place + 1])}"


def transcript(directory: Path, first: int = 1, last: int = _NO_SEQUENCE) -> Iterator[str]:
    """The lines of a journal, of the sequences `first` to `last` and every segment's header.

    The whole journal is checked, whatever part is wanted. Raises JournalError after the last line
    that is good.
    """
    for segment in journal.scan(directory, journal.oldest(directory)):
        yield _segment_line(segment)
        for frame in segment.frames:
            yield from _frame_lines(frame, first, last)
        segment.check()
        if segment.torn_bytes:
            yield (
                f"  tail offset={segment.end} bytes={segment.torn_bytes}: no whole frame; "
                "torn by a crash, or being written"
            )
    if (unborn := journal.segments(directory)[1]) is not None:
        yield f"segment {unborn.name} without a whole header: made, and no command in it"
