"""Orders that live until a time, and when each one's is over.

The kernel never lets an order trade past its time; this schedule sees to it that it also leaves the
book then. Invariant: before a command is sequenced, every order whose time has come has its EXPIRE
command in the order before it. Only `pipeline` calls. Adding and taking are O(log n).
"""

from typing import Final

import msgspec
from sortedcontainers import SortedList

from engine.records import SECOND_NS, Command, CommandKind, Event, EventKind, TimeInForce

_GTT: Final = int(TimeInForce.GTT)
_ORDERS: Final = frozenset(map(int, (CommandKind.NEW_ORDER, CommandKind.NEW_STOP)))


class Expiries:
    def __init__(self) -> None:
        self._accepted_at: dict[int, int] = {}  # sequence -> expiry_s, until it is answered
        self._times: SortedList[tuple[int, int, int]] = SortedList()  # (expiry_s, id, account)
        self._expiry_s: dict[int, int] = {}  # order id -> expiry_s

    def sequenced(self, command: Command, sequence: int) -> None:
        """Notice an order that asks to live until a time."""
        if command.time_in_force == _GTT and command.kind in _ORDERS:
            self._accepted_at[sequence] = command.expiry_s

    def published(self, events: list[Event]) -> None:
        """Schedule what was accepted, forget what was refused or is cancelled."""
        if not self._accepted_at and not self._expiry_s:
            return
        for event in events:
            if event.kind == EventKind.ACCEPTED and event.sequence in self._accepted_at:
                expiry_s = self._accepted_at.pop(event.sequence)
                self._times.add((expiry_s, event.order_id, event.account))
                self._expiry_s[event.order_id] = expiry_s
            elif event.kind == EventKind.REJECTED:
                self._accepted_at.pop(event.sequence, None)
            elif event.kind == EventKind.CANCELLED:
                self._forget(event.order_id, event.account)

    def asked(self, command: Command) -> None:
        """An EXPIRE that the journal has: in a former life `due` has given it."""
        self._forget(command.order_id, command.account)

    def _forget(self, order_id: int, account: int) -> None:
        expiry_s = self._expiry_s.pop(order_id, None)
        if expiry_s is not None:
            self._times.discard((expiry_s, order_id, account))

    def due(self, now_ns: int) -> list[Command]:
        """EXPIRE commands for orders whose time has come, earliest first; each is given once.

        One that was filled meanwhile is answered UNKNOWN_ORDER, and nothing changes.
        """
        commands: list[Command] = []
        if not self._expiry_s:
            return commands
        while self._times and self._times[0][0] * SECOND_NS <= now_ns:
            _, order_id, account = self._times.pop(0)
            del self._expiry_s[order_id]
            commands.append(Command(kind=CommandKind.EXPIRE, account=account, order_id=order_id))
        return commands

    def save(self) -> bytes:
        """For a snapshot; nothing may be in flight."""
        assert not self._accepted_at, "every command has one terminal event"
        return msgspec.msgpack.encode(list(self._times))

    def load(self, saved: bytes) -> None:
        """What `save` gave, into a new schedule. Raises msgspec.MsgspecError."""
        times = msgspec.msgpack.decode(saved, type=list[tuple[int, int, int]])
        self._times.update(times)
        self._expiry_s.update((order_id, expiry_s) for expiry_s, order_id, _ in times)
