"""Signed orders in a real PostgreSQL: what is taken in, what is refused, what is covered."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from coincurve import PrivateKey

from engine.catalog import load_catalog
from engine.records import Event, EventKind, Purse, Side
from engine.rejects import Reject
from settlement import database as db
from settlement import orders
from settlement.chain import address_of
from settlement.errors import DatabaseUnavailable, PostingRefused
from settlement.ledger import Ledger
from settlement.orders import Authority, Order
from settlement.products import settled
from settlement.signatures import GRACE_S, POSTING_S, Handed, Outcome, Signatures, Unsigned
from settlement.vault import BOND_SECONDS
from tests.chain.test_ledger import deposit, event, numbered

BUYER, SELLER, OTHER = 1, 2, 3
NOW_S = 1_796_000_000
PRODUCT = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT")
LATER_S = NOW_S + 86_400
DOMAIN = orders.separator(61_337, b"\x11" * 20)
SESSION = b"\x55" * 32
BID, ASK, SECOND = 101, 201, 202  # order ids
KEPT = Outcome(None, -1, 1)
BEFORE_UNBACKED = 12  # the last migration of databases that knew nobody's bond or exit by its time


def key(account: int) -> bytes:
    return account.to_bytes(32, "big")


def owner_of(account: int) -> bytes:
    return address_of(key(account))


class Clock:
    now_s = NOW_S

    def __call__(self) -> int:
        return self.now_s * 1_000_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def signatures(
    database: db.Database, database_url: str, clock: Clock
) -> AsyncIterator[Signatures]:
    signatures = Signatures(database_url, DOMAIN, owner_of, clock)
    yield signatures
    await signatures.close()


def order(order_id: int, number: int, is_buy: bool, **changed: Any) -> Handed:
    base = Handed(order_id, number, PRODUCT, 0, is_buy, 20_000, 30, 500, LATER_S)
    return base._replace(**changed)


def sign(account: int, handed: list[Handed], secret: bytes) -> bytes:
    signed = [
        Order(account, x.is_buy, *settled(x.product), x.price_ticks, x.qty_lots, x.number,
              x.fee_ppm_max, x.valid_until_s)
        for x in handed
    ]  # fmt: skip
    struct = orders.signed_hash(account, orders.order_hashes(signed))
    return made(secret, struct)


def made(secret: bytes, struct: bytes) -> bytes:
    raw = PrivateKey(secret).sign_recoverable(orders.digest(DOMAIN, struct), hasher=None)
    return raw[:64] + bytes([27 + raw[64]])


async def hand_in(signatures: Signatures, account: int, *handed: Handed) -> Outcome:
    return await signatures.hand_in(account, handed, sign(account, [*handed], key(account)))


def authority(account: int = BUYER, **changed: Any) -> Authority:
    terms = Authority(address_of(SESSION), orders.SCOPE_TRADE, valid_until_s=LATER_S, nonce=1)
    terms = terms._replace(**changed)
    struct = orders.authority_hash(owner_of(account), terms)
    return terms._replace(signature=made(key(account), struct))


def fill(sequence: int, qty: int, price: int = 20_000, **fields: int) -> Event:
    """The buyer takes from the seller."""
    chosen = {
        "counter_account": SELLER, "order_id": BID, "reference": ASK, "maker_fee_ppm": 200,
        "taker_fee_ppm": 500, **fields,
    }  # fmt: skip
    return event(sequence, EventKind.FILL, BUYER, price, qty_lots=qty, side=Side.BUY, **chosen)


BEFORE = [
    event(1, EventKind.ACCOUNT_OPENED, BUYER),
    deposit(2, BUYER, 1_000_000_000, 1, Purse.CASH),
    event(3, EventKind.ACCOUNT_OPENED, SELLER),
    deposit(4, SELLER, 1_000_000_000, 2, Purse.CASH),
    event(5, EventKind.ACCOUNT_OPENED, OTHER),
    deposit(6, OTHER, 1_000_000_000, 3, Purse.CASH),
]


async def booked(database: db.Database, *fills: Event) -> None:
    ledger = await Ledger.open(database)
    await ledger.post([*numbered(BEFORE), *numbered([*fills], 7)])


async def sealable(database: db.Database, now_s: int = NOW_S) -> list[tuple[int, int, int]]:
    rows = await database.rows("SELECT * FROM sealable_fills($1) ORDER BY 1", now_s)
    return [tuple(row.values()) for row in rows]  # pyright: ignore[reportReturnType]


# --- handing in -------------------------------------------------------------------------------
async def test_orders_under_one_root_are_kept_and_the_last_number_told(
    signatures: Signatures, database: db.Database
) -> None:
    many = [order(1_000 + i, 1 + i, bool(i % 3)) for i in range(500)]
    assert await hand_in(signatures, BUYER, *many) == Outcome(None, -1, 500)
    assert await database.value("SELECT count(*) FROM signed_order WHERE verified") == 500
    assert await database.value("SELECT count(*) FROM order_root") == 1
    assert await signatures.last_number(BUYER) == 500
    assert await signatures.last_number(SELLER) == 0


async def test_the_same_again_is_fine_and_keeps_nothing_more(
    signatures: Signatures, database: db.Database
) -> None:
    for _ in range(3):
        assert await hand_in(signatures, BUYER, order(BID, 1, True)) == KEPT
    assert await database.value("SELECT count(*) FROM order_root") == 1


@pytest.mark.parametrize(
    ("again", "reject"),
    [
        ({"order_id": 102}, Reject.CLIENT_ID_REUSED),  # its number for another order
        ({"number": 2}, Reject.CLIENT_ID_REUSED),  # another number for the order
        ({"is_buy": False}, Reject.CLIENT_ID_REUSED),
        ({"instrument": 1}, Reject.CLIENT_ID_REUSED),
        ({"price_ticks": 19_999, "qty_lots": 31}, Reject.INVALID_TERMS),  # neither more nor less
        ({"price_ticks": 20_001, "fee_ppm_max": 499}, Reject.INVALID_TERMS),
        ({"qty_lots": 31, "valid_until_s": NOW_S + 40_000}, Reject.INVALID_TERMS),
    ],
)
async def test_another_body_is_refused_whole(
    signatures: Signatures, database: db.Database, again: dict[str, Any], reject: Reject
) -> None:
    assert await hand_in(signatures, BUYER, order(BID, 1, True)) == KEPT
    others = [order(900, 9, True), order(BID, 1, True)._replace(**again)]
    assert await hand_in(signatures, BUYER, *others) == Outcome(reject, 1, 1)
    assert await database.value("SELECT count(*) FROM signed_order") == 1
    # Numbers and orders are each account's own.
    assert await hand_in(signatures, SELLER, order(BID, 1, False)) == KEPT


async def test_an_amended_order_is_signed_wider_under_its_number(
    signatures: Signatures, database: db.Database
) -> None:
    await hand_in(signatures, BUYER, order(BID, 1, True))
    wider = order(BID, 1, True, price_ticks=21_000, qty_lots=40)
    assert await hand_in(signatures, BUYER, wider) == KEPT
    assert await hand_in(signatures, BUYER, order(BID, 1, True)) == KEPT, "less is no more needed"
    [body] = await signatures.bodies([BID, ASK])
    assert body == (BID, 1, 21_000, 40)
    set_back = wider._replace(qty_lots=41, valid_until_s=LATER_S - 7_200)
    assert await hand_in(signatures, BUYER, set_back) == KEPT, "for less long, but long enough"
    for change in ("price_ticks = 20000", "qty_lots = 39", "number = 5", "is_buy = false"):
        with pytest.raises(PostingRefused, match="signed for more"):
            await database.execute(f"UPDATE signed_order SET {change}")
    for statement in ("DELETE FROM signed_order", "UPDATE order_root SET account = 2"):
        with pytest.raises(PostingRefused, match="only grows"):
            await database.execute(statement)


async def test_a_signature_that_is_not_the_owners_is_refused(
    signatures: Signatures, database: db.Database
) -> None:
    bid = order(BID, 1, True)
    good = sign(BUYER, [bid], key(BUYER))
    wrong = Outcome(Reject.WRONG_WALLET, -1, 0)
    assert await signatures.hand_in(BUYER, [bid], sign(BUYER, [bid], key(SELLER))) == wrong
    assert await signatures.hand_in(SELLER, [bid], good) == wrong
    for field in ("price_ticks", "qty_lots", "number", "fee_ppm_max", "valid_until_s"):
        other = bid._replace(**{field: getattr(bid, field) + 1})
        assert await signatures.hand_in(BUYER, [other], good) == wrong, field
    for bad in (bytes(65), good[:64], b""):
        none = Outcome(Reject.BAD_SIGNATURE, -1, 0)
        assert await signatures.hand_in(BUYER, [bid], bad) == none
    assert await database.value("SELECT count(*) FROM signed_order") == 0
    assert await signatures.hand_in(BUYER, [bid], good) == KEPT


async def test_a_session_key_signs_if_its_wallet_has_let_it_trade(
    signatures: Signatures, database: db.Database
) -> None:
    bid = order(BID, 1, True)
    by_key = sign(BUYER, [bid], SESSION)
    not_allowed = Outcome(Reject.KEY_NOT_AUTHORISED, -1, 0)
    good = authority()
    for bad in (
        authority(SELLER),  # another wallet let it
        authority(scopes=1),
        good._replace(valid_until_s=LATER_S + 1),
        good._replace(signature=bytes(65)),
        good._replace(signature=b""),
    ):
        assert await signatures.hand_in(BUYER, [bid], by_key, bad) == not_allowed
    wrong = Outcome(Reject.WRONG_WALLET, -1, 0)
    assert await signatures.hand_in(BUYER, [bid], by_key) == wrong
    assert await signatures.hand_in(BUYER, [bid], sign(BUYER, [bid], key(BUYER)), good) == wrong
    assert await signatures.hand_in(BUYER, [bid], by_key, good) == KEPT
    assert await database.value("SELECT post_until_s FROM signed_order") == (
        LATER_S + GRACE_S - POSTING_S
    )


# --- coverage -----------------------------------------------------------------------------------
async def test_a_fill_is_sealable_when_both_have_signed_and_not_before(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(10, 30))
    assert await sealable(database) == []
    await hand_in(signatures, BUYER, order(BID, 7, True))
    assert await sealable(database) == []
    await hand_in(signatures, SELLER, order(ASK, 5, False))
    assert await sealable(database) == [(7, 7, 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"price_ticks": 19_999},
        {"qty_lots": 29},
        {"fee_ppm_max": 499},
        {"instrument": 1},
        {"is_buy": False},
        {"valid_until_s": NOW_S - GRACE_S + POSTING_S - 1},
    ],
)
async def test_an_order_that_does_not_cover_its_fill_leaves_it_unsealed(
    signatures: Signatures, database: db.Database, change: dict[str, Any]
) -> None:
    await booked(database, fill(10, 30))
    await hand_in(signatures, SELLER, order(ASK, 5, False))
    await hand_in(signatures, BUYER, order(BID, 1, True)._replace(**change))
    assert await sealable(database) == []
    assert [x.order_id for x in await signatures.unsigned(BUYER)] == [BID]
    assert await signatures.unsigned(SELLER) == []


async def test_what_is_listed_as_unsigned_is_no_less_than_what_is_signed(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(10, 30))
    await hand_in(signatures, BUYER, order(BID, 1, True, price_ticks=21_000, qty_lots=10))
    [listed] = await signatures.unsigned(BUYER)
    assert listed == Unsigned(BUYER, BID, 0, True, 21_000, 30, 1)
    await hand_in(
        signatures, BUYER,
        order(BID, 1, True, price_ticks=listed.price_ticks, qty_lots=listed.qty_lots),
    )  # fmt: skip
    assert await signatures.unsigned(BUYER) == []


async def test_a_seller_takes_no_less_than_it_signed(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(10, 30))
    await hand_in(signatures, BUYER, order(BID, 1, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False, price_ticks=20_001))
    assert await sealable(database) == []
    await hand_in(signatures, SELLER, order(ASK, 1, False, price_ticks=20_000))
    assert await sealable(database) == [(7, 1, 1)]


async def test_all_fills_of_an_order_together_are_within_its_quantity(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(10, 20), fill(11, 10, reference=SECOND), fill(12, 1))
    await hand_in(signatures, BUYER, order(BID, 1, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False), order(SECOND, 2, False))
    assert await sealable(database) == [(7, 1, 1), (8, 1, 2)]
    assert await signatures.unsigned(BUYER) == [Unsigned(BUYER, BID, 0, True, 20_000, 31, 1)]
    await hand_in(signatures, BUYER, order(BID, 1, True, qty_lots=31))
    assert len(await sealable(database)) == 3
    # What was sealed counts, what is void does not.
    await database.execute(
        "INSERT INTO batch VALUES (1, '\\x00', decode(repeat('00', 32), 'hex'), 1, 1, 1)"
    )
    await database.execute("UPDATE fill SET batch_id = 1 WHERE event_number = 7")
    assert await sealable(database) == [(8, 1, 2), (9, 1, 1)]
    await database.execute("UPDATE fill SET void_number = 1 WHERE event_number = 8")
    sides = await database.rows("SELECT filled_lots FROM fill_sides($1) WHERE is_buy", NOW_S)
    assert [row["filled_lots"] for row in sides] == [21]


async def test_orders_that_ended_are_settled_within_the_grace_and_not_to_its_last_second(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(10, 30))
    await hand_in(signatures, BUYER, order(BID, 1, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False))
    last_s = LATER_S + GRACE_S - POSTING_S
    assert len(await sealable(database, last_s)) == 1
    assert await sealable(database, last_s + 1) == []


async def test_what_was_cancelled_on_chain_is_sealed_only_while_a_batch_is_posted_in_time(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(7, 10), fill(8, 5, order_id=SECOND))
    await hand_in(signatures, BUYER, order(BID, 7, True), order(SECOND, 8, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False))
    assert await sealable(database) == [(7, 7, 1), (8, 8, 1)]
    await database.execute(
        "INSERT INTO cancelled_below VALUES ($1, 8, $2), ($3, 1, 0)", BUYER, NOW_S + 100, SELLER
    )
    assert await signatures.taken_back() == [(BUYER, BID)]
    assert await sealable(database, NOW_S + 100) == [(7, 7, 1), (8, 8, 1)]
    assert await sealable(database, NOW_S + 101) == [(8, 8, 1)]
    late = await hand_in(signatures, BUYER, order(301, 9, True), order(302, 6, True))
    assert late == Outcome(Reject.INVALID_TERMS, 1, 8)
    await database.execute("INSERT INTO cancelled_below VALUES ($1, 20, $2)", BUYER, NOW_S + 500)
    assert await signatures.last_number(BUYER) == 19, "so the next one counts"


async def test_what_a_seller_sold_who_takes_bond_or_money_is_sealed_in_time_or_not_at_all(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(7, 10))
    await hand_in(signatures, BUYER, order(BID, 7, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False))
    await database.execute("INSERT INTO bond_request VALUES ($1, 0, 0)", BUYER)
    await database.execute("INSERT INTO vault_exit VALUES (1, $1, 'requested', 0, 1, 0)", BUYER)
    both = [(7, 7, 1)]
    assert await sealable(database) == both, "a buyer's fill is backed by its money alone"
    add_step = "INSERT INTO vault_exit VALUES ($1, $2, $3, 0, 1, $4)"
    await database.execute(add_step, 2, SELLER, "requested", NOW_S + 100)
    assert await sealable(database, NOW_S + 100) == both
    assert await sealable(database, NOW_S + 101) == []
    await database.execute(add_step, 3, SELLER, "cancelled", None)
    assert await sealable(database, NOW_S + 101) == both
    await database.execute(add_step, 4, SELLER, "requested", None)
    assert await sealable(database) == [], "nobody knows when it is due"
    await database.execute(add_step, 5, SELLER, "finished", None)
    assert await sealable(database, NOW_S + 101) == both
    asked = "INSERT INTO bond_request VALUES ($1, $2, $3)"
    await database.execute(asked, SELLER, NOW_S + 10**7, NOW_S + 100)
    assert await sealable(database, NOW_S + 100) == both
    assert await sealable(database, NOW_S + 101) == []


async def test_a_bond_that_was_asked_for_before_is_known_to_back_nothing_from_the_same_time_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        every = db.migrations()
        patched.setattr(db, "migrations", lambda: every[:BEFORE_UNBACKED])
        database = await db.connect(database_url)
    await database.execute("INSERT INTO bond_request VALUES (1, $1)", NOW_S + BOND_SECONDS)
    await database.execute("INSERT INTO vault_exit VALUES (1, 2, 'requested', 0, 1)")
    await database.close()
    database = await db.connect(database_url)
    rows = await database.rows("SELECT * FROM unbacked_seller ORDER BY account")
    assert [tuple(row.values()) for row in rows] == [(1, NOW_S + GRACE_S - POSTING_S), (2, 0)]
    await database.close()


async def test_what_a_key_has_signed_that_was_revoked_on_chain_is_sealed_in_time_or_not_at_all(
    signatures: Signatures, database: db.Database
) -> None:
    await booked(database, fill(7, 10), fill(8, 5, order_id=SECOND))
    for account in (BUYER, SELLER):
        await database.execute(
            "INSERT INTO vault_owner VALUES ($1, $2)", account, owner_of(account)
        )
    bid, second = order(BID, 7, True), order(SECOND, 8, True)
    proof = sign(BUYER, [bid], SESSION)
    assert (await signatures.hand_in(BUYER, [bid], proof, authority())).reject is None
    await hand_in(signatures, BUYER, second)
    await hand_in(signatures, SELLER, order(ASK, 1, False))
    session = authority().key
    await database.execute(  # of another's key of the same address nothing follows
        "INSERT INTO revoked_key VALUES ($1, $3, 0), ($2, $3, $4)",
        *(owner_of(SELLER), owner_of(BUYER), session, NOW_S + 100),
    )
    assert await signatures.taken_back() == [(BUYER, BID)]
    assert await sealable(database, NOW_S + 100) == [(7, 7, 1), (8, 8, 1)]
    assert await sealable(database, NOW_S + 101) == [(8, 8, 1)]
    third = order(301, 9, True)
    refused = await signatures.hand_in(BUYER, [third], sign(BUYER, [third], SESSION), authority())
    assert refused.reject == Reject.KEY_NOT_AUTHORISED
    assert (await hand_in(signatures, BUYER, third)).reject is None


async def test_what_was_filled_in_a_period_that_was_taken_out_still_counts(
    signatures: Signatures, database: db.Database
) -> None:
    await database.execute("DROP TABLE transfer_1, fill_1")  # instead of the migration's large one
    await database.execute("DELETE FROM period")
    for _ in range(3):
        await database.execute("SELECT open_period(8)")
    await hand_in(signatures, BUYER, order(BID, 7, True))
    await hand_in(signatures, SELLER, order(ASK, 1, False, qty_lots=300))
    others = [fill(sequence, 1, order_id=SECOND) for sequence in range(9, 18)]
    await booked(database, fill(7, 20), fill(8, 5), *others)
    await database.execute(
        "INSERT INTO batch VALUES (1, decode(repeat('00', 30), 'hex'),"
        " decode(repeat('00', 32), 'hex'), 1, 1000, 5)"
    )
    await database.execute("UPDATE fill SET batch_id = 1")
    await database.execute("SELECT close_period(1), detach_period(1)")  # up to event 8
    kept = await database.rows("SELECT * FROM filled_before ORDER BY order_id")
    assert [tuple(row.values()) for row in kept] == [(BID, 25), (ASK, 25)]
    ledger = await Ledger.open(database)
    await ledger.post(numbered([fill(18, 5), fill(19, 1)], 18))  # one more than was ordered
    assert [number for number, *_ in await sealable(database)] == [18]


async def test_hours_sold_again_wait_for_what_they_came_from(
    signatures: Signatures, database: db.Database
) -> None:
    again = event(
        11, EventKind.FILL, OTHER, 20_000, qty_lots=5, side=Side.BUY, counter_account=BUYER,
        order_id=301, reference=102, reason=2,
    )  # fmt: skip
    await booked(database, fill(10, 30), again)
    await hand_in(signatures, OTHER, order(301, 1, True))
    await hand_in(signatures, BUYER, order(102, 1, False))
    await hand_in(signatures, SELLER, order(ASK, 1, False))
    assert await sealable(database) == [], "the purchase could still be undone"
    await hand_in(signatures, BUYER, order(BID, 2, True))
    assert await sealable(database) == [(7, 2, 1)]
    await database.execute(
        "INSERT INTO batch VALUES (1, '\\x00', decode(repeat('00', 32), 'hex'), 1, 1, 1)"
    )
    await database.execute("UPDATE fill SET batch_id = 1 WHERE event_number = 7")
    assert await sealable(database) == [(8, 1, 1)]


async def test_a_lost_connection_is_opened_again(
    signatures: Signatures, database: db.Database
) -> None:
    await hand_in(signatures, BUYER, order(BID, 1, True))
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseUnavailable):
        await signatures.last_number(BUYER)
    assert await hand_in(signatures, BUYER, order(BID, 1, True)) == KEPT
