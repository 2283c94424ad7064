"""Signed orders in Python and in the vault: one hash, one tree, one recovery.

The other side is the contract itself, on a machine of its own: what `settlement.orders` makes it
takes as an answer, and what it refuses there is refused here.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import vault as v
from benchmarks.machine import Machine, Mark
from benchmarks.vault import DOLLAR, SETTLER, WATCHER, Fill, Vault, key, wallet
from settlement import orders
from settlement.chain import address_of
from settlement.errors import ContractRejected
from settlement.orders import Authority, Order, Signed

SESSION = key(77)
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
START_S = 1_796_000_000  # before the fill's hour
LARGEST = Order(2**32 - 1, True, 2**16 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**16 - 1,
                2**64 - 1)  # fmt: skip
FILL = Fill(1, 2, 24_150, 160, 7, v.window(v.HOURLY, v.HOUR_S * 499_000), 11, 22, 500, 200)
BUY = Order(1, True, FILL.series, FILL.window, 24_150, 160, 11, 500, 2**40)
SELL = Order(2, False, FILL.series, FILL.window, 24_150, 160, 22, 200, 2**40)
CALLED: list[tuple[Vault, Mark]] = []


@pytest.fixture
def vault() -> Vault:
    """Two funded wallets, one settled fill, and a question about it."""
    if not CALLED:
        made = Vault(Machine(START_S))
        made.fund(1, 10_000 * DOLLAR)
        made.fund(2, 10_000 * DOLLAR, 1_000 * DOLLAR)
        made.mint(WATCHER, 1_000 * DOLLAR)
        made.do(WATCHER, "challenge", made.settle([FILL]).place(0), [])
        CALLED.append((made, made.machine.mark()))
    made, mark = CALLED[0]
    made.machine.reset(mark)
    return made


def sign(vault: Vault, secret: bytes, struct: bytes) -> bytes:
    return v.sign(secret, vault.domain, struct)


def alone(vault: Vault, order: Order, secret: bytes, authority: Authority | None = None) -> Signed:
    [leaf] = orders.order_hashes([order])
    return Signed(
        order, [], sign(vault, secret, leaf), authority or Authority(address_of(secret))
    )  # fmt: skip


def answer(vault: Vault, buy: Signed, sell: Signed) -> None:
    place = v.Batch(1, [FILL]).place(0)
    vault.do(SETTLER, "answer", place, 160, 160, buy.argument(), sell.argument())


def test_hashes_are_those_of_the_abi_also_of_the_largest_order() -> None:
    many = [BUY, SELL, LARGEST, Order(0, False, 0, 0, 0, 0, 0, 0, 0)]
    assert orders.order_hashes(many) == [v.Order(*order).hash for order in many]


def test_the_domain_is_the_vaults(vault: Vault) -> None:
    assert orders.separator(v.CHAIN_ID, vault.address) == vault.domain


@pytest.mark.parametrize("count", [2, 3, 7, 64, 1_000])
def test_an_order_is_answered_by_its_path_and_the_roots_one_signature(
    vault: Vault, count: int
) -> None:
    many = [BUY._replace(number=5_000 + i) for i in range(count - 1)]
    place = count * 2 // 3
    many.insert(place, BUY)
    leaves = orders.order_hashes(many)
    signature = sign(vault, key(1), orders.signed_hash(1, leaves))
    path = orders.path_of(orders.tree(leaves), place)
    signed = Signed(BUY, path, signature, Authority(wallet(1)))
    assert orders.signer_of(signed, vault.domain) == wallet(1)
    answer(vault, signed, alone(vault, SELL, key(2)))


def test_one_order_alone_is_signed_itself_for_an_empty_path_means_that(vault: Vault) -> None:
    leaves = orders.order_hashes([BUY])
    assert orders.signed_hash(1, leaves) == leaves[0]
    as_root = sign(vault, key(1), orders.root_hash(1, leaves[0]))
    wrong = Signed(BUY, [], as_root, Authority(wallet(1)))
    assert orders.signer_of(wrong, vault.domain) != wallet(1)
    with pytest.raises(ContractRejected, match="KeyNotAllowed"):
        answer(vault, wrong, alone(vault, SELL, key(2)))
    answer(vault, alone(vault, BUY, key(1)), alone(vault, SELL, key(2)))


def authority(vault: Vault, **changed: Any) -> Authority:
    terms = Authority(
        address_of(SESSION), orders.SCOPE_TRADE, orders.markets_hash(["A|*", "B"]), 0, 2**40, 9
    )._replace(**changed)
    return terms._replace(signature=sign(vault, key(1), orders.authority_hash(wallet(1), terms)))


def test_a_session_key_may_what_the_vault_lets_it(vault: Vault) -> None:
    good = authority(vault)
    assert orders.may_trade(good, wallet(1), vault.domain)
    answer(vault, alone(vault, BUY, SESSION, good), alone(vault, SELL, key(2)))


SPOILT: list[dict[str, Any]] = [
    {"scopes": 7},
    {"nonce": 10},
    {"valid_until_s": 2**41},
    {"markets_hash": orders.markets_hash([])},
    {"signature": bytes(65)},
    {"signature": b""},
]


@pytest.mark.parametrize("change", SPOILT)
def test_a_session_key_that_the_wallet_did_not_sign_for_so_may_nothing(
    vault: Vault, change: dict[str, Any]
) -> None:
    bad = authority(vault)._replace(**change)
    assert not orders.may_trade(bad, wallet(1), vault.domain)
    with pytest.raises(ContractRejected, match="KeyNotAllowed"):
        answer(vault, alone(vault, BUY, SESSION, bad), alone(vault, SELL, key(2)))


def test_a_key_that_reads_only_may_not_trade(vault: Vault) -> None:
    reader = authority(vault, scopes=1)
    assert not orders.may_trade(reader, wallet(1), vault.domain)


@pytest.mark.parametrize("last", [0, 1, 26, 29])
def test_a_signature_is_recovered_as_the_vault_recovers_it(vault: Vault, last: int) -> None:
    good = alone(vault, BUY, key(1))
    other = good._replace(signature=good.signature[:64] + bytes([last]))
    assert orders.signer_of(other, vault.domain) == b""
    with pytest.raises(ContractRejected, match="NotSigned"):
        answer(vault, other, alone(vault, SELL, key(2)))
    if last < 2:
        assert orders.as_vault_takes(other.signature)[64] == 27 + last
    high = (N - int.from_bytes(good.signature[32:64], "big")).to_bytes(32, "big")
    flipped = good.signature[:32] + high + bytes([55 - good.signature[64]])
    assert orders.recover(bytes(32), flipped) == orders.recover(bytes(32), bytes(65)) == b""


@settings(deadline=None, max_examples=60)
@given(count=st.integers(2, 300), data=st.data())
def test_every_leaf_climbs_to_the_root_and_no_other_does(count: int, data: st.DataObject) -> None:
    leaves = orders.order_hashes([BUY._replace(number=i) for i in range(count)])
    levels = orders.tree(leaves)
    place = data.draw(st.integers(0, count - 1))
    assert levels == v.sorted_levels(leaves)
    same = [v.Order(*BUY._replace(number=i)) for i in range(count)]
    many = v.signed_root(same, key(1), b"\1" * 32)
    assert orders.path_of(levels, place) == many[place][4]
    other = Signed(BUY._replace(number=count), orders.path_of(levels, place), many[place][5],
                   Authority(wallet(1)))  # fmt: skip
    assert orders.signer_of(other, b"\1" * 32) != wallet(1)
    mine = other._replace(order=BUY._replace(number=place))
    assert orders.signer_of(mine, b"\1" * 32) == wallet(1)


def test_validity_is_not_for_recovery_to_say(vault: Vault) -> None:
    ended = authority(vault, valid_until_s=v.DAY_S)
    assert orders.may_trade(ended, wallet(1), vault.domain), "when is for the caller"
    with pytest.raises(ContractRejected, match="KeyNotAllowed"):
        answer(vault, alone(vault, BUY, SESSION, ended), alone(vault, SELL, key(2)))
