"""Wallets that leave the vault by themselves: the others trade, settle and reconcile on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from engine.catalog import load_catalog
from engine.records import EFFECTS_MAX, Command, CommandKind, EventKind, Side, TimeInForce
from engine.rejects import Reject
from settlement import database as db
from settlement import signatures, undoing
from settlement.chain import address_of
from settlement.errors import ContractError, SettlementHalted, TransferRefused
from settlement.service import Settings
from settlement.withholding import UNDONE_AFTER
from tests.chain.test_signatures import BUYER as FIRST_BUYER
from tests.chain.test_signatures import OTHER as SECOND_BUYER
from tests.chain.test_signatures import booked, fill
from tests.settled import (
    BOND_USDC6_PER_LOT,
    DOLLAR,
    EXIT_DELAY_NS,
    INSTRUMENT,
    Node,
    heard,
    key,
    turns_and_blocks,
)

SELLER, BUYER, LEAVER = 11, 12, 13
PRICE_TICKS = 10_000
TURNS_MAX = 8
CALLS_PER_ROUND_MAX = 400


@pytest.fixture
async def node(tmp_path: Path, database_url: str) -> AsyncIterator[Node]:
    node = await Node.begin(tmp_path, database_url)
    await node.start()
    await node.fund(
        cash={BUYER: 100 * DOLLAR, LEAVER: 50 * DOLLAR},
        bond={SELLER: 20 * DOLLAR, LEAVER: 5 * DOLLAR},
    )
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)
    yield node
    await node.end()


async def settle_all(node: Node) -> None:
    """Until there is nothing to do; reconciled after each turn."""
    for _ in range(TURNS_MAX):
        idle = (await node.settlement.turn()).idle
        report = await node.settlement.reconcile()
        assert report.reconciled, report.gaps
        if idle:
            return
    raise AssertionError(f"{TURNS_MAX} turns should do")


async def trade(node: Node, buyer: int, lots: int) -> None:
    """A fill of `lots` at $1 a GPU-hour, so of `lots` cents."""
    await node.order(SELLER, Side.SELL, PRICE_TICKS, lots)
    await node.order(buyer, Side.BUY, PRICE_TICKS, lots)


def money(node: Node, wallet: int) -> tuple[int, ...]:
    """free, held, pending, escrow, leaving"""
    return tuple(node.pipeline.balances(node.account(wallet)))[:5]


async def in_wallet(node: Node, wallet: int) -> int:
    return await node.chain.token_balance_usdc6(address_of(key(wallet)))


async def a_week_later(node: Node) -> None:
    node.clock.advance_to(node.clock.now_ns() + EXIT_DELAY_NS)
    await node.give_to_vault(1)  # a block of that time


async def test_who_asks_to_leave_is_closed_and_paid_at_once_and_the_others_trade_on(
    node: Node,
) -> None:
    await trade(node, LEAVER, 200)
    await node.order(LEAVER, Side.BUY, 5_000, 1_000)  # rests
    events = heard(node)
    await node.request_exit(LEAVER)
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 2 * DOLLAR, 0)
    assert await in_wallet(node, LEAVER) == 48 * DOLLAR, "what was traded before stays locked"
    account = node.account(LEAVER)
    ends = [e.kind for e in events if e.account == account and e.kind != EventKind.FILL]
    assert ends[:3] == [
        EventKind.CANCELLED, EventKind.ACCOUNT_CLOSED, EventKind.WITHDRAWAL_RESERVED
    ]  # fmt: skip

    await node.order(LEAVER, Side.BUY, PRICE_TICKS, 1)
    assert (events[-1].kind, events[-1].reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    await trade(node, BUYER, 300)
    await settle_all(node)
    assert money(node, BUYER) == (97 * DOLLAR, 0, 0, 3 * DOLLAR, 0)

    await a_week_later(node)
    await node.finish_exit(LEAVER)
    await settle_all(node)
    assert await in_wallet(node, LEAVER) == 48 * DOLLAR, "there was nothing more to take"
    await node.fund(cash={LEAVER: 10 * DOLLAR})
    await settle_all(node)
    await trade(node, LEAVER, 100)
    await settle_all(node)
    assert money(node, LEAVER) == (9 * DOLLAR, 0, 0, 3 * DOLLAR, 0), "back, and trading again"


async def test_an_exit_done_while_the_node_was_down_is_booked_and_open_orders_go(
    node: Node,
) -> None:
    await node.order(LEAVER, Side.BUY, 5_000, 1_000)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    await trade(node, BUYER, 100)
    await settle_all(node)
    assert (await node.settlement.summary()).fills_settled == 1


async def test_fills_whose_buyer_left_with_the_money_are_undone_for_both(node: Node) -> None:
    """The node is down for longer than the delay, with a fill of either kind not settled."""
    await node.set_fees(maker_ppm=200, taker_ppm=500)
    bond_before = node.pipeline.balances(node.account(SELLER)).bond_free_usdc6
    await trade(node, LEAVER, 200)
    assert money(node, LEAVER)[2] == 2_001_000
    await trade(node, BUYER, 300)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    assert money(node, BUYER) == (97 * DOLLAR - 1_500, 0, 0, 3 * DOLLAR + 1_500, 0)
    seller = node.pipeline.balances(node.account(SELLER))
    assert seller.bond_locked_usdc6 == 300 * BOND_USDC6_PER_LOT
    assert seller.bond_free_usdc6 == bond_before - 300 * BOND_USDC6_PER_LOT
    summary = await node.settlement.summary()
    assert (summary.fills, summary.fills_settled, summary.voided_fills) == (2, 1, 1)
    assert summary.quarantined_accounts == 0


class Order(Protocol):
    def __call__(self, who: int, side: Side, resale: int, lots: int = 100) -> Awaitable[None]: ...


async def hour_of_resales(node: Node) -> Order:
    """An hour of which the seller has 100 lots; who, which side, and whether it is a resale."""
    product = load_catalog().product("nv.h100-sxm-80g.x8.ib", "us-e", "B", "H", 600_000)
    hour = 1
    await node.submit(
        kind=CommandKind.LIST_MARKET, instrument=hour, order_id=product,
        price_ticks=BOND_USDC6_PER_LOT, qty_lots=1,
    )  # fmt: skip
    await node.submit(
        kind=CommandKind.DECLARE_CAPACITY,
        account=node.account(SELLER),
        instrument=hour,
        qty_lots=100,
    )

    async def order(who: int, side: Side, resale: int, lots: int = 100) -> None:
        await node.submit(
            kind=CommandKind.NEW_ORDER, account=node.account(who), instrument=hour, side=side,
            price_ticks=PRICE_TICKS, qty_lots=lots, time_in_force=TimeInForce.GTC, resale=resale,
        )  # fmt: skip

    return order


async def test_hours_sold_again_by_a_buyer_who_left_are_back_with_who_delivers_them(
    node: Node,
) -> None:
    order = await hour_of_resales(node)
    await order(SELLER, Side.SELL, 0)
    await order(LEAVER, Side.BUY, 0)
    await order(LEAVER, Side.SELL, 1)
    await order(BUYER, Side.BUY, 0)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await settle_all(node)
    assert (await node.settlement.summary()).voided_fills == 2
    assert money(node, BUYER) == (100 * DOLLAR, 0, 0, 0, 0)
    events = heard(node)
    await order(SELLER, Side.SELL, 0)
    assert events[-1].kind == EventKind.ACCEPTED, "the seller has its capacity again"


async def test_hours_that_their_second_buyer_offers_again_go_back_as_well(node: Node) -> None:
    order = await hour_of_resales(node)
    await order(SELLER, Side.SELL, 0)
    await order(LEAVER, Side.BUY, 0)
    await order(LEAVER, Side.SELL, 1)
    await order(BUYER, Side.BUY, 0)
    await order(BUYER, Side.SELL, 1)  # stands in the way of undoing
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await settle_all(node)
    assert (await node.settlement.summary()).voided_fills == 2
    assert money(node, BUYER) == (100 * DOLLAR, 0, 0, 0, 0)
    events = heard(node)
    await order(BUYER, Side.SELL, 1)
    assert events[-1].kind == EventKind.REJECTED, "it has nothing to sell"
    await node.order(BUYER, Side.BUY, PRICE_TICKS, 1)
    assert events[-1].kind == EventKind.ACCEPTED, "and is open again"


@pytest.mark.fault("undone-in-part")
async def test_who_bought_what_is_undone_only_in_part_stays_closed_until_all_of_it_is(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undoing, "VOIDS_PER_TURN_MAX", 1)
    order = await hour_of_resales(node)
    await order(SELLER, Side.SELL, 0)
    await order(LEAVER, Side.BUY, 0)
    for _ in range(2):
        await order(LEAVER, Side.SELL, 1, 50)
        await order(BUYER, Side.BUY, 0, 50)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    events = heard(node)
    while EventKind.FILL_VOIDED not in [e.kind for e in events]:
        await node.settlement.turn()
    await order(BUYER, Side.SELL, 1, 50)  # would stand in the way of the second
    assert (events[-1].kind, events[-1].reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    await settle_all(node)
    assert (await node.settlement.summary()).voided_fills == 3
    assert money(node, BUYER) == (100 * DOLLAR, 0, 0, 0, 0)
    await node.order(BUYER, Side.BUY, PRICE_TICKS, 1)
    assert events[-1].kind == EventKind.ACCEPTED, "and is open again"


SIGN_WITHIN_NS = 5_000_000_000


async def unsigned_by(node: Node, wallet: int) -> None:
    """From now on this one signs nothing, and what is not signed for long is undone."""
    await node.stop()
    node.settings = Settings(sign_within_ns=SIGN_WITHIN_NS)
    await node.start()
    sign, silent = node.sign, node.account(wallet)

    async def sign_for_others() -> None:
        node.unsigned = [placed for placed in node.unsigned if placed.account != silent]
        await sign()

    node.sign = sign_for_others


async def long_unsigned(node: Node) -> None:
    node.clock.advance_to(node.clock.now_ns() + 2 * UNDONE_AFTER * SIGN_WITHIN_NS)
    await node.settlement.turn()


@pytest.mark.fault("undone-in-part")
@pytest.mark.parametrize("crashes", [False, True])
async def test_who_bought_what_was_not_signed_for_is_closed_until_all_of_it_is_undone(
    node: Node, monkeypatch: pytest.MonkeyPatch, crashes: bool
) -> None:
    monkeypatch.setattr(undoing, "VOIDS_PER_TURN_MAX", 1)
    await unsigned_by(node, SELLER)
    order = await hour_of_resales(node)
    for _ in range(2):
        await order(SELLER, Side.SELL, 0, 50)
        await order(BUYER, Side.BUY, 0, 50)
    await long_unsigned(node)
    events = heard(node)
    await order(BUYER, Side.SELL, 1, 50)
    assert (events[-1].kind, events[-1].reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    if crashes:  # after the last is undone, before the account is open again
        node.settlement._exits.reopenings = nothing  # pyright: ignore[reportPrivateUsage]
        await node.settlement.turn()
        await node.stop()
        await node.start()
        events = heard(node)
    await settle_all(node)
    assert (await node.settlement.summary()).voided_fills == 2
    assert money(node, BUYER) == (100 * DOLLAR, 0, 0, 0, 0)
    await order(BUYER, Side.BUY, 0)
    assert events[-1].kind == EventKind.ACCEPTED, "and is open again"


@pytest.mark.fault("undone-in-part")
async def test_who_rests_more_orders_than_one_command_cancels_holds_up_nobody(node: Node) -> None:
    await unsigned_by(node, SELLER)
    order = await hour_of_resales(node)
    for who in (BUYER, LEAVER):
        await order(SELLER, Side.SELL, 0, 50)
        await order(who, Side.BUY, 0, 50)
    for placed in range(EFFECTS_MAX + 1):
        node.pipeline.submit(
            Command(
                kind=CommandKind.NEW_ORDER, account=node.account(BUYER), instrument=INSTRUMENT,
                side=Side.BUY, price_ticks=1, qty_lots=1, time_in_force=TimeInForce.GTC,
            )
        )  # fmt: skip
        if placed % 256 == 0:
            await node.pipeline.settled()
    await node.pipeline.settled()
    node.unsigned.clear()  # nothing of them is ever filled
    events = heard(node)
    await long_unsigned(node)
    assert (await node.settlement.summary()).voided_fills == 2
    assert [money(node, who)[0] for who in (BUYER, LEAVER)] == [100 * DOLLAR, 50 * DOLLAR]
    await settle_all(node)
    await order(BUYER, Side.BUY, 0)
    assert events[-1].kind == EventKind.ACCEPTED, "and is open again"


class Windowed:
    """A port on which every market has a window."""

    def markets(self) -> list[Any]:
        return []


async def test_who_is_not_empty_yet_holds_up_what_it_bought_and_where_that_came_from_alone(
    database: db.Database,
) -> None:
    """The buyer bought 7 of the seller and sold 8 of it on to another, who bought 9 as well; then
    the buyer bought 10, which nobody has sold again."""
    again = fill(8, 5, counter_account=FIRST_BUYER)._replace(account=SECOND_BUYER, reason=2)
    bought = fill(9, 5)._replace(account=SECOND_BUYER)
    await booked(database, fill(7, 10), again, bought, fill(10, 5))
    found = undoing.Undoing(database, cast("Any", Windowed()))

    async def possible(*first: int) -> list[int]:
        return await found.possible("SELECT unnest($2::bigint[]) AS event_number", [*first])

    async def closings(*first: int) -> list[int]:
        query = "SELECT unnest($2::bigint[]) AS event_number"
        return [command.account for command in await found.closings(query, [*first])]

    assert await possible(7, 9, 10) == []
    assert await closings(7) == [FIRST_BUYER, SECOND_BUYER]
    await database.execute(
        "INSERT INTO closed_account VALUES ($1, true), ($2, false)", FIRST_BUYER, SECOND_BUYER
    )
    assert await possible(7, 9, 10) == [10]
    assert await possible(10) == [10]
    assert await closings(10) == [SECOND_BUYER], "whose closing has begun"
    await database.execute("UPDATE closed_account SET emptied = true")
    assert await possible(7, 9, 10) == [7, 8, 9, 10]
    assert await possible(7) == [7, 8]
    assert await closings(7, 9, 10) == []


@pytest.mark.fault("exit-of-suspended")
async def test_who_is_suspended_is_not_paid_by_asking_to_leave_until_that_is_over(
    node: Node,
) -> None:
    await unsigned_by(node, LEAVER)
    await trade(node, LEAVER, 200)
    await node.settlement.turn()
    await long_unsigned(node)
    assert (await node.settlement.summary()).voided_fills == 1
    await node.request_exit(LEAVER)
    await settle_all(node)
    assert money(node, LEAVER) == (50 * DOLLAR, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 0
    node.clock.advance_to(node.clock.now_ns() + signatures.SUSPENDED_S * 1_000_000_000)
    await settle_all(node)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR


@pytest.mark.fault("exit-of-suspended")
async def test_who_is_suspended_may_leave_without_the_settler_and_that_is_booked(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SUSPENDED_S", "SUSPENDED_S_MAX"):
        monkeypatch.setattr(signatures, name, 2 * EXIT_DELAY_NS // 1_000_000_000)
    await unsigned_by(node, LEAVER)
    await trade(node, LEAVER, 200)
    await node.settlement.turn()
    await long_unsigned(node)
    await node.request_exit(LEAVER)
    await settle_all(node)
    await a_week_later(node)
    await settle_all(node)
    assert await in_wallet(node, LEAVER) == 0
    await node.finish_exit(LEAVER)
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    assert (await node.settlement.summary()).withdrawals == 0


async def nothing() -> list[Command]:
    return []


async def test_hours_sold_again_to_a_buyer_who_left_are_back_with_who_had_bought_them(
    node: Node,
) -> None:
    order = await hour_of_resales(node)
    await order(SELLER, Side.SELL, 0)
    await order(BUYER, Side.BUY, 0)
    await order(BUYER, Side.SELL, 1)
    await order(LEAVER, Side.BUY, 0)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await settle_all(node)
    assert (await node.settlement.summary()).voided_fills == 1
    assert money(node, BUYER) == (99 * DOLLAR, 0, 0, DOLLAR, 0)
    events = heard(node)
    await order(BUYER, Side.SELL, 1)
    assert events[-1].kind == EventKind.ACCEPTED, "the buyer may offer them once more"


async def test_an_overdue_exit_pays_the_owner_and_what_the_owner_sold_is_settled_when_it_is_over(
    node: Node,
) -> None:
    """The delay is over but the owner has not taken anything yet when the node comes back."""
    await node.declare(LEAVER, 1_000)
    await trade(node, LEAVER, 200)
    await node.order(LEAVER, Side.SELL, PRICE_TICKS, 500)
    await node.order(BUYER, Side.BUY, PRICE_TICKS, 500)
    await node.request_exit(LEAVER)
    await node.stop()
    await a_week_later(node)
    await node.start()
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    assert money(node, BUYER) == (95 * DOLLAR, 0, 5 * DOLLAR, 0, 0), "anybody could void it"
    await node.finish_exit(LEAVER)
    await settle_all(node)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    assert money(node, BUYER) == (95 * DOLLAR, 0, 0, 5 * DOLLAR, 0)


async def test_orders_and_withdrawals_made_of_money_that_is_gone_come_back(node: Node) -> None:
    """Between the exit on chain and the first turn, the engine still shows the money."""
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await trade(node, LEAVER, 200)
    await node.withdraw(LEAVER, 30 * DOLLAR)
    await node.withdraw(BUYER, DOLLAR)
    await node.fund(cash={LEAVER: 7 * DOLLAR})
    await settle_all(node)
    paid = await in_wallet(node, LEAVER)
    free, held, pending, escrow, leaving = money(node, LEAVER)
    assert (held, pending, leaving) == (0, 0, 0)
    assert paid + free + escrow == 57 * DOLLAR
    assert await in_wallet(node, BUYER) == DOLLAR
    assert (await node.settlement.summary()).refused_withdrawals == 1


async def test_a_withdrawal_the_vault_refuses_is_free_again(node: Node) -> None:
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await node.withdraw(LEAVER, 20 * DOLLAR)
    events = heard(node)
    await node.settlement.turn()
    cancelled = [e for e in events if e.kind == EventKind.WITHDRAWAL_CANCELLED]
    assert [(e.account, e.amount_usdc6) for e in cancelled] == [(node.account(LEAVER), 20 * DOLLAR)]
    await settle_all(node)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    summary = await node.settlement.summary()
    assert (summary.withdrawals, summary.refused_withdrawals) == (0, 1)


@pytest.mark.fault("blacklisted-account")
async def test_an_owner_whom_the_token_refuses_is_paid_when_it_does_not_and_not_tried_in_between(
    node: Node,
) -> None:
    refused = True

    def before(name: str) -> None:
        if refused and name == "simulate_withdraw":
            raise TransferRefused(ContractError("TransferRefused", {"account": 1}))

    await node.stop()
    await node.start(before=before)
    await node.request_exit(LEAVER)
    for _ in range(3):
        await settle_all(node)
    assert money(node, LEAVER) == (50 * DOLLAR, 0, 0, 0, 0)
    async with node.beside() as database:
        assert await database.fetchval("SELECT count(*) FROM withdrawal") == 0
    refused = False
    await settle_all(node)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR


async def test_a_cancelled_exit_opens_the_account_again(node: Node) -> None:
    await node.request_exit(LEAVER)
    await settle_all(node)
    await node.cancel_exit(LEAVER)
    await node.fund(cash={LEAVER: 3 * DOLLAR})
    await settle_all(node)
    await trade(node, LEAVER, 100)
    await settle_all(node)
    assert money(node, LEAVER) == (2 * DOLLAR, 0, 0, DOLLAR, 0)
    await node.request_exit(LEAVER)
    await node.cancel_exit(LEAVER)
    await settle_all(node)
    assert money(node, LEAVER)[0] == 2 * DOLLAR, "one that was over at once does nothing"


async def test_before_an_exit_is_final_nothing_is_booked_and_everything_still_reconciles(
    tmp_path: Path, database_url: str
) -> None:
    """What the vault refuses at its newest block is decided by what is final later."""
    node = await Node.begin(tmp_path, database_url, confirmations=3)
    await node.start()
    await node.fund(cash={BUYER: 100 * DOLLAR, LEAVER: 50 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await turns_and_blocks(node, 4)
    await node.list_market(SELLER, capacity_lots=10_000)
    await trade(node, LEAVER, 200)
    await node.withdraw(LEAVER, 20 * DOLLAR)
    await node.stop()
    await node.exit(LEAVER)
    await node.start()
    await trade(node, BUYER, 100)
    await node.settlement.turn()
    assert money(node, LEAVER)[2] == 2 * DOLLAR, "pending until the exit is final"
    await turns_and_blocks(node, 12)
    assert money(node, LEAVER) == (0, 0, 0, 0, 0)
    assert await in_wallet(node, LEAVER) == 50 * DOLLAR
    assert money(node, BUYER) == (99 * DOLLAR, 0, 0, DOLLAR, 0)
    summary = await node.settlement.summary()
    assert (summary.voided_fills, summary.quarantined_accounts) == (1, 0)
    await node.end()


async def test_a_vault_that_has_lost_an_exit_halts(node: Node) -> None:
    await node.request_exit(LEAVER)
    await settle_all(node)
    await node.stop()
    await node.start()
    honest = node.chain.vault_state

    async def forgetful(block: int) -> Any:
        return (await honest(block))._replace(exits=0)

    node.chain.vault_state = forgetful
    with pytest.raises(SettlementHalted, match="fewer exits"):
        await node.settlement.turn()


# --- dropped anywhere ---------------------------------------------------------------------------


class Crash(Exception):
    pass


def crash_at(call: int) -> Callable[[str], None]:
    left = call

    def step(name: str) -> None:
        nonlocal left
        left -= name != "subscribe"
        if left == 0:
            raise Crash(name)

    return step


async def leave_in_every_way(node: Node, round_number: int) -> None:
    """One leaves with the node's help, one while it is down with a fill pending, one waits."""
    asks, left, waits = (100 * round_number + i for i in range(3))
    await node.fund(cash={asks: 10 * DOLLAR, left: 10 * DOLLAR, waits: 10 * DOLLAR})
    await settle_all(node)
    await trade(node, asks, 100)
    await trade(node, left, 100)
    await trade(node, waits, 100)
    await node.order(asks, Side.BUY, 5_000, 100)
    await node.stop()
    await node.exit(left)
    await node.request_exit(asks)


async def assert_all_left(node: Node, round_number: int, context: str) -> None:
    asks, left, waits = (100 * round_number + i for i in range(3))
    assert money(node, asks) == (0, 0, 0, DOLLAR, 0), context
    assert await in_wallet(node, asks) == 9 * DOLLAR, context
    assert money(node, left) == (0, 0, 0, 0, 0), context
    assert await in_wallet(node, left) == 10 * DOLLAR, context
    assert money(node, waits) == (9 * DOLLAR, 0, 0, DOLLAR, 0), context
    summary = await node.settlement.summary()
    assert summary.voided_fills == round_number, context
    assert summary.quarantined_accounts == 0, context


async def drop_at(node: Node, calls: Iterable[int], when: str) -> None:
    """One round for each number of the call at which settlement is dropped."""
    await node.fund(cash={}, bond={SELLER: 1_000 * DOLLAR})
    await settle_all(node)
    await node.declare(SELLER, 10_000_000)
    for round_number, call in enumerate(calls, 1):
        await leave_in_every_way(node, round_number)
        gate = crash_at(call)
        await (node.start(before=gate) if when == "before" else node.start(after=gate))
        crashed = ""
        try:
            while not (await node.settlement.turn()).idle:
                pass
        except Crash as crash:
            crashed = str(crash)
        await node.stop()
        await node.start()
        await settle_all(node)
        await assert_all_left(node, round_number, f"{when} call {call}, {crashed}")
        if not crashed:
            assert call > 40, "there are more edges than that"
            return
        await node.cancel_exit(100 * round_number)  # or each round would make more calls
        await settle_all(node)
    pytest.fail("the countdown never outlasted a round")


@pytest.mark.parametrize(("when", "first"), [("before", 3), ("after", 6)])
async def test_wherever_settlement_is_dropped_everybody_leaves_with_the_same(
    node: Node, when: str, first: int
) -> None:
    await drop_at(node, range(first, CALLS_PER_ROUND_MAX, 11), when)


@pytest.mark.fault("crash-at-each-edge")
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_dropped_at_each_single_call_everybody_leaves_with_the_same(
    node: Node, when: str
) -> None:
    await drop_at(node, range(1, CALLS_PER_ROUND_MAX), when)
