"""The server's side of the wire: bytes → a typed request or a numbered refusal, and back.

A `Codec` is one spelling of the same messages: JSON text, or msgpack. Invariant: whatever the bytes
are, `decode` gives a message whose every field is of its type and within the limits that
`compex_client.messages` states, or raises BadRequest naming the field. Sessions and the hub call.

GatewayError
└── BadRequest   a request that is refused with a number, before anything is sequenced
"""

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import msgspec
from compex_client import messages as m

from engine.rejects import WORDS, Reject

FRAME_BYTES_MAX: Final = 16_384  # one request
DETAIL_CHARS_MAX: Final = 160  # of what the decoder says, which may quote the frame


class GatewayError(Exception):
    """Root of what the gateway raises."""


class BadRequest(GatewayError):
    """One request refused: its number, the field at fault if it is one, details in words."""

    def __init__(self, reject: Reject, field: str | None = None, detail: str = "") -> None:
        super().__init__(f"{reject.value} {reject.name}")
        self.reject = reject
        self.field = field
        self.detail = detail[:DETAIL_CHARS_MAX]


class _AnyRequest(msgspec.Struct):
    id: m.Id


encode: Final = msgspec.json.Encoder().encode

_FIELD: Final = re.compile(r"(?:at `\$\.|field `)(\w+)")
_SHORT: Final = 126  # from so many bytes on a frame's length takes two more
_LONG: Final = 1 << 16  # ... and from so many, eight
_FINAL: Final = 0x80  # the last frame of a message; the server sends no other


class Opcode(IntEnum):
    """Of a websocket frame with a message in it (RFC 6455, 5.2)."""

    TEXT = 1
    BINARY = 2


class Codec:
    """`subprotocol` names it in the handshake; `opcode` is of its frames, both ways."""

    def __init__(
        self,
        subprotocol: str,
        opcode: Opcode,
        payload: Callable[[object], bytes],
        request: Callable[[Any], m.ClientMessage],
        any_request: Callable[[Any], _AnyRequest],
    ) -> None:
        self.subprotocol: Final = subprotocol
        self.opcode: Final = opcode
        self._payload = payload
        self._request = request
        self._any_request = any_request
        self._first_byte = bytes([_FINAL | opcode])

    def encode(self, message: m.ServerMessage) -> bytes:
        """A whole frame, as it goes over the wire."""
        return self.frame(self._payload(message))

    def frame(self, payload: bytes) -> bytes:
        size = len(payload)
        if size < _SHORT:
            return b"%b%c%b" % (self._first_byte, size, payload)
        if size < _LONG:
            return b"%b\x7e%b%b" % (self._first_byte, size.to_bytes(2, "big"), payload)
        return b"%b\x7f%b%b" % (self._first_byte, size.to_bytes(8, "big"), payload)

    def decode(self, payload: bytes | str) -> m.ClientMessage:
        """One frame's payload → one request. Raises BadRequest, whatever the bytes."""
        try:
            return self._request(payload)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise BadRequest(Reject.MALFORMED_FRAME, detail=str(error)) from error

    def request_id(self, payload: bytes | str) -> int:
        """The `id` of a frame that did not decode as a request; 0 if it has none."""
        try:
            return self._any_request(payload).id
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return 0


JSON: Final = Codec(
    "compex.v1.json",
    Opcode.TEXT,
    encode,
    msgspec.json.Decoder(m.ClientMessage).decode,
    msgspec.json.Decoder(_AnyRequest).decode,
)
MSGPACK: Final = Codec(
    "compex.v1.msgpack",
    Opcode.BINARY,
    msgspec.msgpack.Encoder().encode,
    msgspec.msgpack.Decoder(m.ClientMessage).decode,
    msgspec.msgpack.Decoder(_AnyRequest).decode,
)


def _invalid(words: str) -> BadRequest:
    found = _FIELD.search(words)
    if found is None:
        return BadRequest(Reject.MALFORMED_FRAME, detail=words)
    if found[1] == "t" and words.startswith("Invalid value"):
        return BadRequest(Reject.UNKNOWN_MESSAGE, "t", words)
    return BadRequest(Reject.INVALID_FIELD, found[1], words)


def reject_message(
    request: int, reject: Reject, field: str | None = None, detail: str = "", retry_ms: int = 0
) -> m.Reject:
    """The reject of a request: the number's words, then what is known about this case."""
    words = f"{WORDS[reject]}: {detail}" if detail else WORDS[reject]
    return m.Reject(request, reject.value, reject.name, words, field, retry_ms)
