"""What each account's client ids were used for, and how that was answered, for good.

One flat record for each, so that they take little memory and a snapshot is a copy. Invariant: a
client id has one record from the moment its command is sequenced, until the command is rejected,
or else for ever. Only `sequence` calls. All is O(1) but `save` and `load`, and forgetting one is
O(log n) in how many were forgotten.
"""

import hashlib
import struct
from heapq import heappop, heappush
from typing import Final, NamedTuple

import numpy as np

from engine.records import EVENT_STRUCT, Event

BODY_BYTES: Final = 48  # one command without its sequence and time; of several, their digest
_USE: Final = struct.Struct(f"<QQI4x{BODY_BYTES}s{EVENT_STRUCT.size}s")
_ANSWER_OFFSET: Final = _USE.size - EVENT_STRUCT.size
_IN_FLIGHT: Final = bytes(EVENT_STRUCT.size)
_FREE: Final = bytes(_USE.size)  # no command has sequence 0
_COLUMNS: Final = np.dtype({
    "names": ["client_id", "sequence", "account"],
    "formats": ["<u8", "<u8", "<u4"],
    "offsets": [0, 8, 16],
    "itemsize": _USE.size,
})  # fmt: skip


class Use(NamedTuple):
    sequence: int
    body: bytes
    answer: Event | None  # None: in flight


def body_of(records: bytes) -> bytes:
    """BODY_BYTES that stand for a command's records, which have no sequences and times."""
    if len(records) == BODY_BYTES:
        return records
    return hashlib.blake2b(records, digest_size=BODY_BYTES).digest()


class ClientIds:
    def __init__(self) -> None:
        self._records = bytearray()
        self._places: dict[tuple[int, int], int] = {}  # (account, client id) -> offset
        self._free: list[int] = []  # a heap, so that what is used next is the same everywhere

    def __contains__(self, name: tuple[int, int]) -> bool:
        """(account, client id)"""
        return name in self._places

    def find(self, account: int, client_id: int) -> Use | None:
        place = self._places.get((account, client_id))
        if place is None:
            return None
        _, sequence, _, body, answer = _USE.unpack_from(self._records, place)
        return Use(sequence, body, None if answer == _IN_FLIGHT else Event.unpack(answer))

    def add(self, account: int, client_id: int, body: bytes, sequence: int) -> None:
        assert len(body) == BODY_BYTES and sequence > 0
        record = _USE.pack(client_id, sequence, account, body, _IN_FLIGHT)
        if self._free:
            place = heappop(self._free)
            self._records[place : place + _USE.size] = record
        else:
            place = len(self._records)
            self._records += record
        self._places[account, client_id] = place

    def answer(self, account: int, client_id: int, event: Event) -> None:
        place = self._places[account, client_id] + _ANSWER_OFFSET
        self._records[place : place + EVENT_STRUCT.size] = event.pack()

    def forget(self, account: int, client_id: int) -> None:
        place = self._places.pop((account, client_id))
        self._records[place : place + _USE.size] = _FREE
        heappush(self._free, place)

    def save(self) -> bytes:
        return bytes(self._records)

    def load(self, saved: bytes) -> None:
        """What `save` gave. Raises ValueError for anything else."""
        columns = np.frombuffer(saved, _COLUMNS)
        self._records = bytearray(saved)
        offsets = range(0, len(saved), _USE.size)
        keys = zip(columns["account"].tolist(), columns["client_id"].tolist(), strict=True)
        self._places = dict(zip(keys, offsets, strict=True))
        self._free = (np.flatnonzero(columns["sequence"] == 0) * _USE.size).tolist()
        if self._free:
            del self._places[0, 0]
