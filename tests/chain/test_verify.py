"""Settled batches against what was signed for them: from the chain and a file, and forged ones."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.machine import Machine
from benchmarks.vault import SETTLER, WATCHER, Fill, Vault, pack
from benchmarks.vault import key as vault_key
from benchmarks.vault import wallet as vault_wallet
from engine.catalog import load_catalog
from gateway import cli
from gateway.ending import Ending
from settlement import addresses, evidence, orders
from settlement import database as db
from settlement.addresses import CONTRACTS_FILE, Addresses
from settlement.chain import NOBODY, Chain, address_of, checksum
from settlement.errors import (
    ChainMismatch,
    ContractRejected,
    DamagedEvidence,
    DatabaseUnavailable,
    UnknownBatch,
)
from settlement.orders import SCOPE_TRADE, Authority, Order, Signed
from settlement.products import settled
from settlement.signatures import GRACE_S, Handed, Signatures
from settlement.verify import History, Posted, Report, check
from tests.chain.world import DOLLAR, START_S, VAULT, World, wallet_key
from tests.passable import passable_directory
from tests.signed import made, sign

PRODUCT = load_catalog().parse("nv.h100-sxm-80g.x8.ib|us-e|B|H|2026-12-01T14")
SERIES, WINDOW = settled(PRODUCT)
BUYER, SELLER, OTHER = 1, 2, 3
SESSION = (0x5E55).to_bytes(32, "big")
DAY_S = 86_400


@pytest.fixture
async def market() -> AsyncIterator[World]:
    """Two buyers and a seller, funded."""
    world = await World.open()
    await world.fund(3, 100_000 * DOLLAR, 1_000 * DOLLAR)
    yield world
    await world.chain.close()
    await world.node.close()


def domain_of(world: World) -> bytes:
    return orders.separator(world.chain.chain_id, world.chain.vault)


def fill(**changed: int) -> Fill:
    return Fill(BUYER, SELLER, 24_150, 160, SERIES, WINDOW, 11, 22, 500, 200)._replace(**changed)


def order(account: int, number: int, **changed: int) -> Order:
    base = Order(account, account != SELLER, SERIES, WINDOW, 24_150, 160, number, 500,
                 START_S + 3_600)  # fmt: skip
    return base._replace(**changed)


def signed(world: World, *orders_signed: Order, key: bytes = b"", **named: int) -> list[Signed]:
    """By the owner, or by a session key that the owner has signed for."""
    account, domain = orders_signed[0].account, domain_of(world)
    owner = wallet_key(account)
    authority = Authority(address_of(key or owner))
    if named:
        authority = authority._replace(**named)
        struct = orders.authority_hash(address_of(owner), authority)
        authority = authority._replace(signature=made(domain, owner, struct))
    leaves = orders.order_hashes(orders_signed)
    levels = orders.tree(leaves)
    signature = made(domain, key or owner, orders.signed_hash(account, leaves))
    return [
        Signed(x, orders.path_of(levels, place), signature, authority)
        for place, x in enumerate(orders_signed)
    ]


def both(world: World, **changed: int) -> list[Signed]:
    """The buyer's order, as changed, and the seller's."""
    return [*signed(world, order(BUYER, 11, **changed)), *signed(world, order(SELLER, 22))]


async def verified(world: World, shown: list[Signed], batch_id: int = 1) -> Report:
    return check(await History.read(world.chain, batch_id), evidence.by_party(shown))


def said(report: Report) -> list[str]:
    return [str(objection) for objection in report.objections]


async def settle(world: World, batch_id: int, *fills: Fill) -> None:
    assert (await world.settle(batch_id, list(fills))).succeeded


async def test_a_batch_that_both_have_signed_for_is_covered(market: World) -> None:
    await settle(
        market, 1, fill(qty=100), fill(qty=60), fill(buyer=OTHER, qty=160, seller_order=23)
    )
    trade = {"scopes": SCOPE_TRADE, "valid_until_s": START_S + DAY_S, "nonce": 3}
    others = [order(OTHER, number) for number in range(5, 40)]
    shown = [
        *both(market),
        *signed(market, *others, key=SESSION, **trade),
        *signed(market, order(SELLER, 21), order(SELLER, 23)),
    ]
    report = await verified(market, shown)
    assert report == Report(1, 3, 0, [], []) and report.is_covered


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        ({"buyer_order": 12}, "buyer, account 1, has signed no order 12"),
        ({"seller_order": 23}, "seller, account 2, has signed no order 23"),
        ({"buyer": OTHER}, "buyer, account 3, has signed no order 11"),
        ({"price": 24_151}, "buyer, account 1, has signed order 11 at another price"),
        ({"price": 24_149}, "seller, account 2, has signed order 22 at another price"),
        ({"buyer_fee": 501}, "buyer, account 1, has signed order 11 for less"),
        ({"series": SERIES + 4}, "buyer, account 1, has signed order 11 for something else"),
    ],
)
async def test_a_fill_that_nobody_has_signed_for_is_found(
    market: World, forged: dict[str, int], why: str
) -> None:
    await settle(market, 1, fill(**forged))
    report = await verified(market, both(market))
    assert not report.is_covered and report.false_roots == []
    assert f"fill 0: its {why}" in said(report)


async def test_an_order_that_is_overfilled_over_two_batches_is_found_in_the_second(
    market: World,
) -> None:
    await settle(market, 1, fill(qty=100))
    await settle(market, 2, fill(buyer=OTHER, qty=1), fill(qty=60), fill(qty=1))
    shown = [
        *signed(market, order(BUYER, 11)),
        *signed(market, order(OTHER, 11)),
        *signed(market, order(SELLER, 22, qty_lots=1_000)),
    ]
    assert (await verified(market, shown, 1)).is_covered
    report = await verified(market, shown, 2)
    assert said(report) == ["fill 2: its buyer, account 1, has signed order 11 for less"]
    wider = [*shown, *signed(market, order(BUYER, 11, qty_lots=161))]
    assert (await verified(market, wider, 2)).is_covered, "signed again, for more"


async def test_who_signed_and_until_when_is_asked(market: World) -> None:
    await settle(market, 1, fill())
    sells = signed(market, order(SELLER, 22))
    trade = {"scopes": SCOPE_TRADE, "valid_until_s": START_S + DAY_S}
    bid, late = order(BUYER, 11), order(BUYER, 11, valid_until_s=START_S - 2 * DAY_S)
    stranger = wallet_key(OTHER)
    for shown, lacking in (
        (signed(market, late), "for a time that was over"),
        (signed(market, bid, key=stranger), "with a key that may not trade for it"),
        (signed(market, bid, key=SESSION, **trade | {"scopes": 1}), "may not trade for it"),
        (signed(market, bid, key=SESSION, **trade | {"valid_until_s": 7}), "whose time was over"),
        ([signed(market, bid)[0]._replace(signature=bytes(65))], "with no signature of it"),
    ):
        assert lacking in "".join(said(await verified(market, shown + sells))), lacking
    assert (await verified(market, signed(market, bid, key=SESSION, **trade) + sells)).is_covered


async def test_keys_that_the_vault_was_told_of_count_and_those_taken_back_do_not(
    market: World,
) -> None:
    vault, owner, until_s = market.chain.vault, wallet_key(BUYER), START_S + 9 * DAY_S
    named = checksum(address_of(SESSION))
    shown = [*signed(market, order(BUYER, 11, valid_until_s=until_s, qty_lots=999), key=SESSION),
             *signed(market, order(SELLER, 22, valid_until_s=until_s, qty_lots=999))]  # fmt: skip
    await settle(market, 1, fill())
    assert not (await verified(market, shown)).is_covered
    await market.transact(owner, vault, VAULT, "authoriseKey", named, until_s)
    assert (await verified(market, shown)).is_covered
    await market.transact(owner, vault, VAULT, "revokeKey", named)
    market.clock.now_s += DAY_S + 60
    await settle(market, 2, fill())
    assert (await verified(market, shown, 1)).is_covered, "it was posted before"
    assert said(await verified(market, shown, 2)) == [
        "fill 0: its buyer, account 1, has signed order 11 with a key that was taken back"
    ]


async def test_orders_that_were_cancelled_cover_nothing_posted_from_then_on(market: World) -> None:
    shown = both(market, valid_until_s=START_S + 9 * DAY_S)
    await market.transact(wallet_key(SELLER), market.chain.vault, VAULT, "cancelBelow", 23)
    await settle(market, 1, fill(qty=60))
    assert (await verified(market, shown)).is_covered, "a day is left to settle"
    market.clock.now_s += DAY_S + 60
    await settle(market, 2, fill(qty=60))
    report = await verified(market, shown, 2)
    assert "fill 0: its seller, account 2, had cancelled order 22" in said(report)


async def test_calldata_that_is_not_what_the_vault_keeps_is_found(market: World) -> None:
    await settle(market, 1, fill())
    await settle(market, 2, fill())
    history = await History.read(market.chain, 2)
    first = history.batches[0]
    torn = bytes([first.packed[0] ^ 1]) + first.packed[1:]
    history.batches[0] = first._replace(packed=torn)
    shown = [*signed(market, order(BUYER, 11)), *signed(market, order(SELLER, 22, qty_lots=320))]
    report = check(history, evidence.by_party(shown))
    assert report.false_roots == [1] and not report.is_covered and not report.objections


async def test_what_is_void_is_neither_looked_at_nor_counted(market: World) -> None:
    await settle(market, 1, fill(), fill(buyer_order=99))
    history = await History.read(market.chain, 1)
    history.hear("Voided", {"batch": 1, "index": 1, "cost": 0})
    report = check(history, evidence.by_party(both(market)))
    assert (report.fills, report.void, report.objections) == (2, 1, [])


async def test_a_batch_that_is_not_there_and_a_vault_that_is_none_are_refused(
    market: World,
) -> None:
    with pytest.raises(UnknownBatch, match="no batch 1"):
        await History.read(market.chain, 1)
    reader = await Chain.connect(market.node.provider, NOBODY)
    for wrong in ("nonsense", checksum(market.chain.token)):
        with pytest.raises(ChainMismatch):
            await reader.watch(wrong)
    await reader.close()


# --- the same as the vault ------------------------------------------------------------------------

CASES = 60
TOLD, TAKEN_BACK = wallet_key(71), wallet_key(72)  # keys of the buyer's, known to the vault
MACHINE_S = 1_796_000_400


def drawn(chance: random.Random, domain: bytes, like: Order, posted_at_s: int) -> Signed:
    """An order that covers what is like it, or just not, by a key that may trade, or just not."""
    over_s, begun = posted_at_s - GRACE_S, chance.choice((0, posted_at_s, posted_at_s + 1))
    changed = {
        "price_ticks": like.price_ticks + chance.choice((-1, 0, 0, 0, 1)),
        "qty_lots": like.qty_lots + chance.choice((-1, 0, 0, 0, 1)),
        "fee_ppm_max": like.fee_ppm_max + chance.choice((-1, 0, 0, 0, 1)),
        "valid_until_s": chance.choice((over_s - 1, over_s, over_s + 1, posted_at_s)),
    }
    only = chance.choice((*changed, ""))  # or hardly any of them would pass
    order = like._replace(
        **{"valid_until_s": posted_at_s} | ({only: changed[only]} if only else {})
    )
    owner = vault_key(like.account)
    key = chance.choice((owner, owner, SESSION, SESSION, SESSION, TOLD, TAKEN_BACK))
    named = Authority(
        address_of(chance.choice((key, key, key, SESSION))),
        scopes=chance.choice((1, SCOPE_TRADE, SCOPE_TRADE, 3)),
        valid_from_s=begun,
        valid_until_s=chance.choice((over_s - 1, over_s, posted_at_s, posted_at_s)),
    )
    struct = orders.authority_hash(address_of(owner), named)
    proof = made(domain, chance.choice((owner, owner, owner, key)), struct)
    leaves = orders.order_hashes([order, *(like._replace(number=n) for n in range(7, 11))])
    leaves = leaves[: chance.choice((1, 2, 5))]
    signature = made(domain, key, orders.signed_hash(like.account, leaves))
    if chance.random() < 0.1:
        signature = signature[:40] + bytes([signature[40] ^ 1]) + signature[41:]
    path = orders.path_of(orders.tree(leaves), 0)
    return Signed(order, path, signature, named._replace(signature=proof))


@pytest.mark.parametrize("waited_s", [GRACE_S - 1, GRACE_S, GRACE_S + 1])
def test_what_passes_is_exactly_what_the_vault_takes_as_an_answer(waited_s: int) -> None:
    """Both keys that the vault was told of end when the batch is posted, or a second off."""
    vault, chance = Vault(Machine(MACHINE_S)), random.Random(waited_s)
    vault.fund(BUYER, 10**11)
    vault.fund(SELLER, DOLLAR, 1_000 * DOLLAR)
    vault.mint(WATCHER, 10**10)
    history = History(
        vault.domain, owners={BUYER: vault_wallet(BUYER), SELLER: vault_wallet(SELLER)}
    )
    for function, event, *arguments in (
        ("authoriseKey", "KeyAuthorised", address_of(TOLD), vault.machine.now_s),
        ("authoriseKey", "KeyAuthorised", address_of(TAKEN_BACK), 2**40),
        ("revokeKey", "KeyRevoked", address_of(TAKEN_BACK)),
    ):
        logs = vault.do(vault_wallet(BUYER), function, *arguments).logs
        [fields] = vault.logged(logs, event)
        history.hear(event, fields)
    vault.machine.wait(waited_s)
    fills = [fill(buyer_order=100 + n, seller_order=500 + n, qty=1 + n) for n in range(CASES)]
    batch = vault.settle(fills)
    posted_at_s = vault.ask("batch", 1)[1]
    history.batches.append(Posted(1, pack(fills), batch.root[:27], posted_at_s))
    taken = 0
    for place, f in enumerate(fills):
        buy, sell = (
            drawn(chance, vault.domain, Order(who, is_buy, SERIES, WINDOW, f.price, f.qty, number,
                                              fee, 0), posted_at_s)
            for who, is_buy, number, fee in (
                (BUYER, True, f.buyer_order, f.buyer_fee),
                (SELLER, False, f.seller_order, f.seller_fee),
            )
        )  # fmt: skip
        report = check(history, evidence.by_party([buy, sell]))
        objections = [x for x in report.objections if x.place == place]
        vault.do(WATCHER, "challenge", batch.place(place), [])
        shown = (buy.argument(), sell.argument())
        is_taken = True
        try:
            vault.do(SETTLER, "answer", batch.place(place), f.qty, f.qty, *shown)
        except ContractRejected:
            is_taken = False
        assert is_taken == (not objections), (buy, sell, objections)
        taken += is_taken
    assert CASES // 10 < taken < CASES * 9 // 10, "enough of both"


# --- the file, and the command --------------------------------------------------------------------


async def asked(arguments: list[str]) -> int:
    """The command's exit status; it has an event loop of its own."""
    return await asyncio.to_thread(cli.main, arguments)


async def test_a_file_gives_back_what_was_written_and_refuses_what_was_not(
    market: World, tmp_path: Path
) -> None:
    path = tmp_path / "orders.jsonl"
    shown = signed(market, *(order(BUYER, n) for n in range(1, 6)), key=SESSION, scopes=SCOPE_TRADE)
    evidence.write(path, shown)
    assert evidence.read(path) == shown
    line = json.loads(path.read_text().splitlines()[0])
    for torn in ({"number": -1}, {"signature": "0xzz"}, {"is_buy": 1}, {"more": 1}):
        path.write_text(json.dumps(line | torn) + "\n")
        with pytest.raises(DamagedEvidence, match="line 1"):
            evidence.read(path)


async def test_the_command_needs_only_a_node_and_a_file(
    market: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await market.node.serve_rpc()
    await settle(market, 1, fill())
    await settle(market, 2, fill(price=24_151))
    path = tmp_path / "orders.jsonl"
    evidence.write(path, both(market, qty_lots=320))
    vault = ["--rpc", url, "--vault", checksum(market.chain.vault), "--orders", str(path)]
    assert await asked(["verify", "1", *vault]) == Ending.DONE
    assert "covered     yes" in capsys.readouterr().out
    assert await asked(["verify", "2", *vault]) == Ending.NOT_COVERED
    found = capsys.readouterr().out
    assert "account 1, has signed order 11 at another price" in found and "covered     NO" in found
    assert await asked(["verify", "3", *vault]) == Ending.FAILED


async def keep(world: World, database_url: str) -> None:
    """Both orders, and more, as the gateway hands them in."""
    database = await db.connect(database_url)
    kept = Signatures(
        database_url, domain_of(world), lambda account: address_of(wallet_key(account)),
        lambda: START_S * 10**9,
    )  # fmt: skip
    for account, number in ((BUYER, 11), (SELLER, 22)):
        handed = [
            Handed(number + i, number + i, PRODUCT, 0, account == BUYER, 24_150, 160, 500,
                   START_S + 3_600)
            for i in range(3)
        ]  # fmt: skip
        signature = sign(domain_of(world), wallet_key(account), account, handed)
        assert (await kept.hand_in(account, handed, signature)).reject is None
    await kept.close()
    await database.close()


async def test_the_command_exports_from_a_database_what_the_file_needs(
    market: World, tmp_path: Path, database_url: str
) -> None:
    await settle(market, 1, fill())
    await keep(market, database_url)
    path, url = tmp_path / "orders.jsonl", await market.node.serve_rpc()
    vault = ["--rpc", url, "--vault", checksum(market.chain.vault)]
    stored = ["--database", database_url, "--export", str(path)]
    assert await asked(["verify", "1", *vault, *stored]) == Ending.DONE
    assert len(path.read_text().splitlines()) == 2, "only what the batch names"
    assert await asked(["verify", "1", *vault, "--orders", str(path)]) == Ending.DONE


async def test_the_command_finds_a_nodes_own_database_whether_the_node_runs_or_not(
    market: World,
) -> None:
    await settle(market, 1, fill())
    url, vault = await market.node.serve_rpc(), Addresses(vault=market.chain.vault)
    with passable_directory() as directory:
        asks = ["verify", "1", "--rpc", url, "--dir", str(directory)]
        assert await asked(asks) == Ending.FAILED, "no node has been there"
        addresses.save(directory / CONTRACTS_FILE, market.chain.chain_id, vault)
        server = await db.serve(directory, durable=False)
        await keep(market, server.url)
        assert await asked(asks) == Ending.DONE
        await server.stop()
        assert await asked(asks) == Ending.DONE
        with pytest.raises(DatabaseUnavailable):
            db.running(directory)
