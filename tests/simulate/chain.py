"""A chain with the vault on it, by the rules of `VaultV2` as far as the simulation uses them, that
mines when the simulation says.

Owns blocks, the transactions that wait for one, and the vault's state after each block. Invariant:
a mined transaction stays mined, a lost one is never mined unless it is sent again, and each nonce
is used once; whoever asks may get no answer, done or not. `SimulatedChain` is what settlement
takes for `settlement.chain.Chain`; wallets deposit through `World`'s hands.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from benchmarks.vault import Fill
from engine.records import SECOND_NS, Purse
from settlement.batch import root_of, unpack
from settlement.chain import (
    Call,
    FeedAnswer,
    Heights,
    PricePoint,
    Receipt,
    SignedTransaction,
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
from settlement.vault import (
    EXCHANGE,
    NO_ROOT,
    ROOT_BYTES,
    SETTLER_BOND_MIN_USDC6,
    VaultAccount,
    VaultLog,
    VaultState,
)
from tests.simulate.faults import Chance, Faults

BLOCK_SECONDS: Final = 0.5
CALL_SECONDS: Final = (0.0005, 0.02)
SLOW_BLOCKS: Final = 20
EXIT_BLOCKS: Final = 12  # between asking for an exit and being able to finish it
SETTLER_BOND_USDC6: Final = 2 * SETTLER_BOND_MIN_USDC6
ExitStep = Literal["ExitRequested", "ExitCancelled", "Exited"]


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
    batches: list[bytes] = field(default_factory=list[bytes])  # root of each
    fills: list[Fill] = field(default_factory=list[Fill])  # all that was settled
    deposits_usdc6: list[int] = field(default_factory=list[int])
    last_withdrawal: int = 0
    withdrawals: set[int] = field(default_factory=set[int])  # ids of those executed
    paid_usdc6: dict[bytes, int] = field(default_factory=dict[bytes, int])
    exits: int = 0
    logs: list[VaultLog] = field(default_factory=list[VaultLog])
    settler_bond_usdc6: int = 0
    heard_s: int = 0  # the settler's last sign of life
    nonce: int = 0  # the settler's next one

    def copy(self) -> "Vault":
        """What happens to one does not to the other: only slots are ever written to."""
        return Vault(
            accounts={number: replace(slots) for number, slots in self.accounts.items()},
            batches=self.batches.copy(),
            fills=self.fills.copy(),
            deposits_usdc6=self.deposits_usdc6.copy(),
            last_withdrawal=self.last_withdrawal,
            withdrawals=self.withdrawals.copy(),
            paid_usdc6=self.paid_usdc6.copy(),
            exits=self.exits,
            logs=self.logs.copy(),
            settler_bond_usdc6=self.settler_bond_usdc6,
            heard_s=self.heard_s,
            nonce=self.nonce,
        )

    def state(self, block: int) -> VaultState:
        held = sum(a.free_usdc6 + a.locked_usdc6 + a.bond_usdc6 for a in self.accounts.values())
        return VaultState(
            block_number=block,
            head=len(self.batches),
            head_root=self.root(len(self.batches)),
            deposits=len(self.deposits_usdc6),
            accounts=len(self.accounts),
            last_withdrawal=self.last_withdrawal,
            exits=self.exits,
            releases=0,
            settler_bond_usdc6=self.settler_bond_usdc6,
            last_heard_s=self.heard_s,
            is_paused=False,
            is_frozen=False,
            token_balance_usdc6=held + self.settler_bond_usdc6,
        )

    def root(self, batch_id: int) -> bytes:
        """As much of it as the vault keeps."""
        is_settled = 0 < batch_id <= len(self.batches)
        return self.batches[batch_id - 1][:ROOT_BYTES] if is_settled else NO_ROOT

    def log(self, block: int, name: str, **fields: object) -> None:
        self.logs.append(VaultLog(block, len(self.logs), bytes(32), name, fields))

    def bond(self, amount_usdc6: int, block: int) -> None:
        """Of the settler's."""
        self.settler_bond_usdc6 += amount_usdc6
        self.log(block, "SettlerBondAdded", amount=amount_usdc6)

    def deposit(self, owner: bytes, amount_usdc6: int, purse: Purse, block: int) -> None:
        known = [number for number, slots in self.accounts.items() if slots.owner == owner]
        account = known[0] if known else len(self.accounts) + 1
        spelled = "0x" + owner.hex()
        if not known:
            self.accounts[account] = _Slots(owner)
            self.log(block, "AccountOpened", account=account, owner=spelled)
        slots = self.accounts[account]
        if slots.exit_at:
            return  # refused while the wallet leaves
        if purse == Purse.BOND:
            slots.bond_usdc6 += amount_usdc6
        else:
            slots.free_usdc6 += amount_usdc6
        self.deposits_usdc6.append(amount_usdc6)
        self.log(
            block, "Deposited", number=len(self.deposits_usdc6), account=account, owner=spelled,
            amount=amount_usdc6, isBond=purse == Purse.BOND,
        )  # fmt: skip

    def exit(self, account: int, step: ExitStep, block: int) -> None:
        """By the owner's own transaction; one that would be refused does nothing."""
        slots = self.accounts[account]
        fields: dict[str, int] = {}
        if step == "ExitRequested" and not slots.exit_at:
            slots.exit_at = fields["exitAt"] = block + EXIT_BLOCKS
        elif step == "ExitCancelled" and slots.exit_at:
            slots.exit_at = 0
        elif step == "Exited" and 0 < slots.exit_at <= block:
            fields["amount"] = slots.free_usdc6
            self._pay(slots.owner, slots.free_usdc6)
            slots.free_usdc6 = slots.exit_at = 0
        else:
            return
        self.exits += 1
        self.log(block, step, number=self.exits, account=account, **fields)

    def _pay(self, owner: bytes, amount_usdc6: int) -> None:
        self.paid_usdc6[owner] = self.paid_usdc6.get(owner, 0) + amount_usdc6

    def settle(self, batch_id: int, packed: bytes, block: int) -> None:
        expected = len(self.batches) + 1
        if batch_id != expected:
            raise BatchOutOfOrder(_reverted("BatchOutOfOrder", expected=expected, given=batch_id))
        fills = [Fill._make(fill) for fill in unpack(packed).tolist()]
        for fill in fills:
            for party in (fill.buyer, fill.seller):
                if party not in self.accounts:
                    raise UnknownAccount(_reverted("UnknownAccount", account=party))
            if 0 < self.accounts[fill.buyer].exit_at <= block:
                raise AccountExiting(_reverted("AccountExiting", account=fill.buyer))
            self._take(fill.buyer, fill.cost)
            self.accounts[fill.buyer].locked_usdc6 += fill.cost
            self.fills.append(fill)
        root = root_of(packed)
        self.batches.append(root)
        total = sum(fill.cost for fill in fills)
        self.log(block, "Batch", id=batch_id, root=root, fills=len(fills), total=total)

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
    time_s: int


class SimulatedChain:
    """The node of the chain; it outlives every life of the exchange's node."""

    deploy_block: Final = 1

    def __init__(
        self,
        chance: Chance,
        faults: Faults,
        sleep: Callable[[float], Any],
        time_ns: Callable[[], int],
    ) -> None:
        self._chance = chance
        self._faults = faults
        self._sleep = sleep
        self._time_ns = time_ns
        self.confirmations: Final = chance.random.randrange(4)
        now_s = time_ns() // SECOND_NS
        self._blocks = [_Block(_hash(b"genesis"), Vault(heard_s=now_s), now_s)]
        self._next = self.latest.copy()  # what the block to come makes of the last one
        self._next.bond(SETTLER_BOND_USDC6, 1)
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
        time_s = max(self._time_ns() // SECOND_NS, self._blocks[-1].time_s + 1)
        self._blocks.append(_Block(block_hash, self._next, time_s))
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

    async def block_time_s(self, number: int) -> int:
        await self._asked()
        return self._blocks[number].time_s

    async def vault_logs(self, first_block: int, last_block: int) -> list[VaultLog]:
        await self._asked()
        logs = self._at(last_block).logs
        return [log for log in logs if first_block <= log.block_number]

    async def vault_state(self, block: int) -> VaultState:
        await self._asked()
        return self._at(block).state(block)

    async def vault_accounts(self, block: int | None = None) -> list[VaultAccount]:
        await self._asked()
        exchange = VaultAccount(EXCHANGE, bytes(20), 0, 0, 0, 0)
        accounts = self._at(block).accounts
        return [exchange, *(_view(number, slots) for number, slots in accounts.items())]

    async def vault_account(self, account: int, block: int | None = None) -> VaultAccount:
        await self._asked()
        return _view(account, self._at(block).accounts[account])

    async def batch_root(self, batch_id: int, block: int | None = None) -> bytes:
        await self._asked()
        return self._at(block).root(batch_id)

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
