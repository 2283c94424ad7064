"""What happens to money behind a fill: released, earned, collected, claimed, disputed; each time
engine, ledger and vault are compared to the unit."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.vault import (
    DAILY,
    DAY_S,
    HOURLY,
    SPOT,
    WEEKLY,
    Batch,
    Fill,
    Release,
    record,
    window,
)
from engine.catalog import load_catalog
from engine.clock import ScriptedClock
from engine.port import Market
from engine.records import CommandKind, EventKind, Side
from engine.rejects import Reject
from settlement import database as db
from settlement.answers import Answers
from settlement.batch import FILL, Fills, unpack
from settlement.chain import Chain, address_of
from settlement.errors import AnswerRejected, ContractError, SettlementHalted
from settlement.fence import Fence
from settlement.leases import NEVER_S, Leases, due_at_s, paid_usdc6, spans_s, window_ends_at_s
from settlement.orders import separator
from settlement.service import Settings
from settlement.upkeep import QUIET_SECONDS_MAX
from settlement.vault import (
    CHALLENGE_SECONDS,
    EPOCH_SECONDS,
    PENALTY_USDC6,
    SETTLER_BOND_MIN_USDC6,
    STAKE_USDC6,
    Call,
    Place,
    answer,
)
from tests.chain.sending import Through
from tests.settled import (
    BOND_USDC6_PER_LOT,
    DOLLAR,
    INSTRUMENT,
    SECOND_NS,
    SYMBOL,
    Node,
    heard,
    key,
    transact,
    turns_and_blocks,
)

SELLER, BUYER, OTHER, WATCHER = 11, 12, 13, 14
DAY_NS = DAY_S * SECOND_NS
PRICE_TICKS = 20_000
HOUR = 1  # the instrument of a market with a window
LOTS = 100  # one GPU-hour, so over before its batch may be released


@pytest.fixture
async def node(tmp_path: Path, database_url: str) -> AsyncIterator[Node]:
    node = await Node.begin(tmp_path, database_url)
    await node.start()
    await node.fund(cash={BUYER: 100 * DOLLAR, OTHER: 50 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)
    await node.set_fees(maker_ppm=200, taker_ppm=500)
    yield node
    await node.end()


@pytest.fixture
async def late(tmp_path: Path, database_url: str) -> AsyncIterator[Node]:
    """Of whose chain a block is final when there are two more."""
    node = await Node.begin(tmp_path, database_url, confirmations=2)
    await node.start()
    await node.fund(cash={BUYER: 100 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await turns_and_blocks(node, 3)
    await node.list_market(SELLER, capacity_lots=10_000)
    yield node
    await node.end()


async def settle_all(node: Node) -> None:
    """Until there is nothing to do; reconciled after each turn."""
    for _ in range(8):
        idle = (await node.settlement.turn()).idle
        report = await node.settlement.reconcile()
        assert report.reconciled and report.surplus_usdc6 == 0, report
        if idle:
            return
    raise AssertionError("eight turns should do")


async def later(node: Node, days: float) -> None:
    node.clock.advance_to(node.clock.now_ns() + int(days * DAY_NS))
    await settle_all(node)


async def trade(node: Node, buyer: int = BUYER, lots: int = LOTS) -> None:
    await node.order(SELLER, Side.SELL, PRICE_TICKS, lots)
    await node.order(buyer, Side.BUY, PRICE_TICKS, lots)


async def batch_of(node: Node, number: int = 1) -> Batch:
    """As a watcher knows it from the calldata."""
    async with node.beside() as database:
        packed: bytes = await database.fetchval("SELECT packed FROM batch WHERE id = $1", number)
    return Batch(number, [Fill._make(fill) for fill in unpack(packed).tolist()])


async def lose_signatures(node: Node) -> None:
    """What was sealed with them cannot be answered for any more."""
    async with node.beside() as database:
        await database.execute("UPDATE signed_order SET verified = false")


async def slots(node: Node, wallet: int) -> Any:
    return await node.chain.vault_account(node.account(wallet))


def free(node: Node, wallet: int) -> int:
    return node.pipeline.balances(node.account(wallet)).free_usdc6


PROCEEDS = LOTS * PRICE_TICKS - LOTS * PRICE_TICKS * 200 // 1_000_000
COST = LOTS * PRICE_TICKS + LOTS * PRICE_TICKS * 500 // 1_000_000


async def test_a_lease_is_paid_out_after_its_challenge_window_and_trades_again_two_days_on(
    node: Node,
) -> None:
    await trade(node)
    await settle_all(node)
    assert (await slots(node, BUYER)).locked_usdc6 == COST
    await later(node, 0.9)
    assert (await slots(node, SELLER)).earning_usdc6 == 0, "it may still be challenged"
    await later(node, 1.1)  # and the epoch in which it fell due is over
    assert (await slots(node, BUYER)).locked_usdc6 == 0
    assert (await slots(node, SELLER)).earning_usdc6 == PROCEEDS
    assert free(node, SELLER) == 0
    exchange = await node.chain.vault_account(0)
    assert exchange.earning_usdc6 == COST - PROCEEDS
    await later(node, 2)
    assert free(node, SELLER) == PROCEEDS, "collected, and credited to the engine"
    assert (await slots(node, SELLER)).free_usdc6 == PROCEEDS
    await node.withdraw(SELLER, PROCEEDS)
    await settle_all(node)
    assert await node.chain.token_balance_usdc6(address_of(key(SELLER))) == PROCEEDS


async def test_what_nothing_can_undo_any_more_is_no_escrow_and_frees_its_bond(node: Node) -> None:
    await trade(node)
    await trade(node, OTHER)
    await settle_all(node)
    seller = node.account(SELLER)
    whole = node.pipeline.balances(seller)
    assert whole.bond_locked_usdc6 > 0

    def held(*wallets: int) -> list[int]:
        return [node.pipeline.balances(node.account(wallet)).escrow_usdc6 for wallet in wallets]

    await later(node, 2)
    assert (await slots(node, BUYER)).locked_usdc6 == 0, "released"
    assert held(BUYER, OTHER) == [COST, COST], "which can be undone for two days"
    assert node.pipeline.balances(seller).bond_locked_usdc6 == whole.bond_locked_usdc6
    await later(node, 2.1)  # a block after the second in which nothing can undo it any more
    assert held(BUYER, OTHER, SELLER) == [0, 0, 0]
    now = node.pipeline.balances(seller)
    assert now.bond_locked_usdc6 == now.bond_held_usdc6 == 0
    assert now.bond_free_usdc6 == whole.bond_free_usdc6 + whole.bond_locked_usdc6
    await node.stop()
    await node.start()
    await settle_all(node)
    assert node.pipeline.balances(seller) == now, "once"
    await trade(node)
    await settle_all(node)
    assert held(BUYER) == [COST]


async def test_each_lease_that_is_claimed_or_void_is_told_of_once(node: Node) -> None:
    for _ in range(3):
        await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    await lose_signatures(node)
    await node.mint(WATCHER, STAKE_USDC6)
    await node.call_vault(WATCHER, "challenge", batch.place(1), [])
    await later(node, 0.6)
    await node.call_vault(WATCHER, "voidUnanswered", batch.place(1), LOTS, LOTS)
    await settle_all(node)
    node.clock.advance_to(node.clock.now_ns() + 8 * DAY_NS)
    await node.call_vault(SELLER, "claim", batch.place(0))
    await settle_all(node)
    left = node.pipeline.balances(node.account(BUYER))
    assert left.escrow_usdc6 == COST, "what is released by now can be undone"
    await later(node, 4)
    bought, sold = (node.pipeline.balances(node.account(who)) for who in (BUYER, SELLER))
    assert bought.escrow_usdc6 == sold.bond_locked_usdc6 == 0
    async with node.beside() as database:
        rows = await database.fetch(
            "SELECT number, account, escrow_usdc6 FROM ended_leases ORDER BY number"
        )
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row["escrow_usdc6"] for row in rows) == 3 * COST


@pytest.mark.fault("stopped-before-it-began")
async def test_hours_that_are_stopped_have_their_bond_behind_them_until_their_window_ends(
    node: Node,
) -> None:
    """Until then whoever has bought them may sell them again."""
    start_hours = await hour_sold(node, 10 * 24, LOTS)
    await node.call_vault(BUYER, "stop", (await batch_of(node)).place(0))
    await later(node, 2)
    assert (await slots(node, BUYER)).earning_usdc6 == COST, "nothing was due"
    for _ in range(3):
        await later(node, 2.5)
        bought, sold = (node.pipeline.balances(node.account(who)) for who in (BUYER, SELLER))
        assert bought.escrow_usdc6 == COST
        assert sold.bond_locked_usdc6 == LOTS * BOND_USDC6_PER_LOT
    node.clock.advance_to(((start_hours + 1) * 3600 + 1) * SECOND_NS)
    await node.mint(WATCHER, DOLLAR)  # a block after its end
    await settle_all(node)
    bought, sold = (node.pipeline.balances(node.account(who)) for who in (BUYER, SELLER))
    assert bought.escrow_usdc6 == sold.bond_locked_usdc6 == 0


async def test_ends_have_the_same_numbers_in_however_many_steps_the_chain_is_read(
    database_url: str,
) -> None:
    """A lease is claimed in the second in which nothing can undo a release any more."""
    epoch_s = 20_000
    over_s = (epoch_s + 2) * EPOCH_SECONDS
    database = await db.connect(database_url)
    leases = Leases(database, await Fence.take(database), cast("Chain", None), lambda: 0)
    await database.execute("SET session_replication_role = replica")
    await database.execute(
        "INSERT INTO lease (batch_id, place, posted_at_s, due_at_s, ended, ended_at_s, release_id,"
        " buyer, seller, instrument, qty_lots, cost_usdc6, resold) VALUES"
        " (1, 0, 0, 0, 'released', $1, 5, 1, 2, 0, 100, 7, false),"
        " (1, 1, 0, 0, 'claimed', $2, NULL, 1, 2, 0, 100, 8, false)",
        *(epoch_s * EPOCH_SECONDS, over_s),
    )
    market = Market(0, load_catalog().parse(SYMBOL), 1, 1, BOND_USDC6_PER_LOT)
    found: list[list[Any]] = []
    for steps in ([over_s, over_s + 1], [over_s + 1]):
        await database.execute("UPDATE lease SET counted = false")
        await database.execute("DELETE FROM ended_leases")
        for read_until_s in steps:
            await leases.count_ends(read_until_s, [market])
        rows = await database.rows("SELECT * FROM ended_leases ORDER BY number")
        found.append([tuple(row.values()) for row in rows])
    await database.close()
    assert len(found[0]) == 4
    assert found[0] == found[1]


async def test_what_falls_due_in_one_day_is_released_at_once_by_account(node: Node) -> None:
    for buyer in (BUYER, OTHER, BUYER, OTHER):
        await trade(node, buyer)
    await settle_all(node)
    await later(node, 2.1)
    state = await node.chain.vault_state(await node.chain.final_block())
    assert (state.head, state.releases) == (1, 1)
    assert (await slots(node, SELLER)).earning_usdc6 == 4 * PROCEEDS
    await node.stop()
    await node.start()
    await settle_all(node)
    state = await node.chain.vault_state(await node.chain.final_block())
    assert state.releases == 1, "and not again"


async def test_a_buyer_who_reported_is_paid_back_what_was_not_delivered(node: Node) -> None:
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    node.clock.advance_to(node.clock.now_ns() + LOTS * 36 * SECOND_NS // 2)
    await node.call_vault(BUYER, "reportNonDelivery", batch.place(0))
    await later(node, 2.1)
    [lease] = batch.fills
    seller, buyer = await slots(node, SELLER), await slots(node, BUYER)
    paid = seller.earning_usdc6 * 1_000_000 // (1_000_000 - 200)
    assert lease.notional * 49 // 100 < paid < lease.notional * 51 // 100
    assert buyer.earning_usdc6 == COST - paid - paid * 500 // 1_000_000
    await later(node, 2)
    assert free(node, BUYER) == 100 * DOLLAR - COST + buyer.earning_usdc6


async def test_a_lease_that_anybody_claims_is_credited_to_both_and_not_released(
    node: Node,
) -> None:
    await trade(node)
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    node.clock.advance_to(node.clock.now_ns() + 8 * DAY_NS)
    await node.call_vault(SELLER, "claim", batch.place(0))
    await settle_all(node)
    assert free(node, SELLER) == PROCEEDS
    await later(node, 2)
    assert free(node, SELLER) == 2 * PROCEEDS, "the other one was released, and collected"


async def test_a_lease_claimed_before_its_log_is_final_is_left_out_of_the_release(
    late: Node,
) -> None:
    for _ in range(3):
        await trade(late)
    await turns_and_blocks(late, 6)
    batch = await batch_of(late)
    late.clock.advance_to(late.clock.now_ns() + 9 * DAY_NS)
    await late.call_vault(SELLER, "claim", batch.place(1))
    await turns_and_blocks(late, 8)
    state = await late.chain.vault_state(await late.chain.final_block())
    assert state.releases == 1
    assert free(late, SELLER) == LOTS * PRICE_TICKS
    assert (await slots(late, SELLER)).earning_usdc6 == 2 * LOTS * PRICE_TICKS


async def hour_in_two_days(node: Node) -> int:
    """Trade it and have it settled; when it ends, Unix seconds."""
    start_hours = node.clock.now_ns() // (3_600 * SECOND_NS) + 48
    market = {"instrument": INSTRUMENT + 1, "qty_lots": 1, "price_ticks": 1_000}
    hour = load_catalog().product("nv.h100-sxm-80g.x8.ib", "us-e", "B", "H", start_hours)
    await node.submit(kind=CommandKind.LIST_MARKET, order_id=hour, **market)
    market["qty_lots"] = 10_000
    seller, buyer = node.account(SELLER), node.account(BUYER)
    await node.submit(kind=CommandKind.DECLARE_CAPACITY, account=seller, **market)
    order = market | {"price_ticks": PRICE_TICKS, "qty_lots": LOTS, "kind": CommandKind.NEW_ORDER}
    await node.submit(account=seller, side=Side.SELL, **order)
    await node.submit(account=buyer, side=Side.BUY, **order)
    await turns_and_blocks(node, 6)
    return (start_hours + 1) * 3_600


@pytest.mark.fault("stopped-at-the-end")
async def test_a_lease_stopped_in_its_last_seconds_is_not_released_before_that_is_read(
    late: Node,
) -> None:
    """The settler's bond would pay for a release that does not know of it."""
    ends_s = await hour_in_two_days(late)
    batch = await batch_of(late)
    late.clock.advance_to((ends_s - 10) * SECOND_NS)
    await late.call_vault(BUYER, "stop", batch.place(0))
    late.clock.advance_to((ends_s + 1) * SECOND_NS)
    await late.settlement.turn()
    async with late.beside() as database:
        assert await database.fetchval("SELECT due_at_s FROM lease") == ends_s, "not read yet"
        assert not await database.fetchval("SELECT count(*) FROM release")
    late.clock.advance_to((ends_s + DAY_S) * SECOND_NS)
    await turns_and_blocks(late, 6)
    whole = batch.fills[0].notional
    assert (await slots(late, SELLER)).earning_usdc6 == whole * 3_590 // 3_600
    async with late.beside() as database:
        row = await database.fetchrow("SELECT accounts, records FROM release WHERE id = 1")
    proof = (1, 1, row["accounts"], row["records"], 0, list[bytes](), 0)
    with pytest.raises(AssertionError):  # the transaction reverts
        await late.call_vault(BUYER, "undoRelease", proof, batch.place(0))


@pytest.mark.fault("stopped-at-the-end")
async def test_a_node_whose_clock_is_ahead_of_the_chains_releases_nothing_early(
    late: Node,
) -> None:
    ends_s = await hour_in_two_days(late)
    late.clock.advance_to((ends_s - 3_600) * SECOND_NS)
    await turns_and_blocks(late, 4)
    await late.stop()
    chains, late.clock = late.clock, ScriptedClock((ends_s + DAY_S) * SECOND_NS)
    await late.start()
    await turns_and_blocks(late, 4)
    assert (await late.chain.vault_state(await late.chain.final_block())).releases == 0
    chains.advance_to(late.clock.now_ns())
    await turns_and_blocks(late, 6)
    assert (await late.chain.vault_state(await late.chain.final_block())).releases == 1


async def test_of_leases_whose_period_was_taken_out_the_engine_hears_nothing(
    late: Node,
) -> None:
    for _ in range(2):
        await trade(late)
    await late.settlement.turn()
    async with late.beside() as database:
        assert await database.fetchval("SELECT count(*) FROM batch") == 1
        assert not await database.fetchval("SELECT count(*) FROM lease"), "its log is not final"
        await database.execute(
            "SET session_replication_role = replica;"
            " DELETE FROM fill WHERE event_number = (SELECT min(event_number) FROM fill)"
        )
    await turns_and_blocks(late, 6)
    for _ in range(2):
        late.clock.advance_to(late.clock.now_ns() + 3 * DAY_NS)
        await turns_and_blocks(late, 6)
    state = await late.chain.vault_state(await late.chain.final_block())
    assert state.releases == 1
    assert late.pipeline.balances(late.account(BUYER)).escrow_usdc6 == 2 * LOTS * PRICE_TICKS


# --- disputes -------------------------------------------------------------------------------------


async def test_a_fill_that_nobody_answers_for_is_void_and_everybody_has_theirs(node: Node) -> None:
    await trade(node)
    await trade(node)
    await settle_all(node)
    batch, [lease, _] = await batch_of(node), (await batch_of(node)).fills
    await lose_signatures(node)
    await node.mint(WATCHER, STAKE_USDC6)
    await node.call_vault(WATCHER, "challenge", batch.place(0), [])
    await settle_all(node)
    assert (await node.settlement.reconcile()).challengers_usdc6 == STAKE_USDC6
    await later(node, 0.6)
    await node.call_vault(WATCHER, "voidUnanswered", batch.place(0), lease.qty, lease.qty)
    await settle_all(node)
    part = PENALTY_USDC6 // 4
    assert free(node, BUYER) == 100 * DOLLAR - COST + part, "the money, and a part of the penalty"
    assert free(node, SELLER) == part
    report = await node.settlement.reconcile()
    assert report.challengers_usdc6 == STAKE_USDC6 + PENALTY_USDC6 - 2 * part
    assert report.settler_bond_usdc6 == 2 * SETTLER_BOND_MIN_USDC6 - PENALTY_USDC6
    await node.call_vault(WATCHER, "takeOwed")
    await later(node, 2)
    assert (await node.settlement.reconcile()).challengers_usdc6 == 0
    assert (await slots(node, SELLER)).earning_usdc6 == PROCEEDS, "only the other is released"


async def test_a_question_that_is_open_holds_its_lease_back_until_it_is_answered(
    node: Node,
) -> None:
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    node.clock.advance_to(node.clock.now_ns() + DAY_NS - 60 * SECOND_NS)
    await lose_signatures(node)
    await node.mint(WATCHER, STAKE_USDC6)
    await node.call_vault(WATCHER, "challenge", batch.place(0), [])
    await later(node, 2)
    state = await node.chain.vault_state(await node.chain.final_block())
    assert state.releases == 0


async def asked(node: Node, count: int) -> list[Call]:
    """Ask for the orders behind so many fills; the answers, before they are sent."""
    for _ in range(count):
        await trade(node)
    await turns_and_blocks(node, 6)
    batch = await batch_of(node)
    await node.mint(WATCHER, count * STAKE_USDC6)
    for place in range(count):
        await node.call_vault(WATCHER, "challenge", batch.place(place), [])
    domain = separator(node.chain.chain_id, node.chain.vault)
    calls: list[Call] = []
    database = await db.connect_beside(node.database_url)
    answers = Answers(database, domain, node.pipeline.owner_of)
    posted_s = await database.value("SELECT posted_at_s FROM lease LIMIT 1")
    for place in range(count):
        shown = await answers.answer(Place(*batch.place(place)), LOTS, LOTS, posted_s)
        calls.append(answer(node.chain.vault, *shown))
    await database.close()
    return calls


async def answered(node: Node) -> list[tuple[bool, str | None]]:
    """Of each question: whether final logs say that it is, and how far our answer is."""
    async with node.beside() as database:
        rows = await database.fetch(
            "SELECT answered, state FROM challenge c"
            " LEFT JOIN outgoing o ON o.kind = 'answer' AND o.id = c.id ORDER BY c.id"
        )
    return [tuple(row) for row in rows]


async def by_watcher(node: Node, call: Call) -> None:
    await transact(node.chain, node.embedded, key(WATCHER), call.to, call.data)


@pytest.mark.fault("question-over")
async def test_who_answers_its_own_question_before_us_halts_nothing(late: Node) -> None:
    [call] = await asked(late, 1)
    await by_watcher(late, call)
    await turns_and_blocks(late, 5)
    assert await answered(late) == [(True, "RETURNED")]
    assert late.settlement.halted == ""


@pytest.mark.fault("question-over", "revert-after-simulation")
async def test_a_question_answered_between_our_simulation_and_the_block_holds_up_no_other(
    late: Node,
) -> None:
    calls = await asked(late, 3)
    await late.stop()
    chain = late.chain
    quicker = calls[:1]

    async def sign(*arguments: Any) -> Any:
        if quicker:
            await by_watcher(late, quicker.pop())
        return await chain.sign(*arguments)

    late.chain = cast("Chain", Through(chain, sign=sign))
    await late.start()
    await late.give_to_vault(1)
    await late.give_to_vault(1)
    await late.settlement.turn()
    states = [state for _, state in await answered(late)]
    assert states[0] == "SEALED", "what was signed for it may yet be mined"
    assert set(states[1:]) <= {"MINED", "SAFE"}
    await turns_and_blocks(late, 6)
    assert [is_answered for is_answered, _ in await answered(late)] == [True] * 3
    assert (await answered(late))[0][1] in ("RETURNED", "RECONCILED")
    late.chain = chain


@pytest.mark.fault("question-over", "lagging-rpc")
async def test_an_answer_that_was_refused_is_given_again_while_the_question_is_open(
    late: Node,
) -> None:
    """As after a reorganisation, or where the node that was asked did not know of the question."""
    refusals = [AnswerRejected(ContractError("NoSuchDispute", {}))] * 2

    def before(name: str) -> None:
        if name == "simulate" and refusals:
            raise refusals.pop()

    await asked(late, 1)
    await late.stop()
    await late.start(before=before)
    for _ in range(2):
        await late.give_to_vault(1)
    await late.settlement.turn()
    assert await answered(late) == [(False, "RETURNED")]
    await turns_and_blocks(late, 5)
    assert await answered(late) == [(True, "RECONCILED")]


async def test_a_false_record_is_undone_punished_and_its_lease_released_anew(node: Node) -> None:
    await trade(node)
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    stop = "UPDATE lease SET stopped_at_s = posted_at_s + $1 WHERE place = 0"
    async with node.beside() as database:  # its buyer has said nothing of the kind
        await database.execute(stop, 60)
    await later(node, 2.1)
    assert (await slots(node, SELLER)).earning_usdc6 < 2 * PROCEEDS
    async with node.beside() as database:
        await database.execute(stop, None)
        row = await database.fetchrow("SELECT accounts, records FROM release WHERE id = 1")
    path: list[bytes] = []
    proof = (1, 1, row["accounts"], row["records"], 0, path, 0)
    await node.mint(WATCHER, DOLLAR)
    await node.call_vault(WATCHER, "undoRelease", proof, batch.place(0))
    await later(node, 1)
    assert (await slots(node, SELLER)).earning_usdc6 == 2 * PROCEEDS
    assert free(node, SELLER) == free(node, BUYER) - 100 * DOLLAR + 2 * COST == PENALTY_USDC6 // 4


async def test_a_release_that_was_not_built_here_halts(node: Node) -> None:
    """Somebody else has the settler's key."""
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    node.clock.advance_to(node.clock.now_ns() + DAY_NS + DAY_NS // 24)
    release = Release(1, 1, [record(0, batch.fills[0])])
    await node.tell_vault(node.embedded.keys.settler, "release", *release.call)
    with pytest.raises(SettlementHalted, match="release 1 was not built here"):
        await node.settlement.turn()


# --- batches that wait ----------------------------------------------------------------------------


@pytest.mark.fault("batch-grown-old", "paused-vault")
async def test_of_a_batch_that_had_to_wait_only_what_is_still_covered_is_settled(
    node: Node,
) -> None:
    """Anybody may void what was cancelled a day before its batch was posted."""
    for buyer in (BUYER, OTHER, BUYER):
        await trade(node, buyer)
    pauser = node.embedded.keys.deployer
    await node.tell_vault(pauser, "setPaused", True)
    await node.settlement.turn()
    async with node.beside() as database:
        assert await database.fetchval("SELECT fills FROM batch") == 3
    await node.call_vault(BUYER, "cancelBelow", 2**32 - 1)
    for _ in range(10):
        node.clock.advance_to(node.clock.now_ns() + DAY_NS // 4)
        await node.settlement.turn()
    await node.tell_vault(pauser, "setPaused", False)
    await settle_all(node)
    [settled] = (await batch_of(node)).fills
    assert settled.buyer == node.account(OTHER)
    assert (await slots(node, BUYER)).locked_usdc6 == 0
    assert (await slots(node, OTHER)).locked_usdc6 == COST
    bond = (await node.chain.vault_state(await node.chain.final_block())).settler_bond_usdc6
    assert bond == 2 * SETTLER_BOND_MIN_USDC6


async def down_while_it_is_taken_back(node: Node) -> None:
    """The node, with a batch that waits for the paused vault: then BUYER cancels all, and the vault
    goes on."""
    pauser = node.embedded.keys.deployer
    await node.tell_vault(pauser, "setPaused", True)
    await trade(node)
    await node.settlement.turn()
    assert "IsPaused" in node.settlement.waiting
    await node.stop()
    await node.call_vault(BUYER, "cancelBelow", 2**32 - 1)
    node.clock.advance_to(node.clock.now_ns() + 2 * DAY_NS)
    await node.tell_vault(pauser, "setPaused", False)
    await node.start()


@pytest.mark.fault("batch-grown-old")
async def test_what_was_taken_back_while_the_node_was_down_is_read_before_anything_is_sent(
    node: Node,
) -> None:
    await down_while_it_is_taken_back(node)
    await settle_all(node)
    assert (await slots(node, BUYER)).locked_usdc6 == 0
    assert node.pipeline.balances(node.account(BUYER)).pending_usdc6 == COST


@pytest.mark.fault("batch-grown-old")
async def test_while_hours_of_logs_cannot_be_read_no_batch_is_sent_and_it_is_said(
    late: Node,
) -> None:
    """Not beyond a batch that was mined, and became final while the node was down."""
    await trade(late)
    await late.settlement.turn()
    cost = late.pipeline.balances(late.account(BUYER)).pending_usdc6
    await down_while_it_is_taken_back(late)
    for _ in range(2):
        await late.give_to_vault(1)
    await late.settlement.turn()
    assert "settle 2 is held back" in late.settlement.waiting
    await turns_and_blocks(late, 4)
    assert (await late.settlement.summary()).fills_settled == 1
    assert late.pipeline.balances(late.account(BUYER)).pending_usdc6 == cost
    assert late.settlement.waiting == ""


@pytest.mark.fault("batch-grown-old", "paused-vault")
@pytest.mark.parametrize(("function", "days"), [("requestBond", 1), ("requestExit", 7)])
async def test_of_a_batch_that_had_to_wait_nothing_is_settled_whose_seller_is_not_held_to_it(
    node: Node, function: str, days: int
) -> None:
    """Anybody may void it: OTHER sells, too. What cannot be settled is undone, and since all have
    signed nobody is suspended."""
    await node.stop()
    node.settings = Settings(sign_within_ns=SECOND_NS)
    await node.start()
    await node.fund(cash={}, bond={OTHER: 20 * DOLLAR})
    await settle_all(node)
    await node.declare(OTHER, LOTS)
    await node.order(OTHER, Side.SELL, PRICE_TICKS, LOTS)
    await node.order(BUYER, Side.BUY, PRICE_TICKS, LOTS)
    await trade(node)
    pauser = node.embedded.keys.deployer
    await node.tell_vault(pauser, "setPaused", True)
    await node.settlement.turn()
    await node.call_vault(OTHER, function)
    for _ in range(4 * days - 1):
        node.clock.advance_to(node.clock.now_ns() + DAY_NS // 4)
        await node.settlement.turn()
    await node.tell_vault(pauser, "setPaused", False)
    await settle_all(node)
    [settled] = (await batch_of(node)).fills
    assert settled.seller == node.account(SELLER)
    assert (await slots(node, BUYER)).locked_usdc6 == COST
    assert node.pipeline.balances(node.account(BUYER)).pending_usdc6 == 0
    async with node.beside() as database:
        assert await database.fetchval("SELECT count(*) FROM withheld") == 0
        assert await database.fetchval("SELECT count(*) FROM fill WHERE void_number > 0") == 1


# --- bonds ----------------------------------------------------------------------------------------


async def test_who_asks_for_the_bond_back_sells_nothing_more(node: Node) -> None:
    await trade(node)
    await settle_all(node)
    await node.call_vault(SELLER, "requestBond")
    await settle_all(node)
    refused = heard(node)
    await node.order(SELLER, Side.SELL, PRICE_TICKS, LOTS)
    assert (refused[-1].kind, refused[-1].reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    await later(node, 101)
    await node.call_vault(SELLER, "finishBond")
    await settle_all(node)
    assert await node.chain.token_balance_usdc6(address_of(key(SELLER))) == 20 * DOLLAR


async def hour_sold(node: Node, hours_ahead: int, lots: int) -> int:
    """Settled; the hour's number. It begins at least so many hours from now, less one."""
    start_hours = node.clock.now_ns() // (3600 * SECOND_NS) + hours_ahead
    await node.submit(
        kind=CommandKind.LIST_MARKET, instrument=HOUR, price_ticks=BOND_USDC6_PER_LOT, qty_lots=1,
        order_id=load_catalog().product("nv.h100-sxm-80g.x8.ib", "us-e", "B", "H", start_hours),
    )  # fmt: skip
    seller, buyer = node.account(SELLER), node.account(BUYER)
    hour = {"instrument": HOUR, "qty_lots": lots}
    await node.submit(kind=CommandKind.DECLARE_CAPACITY, account=seller, **hour)
    order = {"kind": CommandKind.NEW_ORDER, "price_ticks": PRICE_TICKS, **hour}
    await node.submit(account=seller, side=Side.SELL, **order)
    await node.submit(account=buyer, side=Side.BUY, **order)
    await settle_all(node)
    return start_hours


async def reported_hour(node: Node, lots: int) -> Batch:
    """Of which nothing comes, as its buyer says once it has begun."""
    start_hours = await hour_sold(node, 1, lots)
    batch = await batch_of(node)
    node.clock.advance_to((start_hours * 3600 + 60) * SECOND_NS)
    await node.call_vault(BUYER, "reportNonDelivery", batch.place(0))
    return batch


async def test_a_slashed_bond_is_the_buyers_and_its_seller_trades_no_more(node: Node) -> None:
    """Of an hour that has not begun yet when its buyer says that nothing comes."""
    batch = await reported_hour(node, LOTS)
    await node.tell_vault(node.embedded.keys.deployer, "slash", batch.place(0), DOLLAR)
    await settle_all(node)
    assert free(node, BUYER) == 100 * DOLLAR - COST + DOLLAR
    assert (await slots(node, SELLER)).bond_usdc6 == 19 * DOLLAR
    refused = heard(node)
    await node.order(SELLER, Side.SELL, PRICE_TICKS, LOTS)
    assert (refused[-1].kind, refused[-1].reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    await later(node, 2.1)
    assert (await slots(node, BUYER)).earning_usdc6 > COST * 9 // 10, "hardly anything was due"


@pytest.mark.fault("bond-before-credit")
async def test_what_was_added_to_a_bond_just_before_it_was_slashed_is_slashed_with_it(
    node: Node,
) -> None:
    """The log of the slash is booked at once; the engine has to hear of the deposit first."""
    await node.mint(SELLER, DOLLAR)
    batch = await reported_hour(node, 2_000)
    await settle_all(node)
    before = free(node, BUYER)
    await node.call_vault(SELLER, "deposit", DOLLAR, True)
    await node.tell_vault(node.embedded.keys.deployer, "slash", batch.place(0), 50 * DOLLAR)
    await settle_all(node)
    assert free(node, BUYER) == before + 21 * DOLLAR, "all there was"
    assert (await slots(node, SELLER)).bond_usdc6 == 0
    async with node.beside() as database:
        assert await database.fetchval("SELECT sum(contradicting) FROM audit") == 0


@pytest.mark.fault("bond-before-credit")
async def test_what_was_added_to_a_bond_just_before_it_was_taken_back_leaves_with_it(
    node: Node,
) -> None:
    await node.mint(SELLER, DOLLAR)
    await node.call_vault(SELLER, "requestBond")
    await later(node, 101)
    await node.call_vault(SELLER, "deposit", DOLLAR, True)
    await node.call_vault(SELLER, "finishBond")
    await node.settlement.turn()
    await node.stop()
    await node.start()
    await settle_all(node)
    assert (await slots(node, SELLER)).bond_usdc6 == 0
    assert await node.chain.token_balance_usdc6(address_of(key(SELLER))) == 21 * DOLLAR


# --- upkeep ---------------------------------------------------------------------------------------


async def test_a_quiet_exchange_says_that_it_is_there_before_anybody_may_freeze_it(
    node: Node,
) -> None:
    await settle_all(node)
    state = await node.chain.vault_state(await node.chain.final_block())
    heard_s = state.last_heard_s
    for day in range(10):
        await later(node, 1)
        state = await node.chain.vault_state(await node.chain.final_block())
        now_s = node.clock.now_ns() // SECOND_NS
        assert now_s - state.last_heard_s <= QUIET_SECONDS_MAX + DAY_S, f"day {day}"
    assert state.last_heard_s > heard_s
    async with node.beside() as database:
        assert await database.fetchval("SELECT count(*) FROM heartbeat") == 3


async def test_what_has_failed_once_and_waits_is_no_sign_of_life(node: Node) -> None:
    await settle_all(node)
    await node.tell_vault(node.embedded.keys.deployer, "setPaused", True)
    await trade(node)
    await node.settlement.turn()
    async with node.beside() as database:
        for state in ("SIMULATED", "SIGNED", "SEALED"):  # as after a revert
            await database.execute(
                "UPDATE outgoing SET state = $1, attempts = 1, nonce = 0 WHERE kind = 'settle'",
                state,
            )
        await later(node, 4)
        assert await database.fetchval("SELECT count(*) FROM heartbeat") == 1


async def test_while_the_vault_is_paused_settlement_waits_and_says_so(node: Node) -> None:
    await node.tell_vault(node.embedded.keys.deployer, "setPaused", True)
    await trade(node)
    await node.settlement.turn()
    assert "IsPaused" in node.settlement.waiting
    assert not node.settlement.halted
    await node.withdraw(OTHER, DOLLAR)
    await node.settlement.turn()
    assert await node.chain.token_balance_usdc6(address_of(key(OTHER))) == DOLLAR
    await node.tell_vault(node.embedded.keys.deployer, "setPaused", False)
    await settle_all(node)
    assert node.settlement.waiting == ""
    assert (await slots(node, BUYER)).locked_usdc6 == COST


# --- pure -----------------------------------------------------------------------------------------


def array(*fills: Fill) -> Fills:
    return np.array([tuple(fill) for fill in fills], FILL)


START_S = 1_796_000_400  # an hour begins


@pytest.mark.parametrize("kind", [HOURLY, DAILY, WEEKLY, 4, 5, 6, 7])
@pytest.mark.parametrize("until", [None, -5, 0, 1, 1_799, 86_400, 40 * DAY_S])
def test_what_is_due_by_any_time_is_what_the_vault_says(kind: int, until: int | None) -> None:
    fill = Fill(1, 2, 24_151, 163, window=window(kind, START_S), buyer_fee=500, seller_fee=200)
    starts, ends = spans_s(array(fill), START_S - 5 * DAY_S)
    assert (starts[0], ends[0]) == fill.span()
    assert window_ends_at_s(fill.window) == ends[0]
    assert due_at_s(array(fill), START_S - 5 * DAY_S)[0] == fill.span()[1]
    assert due_at_s(array(fill), fill.span()[1])[0] == fill.span()[1] + CHALLENGE_SECONDS
    said = None if until is None else START_S + until
    [paid] = paid_usdc6(array(fill), START_S - 5 * DAY_S, [said])
    assert paid == (fill.notional if said is None else fill.due(said))


def test_spot_hours_last_as_long_as_one_gpu_takes_from_when_they_were_settled() -> None:
    fill = Fill(1, 2, 24_151, 1_000, window=SPOT)
    posted_s = START_S + 7
    starts, ends = spans_s(array(fill), posted_s)
    assert (starts[0], ends[0]) == (posted_s, posted_s + 36_000) == fill.span(posted_s)
    assert paid_usdc6(array(fill), posted_s, [posted_s + 18_000])[0] == fill.notional // 2
    many = fill._replace(qty=10_000_000)
    assert spans_s(array(many), posted_s)[1][0] == posted_s + 60 * DAY_S == many.span(posted_s)[1]


def test_a_lease_too_large_for_a_record_is_never_due() -> None:
    most = Fill(1, 2, 2**24 - 2, 10**9, window=window(HOURLY, START_S))
    assert due_at_s(array(most, most._replace(qty=100)), START_S).tolist() == [
        NEVER_S, START_S + CHALLENGE_SECONDS,
    ]  # fmt: skip


async def test_a_question_is_answered_by_itself_from_what_was_signed(node: Node) -> None:
    await trade(node)
    await settle_all(node)
    batch = await batch_of(node)
    await node.mint(WATCHER, STAKE_USDC6)
    await node.call_vault(WATCHER, "challenge", batch.place(0), [])
    await settle_all(node)
    async with node.beside() as database:
        assert await database.fetchval("SELECT answered FROM challenge")
    report = await node.settlement.reconcile()
    assert report.settler_bond_usdc6 == 2 * SETTLER_BOND_MIN_USDC6 + STAKE_USDC6
    await later(node, 2)
    assert (await slots(node, SELLER)).earning_usdc6 == PROCEEDS
