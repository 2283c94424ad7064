"""A whole node on a chain that takes blocks back: nothing is credited or paid that did not stay."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.clock import ScriptedClock
from engine.records import Side
from settlement.abi import Interface
from settlement.chain import address_of
from settlement.sealing import Triggers
from settlement.service import Settings
from tests.chain.anvil import Anvil
from tests.settled import DOLLAR, SECOND_NS, Node, key

SELLER, BUYER, OTHER = 11, 12, 13
EXIT_SECONDS = 8 * 24 * 3600  # a day more than the vault's delay
CONFIRMATIONS = 6
BLOCKS_TAKEN_BACK = 4


@pytest.fixture
async def node(tmp_path: Path, database_url: str, anvil: Anvil) -> AsyncIterator[Node]:
    node = await Node.begin(tmp_path, database_url, CONFIRMATIONS, anvil.url)
    newest = (await node.chain.heights()).newest
    node.clock = ScriptedClock(await node.chain.block_time_s(newest) * SECOND_NS)  # not behind it
    await node.start()
    yield node
    await node.end()


async def funded(node: Node) -> None:
    await node.fund(cash={BUYER: 100 * DOLLAR}, bond={SELLER: 20 * DOLLAR})


@pytest.mark.fault("deposit-reorganised")
async def test_a_deposit_whose_block_is_taken_back_was_never_there_to_be_traded(
    anvil: Anvil, node: Node
) -> None:
    await anvil.mine(2 * CONFIRMATIONS)
    await node.settlement.turn()
    await funded(node)  # the last two blocks are the bond and the cash
    await anvil.mine(BLOCKS_TAKEN_BACK - 2)
    assert (await node.settlement.turn()).deposits == 0
    await anvil.reorganise(BLOCKS_TAKEN_BACK)
    await anvil.mine(2 * CONFIRMATIONS)
    assert (await node.settlement.turn()).deposits == 0
    assert (node.account(BUYER), node.account(SELLER)) == (0, 0)
    await funded(node)
    await anvil.mine(CONFIRMATIONS)
    assert (await node.settlement.turn()).deposits == 2
    assert node.pipeline.balances(node.account(BUYER)).free_usdc6 == 100 * DOLLAR
    assert (await node.settlement.reconcile()).reconciled


@pytest.mark.fault("reorg-4")
async def test_a_batch_whose_block_is_taken_back_is_settled_once_and_told_when_it_is_final(
    anvil: Anvil, node: Node
) -> None:
    await funded(node)
    await anvil.mine(CONFIRMATIONS)
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)
    await node.order(SELLER, Side.SELL, 20_000, 45)
    await node.order(BUYER, Side.BUY, 20_000, 45)
    await node.withdraw(BUYER, 30 * DOLLAR)
    await node.settlement.turn()
    await anvil.mine(BLOCKS_TAKEN_BACK - 2)
    state = await node.chain.vault_state((await node.chain.heights()).newest)
    assert (state.head, state.last_withdrawal > 0) == (1, True)
    await anvil.reorganise(BLOCKS_TAKEN_BACK)
    state = await node.chain.vault_state((await node.chain.heights()).newest)
    assert (state.head, state.last_withdrawal) == (0, 0)
    turn = await node.settlement.turn()
    assert turn.confirmations == 0
    assert (await node.settlement.reconcile()).reconciled
    await anvil.mine(CONFIRMATIONS // 2)
    await node.settlement.turn()
    summary = await node.settlement.summary()
    assert (summary.fills_safe, summary.fills_settled) == (1, 0)
    await anvil.mine(CONFIRMATIONS)
    assert (await node.settlement.turn()).confirmations == 2
    balances = node.pipeline.balances(node.account(BUYER))
    assert (balances.escrow_usdc6, balances.pending_usdc6, balances.leaving_usdc6) == (
        900_000,
        0,
        0,
    )
    assert (await node.settlement.reconcile()).reconciled
    summary = await node.settlement.summary()
    assert (summary.fills_settled, summary.batches, summary.withdrawals) == (1, 1, 1)
    assert summary.foreign_transactions == 0


@pytest.mark.fault("revert-after-simulation", "exited-account")
async def test_a_batch_that_reverts_takes_those_behind_it_along_and_leaves_out_whom_it_must(
    anvil: Anvil, node: Node
) -> None:
    """BUYER's exit falls due between the simulation and the block; OTHER's batch is already behind
    it. What was signed may be mined until its failure is final, so nothing is changed before."""
    await node.stop()
    node.settings = Settings(batches=Triggers(fills_max=1))
    await node.start()
    await node.fund(cash={BUYER: 100 * DOLLAR, OTHER: 100 * DOLLAR}, bond={SELLER: 20 * DOLLAR})
    await anvil.mine(CONFIRMATIONS)
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=10_000)
    await anvil.sent_by(
        address_of(key(BUYER)), node.chain.vault, Interface("VaultV2").encode("requestExit")
    )
    await anvil.automine(False)
    for who in (BUYER, OTHER):
        await node.order(SELLER, Side.SELL, 20_000, 45)
        await node.order(who, Side.BUY, 20_000, 45)
    await node.settlement.turn()
    assert await anvil.pool() == 2
    await anvil.wait_seconds(EXIT_SECONDS)
    await anvil.automine(True)
    await node.settlement.turn()
    assert "may still be mined" in node.settlement.waiting
    assert (await node.settlement.summary()).quarantined_accounts == 0
    for _ in range(4):
        await anvil.mine(CONFIRMATIONS + 1)
        await node.settlement.turn()
    summary = await node.settlement.summary()
    assert (summary.fills_settled, summary.batches, summary.voided_fills) == (1, 1, 1)
    escrow = [node.pipeline.balances(node.account(who)).escrow_usdc6 for who in (BUYER, OTHER)]
    assert escrow == [0, 900_000]
    assert (await node.settlement.reconcile()).reconciled
    assert (node.settlement.waiting, summary.foreign_transactions) == ("", 0)
