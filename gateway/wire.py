"""The server's side of the wire: bytes → a typed request or a numbered refusal, and back.

Invariant: whatever the bytes are, `decode` gives a message whose every field is of its type and
within the limits that `compex_client.messages` states, or raises BadRequest naming the field.
Sessions and the feed call it.

GatewayError
└── BadRequest   a request that is refused with a number, before anything is sequenced
"""

import re
from typing import Final

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


_decode: Final = msgspec.json.Decoder(m.ClientMessage).decode
_decode_id: Final = msgspec.json.Decoder(_AnyRequest).decode
encode: Final = msgspec.json.Encoder().encode

_FIELD: Final = re.compile(r"(?:at `\$\.|field `)(\w+)")


def decode(frame: bytes | str) -> m.ClientMessage:
    """One text frame → one request. Raises BadRequest, whatever the bytes."""
    try:
        return _decode(frame)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(Reject.MALFORMED_FRAME, detail=str(error)) from error


def _invalid(words: str) -> BadRequest:
    found = _FIELD.search(words)
    if found is None:
        return BadRequest(Reject.MALFORMED_FRAME, detail=words)
    if found[1] == "t" and words.startswith("Invalid value"):
        return BadRequest(Reject.UNKNOWN_MESSAGE, "t", words)
    return BadRequest(Reject.INVALID_FIELD, found[1], words)


def request_id(frame: bytes | str) -> int:
    """The `id` of a frame that did not decode as a request; 0 if it has none."""
    try:
        return _decode_id(frame).id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0


def reject_message(
    request: int, reject: Reject, field: str | None = None, detail: str = "", retry_ms: int = 0
) -> m.Reject:
    """The reject of a request: the number's words, then what is known about this case."""
    words = f"{WORDS[reject]}: {detail}" if detail else WORDS[reject]
    return m.Reject(request, reject.value, reject.name, words, field, retry_ms)
