"""Settlement dropped at every call it makes to the engine or the chain, and opened again.

What it has stored before a call and what the call has done by then are all a crash can leave
behind (each database transaction is whole or absent), so these are all the edges there are.
"""

from pathlib import Path

import pytest

from engine.records import Side
from settlement.chain import PRICE_E8_PER_TICK, address_of
from tests.settled import DOLLAR, SECOND_NS, Node, key

SELLER, BUYER = 11, 12
CALLS_PER_ROUND_MAX = 200
WITHDRAWAL_USDC6 = DOLLAR // 2
FILL_USDC6 = 10_000 * 200 + 1_000  # the taker's 500 ppm are the buyer's


class Crash(Exception):
    pass


class Countdown:
    """Raises at the n-th call, and remembers which it was."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.at = ""

    def __call__(self, name: str) -> None:
        self.left -= name != "subscribe"  # there is nothing to lose yet
        if self.left == 0 and not self.at:
            self.at = name
            raise Crash(name)


async def a_rounds_work(node: Node) -> None:
    """Something of everything: a deposit, a fill, a withdrawal, a new index value."""
    await node.fund(cash={BUYER: 3 * DOLLAR})
    await node.order(SELLER, Side.SELL, 10_000, 200)
    await node.order(BUYER, Side.BUY, 10_000, 200)
    await node.withdraw(BUYER, WITHDRAWAL_USDC6)
    node.clock.advance_to(node.clock.now_ns() + 300 * SECOND_NS)


async def settle_all(node: Node) -> None:
    for _ in range(5):
        if (await node.settlement.turn()).idle:
            return
    raise AssertionError("five turns should do")


async def assert_settled_once(node: Node, rounds: int, context: str) -> None:
    report = await node.settlement.reconcile()
    assert report.reconciled, (context, report.gaps)
    assert report.ledger_usdc6 == report.vault_usdc6, context
    assert report.tokens_usdc6 == report.vault_usdc6 + report.settler_bond_usdc6, context
    balances = node.pipeline.balances(node.account(BUYER))
    assert balances.escrow_usdc6 == rounds * FILL_USDC6, context
    assert (balances.pending_usdc6, balances.leaving_usdc6) == (0, 0), context
    paid = await node.chain.token_balance_usdc6(address_of(key(BUYER)))
    assert paid == rounds * WITHDRAWAL_USDC6, context
    summary = await node.settlement.summary()
    assert (summary.fills_settled, summary.withdrawals) == (rounds, rounds), context
    state = await node.chain.vault_state(await node.chain.final_block())
    assert state.head == summary.batches == rounds, context
    (feed,) = await node.settlement.published()
    assert feed.answer_e8 == 10_000 * PRICE_E8_PER_TICK, context
    assert feed.updated_at_s == node.clock.now_ns() // SECOND_NS // 300 * 300, context


@pytest.mark.fault("crash-at-each-edge")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_wherever_it_is_dropped_every_fill_and_withdrawal_is_paid_once(
    tmp_path: Path, database_url: str, when: str
) -> None:
    node = await Node.begin(tmp_path, database_url)
    await node.start()
    await node.fund(cash={BUYER: 10 * DOLLAR}, bond={SELLER: 1_000 * DOLLAR})
    await node.settlement.turn()
    await node.list_market(SELLER, capacity_lots=1_000_000)
    await node.set_fees(maker_ppm=200, taker_ppm=500)
    crashed_at: list[str] = []
    for round_number in range(1, CALLS_PER_ROUND_MAX):
        await node.stop()
        countdown = Countdown(round_number)
        await (node.start(before=countdown) if when == "before" else node.start(after=countdown))
        await a_rounds_work(node)
        crashed = False
        try:
            await settle_all(node)
        except Crash:
            crashed = True
        await node.stop()
        await node.start()
        await settle_all(node)
        context = f"round {round_number}, dropped {when} {countdown.at or 'nothing'}"
        await assert_settled_once(node, round_number, context)
        if not crashed:
            break
        crashed_at.append(countdown.at)
    else:
        pytest.fail("the countdown never outlasted a round")
    await node.end()
    edges = {"submit", "simulate_settle", "settle_call", "simulate_withdraw", "withdraw_call"}
    edges |= {"sign", "send", "receipt", "heights", "block_hash", "publish"}
    assert edges <= set(crashed_at), "every edge was tried"
