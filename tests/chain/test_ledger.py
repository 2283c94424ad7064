"""The ledger in a real PostgreSQL: what it books, what it skips, and what it cannot hold."""

import pytest

from benchmarks.workload import order_flow
from engine.catalog import load_catalog
from engine.records import (
    AMOUNT_USDC6_MAX,
    FEE_PPM_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    CancelReason,
    Event,
    EventKind,
    FillNote,
    Purse,
    Side,
    decode_events,
)
from engine.replay import Matcher
from settlement import database as db
from settlement.batch import FILL
from settlement.errors import (
    DatabaseInUse,
    LedgerOutOfStep,
    PostingRefused,
    SchemaMismatch,
)
from settlement.ledger import Holdings, Ledger, Log, Numbered
from settlement.ledger import Trial as TrialBalance
from settlement.postings import Line
from settlement.products import settled
from tests.model.auditor import Auditor
from tests.promises import Trial, tries
from tests.signed import DOMAIN, Placed, sign_all

BUYER, SELLER = 1, 2
SEED = 11
POSTED_COMMANDS = 250


@pytest.fixture
async def ledger(database: db.Database) -> Ledger:
    return await Ledger.open(database)


def event(sequence: int, kind: EventKind, account: int, amount: int = 0, **fields: int) -> Event:
    """An event with the fields the ledger reads."""
    return Event(
        sequence=sequence,
        time_ns=sequence * 1_000,
        order_id=fields.get("order_id", 0),
        counter_order_id=fields.get("reference", 0),
        price_ticks=amount,
        qty_lots=fields.get("qty_lots", 0),
        maker_fee_ppm=fields.get("maker_fee_ppm", 0),
        taker_fee_ppm=fields.get("taker_fee_ppm", 0),
        account=account,
        counter_account=fields.get("counter_account", 0),
        instrument=fields.get("instrument", 0),
        kind=kind,
        side=fields.get("side", 0),
        reason=fields.get("reason", 0),
    )


def deposit(sequence: int, account: int, amount: int, number: int, purse: Purse) -> Event:
    return event(sequence, EventKind.DEPOSITED, account, amount, reference=number, side=purse)


def fill(
    sequence: int, price: int, qty: int, taker_side: Side, fees: tuple[int, int] = (0, 0)
) -> Event:
    """`fees` are the maker's and the taker's, parts per million."""
    taker, maker = (BUYER, SELLER) if taker_side == Side.BUY else (SELLER, BUYER)
    return event(
        sequence, EventKind.FILL, taker, price,
        qty_lots=qty, counter_account=maker, side=taker_side, reference=77, order_id=78,
        maker_fee_ppm=fees[0], taker_fee_ppm=fees[1],
    )  # fmt: skip


def numbered(events: list[Event], first: int = 1) -> list[Numbered]:
    return [Numbered(number, e) for number, e in enumerate(events, first)]


STORY = [
    event(1, EventKind.ACCOUNT_OPENED, BUYER),
    deposit(2, BUYER, 1_000_000, 1, Purse.CASH),
    event(3, EventKind.ACCOUNT_OPENED, SELLER),
    deposit(4, SELLER, 500_000, 2, Purse.BOND),
    event(5, EventKind.ACCEPTED, SELLER, 20_000, qty_lots=30),
    event(6, EventKind.ACCEPTED, BUYER, 21_000, qty_lots=30),
    fill(6, 20_000, 10, Side.BUY),
    fill(6, 20_000, 20, Side.SELL),
    event(7, EventKind.ESCROW_CONFIRMED, BUYER, 250_000, reference=1),
    event(8, EventKind.WITHDRAWAL_RESERVED, BUYER, 100_000, reference=8),
    event(9, EventKind.WITHDRAWAL_RESERVED, BUYER, 50_000, reference=9),
    event(10, EventKind.WITHDRAWAL_CONFIRMED, BUYER, 100_000, reference=8),
]
BALANCES = {
    BUYER: Holdings(250_000, 350_000, 250_000, 50_000, 0),
    SELLER: Holdings(0, 0, 0, 0, 500_000),
}
SOUND = TrialBalance(0, 0, 0)
# What the program before fees had written after two deposits, a fill in a batch and one in none.
BEFORE_FEES = f"""
    INSERT INTO ledger_account (account, bucket) VALUES
        (1, 'cash'), (1, 'pending'), (1, 'escrow'), (1, 'leaving'), (1, 'bond'),
        (2, 'cash'), (2, 'pending'), (2, 'escrow'), (2, 'leaving'), (2, 'bond');
    INSERT INTO transfer VALUES
        (2, 0, 2, 0, 0, 'deposit', 1, 0, 'vault', 1, 'cash', 1000000),
        (4, 0, 4, 0, 0, 'deposit', 2, 0, 'vault', 2, 'bond', 500000),
        (5, 0, 5, 0, 0, 'fill', 5, 1, 'cash', 1, 'pending', 200000),
        (6, 0, 6, 0, 0, 'fill', 6, 1, 'cash', 1, 'pending', 90000);
    INSERT INTO batch VALUES
        (1, decode('{"00" * 28}', 'hex'), decode('{"00" * 32}', 'hex'), 1, 200000, 5);
    INSERT INTO fill (event_number, sequence, time_ns, instrument, taker_order_id, maker_order_id,
                      taker, maker, buyer, seller, price_ticks, qty_lots, batch_id) VALUES
        (5, 5, 0, 0, 1, 2, 1, 2, 1, 2, 20000, 10, 1),
        (6, 6, 0, 0, 1, 2, 2, 1, 1, 2, 30000, 3, NULL);
    UPDATE watermark SET event_number = 6, sequence = 6, ordinal = 0, event = 'x';
"""
# And then the one before periods: the second fill is void.
THEN_UNDONE = """
    UPDATE fill SET void_number = 3 WHERE event_number = 6;
    INSERT INTO transfer VALUES (7, 0, 7, 0, 0, 'void', 6, 1, 'pending', 1, 'cash', 90000);
    UPDATE watermark SET event_number = 7, sequence = 7, event = 'y';
"""


async def test_every_money_event_moves_between_its_two_buckets(ledger: Ledger) -> None:
    assert await ledger.post(numbered(STORY)) == len(STORY)
    assert await ledger.balances() == BALANCES
    assert await ledger.trial_balance() == SOUND
    assert await ledger.last_deposit() == 2


RETURNS = [
    event(11, EventKind.WITHDRAWAL_CANCELLED, BUYER, 50_000, reference=9),
    event(
        12, EventKind.FILL_VOIDED, BUYER, 20_000,
        qty_lots=10, counter_account=SELLER, reference=7,
    ),
    event(13, EventKind.EXIT_CONFIRMED, BUYER, 400_000, reference=1),
]  # fmt: skip


async def test_what_comes_back_or_was_taken_moves_between_its_two_buckets(ledger: Ledger) -> None:
    await ledger.post(numbered([*STORY, *RETURNS]))
    after = Holdings(250_000 + 50_000 + 200_000 - 400_000, 150_000, 250_000, 0, 0)
    assert await ledger.balances() == {**BALANCES, BUYER: after}
    assert await ledger.trial_balance() == SOUND
    for again in RETURNS:
        with pytest.raises(PostingRefused, match="transfer_once"):
            await ledger.post(numbered([again._replace(sequence=14, price_ticks=1)], 16))


async def test_an_escrow_that_the_vault_has_moved_is_handed_to_the_engine_once(
    ledger: Ledger, database: db.Database
) -> None:
    """Of 250,000 in escrow the vault releases 200,000; the engine hears of 150,000 as over."""
    await ledger.post(numbered(STORY))
    released = Line("release", 1, BUYER, "escrow", SELLER, "earnings", 200_000)
    await ledger.post_logs([Log(5, 0, 1_000, [released])])
    assert (await ledger.balances())[BUYER].escrow_usdc6 == 250_000, "as the engine has it"
    ends = [
        event(11, EventKind.LEASES_ENDED, BUYER, 150_000, reference=1),
        event(12, EventKind.LEASES_ENDED, SELLER, 0, reference=2, order_id=9_000),
    ]
    await ledger.post(numbered([*STORY, *ends]))
    assert (await ledger.balances())[BUYER].escrow_usdc6 == 100_000
    assert (await ledger.moved_by_vault())[BUYER, "escrow"] == -50_000
    assert await ledger.trial_balance() == SOUND
    assert await database.value("SELECT number FROM ended_leases_booked") == 2
    too_much = event(13, EventKind.LEASES_ENDED, BUYER, 150_000, reference=1)
    with pytest.raises(PostingRefused, match="transfer_once"):
        await ledger.post(numbered([too_much], 15))


async def test_closing_is_remembered_until_the_account_is_open_again(
    ledger: Ledger, database: db.Database
) -> None:
    async def closed() -> list[tuple[int, bool]]:
        rows = await database.rows("SELECT account, emptied FROM closed_account ORDER BY account")
        return [(row["account"], row["emptied"]) for row in rows]

    unfinished = event(11, EventKind.ACCOUNT_CLOSED, BUYER)._replace(
        reason=CancelReason.EFFECTS_LIMIT
    )
    await ledger.post(numbered([*STORY, unfinished]))
    assert await closed() == [(BUYER, False)]
    await ledger.post(
        numbered(
            [
                event(12, EventKind.ACCOUNT_CLOSED, BUYER),
                event(13, EventKind.ACCOUNT_CLOSED, SELLER),
                event(14, EventKind.ACCOUNT_REOPENED, SELLER),
            ],
            14,
        )
    )
    assert await closed() == [(BUYER, True)]


PRODUCT = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
SERIES = settled(PRODUCT)


async def sign(database_url: str, *orders: tuple[int, int, int]) -> None:
    """(account, order, number) of each."""
    placed = [
        Placed(account, order, account == BUYER, 0, PRODUCT, number)
        for account, order, number in orders
    ]
    keys = {account: account.to_bytes(32, "big") for account in (BUYER, SELLER)}
    await sign_all(database_url, DOMAIN, keys, placed)


async def unsealed(ledger: Ledger, limit: int = 9) -> list[tuple[int, ...]]:
    """Of each: its event number, then as the vault settles it."""
    fills, numbers = await ledger.unsealed_fills(limit, 0)
    assert fills.dtype == FILL
    return [(number, *fill) for number, fill in zip(numbers.tolist(), fills.tolist(), strict=True)]


async def test_fills_are_sealed_under_the_numbers_that_their_orders_were_signed_with(
    ledger: Ledger, database: db.Database, database_url: str
) -> None:
    """The buyer takes order 77 of the seller, the seller order 77 of the buyer."""
    await ledger.post(numbered(STORY))
    assert await unsealed(ledger) == [], "nobody has signed, and nothing is known of the market"
    await ledger.list_products([(0, PRODUCT)])
    await sign(database_url, (BUYER, 78, 5))
    assert await unsealed(ledger) == [], "one side has not signed"
    await sign(database_url, (SELLER, 77, 9))
    first = (7, BUYER, SELLER, 20_000, 10, *SERIES, 5, 9, 0, 0)
    assert await unsealed(ledger) == [first]
    await sign(database_url, (SELLER, 78, 10), (BUYER, 77, 6))
    second = (8, BUYER, SELLER, 20_000, 20, *SERIES, 6, 10, 0, 0)
    assert await unsealed(ledger) == [first, second]
    assert await unsealed(ledger, 1) == [first]
    await database.execute("UPDATE signed_order SET verified = false WHERE number = 9")
    assert await unsealed(ledger) == [second], "a signature that was not checked is none"


async def test_a_market_is_known_from_its_listing_for_good(
    ledger: Ledger, database: db.Database
) -> None:
    listed = event(11, EventKind.MARKET_LISTED, 0, instrument=3, order_id=PRODUCT)
    await ledger.post(numbered([*STORY, listed]))
    await ledger.list_products([(3, 1), (4, 2)])
    rows = await database.rows("SELECT instrument, product FROM listed ORDER BY instrument")
    assert [tuple(row.values()) for row in rows] == [(3, PRODUCT), (4, 2)]


async def fees(database: db.Database) -> list[tuple[int, ...]]:
    """(buyer's ppm, seller's ppm, buyer's fee, seller's fee, to escrow) of each fill."""
    rows = await database.rows(
        "SELECT buyer_fee_ppm, seller_fee_ppm, buyer_fee_usdc6, seller_fee_usdc6, amount_usdc6"
        " FROM fill ORDER BY event_number"
    )
    return [tuple(row.values()) for row in rows]


async def test_the_buyers_fee_is_booked_with_the_price_and_the_sellers_beside_it(
    ledger: Ledger, database: db.Database, database_url: str
) -> None:
    """The taker pays 500 ppm, the maker 200: the buyer takes first, then the seller."""
    bought, sold = fill(5, 20_000, 20, Side.BUY, (200, 500)), fill(6, 10_000, 50, Side.SELL)
    sold = sold._replace(maker_fee_ppm=200, taker_fee_ppm=500)
    await ledger.post(numbered([*STORY[:4], bought, sold]))
    assert await fees(database) == [(500, 200, 200, 80, 400_200), (200, 500, 100, 250, 500_100)]
    assert (await ledger.balances())[BUYER] == Holdings(99_700, 900_300, 0, 0, 0)
    assert (await ledger.balances())[SELLER] == BALANCES[SELLER], "nothing is taken yet"
    await ledger.list_products([(0, PRODUCT)])
    await sign(database_url, (BUYER, 78, 1), (SELLER, 77, 2), (SELLER, 78, 3), (BUYER, 77, 4))
    assert await unsealed(ledger) == [
        (5, BUYER, SELLER, 20_000, 20, *SERIES, 1, 2, 500, 200),
        (6, BUYER, SELLER, 10_000, 50, *SERIES, 4, 3, 200, 500),
    ]
    voided = RETURNS[1]._replace(
        sequence=7, counter_order_id=5, qty_lots=20, maker_fee_ppm=0, taker_fee_ppm=500
    )
    await ledger.post(numbered([voided], 7))
    assert (await ledger.balances())[BUYER] == Holdings(499_900, 500_100, 0, 0, 0)


async def test_each_fills_fee_is_rounded_down_by_itself(
    ledger: Ledger, database: db.Database
) -> None:
    """Two fills of 1,999 at 1,000 ppm cost a unit each; both together would cost three."""
    fills = [fill(sequence, 1, 1_999, Side.BUY, (999, 1_000)) for sequence in (5, 6)]
    await ledger.post(numbered([*STORY[:4], *fills]))
    assert await fees(database) == [(1_000, 999, 1, 1, 2_000)] * 2
    assert (await ledger.balances())[BUYER].pending_usdc6 == 4_000


async def test_the_dearest_fill_there_may_be_is_booked_to_the_unit(
    ledger: Ledger, database: db.Database
) -> None:
    price, lots = PRICE_TICKS_MAX, QTY_LOTS_MAX
    enough = [deposit(5 + i, BUYER, AMOUNT_USDC6_MAX, 3 + i, Purse.CASH) for i in range(18)]
    dearest = fill(30, price, lots, Side.SELL, (FEE_PPM_MAX - 1, FEE_PPM_MAX))
    await ledger.post(numbered([*STORY[:4], *enough, dearest]))
    [(_, _, buyers, sellers, amount)] = await fees(database)
    assert buyers == price * lots * (FEE_PPM_MAX - 1) // 1_000_000
    assert sellers == price * lots * FEE_PPM_MAX // 1_000_000
    assert amount == price * lots + buyers == (await ledger.balances())[BUYER].pending_usdc6


@pytest.mark.parametrize(
    ("buyers_ppm", "sellers_ppm", "price", "reason"),
    [
        (-1, 0, 20_000, "above_the_limit"),
        (0, -1, 20_000, "above_the_limit"),
        (FEE_PPM_MAX + 1, 0, 20_000, "above_the_limit"),
        (0, FEE_PPM_MAX + 1, 20_000, "above_the_limit"),
        (0, 0, 20_001, "booked_is_price_and_fee"),
        (500, 0, 20_000, "booked_is_price_and_fee"),
        (None, 0, 20_000, "buyer_fee_ppm"),
    ],
)
async def test_a_fill_that_says_something_else_than_was_booked_cannot_be_written(
    ledger: Ledger,
    database: db.Database,
    buyers_ppm: int | None,
    sellers_ppm: int,
    price: int,
    reason: str,
) -> None:
    await ledger.post(numbered(STORY))
    # 200,000 µUSDC from cash to pending, as for 10 lots at 20,000 without a fee.
    await database.execute(TRANSFER.format("'fill', 99, 1, 'cash', 1, 'pending', 200000"))
    insert = (
        "INSERT INTO fill (event_number, sequence, time_ns, instrument, taker_order_id,"
        " maker_order_id, taker, maker, buyer, seller, price_ticks, qty_lots, buyer_fee_ppm,"
        " seller_fee_ppm) VALUES (99, 99, 0, 0, 1, 2, $1, $2, 1, 2, $3, 10, $4, $5)"
    )
    with pytest.raises(PostingRefused, match=reason):
        await database.execute(insert, BUYER, SELLER, price, buyers_ppm, sellers_ppm)
    await database.execute(insert, BUYER, SELLER, 20_000, 0, sellers_ppm % FEE_PPM_MAX)


async def test_a_ledger_from_before_there_were_fees_goes_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = db.migrations()
    monkeypatch.setattr(db, "migrations", lambda: every[:2])
    before = await db.connect(database_url)
    await before.execute(BEFORE_FEES)
    await before.close()
    monkeypatch.undo()
    database = await db.connect(database_url)
    ledger = await Ledger.open(database)
    assert await fees(database) == [(0, 0, 0, 0, 200_000), (0, 0, 0, 0, 90_000)]
    await ledger.list_products([(0, PRODUCT)])
    await sign(database_url, (BUYER, 2, 1), (SELLER, 1, 2))
    assert await unsealed(ledger) == [(6, BUYER, SELLER, 30_000, 3, *SERIES, 1, 2, 0, 0)], (
        "1 is sealed"
    )
    assert await ledger.last_deposit() == 2
    assert await audited(database) == {}
    with pytest.raises(PostingRefused, match="transfer_once"):
        await ledger.post(numbered([deposit(7, BUYER, 5, 1, Purse.CASH)], 7))
    assert await ledger.trial_balance() == SOUND
    await ledger.post(numbered([fill(7, 20_000, 10, Side.BUY, (200, 500))], 7))
    assert (await fees(database))[-1] == (500, 200, 100, 40, 200_100)
    assert (await ledger.balances())[BUYER] == Holdings(509_900, 290_100 + 200_000, 0, 0, 0)
    with pytest.raises(PostingRefused, match=GROWS):
        await database.execute("UPDATE fill SET buyer_fee_ppm = 1 WHERE event_number = 5")
    await database.close()


async def test_a_ledger_from_before_there_were_periods_goes_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fill that was undone: 90,000 are cash again."""
    every = db.migrations()
    for known, statement in ((2, BEFORE_FEES), (5, THEN_UNDONE)):
        monkeypatch.setattr(db, "migrations", lambda known=known: every[:known])
        before = await db.connect(database_url)
        await before.execute(statement)
        await before.close()
    monkeypatch.undo()
    database = await db.connect(database_url)
    ledger = await Ledger.open(database)
    assert ledger.watermark == (7, 7, 0, b"y")
    assert await ledger.balances() == {
        1: Holdings(800_000, 200_000, 0, 0, 0), 2: Holdings(0, 0, 0, 0, 500_000),
    }  # fmt: skip
    assert await audited(database) == {}
    assert await ledger.trial_balance() == SOUND
    with pytest.raises(PostingRefused, match="voided_fill"):
        await database.execute("UPDATE fill SET batch_id = NULL, void_number = 3")
    with pytest.raises(PostingRefused, match="transfer_once"):
        await ledger.post(numbered([RETURNS[1]._replace(sequence=8, counter_order_id=6)], 8))
    await ledger.post(numbered([fill(8, 20_000, 10, Side.BUY)], 8))
    assert (await ledger.balances())[1] == Holdings(600_000, 400_000, 0, 0, 0)
    assert await audited(database) == {}
    await database.close()


async def test_hours_that_were_sold_again_are_on_record_as_such(
    ledger: Ledger, database: db.Database
) -> None:
    await ledger.post(numbered(STORY))
    sold = fill(13, 20_000, 10, Side.BUY)._replace(reason=FillNote.RESOLD | FillNote.OFF_QUEUE)
    await ledger.post(numbered([sold], len(STORY) + 1))
    rows = await database.rows("SELECT resold FROM fill ORDER BY event_number")
    assert [row["resold"] for row in rows][-2:] == [False, True]


@pytest.mark.parametrize("cut", range(1, len(STORY)))
async def test_events_may_come_in_any_pieces_and_again(database: db.Database, cut: int) -> None:
    ledger = await Ledger.open(database)
    whole = numbered(STORY)
    assert await ledger.post(whole[:cut]) == cut
    assert await ledger.post(whole[:cut]) == 0
    reopened = await Ledger.open(database)  # as after a crash
    assert reopened.watermark == ledger.watermark
    assert await reopened.post(whole) == len(STORY) - cut
    assert await reopened.post(whole) == 0
    assert await reopened.balances() == BALANCES
    assert await reopened.trial_balance() == SOUND


async def test_a_gap_between_events_is_refused(ledger: Ledger) -> None:
    await ledger.post(numbered(STORY[:2]))
    with pytest.raises(LedgerOutOfStep, match="4 to 12 do not follow 2"):
        await ledger.post(numbered(STORY)[3:])
    with pytest.raises(LedgerOutOfStep):
        await ledger.post([*numbered(STORY)[:4], *numbered(STORY)[5:]])
    assert ledger.watermark.event_number == 2


async def test_sequences_that_run_backwards_are_refused(ledger: Ledger) -> None:
    await ledger.post(numbered(STORY[:4]))
    with pytest.raises(LedgerOutOfStep, match="sequence 1"):
        await ledger.post(numbered([STORY[0]], 5))


@pytest.mark.parametrize(
    "bad",
    [
        event(11, EventKind.WITHDRAWAL_RESERVED, BUYER, 250_001, reference=11),
        event(11, EventKind.ESCROW_CONFIRMED, BUYER, 350_001, reference=2),
        event(11, EventKind.ESCROW_CONFIRMED, BUYER, 1, reference=1),
        event(11, EventKind.ESCROW_CONFIRMED, SELLER, 1, reference=1),
        event(11, EventKind.WITHDRAWAL_CONFIRMED, BUYER, 50_001, reference=9),
        event(11, EventKind.WITHDRAWAL_CONFIRMED, BUYER, 1, reference=8),
        deposit(11, BUYER, 1, 1, Purse.CASH),
        deposit(11, BUYER, 0, 3, Purse.CASH),
        deposit(11, BUYER, -1, 3, Purse.CASH),
        deposit(11, 3, 1, 3, Purse.CASH),
        fill(11, 250_001, 1, Side.BUY),
        event(11, EventKind.ACCOUNT_OPENED, BUYER),
    ],
    ids=[
        "more than free", "more than pending", "batch twice", "nothing pending",
        "more than leaving", "withdrawal twice", "deposit twice", "zero", "negative",
        "unknown account", "more than cash", "account twice",
    ],
)  # fmt: skip
async def test_an_event_the_books_cannot_bear_is_refused_with_its_neighbours(
    ledger: Ledger, database: db.Database, bad: Event
) -> None:
    await ledger.post(numbered(STORY))
    good = deposit(11, SELLER, 5, 3 + (bad.kind == EventKind.DEPOSITED), Purse.CASH)
    with pytest.raises(PostingRefused):
        await ledger.post(numbered([good, bad], len(STORY) + 1))
    assert await ledger.balances() == BALANCES
    assert ledger.watermark == (await Ledger.open(database)).watermark
    assert await ledger.post(numbered([good], len(STORY) + 1)) == 1, "and it can go on"


TOO_MUCH = "'slash', 1, 2, 'bond', 0, 'vault', 500001)"
TRANSFER = "INSERT INTO transfer VALUES (99, 0, 99, 0, 0, {})"
GROWS = "the ledger only grows"
# What is wrong, why it is refused, and the statement (or the row of a transfer).
WRONG = [
    ("a balance changed by hand", GROWS, "UPDATE ledger_account SET balance_usdc6 = 0"),
    ("a new account with money", GROWS, "INSERT INTO ledger_account VALUES (9, 'cash', 5)"),
    ("a user with a vault", "own_buckets", "INSERT INTO ledger_account VALUES (9, 'vault', 0)"),
    ("a transfer taken back", GROWS, "DELETE FROM transfer WHERE event_number = 2"),
    ("all transfers taken back", GROWS, "TRUNCATE transfer, fill"),
    ("an amount changed", GROWS, "UPDATE transfer SET amount_usdc6 = 1 WHERE event_number = 2"),
    ("an account taken away", GROWS, "DELETE FROM ledger_account WHERE account = 2"),
    ("a fill repriced", GROWS, "UPDATE fill SET price_ticks = 1"),
    ("a fill taken away", GROWS, "DELETE FROM fill"),
    ("a sale made a resale", GROWS, "UPDATE fill SET resold = true"),
    ("a fee changed", GROWS, "UPDATE fill SET seller_fee_ppm = 1"),
    ("an exit taken back", GROWS, "DELETE FROM vault_exit"),
    (
        "an exit of nobody",
        "account_check",
        "INSERT INTO vault_exit VALUES (1, 0, 'finished', 5, 1)",
    ),
    ("an exit paid early", "only_a", "INSERT INTO vault_exit VALUES (1, 1, 'requested', 5, 1)"),
    ("an exit of pending money", "two_ends", "'exit', 1, 1, 'pending', 0, 'vault', 5"),
    ("a void that pays the vault", "two_ends", "'void', 7, 1, 'pending', 0, 'vault', 5"),
    ("the watermark turned back", "forward only", "UPDATE watermark SET event_number = 1"),
    ("from one user to another", "stays_with", "'fill', 99, 1, 'cash', 2, 'pending', 5"),
    ("cash that becomes bond", "two_ends", "'deposit', 99, 1, 'cash', 1, 'bond', 5"),
    ("escrow that becomes cash", "two_ends", "'escrow', 99, 1, 'escrow', 1, 'cash', 5"),
    ("a deposit from nowhere", "two_ends", "'deposit', 99, 1, 'cash', 1, 'cash', 5"),
    ("a transfer of nothing", "amount_usdc6_check", "'reserve', 99, 1, 'cash', 1, 'leaving', 0"),
    ("a transfer backwards", "amount_usdc6_check", "'reserve', 99, 1, 'cash', 1, 'leaving', -5"),
    ("more than there is", "is_negative", "'reserve', 99, 1, 'cash', 1, 'leaving', 250001"),
    ("to nobody", "no_such_account", "'deposit', 99, 0, 'vault', 7, 'cash', 5"),
    (
        "what is booked",
        "booked_before",
        "INSERT INTO transfer VALUES (99, 0, 9, 0, 0, 'reserve', 99, 1, 'cash', 1, 'leaving', 5)",
    ),
    (
        "a shard that is none",
        "booked_before",
        "INSERT INTO transfer VALUES (99, 5, 99, 0, 0, 'reserve', 99, 1, 'cash', 1, 'leaving', 5)",
    ),
    ("earnings of the engine's", "two_ends", "'release', 99, 1, 'escrow', 2, 'earnings', 5"),
    ("a bucket of the exchange's", "own_buckets", "INSERT INTO ledger_account VALUES (9, 'owed')"),
    ("what the vault moved", GROWS, "UPDATE ledger_account SET by_vault_usdc6 = 1"),
    ("the same twice", "transfer_once", "'reserve', 9, 1, 'cash', 1, 'leaving', 5"),
]


@pytest.mark.parametrize(
    ("reason", "statement"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
async def test_a_wrong_posting_cannot_be_written_even_by_hand(
    ledger: Ledger, database: db.Database, reason: str, statement: str
) -> None:
    await ledger.post(numbered(STORY))
    with pytest.raises(PostingRefused, match=reason):
        await database.execute(TRANSFER.format(statement) if statement[0] == "'" else statement)
    assert await ledger.balances() == BALANCES
    assert await ledger.trial_balance() == SOUND


async def audited(database: db.Database) -> dict[str, int]:
    """What the audit finds against each claim, where it finds anything."""
    rows = await database.rows("SELECT * FROM audit")
    assert len(rows) == 7
    return {row["claim"]: row["contradicting"] for row in rows if row["contradicting"]}


async def test_the_audit_of_a_sound_ledger_finds_nothing(
    ledger: Ledger, database: db.Database
) -> None:
    assert await audited(database) == {}
    await ledger.post(numbered([*STORY, *RETURNS]))
    assert await audited(database) == {}


@tries("booked")
async def test_the_books_of_a_long_random_flow_are_sound(
    ledger: Ledger, database: db.Database, trial: Trial
) -> None:
    """The auditor adds up the same events in its own way; after each posting both say the same."""
    flow, matcher, auditor = order_flow(SEED, trial.budget), Matcher(), Auditor()
    booked = 0
    for start in trial.each(range(0, len(flow), POSTED_COMMANDS)):
        parts = matcher.match(flow[start : start + POSTED_COMMANDS])
        events = [event for part in parts for event in decode_events(part)]
        await ledger.post(numbered(events, booked + 1))
        booked += len(events)
        for happened in events:
            auditor.hear(happened, resale=False)
        for account, holdings in (await ledger.balances()).items():
            owns = auditor.accounts[account]
            moved = owns.pending_usdc6, owns.escrow_usdc6, owns.leaving_usdc6
            assert holdings == Holdings(owns.cash_usdc6 - sum(moved), *moved, owns.bond_usdc6), (
                account
            )
    assert await audited(database) == {}
    trial.note = f"postings of {booked:,} events, audited by SQL at the end"


@pytest.mark.parametrize(
    ("claim", "statement"),
    [
        ("each line is", "UPDATE transfer SET from_account = 9, to_account = 9 WHERE sequence = 9"),
        ("all balances sum", "UPDATE ledger_account SET balance_usdc6 = 1 WHERE bucket = 'cash'"),
        ("each balance is", "UPDATE transfer SET amount_usdc6 = 7 WHERE event_number = 9"),
        ("after no line", "UPDATE transfer SET event_number = 99 WHERE event_number = 2"),
        ("no bond", "INSERT INTO transfer VALUES (9, 32767, 1, 0, 0, " + TOO_MUCH),
        ("what is owned", "UPDATE transfer SET amount_usdc6 = 7 WHERE event_number = 2"),
        ("each fill was booked", "DELETE FROM fill WHERE event_number = 7"),
        ("each fill was booked", "UPDATE fill SET price_ticks = 1 WHERE event_number = 7"),
    ],
)
async def test_the_audit_finds_what_was_written_past_every_trigger(
    ledger: Ledger, database: db.Database, claim: str, statement: str
) -> None:
    await ledger.post(numbered(STORY))
    await database.execute("SET session_replication_role = replica")
    await database.execute(statement)
    assert [found for found in await audited(database) if found.startswith(claim)]


async def test_a_right_transfer_by_hand_is_taken(ledger: Ledger, database: db.Database) -> None:
    await ledger.post(numbered(STORY))
    await database.execute(TRANSFER.format("'reserve', 99, 1, 'cash', 1, 'leaving', 250000"))
    assert (await ledger.balances())[BUYER].leaving_usdc6 == 300_000
    assert await ledger.trial_balance() == SOUND


async def test_states_are_only_left_for_the_next_one(database: db.Database) -> None:
    await database.execute("INSERT INTO outgoing (kind, id) VALUES ('settle', 1)")
    with pytest.raises(PostingRefused, match="goes from SEALED to SIGNED"):
        await database.execute("UPDATE outgoing SET state = 'SIGNED'")
    await database.execute("UPDATE outgoing SET state = 'SIMULATED'")
    with pytest.raises(PostingRefused, match="signed_has_a_nonce"):
        await database.execute("UPDATE outgoing SET state = 'SIGNED'")
    with pytest.raises(PostingRefused, match="goes from SIMULATED to FINAL"):
        await database.execute("UPDATE outgoing SET state = 'FINAL'")


async def test_only_one_process_settles_into_a_database(
    database: db.Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "LOCK_SECONDS_MAX", 0.1)
    with pytest.raises(DatabaseInUse):
        await db.connect(database_url)
    await database.close()
    await (await db.connect(database_url)).close()


async def test_a_schema_that_this_version_did_not_make_is_refused(
    database: db.Database, database_url: str
) -> None:
    await database.execute("UPDATE schema_version SET sha256 = 'other'")
    await database.close()
    with pytest.raises(SchemaMismatch, match="0001_ledger"):
        await db.connect(database_url)
