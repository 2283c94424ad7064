"""Answers to plain HTTP requests: the page, health, the list of markets.

Invariant: `answer` never waits and never raises, whatever is asked, and reads nothing but the
page's own files. It answers a HEAD as it would a GET; who writes it out leaves the body away. The
server calls it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from gateway import wire
from gateway.health import Health
from gateway.session import Desk

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
STATIC_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
NOT_STORED: Final = ("Cache-Control", "no-store")
_METHODS: Final = frozenset({"GET", "HEAD"})
_STATIC_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_./-]*")
WEB_ROOT: Final = Path(__file__).parent / "web"


class HttpRequest(NamedTuple):
    """`path` is what stands before the "?", `query` what stands behind it, both as they came;
    names of `headers` are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class HttpAnswer(NamedTuple):
    """Content-Length and Connection are left to who writes it out; `kind` is its Content-Type."""

    status: int
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = (NOT_STORED,)


class Routes:
    """Where everything is; `web_root` has the page's files."""

    def __init__(self, desk: Desk, health: Health, web_root: Path = WEB_ROOT) -> None:
        self._desk = desk
        self._health = health
        self._web_root = web_root.resolve()

    def answer(self, request: HttpRequest) -> HttpAnswer:
        if request.method not in _METHODS:
            allowed = ("Allow", ", ".join(sorted(_METHODS)))
            return HttpAnswer(405, TEXT, b"only GET and HEAD\n", (NOT_STORED, allowed))
        match request.path:
            case "/live":
                return _json(*self._health.live())
            case "/ready":
                return _json(*self._health.ready())
            case "/markets":
                return _json(200, wire.encode(self._desk.feed.market_infos()))
            case "/":
                return self._static("index.html")
            case path if path.startswith("/static/"):
                return self._static(path.removeprefix("/static/"))
            case _:
                return _not_found()

    def _static(self, name: str) -> HttpAnswer:
        if not _STATIC_NAME.fullmatch(name):
            return _not_found()
        path = (self._web_root / name).resolve()
        kind = STATIC_TYPES.get(path.suffix)
        # The resolved path must still lie under the root: "..", links and absolute names do not.
        if kind is None or not path.is_relative_to(self._web_root) or not path.is_file():
            return _not_found()
        return HttpAnswer(200, kind, path.read_bytes())


def _json(status: int, body: bytes) -> HttpAnswer:
    return HttpAnswer(status, JSON, body)


def _not_found() -> HttpAnswer:
    return HttpAnswer(404, TEXT, b"not found\n")
