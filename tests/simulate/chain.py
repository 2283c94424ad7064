"""A chain with the vault on it that mines when the simulation says.

Owns blocks, the transactions that wait for one, and which vault each block ends with. Invariant:
a mined transaction stays mined, a lost one is never mined unless it is sent again, and each nonce
is used once; whoever asks may get no answer, done or not. `SimulatedChain` is what settlement
takes for `settlement.chain.Chain`; wallets deposit through `World`'s hands.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from engine.records import Purse
from settlement.chain import (
    FeedAnswer,
    Heights,
    PricePoint,
    Receipt,
    SignedTransaction,
)
from settlement.errors import (
    ChainUnavailable,
    ContractError,
    ContractRejected,
    NoData,
    NonceUsed,
    RoundOutOfOrder,
)
from settlement.fees import GWEI, Fees, Market
from settlement.vault import Call, VaultAccount, VaultLog, VaultState
from tests.simulate.faults import Chance, Faults
from tests.simulate.vault import CALLS, SETTLER_BOND_USDC6, ExitStep, Vault

CHAIN_ID: Final = 31337
VAULT: Final = bytes.fromhex("c0" * 20)
BLOCK_SECONDS: Final = 0.5
CALL_SECONDS: Final = (0.0005, 0.02)
SLOW_BLOCKS: Final = 20


class _Block(NamedTuple):
    hash: bytes
    vault: Vault


class SimulatedChain:
    """The node of the chain; it outlives every life of the exchange's node."""

    """`now_s` is the time that blocks have."""

    def __init__(
        self,
        chance: Chance,
        faults: Faults,
        sleep: Callable[[float], Any],
        now_s: Callable[[], int],
    ) -> None:
        self.chain_id: Final = CHAIN_ID
        self.vault: Final = VAULT
        self.deploy_block: Final = 1
        self._chance = chance
        self._faults = faults
        self._sleep = sleep
        self._now_s = now_s
        self.confirmations: Final = chance.random.randrange(4)
        genesis = Vault(time_s=now_s(), last_heard_s=now_s())
        self._blocks = [_Block(_hash(b"genesis"), genesis)]
        self._next = genesis.after()  # what the block to come makes of the last one
        self._next.add_settler_bond(SETTLER_BOND_USDC6)
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
        self._coming().deposit(owner, amount_usdc6, purse)

    def exit(self, account: int, step: ExitStep) -> None:
        """By the wallet's own transaction, in the block to come."""
        self._coming().exit(account, step)

    def freeze(self) -> None:
        """By anybody's transaction, in the block to come."""
        self._coming().freeze()

    def _coming(self) -> Vault:
        self._next.time_s = self._now_s()
        return self._next

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
        self._blocks.append(_Block(block_hash, self._coming()))
        self._next = self._next.after()

    def _execute(self, tx: SignedTransaction) -> bool:
        _nonce, _fees, data = json.loads(tx.raw)
        try:
            self._next = _called(self._coming(), data)
        except ContractRejected:
            return False
        return True

    # --- as settlement.chain.Chain -------------------------------------------------------------
    async def _asked(self) -> None:
        await self._sleep(self._chance.seconds(*CALL_SECONDS))
        if self._chance.happens(self._faults.chain_away_ppm):
            raise ChainUnavailable("the node does not answer")

    def _at(self, block: int | None) -> Vault:
        return self._blocks[self.height if block is None else block].vault

    def _pending(self) -> Vault:
        """The latest block, and the time of day."""
        pending = self.latest.after()
        pending.time_s = self._now_s()
        return pending

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
        return self._blocks[number].vault.time_s

    async def past_s(self, block: int) -> int:
        return await self.block_time_s(block)

    async def vault_logs(self, first_block: int, last_block: int) -> list[VaultLog]:
        await self._asked()
        blocks = self._blocks[first_block : last_block + 1]
        return [log for block in blocks for log in block.vault.logs]

    async def vault_state(self, block: int) -> VaultState:
        await self._asked()
        return self._at(block).state()

    async def vault_accounts(self, block: int | None = None) -> list[VaultAccount]:
        await self._asked()
        vault = self._at(block) if block is not None else self._pending()
        return [vault.account(number) for number in vault.accounts]

    async def vault_account(self, account: int, block: int | None = None) -> VaultAccount:
        await self._asked()
        vault = self._at(block) if block is not None else self._pending()
        return vault.account(account)

    async def batch_root(self, batch_id: int, block: int | None = None) -> bytes:
        await self._asked()
        return self._at(block).root(batch_id)

    async def settler_nonce(self, block: int | None = None) -> int:
        await self._asked()
        return self._at(block).nonce

    async def simulate(self, call: Call) -> None:
        await self._asked()
        _called(self._pending(), call.data.decode())

    async def simulate_settle(self, batch_id: int, packed: bytes) -> None:
        await self.simulate(self.settle_call(batch_id, packed))

    async def simulate_withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        await self.simulate(self.withdraw_call(withdrawal_id, account, amount_usdc6))

    def settle_call(self, batch_id: int, packed: bytes) -> Call:
        return _as_call("settle", batch_id, packed)

    def withdraw_call(self, withdrawal_id: int, account: int, amount_usdc6: int) -> Call:
        return _as_call("withdraw", withdrawal_id, account, amount_usdc6)

    def release_call(self, release_id: int, batch_id: int, accounts: bytes, records: bytes) -> Call:
        return _as_call("release", release_id, batch_id, accounts, records)

    def collect_call(self, account: int) -> Call:
        return _as_call("collect", account)

    def heartbeat_call(self) -> Call:
        return _as_call("heartbeat")

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


def _as_call(*words: int | str | bytes) -> Call:
    written = [word.hex() if isinstance(word, bytes) else word for word in words]
    return Call(VAULT, json.dumps(written).encode(), 50_000)


def _called(vault: Vault, data: str) -> Vault:
    """What the vault is after the call; raises ContractRejected."""
    function, *written = json.loads(data)
    after = vault.copy()
    CALLS[function](after, *(bytes.fromhex(w) if isinstance(w, str) else w for w in written))
    return after


def _reverted(name: str) -> ContractError:
    return ContractError(name, {})


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
