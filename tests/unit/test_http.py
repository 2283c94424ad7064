"""Plain HTTP reads, without a socket: what each answers, and what it refuses."""

import hashlib
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from compex_client import messages as m
from compex_client import reads as r
from compex_client import units
from compex_client.book import Book
from compex_client.messages import Scope
from compex_client.wallet import SessionKey

from engine.catalog import Catalog
from engine.rejects import Reject
from gateway import public, reads
from gateway.health import Health
from gateway.http import ANSWERS_KEPT_MAX, HttpAnswer, HttpRequest, Routes
from gateway.limits import DEFAULT_LIMITS
from gateway.mirror import MarketState
from gateway.reads import READS
from gateway.tokens import TOKENS_PER_WALLET, Tokens
from tests.exchange import START_NS, SYMBOL, TICKER, Exchange, running_exchange, wallet

README = Path(__file__).parents[2] / "gateway" / "client" / "README.md"
HOURLY = SYMBOL.replace("SPOT", "H|2026-12-01T14")
ELSEWHERE = SYMBOL.replace("us-e", "eu-n")
SELLER, BUYER = 1, 2


class Asking:
    """An exchange with trades and a book, and its answers to requests."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.routes = Routes(exchange.desk, Health(exchange.port))
        self._last_id = 10
        self.address = "203.0.113.7"

    async def prepare(self) -> None:
        for symbol in (SYMBOL, HOURLY, ELSEWHERE):
            await self.exchange.list_market(symbol)
        seller = await self.exchange.open_account(SELLER, bond_usdc6=10**9)
        buyer = await self.exchange.open_account(BUYER, cash_usdc6=10**9)
        await self.exchange.declare(SELLER, 1, 100_000)
        self.seller, self.buyer = map(self.exchange.converse, (seller, buyer))
        for price in ("2.5", "2.6", "2.7"):
            await self.order(self.seller, "sell", price)
        for price in ("2.4", "2.3", "2.2"):
            await self.order(self.buyer, "buy", price)
        for price in ("2.5", "2.6"):
            await self.order(self.buyer, "buy", price, "1", tif="ioc")

    async def order(
        self, who: Any, side: m.Side, price: str, qty: str = "2", **more: Any
    ) -> list[m.ServerMessage]:
        self._last_id += 1
        who.say(m.New(self._last_id, TICKER, side, price, qty, **more))
        await self.exchange.port.settled()
        return who.heard()

    def get(self, url: str, method: str = "GET", **headers: str) -> HttpAnswer:
        path, _, query = url.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.routes.answer(HttpRequest(method, path, query, named), self.address)

    def read(self, url: str, kind: Any, **headers: str) -> Any:
        answer = self.get(url, **headers)
        assert answer.status == 200, answer
        return msgspec.json.decode(answer.body, type=kind)

    def refusal(self, url: str, **headers: str) -> tuple[int, str, str | None]:
        answer = self.get(url, **headers)
        reject = msgspec.json.decode(answer.body, type=m.Reject)
        assert reject.code == Reject[reject.reason] and reject.id == 0 and reject.message
        return answer.status, reject.reason, reject.field

    def bearer(self, who: Any, seconds: int = 60) -> str:
        [ack] = who.say(m.Token(7, seconds))
        assert isinstance(ack, m.Ack), ack
        assert ack.valid_until_s == self.exchange.desk.time_ns() // 10**9 + seconds
        return f"Bearer {ack.token}"


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncGenerator[Asking]:
    async with running_exchange(tmp_path) as exchange:
        exchange.desk.tokens = Tokens(exchange.clock.now_ns, _counted(), exchange.desk.keys)
        exchange.desk.time_ns = exchange.clock.now_ns
        asking = Asking(exchange)
        await asking.prepare()
        yield asking


async def test_reads_spend_what_the_address_and_the_account_may_ask(tmp_path: Path) -> None:
    now_ns = 10**15
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS, address_requests_per_s=1, address_requests_burst=4,
        account_requests_per_s=1, account_requests_burst=100,
    )  # fmt: skip
    async with running_exchange(tmp_path, limits, lambda: now_ns) as exchange:
        exchange.desk.tokens = Tokens(exchange.clock.now_ns, _counted(), exchange.desk.keys)
        exchange.desk.time_ns = exchange.clock.now_ns
        asking = Asking(exchange)
        buyer = exchange.converse(await exchange.open_account(BUYER, cash_usdc6=10**9))
        bearer = asking.bearer(buyer)
        url, own = "/api/v1/limits", "/api/v1/account/balances"
        for _ in range(4):
            assert asking.get(url).status == 200
        limited = asking.get(url)
        assert limited.status == 429 and dict(limited.headers)["Retry-After"] == "1"
        reject = msgspec.json.decode(limited.body, type=m.Reject)
        assert (reject.code, reject.scope) == (Reject.RATE_LIMITED, "address")
        assert reject.retry_ms == 1_000
        assert asking.get("/live").status == asking.get("/ready").status == 200, "health is free"
        asking.address = "2001:db8::1"
        assert asking.get(url).status == 200, "another's"
        for address in ("2001:db8::2", "2001:db8::3", "2001:db8::4"):
            asking.address = address
            assert asking.get(url).status == 200
        assert asking.get(url).status == 429, "of one network"
        asking.address = "127.0.0.1"
        while asking.get(own, authorization=bearer).status == 200:
            pass
        reject = msgspec.json.decode(asking.get(own, authorization=bearer).body, type=m.Reject)
        assert reject.scope == "account"
        [refused] = buyer.say(m.Query(9, "balances"))
        assert isinstance(refused, m.Reject) and refused.scope == "account", "they share it"
        now_ns += 2 * 10**9
        asking.address = "203.0.113.7"
        assert asking.get(own, authorization=bearer).status == 200
        assert asking.get(url).status == 200
        assert asking.get(url).status == 429


async def test_all_but_health_is_paid_for_and_a_long_list_by_who_has_it_made(
    tmp_path: Path,
) -> None:
    now_ns = 10**15
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS, address_requests_per_s=1, address_requests_burst=20
    )
    async with running_exchange(tmp_path, limits, lambda: now_ns) as exchange:
        asking = Asking(exchange)

        def answered(url: str, most: int = 99) -> int:
            """How often, until there is nothing left."""
            statuses = [asking.get(url).status for _ in range(most)]
            assert statuses[0] in {200, 404} and statuses[-1] == 429
            return most - statuses.count(429)

        for url in ("/", "/metrics", "/markets", "/openapi.json", "/static/app.js", "/nothing"):
            assert answered(url) == 20, url
            assert asking.get("/live").status == asking.get("/ready").status == 200
            now_ns += 20 * 10**9
        for round_ in range(1, 81):
            exchange.desk.feed.publish_index(m.Index("X", "2.5", "A", round_, round_))
        rounds = "/api/v1/index/X?limit=80"
        assert answered(rounds) == 10, "the first takes eleven, as the answer is kept for the rest"
        assert dict(asking.get("/metrics").headers)["Retry-After"] == "1"


def _counted() -> Any:
    """Secrets that differ from each other, the same in every run."""
    last = 0

    def random_bytes(size: int) -> bytes:
        nonlocal last
        last += 1
        return last.to_bytes(size, "big")

    return random_bytes


async def test_a_file_of_a_name_that_is_too_long_is_not_found(asking: Asking) -> None:
    for name in ("a" * 300, "a" * 4_000, "a/" * 2_000 + "a"):
        assert asking.get(f"/static/{name}.js").status == 404


async def test_an_instrument_says_what_it_is_made_of(asking: Asking) -> None:
    spot, hour, elsewhere = asking.read("/api/v1/instruments", r.Instruments).instruments
    assert (spot.hardware, spot.region, spot.grade, spot.tenor) == (*SYMBOL.split("|")[:3], "SPOT")
    assert (spot.tick, spot.status, spot.starts_s, spot.hours) == ("0.0001", "open", 0, 0)
    assert (hour.tenor, hour.starts_s, hour.hours) == ("H", 1_796_133_600, 1)
    assert elsewhere.region == "eu-n" and spot.title and spot.lot and spot.bond
    assert asking.read(f"/api/v1/instruments/{TICKER}", r.Instrument) == spot
    by_symbol = SYMBOL.replace("|", "%7C")
    assert asking.read(f"/api/v1/instruments/{by_symbol}", r.Instrument) == spot
    body = asking.get("/api/v1/instruments").body
    assert msgspec.json.decode(body)["instruments"][0]["class"] == spot.hardware


async def test_instruments_are_chosen_by_name_and_read_page_by_page(asking: Asking) -> None:
    def found(query: str) -> tuple[list[str], bool]:
        page = asking.read("/api/v1/instruments?" + query, r.Instruments)
        return [one.symbol for one in page.instruments], page.more

    assert found("region=eu-n") == ([ELSEWHERE], False)
    assert found("tenor=H&region=us-e") == ([HOURLY], False)
    assert found("class=nv.h100-sxm-80g.x8.ib&grade=B") == ([SYMBOL, HOURLY, ELSEWHERE], False)
    assert found("class=nosuch") == ([], False)
    assert found("limit=2") == ([SYMBOL, HOURLY], True)
    assert found(f"limit=2&after={TICKER}") == ([HOURLY, ELSEWHERE], False)
    assert asking.refusal("/api/v1/instruments?after=NOSUCH")[0] == 404


async def test_only_instruments_that_are_told_are_put_together(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = list[str](), reads.instrument_of

    def counted(market: MarketState, catalog: Catalog) -> r.Instrument:
        made.append(market.symbol)
        return make(market, catalog)

    monkeypatch.setattr(reads, "instrument_of", counted)
    for query, told in (("region=eu-n", [ELSEWHERE]), ("class=nosuch", []), ("grade=A", [])):
        made.clear()
        page = asking.read("/api/v1/instruments?" + query, r.Instruments)
        assert [one.symbol for one in page.instruments] == made == told


async def test_a_book_is_as_deep_as_asked_and_carries_its_checksum(asking: Asking) -> None:
    whole = asking.read(f"/api/v1/book/{TICKER}", m.BookSnapshot)
    assert whole.bids == [("2.4000", "2"), ("2.3000", "2"), ("2.2000", "2")]
    assert whole.asks == [("2.6000", "2"), ("2.7000", "2")]
    Book(TICKER).apply_snapshot(whole)
    best = asking.read(f"/api/v1/book/{TICKER}?depth=1", m.BookSnapshot)
    assert (best.bids, best.asks) == (whole.bids[:1], whole.asks[:1])
    assert (best.crc, best.seq) == (whole.crc, whole.seq)
    [snapshot] = [
        x for x in asking.buyer.say(m.Subscribe(9, "book", TICKER)) if isinstance(x, m.BookSnapshot)
    ]
    assert snapshot == whole, "as the websocket tells it"


async def test_the_latest_trades_come_oldest_first(asking: Asking) -> None:
    trades = asking.read(f"/api/v1/trades/{TICKER}", r.Trades).trades
    assert [trade.price for trade in trades] == ["2.5000", "2.5000"]
    assert asking.read(f"/api/v1/trades/{TICKER}?limit=1", r.Trades).trades == trades[-1:]


async def test_spot_prices_are_kept_round_by_round(asking: Asking) -> None:
    feed = asking.exchange.desk.feed
    assert asking.read(f"/api/v1/index/{TICKER}", r.Rounds).rounds == []
    told = [m.Index(TICKER, f"2.4{n:03}", "A", round=n, time_us=n) for n in range(350)]
    for index in (*told, unlisted := m.Index("OTHERSPOT", "1.0000", "C", round=1, time_us=1)):
        feed.publish_index(index)
    corrected = m.Index(TICKER, "2.5", "B", round=349, time_us=349)
    feed.publish_index(corrected)
    assert asking.read("/api/v1/index", r.Indexes).indexes == [corrected, unlisted]
    assert asking.read(f"/api/v1/index/{TICKER}", r.Rounds).rounds == [*told[50:349], corrected]
    assert asking.read("/api/v1/index/OTHERSPOT?limit=1", r.Rounds).rounds == [unlisted]
    assert asking.refusal("/api/v1/index/NOSUCH")[:2] == (404, "UNKNOWN_INSTRUMENT")


async def test_terms_and_time_are_those_of_hello(asking: Asking) -> None:
    terms = asking.read("/api/v1/limits", r.Terms)
    hello = msgspec.structs.asdict(asking.buyer.hello)
    assert msgspec.structs.asdict(terms).items() <= hello.items()
    assert asking.read("/api/v1/time", r.Time).time_us >= START_NS // 1_000


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("/api/v1/nosuch", (404, "UNKNOWN_MESSAGE", None)),
        ("/api/v1/", (404, "UNKNOWN_MESSAGE", None)),
        ("/api/v1/book", (404, "UNKNOWN_MESSAGE", None)),
        ("/api/v1/book/", (404, "UNKNOWN_INSTRUMENT", "market")),
        ("/api/v1/book/{market}", (404, "UNKNOWN_INSTRUMENT", "market")),
        ("/api/v1/book/%ff%00", (404, "UNKNOWN_INSTRUMENT", "market")),
        (f"/api/v1/book/{TICKER}/x", (404, "UNKNOWN_MESSAGE", None)),
        (f"/api/v1/book/{TICKER}?depth=0", (400, "INVALID_FIELD", "depth")),
        (f"/api/v1/book/{TICKER}?depth=5001", (400, "INVALID_FIELD", "depth")),
        (f"/api/v1/book/{TICKER}?depth=x", (400, "INVALID_FIELD", "depth")),
        (f"/api/v1/book/{TICKER}?depht=1", (400, "INVALID_FIELD", "depht")),
        (f"/api/v1/book/{TICKER}?depth=1&depth=2", (400, "INVALID_FIELD", None)),
        (f"/api/v1/trades/{TICKER}?limit=51", (400, "INVALID_FIELD", "limit")),
        ("/api/v1/time?" + "a" * 2_000, (400, "INVALID_FIELD", None)),
        ("/api/v1/time?" + "&".join(f"a{n}=1" for n in range(17)), (400, "INVALID_FIELD", None)),
        ("/api/v1/instruments?region=" + "x" * 129, (400, "INVALID_FIELD", "region")),
    ],
)
async def test_a_bad_read_has_a_number_and_names_the_field(
    asking: Asking, url: str, refused: tuple[int, str, str | None]
) -> None:
    assert asking.refusal(url) == refused


async def test_what_has_not_changed_is_not_sent_again(asking: Asking) -> None:
    url = f"/api/v1/book/{TICKER}"
    first = dict(asking.get(url).headers)
    for known in (first["ETag"], "W/" + first["ETag"], f'"x", {first["ETag"]}', "*"):
        again = asking.get(url, if_none_match=known)
        assert (again.status, again.body, dict(again.headers)) == (304, b"", first)
    await asking.order(asking.buyer, "buy", "2.1")
    changed = asking.get(url, if_none_match=first["ETag"])
    assert changed.status == 200 and dict(changed.headers)["ETag"] != first["ETag"]
    assert first["Cache-Control"] == "no-cache"


async def test_an_answer_is_made_once_until_there_is_news(asking: Asking) -> None:
    public = [x for x in READS if x.is_cached and not x.is_private and "{" not in x.path]
    urls = [x.path for x in public] + ["/markets", f"/api/v1/book/{TICKER}?depth=2"]
    before = {url: asking.get(url).body for url in urls}
    assert all(asking.get(url).body is body for url, body in before.items())
    await asking.order(asking.buyer, "buy", "2.41")
    await asking.exchange.list_market(SYMBOL.replace("us-e", "eu-w"))
    asking.exchange.desk.feed.publish_index(m.Index(TICKER, "2.4", "A", 9, START_NS // 1_000))
    changed = {url for url, body in before.items() if asking.get(url).body != body}
    assert changed == {*urls} - {"/api/v1/limits"}
    kept = {url: asking.get(url) for url in urls}
    asking.routes = Routes(asking.exchange.desk, Health(asking.exchange.port))
    assert {url: asking.get(url) for url in urls} == kept


async def test_a_thousand_different_questions_are_not_kept(asking: Asking) -> None:
    for from_s in range(2 * ANSWERS_KEPT_MAX):
        asking.get(f"/api/v1/candles/{TICKER}?from_s={from_s}")
    assert 0 < len(asking.routes.kept) <= ANSWERS_KEPT_MAX


async def test_any_page_may_read_what_is_public_and_none_an_account(asking: Asking) -> None:
    bearer = asking.bearer(asking.buyer)
    for read in READS:
        url = read.path.replace("{market}", TICKER)
        headers = dict(asking.get(url, authorization=bearer).headers)
        refused = dict(asking.get(url + "?nosuch=1", authorization=bearer).headers)
        for told in (headers, refused):
            allowed = told.get("Access-Control-Allow-Origin")
            assert allowed == (None if read.is_private else "*"), url
        if read.is_private:
            assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in dict(asking.get("/ready").headers)


async def test_only_get_and_head_are_answered(asking: Asking) -> None:
    url = f"/api/v1/book/{TICKER}"
    assert asking.get(url, "HEAD") == asking.get(url)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get", ""):
        answer = asking.get(url, method)
        assert answer.status == 405 and dict(answer.headers)["Allow"] == "GET, HEAD"


async def test_the_old_list_of_markets_stays_and_says_what_follows_it(asking: Asking) -> None:
    answer = asking.get("/markets")
    markets = msgspec.json.decode(answer.body, type=list[m.MarketInfo])
    assert [market.symbol for market in markets] == [SYMBOL, HOURLY, ELSEWHERE]
    assert "/api/v1/instruments" in dict(answer.headers)["Link"]


def test_the_table_of_the_readme_is_the_table_of_reads() -> None:
    rows = re.findall(r"^\| `(/api/v1/\S+)` \|(.*?)\|", README.read_text("utf-8"), re.M)
    told = {path: re.findall(r"`(\w+)`", takes) for path, takes in rows}
    assert told == {read.path: _names(read.query) for read in READS}


def _names(query: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(query)]


async def test_a_bearer_reads_its_own_account_alone(asking: Asking) -> None:
    mine, theirs = asking.bearer(asking.buyer), asking.bearer(asking.seller)
    orders = asking.read("/api/v1/account/orders", r.Orders, authorization=mine)
    assert orders.orders == asking.exchange.desk.feed.open_orders(BUYER) and not orders.more
    assert [x.price for x in orders.orders] == ["2.4000", "2.3000", "2.2000"]
    sold = asking.read("/api/v1/account/orders", r.Orders, authorization=theirs)
    assert {order.side for order in sold.orders} == {"sell"}
    money = asking.read("/api/v1/account/balances", m.Balances, authorization=mine)
    assert money == asking.exchange.desk.feed.balances(BUYER)
    assert money != asking.read("/api/v1/account/balances", m.Balances, authorization=theirs)


async def test_candles_are_those_that_the_websocket_tells(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    spelt: list[int] = []

    def price_text(price_ticks: int) -> str:
        spelt.append(price_ticks)
        return units.price_text(price_ticks)

    clock, url = asking.exchange.clock, f"/api/v1/candles/{TICKER}"
    for _ in range(2):
        clock.advance_to(clock.now_ns() + 60 * 10**9)
        await asking.order(asking.buyer, "buy", "2.6", "0.01", tif="ioc")
    minutes = asking.read(url, r.Candles).candles
    assert [(x.trades, x.closed) for x in minutes] == [(2, True), (1, True), (1, False)]
    told = asking.exchange.converse().say(m.Subscribe(1, "candles", TICKER, interval_s=60))
    assert told[1:] == minutes
    second = minutes[1].start_s
    later, nothing = second + 3_600, list[m.Candle]()
    monkeypatch.setattr(public, "price_text", price_text)
    for query, found in (
        ("limit=1", minutes[2:]), (f"limit=1&from_s={second}", minutes[1:2]),
        (f"from_s={second + 1}", minutes[2:]), (f"from_s={later}", nothing), ("from_s=1", minutes),
    ):  # fmt: skip
        spelt.clear()
        assert asking.read(f"{url}?{query}", r.Candles).candles == found
        assert len(spelt) <= 4 * max(2, len(found)), "no others are made, but one"
    [day] = asking.read(f"{url}?interval_s=86400", r.Candles).candles
    assert (day.trades, day.open, day.close, day.closed) == (4, "2.5000", "2.6000", False)
    assert asking.refusal(f"{url}?interval_s=61") == (400, "INVALID_FIELD", "interval_s")


async def test_fills_and_leases_are_read_behind_a_number(asking: Asking) -> None:
    mine, theirs = asking.bearer(asking.buyer), asking.bearer(asking.seller)
    url = "/api/v1/account/fills"
    fills = asking.read(url, r.Fills, authorization=mine).fills
    assert [(x.price, x.qty, x.side) for x in fills] == [
        ("2.5000", "1", "buy"), ("2.5000", "1", "buy"),
    ]  # fmt: skip
    behind = asking.read(f"{url}?after={fills[0].aseq}&limit=1", r.Fills, authorization=mine)
    assert behind.fills == fills[1:]
    leases = asking.read("/api/v1/account/leases", r.Leases, authorization=theirs).leases
    assert [(x.lease_id, x.role) for x in leases] == [(x.trade_id, "operator") for x in fills]


async def test_a_session_keys_bearer_ends_with_the_key(asking: Asking) -> None:
    exchange, owner, bot = asking.exchange, wallet(100 + BUYER), wallet(7)
    now_s = exchange.clock.now_ns() // 10**9
    url = "/api/v1/account/balances"
    bearer, _ = exchange.desk.tokens.issue(owner.address_bytes, bot.address_bytes, 60)
    for nonce, scopes, status in ((1, Scope.READ | Scope.TRADE, 200), (2, Scope.TRADE, 403)):
        terms = SessionKey(
            owner.address_bytes, bot.address_bytes, scopes, (), now_s, now_s + 60, nonce
        )
        exchange.desk.keys.authorise(terms, b"\0" * 65, exchange.clock.now_ns(), lambda _: None)
        assert asking.get(url, authorization=f"Bearer {bearer}").status == status
    exchange.clock.advance_to(exchange.clock.now_ns() + 60 * 10**9)
    assert asking.get(url, authorization=f"Bearer {bearer}").status == 401


async def test_orders_are_read_page_by_page(asking: Asking) -> None:
    bearer = asking.bearer(asking.buyer)
    every = asking.exchange.desk.feed.open_orders(BUYER)
    after = every[0].order_id
    url = f"/api/v1/account/orders?limit=1&after={after}&market={TICKER}"
    page = asking.read(url, r.Orders, authorization=bearer)
    assert page.orders == every[1:2] and page.more
    none = asking.read(f"/api/v1/account/orders?market={HOURLY}", r.Orders, authorization=bearer)
    assert none.orders == []
    url = "/api/v1/account/orders?after=4242"
    assert asking.refusal(url, authorization=bearer) == (400, "UNKNOWN_ORDER", "after")


async def test_without_a_good_bearer_nothing_of_an_account_is_read(asking: Asking) -> None:
    bearer = asking.bearer(asking.buyer)
    number, _, secret = bearer.removeprefix("Bearer ").partition(".")
    flipped = f"{int(secret[0], 16) ^ 1:x}" + secret[1:]
    for wrong in ("", "Bearer", "Bearer ", f"Basic {number}.{secret}", f"Bearer {secret}",
                  f"Bearer {number}.{flipped}", f"Bearer {number}.", f"Bearer {number}.{secret}00",
                  f"Bearer {int(number) + 1}.{secret}", f"Bearer ².{secret}", "Bearer -1.00",
                  f"Bearer {'9' * 5_000}.{secret}", f"Bearer {number}.zz"):  # fmt: skip
        for path in ("orders", "balances"):
            url = f"/api/v1/account/{path}"
            assert asking.refusal(url, authorization=wrong)[:2] == (401, "NOT_LOGGED_IN"), wrong
    answer = asking.get("/api/v1/account/balances")
    assert dict(answer.headers)["WWW-Authenticate"] == "Bearer"


async def test_a_bearer_ends_with_its_time_and_with_newer_ones(asking: Asking) -> None:
    url = "/api/v1/account/balances"
    oldest = asking.bearer(asking.buyer, seconds=60)
    asking.exchange.clock.advance_to(START_NS + 59 * 10**9)
    assert asking.get(url, authorization=oldest).status == 200
    clock = asking.exchange.clock
    clock.advance_to(clock.now_ns() + 10**9)
    assert asking.refusal(url, authorization=oldest)[:2] == (401, "KEY_EXPIRED")
    bearers = [asking.bearer(asking.buyer) for _ in range(TOKENS_PER_WALLET + 1)]
    assert asking.refusal(url, authorization=bearers[0])[:2] == (401, "NOT_LOGGED_IN")
    assert {asking.get(url, authorization=bearer).status for bearer in bearers[1:]} == {200}


async def test_of_a_token_only_its_digest_is_kept(asking: Asking) -> None:
    secret = bytes.fromhex(asking.bearer(asking.buyer).partition(".")[2])
    kept = repr(vars(asking.exchange.desk.tokens))
    assert repr(hashlib.sha256(secret).digest())[2:-1] in kept
    assert secret.hex() not in kept and repr(secret)[2:-1] not in kept


async def test_only_who_has_an_account_may_ask_for_a_token(asking: Asking) -> None:
    stranger = asking.exchange.converse()
    [reject] = stranger.say(m.Token(1))
    assert isinstance(reject, m.Reject) and reject.code == Reject.NOT_LOGGED_IN
    for seconds in (0, m.TOKEN_SECONDS_MAX + 1):
        [reject] = asking.buyer.say(m.Token(2, seconds))
        assert isinstance(reject, m.Reject) and reject.field == "seconds"
