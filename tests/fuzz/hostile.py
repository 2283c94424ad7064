"""Hostile websocket bytes: frames with every bit wrong that can be, and payloads meant to hurt.

A function of a random generator: `stream` draws the frames that one peer sends, `cuts` where the
network cuts them. Both the framing and the sockets are tried with them.
"""

import random
from collections.abc import Callable, Iterator

import msgspec

FIN = 0x80
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LENGTH_MAX = 1 << 14  # of a message the server takes
LEGAL_CLOSES = (1000, 1001, 1002, 1003, 1007, 1008, 1011, 1013, 3000, 4001, 4999)
ILLEGAL_CLOSES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
NOT_UTF8 = (
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"a\x80",
    b"\xe2\x82",
    b"\xf8",
)
SPLIT = "€𝄞é".encode()  # characters of several bytes, which fragments may cut
BOMBS = (
    b"[" * 15_000,
    b'{"a":' * 3_000,
    b'{"t":"ping","id":' + b"9" * 12_000 + b"}",
    b'{"t":"ping","id":1e999999}',
    b'{"t":"new","id":1,"market":"' + b"\\u0000" * 2_000 + b'"}',
    b'{"t":"ping","id":1,"t":"ping","id":2}',
    b'{"t":"query","id":1,"what":"\\ud800"}',
)
PACKED_BOMBS = (
    b"\xdd\xff\xff\xff\xff",  # an array of four thousand million, and none there
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xffx",
    b"\x91" * 15_000,
    b"\x81\xa1t" * 5_000,
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc1",
    b"\x82\xa1t\xa4ping\xa2id\xcf" + b"\xff" * 8,
)
REQUESTS: tuple[dict[str, object], ...] = (
    {"t": "ping", "id": 1},
    {"t": "query", "id": 2, "what": "markets"},
    {"t": "query", "id": 3, "what": "balances"},
    {"t": "subscribe", "id": 4, "channel": "status"},
    {"t": "shout", "id": 5},
    {"t": "cancel", "id": 6, "order_id": 7},
    {"t": "ping", "id": 10**30, "x": 1},
)


def frame(
    first: int, payload: bytes, mask: bytes | None = b"\0\0\0\0", length: int = -1, wide: int = 0
) -> bytes:
    """One frame; `length` may lie about the payload, in `wide` bytes (0: as few as will do)."""
    said = len(payload) if length < 0 else length
    wide = wide or (0 if said < 126 else 2 if said < 1 << 16 else 8)
    marker = {0: said, 2: 126, 8: 127}[wide] | (FIN if mask is not None else 0)
    head = bytes([first, marker]) + (said.to_bytes(wide, "big") if wide else b"")
    if mask is None:
        return head + payload
    return head + mask + bytes(b ^ mask[i & 3] for i, b in enumerate(payload))


def message(rng: random.Random, kind: int) -> bytes:
    """The payload of a message: a request, or something that looks like one."""
    request = rng.choice(REQUESTS)
    good = msgspec.json.encode(request)
    if kind == BINARY and rng.random() < 0.9:
        fitting = {key: value for key, value in request.items() if value != 10**30}
        good = msgspec.msgpack.encode(fitting)
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.choice((0, 1, 5, 125, 126, 127, 300)))
        case 1:
            return good[: rng.randrange(len(good))]
        case 2 if rng.random() < 0.1:
            return b" " * (LENGTH_MAX + rng.choice((-1, 0, 1)))
        case 2 if rng.random() < 0.2:
            return rng.choice(PACKED_BOMBS if kind == BINARY else BOMBS)
        case 3:
            return good[:-1] + rng.choice(NOT_UTF8) + good[-1:]
        case _:
            return good


def _mask(rng: random.Random) -> bytes:
    return rng.randbytes(4)


def _well_formed(rng: random.Random, kind: int) -> Iterator[bytes]:
    for _ in range(rng.randrange(1, 4)):
        yield frame(FIN | kind, message(rng, kind), _mask(rng), wide=rng.choice((0, 0, 0, 8)))


def _fragments(rng: random.Random, kind: int) -> Iterator[bytes]:
    whole = message(rng, kind) + (SPLIT if rng.random() < 0.3 else b"")
    parts = rng.randrange(1, 6) if rng.random() < 0.98 else 300
    for number in range(parts):
        at, end = len(whole) * number // parts, len(whole) * (number + 1) // parts
        last = number == parts - 1 and rng.random() < 0.9
        first = (FIN if last else 0) | (CONT if number else kind)
        yield frame(first, whole[at:end], _mask(rng))
        if rng.random() < 0.2:
            yield from _control(rng, kind)


def _control(rng: random.Random, _kind: int) -> Iterator[bytes]:
    payload = rng.randbytes(rng.choice((0, 1, 4, 125)))
    yield frame(FIN | rng.choice((PING, PONG)), payload, _mask(rng))


def _broken_control(rng: random.Random, _kind: int) -> Iterator[bytes]:
    fin = rng.choice((0, FIN))
    yield frame(fin | rng.choice((PING, PONG, CLOSE)), rng.randbytes(126), _mask(rng))


def _close(rng: random.Random, _kind: int) -> Iterator[bytes]:
    code = rng.choice(LEGAL_CLOSES if rng.random() < 0.5 else ILLEGAL_CLOSES).to_bytes(2, "big")
    reason = rng.choice((b"", b"done", SPLIT, *NOT_UTF8))
    yield frame(FIN | CLOSE, rng.choice((b"", b"\x03", code, code + reason)), _mask(rng))


def _wrong_bits(rng: random.Random, kind: int) -> Iterator[bytes]:
    reserved, opcode = rng.choice((0x10, 0x20, 0x40, 0x70)), rng.randrange(16)
    yield frame(rng.choice((FIN | reserved | kind, FIN | opcode, opcode)), b"x", _mask(rng))


def _unmasked(rng: random.Random, kind: int) -> Iterator[bytes]:
    yield frame(FIN | kind, message(rng, kind), None)


def _wrong_kind(rng: random.Random, kind: int) -> Iterator[bytes]:
    other = TEXT if kind == BINARY else BINARY
    yield frame(rng.choice((FIN, 0)) | other, message(rng, kind), _mask(rng))


def _lying_length(rng: random.Random, kind: int) -> Iterator[bytes]:
    length = rng.choice((LENGTH_MAX, LENGTH_MAX + 1, 65_535, 1 << 16, 1 << 31, 1 << 63, 130))
    wide = 8 if length >= 1 << 16 else rng.choice((2, 8))
    first = rng.choice((FIN | kind, kind, FIN | PING, FIN | CLOSE, CONT))
    yield frame(first, message(rng, kind), _mask(rng), length, wide)


_KINDS: tuple[tuple[Callable[[random.Random, int], Iterator[bytes]], int], ...] = (
    (_well_formed, 10),
    (_fragments, 4),
    (_control, 4),
    (_broken_control, 1),
    (_close, 1),
    (_wrong_bits, 1),
    (_unmasked, 1),
    (_wrong_kind, 1),
    (_lying_length, 1),
)
_DRAWN, _WEIGHTS = zip(*_KINDS, strict=True)


def stream(rng: random.Random, kind: int) -> list[bytes]:
    """The frames that one peer sends whose messages should be of this kind."""
    drawn = rng.choices(_DRAWN, _WEIGHTS, k=rng.randrange(1, 8))
    frames = [one for draw in drawn for one in draw(rng, kind)]
    if rng.random() < 0.1:
        frames[-1] = frames[-1][: rng.randrange(1, len(frames[-1]) + 1)]
    return frames


def cuts(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes as the network may bring them."""
    size = rng.choice((1, 2, 7, 50, 400, len(data))) if len(data) < 2_000 else 4_096
    at = 0
    while at < len(data):
        end = at + rng.randrange(1, size + 1)
        yield data[at:end]
        at = end
