"""Orders of who has gone silent are cancelled when their time is over, and not before."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from compex_client import messages as m

from engine.rejects import Reject
from gateway import absence, history
from gateway.history_file import HistoryFile
from gateway.limits import NS_PER_MS
from gateway.session import CLEAN_CLOSE
from tests.exchange import DOMAIN, TICKER, Conversation, Exchange, running_exchange, wallet

BUYER, OTHER = 2, 3
SOON_SECONDS = 30.0
TICKS = 4  # of the task that looks at the times
FEW_SECONDS = 0.3


class Now:
    """A steady clock that stands until told."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def forward(self, ms: int) -> None:
        self.ns += ms * NS_PER_MS


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def exchange(tmp_path: Path, now: Now) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path, now_ns=now) as running:
        await set_up(running)
        yield running


async def set_up(exchange: Exchange) -> None:
    await exchange.list_market()
    await exchange.open_account(BUYER, cash_usdc6=10**12)


def connected(exchange: Exchange, session: int) -> Conversation:
    """Logged in with a session number."""
    conversation, owner = exchange.converse(), wallet(100 + BUYER)
    nonce = conversation.hello.nonce
    proof = "0x" + owner.sign_login(DOMAIN, bytes.fromhex(nonce[2:])).hex()
    [ack] = conversation.say(m.Login(1, owner.address, nonce, proof, session))
    assert isinstance(ack, m.Ack)
    return conversation


async def armed(conversation: Conversation, request: m.ClientMessage) -> list[m.Armed]:
    """What the ack says, which comes when it is on the disk."""
    heard = conversation.say(request)
    async with asyncio.timeout(SOON_SECONDS):
        while not heard:
            await asyncio.sleep(0.002)
            heard = conversation.heard()
    [ack] = heard
    assert isinstance(ack, m.Ack) and ack.id == request.id and ack.armed is not None
    return ack.armed


async def place(exchange: Exchange, conversation: Conversation, count: int = 3) -> None:
    for number in range(count):
        conversation.say(m.New(10 + number, TICKER, "buy", "2.5", "1"))
    await exchange.port.settled()
    conversation.heard()


def open_orders(exchange: Exchange, session: int = 0) -> int:
    orders = exchange.desk.feed.account(BUYER).orders.values()
    return sum(session in {0, order.session} for order in orders)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while not true():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.002)


async def stays(true: Callable[[], bool]) -> None:
    await asyncio.sleep(FEW_SECONDS)
    assert true()


async def test_a_lost_connection_cancels_its_sessions_orders_after_the_grace_time(
    exchange: Exchange, now: Now
) -> None:
    one, other = connected(exchange, 1), connected(exchange, 2)
    [said] = await armed(one, m.CancelOnDisconnect(2, 1_000))
    assert said == m.Armed("cancel_on_disconnect", "session", 1_000)
    await place(exchange, one)
    await place(exchange, other)
    other.say(m.Subscribe(3, "account"))
    one.session.close()
    now.forward(999)
    await stays(lambda: open_orders(exchange) == 6)
    now.forward(1)
    await until(lambda: open_orders(exchange) == 3)
    assert open_orders(exchange, 2) == 3, "another session's stay"
    *cancelled, done = [x for x in other.heard() if isinstance(x, m.NUMBERED)]
    assert [x.reason for x in cancelled if isinstance(x, m.Order)] == ["CANCEL_ALL"] * 3
    assert isinstance(done, m.CancelledAll)
    assert (done.cause, done.count, done.session) == ("disconnect", 3, 1)
    again = connected(exchange, 1)
    await place(exchange, again)
    await until(lambda: not exchange.desk.history.armed())
    again.session.close()
    now.forward(10_000)
    await stays(lambda: open_orders(exchange) == 6)  # it was armed once


async def test_who_comes_back_in_time_and_arms_again_keeps_its_orders(
    exchange: Exchange, now: Now
) -> None:
    one = connected(exchange, 1)
    await armed(one, m.CancelOnDisconnect(2, 1_000))
    await place(exchange, one)
    one.session.close()
    now.forward(500)
    again = connected(exchange, 1)
    await armed(again, m.CancelOnDisconnect(2, 1_000))
    now.forward(10_000)
    await stays(lambda: open_orders(exchange) == 3)
    again.session.close()
    now.forward(1_000)
    await until(lambda: open_orders(exchange) == 0)


async def test_who_only_comes_back_without_arming_again_loses_them(
    exchange: Exchange, now: Now
) -> None:
    one = connected(exchange, 1)
    await armed(one, m.CancelOnDisconnect(2, 1_000))
    await place(exchange, one)
    one.session.close()
    connected(exchange, 1)
    now.forward(1_000)
    await until(lambda: open_orders(exchange) == 0)


@pytest.mark.parametrize("code", [0, CLEAN_CLOSE])
async def test_of_two_connections_that_have_it_armed_the_last_counts(
    exchange: Exchange, now: Now, code: int
) -> None:
    """However the one goes that did not arm last."""
    one, two = connected(exchange, 1), connected(exchange, 1)
    for conversation in (one, two):
        await armed(conversation, m.CancelOnDisconnect(2))
    await place(exchange, one)
    one.session.close(code)
    await stays(lambda: open_orders(exchange) == 3)
    two.session.close()
    await until(lambda: open_orders(exchange) == 0)


@pytest.mark.parametrize("on_close", [False, True])
async def test_a_clean_close_cancels_only_if_that_was_asked_for(
    exchange: Exchange, now: Now, on_close: bool
) -> None:
    one = connected(exchange, 1)
    [said] = await armed(one, m.CancelOnDisconnect(2, 1_000, on_close=on_close))
    assert said.on_close == on_close
    await place(exchange, one)
    one.session.close(CLEAN_CLOSE)
    if on_close:
        await until(lambda: open_orders(exchange) == 0)
    else:
        now.forward(10_000)
        await stays(lambda: open_orders(exchange) == 3)
        assert exchange.desk.history.armed() == []


@pytest.mark.parametrize("on_close", [False, True])
async def test_the_clean_close_of_the_one_that_armed_last_decides(
    exchange: Exchange, now: Now, on_close: bool
) -> None:
    lost, back = connected(exchange, 1), connected(exchange, 1)
    request = m.CancelOnDisconnect(2, 1_000, on_close=on_close)
    await armed(back, request)
    await armed(lost, request)
    await armed(back, request)  # what becomes of the other's network is not known here yet
    await place(exchange, back)
    back.session.close(CLEAN_CLOSE)
    if on_close:
        await until(lambda: open_orders(exchange) == 0)
        await place(exchange, connected(exchange, 1))
    await until(lambda: not exchange.desk.history.armed())
    again = connected(exchange, 1)
    await armed(again, m.CancelOnDisconnect(2, 1_000))
    again.session.close()
    now.forward(500)
    lost.session.close()
    await stays(lambda: open_orders(exchange) == 3)
    now.forward(500)  # the other had no part in it any more: the time is not begun anew
    await until(lambda: open_orders(exchange) == 0)


async def test_the_whole_account_is_meant_if_so_asked_and_off_is_off(
    exchange: Exchange, now: Now
) -> None:
    one, other = connected(exchange, 1), connected(exchange, 2)
    await place(exchange, other)
    await armed(one, m.CancelOnDisconnect(2, scope="account"))
    assert await armed(one, m.CancelOnDisconnect(3, off=True)) == []
    one.session.close()
    await stays(lambda: open_orders(exchange) == 3)
    again = connected(exchange, 0)
    [refused] = again.say(m.CancelOnDisconnect(2))
    assert isinstance(refused, m.Reject) and refused.code == Reject.INVALID_FIELD
    await armed(again, m.CancelOnDisconnect(2, scope="account"))
    again.session.close()
    await until(lambda: open_orders(exchange) == 0)


async def test_a_dead_mans_switch_cancels_once_unless_it_is_renewed(
    exchange: Exchange, now: Now
) -> None:
    one, other = connected(exchange, 1), connected(exchange, 2)
    await place(exchange, one)
    await place(exchange, other)
    assert await armed(one, m.DeadMan(2, 1_000)) == [m.Armed("dead_man", "session", 1_000)]
    for number in range(3, 6):
        now.forward(999)
        await asyncio.sleep(FEW_SECONDS / TICKS)
        assert len(await armed(one, m.DeadMan(number, 1_000))) == 1
    assert open_orders(exchange) == 6
    one.say(m.Subscribe(9, "account"))
    now.forward(1_000)
    await until(lambda: open_orders(exchange) == 3)
    notice = [x for x in one.heard() if isinstance(x, m.CancelledAll)]
    assert [(x.cause, x.count, x.session) for x in notice] == [("dead_man", 3, 1)]
    await place(exchange, one)
    now.forward(100_000)
    await stays(lambda: open_orders(exchange) == 6)
    await armed(one, m.DeadMan(10, 1_000, "account"))
    assert await armed(one, m.DeadMan(11, 0)) == []
    now.forward(100_000)
    await stays(lambda: open_orders(exchange) == 6)


async def test_what_was_armed_is_so_after_a_crash_and_the_time_runs_again(
    tmp_path: Path, now: Now
) -> None:
    async with running_exchange(tmp_path, now_ns=now) as exchange:
        await set_up(exchange)
        for number in (1, 2, 3):
            conversation = connected(exchange, number)
            await armed(conversation, m.CancelOnDisconnect(2, 1_000))
            await place(exchange, conversation, 1)
        fourth = connected(exchange, 4)
        await armed(fourth, m.DeadMan(2, 2_000))
        await place(exchange, fourth, 1)
        await exchange.desk.absence.close()
        await exchange.desk.history.abandon()
    async with running_exchange(tmp_path, now_ns=now) as exchange:
        assert open_orders(exchange) == 4
        back = connected(exchange, 1)
        await armed(back, m.CancelOnDisconnect(2, 1_000))
        now.forward(1_000)
        await until(lambda: open_orders(exchange) == 2)
        assert open_orders(exchange, 1) == open_orders(exchange, 4) == 1
        now.forward(1_000)
        await until(lambda: open_orders(exchange) == 1)
        assert open_orders(exchange, 1) == 1


# --- the file ------------------------------------------------------------------------------------
async def test_somebody_elses_questions_keep_nobody_from_arming(
    exchange: Exchange, now: Now
) -> None:
    await exchange.open_account(OTHER)
    one, other = connected(exchange, 1), exchange.converse(wallet(100 + OTHER))
    await place(exchange, one)
    for number in range(1_100):
        other.session.receive(b'{"t":"query","id":%d,"what":"fills"}' % (number + 2))
    refused = [x.code for x in other.heard() if isinstance(x, m.Reject)]
    assert refused == [Reject.BUSY] * (1_100 - history.QUESTIONS_MAX)
    assert one.say(m.Query(2, "fills")) == []
    assert len(await armed(one, m.CancelOnDisconnect(3, 1_000))) == 1, "before any question"
    heard: list[m.ServerMessage] = []
    await until(lambda: heard.extend(one.heard()) or bool(heard))
    assert [x.id for x in heard if isinstance(x, m.Ack)] == [2]
    one.session.close(CLEAN_CLOSE)
    await until(lambda: not exchange.desk.history.armed())


async def test_what_is_over_cancels_nothing_again_though_the_file_cannot_say_so(
    tmp_path: Path, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    async with running_exchange(tmp_path, now_ns=now) as exchange:
        await set_up(exchange)
        one, two = connected(exchange, 1), connected(exchange, 2)
        await armed(one, m.DeadMan(2, 1_000))
        await armed(two, m.CancelOnDisconnect(2))
        await place(exchange, one)
        await place(exchange, two)
        monkeypatch.setattr(history, "RETRY_SECONDS", 0.01)
        monkeypatch.setattr(history, "ASKED_MAX", 0)
        monkeypatch.setattr(HistoryFile, "disarm", fail)
        two.session.close(CLEAN_CLOSE)
        now.forward(1_000)
        await until(lambda: open_orders(exchange) == 3)
        await place(exchange, one)
        now.forward(1_000)
        await stays(lambda: open_orders(exchange) == 6)
        assert len(exchange.desk.history.armed()) == 2
        assert exchange.desk.absence.armed(BUYER, 1) == exchange.desk.absence.armed(BUYER, 2) == []
        await exchange.port.close()
        await exchange.desk.absence.close()
        monkeypatch.undo()  # and the node ends before it is tried again
    async with running_exchange(tmp_path, now_ns=now) as exchange:
        assert exchange.desk.history.armed() == []
        now.forward(1_000)
        await stays(lambda: open_orders(exchange) == 6)


async def test_while_the_file_notes_nothing_questions_are_answered(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def fail(*given: object) -> None:
        tried.append(given)
        raise sqlite3.OperationalError("disk full")

    async def acked(who: Conversation) -> list[int]:
        heard: list[m.ServerMessage] = []
        await until(lambda: heard.extend(who.heard()) or bool(heard))
        return [x.id for x in heard if isinstance(x, m.Ack)]

    one = connected(exchange, 1)
    monkeypatch.setattr(history, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(HistoryFile, "arm", fail)
    assert one.say(m.DeadMan(2, 60_000)) == []
    await until(lambda: bool(tried))
    assert one.say(m.Query(3, "fills")) == []
    assert await acked(one) == [3], "and what is armed is not acked"
    monkeypatch.undo()
    assert await acked(one) == [2]


async def test_who_changes_its_switch_faster_than_the_file_takes_it_is_refused_alone(
    exchange: Exchange, now: Now
) -> None:
    one, two = connected(exchange, 1), connected(exchange, 2)
    asked = absence.NOTES_MAX + 2
    for number in range(asked):
        one.session.receive(b'{"t":"dead_man","id":%d,"timeout_ms":%d}' % (number + 2, number + 1))
    refused = [x.code for x in one.heard() if isinstance(x, m.Reject)]
    assert refused == [Reject.BUSY] * 2
    assert len(await armed(two, m.DeadMan(2, 1_000))) == 1
    assert exchange.desk.absence.armed(BUYER, 1)[0].ms == asked - 2
