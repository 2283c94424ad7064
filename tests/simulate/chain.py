"""A chain with the vault on it, by the rules of `Vault.sol`, that mines when the simulation says.

Owns blocks, the transactions that wait for one, and the vault's state after each block. Invariant:
a mined transaction stays mined, a lost one is never mined unless it is sent again, and each nonce
is used once; whoever asks may get no answer, done or not. `SimulatedChain` is what settlement
takes for `settlement.chain.Chain`; wallets deposit through `World`'s hands.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from engine.records import Purse
from settlement.chain import (
    Call,
    Deposit,
    ExitLog,
    ExitStep,
    FeedAnswer,
    Fill,
    Heights,
    PricePoint,
    Receipt,
    SignedTransaction,
    VaultAccount,
    VaultState,
    fills_hash,
    unpack_fills,
)
from settlement.errors import (
    AccountExiting,
    BatchOutOfOrder,
    ChainUnavailable,
    ContractError,
    ContractRejected,
    InsufficientFree,
    NoData,
    NonceUsed,
    RoundOutOfOrder,
    UnknownAccount,
    WithdrawalOutOfOrder,
)
from settlement.fees import GWEI, Fees, Market
from tests.simulate.faults import Chance, Faults

BLOCK_SECONDS: Final = 0.5
CALL_SECONDS: Final = (0.0005, 0.02)
SLOW_BLOCKS: Final = 20
EXIT_BLOCKS: Final = 12  # between asking for an exit and being able to finish it
NO_HASH: Final = bytes(32)


@dataclass
class _Slots:
    owner: bytes
    free_usdc6: int = 0
    locked_usdc6: int = 0
    bond_usdc6: int = 0
    exit_at: int = 0  # the block from which the owner may take what is free; 0: no exit asked


@dataclass
class Vault:
    """Its storage after a block."""

    accounts: dict[int, _Slots] = field(default_factory=dict[int, _Slots])
    batches: list[bytes] = field(default_factory=list[bytes])  # hash of each
    fills: list[Fill] = field(default_factory=list[Fill])  # all that was settled
    deposits: list[Deposit] = field(default_factory=list[Deposit])
    last_withdrawal: int = 0
    withdrawals: set[int] = field(default_factory=set[int])  # ids of those executed
    paid_usdc6: dict[bytes, int] = field(default_factory=dict[bytes, int])
    exits: list[ExitLog] = field(default_factory=list[ExitLog])
    nonce: int = 0  # the settler's next one

    def copy(self) -> "Vault":
        """What happens to one does not to the other: only slots are ever written to."""
        return Vault(
            accounts={number: replace(slots) for number, slots in self.accounts.items()},
            batches=self.batches.copy(),
            fills=self.fills.copy(),
            deposits=self.deposits.copy(),
            last_withdrawal=self.last_withdrawal,
            withdrawals=self.withdrawals.copy(),
            paid_usdc6=self.paid_usdc6.copy(),
            exits=self.exits.copy(),
            nonce=self.nonce,
        )

    def state(self, block: int) -> VaultState:
        held = sum(a.free_usdc6 + a.locked_usdc6 + a.bond_usdc6 for a in self.accounts.values())
        head_hash = self.batches[-1] if self.batches else NO_HASH
        return VaultState(
            block, len(self.batches), head_hash, len(self.deposits), len(self.accounts),
            self.last_withdrawal, len(self.exits), held,
        )  # fmt: skip

    def deposit(self, owner: bytes, amount_usdc6: int, purse: Purse, block: int) -> None:
        known = [number for number, slots in self.accounts.items() if slots.owner == owner]
        account = known[0] if known else len(self.accounts) + 1
        slots = self.accounts.setdefault(account, _Slots(owner))
        if slots.exit_at:
            return  # refused while the wallet leaves
        if purse == Purse.BOND:
            slots.bond_usdc6 += amount_usdc6
        else:
            slots.free_usdc6 += amount_usdc6
        number = len(self.deposits) + 1
        self.deposits.append(Deposit(number, account, owner, amount_usdc6, purse, block))

    def exit(self, account: int, step: ExitStep, block: int) -> None:
        """By the owner's own transaction; one that would be refused does nothing."""
        slots = self.accounts[account]
        amount_usdc6 = 0
        if step == "requested" and not slots.exit_at:
            slots.exit_at = block + EXIT_BLOCKS
        elif step == "cancelled" and slots.exit_at:
            slots.exit_at = 0
        elif step == "finished" and 0 < slots.exit_at <= block:
            amount_usdc6 = slots.free_usdc6
            slots.free_usdc6 = slots.exit_at = 0
            self._pay(slots.owner, amount_usdc6)
        else:
            return
        self.exits.append(ExitLog(len(self.exits) + 1, account, step, amount_usdc6, block))

    def _pay(self, owner: bytes, amount_usdc6: int) -> None:
        self.paid_usdc6[owner] = self.paid_usdc6.get(owner, 0) + amount_usdc6

    def settle(self, batch_id: int, packed: bytes, block: int) -> None:
        expected = len(self.batches) + 1
        if batch_id != expected:
            raise BatchOutOfOrder(_reverted("BatchOutOfOrder", expected=expected, given=batch_id))
        for fill in unpack_fills(packed):
            for party in (fill.buyer, fill.seller):
                if party not in self.accounts:
                    raise UnknownAccount(_reverted("UnknownAccount", account=party))
            if 0 < self.accounts[fill.buyer].exit_at <= block:
                raise AccountExiting(_reverted("AccountExiting", account=fill.buyer))
            self._take(fill.buyer, fill.amount_usdc6)
            self.accounts[fill.buyer].locked_usdc6 += fill.amount_usdc6
            self.fills.append(fill)
        self.batches.append(fills_hash(packed))

    def withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        last = self.last_withdrawal
        if withdrawal_id <= last:
            reason = _reverted("WithdrawalOutOfOrder", last=last, given=withdrawal_id)
            raise WithdrawalOutOfOrder(reason)
        if account not in self.accounts:
            raise UnknownAccount(_reverted("UnknownAccount", account=account))
        self._take(account, amount_usdc6)
        self.last_withdrawal = withdrawal_id
        self.withdrawals.add(withdrawal_id)
        self._pay(self.accounts[account].owner, amount_usdc6)

    def _take(self, account: int, amount_usdc6: int) -> None:
        slots = self.accounts[account]
        if slots.free_usdc6 < amount_usdc6:
            reason = _reverted(
                "InsufficientFree", account=account, free=slots.free_usdc6, needed=amount_usdc6
            )
            raise InsufficientFree(reason)
        slots.free_usdc6 -= amount_usdc6


def _reverted(name: str, **arguments: object) -> ContractError:
    return ContractError(name, arguments)


class _Block(NamedTuple):
    hash: bytes
    vault: Vault


class SimulatedChain:
    """The node of the chain; it outlives every life of the exchange's node."""

    def __init__(self, chance: Chance, faults: Faults, sleep: Callable[[float], Any]) -> None:
        self._chance = chance
        self._faults = faults
        self._sleep = sleep
        self.confirmations: Final = chance.random.randrange(4)
        self._blocks = [_Block(_hash(b"genesis"), Vault())]
        self._next = Vault()  # what the block to come makes of the last one
        self._waiting: dict[bytes, tuple[int, SignedTransaction]] = {}  # hash: not before a block
        self._receipts: dict[bytes, Receipt] = {}
        self.rounds: dict[int, list[PricePoint]] = {}  # of each product, the oldest first

    # --- the simulation's side -----------------------------------------------------------------
    @property
    def height(self) -> int:
        return len(self._blocks) - 1

    @property
    def latest(self) -> Vault:
        return self._blocks[-1].vault

    def deposit(self, owner: bytes, amount_usdc6: int, purse: Purse) -> None:
        """By the wallet's own transaction, in the block to come."""
        self._next.deposit(owner, amount_usdc6, purse, self.height + 1)

    def exit(self, account: int, step: ExitStep) -> None:
        """By the wallet's own transaction, in the block to come."""
        self._next.exit(account, step, self.height + 1)

    def mine(self) -> None:
        """One block of all that is due, in the order of nonces."""
        number = self.height + 1
        block_hash = _hash(self._blocks[-1].hash)
        due = [tx for when, tx in self._waiting.values() if when <= number]
        for tx in sorted(due, key=lambda tx: tx.nonce):
            if tx.nonce > self._next.nonce:
                continue
            del self._waiting[tx.hash]
            if tx.nonce < self._next.nonce:
                continue  # another one was quicker: it is never mined
            succeeded = self._execute(tx)
            self._next.nonce += 1
            self._receipts[tx.hash] = Receipt(tx.hash, number, block_hash, succeeded, 50_000)
        self._blocks.append(_Block(block_hash, self._next))
        self._next = self._next.copy()

    def _execute(self, tx: SignedTransaction) -> bool:
        attempt = self._next.copy()
        try:
            _call(attempt, tx, self.height + 1)
        except ContractRejected:
            return False
        self._next = attempt
        return True

    # --- as settlement.chain.Chain -------------------------------------------------------------
    async def _asked(self) -> None:
        await self._sleep(self._chance.seconds(*CALL_SECONDS))
        if self._chance.happens(self._faults.chain_away_ppm):
            raise ChainUnavailable("the node does not answer")

    def _at(self, block: int | None) -> Vault:
        return self._blocks[self.height if block is None else block].vault

    async def heights(self) -> Heights:
        await self._asked()
        safe = max(0, self.height - (self.confirmations + 1) // 2)
        return Heights(self.height, safe, max(0, self.height - self.confirmations))

    async def block_hash(self, number: int) -> bytes:
        await self._asked()
        return self._blocks[number].hash

    async def market(self) -> Market:
        await self._asked()
        return Market(self._chance.random.randrange(1, 3) * GWEI, GWEI)

    async def deposits(self, after_number: int, up_to_block: int, limit: int) -> list[Deposit]:
        await self._asked()
        return self._at(up_to_block).deposits[after_number:][:limit]

    async def exits(self, after_number: int, up_to_block: int, limit: int) -> list[ExitLog]:
        await self._asked()
        return self._at(up_to_block).exits[after_number:][:limit]

    async def vault_state(self, block: int) -> VaultState:
        await self._asked()
        return self._at(block).state(block)

    async def vault_accounts(self, block: int) -> list[VaultAccount]:
        await self._asked()
        accounts = self._at(block).accounts
        return [_view(number, slots) for number, slots in accounts.items()]

    async def vault_account(self, account: int) -> VaultAccount:
        await self._asked()
        return _view(account, self.latest.accounts[account])

    async def batch_hash(self, batch_id: int, block: int | None = None) -> bytes:
        await self._asked()
        batches = self._at(block).batches
        return batches[batch_id - 1] if batch_id <= len(batches) else NO_HASH

    async def settler_nonce(self, block: int | None = None) -> int:
        await self._asked()
        return self._at(block).nonce

    async def simulate_settle(self, batch_id: int, packed: bytes) -> None:
        await self._asked()
        self.latest.copy().settle(batch_id, packed, self.height + 1)

    async def simulate_withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        await self._asked()
        self.latest.copy().withdraw(withdrawal_id, account, amount_usdc6)

    def settle_call(self, batch_id: int, packed: bytes) -> Call:
        return _as_call("settle", batch_id, packed.hex())

    def withdraw_call(self, withdrawal_id: int, account: int, amount_usdc6: int) -> Call:
        return _as_call("withdraw", withdrawal_id, account, amount_usdc6)

    async def is_paid(self, withdrawal_id: int, block: int) -> bool:
        await self._asked()
        return withdrawal_id in self._at(block).withdrawals

    async def sign(self, call: Call, nonce: int, fees: Fees) -> SignedTransaction:
        await self._asked()
        raw = json.dumps([nonce, fees, call.data.decode()]).encode()
        return SignedTransaction(nonce, raw, _hash(raw))

    async def send(self, transaction: SignedTransaction) -> None:
        await self._asked()
        if transaction.hash in self._receipts or transaction.hash in self._waiting:
            return
        if transaction.nonce < self.latest.nonce:
            raise NonceUsed(f"nonce {transaction.nonce}: nonce too low")
        if self._chance.happens(self._faults.chain_loses_ppm):
            return
        slow = self._chance.happens(self._faults.chain_slow_ppm)
        when = self.height + 1 + (self._chance.random.randrange(SLOW_BLOCKS) if slow else 0)
        self._waiting[transaction.hash] = (when, transaction)
        await self._asked()  # the node may have it all the same

    # --- price feeds: read and written at the latest block --------------------------------------
    async def ensure_feeds(self, descriptions: dict[int, str]) -> dict[int, bytes]:
        await self._asked()
        return {product: product.to_bytes(20, "big") for product in descriptions}

    async def read_feed(self, feed: bytes) -> FeedAnswer:
        await self._asked()
        rounds = self.rounds.get(int.from_bytes(feed, "big"), [])
        if not rounds:
            raise NoData(_reverted("NoData"))
        last = rounds[-1]
        number, end_s = len(rounds), last.window_end_s
        return FeedAnswer(number, last.price_e8, end_s, end_s, number)

    async def publish(self, points: Sequence[PricePoint]) -> None:
        await self._asked()
        for point in points:
            rounds = self.rounds.get(point.product, [])
            if rounds and rounds[-1].window_end_s >= point.window_end_s:
                raise RoundOutOfOrder(_reverted("RoundOutOfOrder"))
        for point in points:
            self.rounds.setdefault(point.product, []).append(point)
        await self._asked()  # mined, and perhaps nobody heard

    async def receipt(self, transaction_hash: bytes) -> Receipt | None:
        await self._asked()
        return self._receipts.get(transaction_hash)


def _view(account: int, a: _Slots) -> VaultAccount:
    return VaultAccount(account, a.owner, a.free_usdc6, a.locked_usdc6, a.bond_usdc6, a.exit_at)


def _as_call(*words: object) -> Call:
    return Call(bytes(20), json.dumps(words).encode(), 50_000)


def _call(vault: Vault, tx: SignedTransaction, block: int) -> None:
    _nonce, _fees, data = json.loads(tx.raw)
    function, *arguments = json.loads(data)
    if function == "settle":
        batch_id, packed = arguments
        vault.settle(batch_id, bytes.fromhex(packed), block)
    else:
        vault.withdraw(*arguments)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
