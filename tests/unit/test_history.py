"""What is kept of private streams is what was told, and is told again exactly, or refused."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from compex_client import messages as m

from engine.records import SECOND_NS
from engine.rejects import Reject
from gateway import history, wire
from gateway.facts import KIND_OF, ORDER, Fact, aseq_of, message
from gateway.history import History, Keep
from gateway.history_file import (
    ASEQ_MAX,
    EVERY,
    MIGRATIONS,
    PAGE_RECORDS,
    PAGES_AT_ONCE,
    STREAMS,
    Found,
    Group,
    HistoryError,
    HistoryFile,
    Kept,
)
from gateway.hub import Topic
from gateway.limits import Outbox
from gateway.mirror import CLOSED_ORDERS_KEPT
from gateway.session import Session
from tests.exchange import TICKER, Conversation, Exchange, running_exchange, wallet

SELLER, BUYER = 1, 2
SOON_SECONDS = 30.0


async def set_up(exchange: Exchange) -> None:
    instrument = await exchange.list_market()
    await exchange.open_account(SELLER, bond_usdc6=10**12)
    await exchange.open_account(BUYER, cash_usdc6=10**12)
    await exchange.declare(SELLER, instrument, 10**8)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path) as running:
        await set_up(running)
        yield running


def trader(exchange: Exchange, account: int) -> Conversation:
    return exchange.converse(wallet(100 + account))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not true():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.002)


async def trades(exchange: Exchange, count: int) -> None:
    """So many fills, one after the other, with client ids from 1."""
    seller, buyer = trader(exchange, SELLER), trader(exchange, BUYER)
    for number in range(1, count + 1):
        seller.say(m.New(number, TICKER, "sell", "2.5", "1", client_id=number))
        buyer.say(m.New(number, TICKER, "buy", "2.5", "1", client_id=number, tif="ioc"))
    await exchange.port.settled()


async def resumed(
    conversation: Conversation, from_aseq: int, request_id: int = 900
) -> list[m.ServerMessage]:
    """The ack's followers, up to and with what says that this is the present."""
    heard = conversation.say(m.Subscribe(request_id, "account", from_aseq=from_aseq))
    async with asyncio.timeout(SOON_SECONDS):
        while not any(isinstance(x, m.CaughtUp | m.Reject) for x in heard):
            await asyncio.sleep(0.002)
            heard += conversation.heard()
    return heard


async def answer_about(exchange: Exchange, account: int, client_id: int) -> m.Ack:
    conversation = trader(exchange, account)
    heard = conversation.say(m.Query(5_000, "order", client_id=client_id))
    async with asyncio.timeout(SOON_SECONDS):
        while not heard:
            await asyncio.sleep(0.002)
            heard = conversation.heard()
    [ack] = heard
    assert isinstance(ack, m.Ack)
    return ack


def numbered(messages: list[m.ServerMessage]) -> list[m.Numbered]:
    return [x for x in messages if isinstance(x, m.NUMBERED)]


async def test_from_a_number_on_every_message_comes_as_it_was_then_the_present(
    exchange: Exchange,
) -> None:
    live = trader(exchange, BUYER)
    live.say(m.Subscribe(2, "account"))
    begin = exchange.desk.feed.account(BUYER).aseq
    await trades(exchange, 20)
    told = numbered(live.heard())
    again = trader(exchange, BUYER)
    ack, *messages, caught_up = await resumed(again, begin + 1)
    assert isinstance(ack, m.Ack) and messages == told
    assert isinstance(caught_up, m.CaughtUp) and caught_up.aseq == told[-1].aseq
    assert caught_up.balances == exchange.desk.feed.balances(BUYER)
    await trades(exchange, 1)  # the same client ids: they are known
    trader(exchange, BUYER).say(m.New(3, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    assert again.heard() == live.heard() != []


@pytest.mark.parametrize("codec", [wire.JSON, wire.MSGPACK])
async def test_a_copy_on_another_connection_has_the_very_same_bytes_then_or_later(
    exchange: Exchange, codec: wire.Codec
) -> None:
    begin = exchange.desk.feed.account(BUYER).aseq
    outboxes = [Outbox(1 << 20, lambda: None, lambda: None) for _ in range(3)]
    account = Topic("account", BUYER)
    one, two, late = (Session(exchange.desk, outbox, codec) for outbox in outboxes)
    for session in (one, two):
        exchange.desk.feed.subscribe(session, account)
    reader = trader(exchange, BUYER)
    reader.say(m.Subscribe(2, "account"))
    await trades(exchange, 5)
    told = [b"".join(outbox.take()) for outbox in outboxes]
    assert told[0] == told[1] and told[2] == b""
    exchange.desk.feed.resume(late, account, begin + 1)
    frames = b""
    async with asyncio.timeout(SOON_SECONDS):
        while b"caught_up" not in frames:
            frames += b"".join(outboxes[2].take())
            await asyncio.sleep(0.002)
    each = [codec.encode(message) for message in numbered(reader.heard())]
    assert frames.startswith(b"".join(each)) and all(frame in told[0] for frame in each)


async def test_a_number_from_the_future_or_of_another_channel_is_refused(
    exchange: Exchange,
) -> None:
    buyer = trader(exchange, BUYER)
    last = exchange.desk.feed.account(BUYER).aseq
    [refused] = buyer.say(m.Subscribe(2, "account", from_aseq=last + 2))
    assert isinstance(refused, m.Reject)
    assert (refused.code, refused.field) == (Reject.INVALID_FIELD, "from_aseq")
    [refused] = buyer.say(m.Subscribe(3, "trades", TICKER, from_aseq=1))
    assert isinstance(refused, m.Reject) and refused.code == Reject.INVALID_FIELD
    ack, caught_up = await resumed(buyer, last + 1)
    assert isinstance(ack, m.Ack) and isinstance(caught_up, m.CaughtUp)


async def test_what_is_older_than_what_is_kept_is_refused_with_the_oldest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_exchange(tmp_path, keep=Keep(messages=40)) as exchange:
        await set_up(exchange)
        await trades(exchange, 100)
        last = exchange.desk.feed.account(BUYER).aseq
        kept = exchange.desk.history
        await until(lambda: last - kept.oldest_of(BUYER, 0) < 50)
        oldest = kept.oldest_of(BUYER, 0)
        assert last - oldest + 1 >= 40
        buyer = trader(exchange, BUYER)
        [gone] = await resumed(buyer, oldest - 1)
        assert isinstance(gone, m.Reject) and gone.code == Reject.HISTORY_GONE
        assert str(oldest) in gone.message
        messages = numbered(await resumed(buyer, oldest, 901))
        assert [x.aseq for x in messages] == list(range(oldest, last + 1))
    async with running_exchange(tmp_path) as exchange:
        [gone] = await resumed(trader(exchange, BUYER), oldest - 1)
        assert isinstance(gone, m.Reject) and str(oldest) in gone.message


async def test_a_slow_reader_is_told_a_page_when_it_has_taken_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "READ_RECORDS", 16)
    limits = m.Limits(10_000, 10_000, 10_000, 10_000, 16_384, 8_192, 256)
    async with running_exchange(tmp_path, limits) as exchange:
        await set_up(exchange)
        await trades(exchange, 100)
        slow, buyer = trader(exchange, BUYER), trader(exchange, BUYER)
        slow.session.receive('{"t":"subscribe","id":5,"channel":"account","from_aseq":1}')
        heard: list[m.ServerMessage] = []
        async with asyncio.timeout(SOON_SECONDS):
            while not any(isinstance(x, m.CaughtUp) for x in heard):
                await asyncio.sleep(0.002)
                buyer.say(m.New(9, TICKER, "buy", "1", "1", tif="ioc"))  # others go on meanwhile
                await exchange.port.settled()
                taken = slow.heard()
                assert len(taken) < 60, "no more at once than there is room for"
                heard += taken
        last = exchange.desk.feed.account(BUYER).aseq
        assert not slow.overflowed
        assert [x.aseq for x in numbered(heard)] == list(range(1, last + 1))


async def test_who_unsubscribes_or_leaves_on_its_way_hears_nothing_more(
    exchange: Exchange,
) -> None:
    await trades(exchange, 10)
    one, two, three = (trader(exchange, BUYER) for _ in range(3))
    for conversation in (one, two, three):
        conversation.session.receive('{"t":"subscribe","id":5,"channel":"account","from_aseq":1}')
    one.say(m.Unsubscribe(6, "account"))
    two.session.close()
    three.say(m.Subscribe(6, "account"))  # a snapshot instead
    *_, caught_up = await resumed(trader(exchange, BUYER), 1)
    assert isinstance(caught_up, m.CaughtUp)
    one.heard()
    trader(exchange, BUYER).say(m.New(99, TICKER, "buy", "1", "1"))
    await exchange.port.settled()
    assert one.heard() == two.heard() == []
    assert [type(x) for x in three.heard()] == [m.Order, m.Balance]


async def test_an_order_that_the_mirror_has_forgotten_is_told_by_its_client_id(
    exchange: Exchange,
) -> None:
    buyer, seller = trader(exchange, BUYER), trader(exchange, SELLER)
    seller.say(m.New(1, TICKER, "sell", "2.5", "3", client_id=1))
    buyer.say(m.New(1, TICKER, "buy", "2.5", "1", client_id=1 << 40, tif="ioc"))
    await exchange.port.settled()
    seller.say(m.Cancel(2, client_id=1))
    await exchange.port.settled()
    order = exchange.desk.feed.account(SELLER).find(0, 1)
    assert order is not None
    known = exchange.desk.feed.mirror.order_info(order)
    for number in range(3, 3 + CLOSED_ORDERS_KEPT + 5):
        seller.say(m.New(number, TICKER, "sell", "2.5", "1", client_id=number, tif="ioc"))
    for _ in range(2):  # a cancel that waits for its order is submitted when that is answered
        await exchange.port.settled()
    assert exchange.desk.feed.account(SELLER).find(0, 1) is None
    seller.heard()
    [never] = seller.say(m.Query(5_000, "order", client_id=1 << 41))
    assert isinstance(never, m.Reject) and never.code == Reject.UNKNOWN_ORDER
    assert (await answer_about(exchange, SELLER, 1)).order == known
    assert (known.state, known.left, known.qty) == ("cancelled", "0", "3")


async def test_fills_and_leases_are_read_from_a_number_on(exchange: Exchange) -> None:
    live = trader(exchange, BUYER)
    live.say(m.Subscribe(2, "account"))
    await trades(exchange, 10)
    told = live.heard()
    fills = [x for x in told if isinstance(x, m.Fill)]
    leases = [x for x in told if isinstance(x, m.Lease)]
    kept = exchange.desk.history
    for wait in (False, True):  # from memory, and from the file
        if wait:
            await until(lambda: kept.is_written)
        assert kept.fills(BUYER, 0, 100) == fills and kept.leases(BUYER, 0, 100) == leases
        assert kept.fills(BUYER, fills[3].aseq, 2) == fills[4:6]
        assert kept.fills(SELLER, 0, 1)[0].trade_id == fills[0].trade_id
        assert kept.fills(BUYER, ASEQ_MAX, 100) == kept.leases(BUYER, 1 << 53, 100) == []
    heard = live.say(m.Query(50, "fills", from_aseq=fills[4].aseq, limit=3))
    heard += live.say(m.Query(51, "leases"))
    async with asyncio.timeout(SOON_SECONDS):
        while len(heard) < 2:
            await asyncio.sleep(0.002)
            heard += live.heard()
    one, two = heard
    assert isinstance(one, m.Ack) and one.fills == fills[4:7]
    assert isinstance(two, m.Ack) and two.leases == leases


async def test_rejects_are_numbered_with_what_was_asked(exchange: Exchange) -> None:
    buyer = trader(exchange, BUYER)
    buyer.say(m.Subscribe(2, "account"))
    buyer.say(m.New(3, TICKER, "sell", "2.5", "1", client_id=9))
    buyer.say(m.Cancel(4, order_id=77))
    buyer.say(m.CancelAll(5))
    await exchange.port.settled()
    sell, cancel, done = numbered(buyer.heard())
    assert isinstance(sell, m.OrderRejected) and isinstance(cancel, m.OrderRejected)
    assert (sell.request, sell.client_id, sell.order_id) == ("new", 9, 0)
    assert sell.code == Reject.INSUFFICIENT_CAPACITY and sell.message
    assert (cancel.request, cancel.order_id) == ("cancel", 77)
    assert isinstance(done, m.CancelledAll) and (done.cause, done.count) == ("request", 0)


# --- the file ------------------------------------------------------------------------------------
async def test_a_file_of_another_journal_is_not_taken(tmp_path: Path) -> None:
    async with running_exchange(tmp_path / "a") as exchange:
        await set_up(exchange)
        await trades(exchange, 3)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "history.sqlite3").rename(tmp_path / "b" / "history.sqlite3")
    with pytest.raises(HistoryError, match="another journal"):
        async with running_exchange(tmp_path / "b"):
            raise AssertionError("it started")


async def test_a_lost_file_is_made_anew_from_the_journal(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        await set_up(exchange)
        await trades(exchange, 10)
        before = numbered(await resumed(trader(exchange, BUYER), 1))
    (tmp_path / "history.sqlite3").unlink()
    async with running_exchange(tmp_path) as exchange:
        assert numbered(await resumed(trader(exchange, BUYER), 1)) == before


def test_a_file_of_a_later_build_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    HistoryFile(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(HistoryError, match="later build"):
        HistoryFile(path)


def group_of(account: int, first: int, last: int) -> Group:
    """Orders with these numbers, each of a client id of its own, an event and a second apart."""
    group = Group()
    for aseq in range(first, last + 1):
        fact = Fact(
            aseq=aseq, time_ns=aseq * SECOND_NS, client_id=1_000 + aseq, account=account, kind=ORDER
        )
        group.streams[EVERY].setdefault(account, []).append(fact.pack())
    group.count, group.event, group.raw = last - first + 1, 2 * last, b"raw"
    group.begun[account] = first
    return group


def numbers(kept: Iterable[Kept]) -> list[int]:
    return [aseq_of(record) for record in kept if isinstance(record, bytes)]


def test_a_group_is_written_whole_with_what_it_covers_and_again_is_harmless(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.sqlite3"
    file = HistoryFile(path)
    first, last = 1, PAGE_RECORDS + 100  # two pages
    for _ in range(2):
        file.write(group_of(7, first, last))
    broken = group_of(7, last + 1, last + 5)
    broken.raw = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(sqlite3.IntegrityError):
        file.write(broken)
    file.close()
    file = HistoryFile(path)
    assert file.covered() == (2 * last, b"raw")
    assert numbers(file.read(EVERY, 7, 1, 10_000)) == list(range(first, last + 1))
    assert numbers(file.read(EVERY, 7, 300, 300)) == list(range(300, 600)), "of both pages"
    assert file.read(EVERY, 6, 1, 10) == file.read(EVERY, 8, 1, 10) == []
    file.trim(7, 300)
    assert file.oldest() == {7: 300}
    assert numbers(file.read(EVERY, 7, 300, 1)) == [300]
    file.trim(7, PAGE_RECORDS + 1)
    assert numbers(file.read(EVERY, 7, 1, 1)) == [PAGE_RECORDS + 1], "a page whole"
    assert file.first_since(7, 600 * SECOND_NS) == 600
    assert file.first_since(7, 600 * SECOND_NS + 1) == 601
    assert file.first_since(7, (last + 1) * SECOND_NS) == 0
    file.close()


def test_from_a_number_that_no_message_can_have_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = HistoryFile(tmp_path / "history.sqlite3")
    file.write(group_of(7, 1, PAGE_RECORDS))
    assert file.read(EVERY, 7, ASEQ_MAX, 10) == []
    searched = list[int]()

    def search(_file: HistoryFile, _stream: int, _account: int, from_aseq: int) -> Iterable[bytes]:
        searched.append(from_aseq)
        return ()

    monkeypatch.setattr(HistoryFile, "_records", search)
    for stream in STREAMS:
        for from_aseq in (ASEQ_MAX + 1, 1 << 40, 1 << 53):
            assert file.read(stream, 7, from_aseq, 10) == []
    assert not searched, "or whole streams would be"
    file.close()


async def test_a_group_that_seemed_to_fail_and_did_not_is_in_the_file_once(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failed = HistoryFile.write, list[int]()

    def fail_behind_it(file: HistoryFile, group: Group) -> None:
        write(file, group)
        if len(failed) < 2:
            failed.append(group.count)
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(history, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(history, "LINGER_SECONDS", 0.01)
    monkeypatch.setattr(HistoryFile, "write", fail_behind_it)
    kept = exchange.desk.history
    await trades(exchange, 5)
    await until(lambda: bool(failed))
    await trades(exchange, 12)  # the first five are known
    await until(lambda: kept.is_written)
    assert failed[0] == failed[1], "the same again"
    messages = numbered(await resumed(trader(exchange, BUYER), 1))
    last = exchange.desk.feed.account(BUYER).aseq
    assert [x.aseq for x in messages] == list(range(1, last + 1))


# --- of an earlier build -------------------------------------------------------------------------
def as_an_earlier_build_left_it(path: Path) -> None:
    """A message a row, as it was told, and no pages."""
    file = HistoryFile(path)
    database = sqlite3.connect(path)
    for account in (SELLER, BUYER):
        for record in file.read(EVERY, account, 1, 10_000):
            assert isinstance(record, bytes)
            told = message(record, lambda _: TICKER)
            client_id = told.client_id if isinstance(told, m.Order | m.Fill) else 0
            row = (account, told.aseq, 1, KIND_OF[type(told)], client_id, told.time_us)
            packed = msgspec.msgpack.encode(told)
            database.execute("INSERT INTO private VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, packed))
    file.close()
    database.execute("DROP TABLE page")
    database.execute("PRAGMA user_version = 1")
    database.commit()
    database.close()


async def test_what_an_earlier_build_kept_is_told_on_together_with_what_came_since(
    tmp_path: Path,
) -> None:
    async with running_exchange(tmp_path) as exchange:
        await set_up(exchange)
        await trades(exchange, 10)
        before = numbered(await resumed(trader(exchange, BUYER), 1))
    as_an_earlier_build_left_it(tmp_path / "history.sqlite3")
    async with running_exchange(tmp_path) as exchange:
        buyer, kept = trader(exchange, BUYER), exchange.desk.history
        assert numbered(await resumed(buyer, 1)) == before
        live = trader(exchange, BUYER)
        live.say(m.Subscribe(2, "account"))
        for number in range(11, 11 + CLOSED_ORDERS_KEPT + 5):
            buyer.say(m.New(number, TICKER, "buy", "1", "1", client_id=number, tif="ioc"))
        trader(exchange, SELLER).say(m.New(1_000, TICKER, "sell", "2.5", "1", client_id=1_000))
        buyer.say(m.New(1_000, TICKER, "buy", "2.5", "1", client_id=1_000))
        await exchange.port.settled()
        since = numbered(live.heard())
        for wait in (False, True):  # from memory, and from the file
            if wait:
                await until(lambda: kept.is_written)
            assert numbered(await resumed(trader(exchange, BUYER), 5)) == before[4:] + since
            told = before + since
            fills = [x for x in told if isinstance(x, m.Fill)]
            assert kept.fills(BUYER, 0, 100) == fills and len(fills) == 11
            assert kept.fills(BUYER, fills[7].aseq, 3) == fills[8:]
            assert kept.leases(BUYER, 0, 100) == [x for x in told if isinstance(x, m.Lease)]
        order = (await answer_about(exchange, BUYER, 3)).order
        first = next(x for x in before if isinstance(x, m.Order) and x.client_id == 3)
        assert order is not None and (order.state, order.left) == ("filled", "0")
        assert (order.time_us, order.order_id) == (first.time_us, first.order_id)


async def test_what_an_earlier_build_kept_is_trimmed_by_count_and_by_age(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        await set_up(exchange)
        await trades(exchange, 30)
        last = exchange.desk.feed.account(BUYER).aseq
    path = tmp_path / "history.sqlite3"
    as_an_earlier_build_left_it(path)
    file = HistoryFile(path)
    some = file.read(EVERY, BUYER, 1, 1_000)
    file.trim(BUYER, 10)
    [tenth] = file.read(EVERY, BUYER, 1, 1)
    assert tenth == some[9] and isinstance(tenth, m.NUMBERED)
    assert file.first_since(BUYER, 1) == 10
    latest = some[-1]
    assert isinstance(latest, m.NUMBERED)
    assert file.first_since(BUYER, (latest.time_us + 1) * 1_000) == 0
    file.close()
    async with running_exchange(tmp_path, keep=Keep(messages=40)) as exchange:
        kept = exchange.desk.history
        assert kept.oldest_of(BUYER, 0) == 10
        for number in range(last, last + 60):
            trader(exchange, BUYER).say(m.New(3, TICKER, "buy", "1", "1", client_id=number))
        await exchange.port.settled()
        last = exchange.desk.feed.account(BUYER).aseq
        await until(lambda: last - kept.oldest_of(BUYER, 0) < 50)
    database = sqlite3.connect(path)
    [(left,)] = database.execute("SELECT count(*) FROM private WHERE account = ?", (BUYER,))
    database.close()
    assert left == 0


# --- orders by client id -------------------------------------------------------------------------
@pytest.fixture
async def long_kept(tmp_path: Path) -> AsyncGenerator[History]:
    """Account 7 has much, 8 little."""
    path = tmp_path / "history.sqlite3"
    file = HistoryFile(path)
    for first in range(1, 4_000, 20):
        file.write(group_of(7, first, first + 19))
    file.write(group_of(8, 1, 10))
    file.close()
    kept = History(path)
    kept.ticker = lambda _: TICKER
    yield kept
    await kept.close()


async def test_who_asks_for_many_orders_keeps_nobody_else_waiting(
    long_kept: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "SEARCHED_RECORDS", 250)
    monkeypatch.setattr(history, "SEARCHES_MAX", 3)
    answers: list[tuple[str, int]] = []

    def hear(name: str) -> Callable[[m.OrderInfo | None], None]:
        return lambda order: answers.append((name, order.client_id if order else 0))

    assert long_kept.ask_order(7, 1, hear("nothing"))
    assert long_kept.ask_order(7, 1_000 + 1, hear("oldest"))
    assert long_kept.ask_order(7, 1_000 + 4_000, hear("newest"))
    assert not long_kept.ask_order(7, 1_002, hear("too many"))
    assert long_kept.ask_order(8, 1_000 + 1, hear("another's"))
    long_kept.ask(7, lambda file: file.armed(), lambda _: answers.append(("armed", 0)))
    await until(lambda: len(answers) == 5)
    assert answers == [
        ("armed", 0), ("another's", 1_001), ("nothing", 0), ("oldest", 1_001), ("newest", 5_000)
    ]  # fmt: skip
    assert long_kept.ask_order(7, 1_002, hear("again"))


async def test_a_search_looks_at_a_part_at_a_time_and_at_no_record_twice(
    long_kept: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    search = HistoryFile.search

    def count(*of: Any) -> Found:
        found = search(*of)
        looked.append(found.looked)
        return found

    monkeypatch.setattr(history, "SEARCHED_RECORDS", 250)
    monkeypatch.setattr(HistoryFile, "search", count)
    answers: list[m.OrderInfo | None] = []
    long_kept.ask_order(7, 1, answers.append)
    await until(lambda: bool(answers))
    assert answers == [None]
    assert sum(looked) == 4_000 and max(looked) < 250 + PAGES_AT_ONCE * 20


async def test_while_the_file_cannot_be_written_orders_wait_and_cancels_do_not(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    buyer = trader(exchange, BUYER)
    buyer.say(m.New(3, TICKER, "buy", "2.5", "1", client_id=3))
    await exchange.port.settled()
    buyer.heard()
    monkeypatch.setattr(history, "WAITING_MAX", 1)
    monkeypatch.setattr(history, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(HistoryFile, "write", fail)
    buyer.say(m.New(4, TICKER, "buy", "2.5", "1", client_id=4))
    await exchange.port.settled()
    buyer.heard()
    [busy] = buyer.say(m.New(5, TICKER, "buy", "2.5", "1"))
    assert isinstance(busy, m.Reject) and busy.code == Reject.BUSY
    buyer.say(m.Cancel(6, client_id=3))
    await exchange.port.settled()
    [ack] = buyer.heard()
    assert isinstance(ack, m.Ack)
    monkeypatch.undo()
    await until(exchange.desk.history.has_room)
    messages = numbered(await resumed(buyer, 1))
    assert [x.aseq for x in messages] == list(range(1, len(messages) + 1))


async def test_in_memory_nothing_is_written_and_all_is_told(exchange: Exchange) -> None:
    kept = History()
    assert kept.heard() > 1 << 60, "a start may leave out what is before it"
    await kept.close()
