"""HTTP/1.1 without I/O, by httptools: bytes in, whole requests and refusals out; answers to bytes.

Invariant: what one peer sends is held in bounded memory, whatever it is: a target and a head have
at most so many bytes, a body none, and of requests that came together at most so many are
answered. The transport calls it.
"""

from collections import deque
from http import HTTPStatus
from typing import Final, NamedTuple

import httptools

from gateway.http import TEXT, HttpAnswer, HttpRequest

HEAD_BYTES_MAX: Final = 16_384
HEADERS_MAX: Final = 64
TARGET_BYTES_MAX: Final = 4_096
PIPELINED_MAX: Final = 32  # the connection ends after so many requests that came at once

_METHODS: Final = frozenset({"GET", "HEAD"})
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class Asked(NamedTuple):
    """A request with what the wire says about it; `fields` are its headers as they came."""

    request: HttpRequest
    version: str
    fields: list[tuple[str, str]]
    keep_alive: bool


class HttpReader:
    """`requests` are to be answered in turn, then `refusal`, if there is one, as the last. After a
    refusal, or an `upgrade`, nothing more is read here."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._begin()
        self._is_over = False
        self.requests: deque[Asked] = deque()
        self.refusal: HttpAnswer | None = None
        self.upgrade: Asked | None = None
        self.rest = b""  # what came after the upgrade's head

    def _begin(self) -> None:
        self._target = b""
        self._fields: list[tuple[str, str]] = []
        self._bytes = 0  # read since the last request was whole
        self._header_bytes = 0

    @property
    def has_begun(self) -> bool:
        """Part of a request is here, and not all of it."""
        return (self._bytes > 0 or len(self._target) > 0) and not self._is_over

    def receive(self, data: bytes) -> None:
        if self._is_over:
            return
        self._bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._end(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self.refusal is None and not self._is_over:
                self._refuse(400, f"not an HTTP/1.1 request: {error}")
        else:
            if self._bytes > HEAD_BYTES_MAX:
                self._refuse(431, f"a head has at most {HEAD_BYTES_MAX} bytes")

    def _end(self, rest: bytes) -> None:
        """The last request wants another protocol: ours, or it is answered in this one."""
        if self._is_over:
            return
        last = self.requests.pop()
        if last.request.headers.get("upgrade", "").lower() == "websocket":
            self.upgrade, self.rest = last, rest
        else:
            self.requests.append(last._replace(keep_alive=False))
        self._is_over = True

    def _refuse(self, status: int, words: str) -> None:
        if not self._is_over:
            headers = (("Allow", "GET, HEAD"),) if status == 405 else ()
            self.refusal = HttpAnswer(status, TEXT, f"{words}\n".encode(), headers)
            self._is_over = True

    # --- called by the parser ------------------------------------------------------------------
    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > TARGET_BYTES_MAX:
            self._refuse(414, f"a target has at most {TARGET_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if len(self._fields) == HEADERS_MAX:
            self._refuse(431, f"at most {HEADERS_MAX} headers")
        elif self._header_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"a head has at most {HEAD_BYTES_MAX} bytes")
        elif not self._is_over:
            self._fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        headers: dict[str, str] = {}
        for name, value in self._fields:
            low = name.lower()
            headers[low] = f"{headers[low]}, {value}" if low in headers else value
        version = self._parser.get_http_version()
        if method not in _METHODS:
            self._refuse(405, "only GET and HEAD")
        elif "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            self._refuse(413, "no request here has a body")
        elif version == "1.1" and "host" not in headers:
            self._refuse(400, "the Host header is missing")
        elif not self._target.startswith(b"/"):
            self._refuse(400, "the target is no path")
        if not self._is_over:
            path, _, query = self._target.decode("latin-1").partition("?")
            request = HttpRequest(method, path, query, headers)
            keep = self._parser.should_keep_alive() and len(self.requests) < PIPELINED_MAX - 1
            self.requests.append(Asked(request, version, self._fields, keep))

    def on_message_complete(self) -> None:
        self._begin()
        if self.requests and not self.requests[-1].keep_alive:
            # An upgrade says "Connection: Upgrade" and is known only when this returns.
            self._is_over = self._is_over or not self._parser.should_upgrade()


def answer_bytes(answer: HttpAnswer, *, keep_alive: bool, with_body: bool = True) -> bytes:
    """An answer as it goes over the wire. A 304 has no length: that would be its 200's (RFC 9110,
    8.6), which nobody has made."""
    lines = [
        f"HTTP/1.1 {answer.status} {_PHRASES.get(answer.status, 'Unknown')}",
        f"Content-Type: {answer.kind}",
        *([f"Content-Length: {len(answer.body)}"] if answer.status != 304 else ()),
        "X-Content-Type-Options: nosniff",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
        *(f"{name}: {value}" for name, value in answer.headers),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1") + (answer.body if with_body else b"")
