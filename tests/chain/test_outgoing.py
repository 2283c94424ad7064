"""The machine that sends, on the embedded chain: who may write, what is kept, what gas costs."""

from collections.abc import AsyncIterator
from typing import Any, cast

import asyncpg
import pytest

from settlement import database as db
from settlement.chain import Chain
from settlement.devchain import EmbeddedChain
from settlement.errors import (
    BatchOutOfOrder,
    ContractError,
    ContractRejected,
    FencedOff,
    PostingRefused,
    ReleaseOutOfOrder,
    SettlementHalted,
    TransactionRefused,
    VaultFrozen,
    VaultPaused,
)
from settlement.fees import GWEI, FeePolicy, Fees, Market
from settlement.outgoing import ATTEMPTS_MAX
from tests.chain.sending import CASH_USDC6, DOLLAR, Sender, Through

BEFORE_ATTEMPTS = 5  # the last migration of databases that kept one transaction a row


@pytest.fixture
async def sender(database_url: str) -> AsyncIterator[Sender]:
    node = await EmbeddedChain.open(None, lambda: 1_796_000_000_000_000_000)
    chain = await Chain.connect(node.provider, node.keys)
    sender = await Sender.open(chain, database_url)
    yield sender
    await sender.close()
    await chain.close()
    await node.close()


# --- the one writer -------------------------------------------------------------------------------


@pytest.mark.fault("two-batchers")
async def test_who_has_lost_the_lock_stores_nothing_more(sender: Sender, database_url: str) -> None:
    """The server has forgotten the first one's lock, and the second one has taken it."""
    await sender.owe(1, DOLLAR)
    first = sender.outbox
    await sender.database.execute("SELECT pg_advisory_unlock_all()")
    lost, sender.database = sender.database, await db.connect(database_url)
    await sender.restart()
    with pytest.raises(FencedOff):
        await first.advance()
    assert await sender.states() == ["SEALED"] and await sender.attempts() == []
    await sender.outbox.advance()
    assert await sender.states() == ["FINAL"] and await sender.paid(1) == DOLLAR
    assert len(await sender.attempts()) == 1
    await lost.close()


@pytest.mark.fault("two-batchers")
async def test_what_was_signed_while_the_lock_was_lost_is_neither_stored_nor_sent(
    sender: Sender, database_url: str
) -> None:
    await sender.owe(1, DOLLAR)
    other: Any = await cast("Any", asyncpg.connect)(database_url)

    async def sign(*arguments: Any) -> Any:
        await other.execute("UPDATE fence SET token = token + 1")
        return await sender.chain.sign(*arguments)

    await sender.restart(Through(sender.chain, sign=sign))
    with pytest.raises(FencedOff):
        await sender.outbox.advance()
    await other.close()
    assert await sender.states() == ["SIMULATED"]
    assert await sender.attempts() == [] and await sender.paid(1) == 0


# --- what is kept ---------------------------------------------------------------------------------


async def test_a_signed_transaction_is_never_changed_or_forgotten(sender: Sender) -> None:
    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    for statement in (
        "DELETE FROM attempt",
        "TRUNCATE attempt",
        "UPDATE attempt SET raw = ''",
        "UPDATE attempt SET nonce = nonce + 1",
    ):
        with pytest.raises(PostingRefused, match="the ledger only grows"):
            await sender.database.execute(statement)
    [kept] = await sender.attempts()
    cheaper = kept._replace(tx_hash=bytes(32), fee_cap_wei=kept.fee_cap_wei * 9 // 8)
    other_row = kept._replace(tx_hash=bytes(32), id=2, fee_cap_wei=kept.fee_cap_wei * 2)
    for attempt in (cheaper, other_row):
        with pytest.raises(PostingRefused, match="an eighth above"):
            await sender.database.execute(
                "INSERT INTO attempt (kind, id, nonce, fee_cap_wei, tip_wei, raw, tx_hash,"
                " signed_ns) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                *attempt,
            )


@pytest.mark.parametrize("state", ["SEALED", "SIGNED", "SENT", "MINED", "RECONCILED"])
async def test_a_database_of_before_goes_on_where_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """With one transaction a row, its fees unknown: it is found again among the attempts, and is
    raised to what the market wants."""
    with monkeypatch.context() as patched:
        every = db.migrations()
        patched.setattr(db, "migrations", lambda: every[:BEFORE_ATTEMPTS])
        database = await db.connect(database_url)
    signed = state != "SEALED"
    mined = state in {"MINED", "RECONCILED"}
    await database.execute(
        "INSERT INTO outgoing (kind, id, state, attempts, nonce, raw, tx_hash, block_number,"
        " block_hash, gas_used) VALUES ('withdraw', 7, $1, $2, $3, $4, $5, $6, $7, $8)",
        *(state, int(signed), 40 if signed else None),
        *((b"raw", bytes(range(32))) if signed else (None, None)),
        *((5, bytes(32), 60_000) if mined else (None, None, None)),
    )
    await database.close()
    database = await db.connect(database_url)
    row = await database.row("SELECT state, attempts, nonce FROM outgoing")
    assert row is not None and row["state"] == state
    attempts = await database.rows("SELECT id, nonce, raw, outcome, block_number FROM attempt")
    outcome = ("SUCCEEDED", 5) if mined else ("OPEN", None)
    expected = [(7, 40, b"raw", *outcome)] if signed else []
    assert [tuple(attempt.values()) for attempt in attempts] == expected
    await database.close()


# --- what only a person can go on with -----------------------------------------------------------


async def test_what_fails_again_and_again_is_left_to_a_person(sender: Sender) -> None:
    """The simulation says that it will do, and it does not."""

    async def passes(*arguments: Any) -> None:
        pass

    await sender.owe(1, CASH_USDC6 + 1)
    await sender.restart(Through(sender.chain, simulate_withdraw=passes))
    with pytest.raises(SettlementHalted, match=f"withdraw 1 failed {ATTEMPTS_MAX} times"):
        await sender.outbox.advance()
    assert await sender.outcomes() == ["REVERTED"] * ATTEMPTS_MAX


@pytest.mark.fault("paused-vault")
async def test_a_paused_vault_is_waited_for(sender: Sender) -> None:
    refusals: list[ContractRejected] = [VaultPaused(ContractError("IsPaused", {}))]

    async def refuses(*arguments: Any) -> None:
        if refusals:
            raise refusals[0]

    await sender.owe(1, DOLLAR)
    await sender.restart(Through(sender.chain, simulate_withdraw=refuses))
    await sender.outbox.advance()
    assert sender.outbox.waiting == "the vault refuses withdraw 1: IsPaused()"
    refusals[:] = [VaultFrozen(ContractError("IsFrozen", {}))]
    with pytest.raises(SettlementHalted, match="IsFrozen"):
        await sender.outbox.advance()
    refusals.clear()
    await sender.outbox.advance()
    assert await sender.states() == ["FINAL"] and sender.outbox.waiting == ""


@pytest.mark.fault("not-taken")
async def test_what_the_node_does_not_take_waits_and_is_sent_as_it_was_signed(
    sender: Sender,
) -> None:
    refusals = ["insufficient funds for gas * price + value"]

    async def send(transaction: Any) -> None:
        if refusals:
            raise TransactionRefused(refusals[0])
        await sender.chain.send(transaction)

    await sender.owe(1, DOLLAR)
    for _ in range(2):
        await sender.restart(Through(sender.chain, send=send))
        await sender.outbox.advance()
        [attempt] = await sender.attempts()
        sender.policy = FeePolicy(cap_max_wei=attempt.fee_cap_wei)  # nothing more can be offered
        assert sender.outbox.waiting == f"the node does not take withdraw 1: {refusals[0]}"
        sender.now_ns += sender.policy.stuck_ns
    before = await sender.attempts()
    refusals.clear()
    await sender.outbox.advance()
    await sender.outbox.advance()
    assert await sender.states() == ["FINAL"] and sender.outbox.waiting == ""
    assert await sender.attempts() == before and await sender.paid(1) == DOLLAR


@pytest.mark.fault("lagging-rpc")
@pytest.mark.parametrize("error", [BatchOutOfOrder, ReleaseOutOfOrder])
async def test_a_node_that_lacks_the_one_before_is_waited_for_and_one_beyond_it_is_not(
    sender: Sender, error: type[BatchOutOfOrder] | type[ReleaseOutOfOrder]
) -> None:
    expected = [1]

    async def refuses(*arguments: Any) -> None:
        if expected:
            raise error(ContractError(error.__name__, {"expected": expected[0], "given": 2}))

    await sender.owe(1, DOLLAR)
    await sender.outbox.advance()
    await sender.owe(2, DOLLAR)
    await sender.restart(Through(sender.chain, simulate_withdraw=refuses))
    await sender.outbox.advance()
    assert "the node lags behind" in sender.outbox.waiting
    expected[:] = [3]
    with pytest.raises(SettlementHalted, match=r"OutOfOrder\(expected=3, given=2\)"):
        await sender.outbox.advance()
    expected.clear()
    await sender.outbox.advance()
    assert await sender.states() == ["FINAL", "FINAL"] and sender.outbox.waiting == ""


# --- what gas costs -------------------------------------------------------------------------------

POLICY = FeePolicy(cap_max_wei=100 * GWEI, tip_max_wei=5 * GWEI)


@pytest.mark.parametrize(
    ("market", "offer"),
    [
        (Market(10 * GWEI, 1 * GWEI), Fees(21 * GWEI, 1 * GWEI)),
        (Market(10 * GWEI, 9 * GWEI), Fees(25 * GWEI, 5 * GWEI)),
        (Market(60 * GWEI, 1 * GWEI), Fees(100 * GWEI, 1 * GWEI)),
        (Market(99 * GWEI, 1 * GWEI), Fees(100 * GWEI, 1 * GWEI)),
        (Market(100 * GWEI, 1 * GWEI), None),
        (Market(7, 0), Fees(14, 0)),
    ],
)
def test_a_first_offer_is_the_base_fee_twice_and_the_tip_within_limits(
    market: Market, offer: Fees | None
) -> None:
    assert POLICY.first(market) == offer


@pytest.mark.parametrize(
    ("last", "market", "offer"),
    [
        (Fees(20 * GWEI, 8), Market(7, 0), Fees(22_500_000_000, 9)),
        (Fees(20 * GWEI, 7), Market(7, 0), Fees(22_500_000_000, 8)),
        (Fees(1, 0), Market(0, 0), Fees(2, 1)),
        (Fees(20 * GWEI, 1), Market(30 * GWEI, 2 * GWEI), Fees(62 * GWEI, 2 * GWEI)),
        (Fees(20 * GWEI, 1), Market(300 * GWEI, 2 * GWEI), Fees(100 * GWEI, 2 * GWEI)),
        (Fees(88 * GWEI, 1), Market(7, 0), Fees(99 * GWEI, 2)),
        (Fees(89 * GWEI, 1), Market(7, 0), None),
    ],
)
def test_a_raised_offer_is_an_eighth_above_the_last_or_the_markets_or_none(
    last: Fees, market: Market, offer: Fees | None
) -> None:
    assert POLICY.raised(last, market) == offer


def test_an_offer_stands_for_a_minute_and_no_clock_set_back_makes_it_stand_longer() -> None:
    second_ns = 1_000_000_000
    assert not POLICY.is_stuck(0, 59 * second_ns)
    assert POLICY.is_stuck(0, 60 * second_ns)
    assert POLICY.is_stuck(3600 * second_ns, 0)
