"""The vault as settlement sees it: what is deployed, what its logs say, what its calls cost."""

import json
from pathlib import Path
from typing import Any

import pytest
from web3.providers.async_base import AsyncBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from benchmarks.vault import DAY_S, HOUR_S, HOURLY, Batch, Fill, pack, record, window
from benchmarks.vault import Release as Released
from engine.records import Purse
from settlement.batch import settle_gas
from settlement.chain import (
    NOBODY,
    TIMELOCK_SECONDS,
    Chain,
    Funding,
    Officers,
    Options,
    SignedTransaction,
    address_of,
)
from settlement.errors import (
    BatchOutOfOrder,
    BondTooLow,
    ChainMismatch,
    ChainUnavailable,
    InsufficientFree,
    LeaseClosed,
    NonceUsed,
    NothingToTake,
    NotPermitted,
    ReleaseOutOfOrder,
    TransactionRefused,
    UnknownAccount,
    VaultFrozen,
    VaultOutdated,
    VaultPaused,
    WindowOpen,
    WithdrawalOutOfOrder,
)
from settlement.vault import (
    DISPUTES,
    SETTLER_BOND_MIN_USDC6,
    SILENCE_SECONDS,
    VaultLog,
    collect,
    deposit_of,
    heartbeat,
)
from tests.chain.world import DOLLAR, START_S, TOKEN, VAULT, World, wallet_key

THIS_HOUR = window(HOURLY, START_S - START_S % HOUR_S)


def fill(buyer: int, seller: int, price: int, qty: int, **changed: int) -> Fill:
    return Fill(buyer, seller, price, qty, window=THIS_HOUR)._replace(**changed)


async def logs(world: World) -> list[VaultLog]:
    return await world.chain.vault_logs(0, await world.chain.final_block())


def named(found: list[VaultLog], name: str) -> list[dict[str, Any]]:
    return [dict(log.fields) for log in found if log.name == name]


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
    found = [deposit_of(log) for log in await logs(world) if log.name == "Deposited"]
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
    state = await world.chain.vault_state(await world.chain.final_block())
    assert state.settler_bond_usdc6 == 2 * SETTLER_BOND_MIN_USDC6
    assert state.token_balance_usdc6 == 11 * DOLLAR + state.settler_bond_usdc6


async def test_logs_of_both_halves_come_in_order_and_in_any_range_of_blocks(world: World) -> None:
    await world.fund(2, 100 * DOLLAR, 10 * DOLLAR)
    batch = Batch(1, [fill(1, 2, 10_000, 100)])
    assert (await world.settle(1, batch.fills)).succeeded
    key, vault = wallet_key(1), world.chain.vault
    done = await world.transact(key, vault, DISPUTES, "reportNonDelivery", batch.place(0))
    assert done.succeeded
    found = await logs(world)
    assert [log.name for log in found if log.name != "RoleGranted"] == [
        "SettlerBondAdded", "AccountOpened", "Deposited", "AccountOpened", "Deposited",
        "Deposited", "Deposited", "Batch", "NonDelivery",
    ]  # fmt: skip
    assert named(found, "Batch")[0]["root"] == batch.root
    parts = [
        log
        for block in range(await world.chain.final_block() + 1)
        for log in await world.chain.vault_logs(block, block)
    ]
    assert parts == found


async def test_a_batch_is_locked_released_and_collected_within_the_gas_that_is_given(
    world: World,
) -> None:
    await world.fund(3, 1_000 * DOLLAR, 10 * DOLLAR)
    fills = [fill(1 + i % 2, 3, 10_000, 100 + i, buyer_fee=500, seller_fee=200) for i in range(300)]
    fills.sort()
    batch = Batch(1, fills)
    chain = world.chain
    await chain.simulate_settle(1, pack(fills))
    assert (await world.settle(1, fills)).succeeded
    assert await chain.batch_root(1) == batch.root[:27]
    assert (await chain.vault_state(await chain.final_block())).head_root == batch.root[:27]
    release = Released(1, 1, [record(i, f) for i, f in enumerate(fills)])
    call = chain.release_call(1, 1, release.accounts, release.records)
    with pytest.raises(WindowOpen):
        await chain.simulate(call)
    world.clock.now_s += DAY_S + HOUR_S
    assert (await world.tell(heartbeat(chain.vault))).succeeded  # a block of that time
    await chain.simulate(call)
    assert (await world.tell(call)).succeeded
    for wrong, error in ((1, ReleaseOutOfOrder), (2, LeaseClosed)):
        again = chain.release_call(wrong, 1, release.accounts, release.records)
        with pytest.raises(error):
            await chain.simulate(again)
    exchange, *_, seller = await chain.vault_accounts(await chain.final_block())
    sold = sum(f.divide(f.notional)[0] for f in fills)
    assert (exchange.account, seller.account) == (0, 3)
    assert (seller.earning_usdc6, seller.matured_usdc6) == (sold, 0)
    assert exchange.earning_usdc6 == sum(f.divide(f.notional)[2] for f in fills)
    with pytest.raises(NothingToTake):
        await chain.simulate(collect(chain.vault, 3))
    world.clock.now_s += 2 * DAY_S
    assert (await world.tell(heartbeat(chain.vault))).succeeded
    assert (await chain.vault_account(3)).matured_usdc6 == sold
    assert (await world.tell(collect(chain.vault, 3))).succeeded
    assert (await chain.vault_account(3)).free_usdc6 == 1_000 * DOLLAR + sold
    assert named(await logs(world), "Collected") == [{"account": 3, "amount": sold}]


async def test_refusals_are_told_apart_and_name_who_is_why(world: World) -> None:
    await world.fund(2, 100 * DOLLAR, 10 * DOLLAR)
    chain = world.chain
    with pytest.raises(InsufficientFree) as caught:
        await chain.simulate_settle(1, pack([fill(1, 2, 10_000, 100), fill(2, 1, 10_000, 10_001)]))
    assert caught.value.account == 2
    with pytest.raises(UnknownAccount) as unknown:
        await chain.simulate_settle(1, pack([fill(1, 7, 10_000, 100)]))
    assert unknown.value.account == 7
    with pytest.raises(BatchOutOfOrder):
        await chain.simulate_settle(2, pack([fill(1, 2, 10_000, 100)]))
    assert (await world.withdraw(5, 1, DOLLAR)).succeeded
    with pytest.raises(WithdrawalOutOfOrder):
        await chain.simulate_withdraw(5, 1, DOLLAR)
    with pytest.raises(NotPermitted):
        await world.call(wallet_key(1), chain.vault, VAULT, "heartbeat")
    deployer = world.node.keys.deployer
    assert (await world.transact(deployer, chain.vault, VAULT, "setPaused", True)).succeeded
    with pytest.raises(VaultPaused):
        await chain.simulate_settle(1, pack([fill(1, 2, 10_000, 100)]))
    assert (await chain.vault_state(await chain.final_block())).is_paused
    world.clock.now_s += SILENCE_SECONDS + HOUR_S
    assert (await world.transact(wallet_key(1), chain.vault, VAULT, "freeze")).succeeded
    with pytest.raises(VaultFrozen):
        await chain.simulate_settle(1, pack([fill(1, 2, 10_000, 100)]))
    assert (await chain.vault_state(await chain.final_block())).is_frozen


# --- the way there ------------------------------------------------------------------------------


async def test_a_prepared_transaction_is_mined_at_most_once_however_often_sent(
    world: World,
) -> None:
    await world.fund(2, 100 * DOLLAR)
    packed = pack([fill(1, 2, 10_000, 1)])
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
    fields: dict[str, Any] = json.loads(text)
    timelock = fields["timelock"][2:]
    for damaged in (
        text.replace(str(world.chain.chain_id), "1", 1),
        text.lower().replace(timelock.lower(), first.oracle.hex()),
        text.lower().replace(first.vault.hex(), first.oracle.hex()),
        text.lower().replace(first.vault.hex(), bytes(20).hex()),
        text[:40],
    ):
        listed.write_text(damaged, "utf-8")
        with pytest.raises(ChainMismatch):
            await second.deploy_or_load(tmp_path)
    del fields["vault_version"], fields["timelock"]  # as it was written for the first vault
    listed.write_text(json.dumps(fields), "utf-8")
    with pytest.raises(VaultOutdated, match=r"version 1.*RUNBOOK"):
        await second.deploy_or_load(tmp_path)


async def test_the_vault_is_administered_by_a_time_lock_and_the_settler_is_no_arbiter(
    world: World,
) -> None:
    keys, chain = world.node.keys, await Chain.connect(world.node.provider, world.node.keys)
    with pytest.raises(ChainMismatch, match="arbiter"):
        await chain.deploy_or_load(None, None, Officers(address_of(keys.settler), b"\1" * 20))
    arbiter, pauser = address_of(wallet_key(8)), address_of(wallet_key(9))
    assert await chain.deploy_or_load(None, None, Officers(arbiter, pauser))
    with pytest.raises(NotPermitted):
        await world.call(keys.deployer, chain.vault, VAULT, "setPaused", True)
    await world.call(wallet_key(9), chain.vault, VAULT, "setPaused", True)
    for key in keys:
        with pytest.raises(NotPermitted):
            await world.call(key, chain.vault, VAULT, "requestSettlerBond", DOLLAR)
    assert TIMELOCK_SECONDS > 7 * DAY_S, "whoever does not like a change has left before it"


async def test_without_a_bond_nothing_is_settled_and_anybody_may_add_it(world: World) -> None:
    chain = await Chain.connect(world.node.provider, world.node.keys)
    assert await chain.deploy_or_load(None, world.chain.token)
    with pytest.raises(BondTooLow):
        await chain.simulate_settle(1, pack([fill(1, 2, 1, 1)]))
    deployer, amount = world.node.keys.deployer, SETTLER_BOND_MIN_USDC6
    minted = ("mint", address_of(deployer), amount)
    assert (await world.transact(deployer, chain.token, TOKEN, *minted)).succeeded
    await chain.add_settler_bond(amount)
    with pytest.raises(UnknownAccount):  # the next thing that is missing
        await chain.simulate_settle(1, pack([fill(1, 2, 1, 1)]))


class Empty(AsyncBaseProvider):
    """A node that has no block which anybody asks for, whichever tag it is called by."""

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        result = "0x1" if method == "eth_chainId" else None
        return {"jsonrpc": "2.0", "id": 1, "result": result}


@pytest.mark.fault("lagging-rpc")
async def test_a_block_that_a_node_lacks_may_be_asked_for_again() -> None:
    chain = await Chain.connect(Empty(), NOBODY, Options(asks_node=True))
    for question in (chain.heights(), chain.block_time_s(7), chain.past_s(7), chain.market()):
        with pytest.raises(ChainUnavailable, match="has not got block"):
            await question
    assert await chain.block_hash(7) is None


class Saying(AsyncBaseProvider):
    """A node that refuses whatever is sent, in these words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        if method == "eth_chainId":
            return {"jsonrpc": "2.0", "id": 1, "result": "0x1"}
        return {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": self._words}}


@pytest.mark.parametrize(
    "words",
    ["already known", "Transaction with the same hash was already imported.", "AlreadyKnown",
     "AlreadyKnown, hash: 0x00", "Known transaction"],
)  # fmt: skip
async def test_a_transaction_that_a_node_has_already_is_sent_whatever_it_calls_it(
    words: str,
) -> None:
    chain = await Chain.connect(Saying(words), NOBODY)
    await chain.send(SignedTransaction(0, b"raw", bytes(32)))


async def test_a_transaction_of_a_type_that_a_node_does_not_know_is_not_sent() -> None:
    chain = await Chain.connect(Saying("Unknown transaction type: 2"), NOBODY)
    with pytest.raises(TransactionRefused, match="unknown transaction type"):
        await chain.send(SignedTransaction(0, b"raw", bytes(32)))


async def test_a_token_that_exists_is_settled_in_and_cannot_be_minted(world: World) -> None:
    chain = await Chain.connect(world.node.provider, world.node.keys)
    assert await chain.deploy_or_load(None, world.chain.token)
    assert chain.token == world.chain.token
    assert chain.vault != world.chain.vault
    with pytest.raises(ChainMismatch, match="only test USDC"):
        await chain.fund([Funding(wallet_key(1), DOLLAR, 0)])


# --- gas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "buyers", "ceiling"), [(100, 20, 2_400), (1_000, 100, 1_300), (2_000, 100, 1_100)]
)
async def test_a_fill_in_a_batch_costs_little_gas(
    world: World, count: int, buyers: int, ceiling: int
) -> None:
    await world.fund(buyers, 10_000 * DOLLAR)
    rows = sorted(
        fill(1 + i % buyers, 1 + i % 7, 24_150, 100, buyer_fee=500, seller_fee=200)
        for i in range(count)
    )
    await world.settle(1, [fill(1, 2, 1, 1)])
    receipt = await world.settle(2, rows)
    assert receipt.succeeded
    print(f"{count} fills of {buyers} buyers: {receipt.gas_used / count:.0f} gas per fill")
    assert receipt.gas_used <= ceiling * count
    assert receipt.gas_used <= settle_gas(pack(rows))
