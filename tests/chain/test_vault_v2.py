"""The second vault on an EVM: money, batches, releases, and who may do what to them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from eth_utils.crypto import keccak

from benchmarks.machine import Machine, Mark
from benchmarks.vault import (
    ADMIN,
    ARBITER,
    DAILY,
    DAY_S,
    DISPUTES,
    DOLLAR,
    HOUR_S,
    HOURLY,
    PAUSER,
    SETTLER,
    SETTLER_BOND_MIN,
    VAULT,
    WATCHER,
    WEEKLY,
    Batch,
    Fill,
    Record,
    Release,
    Vault,
    domain,
    key,
    pack,
    record,
    sign,
    wallet,
    window,
)
from settlement.abi import Interface
from settlement.errors import (
    AccountExiting,
    BatchOutOfOrder,
    ContractRejected,
    InsufficientFree,
    NotPermitted,
    UnknownAccount,
    WithdrawalOutOfOrder,
)

START_S = 1_796_000_400  # an hour begins
THIS_HOUR = window(HOURLY, START_S - START_S % HOUR_S)


@cache
def _built(token: str) -> tuple[Vault, Mark]:
    vault = Vault(Machine(START_S), token)
    vault.fund(1, 1_000 * DOLLAR, 100 * DOLLAR)
    vault.fund(2, 1_000 * DOLLAR, 100 * DOLLAR)
    vault.fund(3, 1_000 * DOLLAR, 100 * DOLLAR)
    vault.mint(WATCHER, 1_000 * DOLLAR)
    return vault, vault.machine.mark()


def fresh(token: str = "TestUSDC") -> Vault:
    vault, mark = _built(token)
    vault.machine.reset(mark)
    vault.head = vault.releases = 0
    return vault


@pytest.fixture
def vault() -> Vault:
    return fresh()


def hourly(buyer: int = 1, seller: int = 2, **changed: Any) -> Fill:
    fill = Fill(buyer, seller, 24_150, 160, window=THIS_HOUR, buyer_fee=500, seller_fee=200)
    return fill._replace(**changed)


def solvent(vault: Vault, stakes: int = 0, owed: int = 0) -> None:
    """Every token is somebody's."""
    names = ("free", "locked", "bond", "matured", "pending")
    held = sum(account[name] for account in vault.accounts() for name in names)
    assert vault.tokens_of(vault.address) == held + vault.settler_bond() + stakes + owed


def refused(what: str, *arguments: Any, error: type[Exception] = ContractRejected) -> Any:
    """A context in which the vault refuses with this error and these arguments."""
    said = ", ".join(rf"\w+={argument}" for argument in arguments)
    return pytest.raises(error, match=rf"^{what}\({said}")


# --- money in -------------------------------------------------------------------------------


def test_deposits_are_credited_and_numbered_and_open_accounts_in_order(vault: Vault) -> None:
    vault.mint(wallet(4), 50 * DOLLAR)
    done = vault.do(wallet(4), "deposit", 20 * DOLLAR, False)
    assert vault.logged(done.logs, "AccountOpened") == [
        {"account": 4, "owner": "0x" + wallet(4).hex()}
    ]
    assert vault.logged(done.logs, "Deposited")[0]["number"] == 7
    vault.do(wallet(4), "deposit", 30 * DOLLAR, True)
    account = vault.accounts()[4]
    assert (account["free"], account["bond"]) == (20 * DOLLAR, 30 * DOLLAR)
    solvent(vault)


@pytest.mark.parametrize("amount", [0, DOLLAR - 1, 10**15 + 1])
def test_a_deposit_that_the_exchange_would_refuse_is_not_let_in(vault: Vault, amount: int) -> None:
    for _ in range(2):
        vault.mint(wallet(1), 10**15)
    for is_bond in (False, True):
        with refused("DepositOutOfRange", amount):
            vault.do(wallet(1), "deposit", amount, is_bond)


@pytest.mark.fault("fee-on-transfer")
def test_what_arrives_is_credited_when_the_token_takes_a_fee() -> None:
    vault = fresh("TestToken")
    vault.mint(wallet(1), 100 * DOLLAR)
    vault.do_token(ADMIN, "setFee", 20_000)
    free = vault.accounts()[1]["free"]
    vault.do(wallet(1), "deposit", 100 * DOLLAR, False)
    assert vault.accounts()[1]["free"] == free + 98 * DOLLAR
    solvent(vault)


@pytest.mark.fault("paused-token", "false-returning-token")
@pytest.mark.parametrize("switch", [("setPaused", True), ("setAnswersFalse", True)])
def test_a_token_that_does_not_move_moves_nothing_in_the_vault(switch: tuple[str, bool]) -> None:
    vault = fresh("TestToken")
    vault.mint(wallet(1), 100 * DOLLAR)
    vault.do_token(ADMIN, *switch)
    before = vault.accounts()
    with pytest.raises(ContractRejected):
        vault.do(wallet(1), "deposit", 100 * DOLLAR, False)
    with refused("TransferRefused", 1):
        vault.do(SETTLER, "withdraw", 1, 1, DOLLAR)
    assert vault.accounts() == before
    solvent(vault)


def permit(vault: Vault, number: int, amount: int, deadline: int) -> tuple[int, bytes, bytes]:
    kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    words = [keccak(kind), keccak(b"compex Test USDC"), keccak(b"1")]
    separator = keccak(
        b"".join(words) + (636_867).to_bytes(32, "big") + vault.token.rjust(32, b"\0")
    )
    permitted = keccak(
        b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
    )
    struct = keccak(
        permitted
        + wallet(number).rjust(32, b"\0")
        + vault.address.rjust(32, b"\0")
        + b"".join(value.to_bytes(32, "big") for value in (amount, 0, deadline))
    )
    raw = sign(key(number), separator, struct)
    return raw[64], raw[:32], raw[32:64]


def test_a_permit_stands_for_an_approval_even_when_somebody_was_quicker_with_it(
    vault: Vault,
) -> None:
    amount, deadline = 10 * DOLLAR, START_S + DAY_S
    vault.do_token(wallet(4), "mint", wallet(4), 2 * amount)
    v, r, s = permit(vault, 4, amount, deadline)
    with pytest.raises(ContractRejected):
        vault.do(wallet(4), "deposit", amount, False)
    mark = vault.machine.mark()
    vault.do(wallet(4), "depositWithPermit", amount, False, deadline, v, r, s)
    assert vault.accounts()[4]["free"] == amount
    vault.machine.reset(mark)
    vault.do_token(WATCHER, "permit", wallet(4), vault.address, amount, deadline, v, r, s)
    vault.do(wallet(4), "depositWithPermit", amount, False, deadline, v, r, s)
    assert vault.accounts()[4]["free"] == amount


def authorization(vault: Vault, number: int, amount: int, nonce: bytes) -> bytes:
    (_, name, version, chain_id, address, *_) = vault.token_interface.decode(
        "eip712Domain",
        vault.machine.look(ADMIN, vault.token, vault.token_interface.encode("eip712Domain")),
    )
    assert (version, address) == ("1", "0x" + vault.token.hex())
    kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    separator = keccak(
        keccak(kind)
        + keccak(name.encode())
        + keccak(b"1")
        + chain_id.to_bytes(32, "big")
        + vault.token.rjust(32, b"\0")
    )
    struct = keccak(
        keccak(
            b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
            b"uint256 validBefore,bytes32 nonce)"
        )
        + wallet(number).rjust(32, b"\0")
        + vault.address.rjust(32, b"\0")
        + b"".join(value.to_bytes(32, "big") for value in (amount, 0, 2**40))
        + nonce
    )
    return sign(key(number), separator, struct)


def test_a_signed_transfer_may_be_sent_by_anybody_but_goes_where_its_signer_said() -> None:
    vault = fresh("TestToken")
    vault.do_token(wallet(4), "mint", wallet(4), 20 * DOLLAR)
    for last, purse in ((0, "free"), (1, "bond")):
        nonce = bytes([7] * 31 + [last])
        signature = authorization(vault, 4, 10 * DOLLAR, nonce)
        call = (wallet(4), 10 * DOLLAR, 0, 2**40, nonce, signature)
        other = bytes([8] * 31 + [1 - last])
        with pytest.raises(ContractRejected):
            vault.do(WATCHER, "depositWithAuthorization", *call[:4], other, signature)
        vault.do(WATCHER, "depositWithAuthorization", *call)
        assert vault.accounts()[4][purse] == 10 * DOLLAR
        with pytest.raises(ContractRejected):
            vault.do(WATCHER, "depositWithAuthorization", *call)
    solvent(vault)


def test_a_token_that_calls_back_finds_the_door_shut() -> None:
    vault = fresh("TestToken")
    vault.mint(wallet(1), 100 * DOLLAR)
    for inner in (VAULT.encode("deposit", DOLLAR, False), VAULT.encode("takeOwed")):
        vault.do_token(ADMIN, "setCallback", vault.address, inner)
        with refused("ReentrancyGuardReentrantCall"):
            vault.do(wallet(1), "deposit", 100 * DOLLAR, False)
    solvent(vault)


@pytest.mark.fault("overflow")
def test_the_vault_takes_no_more_than_the_exchange_can_count() -> None:
    vault = fresh("TestToken")
    vault.mint(wallet(1), 100 * DOLLAR)
    vault.do_token(ADMIN, "mint", vault.address, 2**60)
    with refused("VaultFull"):
        vault.do(wallet(1), "deposit", 100 * DOLLAR, False)


def test_who_has_no_account_has_nothing_to_leave_with(vault: Vault) -> None:
    for function in ("requestExit", "cancelExit", "finishExit", "requestBond", "finishBond"):
        with refused("UnknownAccount", 0):
            vault.do(WATCHER, function)


def test_accounts_are_read_in_portions(vault: Vault) -> None:
    (everybody,) = vault.ask("accountsFrom", 0, 100)
    assert len(everybody) == 4
    assert vault.ask("accountsFrom", 1, 2) == (everybody[1:3],)
    assert vault.ask("accountsFrom", 3, 2**24 - 1) == (everybody[3:],)
    assert vault.ask("accountsFrom", 4, 1) == ((),)


# --- settling -------------------------------------------------------------------------------


def test_settling_locks_price_and_fee_and_keeps_the_root(vault: Vault) -> None:
    fills = [hourly(), hourly(price=20_000, qty=50), hourly(buyer=3, seller=1)]
    done = vault.do(SETTLER, "settle", 1, pack(fills))
    batch = Batch(1, fills)
    (event,) = vault.logged(done.logs, "Batch")
    total = sum(fill.cost for fill in fills)
    assert event == {"id": 1, "root": batch.root, "fills": 3, "total": total}
    assert vault.ask("batch", 1) == (batch.root[:27], vault.machine.now_s)
    accounts = vault.accounts()
    assert accounts[1]["locked"] == fills[0].cost + fills[1].cost
    assert accounts[3]["locked"] == fills[2].cost
    assert accounts[3]["free"] == 1_000 * DOLLAR - fills[2].cost
    solvent(vault)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 33])
def test_the_root_is_the_documented_one_for_any_number_of_fills(vault: Vault, count: int) -> None:
    batch = vault.settle([hourly(qty=1 + i, buyer=1 + i % 3, seller=2) for i in range(count)])
    assert vault.ask("batch", 1)[0] == batch.root[:27]
    for index in range(count):  # and each path leads to it
        with refused("NotTheBuyer"):
            vault.do(WATCHER, "stop", batch.place(index))


@pytest.mark.fault("duplicate-account", "one-unit-rounding")
def test_a_buyer_in_many_runs_pays_the_same_and_fees_round_down_for_each_fill(
    vault: Vault,
) -> None:
    one = Fill(1, 2, 1, 1_999, window=THIS_HOUR, buyer_fee=1_000)
    vault.settle([one, one._replace(buyer=3), one])
    assert [account["locked"] for account in vault.accounts()] == [0, 2_000 * 2, 0, 2_000]


@pytest.mark.fault("insolvent-account", "overflow")
@pytest.mark.parametrize(
    ("fills", "error"),
    [
        ([hourly(), hourly(buyer=3, price=2**24 - 1)], ("InsufficientFree", 3)),
        ([hourly(), hourly(buyer=4)], ("UnknownAccount", 4)),
        ([hourly(), hourly(buyer=0)], ("UnknownAccount", 0)),
        ([hourly(), hourly(seller=4)], ("UnknownAccount", 4)),
        ([hourly(), hourly(seller=0)], ("UnknownAccount", 0)),
        ([hourly(buyer=0), hourly()], ("UnknownAccount", 0)),
        ([hourly(buyer=2**24 - 1)], ("UnknownAccount", 2**24 - 1)),
        ([hourly(price=2**24 - 1, qty=2**32 - 1, buyer_fee=65_535)], ("InsufficientFree", 1)),
    ],
)
def test_one_bad_fill_is_named_and_the_batch_without_it_settles(
    vault: Vault, fills: list[Fill], error: tuple[str, int]
) -> None:
    before = vault.accounts()
    with refused(*error):
        vault.settle(fills)
    assert vault.accounts() == before
    if fills[0] == hourly():
        vault.settle(fills[:1])


def test_batches_are_settled_once_each_in_order_and_only_by_the_settler(vault: Vault) -> None:
    vault.settle([hourly()])
    for wrong in (0, 1, 3):
        with refused("BatchOutOfOrder", 2, wrong, error=BatchOutOfOrder):
            vault.do(SETTLER, "settle", wrong, pack([hourly()]))
    for other in (wallet(1), ADMIN, ARBITER, PAUSER):
        with pytest.raises(NotPermitted):
            vault.do(other, "settle", 2, pack([hourly()]))
    for packed in (b"", b"\1" * 29, b"\1" * 31):
        with refused("MalformedFills", len(packed)):
            vault.do(SETTLER, "settle", 2, packed)


def test_without_its_bond_the_settler_settles_nothing(vault: Vault) -> None:
    vault.do(ADMIN, "requestSettlerBond", DOLLAR)
    with refused("TooEarly"):
        vault.do(ADMIN, "finishSettlerBond", ADMIN)
    vault.machine.wait(14 * DAY_S)
    vault.do(ADMIN, "finishSettlerBond", ADMIN)
    with refused("BondTooLow", SETTLER_BOND_MIN - DOLLAR, SETTLER_BOND_MIN):
        vault.settle([hourly()])
    with refused("NothingToTake"):
        vault.do(ADMIN, "finishSettlerBond", ADMIN)
    solvent(vault)


# --- money out ------------------------------------------------------------------------------


def test_a_withdrawal_pays_the_owner_once_and_only_free_money(vault: Vault) -> None:
    vault.settle([hourly(price=50_000, qty=18_000, buyer_fee=0)])
    vault.do(SETTLER, "withdraw", 5, 1, 40 * DOLLAR)
    assert vault.tokens_of(wallet(1)) == 40 * DOLLAR
    for used in (4, 5):
        with refused("WithdrawalOutOfOrder", 5, used, error=WithdrawalOutOfOrder):
            vault.do(SETTLER, "withdraw", used, 1, DOLLAR)
    with refused("InsufficientFree", 1, 60 * DOLLAR, 60 * DOLLAR + 1, error=InsufficientFree):
        vault.do(SETTLER, "withdraw", 6, 1, 60 * DOLLAR + 1)
    with refused("UnknownAccount", 9, error=UnknownAccount):
        vault.do(SETTLER, "withdraw", 6, 9, DOLLAR)
    with refused("ZeroAmount"):
        vault.do(SETTLER, "withdraw", 6, 1, 0)
    with pytest.raises(NotPermitted):
        vault.do(wallet(1), "withdraw", 6, 1, DOLLAR)
    solvent(vault)


@pytest.mark.fault("blacklisted-account")
def test_an_owner_whom_the_token_refuses_stops_nobody_else() -> None:
    vault = fresh("TestToken")
    vault.do_token(ADMIN, "setBlacklisted", wallet(1), True)
    with refused("TransferRefused", 1):
        vault.do(SETTLER, "withdraw", 1, 1, DOLLAR)
    vault.do(SETTLER, "withdraw", 2, 2, DOLLAR)
    vault.settle([hourly()])
    vault.do(wallet(1), "requestExit")
    vault.machine.wait(7 * DAY_S)
    with pytest.raises(ContractRejected, match="Blacklisted"):
        vault.do(wallet(1), "finishExit")
    vault.do_token(ADMIN, "setBlacklisted", wallet(1), False)
    vault.do(wallet(1), "finishExit")
    solvent(vault)


@pytest.mark.fault("exited-account")
def test_an_exit_leaves_time_for_old_trades_and_then_nothing_is_locked(vault: Vault) -> None:
    with refused("NoExitPending"):
        vault.do(wallet(1), "finishExit")
    vault.do(wallet(1), "requestExit")
    for function in ("requestExit", "finishExit"):
        with refused("ExitPending"):
            vault.do(wallet(1), function)
    vault.mint(wallet(1), DOLLAR)
    with refused("AccountExiting", 1, error=AccountExiting):
        vault.do(wallet(1), "deposit", DOLLAR, False)
    vault.settle([hourly()])
    vault.machine.wait(7 * DAY_S)
    with refused("AccountExiting", 1, error=AccountExiting):
        vault.settle([hourly()])
    vault.settle([hourly(buyer=3)])
    vault.do(wallet(1), "finishExit")
    assert vault.tokens_of(wallet(1)) == 1_001 * DOLLAR - hourly().cost
    assert vault.accounts()[1]["locked"] == hourly().cost
    assert vault.accounts()[1]["exit_at"] == 0
    solvent(vault)


def test_a_cancelled_exit_changes_nothing(vault: Vault) -> None:
    with refused("NoExitPending"):
        vault.do(wallet(1), "cancelExit")
    before = vault.accounts()
    vault.do(wallet(1), "requestExit")
    vault.do(wallet(1), "cancelExit")
    assert vault.accounts() == before
    vault.machine.wait(8 * DAY_S)
    vault.settle([hourly()])


@pytest.mark.fault("paused-vault")
def test_a_pause_stops_deposits_settling_and_releasing_but_no_way_out(vault: Vault) -> None:
    batch = vault.settle([hourly()])
    vault.do(wallet(1), "requestExit")
    with pytest.raises(NotPermitted):
        vault.do(SETTLER, "setPaused", True)
    vault.do(PAUSER, "setPaused", True)
    for call in (
        lambda: vault.settle([hourly()]),
        lambda: vault.do(wallet(2), "deposit", DOLLAR, False),
        lambda: vault.release(batch, [record(0, hourly())]),
    ):
        with refused("IsPaused"):
            call()
    vault.do(SETTLER, "withdraw", 1, 2, DOLLAR)
    vault.do(wallet(1), "stop", batch.place(0))
    vault.machine.wait(14 * DAY_S)
    vault.do(wallet(1), "finishExit")
    vault.do(WATCHER, "claim", batch.place(0))
    vault.do(WATCHER, "freeze")
    vault.do(wallet(2), "escape")
    solvent(vault)


def test_a_bond_stays_until_all_it_may_stand_behind_is_over(vault: Vault) -> None:
    with refused("NothingToTake"):
        vault.do(wallet(2), "finishBond")
    vault.do(wallet(2), "requestBond")
    vault.machine.wait(100 * DAY_S - 10)
    with refused("TooEarly"):
        vault.do(wallet(2), "finishBond")
    vault.machine.wait(10)
    vault.do(wallet(2), "finishBond")
    assert vault.tokens_of(wallet(2)) == 100 * DOLLAR
    solvent(vault)


def test_a_silent_exchange_is_frozen_for_good_and_everybody_leaves(vault: Vault) -> None:
    spot = Fill(1, 2, 10_000, 1_000, window=window(0, START_S - START_S % HOUR_S))
    week = hourly(window=window(WEEKLY, START_S - START_S % HOUR_S))
    batch = vault.settle([hourly(), week, spot])
    with refused("NotFrozen"):
        vault.do(wallet(1), "escape")
    vault.machine.wait(13 * DAY_S)
    vault.do(SETTLER, "heartbeat")
    vault.machine.wait(14 * DAY_S - 1)
    with refused("TooEarly"):
        vault.do(wallet(1), "freeze")
    vault.machine.wait(1)
    vault.do(wallet(1), "freeze")
    calls: list[tuple[bytes, tuple[Any, ...]]] = [
        (SETTLER, ("settle", 2, pack([hourly()]))),
        (SETTLER, ("withdraw", 1, 1, DOLLAR)),
        (SETTLER, ("heartbeat",)),
        (SETTLER, ("release", *Release(1, 1, [record(0, hourly())]).call)),
        (wallet(1), ("deposit", DOLLAR, False)),
        (wallet(1), ("freeze",)),
    ]
    for sender, call in calls:
        with refused("IsFrozen"):
            vault.do(sender, *call)
    for index in range(3):
        vault.do(WATCHER, "claim", batch.place(index))
        with refused("LeaseClosed", 1, index):
            vault.do(WATCHER, "claim", batch.place(index))
    for number in (1, 2, 3):
        vault.do(wallet(number), "escape")
    accounts = vault.accounts()
    assert all(account["free"] == account["locked"] == 0 for account in accounts)
    solvent(vault)


def test_a_month_that_had_not_ended_when_the_vault_froze_is_paid_as_far_as_it_went(
    vault: Vault,
) -> None:
    start_s = START_S - START_S % HOUR_S
    fill = hourly(window=window(7, start_s))  # 31 days
    batch = vault.settle([fill])
    vault.machine.wait(14 * DAY_S)
    vault.do(WATCHER, "freeze")
    frozen_s = vault.machine.now_s
    vault.machine.wait(2 * DAY_S)
    vault.do(WATCHER, "claim", batch.place(0))
    to_seller, to_buyer, fees = fill.divide(fill.due(frozen_s))
    accounts = vault.accounts()
    assert accounts[2]["free"] == 1_000 * DOLLAR + to_seller
    assert accounts[1]["free"] == 1_000 * DOLLAR - fill.cost + to_buyer
    assert accounts[0]["pending"] == fees
    solvent(vault)


# --- releases -------------------------------------------------------------------------------


def delivered(vault: Vault, fills: list[Fill]) -> Batch:
    """A batch of this hour's fills, on the morning after the next day began."""
    batch = vault.settle(fills)
    vault.machine.wait(DAY_S + HOUR_S)
    return batch


def test_a_release_pays_sellers_fees_and_refunds_and_matures_two_days_on(vault: Vault) -> None:
    fills = [hourly(), hourly(seller=3), hourly(buyer=3, qty=77)]
    batch = vault.settle(fills)
    vault.do(wallet(3), "reportNonDelivery", batch.place(2))
    vault.machine.wait(DAY_S + HOUR_S)
    paid = [fills[0].notional, fills[1].notional, fills[2].notional // 3]
    vault.release(batch, [record(i, f, paid[i]) for i, f in enumerate(fills)])
    parts = [f.divide(p) for f, p in zip(fills, paid, strict=True)]
    accounts = vault.accounts()
    assert [a["pending"] for a in accounts] == [
        sum(part[2] for part in parts), 0, parts[0][0] + parts[2][0], parts[1][0] + parts[2][1],
    ]  # fmt: skip
    assert all(account["locked"] == 0 for account in accounts)
    with refused("NothingToTake"):
        vault.do(WATCHER, "collect", 2)
    epoch_ends = (vault.machine.now_s // DAY_S + 2) * DAY_S
    vault.machine.wait(epoch_ends - vault.machine.now_s - 1)
    with refused("NothingToTake"):
        vault.do(WATCHER, "collect", 2)
    vault.machine.wait(1)
    vault.do(WATCHER, "collect", 2)
    assert vault.accounts()[2]["free"] == 1_000 * DOLLAR + parts[0][0] + parts[2][0]
    vault.do(ADMIN, "takeFees", ADMIN)
    assert vault.tokens_of(ADMIN) == sum(part[2] for part in parts)
    for call in (lambda: vault.do(ADMIN, "takeFees", ADMIN), lambda: vault.do(ADMIN, "collect", 0)):
        with refused("NothingToTake"):
            call()
    with pytest.raises(NotPermitted):
        vault.do(SETTLER, "takeFees", SETTLER)
    solvent(vault)


def test_earnings_of_following_days_mature_one_after_the_other(vault: Vault) -> None:
    batch = vault.settle([hourly(), hourly(qty=50), hourly(qty=20)])
    vault.machine.wait(DAY_S + HOUR_S)
    credited = [f.divide(f.notional)[0] for f in batch.fills]
    for index in range(3):
        vault.release(batch, [record(index, batch.fills[index])])
        account = vault.accounts()[2]
        assert account["matured"] == sum(credited[: max(0, index - 1)])
        assert account["matured"] + account["pending"] == sum(credited[: index + 1])
        vault.machine.wait(DAY_S)
    vault.machine.wait(2 * DAY_S)
    assert vault.accounts()[2]["matured"] == sum(credited)


@pytest.mark.fault("release-and-claim")
def test_a_lease_is_released_once_and_no_more_than_was_locked(vault: Vault) -> None:
    fills = [hourly(), hourly(), hourly(buyer=3)]
    batch = vault.settle(fills)
    whole = [record(i, f) for i, f in enumerate(fills)]
    with refused("WindowOpen"):
        vault.release(batch, whole)
    vault.machine.wait(DAY_S)
    with refused("UnknownBatch", 2):
        vault.do(SETTLER, "release", *Release(1, 2, whole).call)
    for wrong in (0, 2):
        with refused("ReleaseOutOfOrder", 1, wrong):
            vault.do(SETTLER, "release", *Release(wrong, 1, whole).call)
    with refused("LeaseClosed", 1, 0):
        vault.release(batch, [whole[0], whole[1], whole[0]])
    with refused("InsufficientLocked", 3, fills[2].cost, fills[2].cost + 1):
        vault.release(batch, [whole[2]._replace(cost=fills[2].cost + 1)])
    with pytest.raises(NotPermitted):
        vault.do(wallet(2), "release", *Release(1, 1, whole).call)
    vault.release(batch, [whole[1], whole[0]])
    with refused("LeaseClosed", 1, 1):
        vault.release(batch, whole[1:])
    vault.release(batch, whole[2:])
    vault.machine.wait(30 * DAY_S)
    with refused("LeaseClosed", 1, 0):  # release and claim
        vault.do(wallet(2), "claim", batch.place(0))
    solvent(vault)


def test_releases_that_are_no_releases_are_refused(vault: Vault) -> None:
    batch = delivered(vault, [hourly()])
    good = Release(1, 1, [record(0, hourly())])
    for accounts in (good.accounts[:-1], bytes(3 * 257)):
        with refused("MalformedAccounts", len(accounts)):
            vault.do(SETTLER, "release", 1, 1, accounts, good.records)
    for records in (b"", good.records[:-1]):
        with refused("MalformedRecords", len(records)):
            vault.do(SETTLER, "release", 1, 1, good.accounts, records)
    with refused("UnknownAccount", 0):  # a place that is not in the list
        vault.do(SETTLER, "release", 1, 1, good.accounts[:3], good.records)
    for account in (0, 4):
        listed = good.accounts + account.to_bytes(3, "big")
        with refused("UnknownAccount", account):
            vault.do(SETTLER, "release", 1, 1, listed, good.records)
    vault.do(SETTLER, "release", *good.call)
    assert vault.ask("lease", batch.number, 0)[0]


def lawful(vault: Vault, batch: Batch, index: int, paid: int) -> None:
    release = vault.release(batch, [record(index, batch.fills[index], paid)])
    with refused("NothingWrong"):
        vault.do(WATCHER, "undoRelease", release.proof(0), batch.place(index))


def undone(vault: Vault, batch: Batch, false: Record, index: int | None = None) -> None:
    """The record is taken for false, and everything is as before but for the penalty."""
    before, bond = vault.accounts(), vault.settler_bond()
    release = vault.release(batch, [false])
    at = batch.place(false.lease if index is None else index)
    mark = vault.machine.mark()
    for days in (1, 2):
        vault.machine.wait(days * DAY_S - vault.machine.now_s % DAY_S)
        if days == 2:
            with refused("WindowOver"):
                vault.do(WATCHER, "undoRelease", release.proof(0), at)
        vault.machine.reset(mark)
    vault.do(WATCHER, "undoRelease", release.proof(0), at)
    with refused("AlreadyAsked"):
        vault.do(WATCHER, "undoRelease", release.proof(0), at)
    assert bond - vault.settler_bond() == 500 * DOLLAR
    after = vault.accounts()
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        part = 125 * DOLLAR * [false.buyer, false.seller].count(number)
        assert new == {**old, "free": old["free"] + part}
    assert not vault.ask("lease", batch.number, false.lease)[0]
    solvent(vault, owed=250 * DOLLAR)
    vault.do(WATCHER, "takeOwed")
    solvent(vault)


WRONG: list[tuple[str, Callable[[Record], Record]]] = [
    ("another buyer", lambda r: r._replace(buyer=3)),
    ("another seller", lambda r: r._replace(seller=3)),
    ("one unit too much of the locked money", lambda r: r._replace(cost=r.cost + 1)),
    ("one unit too little of it", lambda r: r._replace(cost=r.cost - 1)),
    ("one unit short for the seller", lambda r: r._replace(to_seller=r.to_seller - 1)),
    ("a unit of the fees for the seller", lambda r: r._replace(to_seller=r.to_seller + 1)),
    ("a unit back that nobody reported", lambda r: r._replace(
        to_seller=r.to_seller - 1, to_buyer=1)),
    ("all of it back", lambda r: r._replace(to_seller=0, to_buyer=r.cost)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), WRONG, ids=[name for name, _ in WRONG])
def test_a_record_that_contradicts_its_lease_is_undone_and_the_settler_pays(
    vault: Vault, name: str, change: Callable[[Record], Record]
) -> None:
    # Two of each, so that what was locked suffices for a record that takes too much.
    fills = [hourly(), hourly(), hourly(buyer=3), hourly(buyer=3)]
    batch = delivered(vault, fills)
    undone(vault, batch, change(record(1, fills[1])))
    lawful(vault, batch, 1, fills[1].notional)


def test_a_record_of_a_lease_that_there_is_not_is_undone_by_the_last_lease(vault: Vault) -> None:
    batch = delivered(vault, [hourly()] * 5)
    false = record(5, hourly())
    release = vault.release(batch, [false])
    for index in (0, 3):
        with refused("WrongProof", 1, index):
            vault.do(WATCHER, "undoRelease", release.proof(0), batch.place(index))
    vault.do(WATCHER, "undoRelease", release.proof(0), batch.place(4))
    assert vault.accounts()[1]["locked"] == 5 * hourly().cost
    solvent(vault, owed=250 * DOLLAR)


def test_a_record_is_undone_the_day_after_too_and_by_its_own_batch_alone(vault: Vault) -> None:
    first = vault.settle([hourly(), hourly(), hourly()])
    second = delivered(vault, [hourly()])
    true = record(1, hourly())
    release = vault.release(first, [true._replace(to_seller=true.to_seller - 1)])
    vault.machine.wait(DAY_S - vault.machine.now_s % DAY_S)
    vault.release(second, [record(0, hourly())])  # and something else is credited meanwhile
    for place in (second.place(0), first.place(0), first.place(2)):
        with refused("WrongProof"):
            vault.do(WATCHER, "undoRelease", release.proof(0), place)
    vault.do(WATCHER, "undoRelease", release.proof(0), first.place(1))
    accounts = vault.accounts()
    assert accounts[1]["locked"] == 3 * hourly().cost
    assert accounts[2]["pending"] == hourly().divide(hourly().notional)[0]
    solvent(vault, owed=250 * DOLLAR)


def test_one_record_of_many_is_shown_by_its_chunk(vault: Vault) -> None:
    fills = [hourly(qty=1 + i) for i in range(100)]
    batch = delivered(vault, fills)
    records = [record(i, f) for i, f in enumerate(fills)]
    records[70] = records[70]._replace(to_seller=records[70].to_seller - 1)
    release = vault.release(batch, records)
    good = release.proof(70)
    for wrong in (
        (2, *good[1:]),
        (1, 2, *good[2:]),
        (*good[:2], good[2][:-1] + b"\3", *good[3:]),
        (*good[:3], good[3][:-1] + b"\3", *good[4:]),
        (*good[:4], good[4] + 1, *good[5:]),
        (*good[:4], good[4] + 4, *good[5:]),
        (*good[:5], good[5][:-1], good[6]),
        (*good[:6], 32),
    ):
        with refused("WrongProof"):
            vault.do(WATCHER, "undoRelease", wrong, batch.place(70))
    with refused("NothingWrong"):
        vault.do(WATCHER, "undoRelease", release.proof(69), batch.place(69))
    vault.do(WATCHER, "undoRelease", good, batch.place(70))
    assert vault.accounts()[1]["locked"] == fills[70].cost


def test_what_a_buyer_has_said_bounds_what_is_paid(vault: Vault) -> None:
    start_s = START_S - START_S % HOUR_S
    fill = hourly(window=window(DAILY, start_s))
    spot = hourly(window=window(0, start_s), qty=2_000)  # 20 hours of a single GPU
    batch = vault.settle([fill, fill, fill, fill, spot, spot, spot])
    vault.machine.wait(6 * HOUR_S)
    for index in (1, 4):
        vault.do(wallet(1), "stop", batch.place(index))
        with refused("AlreadyAsked"):
            vault.do(wallet(1), "stop", batch.place(index))
    for index in (2, 6):
        vault.do(wallet(1), "reportNonDelivery", batch.place(index))
        with refused("AlreadyAsked"):
            vault.do(wallet(1), "reportNonDelivery", batch.place(index))
    stopped_s = vault.machine.now_s
    vault.machine.wait(DAY_S)
    part = fill.due(stopped_s)
    undone(vault, batch, record(1, fill))  # paid in full though stopped
    vault.releases = 1
    undone(vault, batch, record(1, fill, part - 1))  # one unit less than is due
    vault.releases = 2
    lawful(vault, batch, 1, part)
    lawful(vault, batch, 2, part // 2)  # metered
    lawful(vault, batch, 4, spot.notional // 7)
    lawful(vault, batch, 5, spot.notional)
    lawful(vault, batch, 6, 0)
    lawful(vault, batch, 0, fill.notional)


def test_a_lease_that_has_not_ended_is_not_released(vault: Vault) -> None:
    fill = hourly(window=window(WEEKLY, START_S - START_S % HOUR_S))
    batch = delivered(vault, [fill])
    undone(vault, batch, record(0, fill))


def test_a_stop_or_report_is_the_buyers_and_comes_in_time(vault: Vault) -> None:
    later = hourly(window=window(HOURLY, START_S - START_S % HOUR_S + 5 * HOUR_S))
    batch = vault.settle([hourly(), later])
    for function in ("stop", "reportNonDelivery"):
        with refused("NotTheBuyer"):
            vault.do(wallet(2), function, batch.place(0))
        wrong = (*batch.place(0)[:2], hourly(qty=161).packed, batch.place(0)[3])
        with refused("WrongProof", 1, 0):
            vault.do(wallet(1), function, wrong)
    with refused("TooEarly"):
        vault.do(wallet(1), "reportNonDelivery", batch.place(1))
    vault.machine.wait(DAY_S)
    with refused("WindowOver"):
        vault.do(wallet(1), "stop", batch.place(0))
    vault.release(batch, [record(0, hourly())])
    for function in ("stop", "reportNonDelivery"):
        with refused("LeaseClosed", 1, 0):
            vault.do(wallet(1), function, batch.place(0))


def test_a_lease_stopped_before_it_began_is_not_paid(vault: Vault) -> None:
    later = hourly(window=window(HOURLY, START_S - START_S % HOUR_S + 5 * HOUR_S))
    batch = vault.settle([later])
    vault.do(wallet(1), "stop", batch.place(0))
    vault.machine.wait(10 * DAY_S)
    vault.do(WATCHER, "claim", batch.place(0))
    assert vault.accounts()[1]["free"] == 1_000 * DOLLAR
    solvent(vault)


# --- claims and slashes ---------------------------------------------------------------------


def test_a_lease_that_nobody_released_is_closed_by_anybody(vault: Vault) -> None:
    start_s = START_S - START_S % HOUR_S
    fill = hourly(window=window(DAILY, start_s))
    batch = vault.settle([fill, fill, fill])
    vault.machine.wait(6 * HOUR_S)
    vault.do(wallet(1), "reportNonDelivery", batch.place(1))
    reported_s = vault.machine.now_s
    vault.machine.wait(HOUR_S)
    vault.do(wallet(1), "stop", batch.place(1))
    vault.do(wallet(1), "stop", batch.place(2))
    stopped_s = vault.machine.now_s
    with refused("TooEarly"):
        vault.do(WATCHER, "claim", batch.place(0))
    vault.machine.wait(8 * DAY_S)
    paid = [fill.notional, fill.due(reported_s), fill.due(stopped_s)]
    for index in range(3):
        vault.do(WATCHER, "claim", batch.place(index))
    parts = [fill.divide(amount) for amount in paid]
    accounts = vault.accounts()
    assert accounts[1]["free"] == 1_000 * DOLLAR - 3 * fill.cost + sum(p[1] for p in parts)
    assert accounts[2]["free"] == 1_000 * DOLLAR + sum(p[0] for p in parts)
    assert accounts[0]["pending"] == sum(p[2] for p in parts)
    solvent(vault)


def test_a_bond_pays_for_what_was_reported_within_bounds_and_once(vault: Vault) -> None:
    fill = hourly(window=window(DAILY, START_S - START_S % HOUR_S))
    batch = vault.settle([fill, fill])
    with refused("NotReported"):
        vault.do(ARBITER, "slash", batch.place(0), 1)
    vault.machine.wait(12 * HOUR_S)
    vault.do(wallet(1), "reportNonDelivery", batch.place(0))
    most = 2 * (fill.notional - fill.due(vault.machine.now_s))
    for sender in (SETTLER, ADMIN, wallet(1)):
        with pytest.raises(NotPermitted):
            vault.do(sender, "slash", batch.place(0), 1)
    with refused("SlashTooHigh", most):
        vault.do(ARBITER, "slash", batch.place(0), most + 1)
    before = vault.accounts()
    vault.do(ARBITER, "slash", batch.place(0), most)
    after = vault.accounts()
    assert before[2]["bond"] - after[2]["bond"] == most == after[1]["free"] - before[1]["free"]
    with refused("LeaseClosed", 1, 0):
        vault.do(ARBITER, "slash", batch.place(0), 1)
    vault.do(wallet(1), "reportNonDelivery", batch.place(1))
    vault.machine.wait(31 * DAY_S)
    with refused("WindowOver"):
        vault.do(ARBITER, "slash", batch.place(1), 1)
    solvent(vault)


def test_a_bond_pays_no_more_than_it_is(vault: Vault) -> None:
    fill = hourly(seller=2, price=10_000, qty=80_000, buyer_fee=0)
    batch = vault.settle([fill])
    vault.do(wallet(1), "reportNonDelivery", batch.place(0))
    vault.do(ARBITER, "slash", batch.place(0), fill.notional)
    assert vault.accounts()[2]["bond"] == 0
    assert vault.accounts()[1]["free"] == 300 * DOLLAR
    solvent(vault)


# --- roles ----------------------------------------------------------------------------------


def test_roles_change_by_the_time_lock_alone_and_not_before_its_delay() -> None:
    machine = Machine(START_S)
    with pytest.raises(ContractRejected, match="DelayTooShort"):
        machine.create(ADMIN, "ParameterTimelock", 8 * DAY_S - 1, [ADMIN], [bytes(20)])
    lock = machine.create(ADMIN, "ParameterTimelock", 8 * DAY_S, [ADMIN], [bytes(20)])
    token = machine.create(ADMIN, "TestUSDC")
    timelock, vault = Interface("ParameterTimelock"), VAULT
    address = machine.create(
        ADMIN, "VaultV2", token, lock, SETTLER, ARBITER, PAUSER, SETTLER_BOND_MIN
    )
    grant = vault.encode("grantRole", keccak(b"SETTLER_ROLE"), wallet(5))
    with pytest.raises(NotPermitted):
        machine.transact(ADMIN, address, grant)
    terms = (address, 0, grant, bytes(32), bytes(32))
    machine.transact(ADMIN, lock, timelock.encode("schedule", *terms, 8 * DAY_S))
    machine.wait(8 * DAY_S - 1)
    with pytest.raises(ContractRejected, match="TimelockUnexpectedOperationState"):
        machine.transact(WATCHER, lock, timelock.encode("execute", *terms))
    machine.wait(1)
    machine.transact(WATCHER, lock, timelock.encode("execute", *terms))
    machine.transact(wallet(5), address, vault.encode("heartbeat"))


def test_the_other_half_alone_does_nothing(vault: Vault) -> None:
    batch = vault.settle([hourly()])
    (half,) = vault.ask("DISPUTES")
    call = DISPUTES.encode("stop", batch.place(0))
    with refused("WrongProof", 1, 0):
        vault.machine.transact(wallet(1), bytes.fromhex(half[2:]), call)
    with refused("FailedCall"):  # and the vault has no other functions than the two halves'
        vault.machine.transact(wallet(1), vault.address, b"\xde\xad\xbe\xef")


def test_the_domain_is_this_vault_on_this_chain(vault: Vault) -> None:
    fields = vault.ask("eip712Domain")
    assert fields[1:5] == ("compex", "1", 636_867, "0x" + vault.address.hex())
    assert vault.domain != domain(bytes(20)) != domain(bytes(20), 1)
    assert vault.ask("VERSION") == (2,)
