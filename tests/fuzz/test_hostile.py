"""Hostile frames on the framing and a real session behind it, with websockets' own protocol as the
oracle: what is heard, what is said and how it ends must be the same, however the bytes are cut.
On a failure the seed and the stream's number are printed, which draw it again."""

import random
from pathlib import Path

import msgspec
from compex_client import messages as m
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from engine.rejects import Reject
from gateway.framing import FRAGMENTS_MAX, Framing, Phase
from gateway.limits import DEFAULT_LIMITS, Outbox
from gateway.session import Session
from gateway.wire import CODEC_OF, Codec
from tests.exchange import Exchange, running_exchange
from tests.frames import frames_in
from tests.fuzz.hostile import LEGAL_CLOSES, cuts, stream
from tests.promises import Trial, tries

SEED = 20_261_121
LIMITS = msgspec.structs.replace(
    DEFAULT_LIMITS,
    requests_per_s=10**9, requests_burst=10**9, cancels_per_s=10**9, cancels_burst=10**9,
)  # fmt: skip
CLOSE_CODES = {code.value for code in m.CloseCode}
REJECTS = {reject.value for reject in Reject}
Heard = tuple[str, bytes | str]
_decoders = {
    "compex.v1.json": msgspec.json.Decoder(m.ServerMessage).decode,
    "compex.v1.msgpack": msgspec.msgpack.Decoder(m.ServerMessage).decode,
}


class Witness(ServerProtocol):
    """websockets' protocol alone, and what it heard and said, in order."""

    def __init__(self, kind: int) -> None:
        super().__init__(state=State.OPEN, max_size=LIMITS.frame_bytes)
        self.kind = kind
        self.log: list[Heard] = []
        self.parts: list[bytes] = []

    def recv_frame(self, frame: Frame) -> None:
        super().recv_frame(frame)
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY} and frame.opcode != self.kind:
            self.fail(1003, "")
        elif frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
            self.parts.append(bytes(frame.data))
            if frame.fin:
                self.message(b"".join(self.parts))
                self.parts = []
            elif len(self.parts) > FRAGMENTS_MAX:
                self.fail(1009, "")

    def message(self, payload: bytes) -> None:
        try:
            self.log.append(("heard", payload.decode() if self.kind == Opcode.TEXT else payload))
        except UnicodeDecodeError:
            self.fail(1007, "")

    def send_frame(self, frame: Frame) -> None:
        super().send_frame(frame)
        self.log.append(_said(frame.opcode, bytes(frame.data)))


def _said(opcode: int, payload: bytes) -> Heard:
    """Of a close frame its code; the reason is for people."""
    return ("close", payload[:2]) if opcode == Opcode.CLOSE else (f"frame {opcode}", payload)


class Peer:
    """One connection's framing, with a real session that answers what is heard."""

    def __init__(self, exchange: Exchange, codec: Codec) -> None:
        self.log: list[Heard] = []
        self.replies: list[m.ServerMessage] = []
        self._codec = codec
        self._outbox = Outbox(1 << 30, wake=lambda: None, overflow=lambda: None)
        self._session = Session(exchange.desk, self._outbox, codec)
        self.framing = Framing(codec.opcode, LIMITS.frame_bytes, self._hear, self._say)

    def _hear(self, message: str | bytes) -> None:
        self.log.append(("heard", message))
        self._session.receive(message)

    def _say(self, frame: bytes) -> None:
        assert frame[1] < 126 and len(frame) == frame[1] + 2, "a control frame, not masked"
        self.log.append(_said(frame[0] & 15, frame[2:]))

    def receive(self, data: bytes) -> None:
        while self.framing.receive(data):
            data = b""

    def check_replies(self) -> None:
        """Every message has its one reply, with a number if it is a reject."""
        decode = _decoders[self._codec.subprotocol]
        told = [decode(x) for chunk in self._outbox.take() for _, x in frames_in(chunk)]
        self.replies = [x for x in told if isinstance(x, m.Ack | m.Reject | m.Pong)]
        self._session.close()
        heard = sum(kind == "heard" for kind, _ in self.log)
        assert len(self.replies) == heard
        for reply in self.replies:
            assert not isinstance(reply, m.Reject) or reply.code in REJECTS


def converse(
    exchange: Exchange, rng: random.Random, codec: Codec, data: bytes, codes: dict[int, int]
) -> None:
    """One stream, cut twice."""
    witness, peer = Witness(codec.opcode), Peer(exchange, codec)
    for part in cuts(rng, data):
        witness.receive_data(part)
    for part in cuts(rng, data):
        peer.receive(part)
    assert peer.log == witness.log, f"{codec.subprotocol}: {data!r}"
    assert (peer.framing.phase is Phase.OPEN) == (witness.state is State.OPEN)
    peer.check_replies()
    for kind, payload in peer.log:
        if kind == "close":
            assert isinstance(payload, bytes)
            code = int.from_bytes(payload, "big")
            assert code in CLOSE_CODES or code in {0, *LEGAL_CLOSES}, code
            codes[code] = codes.get(code, 0) + 1


@tries("hostile")
async def test_hostile_frames_are_heard_as_the_protocol_alone_hears_them(
    trial: Trial, tmp_path: Path
) -> None:
    codes: dict[int, int] = {}
    async with running_exchange(tmp_path, LIMITS) as exchange:
        number = 0
        while trial.tried < trial.budget:
            number += 1
            rng = random.Random(f"{SEED} {number}")
            print(f"seed {SEED}, stream {number}")
            codec = rng.choice(list(CODEC_OF.values()))
            frames = stream(rng, codec.opcode)
            trial.tried += len(frames)
            converse(exchange, rng, codec, b"".join(frames), codes)
            trial.survived += len(frames)
        await exchange.port.settled()
        assert exchange.port.ready().stopped == ""
    assert codes.keys() >= {1002, 1003, 1007, 1009}, f"seed {SEED} is too tame: {codes}"
    told = ", ".join(f"{code}: {count:,}" for code, count in sorted(codes.items()))
    trial.note = f"{number:,} streams; closes by code: {told}"
