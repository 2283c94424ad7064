"""Prices on a real EVM: what a reader of Chainlink's interface is told, and what it never is."""

from typing import Any, cast

import pytest

from engine.index import IndexValue
from settlement.chain import (
    PRICES_PER_ROUND_MAX,
    TRANSACTION_GAS_MAX,
    Chain,
    PricePoint,
    checksum,
)
from settlement.errors import (
    ChainError,
    ChainUnavailable,
    ContractError,
    ContractRejected,
    NoData,
    NotPermitted,
    RoundOutOfOrder,
    TransactionRefused,
    TransactionReverted,
    WindowNotOver,
)
from settlement.oracle import RETRY_NS, Oracle
from tests.chain.sending import Through
from tests.chain.world import ORACLE, START_S, World, wallet_key

HISTORY = 64
PRODUCT, OTHER = 7 << 48 | 1 << 40 | 2 << 32, 9 << 48


async def feeds(world: World) -> tuple[bytes, bytes]:
    made = await world.chain.ensure_feeds({PRODUCT: "nv.h100 | us-e / USD", OTHER: "nv.l4 / USD"})
    return made[PRODUCT], made[OTHER]


async def test_every_product_has_one_feed_that_says_what_it_is(world: World) -> None:
    first, second = await feeds(world)
    assert first != second
    assert await feeds(world) == (first, second)
    assert await world.chain.feed_address(PRODUCT) == first
    assert await world.chain.feed_address(1) == bytes(20)
    assert await world.chain.feed_description(first) == ("nv.h100 | us-e / USD", 8)
    assert await world.chain.feed_description(second) == ("nv.l4 / USD", 8)


async def test_a_published_price_is_read_with_the_age_of_its_window(world: World) -> None:
    first, second = await feeds(world)
    late = START_S - 3_600
    await world.chain.publish(
        [PricePoint(PRODUCT, 241_500_000, late), PricePoint(OTHER, 1, START_S)]
    )
    assert await world.chain.read_feed(first) == (1, 241_500_000, late, late, 1)
    assert await world.chain.read_feed(second) == (1, 1, START_S, START_S, 1)


async def test_a_feed_without_a_price_answers_nothing(world: World) -> None:
    first, _ = await feeds(world)
    with pytest.raises(NoData):
        await world.chain.read_feed(first)
    for round_id in (0, 1):
        with pytest.raises(NoData):
            await world.chain.read_feed(first, round_id)


async def test_windows_only_go_forward_and_end_in_the_past(world: World) -> None:
    first, second = await feeds(world)
    await world.chain.publish([PricePoint(PRODUCT, 5, START_S)])
    for window_end in (START_S, START_S - 1):
        with pytest.raises(RoundOutOfOrder, match=f"last={START_S}"):
            await world.chain.publish([PricePoint(PRODUCT, 6, window_end)])
    with pytest.raises(WindowNotOver, match=rf"product={PRODUCT}"):
        await world.chain.publish([PricePoint(PRODUCT, 6, START_S + 86_400)])
    with pytest.raises(ContractRejected, match=rf"ZeroPrice\(product={OTHER}\)"):
        await world.chain.publish([PricePoint(PRODUCT, 6, START_S + 1), PricePoint(OTHER, 0, 1)])
    assert (await world.chain.read_feed(first)).answer == 5
    with pytest.raises(NoData):
        await world.chain.read_feed(second)


async def test_history_holds_the_last_rounds_and_forgets_older_ones(world: World) -> None:
    first, _ = await feeds(world)
    rounds = HISTORY + 3
    for number in range(1, rounds + 1):
        await world.chain.publish([PricePoint(PRODUCT, 1_000 + number, START_S - 1_000 + number)])
    for number in range(1, rounds + 1):
        if number <= rounds - HISTORY:
            with pytest.raises(NoData):
                await world.chain.read_feed(first, number)
        else:
            answer = await world.chain.read_feed(first, number)
            window_end = START_S - 1_000 + number
            assert answer == (number, 1_000 + number, window_end, window_end, number)
    assert (await world.chain.read_feed(first)).round_id == rounds
    with pytest.raises(NoData):
        await world.chain.read_feed(first, rounds + 1)


async def test_only_the_publisher_publishes_and_makes_feeds(world: World) -> None:
    row = (PRODUCT, 5, START_S)
    for key in (wallet_key(1), world.node.keys.deployer, world.node.keys.settler):
        with pytest.raises(NotPermitted):
            await world.call(key, world.chain.oracle, ORACLE, "publish", [row])
        with pytest.raises(NotPermitted):
            await world.call(key, world.chain.oracle, ORACLE, "createFeed", PRODUCT, "x")


async def test_a_feed_is_bound_to_its_oracle_and_product_for_good(world: World) -> None:
    first, _ = await feeds(world)
    code = bytes(await world.w3.eth.get_code(checksum(first)))
    # A minimal proxy, its implementation inside, then what it was made with: no storage to set.
    assert code[10:30] != bytes(20)
    assert world.chain.oracle in code
    assert PRODUCT.to_bytes(32, "big") in code


async def test_the_most_prices_of_one_round_fit_one_transaction(world: World) -> None:
    points = [PricePoint(i + 1, 5, START_S) for i in range(PRICES_PER_ROUND_MAX)]
    receipt = await world.chain.publish(points)
    print(f"first round: {receipt.gas_used / len(points):.0f} gas per price")
    assert receipt.gas_used < TRANSACTION_GAS_MAX


# --- what goes out --------------------------------------------------------------------------------


def value(window_end_s: int) -> IndexValue:
    fields: dict[str, Any] = dict.fromkeys(IndexValue._fields, 0)
    return IndexValue._make(fields.values())._replace(
        product=PRODUCT, series="nv.h100|us-e", value_ticks=5, window_end_ns=window_end_s * 10**9
    )


@pytest.mark.fault("price-refused")
async def test_a_window_that_ends_after_the_newest_block_is_published_where_blocks_wait_for_us(
    world: World,
) -> None:
    oracle = Oracle(world.chain, world.clock)
    world.clock.now_s += 3_600
    assert await oracle.publish([value(START_S + 3_600)]) == 1
    [published] = await oracle.published()
    assert published.updated_at_s == START_S + 3_600


@pytest.mark.fault("price-refused")
async def test_what_the_newest_block_is_too_old_for_waits_without_a_word(world: World) -> None:
    refusals: list[ChainError] = [WindowNotOver(ContractError("WindowNotOver", {}))]
    oracle = Oracle(refusing(world, refusals), world.clock)
    assert await oracle.publish([value(START_S)]) == 0
    assert oracle.warning == ""
    refusals.clear()
    assert await oracle.publish([value(START_S)]) == 1


@pytest.mark.fault("price-refused")
@pytest.mark.parametrize(
    "refusal",
    [
        NotPermitted(ContractError("AccessControlUnauthorizedAccount", {})),
        ContractRejected(ContractError("Panic", {"code": 17})),
        TransactionReverted("0x00 in block 7"),
        TransactionRefused("insufficient funds for gas * price + value"),
    ],
)
async def test_a_refused_price_is_said_and_tried_again_a_minute_later(
    world: World, refusal: ChainError
) -> None:
    refusals = [refusal]
    oracle = Oracle(refusing(world, refusals), world.clock)
    assert await oracle.publish([value(START_S)]) == 0
    assert oracle.warning.endswith(f" what is published: {refusal}")
    refusals.clear()
    assert await oracle.publish([value(START_S)]) == 0, "not at once: it may cost gas"
    world.clock.now_s += RETRY_NS // 10**9
    assert await oracle.publish([value(START_S)]) == 1
    assert oracle.warning == ""


async def test_a_price_that_a_node_does_not_have_yet_contradicts_nothing(world: World) -> None:
    oracle = Oracle(world.chain, world.clock)
    assert await oracle.publish([value(START_S - 300)]) == 1
    [before] = await oracle.published()
    old = await world.chain.read_feed(before.feed)

    async def lags(*_arguments: object) -> object:
        return old

    lagging = cast("Chain", Through(world.chain, read_feed=lags))
    with pytest.raises(ChainUnavailable, match="lags behind"):
        await Oracle(lagging, world.clock).publish([value(START_S)])


def refusing(world: World, refusals: list[ChainError]) -> Chain:
    async def publish(points: list[PricePoint]) -> object:
        if refusals:
            raise refusals[0]
        return await world.chain.publish(points)

    return cast("Chain", Through(world.chain, publish=publish))
