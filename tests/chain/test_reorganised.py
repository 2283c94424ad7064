"""Blocks that are taken back, transactions that are lost, replaced and too cheap: on anvil."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import cast

import pytest

from settlement.chain import Chain, Options, SignedTransaction
from settlement.devchain import KEYS
from settlement.errors import ChainUnavailable, SettlementHalted
from settlement.fees import GWEI, FeePolicy
from settlement.fence import Fence
from settlement.finality import Finality
from tests.chain.anvil import Anvil, running_anvil
from tests.chain.sending import CASH_USDC6, DOLLAR, Sender, Through
from tests.settled import Between

CONFIRMATIONS = 40
ROUNDS_MAX = 99  # dollars of the account
EXIT_SECONDS = 8 * 24 * 3600  # a day more than the vault's delay


@pytest.fixture
async def sender(anvil: Anvil, database_url: str) -> AsyncIterator[Sender]:
    """What it sends is mined when the node has answered, unless the test mines by itself."""
    chain = await Chain.connect(anvil.url, KEYS, Options(confirmations=CONFIRMATIONS))

    async def send(transaction: SignedTransaction) -> None:
        await chain.send(transaction)
        await anvil.quiet()

    sender = await Sender.open(cast("Chain", Through(chain, send=send)), database_url)
    yield sender
    await sender.close()
    await chain.close()


async def settled(anvil: Anvil, sender: Sender) -> None:
    """Until all is final."""
    await sender.outbox.advance()
    await anvil.mine(CONFIRMATIONS + 1)
    await sender.outbox.advance()
    assert set(await sender.states()) == {"FINAL"}


DEPTHS = [
    pytest.param(1, marks=pytest.mark.fault("reorg-1")),
    pytest.param(4, marks=pytest.mark.fault("reorg-4")),
    pytest.param(32, marks=pytest.mark.fault("reorg-32")),
]
CONFLICTS = [
    pytest.param(1, marks=pytest.mark.fault("reorg-1-conflict")),
    pytest.param(4, marks=pytest.mark.fault("reorg-4-conflict")),
    pytest.param(32, marks=pytest.mark.fault("reorg-32-conflict")),
]


async def paid_in_a_block_under(anvil: Anvil, sender: Sender, depth: int) -> None:
    """A withdrawal in the oldest of the newest `depth` blocks."""
    await anvil.mine(depth)
    await sender.owe(1, 7 * DOLLAR)
    await sender.outbox.advance()
    await anvil.mine(depth - 1)
    await sender.outbox.advance()
    assert await sender.states() == ["MINED" if depth <= CONFIRMATIONS // 2 else "SAFE"]
    assert await sender.paid(1) == 7 * DOLLAR


@pytest.mark.parametrize("depth", DEPTHS)
async def test_what_was_in_blocks_taken_back_is_sent_again_byte_for_byte(
    anvil: Anvil, sender: Sender, depth: int
) -> None:
    await paid_in_a_block_under(anvil, sender, depth)
    await anvil.reorganise(depth)
    assert await sender.paid(1) == 0, "it happened in none of the blocks there are now"
    await sender.outbox.advance()
    assert await sender.paid(1) == 7 * DOLLAR
    await settled(anvil, sender)
    assert await sender.outcomes() == ["SUCCEEDED"], "nothing was signed anew"
    assert await sender.paid(1) == 7 * DOLLAR
    assert await sender.foreign_nonces() == []


@pytest.mark.parametrize("depth", CONFLICTS)
async def test_what_lost_its_nonce_in_a_reorganisation_is_signed_anew_and_paid_once(
    anvil: Anvil, sender: Sender, depth: int
) -> None:
    await paid_in_a_block_under(anvil, sender, depth)
    [before] = await sender.attempts()
    foreign = await sender.foreign(before.nonce)
    await anvil.reorganise(depth, (foreign.raw,))
    await sender.outbox.advance()
    assert await sender.paid(1) == 7 * DOLLAR
    assert [a.nonce for a in await sender.attempts()] == [before.nonce, before.nonce + 1]
    await settled(anvil, sender)
    assert await sender.outcomes() == ["OVERTAKEN", "SUCCEEDED"]
    assert await sender.foreign_nonces() == [before.nonce], "and somebody is told"
    assert await sender.paid(1) == 7 * DOLLAR


@pytest.mark.fault("foreign-transaction")
async def test_a_foreign_transaction_between_ours_is_seen_and_its_nonce_left_out(
    anvil: Anvil, sender: Sender
) -> None:
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    [first] = await sender.attempts()
    await anvil.send((await sender.foreign(first.nonce + 1)).raw)
    await sender.owe(2, DOLLAR)
    await settled(anvil, sender)
    assert [a.nonce - first.nonce for a in await sender.attempts()] == [0, 2]
    assert await sender.foreign_nonces() == [first.nonce + 1]
    assert (await sender.paid(1), await sender.paid(2)) == (DOLLAR, DOLLAR)


# --- on their way ---------------------------------------------------------------------------------


@pytest.mark.fault("in-flight")
async def test_three_are_on_their_way_and_the_fourth_waits(anvil: Anvil, sender: Sender) -> None:
    await anvil.automine(False)
    for account in (1, 2, 3, 1):
        await sender.owe(account, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["SENT", "SENT", "SENT", "SEALED"]
    assert await anvil.pool() == 3
    await anvil.mine()
    await sender.outbox.advance()
    assert await sender.states() == ["MINED", "MINED", "MINED", "SENT"]
    await anvil.automine(True)
    await settled(anvil, sender)
    assert [await sender.paid(n) for n in (1, 2, 3)] == [2 * DOLLAR, DOLLAR, DOLLAR]


@pytest.mark.fault("in-flight")
async def test_what_is_on_its_way_counts_when_the_next_is_simulated(
    anvil: Anvil, sender: Sender
) -> None:
    """The account has enough for one of the two; the second is refused when the first is mined."""
    await anvil.automine(False)
    await sender.owe(1, CASH_USDC6)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["SENT", "SEALED"]
    await anvil.mine()
    await sender.outbox.advance()
    assert await sender.states() == ["MINED", "REFUSED"]
    assert len(await sender.attempts()) == 1


@pytest.mark.fault("nonce-gap", "dropped")
async def test_a_dropped_transaction_is_sent_again_and_those_behind_it_go_on(
    anvil: Anvil, sender: Sender
) -> None:
    await anvil.automine(False)
    for account in (1, 2, 3):
        await sender.owe(account, DOLLAR)
    await sender.outbox.advance()
    first, *_ = before = await sender.attempts()
    await anvil.drop(first.tx_hash)
    await anvil.mine()
    assert [await sender.paid(n) for n in (1, 2, 3)] == [0, 0, 0], "the gap holds all of them up"
    await sender.outbox.advance()
    await anvil.automine(True)
    await settled(anvil, sender)
    assert [await sender.paid(n) for n in (1, 2, 3)] == [DOLLAR] * 3
    assert await sender.attempts() == before


@pytest.mark.fault("nonce-gap")
async def test_what_reverted_in_a_block_taken_back_is_sent_again_and_may_do_what_it_says(
    anvil: Anvil, sender: Sender
) -> None:
    """Its nonce is free again and whatever is behind it waits; the owner's exit is gone too."""
    await reverts_though_it_was_simulated(anvil, sender)
    await sender.owe(2, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["SEALED", "SEALED"]
    await anvil.reorganise(1)
    await sender.outbox.advance()
    await settled(anvil, sender)
    assert await sender.outcomes() == ["SUCCEEDED", "SUCCEEDED"]
    assert (await sender.paid(1), await sender.paid(2)) == (DOLLAR, DOLLAR)


@pytest.mark.fault("nonce-gap", "foreign-transaction")
async def test_the_nonce_of_a_foreign_transaction_that_is_taken_back_is_filled(
    anvil: Anvil, sender: Sender
) -> None:
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    [first] = await sender.attempts()
    await anvil.send((await sender.foreign(first.nonce + 1)).raw)
    await sender.owe(2, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["MINED", "MINED"]
    await anvil.reorganise(2)
    await settled(anvil, sender)
    assert [a.nonce - first.nonce for a in await sender.attempts()] == [0, 1, 2]
    assert await sender.outcomes() == ["SUCCEEDED", "SUCCEEDED", "REVERTED"]
    assert (await sender.paid(1), await sender.paid(2)) == (DOLLAR, DOLLAR)


@pytest.mark.fault("replaced", "foreign-transaction")
async def test_a_replaced_transaction_is_signed_anew(anvil: Anvil, sender: Sender) -> None:
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    [first] = await sender.attempts()
    await anvil.send((await sender.foreign(first.nonce)).raw)
    await anvil.mine()
    await anvil.automine(True)
    await settled(anvil, sender)
    assert await sender.outcomes() == ["OVERTAKEN", "SUCCEEDED"]
    assert await sender.foreign_nonces() == [first.nonce]
    assert await sender.paid(1) == DOLLAR


# --- fees -----------------------------------------------------------------------------------------


@pytest.mark.fault("stuck")
async def test_what_is_stuck_is_signed_again_for_an_eighth_more_until_the_limit(
    anvil: Anvil, sender: Sender
) -> None:
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    [first] = await sender.attempts()
    sender.policy = FeePolicy(cap_max_wei=first.fee_cap_wei * 9 // 8 * 9 // 8 + 2)
    await sender.restart()
    for _ in range(4):
        sender.now_ns += sender.policy.stuck_ns - 1
        await sender.outbox.advance()
        sender.now_ns += 1
        await sender.outbox.advance()
    tried = await sender.attempts()
    assert len(tried) == 3 and len({(a.nonce, a.id) for a in tried}) == 1
    for before, after in pairwise(tried):
        assert after.fee_cap_wei * 8 >= before.fee_cap_wei * 9
        assert after.tip_wei * 8 >= before.tip_wei * 9
    assert "above the limit" in sender.outbox.waiting
    assert await sender.states() == ["SENT"] and await anvil.pool() == 1
    await anvil.automine(True)
    await settled(anvil, sender)
    assert await sender.outcomes() == ["OVERTAKEN", "OVERTAKEN", "SUCCEEDED"]
    assert sender.outbox.waiting == ""
    assert await sender.paid(1) == DOLLAR


@pytest.mark.fault("old-attempt-mined")
async def test_an_older_attempt_that_is_mined_after_all_is_the_one_that_counts(
    anvil: Anvil, sender: Sender
) -> None:
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    sender.now_ns += sender.policy.stuck_ns
    await sender.outbox.advance()
    old, new = await sender.attempts()
    await anvil.drop(new.tx_hash)
    await anvil.send(old.raw)
    await anvil.automine(True)
    await anvil.mine()
    await settled(anvil, sender)
    assert await sender.outcomes() == ["SUCCEEDED", "OVERTAKEN"]
    assert await sender.foreign_nonces() == []
    assert await sender.paid(1) == DOLLAR


@pytest.mark.fault("fee-spike")
async def test_while_gas_is_above_the_limit_nothing_is_signed_and_it_says_so(
    anvil: Anvil, sender: Sender
) -> None:
    sender.policy = FeePolicy(cap_max_wei=100 * GWEI)
    await sender.restart()
    await sender.owe(1, DOLLAR)
    await anvil.base_fee(1_000 * GWEI)
    await anvil.mine()
    await sender.outbox.advance()
    assert await sender.states() == ["SEALED"] and "base fee" in sender.outbox.waiting
    await anvil.base_fee(10 * GWEI)
    await anvil.mine()
    await settled(anvil, sender)
    assert await sender.paid(1) == DOLLAR
    assert all(a.fee_cap_wei <= 100 * GWEI for a in await sender.attempts())


@pytest.mark.fault("fee-spike")
async def test_a_spike_after_signing_is_outbid_at_once(anvil: Anvil, sender: Sender) -> None:
    """The block's base fee is four times what was offered: waiting for an eighth more each minute
    would take a quarter of an hour."""
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    [first] = await sender.attempts()
    await anvil.base_fee(4 * first.fee_cap_wei)
    await anvil.mine()
    assert await sender.paid(1) == 0
    sender.now_ns += sender.policy.stuck_ns
    await sender.outbox.advance()
    await anvil.mine()
    assert await sender.paid(1) == DOLLAR
    await anvil.automine(True)
    await settled(anvil, sender)
    assert len(await sender.attempts()) == 2


# --- the process ----------------------------------------------------------------------------------


class Crash(Exception):
    pass


class Countdown:
    """Raises at the n-th call, and remembers which it was."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.at = ""

    def __call__(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.at = name
            raise Crash(name)


@pytest.mark.fault("crash-at-each-edge")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_dropped_at_any_call_while_a_fee_is_raised_and_a_block_taken_back_it_is_paid_once(
    anvil: Anvil, sender: Sender, when: str
) -> None:
    def nothing(name: str) -> None:
        pass

    async def advance() -> None:
        try:
            await sender.outbox.advance()
        except Crash:
            await sender.restart()
            await sender.outbox.advance()

    dropped_at: list[str] = []
    for calls in range(1, ROUNDS_MAX):
        countdown = Countdown(calls)
        gates = (countdown, nothing) if when == "before" else (nothing, countdown)
        await sender.restart(Between(sender.chain, *gates))
        await sender.owe(1, DOLLAR)
        await anvil.automine(False)
        await advance()
        sender.now_ns += sender.policy.stuck_ns
        await advance()
        await anvil.mine()
        await advance()
        await anvil.reorganise(1)
        await anvil.automine(True)
        await advance()
        await anvil.mine(CONFIRMATIONS + 1)
        await advance()
        assert set(await sender.states()) == {"FINAL"}, (when, countdown.at, calls)
        assert await sender.paid(1) == calls * DOLLAR, (when, countdown.at, calls)
        if not countdown.at:
            break
        dropped_at.append(countdown.at)
    else:
        pytest.fail("the countdown never outlasted a round")
    assert {"simulate_withdraw", "sign", "send", "receipt", "block_hash", "market"} <= set(
        dropped_at
    )
    assert await sender.foreign_nonces() == []
    raised = await sender.database.value("SELECT count(*) - count(DISTINCT nonce) FROM attempt")
    assert raised > len(dropped_at) // 2, "most rounds had their fee raised"


# --- the node's answers ---------------------------------------------------------------------------


@pytest.mark.fault("timeout-after-acceptance")
async def test_a_node_that_took_it_and_did_not_say_so_is_asked_again(
    anvil: Anvil, sender: Sender
) -> None:
    async def send(transaction: object) -> None:
        await sender.chain.send(transaction)  # pyright: ignore[reportArgumentType]
        raise ChainUnavailable("the node does not answer")

    await sender.owe(1, DOLLAR)
    await sender.restart(Through(sender.chain, send=send))
    with pytest.raises(ChainUnavailable):
        await sender.outbox.advance()
    assert await sender.states() == ["SIGNED"]
    await sender.restart()
    await settled(anvil, sender)
    assert await sender.outcomes() == ["SUCCEEDED"]
    assert await sender.paid(1) == DOLLAR


@pytest.mark.fault("lagging-rpc")
async def test_a_node_that_lags_behind_the_one_asked_before_makes_nothing_be_signed_anew(
    anvil: Anvil, sender: Sender
) -> None:
    """It knows of no receipt while the other says that the nonce is used, by a block that it has
    not got; then it has that block."""

    async def no_receipt(transaction_hash: bytes) -> None:
        return None

    async def no_block(withdrawal_id: int, block: int) -> bool:
        raise ChainUnavailable("the node answered: header not found")

    await sender.owe(1, DOLLAR)
    await sender.restart(Through(sender.chain, receipt=no_receipt, is_paid=no_block))
    with pytest.raises(ChainUnavailable):
        await sender.outbox.advance()
    assert await sender.states() == ["SENT"]
    await sender.restart(Through(sender.chain, receipt=no_receipt))
    await settled(anvil, sender)
    assert len(await sender.attempts()) == 1
    assert await sender.foreign_nonces() == []
    assert await sender.paid(1) == DOLLAR


@pytest.mark.fault("lagging-rpc")
async def test_a_node_without_the_block_of_a_mined_one_has_it_sent_again_and_no_more(
    anvil: Anvil, sender: Sender
) -> None:
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["MINED"]

    async def behind(number: int) -> None:
        return None

    await sender.restart(Through(sender.chain, block_hash=behind, receipt=behind))
    with pytest.raises(ChainUnavailable):
        await sender.outbox.advance()
    assert await sender.states() == ["SENT"]
    await sender.restart()
    await settled(anvil, sender)
    assert await sender.outcomes() == ["SUCCEEDED"]
    assert await sender.paid(1) == DOLLAR


# --- reverts --------------------------------------------------------------------------------------


async def reverts_though_it_was_simulated(anvil: Anvil, sender: Sender) -> None:
    """The owner takes the money out in the block in which the withdrawal would have paid it."""
    await sender.by_wallet(1, "requestExit")
    await anvil.wait_seconds(EXIT_SECONDS)
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    await sender.by_wallet(1, "finishExit", tip_wei=20 * GWEI)
    await anvil.mine()
    await anvil.automine(True)
    assert await sender.paid(1) == CASH_USDC6


async def settled_or_refused(anvil: Anvil, sender: Sender) -> None:
    await sender.outbox.advance()
    await anvil.mine(CONFIRMATIONS + 1)
    await sender.outbox.advance()
    await anvil.mine(CONFIRMATIONS + 1)
    await sender.outbox.advance()
    assert set(await sender.states()) <= {"FINAL", "REFUSED"}


@pytest.mark.fault("revert-after-simulation")
async def test_a_revert_after_a_good_simulation_is_given_up_when_that_is_final(
    anvil: Anvil, sender: Sender
) -> None:
    await reverts_though_it_was_simulated(anvil, sender)
    await sender.outbox.advance()
    assert await sender.states() == ["SEALED"] and await sender.outcomes() == ["REVERTED"]
    assert "may still be mined" in sender.outbox.waiting
    assert await sender.confirmations() == []
    await settled_or_refused(anvil, sender)
    assert await sender.states() == ["REFUSED"]
    assert [p.kind for p in await sender.confirmations()] == ["return"]
    assert await sender.paid(1) == CASH_USDC6


@pytest.mark.fault("revert-after-simulation")
async def test_a_withdrawal_that_later_ones_have_overtaken_is_never_paid_and_comes_back(
    anvil: Anvil, sender: Sender
) -> None:
    await sender.by_wallet(1, "requestExit")
    await anvil.wait_seconds(EXIT_SECONDS)
    await anvil.automine(False)
    await sender.owe(1, DOLLAR)
    await sender.owe(2, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["SENT", "SENT"]
    await sender.by_wallet(1, "finishExit", tip_wei=20 * GWEI)
    await anvil.mine()
    await anvil.automine(True)
    await settled_or_refused(anvil, sender)
    assert await sender.states() == ["REFUSED", "FINAL"]
    payments = await sender.confirmations()
    assert [(p.kind, p.id) for p in payments] == [("return", 1), ("withdraw", 2)]
    assert (await sender.paid(1), await sender.paid(2)) == (CASH_USDC6, DOLLAR)


@pytest.mark.fault("revert-after-simulation")
async def test_a_withdrawal_that_comes_back_keeps_none_of_those_behind_it_waiting(
    anvil: Anvil, sender: Sender
) -> None:
    """Where one follows the other, there is always one that is not final."""
    await reverts_though_it_was_simulated(anvil, sender)
    await settled_or_refused(anvil, sender)
    await sender.owe(2, DOLLAR)
    await settled_or_refused(anvil, sender)
    await sender.owe(3, DOLLAR)
    await sender.outbox.advance()
    assert await sender.states() == ["REFUSED", "FINAL", "MINED"]
    payments = await sender.confirmations()
    assert [(p.kind, p.id) for p in payments] == [("return", 1), ("withdraw", 2)]


async def deposits(sender: Sender, block: int) -> int:
    """How many the vault has logged by the end of this block."""
    return sum(log.name == "Deposited" for log in await sender.chain.vault_logs(0, block))


# --- finality -------------------------------------------------------------------------------------


@pytest.mark.fault("deposit-reorganised")
async def test_a_deposit_is_not_read_before_its_block_is_final_and_not_if_it_is_taken_back(
    anvil: Anvil, sender: Sender
) -> None:
    finality = Finality(sender.database, await Fence.take(sender.database), sender.chain)
    final = await finality.look()
    before = await deposits(sender, final)
    await sender.deposit(1, DOLLAR)
    await anvil.mine(CONFIRMATIONS - 2)
    final = await finality.look()
    assert await deposits(sender, final) == 3 >= before
    await anvil.reorganise(CONFIRMATIONS - 1)
    await anvil.mine(CONFIRMATIONS + 1)
    final = await finality.look()
    assert await deposits(sender, final) == 3


@pytest.mark.fault("finality-broken")
async def test_a_final_block_that_is_taken_back_halts_and_says_so(
    anvil: Anvil, sender: Sender
) -> None:
    finality = Finality(sender.database, await Fence.take(sender.database), sender.chain)
    await anvil.mine(CONFIRMATIONS + 4)
    final = await finality.look()
    await anvil.reorganise(CONFIRMATIONS + 2)
    with pytest.raises(SettlementHalted, match=f"block {final} was final"):
        await finality.look()


@pytest.mark.fault("lagging-rpc")
async def test_a_node_that_has_not_got_the_final_block_is_asked_later(
    anvil: Anvil, sender: Sender
) -> None:
    finality = Finality(sender.database, await Fence.take(sender.database), sender.chain)
    final = await finality.look()

    async def behind(number: int) -> None:
        return None

    lagging = Through(sender.chain, block_hash=behind)
    with pytest.raises(ChainUnavailable):
        await Finality(sender.database, await Fence.take(sender.database), lagging).look()  # pyright: ignore[reportArgumentType]
    assert (
        await Finality(sender.database, await Fence.take(sender.database), sender.chain).look()
        == final
    )


async def test_a_node_says_itself_what_is_safe_and_final(
    anvil_program: str, database_url: str
) -> None:
    async with running_anvil(anvil_program, "--slots-in-an-epoch", "2") as anvil:
        chain = await Chain.connect(anvil.url, KEYS, Options(asks_node=True))
        sender = await Sender.open(chain, database_url)
        seen: list[str] = []
        await sender.owe(1, DOLLAR)
        for _ in range(6):
            await sender.outbox.advance()
            seen += [state for state in await sender.states() if state not in seen]
            await anvil.mine()
        assert seen == ["MINED", "SAFE", "FINAL"]
        await sender.close()
        await chain.close()
