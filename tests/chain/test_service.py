"""Settlement end to end: real engine, real PostgreSQL, real contracts on the embedded chain."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from eth_utils.crypto import keccak

from engine.clock import ScriptedClock
from engine.records import Side
from engine.rejects import Refused, Reject
from settlement import database as db
from settlement.abi import Interface
from settlement.chain import (
    PRICE_E8_PER_TICK,
    address_of,
    checksum,
)
from settlement.errors import (
    ChainUnavailable,
    ContractError,
    ContractRejected,
    InsufficientFree,
    SettlementHalted,
    TransactionRefused,
    VaultPaused,
)
from settlement.sealing import Triggers
from settlement.service import Settings
from tests.passable import NewDatabase
from tests.settled import DOLLAR, SECOND_NS, START_NS, Node, key, transact

SELLER, BUYER, OTHER = 11, 12, 13


@pytest.fixture
async def node(tmp_path: Path, database_url: str) -> AsyncIterator[Node]:
    node = await Node.begin(tmp_path, database_url)
    await node.start()
    yield node
    await node.end()


class Cut(Exception):
    pass


def cut_at_send(name: str) -> None:
    if name == "send":
        raise Cut


async def funded(node: Node) -> None:
    await node.fund(cash={BUYER: 100 * DOLLAR, OTHER: 50 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)


async def traded(node: Node) -> None:
    """Three fills: BUYER pays 0.9 + 0.8, OTHER pays 0.5 dollars."""
    await funded(node)
    await node.order(SELLER, Side.SELL, 20_000, 45)
    await node.order(BUYER, Side.BUY, 21_000, 45)
    await node.order(OTHER, Side.BUY, 20_000, 25)
    await node.order(SELLER, Side.SELL, 19_000, 25)
    await node.order(SELLER, Side.SELL, 16_000, 50)
    await node.order(BUYER, Side.BUY, 16_000, 50)


async def test_a_deposit_on_chain_becomes_money_in_the_engine(node: Node) -> None:
    await node.fund(cash={BUYER: 100 * DOLLAR, OTHER: 50 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    turn = await node.settlement.turn()
    assert turn.deposits == 3
    assert node.pipeline.balances(node.account(BUYER)).free_usdc6 == 100 * DOLLAR
    assert node.pipeline.balances(node.account(SELLER)).bond_free_usdc6 == 20 * DOLLAR
    report = await node.settlement.reconcile()
    assert report.reconciled and report.ledger_usdc6 == 170 * DOLLAR == report.vault_usdc6
    assert report.tokens_usdc6 == 170 * DOLLAR + report.settler_bond_usdc6


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
CUT_OFF = f"SELECT count(pg_terminate_backend(pid)) {OTHERS}"
CONNECTED = f"SELECT count(*) {OTHERS}"
SETTLED = """
    SELECT count(*) FROM fill JOIN outgoing ON fill.batch_id = outgoing.id
    WHERE outgoing.state = 'RECONCILED'
"""


async def connected(killer: Any, running: asyncio.Task[None]) -> None:
    """Return when settlement is, and nobody else."""
    while await killer.fetchval(CONNECTED) != 1:
        assert not running.done(), running
        await asyncio.sleep(0.01)


async def test_a_connection_that_is_lost_is_made_again_and_nothing_is_booked_twice(
    tmp_path: Path, database_url: str
) -> None:
    node = await Node.begin(tmp_path, database_url)
    node.settings = Settings(turn_seconds=0.01)
    await node.start()
    await funded(node)
    killer: Any = await cast("Any", asyncpg.connect)(database_url)
    running = asyncio.create_task(node.settlement.run())
    for n in range(1, 6):
        await node.order(SELLER, Side.SELL, 20_000, 25)
        await node.order(BUYER, Side.BUY, 20_000, 25)
        await connected(killer, running)
        assert await killer.fetchval(CUT_OFF) == 1
        while await killer.fetchval("SELECT count(*) FROM fill") < n:
            assert not running.done(), running
            await asyncio.sleep(0.01)
    name = database_url.partition("?")[0].rpartition("/")[2]
    other: Any = await cast("Any", asyncpg.connect)(database_url.replace(f"/{name}?", "/postgres?"))
    await connected(killer, running)
    await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    assert await killer.fetchval(CUT_OFF) == 1
    await asyncio.sleep(0.1)
    assert not running.done(), "it waits for a database that takes nobody"
    await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    await other.close()
    while await killer.fetchval(SETTLED) < 5:
        assert not running.done(), running
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await node.stop()
    await node.start()
    await node.settlement.turn()
    assert (await node.settlement.reconcile()).reconciled
    assert node.pipeline.balances(node.account(BUYER)).escrow_usdc6 == 5 * 25 * 20_000
    assert not await killer.fetch("SELECT * FROM audit WHERE contradicting > 0")
    await killer.close()
    await node.end()


async def test_fills_become_escrow_that_all_three_sides_agree_on(node: Node) -> None:
    await traded(node)
    turn = await node.settlement.turn()
    assert (turn.sealed_fills, turn.confirmations) == (3, 2)
    buyer, other = (node.pipeline.balances(node.account(who)) for who in (BUYER, OTHER))
    assert (buyer.pending_usdc6, buyer.escrow_usdc6) == (0, 1_700_000)
    assert (other.pending_usdc6, other.escrow_usdc6) == (0, 500_000)
    accounts = await node.chain.vault_accounts(await node.chain.final_block())
    locked = {a.owner: a.locked_usdc6 for a in accounts}
    assert locked[address_of(key(BUYER))] == 1_700_000
    report = await node.settlement.reconcile()
    assert report.reconciled and report.surplus_usdc6 == 0, report.gaps
    summary = await node.settlement.summary()
    assert (summary.fills, summary.fills_settled, summary.batches) == (3, 3, 1)
    assert summary.notional_usdc6 == 2_200_000
    assert 0 < summary.gas_per_fill < 100_000
    assert (await node.settlement.turn()).idle


async def test_fills_from_before_the_clock_was_set_back_are_settled_at_once(node: Node) -> None:
    """Not an hour later, when the time of the fills has come again."""
    await funded(node)
    node.clock.advance_to(START_NS + 3600 * SECOND_NS)
    await node.order(SELLER, Side.SELL, 20_000, 45)
    await node.order(BUYER, Side.BUY, 20_000, 45)
    await node.stop()
    node.clock = ScriptedClock(START_NS)
    await node.start()
    assert (await node.settlement.turn()).sealed_fills == 1


async def test_fees_go_into_escrow_with_the_price_to_the_unit(node: Node) -> None:
    """A maker pays 200 ppm, a taker 500. BUYER takes twice; OTHER's order waits for the seller."""
    await node.set_fees(maker_ppm=200, taker_ppm=500)
    await traded(node)
    buyer, other = node.account(BUYER), node.account(OTHER)
    pending = [node.pipeline.balances(account).pending_usdc6 for account in (buyer, other)]
    assert pending == [900_000 + 450 + 800_000 + 400, 500_000 + 100]
    await node.settlement.turn()
    assert [node.pipeline.balances(account).escrow_usdc6 for account in (buyer, other)] == pending
    accounts = await node.chain.vault_accounts(await node.chain.final_block())
    locked = {a.account: a.locked_usdc6 for a in accounts}
    assert [locked[buyer], locked[other], locked[node.account(SELLER)]] == [*pending, 0]
    report = await node.settlement.reconcile()
    assert report.reconciled and report.surplus_usdc6 == 0, report.gaps
    summary = await node.settlement.summary()
    assert summary.notional_usdc6 == 2_200_000
    assert summary.buyer_fees_usdc6 == 450 + 100 + 400
    assert summary.seller_fees_usdc6 == 180 + 250 + 160, "due, of the same fills"
    await node.stop()
    await node.start()
    assert (await node.settlement.turn()).idle, "the journal says the same again"
    assert (await node.settlement.reconcile()).reconciled


async def test_only_fees_of_settled_fills_are_counted(node: Node) -> None:
    await node.set_fees(maker_ppm=200, taker_ppm=500)
    await traded(node)
    await node.exit(OTHER)
    await node.settlement.turn()
    summary = await node.settlement.summary()
    assert (summary.fills, summary.fills_settled) == (3, 2)
    assert (summary.buyer_fees_usdc6, summary.seller_fees_usdc6) == (850, 340)


async def test_a_withdrawal_pays_the_owners_wallet_once(node: Node) -> None:
    await traded(node)
    await node.withdraw(BUYER, 30 * DOLLAR)
    await node.withdraw(OTHER, 49 * DOLLAR)
    await node.settlement.turn()
    await node.settlement.turn()
    assert await node.chain.token_balance_usdc6(address_of(key(BUYER))) == 30 * DOLLAR
    assert await node.chain.token_balance_usdc6(address_of(key(OTHER))) == 49 * DOLLAR
    assert node.pipeline.balances(node.account(BUYER)).leaving_usdc6 == 0
    assert (await node.settlement.reconcile()).reconciled
    summary = await node.settlement.summary()
    assert (summary.withdrawals, summary.refused_withdrawals) == (2, 0)


async def test_reconciliation_counts_what_is_on_its_way(node: Node) -> None:
    """At a moment when a deposit, a batch and a withdrawal are done on chain only."""
    await traded(node)
    await node.withdraw(BUYER, 30 * DOLLAR)
    await node.fund(cash={OTHER: 7 * DOLLAR})
    await node.stop()

    def refuse(name: str) -> None:
        if name == "submit":
            raise Refused(Reject.BUSY)

    await node.start(before=refuse)
    await node.settlement.turn()
    balances = node.pipeline.balances(node.account(BUYER))
    assert (balances.pending_usdc6, balances.leaving_usdc6) == (1_700_000, 30 * DOLLAR)
    assert (await node.chain.vault_state(await node.chain.final_block())).head == 1
    report = await node.settlement.reconcile()
    assert report.reconciled, report.gaps
    assert report.vault_usdc6 == report.ledger_usdc6 + 7 * DOLLAR, "as of before the batch"


async def test_tokens_given_to_the_vault_are_a_surplus_and_stop_nothing(node: Node) -> None:
    await traded(node)
    await node.give_to_vault(3)
    await node.settlement.turn()
    report = await node.settlement.reconcile()
    assert report.reconciled and report.surplus_usdc6 == 3


@pytest.mark.fault("not-taken")
async def test_turns_that_fail_are_said_and_keep_nobody_from_comparing(
    tmp_path: Path, database_url: str
) -> None:
    node = await Node.begin(tmp_path, database_url)
    node.settings = Settings(turn_seconds=0.01, turns_per_reconciliation=3)
    asked: list[str] = []
    refusals = [TransactionRefused("insufficient funds for gas * price + value")]

    def before(name: str) -> None:
        asked.append(name)
        if name == "settler_nonce" and refusals:  # in every turn, and in no comparison
            raise refusals[0]

    await node.start(before=before)
    running = asyncio.create_task(node.settlement.run())
    while asked.count("vault_accounts") < 2:
        assert not running.done(), running
        await asyncio.sleep(0.01)
    assert node.settlement.waiting == str(refusals[0])
    refusals.clear()
    while node.settlement.waiting:
        assert not running.done(), running
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await node.end()


@pytest.mark.fault("foreign-transaction")
async def test_a_foreign_transaction_of_the_settlers_key_takes_a_nonce_and_nothing_else(
    node: Node,
) -> None:
    await traded(node)
    await node.stop()

    await node.start(before=cut_at_send)
    with pytest.raises(Cut):
        await node.settlement.turn()
    await node.give_to_vault(1)  # with the nonce of the batch that is signed and stored
    await node.stop()
    await node.start()
    await node.settlement.turn()
    summary = await node.settlement.summary()
    assert (summary.fills_settled, summary.foreign_transactions) == (3, 1), "it is announced"
    assert (await node.settlement.reconcile()).reconciled


@pytest.mark.fault("foreign-transaction")
async def test_a_batch_that_another_transaction_settled_is_adopted(
    node: Node, database_url: str
) -> None:
    """As when an attempt given up for lost is mined after all."""
    await traded(node)
    await node.stop()

    await node.start(before=cut_at_send)
    with pytest.raises(Cut):
        await node.settlement.turn()
    await node.stop()
    database = await db.connect(database_url)
    packed = await database.value("SELECT packed FROM batch WHERE id = 1")
    await database.close()
    await node.give_to_vault(1)  # takes the stored transaction's nonce
    nonce = await node.chain.settler_nonce()
    other = await node.chain.sign(node.chain.settle_call(1, packed), nonce)
    await node.chain.send(other)
    await node.start()
    await node.settlement.turn()
    assert (await node.settlement.summary()).fills_settled == 3
    assert (await node.chain.vault_state(await node.chain.final_block())).head == 1
    assert (await node.settlement.reconcile()).reconciled


@pytest.mark.fault("finality-broken")
async def test_a_node_whose_final_block_is_another_one_now_halts_and_says_which(
    node: Node, database_url: str
) -> None:
    """A deposit of that block may have been traded already."""
    await traded(node)
    await node.settlement.turn()
    other: Any = await cast("Any", asyncpg.connect)(database_url)
    number = await other.fetchval("UPDATE final_block SET hash = sha256(hash) RETURNING number")
    await other.close()
    with pytest.raises(SettlementHalted, match=f"block {number} was final as 0x"):
        await node.settlement.turn()
    assert "what the engine was told of it may not have happened" in node.settlement.halted


@pytest.mark.fault("deposit-reorganised")
async def test_nothing_is_credited_or_confirmed_before_it_is_final(
    tmp_path: Path, database_url: str
) -> None:
    node = await Node.begin(tmp_path, database_url, confirmations=2)
    await node.start()
    await node.fund(cash={BUYER: 100 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await node.settlement.turn()
    assert node.account(SELLER) == 0 or node.account(BUYER) == 0
    for _ in range(2):
        await node.give_to_vault(1)  # makes a block
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)
    await node.order(SELLER, Side.SELL, 10_000, 5)
    await node.order(BUYER, Side.BUY, 10_000, 5)
    await node.settlement.turn()
    pending = [node.pipeline.balances(node.account(BUYER)).pending_usdc6]
    assert (await node.settlement.reconcile()).reconciled
    await node.give_to_vault(1)
    await node.settlement.turn()
    pending.append(node.pipeline.balances(node.account(BUYER)).pending_usdc6)
    await node.give_to_vault(1)
    await node.settlement.turn()
    pending.append(node.pipeline.balances(node.account(BUYER)).pending_usdc6)
    assert pending == [50_000, 50_000, 0]
    assert (await node.settlement.reconcile()).reconciled
    await node.end()


async def test_a_vault_that_was_deployed_just_now_is_waited_for_until_it_is_final(
    tmp_path: Path, database_url: str
) -> None:
    node = await Node.begin(tmp_path, database_url, confirmations=8)
    await node.start()
    try:
        newest = (await node.chain.heights()).newest
        while newest - 8 < node.chain.deploy_block:
            assert (await node.settlement.turn()).idle
            assert node.settlement.waiting.startswith("the vault is of block")
            with pytest.raises(ChainUnavailable, match="the vault is of block"):
                await node.settlement.reconcile()
            await node.give_to_vault(1)
            newest += 1
        await node.settlement.turn()
        assert "the vault is of block" not in node.settlement.waiting
        assert (await node.settlement.reconcile()).reconciled
    finally:
        await node.end()


async def test_a_withdrawal_the_vault_refuses_is_set_aside_and_later_ones_are_paid(
    node: Node,
) -> None:
    await traded(node)
    await node.settlement.turn()
    await node.exit(OTHER)
    await node.withdraw(OTHER, DOLLAR)
    await node.withdraw(BUYER, DOLLAR)
    await node.settlement.turn()
    assert (await node.settlement.reconcile()).reconciled
    summary = await node.settlement.summary()
    assert (summary.withdrawals, summary.refused_withdrawals) == (1, 1)
    assert await node.chain.token_balance_usdc6(address_of(key(BUYER))) == DOLLAR


@pytest.mark.fault("exited-account", "insolvent-account")
async def test_an_account_the_vault_refuses_is_left_out_and_the_others_settle(
    node: Node,
) -> None:
    """OTHER takes its money out of the vault itself, so its fills cannot be settled."""
    await traded(node)
    await node.exit(OTHER)
    turn = await node.settlement.turn()
    assert turn.confirmations == 1
    summary = await node.settlement.summary()
    assert (summary.fills_settled, summary.quarantined_accounts) == (2, 1)
    assert (await node.settlement.reconcile()).reconciled, "what was taken is known"


@pytest.mark.fault("insolvent-account")
async def test_an_account_that_the_vault_refuses_once_more_is_left_out_once_more(
    node: Node,
) -> None:
    """As when the block of a batch that was settled before it was left out is taken back."""
    await traded(node)
    await node.stop()
    other = node.account(OTHER)
    refusals: list[ContractRejected] = [VaultPaused(ContractError("IsPaused", {}))] * 9

    def before(name: str) -> None:
        if name == "simulate_settle" and refusals:
            raise refusals.pop()

    await node.start(before=before)
    await node.settlement.turn()
    refusals[:] = [InsufficientFree(ContractError("InsufficientFree", {"account": other}))]
    async with node.beside() as database:
        await database.execute("INSERT INTO quarantine VALUES ($1, 1, 'an earlier one', 0)", other)
        await node.settlement.turn()
        [row] = await database.fetch("SELECT account, reason FROM quarantine")
    assert tuple(row) == (other, f"InsufficientFree(account={other})")
    assert (await node.settlement.summary()).fills_settled == 2
    assert (await node.settlement.reconcile()).reconciled


async def test_a_gap_of_one_unit_is_named_and_halts(node: Node, database_url: str) -> None:
    await traded(node)
    await node.settlement.turn()
    await node.settlement.close()
    database = await db.connect(database_url)
    await database.execute(
        "INSERT INTO transfer VALUES"
        " (1000000, 0, 1000000, 0, 0, 'reserve', 1000000, $1, 'cash', $1, 'leaving', 1)",
        node.account(BUYER),
    )
    await database.close()
    await node.pipeline.close()
    await node.start()
    report = await node.settlement.reconcile()
    account = node.account(BUYER)
    assert [(g.account, g.what, g.left_usdc6 - g.right_usdc6) for g in report.gaps] == [
        (account, "cash", 1),
        (account, "leaving", -1),
    ]
    assert not report.reconciled
    with pytest.raises(SettlementHalted, match=f"2 gaps, the first: account {account}, cash"):
        await node.settlement.turn()


async def test_another_journal_than_the_booked_one_is_refused(node: Node) -> None:
    await funded(node)
    await node.settlement.turn()
    await node.stop()
    node.directory /= "another"
    await node.start()
    with pytest.raises(SettlementHalted, match="the engine has 0 events"):
        await node.settlement.turn()


async def test_a_journal_of_other_events_is_refused(node: Node, new_database: NewDatabase) -> None:
    await funded(node)
    await node.settlement.turn()
    await node.stop()
    node.directory /= "another"
    database_url, node.database_url = node.database_url, await new_database()
    await node.start()
    for _ in range(30):
        await node.submit(kind=5, account=1, price_ticks=1)
    await node.stop()
    node.database_url = database_url
    await node.start()
    with pytest.raises(SettlementHalted, match="is not the one that was booked"):
        await node.settlement.turn()


async def test_a_lost_ledger_is_not_begun_again_over_a_used_vault(
    node: Node, new_database: NewDatabase
) -> None:
    await traded(node)
    await node.settlement.turn()
    await node.stop()
    node.database_url = await new_database()
    await node.start()
    with pytest.raises(SettlementHalted, match="has settled batch 1, the ledger has sealed 0"):
        await node.settlement.turn()


async def test_many_turns_settle_many_batches_in_order(node: Node) -> None:
    await funded(node)
    await node.stop()
    node.settings = Settings(batches=Triggers(fills_max=2))
    await node.start()
    for _ in range(7):
        await node.order(SELLER, Side.SELL, 10_000, 3)
        await node.order(BUYER, Side.BUY, 10_000, 3)
    turn = await node.settlement.turn()
    assert turn.sealed_fills == 7
    await node.settlement.turn()
    assert (await node.settlement.summary()).batches == 4
    assert node.pipeline.balances(node.account(BUYER)).escrow_usdc6 == 7 * 30_000
    assert (await node.settlement.reconcile()).reconciled


async def test_a_batch_is_sealed_by_age_by_value_or_when_it_is_full(node: Node) -> None:
    await funded(node)
    for triggers, fills, wait_s in (
        (Triggers(wait_ns=60 * SECOND_NS), 1, 60),
        (Triggers(wait_ns=60 * SECOND_NS, value_usdc6=90_000), 3, 0),
        (Triggers(wait_ns=60 * SECOND_NS, fills_max=2), 2, 0),
    ):
        await node.stop()
        node.settings = Settings(batches=triggers)
        await node.start()
        for n in range(fills):
            assert (await node.settlement.turn()).sealed_fills == 0, (triggers, n)
            await node.order(SELLER, Side.SELL, 10_000, 3)
            await node.order(BUYER, Side.BUY, 10_000, 3)
        node.clock.advance_to(node.clock.now_ns() + wait_s * SECOND_NS)
        assert (await node.settlement.turn()).sealed_fills == fills, triggers


async def test_the_index_is_published_and_read_back_as_a_consumer_does(node: Node) -> None:
    await funded(node)
    await node.order(SELLER, Side.SELL, 20_000, 200)
    await node.order(BUYER, Side.BUY, 20_000, 200)
    assert (await node.settlement.turn()).points == 0, "no full partition yet"
    node.clock.advance_to(START_NS + 301 * SECOND_NS)
    assert (await node.settlement.turn()).points == 1
    (feed,) = await node.settlement.published()
    assert feed.answer_e8 == 20_000 * PRICE_E8_PER_TICK
    assert feed.updated_at_s == START_NS // SECOND_NS + 300
    assert feed.description == "nv.h100-sxm-80g.x8.ib|us-e|B / USD"
    assert (await node.settlement.turn()).points == 0, "each window once"
    node.clock.advance_to(START_NS + 601 * SECOND_NS)
    assert (await node.settlement.turn()).points == 1, "though nobody has made a block since"


@pytest.mark.fault("price-refused")
async def test_feeds_that_refuse_a_price_hold_up_nothing_else(node: Node) -> None:
    publisher = checksum(address_of(node.embedded.keys.publisher))
    oracle = Interface("PriceOracle")
    role = keccak(b"PUBLISHER_ROLE")

    async def tell(function: str) -> None:
        data = oracle.encode(function, role, publisher)
        deployer = node.embedded.keys.deployer
        await transact(node.chain, node.embedded, deployer, node.chain.oracle, data)

    await tell("revokeRole")
    await funded(node)
    await node.order(SELLER, Side.SELL, 20_000, 200)
    await node.order(BUYER, Side.BUY, 20_000, 200)
    node.clock.advance_to(START_NS + 301 * SECOND_NS)
    assert (await node.settlement.turn()).points == 0
    assert "the price feeds refuse" in node.settlement.waiting
    assert (await node.settlement.summary()).fills_settled == 1
    await tell("grantRole")
    node.clock.advance_to(START_NS + 362 * SECOND_NS)
    assert (await node.settlement.turn()).points == 1
    assert node.settlement.waiting == ""
