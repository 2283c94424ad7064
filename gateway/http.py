"""Answers to plain HTTP requests: the page, health, and reads under /api/v1.

Invariant: `answer` never waits and never raises, whatever is asked, and reads nothing but the
page's own files. It answers a HEAD as it would a GET; who writes it out leaves the body away. A
refused read has the same numbered reject that a websocket would be told. The server calls it.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from compex_client import messages as m
from compex_client import reads as r

from engine.rejects import Reject
from gateway import wire
from gateway.documents import Place, asyncapi, openapi
from gateway.health import Health
from gateway.limits import Shortage, records_in
from gateway.metrics import Metrics
from gateway.reads import MARKET, READS, Asked, Read, parse_query
from gateway.session import Desk
from gateway.wire import BadRequest

API: Final = "/api/"
STATIC: Final = "/static/"
JSON: Final = "application/json"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"
STATIC_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
Headers = tuple[tuple[str, str], ...]
NOT_STORED: Final = ("Cache-Control", "no-store")
ASK_AGAIN: Final = ("Cache-Control", "no-cache")  # keep it, and ask whether it is still so
# What is public may be read by the scripts of any page; nothing else may.
FROM_ANYWHERE: Final = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Expose-Headers", "ETag, Retry-After"),
)
DEPRECATED: Final = (
    ("Deprecation", "true"),
    ("Link", '</api/v1/instruments>; rel="successor-version"'),
)
_OF_PUBLIC: Final = (ASK_AGAIN, *FROM_ANYWHERE)
_OF_MARKETS: Final = (*_OF_PUBLIC, *DEPRECATED)
ANSWERS_KEPT_MAX: Final = 256
STATUSES: Final = {
    Reject.UNKNOWN_MESSAGE: 404,
    Reject.UNKNOWN_INSTRUMENT: 404,
    Reject.NOT_LOGGED_IN: 401,
    Reject.KEY_EXPIRED: 401,
    Reject.KEY_REVOKED: 401,
    Reject.KEY_NOT_AUTHORISED: 401,
    Reject.OUT_OF_SCOPE: 403,
    Reject.NO_ACCOUNT: 403,
    Reject.BUSY: 503,
}
PLACES: Final = (
    Place("/", "The market page.", "text/html"),
    Place("/live", "This process answers.", JSON, r.Live, is_free=True),
    Place(
        "/ready",
        "Whether an order sent now would be taken.",
        JSON,
        r.Ready,
        (200, 503),
        is_free=True,
    ),
    Place("/metrics", "What the node counts and times, as Prometheus reads it.", PROMETHEUS),
    Place("/markets", "The listed markets.", JSON, list[m.MarketInfo], is_deprecated=True),
    Place(
        "/asyncapi.json", "The websocket's protocol, as an AsyncAPI document.", JSON, dict[str, Any]
    ),
    Place("/openapi.json", "This document.", JSON, dict[str, Any]),
)
_FREE: Final = frozenset(place.path for place in PLACES if place.is_free)
_METHODS: Final = ("GET", "HEAD")
STATIC_NAME_CHARS_MAX: Final = 128  # the system raises for a name that no file can have
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
    headers: Headers = (NOT_STORED,)


class Routes:
    """Where everything is; `web_root` has the page's files."""

    def __init__(self, desk: Desk, health: Health, web_root: Path = WEB_ROOT) -> None:
        self._desk = desk
        self._health = health
        self._web_root = web_root.resolve()
        self.metrics: Final = Metrics(
            desk.counts, desk.port, desk.pending, desk.build, health.settlement
        )
        self._reads = {read.path: read for read in READS}
        self.kept: Final[dict[tuple[str, str], _Tagged]] = {}  # by path and query
        self._kept_at = 0  # how much the feed had told when they were made
        self._makes: dict[str, Callable[[HttpRequest], HttpAnswer]] = {
            "/": self._page,
            "/live": self._live,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/markets": self._markets,
            "/asyncapi.json": self._asyncapi,
            "/openapi.json": self._openapi,
        }

    def answer(self, request: HttpRequest, address: str) -> HttpAnswer:
        """`address` is the IP address of who asks."""
        answer = self._answer(request, address)
        self._desk.counts.answered[answer.status] += 1
        return answer

    def _answer(self, request: HttpRequest, address: str) -> HttpAnswer:
        if request.method not in _METHODS:
            allowed = ("Allow", ", ".join(_METHODS))
            return HttpAnswer(405, TEXT, b"only GET and HEAD\n", (NOT_STORED, allowed))
        path = request.path
        if path.startswith(API):
            return self._api(request, address)
        if path not in _FREE and (short := self._desk.budgets.spend_once(address)):
            return _limited(short, ())
        if make := self._makes.get(path):
            return make(request)
        if path.startswith(STATIC):
            return self._static(request, path.removeprefix(STATIC))
        return _not_found()

    def _page(self, request: HttpRequest) -> HttpAnswer:
        return self._static(request, "index.html")

    def _live(self, _request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, JSON, wire.encode(self._health.live()))

    def _ready(self, _request: HttpRequest) -> HttpAnswer:
        ready = self._health.ready()
        return HttpAnswer(200 if ready.ready else 503, JSON, wire.encode(ready))

    def _metrics(self, _request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, PROMETHEUS, self.metrics.text())

    def _markets(self, request: HttpRequest) -> HttpAnswer:
        made = self._kept(request, lambda: wire.encode(self._desk.feed.market_infos()))
        return _fresh(request, JSON, made, _OF_MARKETS)

    def _asyncapi(self, request: HttpRequest) -> HttpAnswer:
        return _fresh(request, JSON, _encoded(asyncapi, self._desk.build), _OF_PUBLIC)

    def _openapi(self, request: HttpRequest) -> HttpAnswer:
        return _fresh(request, JSON, _encoded(http_document, self._desk.build), _OF_PUBLIC)

    def _static(self, request: HttpRequest, name: str) -> HttpAnswer:
        if not _STATIC_NAME.fullmatch(name) or len(name) > STATIC_NAME_CHARS_MAX:
            return _not_found()
        path = (self._web_root / name).resolve()
        kind = STATIC_TYPES.get(path.suffix)
        # The resolved path must still lie under the root: "..", links and absolute names do not.
        if kind is None or not path.is_relative_to(self._web_root) or not path.is_file():
            return _not_found()
        return _fresh(request, kind, _tagged(path.read_bytes()), (ASK_AGAIN,))

    # --- reads ---------------------------------------------------------------------------------
    def _api(self, request: HttpRequest, address: str) -> HttpAnswer:
        read, market = self._find(request.path)
        is_private = read is not None and read.is_private
        seen_by: Headers = () if is_private else FROM_ANYWHERE
        try:
            if read is None:
                raise BadRequest(Reject.UNKNOWN_MESSAGE, None, "nothing is read at this path")
            wallet = self._wallet(request) if is_private else b""
            if short := self._desk.budgets.spend_once(address, wallet):
                return _limited(short, seen_by)
            account = self._account(wallet) if is_private else 0
            make = partial(self._read, read, request.query, market, account, (address, wallet))
            if is_private or not read.is_cached:
                return HttpAnswer(200, JSON, make(), (NOT_STORED, *seen_by))
            return _fresh(request, JSON, self._kept(request, make), _OF_PUBLIC)
        except BadRequest as bad:
            return _refused(bad, seen_by)

    def _read(
        self, read: Read, query: str, market: str, account: int, asker: tuple[str, bytes]
    ) -> bytes:
        """For the one, by address and wallet, who pays for what it lists: whoever has it later, as
        it was kept, does not."""
        desk = self._desk
        answer = read.make(desk, Asked(parse_query(query, read.query), market, account))
        desk.budgets.owe_once(*asker, desk.tariff.of_told(records_in(answer)))
        return wire.encode(answer)

    def _kept(self, request: HttpRequest, make: Callable[[], bytes]) -> "_Tagged":
        """What is public is made once, for as long as the feed has told of nothing new."""
        told = self._desk.feed.told
        if told != self._kept_at or len(self.kept) >= ANSWERS_KEPT_MAX:
            self.kept.clear()
            self._kept_at = told
        name = request.path, request.query
        made = self.kept.get(name)
        if made is None:
            made = self.kept[name] = _tagged(make())
        return made

    def _find(self, path: str) -> tuple[Read | None, str]:
        """The read at this path, and the market that the path names."""
        if read := self._reads.get(path):
            return read, ""
        parent, _, last = path.rpartition("/")
        return self._reads.get(parent + MARKET), unquote(last)

    def _wallet(self, request: HttpRequest) -> bytes:
        """Of who asks. Raises BadRequest."""
        return self._desk.tokens.wallet_of(request.headers.get("authorization", ""))

    def _account(self, wallet: bytes) -> int:
        """Raises BadRequest."""
        account = self._desk.feed.account_of(wallet)
        if not account:
            raise BadRequest(Reject.NO_ACCOUNT)
        return account


def http_document(build: str) -> dict[str, Any]:
    """OpenAPI, of every path here."""
    return openapi(build, PLACES)


class _Tagged(NamedTuple):
    """A body and the tag of its content."""

    body: bytes
    tag: str


def _tagged(body: bytes) -> _Tagged:
    return _Tagged(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


@cache
def _encoded(make: Callable[[str], dict[str, Any]], build: str) -> _Tagged:
    return _tagged(wire.encode(make(build)))


def _fresh(request: HttpRequest, kind: str, made: _Tagged, headers: Headers) -> HttpAnswer:
    """The body with its tag, or just the tag where that is what the client has."""
    told = (("ETag", made.tag), *headers)
    known = request.headers.get("if-none-match", "")
    if known and (
        known == "*" or made.tag in (one.strip().removeprefix("W/") for one in known.split(","))
    ):
        return HttpAnswer(304, kind, b"", told)
    return HttpAnswer(200, kind, made.body, told)


def _refused(bad: BadRequest, headers: Headers) -> HttpAnswer:
    status = STATUSES.get(bad.reject, 400)
    body = wire.encode(wire.reject_message(0, bad.reject, bad.field, bad.detail))
    if status == 401:
        headers = (*headers, ("WWW-Authenticate", "Bearer"))
    return HttpAnswer(status, JSON, body, (NOT_STORED, *headers))


def _limited(short: Shortage, headers: Headers) -> HttpAnswer:
    reject = wire.reject_message(0, Reject.RATE_LIMITED, retry_ms=short.retry_ms, scope=short.scope)
    later = ("Retry-After", str(-(-short.retry_ms // 1_000)))
    return HttpAnswer(429, JSON, wire.encode(reject), (NOT_STORED, later, *headers))


def _not_found() -> HttpAnswer:
    return HttpAnswer(404, TEXT, b"not found\n")
