"""Periods of the ledger: opened ahead of need, closed when they add up, taken out without loss."""

from typing import cast

import pytest

from engine.port import Port
from engine.records import EventKind, Purse, Side
from settlement import database as db
from settlement import postings
from settlement.errors import PostingRefused
from settlement.ledger import Holdings, Ledger, Log, Numbered
from settlement.ledger import Trial as TrialBalance
from settlement.undoing import Undoing
from tests.chain.test_ledger import (
    BUYER,
    GROWS,
    SELLER,
    SOUND,
    audited,
    deposit,
    event,
    fill,
    numbered,
)

EVENTS = 8  # in a period
FIRST_DEPOSIT = 10**9


def story(count: int) -> list[Numbered]:
    """Two accounts, a deposit each, and fills of 1,000 µUSDC."""
    opening = [
        event(1, EventKind.ACCOUNT_OPENED, BUYER),
        event(2, EventKind.ACCOUNT_OPENED, SELLER),
        deposit(3, BUYER, FIRST_DEPOSIT, 1, Purse.CASH),
        deposit(4, SELLER, FIRST_DEPOSIT, 2, Purse.BOND),
    ]
    fills = [fill(5 + i, 100, 10, Side.BUY) for i in range(count - len(opening))]
    return numbered([*opening, *fills])


async def begin(database: db.Database, count: int) -> Ledger:
    """Booked in pieces, all fills being in batch 1."""
    await database.execute("DROP TABLE transfer_1, fill_1")  # instead of the migration's large one
    await database.execute("DELETE FROM period")
    await database.execute("SELECT open_period($1)", EVENTS)
    ledger = await Ledger.open(database, EVENTS)
    events = story(count)
    for start in range(0, count, 5):
        await ledger.post(events[start : start + 5])
    return ledger


async def seal(database: db.Database, which: str = "true") -> None:
    await database.execute(
        "INSERT INTO batch VALUES (1, decode(repeat('00', 30), 'hex'),"
        " decode(repeat('00', 32), 'hex'), 1, 1000, 5)"
    )
    await database.execute(f"UPDATE fill SET batch_id = 1 WHERE {which}")


async def periods(database: db.Database) -> list[tuple[int, ...]]:
    """(number, first event, end) of each; then whether it is closed and detached."""
    return [tuple(r.values()) for r in await database.rows("SELECT * FROM period ORDER BY number")]


def expected(count: int) -> dict[int, Holdings]:
    paid = 1_000 * (count - 4)
    return {
        BUYER: Holdings(FIRST_DEPOSIT - paid, paid, 0, 0, 0),
        SELLER: Holdings(0, 0, 0, 0, FIRST_DEPOSIT),
    }


async def test_periods_are_open_before_they_are_needed(database: db.Database) -> None:
    ledger = await begin(database, 3)
    assert await periods(database) == [(1, 1, 9, False, False)]
    for count, most in ((4, 1), (5, 2), (12, 2), (13, 3), (60, 8)):
        await ledger.post(story(count))
        found = await periods(database)
        assert len(found) == most
        assert found[-1][2] > count + EVENTS // 2, "the half of one is left at least"
    assert await ledger.balances() == expected(60)
    again = await Ledger.open(database, EVENTS)
    await again.post(story(61))
    assert await again.balances() == expected(61)
    assert await audited(database) == {}


async def test_what_is_over_and_settled_is_closed_and_what_follows_starts_there(
    database: db.Database,
) -> None:
    ledger = await begin(database, 30)
    assert await ledger.close_periods() == 0, "nothing is in a batch"
    with pytest.raises(PostingRefused, match="neither settled nor undone"):
        await database.execute("SELECT close_period(1)")
    await seal(database)
    assert await ledger.close_periods() == 3, "up to event 24; 25 to 32 are not over"
    assert await ledger.close_periods() == 0
    for number in (1, 3, 4, 99):
        with pytest.raises(PostingRefused, match="not over, or not the next"):
            await database.execute("SELECT close_period($1)", number)
    assert await ledger.trial_balance() == SOUND
    assert await audited(database) == {}
    balance = await database.value(
        "SELECT balance_usdc6 FROM closing WHERE period = 2 AND bucket = 'pending' AND account = 1"
    )
    assert balance == 1_000 * (16 - 4)
    await ledger.post(story(40))
    assert await ledger.balances() == expected(40)
    assert await ledger.trial_balance() == SOUND


async def test_a_void_fill_counts_as_settled_once_it_is_undone(database: db.Database) -> None:
    ledger = await begin(database, 20)
    await seal(database)
    await database.execute("UPDATE fill SET batch_id = NULL WHERE event_number = 7")
    await database.execute("UPDATE fill SET void_number = 1 WHERE event_number = 7")
    assert await ledger.close_periods() == 0
    undone = event(
        21, EventKind.FILL_VOIDED, BUYER, 100, qty_lots=10, counter_account=SELLER, reference=7
    )
    await ledger.post([Numbered(21, undone)])
    assert await ledger.close_periods() == 2


async def test_a_period_may_end_before_a_bond_has_what_is_on_its_way_to_it(
    database: db.Database,
) -> None:
    ledger = await begin(database, 20)
    await database.execute("INSERT INTO vault_owner VALUES ($1, $2)", SELLER, bytes(20))
    await database.execute(
        "INSERT INTO vault_credit VALUES (3, 'deposit', $1, true, 5, 1, 1)", SELLER
    )
    taken = postings.unbonded(SELLER, FIRST_DEPOSIT + 5)
    await ledger.post_logs([Log(1, 0, 0, taken)])
    await ledger.post(story(25))
    await seal(database)
    assert await ledger.close_periods() == 3
    lacking = (
        "SELECT balance_usdc6 FROM closing WHERE period = 3 AND bucket = 'bond' AND account = $1"
    )
    assert await database.value(lacking, SELLER) == -5
    assert await audited(database) == {}
    await ledger.post([Numbered(26, deposit(26, SELLER, 5, 3, Purse.BOND))])
    assert await audited(database) == {}
    assert await ledger.trial_balance() == SOUND


async def test_a_closed_period_may_be_taken_out_and_the_books_are_whole(
    database: db.Database,
) -> None:
    ledger = await begin(database, 30)
    await seal(database)
    for number in (1, 2):
        with pytest.raises(PostingRefused, match="not closed"):
            await database.execute("SELECT detach_period($1)", number)
    assert await ledger.close_periods() == 3
    with pytest.raises(PostingRefused, match="not the next to detach"):
        await database.execute("SELECT detach_period(2)")
    for number in (1, 2):
        await database.execute("SELECT detach_period($1)", number)
    assert await database.value("SELECT min(event_number) FROM transfer") == 17
    assert await database.value("SELECT count(*) FROM transfer_1") == 6
    assert await ledger.balances() == expected(30)
    assert await ledger.trial_balance() == SOUND
    assert await audited(database) == {}
    assert await ledger.last_deposit() == 2, "what was booked once stays so"
    again = deposit(31, BUYER, 5, 2, Purse.CASH)._replace(account=SELLER)
    with pytest.raises(PostingRefused):
        await ledger.post([Numbered(31, again._replace(side=Purse.BOND))])
    await ledger.post(story(31))
    await database.execute("DROP TABLE transfer_1, fill_1")
    assert await ledger.balances() == expected(31)
    assert await audited(database) == {}


async def test_the_number_of_a_void_fill_is_not_used_again_once_its_period_is_taken_out(
    database: db.Database,
) -> None:
    ledger = await begin(database, 20)
    undoing = Undoing(database, port=cast("Port", None))  # which is not asked
    await undoing.mark([7])
    await seal(database, "void_number IS NULL AND event_number <> 20")
    undone = event(
        21, EventKind.FILL_VOIDED, BUYER, 100, qty_lots=10, counter_account=SELLER, reference=7
    )
    await ledger.post([Numbered(21, undone)])
    assert await ledger.close_periods() == 2
    await database.execute("SELECT detach_period(1)")
    await undoing.mark([20])
    [command] = await undoing.commands()
    assert (command.client_id, command.order_id >> 32) == (20, 2)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfer SET amount_usdc6 = 7 WHERE event_number = 6",
        "DELETE FROM transfer WHERE event_number = 6",
        "UPDATE ledger_account SET balance_usdc6 = balance_usdc6 + 1 WHERE bucket = 'escrow'",
        "UPDATE transfer SET event_number = 20, sequence = 99 WHERE event_number = 3",
    ],
)
async def test_a_period_that_does_not_add_up_is_not_closed(
    database: db.Database,
    statement: str,
) -> None:
    ledger = await begin(database, 30)
    await seal(database)
    await database.execute("SET session_replication_role = replica")
    await database.execute(statement)
    await database.execute("SET session_replication_role = origin")
    with pytest.raises(PostingRefused, match="does not add up"):
        await ledger.close_periods()
    assert await database.value("SELECT count(*) FROM closing") == 0
    assert await ledger.trial_balance() != TrialBalance(0, 0, 0) or await audited(database) != {}


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("INSERT INTO transfer_1 SELECT * FROM transfer LIMIT 1", GROWS),
        ("UPDATE transfer_1 SET amount_usdc6 = 1", GROWS),
        ("DELETE FROM transfer_1", GROWS),
        ("TRUNCATE transfer_1", GROWS),
        ("DELETE FROM fill_1", GROWS),
        ("UPDATE fill_1 SET price_ticks = 1", GROWS),
        ("DELETE FROM booked", GROWS),
        ("UPDATE booked SET amount_usdc6 = 1", GROWS),
        ("UPDATE closing SET balance_usdc6 = 1", GROWS),
        ("DELETE FROM closing", GROWS),
        ("UPDATE period SET closed = false, detached = true", "closed_before_detached"),
        ("UPDATE fill SET void_number = 9, batch_id = NULL", "void"),
        ("UPDATE watermark SET sequence = 1 WHERE shard = 32767", ""),
    ],
)
async def test_nothing_is_written_past_the_tables_that_keep_the_books(
    database: db.Database,
    statement: str,
    why: str,
) -> None:
    ledger = await begin(database, 20)
    await seal(database)
    assert await ledger.close_periods() == 2
    if not why:  # a log of the vault is booked at most once, in its order
        await database.execute(statement)
        why, statement = "forward only", "UPDATE watermark SET sequence = 1 WHERE shard = 32767"
    with pytest.raises(PostingRefused, match=why):
        await database.execute(statement)
    assert await audited(database) == {}
