"""Websocket frames as a server sends them, taken apart (RFC 6455, 5.2)."""

from collections.abc import Iterator

from gateway.wire import Opcode

FINAL = 0x80


def frames_in(chunk: bytes) -> Iterator[tuple[Opcode, bytes]]:
    """The whole, unmasked frames that a chunk consists of."""
    at = 0
    while at < len(chunk):
        first, size = chunk[at], chunk[at + 1]
        at += 2
        assert first & FINAL and size < FINAL, "one frame a message, and no mask"
        longer = {126: 2, 127: 8}.get(size, 0)
        if longer:
            size = int.from_bytes(chunk[at : at + longer], "big")
            at += longer
        assert at + size <= len(chunk), "whole frames"
        yield Opcode(first & ~FINAL), chunk[at : at + size]
        at += size
