"""The vault by the rules of `VaultV2.sol`, as one value that a block ends with.

Owns accounts, batches, releases, the settler's bond, and what of it all is logged. Invariant: money
comes with deposits and goes to owners alone; a call that is refused raises what settlement knows
the contract's error as, and whoever called throws that copy away. Nobody disputes anything here:
that every fill could be answered for and every release is right, `truth` looks at itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from engine.records import Purse
from settlement import batch, releases
from settlement.errors import (
    AccountExiting,
    BatchOutOfOrder,
    ContractError,
    InsufficientFree,
    InsufficientLocked,
    LeaseClosed,
    NothingToTake,
    ReleaseOutOfOrder,
    UnknownAccount,
    VaultFrozen,
    WindowOpen,
    WithdrawalOutOfOrder,
)
from settlement.releases import Records
from settlement.signatures import POSTING_S
from settlement.vault import (
    CHALLENGE_SECONDS,
    EPOCH_SECONDS,
    NO_ROOT,
    ROOT_BYTES,
    SETTLER_BOND_MIN_USDC6,
    SILENCE_SECONDS,
    VaultAccount,
    VaultLog,
    VaultState,
)

ExitStep: TypeAlias = Literal["requested", "cancelled", "finished"]
EXCHANGE: Final = 0
EXIT_SECONDS: Final = 6  # a week there; nothing but the vault knows how long it is
EPOCHS_TO_MATURE: Final = 2
SETTLER_BOND_USDC6: Final = 2 * SETTLER_BOND_MIN_USDC6


class Credit(NamedTuple):
    """What became an owner's, to trade with or as a bond."""

    account: int
    amount_usdc6: int
    is_bond: bool


class Posted(NamedTuple):
    packed: bytes
    root: bytes
    time_s: int


class Released(NamedTuple):
    batch_id: int
    records: Records


@dataclass
class Slots:
    owner: bytes = bytes(20)
    free_usdc6: int = 0
    locked_usdc6: int = 0
    bond_usdc6: int = 0
    exit_at_s: int = 0  # from when the owner may take what is free; 0: no exit asked
    earned: tuple[tuple[int, int], ...] = ()  # (epoch, µUSDC), not collected
    unlocked_usdc6: int = 0  # all that was ever released of what was locked

    def matured_usdc6(self, time_s: int) -> int:
        last = time_s // EPOCH_SECONDS - EPOCHS_TO_MATURE
        return sum(amount for epoch, amount in self.earned if epoch <= last)

    @property
    def earned_usdc6(self) -> int:
        return sum(amount for _, amount in self.earned)

    @property
    def held_usdc6(self) -> int:
        return self.free_usdc6 + self.locked_usdc6 + self.bond_usdc6 + self.earned_usdc6


def _accounts() -> dict[int, Slots]:
    return {EXCHANGE: Slots()}


@dataclass
class Vault:
    """`number` and `time_s` are those of the block that it is part of."""

    number: int = 0
    time_s: int = 0
    accounts: dict[int, Slots] = field(default_factory=_accounts)
    batches: list[Posted] = field(default_factory=list[Posted])
    released: list[Released] = field(default_factory=list[Released])
    closed: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])  # leases
    deposits_usdc6: list[int] = field(default_factory=list[int])
    credits: list[Credit] = field(default_factory=list[Credit])
    exits: int = 0
    last_withdrawal: int = 0
    withdrawals: set[int] = field(default_factory=set[int])  # ids of those executed
    paid_usdc6: dict[bytes, int] = field(default_factory=dict[bytes, int])
    settler_bond_usdc6: int = 0
    last_heard_s: int = 0
    is_frozen: bool = False
    nonce: int = 0  # the settler's next one
    logs: list[VaultLog] = field(default_factory=list[VaultLog])  # of this block

    def copy(self) -> "Vault":
        """What happens to one does not to the other: only slots are ever written to."""
        return replace(
            self,
            accounts={number: replace(slots) for number, slots in self.accounts.items()},
            batches=self.batches.copy(),
            released=self.released.copy(),
            closed=self.closed.copy(),
            deposits_usdc6=self.deposits_usdc6.copy(),
            credits=self.credits.copy(),
            withdrawals=self.withdrawals.copy(),
            paid_usdc6=self.paid_usdc6.copy(),
            logs=self.logs.copy(),
        )

    def after(self) -> "Vault":
        """The same at the beginning of the next block."""
        return replace(self.copy(), number=self.number + 1, logs=[])

    # --- reads ---------------------------------------------------------------------------------
    @property
    def held_usdc6(self) -> int:
        """Everything but the settler's bond."""
        return sum(slots.held_usdc6 for slots in self.accounts.values())

    @property
    def owners(self) -> dict[int, Slots]:
        """All accounts but the exchange's."""
        return {n: slots for n, slots in self.accounts.items() if n != EXCHANGE}

    def state(self) -> VaultState:
        return VaultState(
            self.number, len(self.batches), self.root(len(self.batches)), len(self.deposits_usdc6),
            len(self.accounts) - 1, self.last_withdrawal, self.exits, len(self.released),
            self.settler_bond_usdc6, self.last_heard_s, False, self.is_frozen,
            self.held_usdc6 + self.settler_bond_usdc6,
        )  # fmt: skip

    def root(self, batch_id: int) -> bytes:
        """As much of it as the vault keeps."""
        known = 0 < batch_id <= len(self.batches)
        return self.batches[batch_id - 1].root[:ROOT_BYTES] if known else NO_ROOT

    def account(self, number: int) -> VaultAccount:
        a = self.accounts[number]
        matured = a.matured_usdc6(self.time_s)
        return VaultAccount(
            number, a.owner, a.free_usdc6, a.locked_usdc6, a.bond_usdc6, a.exit_at_s, matured,
            a.earned_usdc6 - matured,
        )  # fmt: skip

    # --- anybody -------------------------------------------------------------------------------
    def add_settler_bond(self, amount_usdc6: int) -> None:
        self.settler_bond_usdc6 += amount_usdc6
        self._log("SettlerBondAdded", amount=amount_usdc6)

    def deposit(self, owner: bytes, amount_usdc6: int, purse: Purse) -> None:
        known = [number for number, slots in self.accounts.items() if slots.owner == owner]
        account = known[0] if known else len(self.accounts)
        if not known:
            self.accounts[account] = Slots(owner)
            self._log("AccountOpened", account=account, owner="0x" + owner.hex())
        slots = self.accounts[account]
        if slots.exit_at_s:
            return  # refused while the wallet leaves
        is_bond = purse == Purse.BOND
        if is_bond:
            slots.bond_usdc6 += amount_usdc6
        else:
            slots.free_usdc6 += amount_usdc6
        self.deposits_usdc6.append(amount_usdc6)
        self.credits.append(Credit(account, amount_usdc6, is_bond))
        self._log(
            "Deposited", number=len(self.deposits_usdc6), account=account,
            owner="0x" + owner.hex(), amount=amount_usdc6, isBond=is_bond,
        )  # fmt: skip

    def exit(self, account: int, step: ExitStep) -> None:
        """By the owner's own transaction; one that would be refused does nothing."""
        slots = self.accounts[account]
        is_due = 0 < slots.exit_at_s <= self.time_s
        if step == "requested" and not slots.exit_at_s:
            slots.exit_at_s = self.time_s + EXIT_SECONDS
            # As much later as settlement keeps clear of it: what takes hours elsewhere takes none.
            self._exit("ExitRequested", account, exitAt=slots.exit_at_s + POSTING_S)
        elif step == "cancelled" and slots.exit_at_s:
            slots.exit_at_s = 0
            self._exit("ExitCancelled", account)
        elif step == "finished" and is_due:
            self._collect(account)
            amount_usdc6, slots.free_usdc6, slots.exit_at_s = slots.free_usdc6, 0, 0
            self._exit("Exited", account, amount=amount_usdc6)
            self._pay(slots.owner, amount_usdc6)

    def freeze(self) -> None:
        """By whoever finds that nothing was heard of the settler for long."""
        self.is_frozen = self.is_frozen or self.time_s >= self.last_heard_s + SILENCE_SECONDS

    def collect(self, account: int) -> None:
        if not self._collect(account):
            raise NothingToTake(_reverted("NothingToTake"))

    # --- the settler ---------------------------------------------------------------------------
    def settle(self, batch_id: int, packed: bytes) -> None:
        self._working()
        expected = len(self.batches) + 1
        if batch_id != expected:
            raise BatchOutOfOrder(_reverted("BatchOutOfOrder", expected=expected, given=batch_id))
        fills = batch.unpack(packed)
        costs = batch.costs_usdc6(fills).tolist()
        buyers: list[int] = fills["buyer"].tolist()
        for party in (*buyers, *fills["seller"].tolist()):
            if party not in self.accounts:
                raise UnknownAccount(_reverted("UnknownAccount", account=party))
        for buyer, cost_usdc6 in zip(buyers, costs, strict=True):
            slots = self.accounts[buyer]
            if 0 < slots.exit_at_s <= self.time_s:
                raise AccountExiting(_reverted("AccountExiting", account=buyer))
            self._take(buyer, cost_usdc6)
            slots.locked_usdc6 += cost_usdc6
        root = batch.root_of(packed)
        self.batches.append(Posted(packed, root, self.time_s))
        self.last_heard_s = self.time_s
        self._log("Batch", id=batch_id, root=root, fills=len(fills), total=sum(costs))

    def withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        self._working()
        last = self.last_withdrawal
        if withdrawal_id <= last:
            reason = _reverted("WithdrawalOutOfOrder", last=last, given=withdrawal_id)
            raise WithdrawalOutOfOrder(reason)
        if account not in self.owners:
            raise UnknownAccount(_reverted("UnknownAccount", account=account))
        self._take(account, amount_usdc6)
        self.last_withdrawal = withdrawal_id
        self.withdrawals.add(withdrawal_id)
        self.last_heard_s = self.time_s
        self._pay(self.accounts[account].owner, amount_usdc6)

    def release(self, release_id: int, batch_id: int, accounts: bytes, packed: bytes) -> None:
        self._working()
        expected = len(self.released) + 1
        if release_id != expected:
            reason = _reverted("ReleaseOutOfOrder", expected=expected, given=release_id)
            raise ReleaseOutOfOrder(reason)
        until_s = self.batches[batch_id - 1].time_s + CHALLENGE_SECONDS
        if self.time_s < until_s:
            raise WindowOpen(_reverted("WindowOpen", until=until_s))
        records = releases.unpack(accounts, packed)
        total_usdc6 = 0
        for index, buyer, seller, to_seller, to_buyer, to_exchange in records.tolist():
            if (batch_id, index) in self.closed:
                raise LeaseClosed(_reverted("LeaseClosed", batch=batch_id, index=index))
            self.closed.add((batch_id, index))
            amount_usdc6 = to_seller + to_buyer + to_exchange
            self._unlock(buyer, amount_usdc6)
            for account, part_usdc6 in (
                (seller, to_seller), (buyer, to_buyer), (EXCHANGE, to_exchange),
            ):  # fmt: skip
                self.accounts[account].earned += ((self.time_s // EPOCH_SECONDS, part_usdc6),)
            total_usdc6 += amount_usdc6
        self.released.append(Released(batch_id, records))
        self.last_heard_s = self.time_s
        self._log("Release", id=release_id, batch=batch_id, leases=len(records), total=total_usdc6)

    def heartbeat(self) -> None:
        self._working()
        self.last_heard_s = self.time_s

    # --- inside --------------------------------------------------------------------------------
    def _working(self) -> None:
        if self.is_frozen:
            raise VaultFrozen(_reverted("IsFrozen"))

    def _collect(self, account: int) -> int:
        slots = self.accounts[account]
        amount_usdc6 = slots.matured_usdc6(self.time_s)
        if amount_usdc6:
            last = self.time_s // EPOCH_SECONDS - EPOCHS_TO_MATURE
            slots.earned = tuple(part for part in slots.earned if part[0] > last)
            slots.free_usdc6 += amount_usdc6
            self.credits.append(Credit(account, amount_usdc6, is_bond=False))
            self._log("Collected", account=account, amount=amount_usdc6)
        return amount_usdc6

    def _take(self, account: int, amount_usdc6: int) -> None:
        slots = self.accounts[account]
        if slots.free_usdc6 < amount_usdc6:
            raise InsufficientFree(
                _reverted(
                    "InsufficientFree", account=account, free=slots.free_usdc6, needed=amount_usdc6
                )
            )
        slots.free_usdc6 -= amount_usdc6

    def _unlock(self, account: int, amount_usdc6: int) -> None:
        slots = self.accounts[account]
        locked = slots.locked_usdc6
        if locked < amount_usdc6:
            raise InsufficientLocked(
                _reverted("InsufficientLocked", account=account, locked=locked, needed=amount_usdc6)
            )
        slots.locked_usdc6 -= amount_usdc6
        slots.unlocked_usdc6 += amount_usdc6

    def _pay(self, owner: bytes, amount_usdc6: int) -> None:
        self.paid_usdc6[owner] = self.paid_usdc6.get(owner, 0) + amount_usdc6

    def _exit(self, name: str, account: int, **fields: int) -> None:
        self.exits += 1
        self._log(name, number=self.exits, account=account, **fields)

    def _log(self, name: str, **fields: Any) -> None:
        self.logs.append(VaultLog(self.number, len(self.logs), b"", name, fields))


CALLS: Final[dict[str, Callable[..., None]]] = {
    "settle": Vault.settle,
    "withdraw": Vault.withdraw,
    "release": Vault.release,
    "collect": Vault.collect,
    "heartbeat": Vault.heartbeat,
}


def _reverted(name: str, **arguments: object) -> ContractError:
    return ContractError(name, arguments)
