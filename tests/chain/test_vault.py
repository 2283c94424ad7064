"""The vault on a real EVM: who may move what, in which order, and what it costs."""

from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from engine.records import FEE_PPM_MAX, PRICE_TICKS_MAX, Purse
from settlement.chain import (
    FILLS_PER_BATCH_MAX,
    TRANSACTION_GAS_MAX,
    Chain,
    Fill,
    Funding,
    address_of,
    fills_hash,
    pack_fills,
    settle_gas,
    unpack_fills,
)
from settlement.errors import (
    AccountExiting,
    BatchOutOfOrder,
    ChainMismatch,
    ContractRejected,
    InsufficientFree,
    NonceUsed,
    NotPermitted,
    UnknownAccount,
    WithdrawalOutOfOrder,
)
from tests.chain.world import DOLLAR, TOKEN, VAULT, World, wallet_key

EXIT_DELAY_S = 7 * 24 * 3600
CALLDATA_GAS_MAX = 40  # a byte that is not zero, by EIP-7623


def fill(
    buyer: int, seller: int, price: int, qty: int, event: int = 1, fees: tuple[int, int] = (0, 0)
) -> Fill:
    """`fees` are the buyer's and the seller's, parts per million."""
    return Fill(buyer, seller, price, qty, 3, event, *fees)


def test_a_fill_packs_into_one_word_and_back() -> None:
    fills = [
        fill(1, 2, 24_150, 1_600, 2**63, (500, 200)),
        Fill(2**32 - 1, 1, 1, 1, 65_535, 9, FEE_PPM_MAX, 0),
    ]
    assert unpack_fills(pack_fills(fills)) == fills
    assert pack_fills(fills[:1]).hex() == (
        "00000001_00000002_00005e56_00000640_00000003_8000000000000000_01f4_00c8".replace("_", "")
    )


def test_no_batch_that_the_batcher_may_build_exceeds_the_gas_of_one_transaction() -> None:
    dearest = pack_fills(fill(1 + i % 2, 1, 1, 1) for i in range(FILLS_PER_BATCH_MAX))
    assert settle_gas(dearest) < TRANSACTION_GAS_MAX
    no_zeros = len(dearest) * CALLDATA_GAS_MAX  # what a node asks for before it runs anything
    assert settle_gas(bytes([1]) * len(dearest)) > 21_000 + no_zeros


# --- deposits -----------------------------------------------------------------------------------


async def test_first_deposits_open_accounts_in_order_and_all_deposits_are_numbered(
    world: World,
) -> None:
    await world.chain.fund(
        [
            Funding(wallet_key(1), 5 * DOLLAR, 2 * DOLLAR),
            Funding(wallet_key(2), 0, 3 * DOLLAR),
        ]
    )
    await world.chain.fund([Funding(wallet_key(1), DOLLAR, 0)])
    found = await world.chain.deposits(0, await world.chain.final_block(), 10)
    assert [d.number for d in found] == [1, 2, 3, 4]
    owners = {1: address_of(wallet_key(1)), 2: address_of(wallet_key(2))}
    assert all(d.owner == owners[d.account] for d in found)
    assert sorted((d.account, d.amount_usdc6, d.purse) for d in found) == [
        (1, DOLLAR, Purse.CASH),
        (1, 2 * DOLLAR, Purse.BOND),
        (1, 5 * DOLLAR, Purse.CASH),
        (2, 3 * DOLLAR, Purse.BOND),
    ]
    assert await world.money() == [(6 * DOLLAR, 0, 2 * DOLLAR), (0, 0, 3 * DOLLAR)]
    assert await world.chain.token_balance_usdc6(world.chain.vault) == 11 * DOLLAR


async def test_deposits_are_read_from_any_number_in_any_portion(world: World) -> None:
    await world.fund(3, 10 * DOLLAR, DOLLAR)
    final = await world.chain.final_block()
    everything = await world.chain.deposits(0, final, 100)
    assert [d.number for d in everything] == [1, 2, 3, 4, 5, 6]
    assert await world.chain.deposits(6, final, 100) == []
    for after in range(7):
        for limit in (1, 2, 6):
            expected = everything[after : after + limit]
            assert await world.chain.deposits(after, final, limit) == expected
    await world.fund(1, 10 * DOLLAR)
    later = await world.chain.deposits(6, await world.chain.final_block(), 100)
    assert [d.number for d in later] == [7]


@pytest.mark.parametrize("amount", [0, DOLLAR - 1, 10**15 + 1])
async def test_a_deposit_that_the_exchange_would_refuse_is_not_let_in(
    world: World, amount: int
) -> None:
    await world.fund(1, DOLLAR)
    key = wallet_key(1)
    for _ in range(2):
        await world.transact(key, world.chain.token, TOKEN, "mint", address_of(key), 10**15)
    await world.transact(key, world.chain.token, TOKEN, "approve", world.chain.vault, 2 * 10**15)
    for function in ("deposit", "depositBond"):
        with pytest.raises(ContractRejected, match=rf"DepositOutOfRange\(amount={amount}\)"):
            await world.call(key, world.chain.vault, VAULT, function, amount)


# --- settling -----------------------------------------------------------------------------------


async def test_settling_locks_what_each_buyer_pays_and_keeps_the_hash(world: World) -> None:
    await world.fund(3, 100 * DOLLAR, 10 * DOLLAR)
    fills = [fill(1, 3, 24_150, 100, 7), fill(1, 3, 20_000, 50, 9), fill(2, 3, 10_000, 10, 8)]
    receipt = await world.settle(1, fills)
    assert receipt.succeeded
    paid = 24_150 * 100 + 20_000 * 50
    assert await world.money() == [
        (100 * DOLLAR - paid, paid, 10 * DOLLAR),
        (100 * DOLLAR - 100_000, 100_000, 10 * DOLLAR),
        (100 * DOLLAR, 0, 10 * DOLLAR),
    ]
    expected = fills_hash(pack_fills(fills))
    assert await world.chain.batch_hash(1) == expected
    assert await world.chain.batch_hash(1, receipt.block_number - 1) == bytes(32)
    state = await world.chain.vault_state(receipt.block_number)
    assert (state.head, state.head_hash) == (1, expected)
    assert state.token_balance_usdc6 == 330 * DOLLAR


async def test_fees_are_rounded_down_for_each_fill_and_not_for_their_sum(world: World) -> None:
    await world.fund(2, 100 * DOLLAR)
    fills = [fill(1, 2, 1, 1_999, event, (1_000, 0)) for event in (1, 2)]
    assert (await world.settle(1, fills)).succeeded
    assert (await world.money())[0][1] == 2 * (1_999 + 1), "3 for both together, 1 for each"


@pytest.mark.parametrize("fees", [(FEE_PPM_MAX + 1, 0), (0, FEE_PPM_MAX + 1), (65_535, 65_535)])
async def test_nobody_is_charged_above_the_limit(world: World, fees: tuple[int, int]) -> None:
    await world.fund(2, 100 * DOLLAR)
    most = fill(1, 2, 10_000, 100, 1, (FEE_PPM_MAX, FEE_PPM_MAX))
    with pytest.raises(ContractRejected, match=r"FeeTooHigh\(index=1\)"):
        await world.chain.simulate_settle(1, pack_fills([most, fill(1, 2, 10_000, 1, 2, fees)]))
    assert (await world.settle(1, [most])).succeeded
    assert (await world.money())[0][1] == 1_050_000


async def test_a_batch_settles_once_and_none_is_left_out(world: World) -> None:
    await world.fund(2, 100 * DOLLAR)
    fills = [fill(1, 2, 10_000, 10)]
    assert (await world.settle(1, fills)).succeeded
    before = await world.money()
    for wrong in (0, 1, 3):
        with pytest.raises(BatchOutOfOrder, match="expected=2"):
            await world.chain.simulate_settle(wrong, pack_fills(fills))
        assert not (await world.settle(wrong, fills)).succeeded
    assert await world.money() == before
    assert (await world.settle(2, fills)).succeeded


async def test_a_buyer_who_cannot_pay_is_named_and_nothing_moves(world: World) -> None:
    await world.fund(3, 2 * DOLLAR)
    fills = [fill(1, 3, 10_000, 100), fill(2, 3, 10_000, 100), fill(2, 3, 10_000, 101)]
    with pytest.raises(InsufficientFree) as caught:
        await world.chain.simulate_settle(1, pack_fills(fills))
    assert caught.value.account == 2
    assert caught.value.reason.arguments == {
        "account": 2,
        "free": 2 * DOLLAR,
        "needed": 2_010_000,
    }
    assert not (await world.settle(1, fills)).succeeded
    assert await world.money() == [(2 * DOLLAR, 0, 0)] * 3


@pytest.mark.parametrize(("buyer", "seller", "named"), [(0, 1, 0), (3, 1, 3), (1, 0, 0), (1, 3, 3)])
async def test_an_account_that_is_not_there_is_named(
    world: World, buyer: int, seller: int, named: int
) -> None:
    await world.fund(2, 100 * DOLLAR)
    with pytest.raises((UnknownAccount, InsufficientFree)) as caught:
        await world.chain.simulate_settle(1, pack_fills([fill(buyer, seller, 1, 1)]))
    assert caught.value.account == named


async def test_fills_that_are_no_fills_are_refused(world: World) -> None:
    await world.fund(2, 100 * DOLLAR)
    whole = pack_fills([fill(1, 2, 10_000, 1)])
    for packed in (b"", whole[:-1], whole + b"\x00"):
        with pytest.raises(ContractRejected, match=f"MalformedFills\\(length={len(packed)}\\)"):
            await world.chain.simulate_settle(1, packed)
    for price, qty in ((0, 5), (5, 0)):
        worthless = whole + pack_fills([fill(1, 2, price, qty)])
        with pytest.raises(ContractRejected, match=r"WorthlessFill\(index=1\)"):
            await world.chain.simulate_settle(1, worthless)


async def test_only_the_settler_settles_and_pays_out(world: World) -> None:
    await world.fund(2, 100 * DOLLAR)
    packed = pack_fills([fill(1, 2, 10_000, 1)])
    for key in (wallet_key(1), world.node.keys.deployer, world.node.keys.publisher):
        with pytest.raises(NotPermitted):
            await world.call(key, world.chain.vault, VAULT, "settle", 1, packed)
        with pytest.raises(NotPermitted):
            await world.call(key, world.chain.vault, VAULT, "withdraw", 1, 1, DOLLAR)


@seed(20261201)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, PRICE_TICKS_MAX),
                  st.integers(1, 100), st.integers(0, FEE_PPM_MAX), st.integers(0, FEE_PPM_MAX)),
        min_size=1, max_size=40,
    )
)  # fmt: skip
async def test_any_batch_in_any_order_does_what_its_plain_sum_says(
    rows: list[tuple[int, int, int, int, int, int]],
) -> None:
    world = await World.open()
    cash = 3_000 * DOLLAR
    await world.fund(4, cash)
    owed = dict.fromkeys(range(1, 5), 0)
    for buyer, _, price, qty, fee_ppm, _ in rows:
        owed[buyer] += price * qty + price * qty * fee_ppm // 1_000_000
    receipt = await world.settle(1, [fill(*row[:4], 1, row[4:]) for row in rows])
    assert receipt.succeeded == all(amount <= cash for amount in owed.values())
    moved = owed if receipt.succeeded else dict.fromkeys(owed, 0)
    assert await world.money() == [(cash - moved[i], moved[i], 0) for i in range(1, 5)]
    await world.node.close()


# --- withdrawals and exits ----------------------------------------------------------------------


async def test_a_withdrawal_pays_the_owner_and_nobody_else(world: World) -> None:
    await world.fund(2, 100 * DOLLAR, 10 * DOLLAR)
    assert (await world.withdraw(17, 2, 40 * DOLLAR)).succeeded
    assert await world.chain.token_balance_usdc6(address_of(wallet_key(2))) == 40 * DOLLAR
    assert await world.money() == [
        (100 * DOLLAR, 0, 10 * DOLLAR),
        (60 * DOLLAR, 0, 10 * DOLLAR),
    ]
    state = await world.chain.vault_state(await world.chain.final_block())
    assert (state.last_withdrawal, state.token_balance_usdc6) == (17, 180 * DOLLAR)


async def test_a_withdrawal_happens_once_and_only_from_free_money(world: World) -> None:
    await world.fund(2, 100 * DOLLAR, 10 * DOLLAR)
    assert (await world.settle(1, [fill(1, 2, 10_000, 9_000)])).succeeded
    assert (await world.withdraw(5, 1, DOLLAR)).succeeded
    for used in (4, 5):
        with pytest.raises(WithdrawalOutOfOrder, match="last=5"):
            await world.chain.simulate_withdraw(used, 1, DOLLAR)
    with pytest.raises(InsufficientFree, match=f"free={9 * DOLLAR}, needed={9 * DOLLAR + 1}"):
        await world.chain.simulate_withdraw(6, 1, 9 * DOLLAR + 1)
    with pytest.raises(UnknownAccount) as caught:
        await world.chain.simulate_withdraw(6, 3, DOLLAR)
    assert caught.value.account == 3
    with pytest.raises(ContractRejected, match="ZeroAmount"):
        await world.chain.simulate_withdraw(6, 1, 0)
    assert not (await world.withdraw(5, 1, DOLLAR)).succeeded
    assert await world.chain.token_balance_usdc6(address_of(wallet_key(1))) == DOLLAR


async def test_an_exit_lets_settle_what_was_traded_and_then_nothing_more(world: World) -> None:
    await world.fund(2, 100 * DOLLAR, 10 * DOLLAR)
    key, vault = wallet_key(1), world.chain.vault
    with pytest.raises(ContractRejected, match="NoExitPending"):
        await world.call(key, vault, VAULT, "finishExit")
    assert (await world.transact(key, vault, VAULT, "requestExit")).succeeded
    with pytest.raises(ContractRejected, match="ExitPending"):
        await world.call(key, vault, VAULT, "finishExit")
    with pytest.raises(ContractRejected, match="ExitPending"):
        await world.call(key, vault, VAULT, "requestExit")
    for deposit in ("deposit", "depositBond"):  # it could only be paid back
        with pytest.raises(AccountExiting):
            await world.call(key, vault, VAULT, deposit, DOLLAR)
    assert (await world.settle(1, [fill(1, 2, 10_000, 3_000)])).succeeded

    world.clock.now_s += EXIT_DELAY_S + 60
    assert (await world.settle(2, [fill(2, 1, 10_000, 100)])).succeeded  # the clock reaches blocks
    with pytest.raises(AccountExiting) as caught:
        await world.chain.simulate_settle(3, pack_fills([fill(1, 2, 10_000, 1)]))
    assert caught.value.account == 1
    assert (await world.transact(key, vault, VAULT, "finishExit")).succeeded
    assert await world.chain.token_balance_usdc6(address_of(key)) == 70 * DOLLAR
    assert (await world.money())[0] == (0, 30 * DOLLAR, 10 * DOLLAR)
    assert not (await world.transact(key, vault, VAULT, "finishExit")).succeeded


async def test_a_cancelled_exit_changes_nothing(world: World) -> None:
    await world.fund(2, 100 * DOLLAR)
    key, vault = wallet_key(1), world.chain.vault
    assert (await world.transact(key, vault, VAULT, "requestExit")).succeeded
    asked = (await world.chain.vault_accounts(await world.chain.final_block()))[0].exit_at_s
    assert asked - world.clock.now_s == pytest.approx(EXIT_DELAY_S, abs=100)
    assert (await world.transact(key, vault, VAULT, "cancelExit")).succeeded
    world.clock.now_s += 2 * EXIT_DELAY_S
    assert (await world.settle(1, [fill(1, 2, 10_000, 1)])).succeeded
    with pytest.raises(ContractRejected, match="NoExitPending"):
        await world.call(key, vault, VAULT, "finishExit")


# --- the way there ------------------------------------------------------------------------------


async def test_a_prepared_transaction_is_mined_at_most_once_however_often_sent(
    world: World,
) -> None:
    await world.fund(2, 100 * DOLLAR)
    packed = pack_fills([fill(1, 2, 10_000, 1)])
    nonce = await world.chain.settler_nonce()
    signed = await world.chain.sign(world.chain.settle_call(1, packed), nonce)
    assert await world.chain.receipt(signed.hash) is None
    for _ in range(3):
        await world.chain.send(signed)
    receipt = await world.chain.receipt(signed.hash)
    assert receipt is not None
    assert receipt.succeeded
    assert await world.chain.block_hash(receipt.block_number) == receipt.block_hash
    assert await world.chain.settler_nonce() == nonce + 1
    other = await world.chain.sign(world.chain.settle_call(2, packed), nonce)
    with pytest.raises(NonceUsed, match="too low"):
        await world.chain.send(other)
    ahead = await world.chain.sign(world.chain.settle_call(2, packed), nonce + 2)
    with pytest.raises(NonceUsed, match="too high"):
        await world.chain.send(ahead)


async def test_contracts_are_found_again_and_foreign_ones_refused(
    world: World, tmp_path: Path
) -> None:
    first = await Chain.connect(world.node.provider, world.node.keys)
    assert await first.deploy_or_load(tmp_path)
    second = await Chain.connect(world.node.provider, world.node.keys)
    assert not await second.deploy_or_load(tmp_path)
    assert (second.token, second.vault, second.oracle) == (first.token, first.vault, first.oracle)
    listed = tmp_path / "contracts.json"
    text = listed.read_text("utf-8")
    for damaged in (
        text.replace(str(world.chain.chain_id), "1", 1),
        text.lower().replace(first.vault.hex(), first.oracle.hex()),
        text.lower().replace(first.vault.hex(), bytes(20).hex()),
        text[:40],
    ):
        listed.write_text(damaged, "utf-8")
        with pytest.raises(ChainMismatch):
            await second.deploy_or_load(tmp_path)


async def test_a_token_that_exists_is_settled_in_and_cannot_be_minted(world: World) -> None:
    chain = await Chain.connect(world.node.provider, world.node.keys)
    assert await chain.deploy_or_load(None, world.chain.token)
    assert chain.token == world.chain.token
    assert chain.vault != world.chain.vault
    with pytest.raises(ChainMismatch, match="only test USDC"):
        await chain.fund([Funding(wallet_key(1), DOLLAR, 0)])


# --- gas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "buyers", "ceiling"), [(100, 20, 2_400), (1_000, 100, 1_300), (2_000, 100, 950)]
)
async def test_a_fill_in_a_batch_costs_little_gas(
    world: World, count: int, buyers: int, ceiling: int
) -> None:
    await world.fund(buyers, 10_000 * DOLLAR)
    rows = sorted(fill(1 + i % buyers, 1 + i % 7, 24_150, 100, i, (500, 200)) for i in range(count))
    await world.settle(1, [fill(1, 2, 1, 1)])
    receipt = await world.settle(2, rows)
    assert receipt.succeeded
    print(f"{count} fills of {buyers} buyers: {receipt.gas_used / count:.0f} gas per fill")
    assert receipt.gas_used <= ceiling * count
    assert receipt.gas_used <= settle_gas(pack_fills(rows))
