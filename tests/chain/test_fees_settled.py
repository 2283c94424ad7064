"""Fees from the kernel to the batch: for any fills, what each side of settlement adds up agrees."""

import random
from collections.abc import Iterable

import pytest

from engine.catalog import load_catalog
from engine.records import (
    FEE_PPM_MAX,
    Command,
    CommandKind,
    Event,
    EventKind,
    Side,
    TimeInForce,
    fee_usdc6,
)
from settlement import database as db
from settlement.batch import costs_usdc6, seal, totals_usdc6, unpack
from settlement.ledger import Ledger, Numbered, Trial
from tests.shard import ALICE, BOB, CAROL, Shard
from tests.signed import DOMAIN, Placed, sign_all

TRADERS = (ALICE, BOB, CAROL)
ORDERS = 500
FILLS_MIN = 100  # of each seed, so that a quiet script is not taken for agreement
VOIDED = 20
NOW_S = 1_796_000_000
PRODUCT = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
KEYS = {trader: trader.to_bytes(32, "big") for trader in TRADERS}


class Recorded(Shard):
    """A shard that keeps its events, as settlement hears them."""

    def __init__(self) -> None:
        self.heard: list[Numbered] = []
        super().__init__()

    def do_all(self, commands: Iterable[Command]) -> list[Event]:
        events = super().do_all(commands)
        self.heard += [Numbered(len(self.heard) + i, e) for i, e in enumerate(events, 1)]
        return events

    def pending(self) -> dict[int, int]:
        return {trader: self.money(trader)["pending_usdc6"] for trader in TRADERS}


def set_fees(shard: Shard, chance: random.Random) -> None:
    """New rates for a tier, and somebody into a tier: resting orders keep what they came with."""
    taker = chance.randrange(FEE_PPM_MAX + 1)
    maker, tier = chance.randrange(taker + 1), chance.randrange(3)
    shard.do(CommandKind.SET_FEES, side=tier, order_id=maker | taker << 16)
    shard.do(CommandKind.SET_FEE_TIER, account=chance.choice(TRADERS), side=chance.randrange(3))


def trade(shard: Shard, chance: random.Random) -> None:
    for number in range(ORDERS):
        if number % 20 == 0:
            set_fees(shard, chance)
        shard.order(
            chance.choice(TRADERS),
            chance.choice((Side.BUY, Side.SELL)),
            chance.randrange(9_000, 11_000),
            chance.randrange(1, 400),
            time_in_force=chance.choice((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC)),
        )


def charged(fill: Event) -> tuple[int, int]:
    """(buyer's, seller's) rate of a FILL."""
    if fill.side == Side.BUY:
        return fill.taker_fee_ppm, fill.maker_fee_ppm
    return fill.maker_fee_ppm, fill.taker_fee_ppm


def orders_of(fills: list[Event]) -> list[Placed]:
    """Every order that was filled."""
    sides: set[tuple[int, int, bool, int]] = set()
    for e in fills:
        is_buy = e.side == Side.BUY
        sides.add((e.account, e.order_id, is_buy, e.instrument))
        sides.add((e.counter_account, e.reference, not is_buy, e.instrument))
    return [Placed(*side, PRODUCT) for side in sorted(sides)]


def void(shard: Shard, number: int, fill: Event, void_number: int) -> None:
    buyer, seller = fill.account, fill.counter_account
    if fill.side == Side.SELL:
        buyer, seller = seller, buyer
    [done] = shard.do(
        CommandKind.VOID_FILL,
        account=buyer,
        client_id=number,
        order_id=seller | void_number << 32,
        instrument=fill.instrument,
        price_ticks=fill.price_ticks,
        qty_lots=fill.qty_lots,
        expiry_s=charged(fill)[0],
    )
    assert done.kind == EventKind.FILL_VOIDED


@pytest.mark.parametrize("seed", range(4))
async def test_engine_ledger_and_batch_agree_on_what_any_fills_cost(
    database_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    shard = Recorded()
    trade(shard, chance)
    fills = [(number, e) for number, e in shard.heard if e.kind == EventKind.FILL]
    assert len(fills) >= FILLS_MIN
    database = await db.connect(database_url)
    ledger = await Ledger.open(database)
    await ledger.post(shard.heard)
    await database.execute("UPDATE listed SET product = $1", PRODUCT)  # a shard's has no name
    await sign_all(database_url, DOMAIN, KEYS, orders_of([fill for _, fill in fills]))
    await agree(shard, ledger)

    undone = chance.sample(fills, VOIDED)
    for void_number, (number, fill) in enumerate(undone, 1):
        await database.execute(
            "UPDATE fill SET void_number = $1 WHERE event_number = $2", void_number, number
        )
        void(shard, number, fill, void_number)
    await ledger.post(shard.heard)
    await agree(shard, ledger)

    row = await database.row(
        "SELECT sum(buyer_fee_usdc6)::bigint, sum(seller_fee_usdc6)::bigint, sum(amount_usdc6)"
        "::bigint FROM fill WHERE void_number IS NULL"
    )
    assert row is not None
    kept = [e for number, e in fills if (number, e) not in undone]
    costs = [(e.price_ticks * e.qty_lots, *charged(e)) for e in kept]
    buyers = sum(fee_usdc6(notional, ppm) for notional, ppm, _ in costs)
    sellers = sum(fee_usdc6(notional, ppm) for notional, _, ppm in costs)
    assert tuple(row.values()) == (buyers, sellers, sum(n for n, _, _ in costs) + buyers)
    assert buyers < sum(notional * ppm for notional, ppm, _ in costs) // 10**6, "it is rounded down"
    await database.close()


async def agree(shard: Recorded, ledger: Ledger) -> None:
    """On what is pending, which is all that is to be sealed."""
    held = await ledger.balances()
    assert {trader: held[trader].pending_usdc6 for trader in TRADERS} == shard.pending()
    assert {t: held[t].cash_usdc6 for t in TRADERS} == {
        t: shard.money(t)["free_usdc6"] + shard.money(t)["held_usdc6"] for t in TRADERS
    }
    sealed = seal(*await ledger.unsealed_fills(2_000, NOW_S))
    totals = totals_usdc6(sealed.packed)
    assert {trader: totals.get(trader, 0) for trader in TRADERS} == shard.pending()
    assert sealed.amount_usdc6 == sum(shard.pending().values())
    assert int(costs_usdc6(unpack(sealed.packed)).sum()) == sealed.amount_usdc6
    assert await ledger.trial_balance() == Trial(0, 0, 0)
    shard.check()
