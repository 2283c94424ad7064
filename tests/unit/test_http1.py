"""HTTP/1.1 as bytes: however they are cut, the same requests come out, and none too large."""

import random

import pytest

from gateway.http import HttpAnswer
from gateway.http1 import HEAD_BYTES_MAX, PIPELINED_MAX, HttpReader, answer_bytes

SEED = 20_261_123
HOST = b"Host: x\r\n"
REQUESTS = (
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /markets?side=buy&x=%20 HTTP/1.1\r\n" + HOST + b"Accept: a\r\nAccept: b\r\n\r\n",
    b"GET /static/app.js HTTP/1.1\r\nhOsT: x\r\nConnection: keep-alive\r\n\r\n",
    b"GET /live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
LAST = (
    b"",
    b"GET /ws HTTP/1.1\r\n"
    + HOST
    + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x80abcd",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nrest",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc",
    b"GET / HTTP/1.1\r\nno header\r\n\r\n",
    b"\x00",
)


def read(parts: list[bytes]) -> HttpReader:
    reader = HttpReader()
    for number, part in enumerate(parts):
        reader.receive(part)
        if reader.upgrade is not None:  # what comes later is no longer for it
            reader.rest += b"".join(parts[number + 1 :])
            break
    return reader


def test_requests_are_the_same_however_the_bytes_are_cut() -> None:
    rng = random.Random(SEED)
    upgrades = refusals = 0
    for number in range(500):
        stream = b"".join(rng.choices(REQUESTS, k=rng.randrange(4))) + rng.choice(LAST)
        marks = sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(20)))
        ends = [*marks, len(stream)]
        parts = [stream[at:end] for at, end in zip([0, *marks], ends, strict=True)]
        whole, cut = read([stream]), read([part for part in parts if part])
        where = f"seed {SEED}, stream {number}: {parts}"
        assert cut.requests == whole.requests, where
        assert (cut.upgrade, cut.rest) == (whole.upgrade, whole.rest), where
        assert (cut.refusal is None) == (whole.refusal is None), where
        upgrades += whole.upgrade is not None
        refusals += whole.refusal is not None
    assert upgrades > 20 and refusals > 20, "or the streams are too tame"


def test_what_is_read_is_what_was_sent() -> None:
    reader = read([REQUESTS[1]])
    [asked] = reader.requests
    assert asked.request.method == "HEAD" and asked.request.path == "/markets"
    assert asked.request.query == "side=buy&x=%20"
    assert asked.request.headers == {"host": "x", "accept": "a, b"}
    assert asked.keep_alive and not reader.has_begun


@pytest.mark.parametrize("part", [b"A: " + b"b" * 100 + b"\r\n", b"c" * 100])
def test_a_head_without_an_end_is_refused_when_it_is_too_large(part: bytes) -> None:
    reader = HttpReader()
    reader.receive(b"GET / HTTP/1.1\r\nA: ")
    for _ in range(HEAD_BYTES_MAX // len(part) + 1):
        assert reader.has_begun or reader.refusal is not None
        reader.receive(part)
    assert reader.refusal is not None and reader.refusal.status == 431
    assert not reader.requests and not reader.has_begun


def test_no_more_requests_are_held_than_are_answered() -> None:
    reader = read([REQUESTS[0] * 1_000])
    assert len(reader.requests) == PIPELINED_MAX
    assert [asked.keep_alive for asked in reader.requests][-2:] == [True, False]


def test_an_answer_says_its_length_and_whether_more_may_be_asked() -> None:
    answer = HttpAnswer(404, "text/plain", b"gone", (("X-Why", "gone"),))
    head, _, body = answer_bytes(answer, keep_alive=True).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n") and body == b"gone"
    assert b"\r\nContent-Length: 4\r\n" in head and b"\r\nX-Why: gone" in head
    assert b"\r\nConnection: keep-alive" in head
    bare = answer_bytes(answer, keep_alive=False, with_body=False)
    assert bare.endswith(b"\r\n\r\n") and b"\r\nConnection: close" in bare
    assert b"\r\nContent-Length: 4\r\n" in bare
    known = answer_bytes(HttpAnswer(304, "text/plain", b""), keep_alive=True)
    assert b"Content-Length" not in known and known.endswith(b"\r\n\r\n")
