"""The state as bytes: its hash, and files that keep it, so that a start need not begin at the first
command.

A snapshot is what a reader of the journal made of it up to a mark: the touched part of the state,
and under a name of its own what each part that listens to the engine wants to be given back.
Invariant: loading one and matching what the journal has behind the mark gives the same state, to
the last byte, as matching all of it. The hash covers every part of the state that commands ever
touched, and nothing of the machine it runs on. `replica`, `replay` and tests call.

    header, 192 B: magic 8, format 4, zero 4, sequence 8, events 8, sections 8, build 8,
                   chain 16, state's layout 16, state's hash 16, zeros, digest 16
    per section, 64 B: name 40, length 8, digest 16; then the sections, each padded to 64 B

The header's digest covers the table, too. A file has its name only when it is whole and durable;
whatever a crash leaves has another one, and the next writer removes it.
"""

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.book import CAPACITY, CAPACITY_SLOTS, LEASE, SELL, STATE, StateArray
from engine.journal import BUILD, DIGEST_BYTES, Disk, Mark, digest_of
from engine.kernel import int64, kernel, uint8, uint32
from engine.rejects import SnapshotError
from engine.reserve import find_capacity

FORMAT_VERSION: Final = 1
MAGIC: Final = b"CXSNAPSH"
_HEADER: Final = struct.Struct("<8sIIQQQ8s16s16s16s80x")
_SECTION: Final = struct.Struct("<40sQ16s")
HEADER_BYTES: Final = 192
ALIGNMENT: Final = 64
SECTIONS_MAX: Final = 256
# Of possible capacities, for which looking up each is quicker than looking through the table.
NAMES_MAX: Final = CAPACITY_SLOTS // 64
_STATE_PREFIX: Final = "state."  # of the names of the sections that are the state
assert _HEADER.size + DIGEST_BYTES == HEADER_BYTES
assert _SECTION.size == ALIGNMENT and HEADER_BYTES % ALIGNMENT == 0
assert STATE.fields is not None
_BOOKS_OFFSET: Final[int] = STATE.fields["books"][1]  # before it are the counters and the fees

Rows = NDArray[Any]  # of one of the state's arrays


def used_parts(state: StateArray) -> dict[str, Rows]:
    """The touched prefix of each array of the state, by name; capacities in table order."""
    parts = {name: state[name][0][:rows] for name, rows in _used_rows(state).items()}
    parts["capacities"] = parts["capacities"][_capacity_slots(state)]
    return parts


def _capacity_slots(state: StateArray) -> NDArray[np.uint32]:
    """The used ones, in order. The table is 32 MiB, most of it never touched by a small shard."""
    s = state[0]
    names = 2 * (int(s["account_high"]) + 1) * int(s["instrument_high"])
    if names <= NAMES_MAX:
        slots = np.zeros(1 + names, np.uint32)  # slot 0 is used by every buy
        found = _find_capacities(state, slots[1:])
        if found == s["capacities_used"]:
            return np.sort(slots[: 1 + found])
    return np.flatnonzero(state["capacities"][0]["key"]).astype(np.uint32)


@kernel
def _find_capacities(state: Any, slots: Any) -> Any:
    """Look up what each account may have in each market, declared or bought; how many it has."""
    s = state[0]
    found = int64(0)
    for i in range(len(slots)):
        owner = uint32(i // 2) % (s.account_high + uint32(1)) | uint32(LEASE) * uint32(i % 2)
        market = uint32(i // 2) // (s.account_high + uint32(1))
        slot = find_capacity(s, owner, market, uint8(SELL))
        if s.capacities[slot].key != 0:
            slots[found] = slot
            found += 1
    return found


def _used_rows(state: StateArray) -> dict[str, int]:
    """How many rows of each array were touched; of the capacities' hash table, all may be."""
    s = state[0]
    accounts = int(s["account_high"]) + 1
    leaves = int(s["leaf_high"]) + 1
    return {
        "books": int(s["instrument_high"]),
        "markets": int(s["instrument_high"]),
        "balances": accounts,
        "identities": accounts,
        "resting": accounts,
        "capacities": CAPACITY_SLOTS,
        "nodes": int(s["node_high"]) + 1,
        "leaves": leaves,
        "levels": leaves * 64,
        "orders": int(s["order_high"]) + 1,
        "quoting": accounts,
        "sheets": int(s["sheet_high"]) + 1,
    }


def _head(state: StateArray) -> NDArray[np.uint8]:
    return state.view(np.uint8)[:_BOOKS_OFFSET]


def state_hash(state: StateArray) -> str:
    """32 hex digits over the header and every touched record. O(state in use)."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    hasher.update(_head(state).tobytes())
    for name, part in used_parts(state).items():
        hasher.update(name.encode())
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(_bytes_of(part))
    return hasher.hexdigest()


def _bytes_of(part: Rows) -> memoryview:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


def _layout(dtype: np.dtype[Any]) -> str:
    """Every field with its place, so that no other layout has the same text."""
    if dtype.subdtype is not None:
        part, shape = dtype.subdtype
        return f"{shape}{_layout(part)}"
    if dtype.fields is None:
        return dtype.str
    fields = [f"{name}@{field[1]}:{_layout(field[0])}" for name, field in dtype.fields.items()]
    return f"{dtype.itemsize}({' '.join(fields)})"


STATE_LAYOUT: Final = digest_of(_layout(STATE).encode())
# And former ones, in which what is new was unused and 0.
READABLE_LAYOUTS: Final = (
    STATE_LAYOUT,
    bytes.fromhex("9740b129dce643bdf29bcaefcd112420"),
    bytes.fromhex("c4bb4005e38be78211647a69edc7bfc7"),
)


class Section(NamedTuple):
    offset: int
    length: int
    digest: bytes


class Snapshot(NamedTuple):
    """What a file says of itself; its sections are not read yet."""

    path: Path
    mark: Mark
    event_number: int  # of the last event before the mark
    build: str
    state_layout: bytes
    state_hash: str
    sections: dict[str, Section]

    @property
    def names(self) -> set[str]:
        """Of what other parts than the state gave it to keep."""
        return {name for name in self.sections if not name.startswith(_STATE_PREFIX)}


def paths(directory: Path) -> list[Path]:
    """The snapshots of a journal's directory, the newest first."""
    return sorted(directory.glob("*.cxs"), reverse=True)


def sequence_of(path: Path) -> int:
    """Of a snapshot's mark, by its name."""
    return int(path.stem)


def _state_sections(state: StateArray) -> dict[str, memoryview]:
    sections = {_STATE_PREFIX + name: _bytes_of(part) for name, part in used_parts(state).items()}
    sections[_STATE_PREFIX + "capacity_slots"] = _bytes_of(_capacity_slots(state).astype("<u4"))
    sections[_STATE_PREFIX + "head"] = _bytes_of(_head(state))
    return sections


def write(
    directory: Path,
    disk: Disk,
    mark: Mark,
    event_number: int,
    state: StateArray,
    kept: Mapping[str, bytes],
) -> Snapshot:
    """A new snapshot, durable on return. The state is that at the mark. Raises SnapshotError."""
    sections: dict[str, bytes | memoryview] = {**_state_sections(state), **kept}
    assert len(sections) <= SECTIONS_MAX
    offset = HEADER_BYTES + _SECTION.size * len(sections)
    table, placed = b"", dict[str, Section]()
    for name, section in sections.items():
        placed[name] = Section(offset, len(section), digest_of(section))
        table += _SECTION.pack(name.encode(), len(section), placed[name].digest)
        offset += len(section) + -len(section) % ALIGNMENT
    path = directory / f"{mark.sequence:020d}.cxs"
    snapshot = Snapshot(
        path, mark, event_number, BUILD, STATE_LAYOUT, state_hash(state), placed
    )  # fmt: skip
    partial = path.with_suffix(".partial")
    try:
        for left_over in directory.glob("*.partial"):
            left_over.unlink()
        fd = disk.create(partial, offset)
        try:
            disk.write(fd, _header(snapshot, table) + table, 0)
            for name, section in sections.items():
                disk.write(fd, section, placed[name].offset)
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.rename(partial, path)
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be written: {error}") from error
    return snapshot


def _header(snapshot: Snapshot, table: bytes) -> bytes:
    head = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        0,
        snapshot.mark.sequence,
        snapshot.event_number,
        len(snapshot.sections),
        bytes.fromhex(snapshot.build),
        snapshot.mark.chain,
        snapshot.state_layout,
        bytes.fromhex(snapshot.state_hash),
    )
    return head + digest_of(head, table)


def read(path: Path) -> Snapshot:
    """What the file says of itself, checked. Raises SnapshotError."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
                raise SnapshotError(f"{path}: the header at offset 0 is damaged")
            _, form, _, sequence, events, count, build, chain, layout, state = _HEADER.unpack(
                head[: _HEADER.size]
            )
            table = file.read(_SECTION.size * min(count, SECTIONS_MAX))
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read: {error}") from error
    if head[_HEADER.size :] != digest_of(head[: _HEADER.size], table):
        raise SnapshotError(f"{path}: the header at offset 0 is damaged")
    if form != FORMAT_VERSION:
        raise SnapshotError(
            f"{path}: written with format {form}, this build reads {FORMAT_VERSION}"
        )
    offset = HEADER_BYTES + len(table)
    sections: dict[str, Section] = {}
    for name, length, digest in _SECTION.iter_unpack(table):
        sections[name.rstrip(b"\0").decode()] = Section(offset, length, digest)
        offset += length + -length % ALIGNMENT
    if size != offset:
        raise SnapshotError(f"{path}: {size} bytes, it should have {offset}")
    mark = Mark(sequence, chain)
    return Snapshot(path, mark, events, build.hex(), layout, state.hex(), sections)


def check(snapshot: Snapshot) -> None:
    """Raises SnapshotError unless every section is what was written."""
    try:
        with snapshot.path.open("rb") as file:
            for name in snapshot.sections:
                _read(file, snapshot, name)
    except OSError as error:
        raise SnapshotError(f"{snapshot.path}: cannot be read: {error}") from error


def readable(directory: Path) -> Iterator[Snapshot]:
    """Those of a journal's directory that can be read, the newest first."""
    for path in paths(directory):
        with contextlib.suppress(SnapshotError):
            yield read(path)


def load(snapshot: Snapshot, state: StateArray) -> dict[str, bytes]:
    """Fill an empty state; what other parts gave to keep, by name.

    Raises SnapshotError, with the state in pieces: it must then be thrown away.
    """
    if snapshot.state_layout not in READABLE_LAYOUTS:
        raise SnapshotError(f"{snapshot.path}: its state has another layout than this build's")
    try:
        with snapshot.path.open("rb") as file:
            _read_into(file, snapshot, "head", _head(state))
            for name, rows in _used_rows(state).items():
                if name != "capacities":
                    _read_into(file, snapshot, name, state[name][0][:rows])
            slots = np.frombuffer(_read(file, snapshot, _STATE_PREFIX + "capacity_slots"), "<u4")
            capacities = _read(file, snapshot, _STATE_PREFIX + "capacities")
            state["capacities"][0][slots] = np.frombuffer(capacities, CAPACITY)
            return {name: _read(file, snapshot, name) for name in snapshot.names}
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise SnapshotError(f"{snapshot.path}: cannot be loaded: {error!r}") from error


def _read(file: BufferedReader, snapshot: Snapshot, name: str) -> bytes:
    section = snapshot.sections[name]
    file.seek(section.offset)
    data = file.read(section.length)
    if digest_of(data) != section.digest:
        raise SnapshotError(f"{snapshot.path}: damaged in the section {name}")
    return data


def _read_into(file: BufferedReader, snapshot: Snapshot, name: str, rows: Rows) -> None:
    """The same without a copy: into rows that lie one after the other."""
    name = _STATE_PREFIX + name
    section = snapshot.sections[name]
    target = rows.reshape(-1).view(np.uint8).data
    file.seek(section.offset)
    if len(target) != section.length or file.readinto(target) != section.length:
        raise SnapshotError(f"{snapshot.path}: the section {name} has another length")
    if digest_of(target) != section.digest:
        raise SnapshotError(f"{snapshot.path}: damaged in the section {name}")
