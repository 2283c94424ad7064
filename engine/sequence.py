"""The total order: each command gets its sequence and its time here, once.

Invariant: sequences are consecutive from 1, times never run backwards, and a client id names one
command of its account for good, so that sending an order again cannot place it twice. Each record
of a command of several has a sequence of its own, all have one time, and nothing comes between
them; the head's client id names them all. Only `pipeline` calls.
"""

import struct
from collections.abc import Sequence
from typing import Final

from engine.client_ids import ClientIds, body_of
from engine.clock import Clock
from engine.port import Sequenced
from engine.records import (
    CLIENT_ID_MAX,
    COMMAND,
    COMMAND_STRUCT,
    OF_SEVERAL,
    PARTS_MAX,
    Command,
    CommandArray,
    CommandKind,
    Event,
    EventKind,
    decode_commands,
)
from engine.rejects import Refused, Reject

_BODY_OFFSET: Final = 16  # a command's bytes without its sequence and time
assert COMMAND.fields is not None
_SESSION: Final[int] = COMMAND.fields["session"][1]
_SAVED: Final = struct.Struct("<Qq")  # last sequence, last time


# Members of an IntEnum cost a look-up each time they are named; commands come by the million.
_PART: Final = int(CommandKind.PART)
_CANCEL_ALL: Final = int(CommandKind.CANCEL_ALL)
# From here on commands carry references of settlement's own, which the kernel checks.
_OPEN_ACCOUNT: Final = int(CommandKind.OPEN_ACCOUNT)
_SIZE: Final = COMMAND_STRUCT.size
_NO_SESSION: Final = b"\0"


def _check_parts(command: Command, parts: Sequence[Command]) -> None:
    """Raises Refused unless these parts may follow this head."""
    if command.kind == CommandKind.PART:
        raise Refused(Reject.UNKNOWN_COMMAND)
    if len(parts) > PARTS_MAX:
        raise Refused(Reject.TOO_MANY_LEGS)
    fits = all(part.kind == CommandKind.PART and part.parts == 0 for part in parts)
    if not fits or command.parts not in {0, len(parts)}:
        raise Refused(Reject.INVALID_LEGS)
    if parts and command.kind not in OF_SEVERAL:
        raise Refused(Reject.INVALID_LEGS)
    if any(part.client_id > CLIENT_ID_MAX for part in parts):
        raise Refused(Reject.CLIENT_ID_OUT_OF_RANGE)


def _body(command: Command, stamped: bytes) -> bytes:
    """What a client id stands for: the records without their sequences and times, and without the
    session they came from, as who was cut off asks again from another one."""
    if command.kind == _CANCEL_ALL:
        return body_of(stamped[_BODY_OFFSET:])  # its session says whose orders
    if len(stamped) == _SIZE and not stamped[_SESSION]:
        return stamped[_BODY_OFFSET:]
    if len(stamped) == _SIZE:
        return stamped[_BODY_OFFSET:_SESSION] + _NO_SESSION + stamped[_SESSION + 1 :]
    bodies = [
        stamped[at + _BODY_OFFSET : at + _SESSION]
        + _NO_SESSION
        + stamped[at + _SESSION + 1 : at + _SIZE]
        for at in range(0, len(stamped), _SIZE)
    ]
    return body_of(b"".join(bodies))


class Sequencer:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_sequence = 0
        self._last_time_ns = 0
        self._client_ids = ClientIds()
        self._in_flight: dict[int, Command] = {}  # by sequence: those that have a client id

    @property
    def last_sequence(self) -> int:
        return self._last_sequence

    def now_ns(self) -> int:
        """The time that a command would get now: the clock's, unless that was set back."""
        now_ns = self._clock.now_ns()
        return now_ns if now_ns > self._last_time_ns else self._last_time_ns

    def sequence(
        self, command: Command, parts: Sequence[Command] = (), now_ns: int = 0
    ) -> tuple[Sequenced, bytes]:
        """The place of the command, or of its head, and 64 bytes for each record; no bytes for a
        duplicate. `now_ns` is what this sequencer has just said; 0: it is to look.

        Raises Refused, with nothing changed: a refused command takes no place in the order.
        """
        sequence = self._last_sequence + 1
        time_ns = now_ns or self.now_ns()
        if parts or command.parts or command.kind == _PART:
            _check_parts(command, parts)
            command = command._replace(parts=len(parts))
        try:
            stamped = COMMAND_STRUCT.pack(sequence, time_ns, *command[2:])
            for number, part in enumerate(parts, start=sequence + 1):
                stamped += COMMAND_STRUCT.pack(number, time_ns, *part[2:])
        except struct.error as error:
            raise Refused(Reject.INVALID_FIELD) from error
        if command.client_id and command.kind < _OPEN_ACCOUNT:
            if command.client_id > CLIENT_ID_MAX:
                raise Refused(Reject.CLIENT_ID_OUT_OF_RANGE)
            body = _body(command, stamped)
            use = self._client_ids.find(command.account, command.client_id)
            if use is not None:
                if use.body != body:
                    raise Refused(Reject.CLIENT_ID_REUSED)
                return Sequenced(use.sequence, duplicate=True, answer=use.answer), b""
            self._remember(command, body, sequence)
        self._last_sequence = sequence + len(parts)
        self._last_time_ns = time_ns
        return Sequenced(sequence), stamped

    def is_used(self, account: int, client_id: int) -> bool:
        return (account, client_id) in self._client_ids

    def _remember(self, command: Command, body: bytes, sequence: int) -> None:
        self._client_ids.add(command.account, command.client_id, body, sequence)
        self._in_flight[sequence] = command

    def answered(self, events: list[Event]) -> None:
        """Keep the answers to the client ids in flight; a rejected command frees its id."""
        if not self._in_flight:
            return
        for event in events:
            command = self._in_flight.get(event.sequence)
            if command is None:
                continue
            if event.kind == EventKind.CANCELLED and command.kind != CommandKind.CANCEL:
                continue
            del self._in_flight[event.sequence]
            if event.kind == EventKind.REJECTED:
                self._client_ids.forget(command.account, command.client_id)
            else:
                self._client_ids.answer(command.account, command.client_id, event)

    def resume(self, commands: CommandArray) -> None:
        """Take up what the journal says was sequenced; `answered` follows with its events."""
        stamped = commands.tobytes()
        for i, command in enumerate(decode_commands(commands)):
            assert command.sequence == self._last_sequence + 1, "the journal has no gaps"
            self._last_sequence = command.sequence
            self._last_time_ns = command.time_ns
            if command.client_id and command.kind < _OPEN_ACCOUNT and command.kind != _PART:
                size = COMMAND_STRUCT.size
                records = stamped[i * size : (i + 1 + command.parts) * size]
                self._remember(command, _body(command, records), command.sequence)

    def save(self) -> bytes:
        """For a snapshot; nothing may be in flight."""
        assert not self._in_flight, "every command has one terminal event"
        return _SAVED.pack(self._last_sequence, self._last_time_ns) + self._client_ids.save()

    def load(self, saved: bytes) -> None:
        """What `save` gave, into a new sequencer. Raises ValueError for anything else."""
        if len(saved) < _SAVED.size:
            raise ValueError("a sequencer's section is too short")
        self._last_sequence, self._last_time_ns = _SAVED.unpack_from(saved)
        self._client_ids.load(saved[_SAVED.size :])
