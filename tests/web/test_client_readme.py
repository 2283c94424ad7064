"""The examples of the client's README run as they are printed."""

import asyncio
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from compex_client import (
    Cancel,
    Client,
    Disconnected,
    Leg,
    New,
    Quote,
    Rejected,
    Scope,
    Terms,
    connect,
)
from compex_client import messages as m
from compex_client.client import SIGNATURES_WANTED, PrivateMessage
from compex_client.streams import Stream
from compex_client.units import price_text
from compex_client.wallet import SessionKey

from engine.rejects import Reject
from gateway.health import Health
from gateway.limits import DEFAULT_LIMITS, RETRY_MS, WEIGHTS
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings, SettlementSettings
from settlement.leases import CHALLENGE_SECONDS, EPOCH_SECONDS, LAST_SECONDS, SPOT_SECONDS_MAX
from settlement.upkeep import COLLECT_USDC6_MIN
from tests.disks import HeldDisk
from tests.exchange import (
    ADMINISTRATOR,
    START_NS,
    SYMBOL,
    TICKER,
    running_exchange,
    running_server,
    wallet,
)

ROOT = Path(__file__).parents[2]
README = ROOT / "gateway" / "client" / "README.md"
CONTRACTS = ROOT / "settlement" / "contracts" / "src"
HEADINGS = re.findall(r"^#+ (.*)$", README.read_text("utf-8"), re.M)
RUN_S = 60.0
HOUR, HOURLY_SUFFIX = "H|2026-12-01T14", "H2026120114"  # what only a window can show
ROWS = re.findall(r"^\| ([a-z -]+) \| `(client\.\w+\(.*?\))` \|", README.read_text("utf-8"), re.M)
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
OF_SEVERAL = [row for row in ROWS if re.match(r"client\.(quote|block|exclusive|basket)", row[1])]
LEVELS = [row for row in ROWS if row[0] in {"sequenced", "durable"}]
IN_ONE_FRAME = [row for row in ROWS if row[1].startswith("client.batch")]
CLOCK = [row for row in ROWS if row[1].startswith("client.clock")]
KEYS = [row for row in ROWS if re.match(r"client\.(authorise|revoke|keys|accounts)", row[1])]
WATCHED = [
    row for row in ROWS if re.match(r"client\.(book|orders|ticker|candles|trades|index)", row[1])
]
AWAY = [row for row in ROWS if re.match(r"client\.(private|kept|cancel_on|dead_man)", row[1])]
NO_ORDERS = OF_SEVERAL + LEVELS + IN_ONE_FRAME + CLOCK + KEYS + WATCHED + AWAY
ORDERS = [row for row in ROWS if row not in NO_ORDERS]
# What each of several comes to where a seller offers 16 GPU-hours at 2.5 (2.45 elsewhere, and in
# each of three hours): (count, amount, what is left of the offers here, elsewhere, in the hours).
SEVERAL_OUTCOMES = {
    "mass quote": (3, "", [1_600, 1_600, 1_600]),
    "block": (3, "60", [1_600, 1_600, 800]),
    "exclusive": (1, "19.6", [1_600, 800, 1_600]),
    "region at large": (1, "19.6", [1_600, 800, 1_600]),
    "basket": (2, "39.6", [800, 800, 1_600]),
}
# What becomes of each where 16 GPU-hours are offered at 2.5: (state, price, left, best bid, ask).
NO_BID, ALL_OFFERED = (0, 0), (25_000, 1_600)
OUTCOMES = {
    "limit": ("open", "2.4150", "16", (24_150, 1_600), ALL_OFFERED),
    "post-only": ("open", "2.4150", "16", (24_150, 1_600), ALL_OFFERED),
    "immediate or cancel": ("cancelled", "2.5000", "0", NO_BID, (0, 0)),
    "fill or kill": ("filled", "2.5000", "0", NO_BID, (0, 0)),
    "good till time": ("open", "2.4150", "16", (24_150, 1_600), ALL_OFFERED),
    "market": ("cancelled", "2.5500", "0", NO_BID, (0, 0)),
    "minimum quantity": ("open", "2.5000", "8", (25_000, 800), (0, 0)),
    "iceberg": ("open", "2.4150", "160", (24_150, 1_600), ALL_OFFERED),
    "stop": ("open", "2.6500", "8", NO_BID, ALL_OFFERED),
    "stop-limit": ("open", "2.6000", "8", NO_BID, ALL_OFFERED),
    "all-or-none": ("open", "2.5000", "24", NO_BID, ALL_OFFERED),
    "resale": ("open", "2.4150", "8", NO_BID, (24_150, 800)),
    "amended": ("open", "2.4200", "8", (24_200, 800), ALL_OFFERED),
    "cancelled": ("cancelled", "1.0000", "0", NO_BID, ALL_OFFERED),
    "replaced": ("open", "2.4200", "8", (24_200, 400), ALL_OFFERED),
}


# What each gives first, where six sells from 2.5 up have traded 8 GPU-hours at 2.4 and a round of
# the index was told.
ASKS = [(25_000 + 100 * i, 800) for i in range(6)]
FIRST: dict[str, Callable[[Any], bool]] = {
    "book": lambda book: book.asks == ASKS,
    "best levels": lambda book: book.asks == ASKS[:5],
    "conflated": lambda book: book.asks == ASKS,
    "order by order": lambda book: book.levels("sell") == ASKS,
    "ticker": lambda x: (x.last, x.ask, x.volume, x.index) == ("2.4000", "2.5000", "8", "2.4500"),
    "whole class": lambda x: (x.market, x.high, x.every_ms) == (TICKER, "2.4000", 1000),
    "candles": lambda x: (x.close, x.notional, x.trades, x.closed) == ("2.4000", "19.2", 1, False),
    "trades": lambda x: (x.price, x.qty) == ("2.4000", "8"),
    "index": lambda x: (x.price, x.round) == ("2.4500", 1),
}


# --- numbers and names ---------------------------------------------------------------------------
TEXT = README.read_text("utf-8")
# The rows of the tables of refusals and of closed connections: (number, name).
NAMED = [(int(x), name) for x, name in re.findall(r"^\| (\d{4}) \| `(\w+)` \|", TEXT, re.M)]
SIGNATURES = {1021: "ORDERS_UNSIGNED", 1022: "ACCOUNT_SUSPENDED"}  # as the client knows them


def said(*words: str) -> None:
    flat = " ".join(TEXT.split())
    for phrase in words:
        assert phrase in flat, phrase


def test_each_refusal_and_each_close_code_of_the_readme_has_the_name_of_its_number() -> None:
    refusals = SIGNATURES | {x.value: x.name for x in Reject}
    begin = next(i for i, (_, name) in enumerate(NAMED) if name == m.CloseCode.GOING_AWAY.name)
    assert len(NAMED) > begin > 10
    assert all(refusals[number] == name for number, name in NAMED[:begin])
    assert NAMED[begin:] == [(x.value, x.name) for x in m.CloseCode], "every one, in order"
    waiting = {number for number, name in NAMED[:begin] if f"`{name}` | wait `retry_ms`" in TEXT}
    assert waiting == {Reject.RATE_LIMITED, *RETRY_MS}
    assert {Reject.BAD_SIGNATURE, 1021} == SIGNATURES_WANTED


def test_the_limits_of_the_readme_are_those_of_the_code() -> None:
    x = DEFAULT_LIMITS
    of = {
        "a connection": (x.requests_per_s, x.requests_burst, x.cancels_per_s, x.cancels_burst),
        "an account, with all its connections": (
            x.account_requests_per_s, x.account_requests_burst,
            x.account_cancels_per_s, x.account_cancels_burst,
        ),
        "an address, with all its connections": (
            x.address_requests_per_s, x.address_requests_burst,
            x.address_cancels_per_s, x.address_cancels_burst,
        ),
    }  # fmt: skip
    for who, numbers in of.items():
        assert f"| {who} | " + " | ".join(f"{number:,}" for number in numbers) + " |" in TEXT
    said(
        "Most requests take one token, "
        + ", ".join(f"`{request}` {tokens}" for request, tokens in WEIGHTS.items()),
        f"one more for every {x.records_per_token} levels",
        f"one more for every {x.records_per_token} candles, trades",
        f"one more for every {x.records_per_token} entries of a list",
        f"{x.logins_per_s} times a second, {x.logins_burst:,} times at once",
        f"{x.subscriptions} subscriptions and {x.outbound_bytes:,} bytes unread",
        f"at most {x.frame_bytes:,} bytes",
    )


def test_the_times_and_amounts_of_settlement_are_those_of_the_code() -> None:
    node = SettlementSettings()
    day_s, hour_s = 86_400, 3_600
    assert (Terms().every_s, LAST_SECONDS, EPOCH_SECONDS) == (0.5, hour_s, day_s)
    assert COLLECT_USDC6_MIN == 10**6
    said(
        "half a second behind the ack",
        f"{node.batch_wait_seconds} seconds after the oldest fill that waits, or at "
        f"{node.fills_per_batch:,} fills, or at {node.batch_value_dollars:,} USDC",
        f"for {CHALLENGE_SECONDS // hour_s} hours from then",
        f"{SPOT_SECONDS_MAX // day_s} days at most",
        "5 seconds by default, the account",
        "at the beginning of the second day after that",
    )
    assert node.sign_within_seconds == 5
    contracts = "".join(path.read_text("utf-8") for path in CONTRACTS.glob("*.sol"))
    for constant, phrase in (
        ("BOND_DELAY = 100 days", "`finishBond()` 100 days later"),
        ("EXIT_DELAY = 7 days", "`finishExit()` 7 days later"),
        ("CLAIM_DELAY = 7 days", "not released 7 days after its end, anybody may close by `claim`"),
        ("SLASH_WINDOW = 30 days", "until 30 days after the end"),
        ("SLASH_FACTOR = 2;", "at most twice what was not delivered"),
        ("DEPOSIT_MIN = 1e6", "at least a dollar"),
        ("function deposit(uint256 amount, bool isBond)", "`deposit(amount, isBond)`"),
        ("function stop(Place calldata place)", "`stop(place)`"),
        ("function reportNonDelivery(Place calldata place)", "`reportNonDelivery(place)`"),
        ("function requestBond()", "`requestBond()`"),
        ("function requestExit()", "`requestExit()`"),
        ("function settle(uint48 id, bytes calldata fills)", "`settle(batch, fills)`"),
        ("uint48 batch; uint16 index; uint240 fill; bytes32[] path;",
         "`place` is `(batch, index, fill, path)`"),
    ):  # fmt: skip
        assert constant in " ".join(contracts.split()), constant
        said(phrase)


def test_the_readmes_tables_and_headings_are_whole() -> None:
    lines = TEXT.splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        assert not line.startswith("#") or (before == "" and after == ""), line
        assert not (before.startswith("|") and not line and after.startswith("|")), after
    anchors = {re.sub(r"[^a-z0-9 -]", "", x.lower()).replace(" ", "-") for x in HEADINGS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    for link in re.findall(r"\]\(([^#)][^)]*)\)", TEXT):
        assert (README.parent / link).exists(), link


def test_a_client_connects_where_a_node_listens_by_default() -> None:
    port = GatewaySettings().port
    assert f"ws://127.0.0.1:{port}/ws" in TEXT and f"ws://127.0.0.1:{port}/ws" in str(
        connect.__doc__
    )


# --- examples ------------------------------------------------------------------------------------
def test_every_stream_of_a_market_has_its_example() -> None:
    assert [name for name, _ in WATCHED] == list(FIRST)


async def test_each_stream_of_the_readme_gives_what_its_row_says(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        maker = await exchange.open_account(1, bond_usdc6=10**9)
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 10_000)
        async with await connect(url, maker) as seller, await connect(url, trader) as client:
            await seller.place(TICKER, "sell", "2.4", "8")
            await client.place(TICKER, "buy", "2.4", "8")
            for price_ticks, _ in ASKS:
                await seller.place(TICKER, "sell", price_text(price_ticks), "8")
            exchange.desk.feed.publish_index(m.Index(TICKER, "2.4500", "A", 1, 1))
            streams: dict[str, Any] = {}
            async with asyncio.timeout(RUN_S):
                for name, example in WATCHED:
                    # The text of our own README, which this test is about.
                    names = {"client": client, "market": TICKER}
                    streams[name] = await eval(example.replace("\\|", "|"), names)
                    assert FIRST[name](await anext(streams[name])), name
                await seller.place(TICKER, "sell", "2.45", "8")
                for name in ("book", "best levels", "conflated", "order by order"):
                    book = await anext(streams[name])
                    while book.levels("sell")[0] != (24_500, 800):
                        book = await anext(streams[name])
                    assert streams[name].resyncs == 0
                for name in ("ticker", "whole class"):
                    while (await anext(streams[name])).ask != "2.4500":
                        pass


def test_every_kind_of_order_has_its_example() -> None:
    assert [name for name, _ in ORDERS] == list(OUTCOMES)


@pytest.mark.parametrize(("name", "example"), ORDERS, ids=[name for name, _ in ORDERS])
async def test_each_order_of_the_readme_does_what_its_row_says(
    tmp_path: Path, name: str, example: str
) -> None:
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        resale = name == "resale"
        await exchange.list_market(SYMBOL.replace("SPOT", HOUR) if resale else SYMBOL)
        market = TICKER + HOURLY_SUFFIX if resale else TICKER
        maker = await exchange.open_account(1, bond_usdc6=10**9)
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 10_000)
        async with await connect(url, maker) as seller, await connect(url, trader) as client:
            await seller.place(market, "sell", "2.5", "16")
            if resale:
                await client.place(market, "buy", "2.5", "16")
            if "client_id=7" in example:
                await client.place(market, "buy", "1", "160", client_id=7)
            # The text of our own README, which this test is about.
            ack = await eval(example, {"client": client, "market": market, "New": New})
            if name == "replaced":
                assert ack.cancelled.qty == "160"
                ack = ack.order
            order = await client.order(ack.order_id)
            book = (await client.book(market)).book
            best = book.bids[0] if book.bids else (0, 0), book.asks[0] if book.asks else (0, 0)
            assert (order.state, order.price, order.left, *best) == OUTCOMES[name]


def test_every_order_of_several_has_its_example() -> None:
    assert [name for name, _ in OF_SEVERAL] == list(SEVERAL_OUTCOMES)


@pytest.mark.parametrize(("name", "example"), OF_SEVERAL, ids=[name for name, _ in OF_SEVERAL])
async def test_each_order_of_several_does_what_its_row_says(
    tmp_path: Path, name: str, example: str
) -> None:
    hours = [SYMBOL.replace("SPOT", f"H|2026-12-01T{hour}") for hour in (14, 15, 16)]
    elsewhere = SYMBOL.replace("us-e", "eu-n")
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        maker = await exchange.open_account(1, bond_usdc6=10**9)
        trader = await exchange.open_account(2, cash_usdc6=10**9, bond_usdc6=10**9)
        async with await connect(url, maker) as seller, await connect(url, trader) as client:
            for symbol in (SYMBOL, elsewhere, *hours):
                instrument = await exchange.list_market(symbol)
                await exchange.declare(1, instrument, 10_000)
                await exchange.declare(2, instrument, 10_000)
                price = "2.45" if symbol == elsewhere else "2.5"
                await seller.place(symbol, "sell", price, "16")
            names = {"client": client, "market": TICKER, "elsewhere": elsewhere, "Leg": Leg}
            # The text of our own README, which this test is about.
            ack = await eval(example.replace("\\|", "|"), {**names, "hour": hours[0]})
            books = [(await client.book(x)).book for x in (SYMBOL, elsewhere, hours[2])]
            left = [book.asks[0][1] for book in books]
            assert (ack.count, ack.amount, left) == SEVERAL_OUTCOMES[name]
            if name == "mass quote":
                assert books[0].bids == [(24_000, 800), (23_900, 800)]
                assert (await client.quote(TICKER)).count == 0, "none takes them off"
                assert not (await client.book(TICKER)).book.bids


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_several_requests_go_in_one_frame_in_either_codec(
    tmp_path: Path, codec: Literal["json", "msgpack"]
) -> None:
    elsewhere = SYMBOL.replace("us-e", "eu-n")
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        for symbol in (SYMBOL, elsewhere):
            await exchange.list_market(symbol)
        wallet_ = await exchange.open_account(2, cash_usdc6=10**9)
        async with await connect(url, wallet_, codec=codec) as client:
            assert client.hello.subprotocol == f"compex.v1.{codec}"
            kinds = {"New": New, "Cancel": Cancel, "Quote": Quote}
            names = {"client": client, "market": TICKER, "elsewhere": elsewhere, **kinds}
            await client.place(TICKER, "buy", "1", "160", client_id=7)
            assert [name for name, _ in IN_ONE_FRAME] == ["batch", "quotes of several markets"]
            # The text of our own README, which this test is about.
            cancelled, placed = await eval(IN_ONE_FRAME[0][1], names)
            assert (cancelled.client_id, cancelled.qty, placed.client_id) == (7, "160", 8)
            assert [order.client_id for order in await client.open_orders()] == [8]
            quoted = await eval(IN_ONE_FRAME[1][1], names)
            assert [ack.count for ack in quoted] == [1, 1]
            refused, taken = await client.batch(
                [New(0, TICKER, "buy", "0", "8"), New(0, TICKER, "buy", "1", "8")]
            )
            assert isinstance(refused, m.Reject) and refused.code == 2001
            assert isinstance(taken, m.Ack)
            with pytest.raises(Rejected, match="2006"):
                await client.replace(New(0, TICKER, "buy", "1", "8"), old_client_id=7)


async def test_the_clocks_offset_is_measured_by_pings(tmp_path: Path) -> None:
    [(_, example)] = CLOCK
    async with (
        running_exchange(tmp_path) as exchange,
        running_server(exchange) as (_, url),
        await connect(url) as client,
    ):
        exchange.desk.time_ns = time.time_ns
        # The text of our own README, which this test is about.
        here = await eval(example, {"client": client})
        rounding_us = 4
        assert 2 * abs(here.offset_us) <= here.round_trip_us + rounding_us, "one clock, in fact"
        hour_ns = 3_600 * 10**9
        late = await client.clock_offset(4, lambda: time.time_ns() - hour_ns)
        beyond_us = late.offset_us - hour_ns // 1_000
        assert 2 * abs(beyond_us) <= late.round_trip_us + rounding_us


async def test_what_is_sequenced_is_told_before_it_is_durable_and_acked_after(
    tmp_path: Path,
) -> None:
    (told, subscribe), (level, place) = LEVELS
    disk = HeldDisk()
    async with (
        running_exchange(tmp_path, disk=disk) as exchange,
        running_server(exchange) as (_, url),
    ):
        await exchange.list_market()
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        async with await connect(url, trader) as client, asyncio.timeout(RUN_S):
            # The text of our own README, which this test is about.
            names = {"client": client, "market": TICKER}
            notices = await eval(subscribe, names)
            disk.hold()
            syncs = disk.syncs
            placing = asyncio.ensure_future(eval(place, names))
            notice = await anext(notices)
            assert msgspec.structs.asdict(notice)["client_id"] == 9
            assert notice.__struct_config__.tag == told
            assert exchange.port.ready().durable_sequence == notice.sequence - 1
            assert disk.syncs == syncs and not placing.done()
            disk.let_go()
            ack = await placing
            assert (ack.level, ack.sequence) == (level, notice.sequence)
            assert disk.syncs > syncs


async def test_keys_are_let_in_bound_listed_and_revoked_as_the_rows_say(tmp_path: Path) -> None:
    bot, examples = wallet(7), dict(KEYS)
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        owner = await exchange.open_account(1, cash_usdc6=10**9)
        master = await exchange.open_account(2, cash_usdc6=10**9)
        elsewhere = SYMBOL.replace("us-e", "eu-n")
        await exchange.list_market(elsewhere)
        names = {"bot": bot, "master": master, "market": TICKER, "Scope": Scope}

        async with await connect(url, owner) as client, await connect(url, master) as of_master:

            async def run(name: str, whose: Client = client) -> Any:
                # The text of our own README, which this test is about.
                return await eval(examples.pop(name), {"client": whose, **names})

            await run("let a key trade")
            async with await connect(url, owner.address, key=bot) as trader:
                assert (await trader.place(TICKER, "buy", "1", "1")).level == "durable"
                assert (await trader.balances()).held == "1"
                for refused, code in (
                    (trader.place(elsewhere, "buy", "1", "1"), Reject.MARKET_OUT_OF_SCOPE),
                    (trader.withdraw("1"), Reject.OUT_OF_SCOPE),
                ):
                    with pytest.raises(Rejected) as caught:
                        await refused
                    assert caught.value.code == code
                await run("let a key watch")  # which is less
                with pytest.raises(Disconnected) as lost:
                    await trader.ping()
                assert lost.value.code == m.CloseCode.KEY_REVOKED
            async with await connect(url, owner.address, key=bot) as watcher:
                assert len(await watcher.open_orders()) == 1
                with pytest.raises(Rejected):
                    await watcher.cancel_all(TICKER)
            assert [key.scopes for key in await run("list the keys")] == [Scope.READ]
            await run("make a sub-account")
            async with await connect(url, owner.address, key=master) as for_owner:
                assert for_owner.account == 1 and (await for_owner.cancel_all()).count == 1
            [sub] = await run("see for whom one may act", of_master)
            assert (sub.wallet, sub.account) == (owner.address, 1)
            assert (await run("revoke a key")).count == 1
            shelved = SessionKey(  # signed, and not shown to the exchange yet
                owner.address_bytes, wallet(9).address_bytes, 7, (), 0, 2**32 - 1, START_NS // 1_000
            )
            signature = owner.sign_session_key(client.domain, shelved)
            assert (await run("revoke all keys")).count == 1
            with pytest.raises(Rejected) as caught:
                await client.send_authorisation(shelved, signature)
            assert caught.value.code == Reject.NONCE_REPLAYED
            for key in (bot, master):
                with pytest.raises(Rejected) as caught:
                    await connect(url, owner.address, key=key)
                assert caught.value.code == Reject.KEY_REVOKED
            exchange.clock.advance_to(START_NS + 10**9)
            async with await connect(url) as anybody:  # the wallet is far away
                await anybody.authorise(bot.address, wallet=owner)
                assert (await anybody.revoke(wallet=owner)).count == 1
    assert not examples


async def test_who_was_cut_off_resumes_reads_and_is_safe_as_the_rows_say(tmp_path: Path) -> None:
    resume, fills, leases, disconnect, dead_man = (example for _, example in AWAY)
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        maker = await exchange.open_account(1, bond_usdc6=10**9)
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 10_000)
        async with (
            await connect(url, maker) as seller,
            await connect(url, trader, session=3) as client,
            asyncio.timeout(RUN_S),
        ):
            await seller.place(TICKER, "sell", "2.5", "16")
            await client.place(TICKER, "buy", "2.5", "16")
            # The text of our own README, which this test is about.
            names = {"client": client}
            stream: Stream[PrivateMessage] = await eval(resume, names)
            heard: list[PrivateMessage] = []
            while not heard or not isinstance(heard[-1], m.CaughtUp):
                heard.append(await anext(stream))
            numbered = [m.Transfer, m.Order, m.Fill, m.Lease]
            assert [type(x) for x in heard] == [*numbered, m.CaughtUp]
            assert await eval(fills, names) == heard[2:3]
            assert await eval(leases, names) == heard[3:4]
            armed: list[m.Armed] = (await eval(disconnect, names)).armed + (
                await eval(dead_man, names)
            ).armed
            said = {(x.what, x.scope, x.ms) for x in armed}
            assert said == {
                ("cancel_on_disconnect", "session", 5_000),
                ("dead_man", "session", 60_000),
            }
            async with await connect(url, trader) as nameless:  # it has no session
                for example in (disconnect, dead_man):
                    with pytest.raises(Rejected) as caught:
                        await eval(example, {"client": nameless})
                    assert (caught.value.code, caught.value.field) == (1003, "scope")
                    whole = example.replace(")", ', scope="account")')
                    assert (await eval(whole, {"client": nameless})).armed


async def test_the_readmes_history_goes_on_after_the_server_was_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, example = EXAMPLES
    names: dict[str, Any] = {}
    exec(example, names)
    said = ""

    async def until_said(words: str) -> None:
        nonlocal said
        async with asyncio.timeout(RUN_S):
            while words not in said:
                await asyncio.sleep(0.01)
                said += capsys.readouterr().out

    async with running_exchange(tmp_path) as exchange:
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        async with running_server(exchange) as (first, url):
            port = first.address[1]
            watching = asyncio.create_task(names["watch"](url, trader.export_secret(), 0))
            await until_said("1 Transfer(")
        exchange.deposit(2, 5)
        await exchange.port.settled()
        second = GatewayServer(exchange.desk, Health(exchange.port), port=port)
        await second.start()
        await until_said("2 Transfer(")
        exchange.deposit(2, 6)
        await until_said("3 Transfer(")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await second.stop()
    numbers = [line.split()[0] for line in said.splitlines()]
    assert numbers == ["1", "2", "3"]


async def test_a_market_is_called_indicated_and_uncrossed(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        maker = await exchange.open_account(1, bond_usdc6=10**9)
        trader = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 10_000)
        async with (
            await connect(url, ADMINISTRATOR) as administrator,
            await connect(url, maker) as seller,
            await connect(url, trader) as client,
        ):
            await administrator.call_market(TICKER)
            auctions, statuses = await client.auctions(TICKER), await client.statuses(TICKER)
            assert (await anext(statuses)).status == "call"
            await seller.place(TICKER, "sell", "2.4", "16")
            await client.place(TICKER, "buy", "2.6", "24")
            exchange.clock.advance_to(START_NS + 2 * 10**9)
            async with asyncio.timeout(RUN_S):
                told = await anext(auctions)
                assert (told.qty, told.surplus, told.side, told.final) == ("16", "8", "buy", False)
                ack = await administrator.uncross_market(TICKER)
                assert (ack.qty, ack.partial) == ("16", False)
                while not told.final:
                    told = await anext(auctions)
                assert (told.price, told.qty) == (ack.price, "16")
                assert (await anext(statuses)).status == "open"
            await administrator.set_bands(TICKER, static_ppm=50_000, reference="2.5")
            with pytest.raises(Rejected, match="4009"):
                await client.place(TICKER, "buy", "2.7", "1")


async def test_the_readmes_example_trades(tmp_path: Path) -> None:
    example, _ = EXAMPLES
    script = tmp_path / "first.py"
    script.write_text(example, "utf-8")
    async with running_exchange(tmp_path) as exchange, running_server(exchange) as (_, url):
        await exchange.list_market()
        await exchange.open_account(1, bond_usdc6=10**9)
        buyer = await exchange.open_account(2, cash_usdc6=10**9)
        await exchange.declare(1, 1, 1_000)
        seller = exchange.converse(wallet(101))
        seller.session.receive(
            f'{{"t":"new","id":2,"market":"{TICKER}","side":"sell","price":"2.5","qty":"1"}}'
        )
        orders: set[str] = set()
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(script),
                url,
                buyer.export_secret(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(RUN_S):
                said, _ = await process.communicate()
            lines = said.decode().splitlines()
            assert process.returncode == 0, said.decode()
            assert lines[0].startswith("resting as order")
            orders.add(lines[0])
            assert "(500, 1)" in lines[1]
            assert "price='2.5000'" in lines[2] and "liquidity='taker'" in lines[2]
            assert lines[3].startswith("2001 PRICE_OUT_OF_RANGE")
            assert lines[4] == "cancelled 1"
        assert len(orders) == 2, "another run places another order"
