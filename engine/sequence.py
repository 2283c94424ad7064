"""The total order: each command gets its sequence and its time here, once.

Invariant: sequences are consecutive from 1, times never run backwards, and a client id names one
command of its account for good, so that sending an order again cannot place it twice. Only
`pipeline` calls.
"""

import struct
from typing import Final, NamedTuple

from engine.clock import Clock
from engine.port import Sequenced
from engine.records import (
    CLIENT_ID_MAX,
    COMMAND_STRUCT,
    Command,
    CommandArray,
    CommandKind,
    Event,
    EventKind,
    decode_commands,
)
from engine.rejects import Refused, Reject

_BODY_OFFSET: Final = 16  # a command's bytes without its sequence and time


class _Use(NamedTuple):
    """What a client id was used for, and how that was answered (None: in flight)."""

    body: bytes
    sequence: int
    answer: Event | None


def _is_deduplicated(command: Command) -> bool:
    # Settlement's commands carry references of their own, which the kernel checks.
    return command.client_id != 0 and command.kind < CommandKind.OPEN_ACCOUNT


class Sequencer:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_sequence = 0
        self._last_time_ns = 0
        self._uses: dict[tuple[int, int], _Use] = {}
        self._in_flight: dict[int, tuple[tuple[int, int], int]] = {}

    @property
    def last_sequence(self) -> int:
        return self._last_sequence

    def sequence(self, command: Command) -> tuple[Sequenced, bytes]:
        """The command's place and its 64 bytes; no bytes for a duplicate.

        Raises Refused, with nothing changed: a refused command takes no place in the order.
        """
        sequence = self._last_sequence + 1
        time_ns = max(self._last_time_ns, self._clock.now_ns())
        try:
            stamped = COMMAND_STRUCT.pack(sequence, time_ns, *command[2:])
        except struct.error as error:
            raise Refused(Reject.INVALID_FIELD) from error
        if _is_deduplicated(command):
            if command.client_id > CLIENT_ID_MAX:
                raise Refused(Reject.CLIENT_ID_OUT_OF_RANGE)
            body = stamped[_BODY_OFFSET:]
            use = self._uses.get((command.account, command.client_id))
            if use is not None and use.body != body:
                raise Refused(Reject.CLIENT_ID_REUSED)
            if use is not None:
                return Sequenced(use.sequence, duplicate=True, answer=use.answer), b""
            self._remember(command, body, sequence)
        self._last_sequence = sequence
        self._last_time_ns = time_ns
        return Sequenced(sequence), stamped

    def _remember(self, command: Command, body: bytes, sequence: int) -> None:
        key = (command.account, command.client_id)
        self._uses[key] = _Use(body, sequence, None)
        self._in_flight[sequence] = (key, command.kind)

    def answered(self, events: list[Event]) -> None:
        """Keep the answers to the client ids in flight; a rejected command frees its id."""
        if not self._in_flight:
            return
        for event in events:
            waiting = self._in_flight.get(event.sequence)
            if waiting is None:
                continue
            key, kind = waiting
            if event.kind == EventKind.CANCELLED and kind != CommandKind.CANCEL:
                continue
            del self._in_flight[event.sequence]
            if event.kind == EventKind.REJECTED:
                del self._uses[key]
            else:
                self._uses[key] = self._uses[key]._replace(answer=event)

    def resume(self, commands: CommandArray) -> None:
        """Take up what the journal says was sequenced; `answered` follows with its events."""
        for command in decode_commands(commands):
            assert command.sequence == self._last_sequence + 1, "the journal has no gaps"
            self._last_sequence = command.sequence
            self._last_time_ns = command.time_ns
            if _is_deduplicated(command):
                body = command.pack()[_BODY_OFFSET:]
                self._remember(command, body, command.sequence)
