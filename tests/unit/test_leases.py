"""What is said of leases is what the engine's events say, and what is assumed is said to be."""

from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random

import pytest
from compex_client import messages as m
from hypothesis import given
from hypothesis import strategies as st

from engine.records import Command, CommandKind
from gateway import leases as module
from gateway.leases import Bought, Leases
from gateway.snapshots import take
from tests.exchange import TICKER, Exchange, running_exchange, wallet

SELLER, BUYER = 1, 2


def bought(lease_id: int, cost_usdc6: int) -> Bought:
    return Bought(lease_id, SELLER, 1, 1, 1, cost_usdc6, is_resold=False)


def ids(found: tuple[list[Bought], bool]) -> tuple[list[int], bool]:
    return [lease.lease_id for lease in found[0]], found[1]


def three(*costs: int) -> Leases:
    leases = Leases()
    for lease_id, cost in enumerate(costs, 1):
        leases.bought(BUYER, bought(lease_id, cost))
    return leases


def test_where_all_is_confirmed_nothing_is_assumed() -> None:
    assert ids(three(10, 10, 5).confirmed(BUYER, 25)) == ([1, 2, 3], False)


def test_where_a_part_is_confirmed_the_oldest_are_assumed() -> None:
    leases = three(10, 10, 5)
    assert ids(leases.confirmed(BUYER, 20)) == ([1, 2], True)
    assert ids(leases.confirmed(BUYER, 5)) == ([3], False)


def test_an_amount_that_fits_no_first_ones_waits_until_it_does() -> None:
    leases = three(10, 10, 5)
    assert ids(leases.confirmed(BUYER, 15)) == ([], True)
    assert ids(leases.confirmed(BUYER, 10)) == ([1, 2, 3], False)


def test_a_fill_that_is_void_after_all_passes_the_assumption_on() -> None:
    leases = three(10, 10, 5)
    leases.confirmed(BUYER, 10)
    assert ids(leases.voided(BUYER, 1, 10)) == ([2], True)
    assert ids(leases.voided(BUYER, 3, 5)) == ([], False)
    assert leases.buyers[BUYER].pending == {} and leases.buyers[BUYER].unplaced_usdc6 == 0


def test_too_many_to_follow_count_by_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASES_FOLLOWED_MAX", 2)
    leases = three(10, 20, 5)
    assert ids(leases.confirmed(BUYER, 30)) == ([2], True)
    assert ids(leases.confirmed(BUYER, 5)) == ([3], False)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_however_confirmed_the_sums_are_the_pending_money(costs: list[int], random: Random) -> None:
    leases, pending = three(*costs), list(enumerate(costs, 1))
    random.shuffle(pending)
    told: set[int] = set()
    while pending:
        lease_id, cost = pending.pop()
        is_void = cost == 3
        if is_void:
            told.discard(lease_id)
            found, assumed = leases.voided(BUYER, lease_id, cost)
        else:
            found, assumed = leases.confirmed(BUYER, cost)
        told |= {x.lease_id for x in found}
        state = leases.buyers[BUYER]
        left = sum(x for _, x in pending)
        assert state.pending_usdc6 - state.unplaced_usdc6 == left
        assert state.pending_usdc6 == sum(x.cost_usdc6 for x in state.pending.values())
        assert assumed or not pending or not found
    assert told == {number for number, cost in enumerate(costs, 1) if cost != 3}


# --- through the engine --------------------------------------------------------------------------
@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncGenerator[Exchange]:
    async with running_exchange(tmp_path) as running:
        await set_up(running)
        yield running


async def set_up(exchange: Exchange) -> None:
    instrument = await exchange.list_market()
    await exchange.open_account(SELLER, bond_usdc6=10**12)
    await exchange.open_account(BUYER, cash_usdc6=10**12)
    await exchange.declare(SELLER, instrument, 10**8)
    seller, buyer = (exchange.converse(wallet(100 + n)) for n in (SELLER, BUYER))
    for number, qty in enumerate(("1", "1", "2"), 1):
        seller.say(m.New(number, TICKER, "sell", "2.5", qty))
        buyer.say(m.New(number, TICKER, "buy", "2.5", qty))
    await exchange.port.settled()


def escrow(exchange: Exchange, batch: int, usdc: int) -> None:
    exchange.port.submit(
        Command(
            kind=CommandKind.CONFIRM_ESCROW, account=BUYER, client_id=batch,
            price_ticks=usdc * 10**6,
        )
    )  # fmt: skip


def void(exchange: Exchange, lease: m.Lease) -> None:
    exchange.port.submit(
        Command(
            kind=CommandKind.VOID_FILL, account=BUYER, order_id=SELLER | 1 << 32,
            client_id=lease.lease_id, instrument=1, price_ticks=25_000, qty_lots=100,
        )
    )  # fmt: skip


def leases_of(exchange: Exchange, account: int) -> list[m.Lease]:
    return exchange.desk.history.leases(account, 0, 1_000)


async def test_both_sides_hear_of_every_state(exchange: Exchange) -> None:
    first, second, third = leases_of(exchange, BUYER)
    assert {x.state for x in (first, second, third)} == {"pending"}
    trades = [x.trade_id for x in exchange.desk.history.fills(BUYER, 0, 10)]
    assert [x.lease_id for x in (first, second, third)] == trades
    exchange.deposit(BUYER, 1)
    void(exchange, second)
    escrow(exchange, 1, 5)
    await exchange.port.settled()
    told = [(x.lease_id, x.state, x.batch, x.assumed) for x in leases_of(exchange, BUYER)[3:]]
    assert told == [(trades[1], "voided", 0, False)]  # 2.5 and 5 are pending: 5 fits none yet
    assert exchange.port.balances(BUYER).pending_usdc6 == 2_500_000
    exchange.port.submit(
        Command(kind=CommandKind.CONFIRM_ESCROW, account=BUYER, client_id=2, price_ticks=2_500_000)
    )
    await exchange.port.settled()
    last = leases_of(exchange, BUYER)[4:]
    assert [(x.lease_id, x.state, x.batch, x.assumed) for x in last] == [
        (trades[0], "escrowed", 2, False),
        (trades[2], "escrowed", 2, False),
    ]
    theirs = leases_of(exchange, SELLER)
    assert [(x.lease_id, x.state) for x in theirs] == [
        (x.lease_id, x.state) for x in leases_of(exchange, BUYER)
    ]
    assert {x.role for x in theirs} == {"operator"}


async def test_what_waits_for_escrow_is_in_a_snapshot(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        await set_up(exchange)
        exchange.deposit(BUYER, 1)
        await exchange.port.settled()
    assert take(tmp_path / "journal") is not None
    async with running_exchange(tmp_path) as exchange:
        assert exchange.port.ready().started_from > 0
        escrow(exchange, 1, 10)
        await exchange.port.settled()
        assert [x.state for x in leases_of(exchange, BUYER)] == ["pending"] * 3 + ["escrowed"] * 3
