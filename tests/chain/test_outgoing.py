"""The machine that sends, on the embedded chain: who may write, what is kept, what gas costs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from settlement import database as db
from settlement.chain import Chain
from settlement.devchain import EmbeddedChain
from settlement.errors import FencedOff
from tests.chain.sending import DOLLAR, Sender, Through

MIGRATIONS = Path(db.__file__).parent / "migrations"
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
    """The server has forgotten the first one's lock, and the second one holds it."""
    await sender.owe(1, DOLLAR)
    await sender.owe(2, DOLLAR)
    first = sender.outbox
    await sender.database.execute("SELECT pg_advisory_unlock_all()")
    lost, sender.database = sender.database, await db.connect(database_url)
    await sender.restart()
    with pytest.raises(FencedOff):
        await first.advance()
    assert await sender.states() == ["SEALED", "SEALED"]
    assert await sender.attempts() == []
    await sender.outbox.advance()
    with pytest.raises(FencedOff):
        await first.confirmations(await sender.chain.final_block())
        await first.advance()
        await lost.execute("UPDATE outgoing SET state = 'FINAL' WHERE false")
        await sender.owe(3, DOLLAR)
        await first.advance()
    assert [await sender.paid(n) for n in (1, 2)] == [DOLLAR, DOLLAR]
    assert len(await sender.attempts()) == 2
    await lost.close()


@pytest.mark.fault("two-batchers")
async def test_a_transaction_begun_before_the_lock_was_lost_stores_nothing(
    sender: Sender, database_url: str
) -> None:
    """It loses it between the simulation and the signature: what it signed is neither stored nor
    sent."""
    await sender.owe(1, DOLLAR)
    other = await db.connect_without_lock(database_url)

    async def sign(*arguments: Any) -> Any:
        await other.execute("UPDATE fence SET token = token + 1")
        return await sender.chain.sign(*arguments)

    await sender.restart(Through(sender.chain, sign=sign))
    with pytest.raises(FencedOff):
        await sender.outbox.advance()
    assert await sender.states() == ["SIMULATED"]
    assert await sender.attempts() == [] and await sender.paid(1) == 0
    await other.close()
