"""Answers built from what is kept of signed orders, and what the vault says to them."""

from collections.abc import AsyncIterator

import pytest

from benchmarks.machine import Machine
from benchmarks.vault import DOLLAR, SETTLER, WATCHER, Batch, Fill, Vault, key, sign, wallet
from engine.catalog import load_catalog
from settlement import database as db
from settlement import orders
from settlement.answers import Answers, NoAnswer
from settlement.chain import address_of
from settlement.errors import ContractRejected
from settlement.orders import Authority, Order
from settlement.products import settled
from settlement.signatures import Handed, Signatures
from settlement.vault import Place

START_S = 1_796_000_400
PRODUCT = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|H|2026-12-01T14")
SERIES, WINDOW = settled(PRODUCT)
SESSION = key(77)
BID, ASK = 7, 8  # order ids


class World:
    """A vault with two funded accounts, a database, and the signatures kept in it."""

    def __init__(self, database: db.Database, database_url: str) -> None:
        self.vault = Vault(Machine(START_S))
        self.vault.fund(1, 10_000 * DOLLAR)
        self.vault.fund(2, 10_000 * DOLLAR, 1_000 * DOLLAR)
        self.vault.mint(WATCHER, 1_000 * DOLLAR)
        domain = self.vault.domain
        self.signatures = Signatures(database_url, domain, wallet, lambda: START_S * 10**9)
        self.answers = Answers(database, domain, wallet)

    def made(self, secret: bytes, struct: bytes) -> bytes:
        return sign(secret, self.vault.domain, struct)

    async def hand_in(
        self, account: int, handed: list[Handed], secret: bytes, key: Authority | None = None
    ) -> None:
        signed = [
            Order(account, x.is_buy, SERIES, WINDOW, x.price_ticks, x.qty_lots, x.number,
                  x.fee_ppm_max, x.valid_until_s)
            for x in handed
        ]  # fmt: skip
        struct = orders.signed_hash(account, orders.order_hashes(signed))
        outcome = await self.signatures.hand_in(account, handed, self.made(secret, struct), key)
        assert outcome.reject is None

    def challenged(self, *fills: Fill) -> Batch:
        batch = self.vault.settle(fills)
        self.vault.do(WATCHER, "challenge", batch.place(0), [])
        return batch

    async def answered(self, batch: Batch, lots: int = 160) -> None:
        """Raises NoAnswer, ContractRejected."""
        call = await self.answers.answer(Place(*batch.place(0)), lots, lots, START_S)
        self.vault.do(SETTLER, "answer", *call)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    database = await db.connect(database_url)
    world = World(database, database_url)
    yield world
    await world.signatures.close()
    await database.close()


def order(order_id: int, number: int, is_buy: bool, **changed: int) -> Handed:
    base = Handed(order_id, number, PRODUCT, 0, is_buy, 24_150, 160, 500, START_S + 3_600)
    return base._replace(**changed)


def fill(**changed: int) -> Fill:
    return Fill(1, 2, 24_150, 160, SERIES, WINDOW, 11, 22, 500, 200)._replace(**changed)


def session(world: World) -> Authority:
    terms = Authority(address_of(SESSION), orders.SCOPE_TRADE, valid_until_s=2**32, nonce=3)
    struct = orders.authority_hash(wallet(1), terms)
    return terms._replace(signature=world.made(key(1), struct))


async def test_a_root_by_a_session_key_and_a_wallets_own_order_answer(world: World) -> None:
    many = [order(100 + i, 100 + i, True) for i in range(37)]
    many.insert(20, order(BID, 11, True))
    await world.hand_in(1, many, SESSION, session(world))
    await world.hand_in(2, [order(ASK, 22, False)], key(2))
    batch = world.challenged(fill())
    bond = world.vault.settler_bond()
    await world.answered(batch)
    assert world.vault.settler_bond() == bond + 20 * DOLLAR, "the challenger's stake"
    with pytest.raises(ContractRejected, match="NoSuchDispute"):
        await world.answered(batch)


async def test_an_order_widened_for_an_amendment_answers_for_its_first_fills_too(
    world: World,
) -> None:
    await world.hand_in(1, [order(BID, 11, True, qty_lots=100)], key(1))
    await world.hand_in(2, [order(ASK, 22, False)], key(2))
    batch = world.challenged(fill())
    with pytest.raises(NoAnswer, match=r"buyer .* for less"):
        await world.answered(batch)
    await world.hand_in(1, [order(BID, 11, True), order(9, 12, True)], key(1))
    await world.answered(batch)


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"buyer_order": 12}, "buyer .* no order 12"),
        ({"seller_order": 23}, "seller .* no order 23"),
        ({"buyer": 2, "seller": 1}, "buyer .* no order 11"),
        ({"price": 24_151}, "buyer .* at another price"),
        ({"price": 24_149}, "seller .* at another price"),
        ({"qty": 161}, "buyer .* for less"),
        ({"buyer_fee": 501}, "buyer .* for less"),
        ({"seller_fee": 501}, "seller .* for less"),
        ({"series": SERIES + 64}, "buyer .* something else"),
        ({"window": WINDOW + 1}, "buyer .* something else"),
    ],
)
async def test_a_fill_that_nobody_signed_has_no_answer_and_no_other_one_passes(
    world: World, forged: dict[str, int], said: str
) -> None:
    await world.hand_in(1, [order(BID, 11, True)], key(1))
    await world.hand_in(2, [order(ASK, 22, False)], key(2))
    bad = fill(**forged)
    batch = world.challenged(bad)
    with pytest.raises(NoAnswer, match=said):
        await world.answered(batch, bad.qty)
    good = await world.answers.answer(Place(*Batch(1, [fill()]).place(0)), 160, 160, START_S)
    with pytest.raises(ContractRejected, match=r"NotSigned|KeyNotAllowed|OutsideOrder"):
        world.vault.do(SETTLER, "answer", batch.place(0), bad.qty, bad.qty, *good[3:])


async def test_rows_changed_behind_our_back_are_found_out_before_the_vault_does(
    world: World, database_url: str
) -> None:
    await world.hand_in(1, [order(BID, 11, True)], key(1))
    await world.hand_in(2, [order(ASK, 22, False)], key(2))
    batch = world.challenged(fill(qty=170))
    database = await db.connect_beside(database_url)
    await database.execute("UPDATE signed_order SET qty_lots = 170 WHERE account = 1")
    await database.close()
    with pytest.raises(NoAnswer, match="has not signed order 11 as it is kept"):
        await world.answered(batch, 170)
