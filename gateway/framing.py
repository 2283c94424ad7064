"""One websocket connection's frames after its handshake, without I/O: bytes in, messages out.

Two ways lead through it. A data frame that lies whole in what was read, masked, unfragmented and
of the kind the subprotocol speaks is unmasked right here; everything else goes frame by frame
through websockets' `ServerProtocol`, which is made when it is first needed. Invariant: which way a
frame goes changes nothing: the same bytes, cut anywhere, give the messages, the answers and the
close code that `ServerProtocol` alone gives, in the same order. The transport calls it.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from compex_client.messages import CloseCode
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # an interpreter for which websockets has no compiled part
    from websockets.utils import apply_mask

FRAMES_AT_ONCE: Final = 256  # heard in one go; then others have their turn
FRAGMENTS_MAX: Final = 256  # of one message
CLOSE_REASON_BYTES_MAX: Final = 123

PING: Final = b"\x89\x00"
_EMPTY_PONG: Final = b"\x8a\x80"  # and four bytes of mask: the answer to that ping
_FIN: Final = 0x80
_MASKED: Final = 0x80
_TWO_BYTES_OF_LENGTH: Final = _MASKED | 126
_EIGHT_BYTES_OF_LENGTH: Final = _MASKED | 127
_OPCODES: Final = frozenset(Opcode)
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_WRONG_KIND: Final[dict[int, str]] = {
    Opcode.TEXT: "this subprotocol has text frames only",
    Opcode.BINARY: "this subprotocol has binary frames only",
}


class Phase(IntEnum):
    OPEN = 0
    CLOSING = 1  # a close frame was sent, the peer's is awaited
    OVER = 2  # nothing more is heard or said


class Framing:
    """`kind` is the opcode of messages, both ways. `hear` gets each message, str or bytes by kind;
    `say` gets whole frames to send that are not messages: pongs, and the close frame as the last.
    """

    __slots__ = ("_first", "_fragments", "_hear", "_kind", "_limit", "_protocol", "_rest", "_say",
                 "phase")  # fmt: skip

    def __init__(
        self,
        kind: int,
        message_bytes_max: int,
        hear: Callable[[str | bytes], None],
        say: Callable[[bytes], None],
    ) -> None:
        assert kind in _WRONG_KIND
        self._kind = kind
        self._first = _FIN | kind
        self._limit = message_bytes_max
        self._hear = hear
        self._say = say
        self._rest = b""  # read and not yet heard: the beginning of a frame, or what is left over
        self._fragments: list[bytes] = []  # of a message that has begun
        self._protocol: ServerProtocol | None = None
        self.phase = Phase.OPEN

    def receive(self, data: bytes) -> bool:
        """Hear what is in these bytes. True if some was left over: call again, with b""."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at, size, first, limit = 0, len(data), self._first, self._limit
        plain = self.phase is Phase.OPEN and not self._fragments
        for _ in range(FRAMES_AT_ONCE):
            if at == size or self.phase is Phase.OVER:
                return False
            if plain and data[at] == first:
                marker = data[at + 1] if at + 1 < size else _MASKED
                if marker == _TWO_BYTES_OF_LENGTH:
                    length, body = int.from_bytes(data[at + 2 : at + 4], "big"), at + 8
                else:
                    length, body = marker - _MASKED, at + 6
                if 0 <= length <= limit and marker != _EIGHT_BYTES_OF_LENGTH:
                    end = body + length
                    if end > size:
                        self._rest = data[at:]
                        return False
                    at = end
                    self._message(apply_mask(data[body:end], data[body - 4 : body]))
                    plain = self.phase is Phase.OPEN
                    continue
            end = self._slowly(data, at)
            if not end:
                self._rest = data[at:]
                return False
            at = end
            plain = self.phase is Phase.OPEN and not self._fragments
        self._rest = data[at:]
        return at < size

    def close(self, code: CloseCode, reason: str) -> None:
        """Begin the closing handshake; what is heard from now on is dropped."""
        if self.phase is Phase.OPEN:
            protocol = self._oracle()
            # Cut to what a close frame holds, between two characters.
            words = reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")
            protocol.send_close(code, words)
            self._send(protocol)

    @property
    def peer_code(self) -> int:
        """The code with which the peer has closed by itself; 0 if it has not."""
        protocol = self._protocol
        if protocol is None or protocol.close_rcvd is None or not protocol.close_rcvd_then_sent:
            return 0
        return protocol.close_rcvd.code

    # --- messages ------------------------------------------------------------------------------
    def _message(self, payload: bytes) -> None:
        if self._kind == Opcode.BINARY:
            self._hear(payload)
            return
        try:
            text = payload.decode()
        except UnicodeDecodeError as error:
            self._fail(CloseCode.INVALID_UTF8, f"{error.reason} at position {error.start}")
        else:
            self._hear(text)

    def _fail(self, code: CloseCode, reason: str) -> None:
        protocol = self._oracle()
        protocol.fail(code, reason)
        self._send(protocol)

    # --- the long way --------------------------------------------------------------------------
    def _oracle(self) -> ServerProtocol:
        if self._protocol is None:
            self._protocol = ServerProtocol(state=State.OPEN, max_size=self._limit)
        return self._protocol

    def _slowly(self, data: bytes, at: int) -> int:
        """Where the frame ends that begins here, having given it to the protocol; 0 if it is not
        there as a whole yet. Of what can be no frame, the protocol gets all."""
        end = self._end_of_frame(data, at)
        if not end or data[at : at + 2] == _EMPTY_PONG:
            return end
        protocol = self._oracle()
        protocol.receive_data(data[at:end])
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode in _DATA and self.phase is Phase.OPEN:
                self._part(event)
        self._send(protocol)
        return end

    def _end_of_frame(self, data: bytes, at: int) -> int:
        size = len(data)
        if size - at < 2:
            return 0
        marker = data[at + 1]
        if marker < _MASKED or data[at] & 15 not in _OPCODES:
            return size
        wide = {_TWO_BYTES_OF_LENGTH: 2, _EIGHT_BYTES_OF_LENGTH: 8}.get(marker, 0)
        if size - at < 2 + wide:
            return 0
        length = int.from_bytes(data[at + 2 : at + 2 + wide], "big") if wide else marker - _MASKED
        # As the protocol does: of a message that has begun, and of what comes between its parts.
        if length > self._limit - sum(map(len, self._fragments)):
            return size
        end = at + 2 + wide + 4 + length
        return end if end <= size else 0

    def _part(self, frame: Frame) -> None:
        """A data frame: a whole message, or a fragment of one."""
        if frame.opcode not in {Opcode.CONT, self._kind}:
            self._fail(CloseCode.BINARY_FRAME, _WRONG_KIND[self._kind])
            return
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            whole, self._fragments = b"".join(self._fragments), []
            self._message(whole)
        elif len(self._fragments) > FRAGMENTS_MAX:
            self._fail(CloseCode.FRAME_TOO_LARGE, f"more than {FRAGMENTS_MAX} fragments")

    def _send(self, protocol: ServerProtocol) -> None:
        """Say what the protocol has to say; its empty bytes say that this is all. After a close
        frame nothing is said, not even a pong."""
        for data in protocol.data_to_send():
            if not data:
                self.phase = Phase.OVER
                self._fragments.clear()
            elif self.phase is Phase.OPEN:
                if protocol.state is not State.OPEN:
                    self.phase = Phase.CLOSING
                self._say(data)
