# pyright: reportReturnType=false
"""The contracts as the rest of settlement sees them, on the embedded chain or any other node.

Owns the conversation with one node: what is deployed where, who signs what, which block counts as
final. It stores nothing but the addresses file: whoever sends a transaction whose loss would
matter prepares it first (the signed bytes and their hash are known before they are sent) and
keeps it. Invariant: the same calls do the same on every node; amounts are integers throughout.
Only settlement's service, the node that assembles it, and the tests call this module.
"""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from web3.providers.async_base import AsyncBaseProvider

from engine.records import Purse

# One fill as `Vault.settle` reads it, big endian, 28 bytes:
# buyer u32, seller u32, price_ticks u32, qty_lots u32, instrument u32, event number u64.
FILL_STRUCT: Final = struct.Struct(">IIIIIQ")
FILL_BYTES: Final = 28
# Even if every fill had another buyer, this many stay below the 16.7 million gas that one
# transaction may use, and far below the 128 KiB that a pool takes.
FILLS_PER_BATCH_MAX: Final = 2_000
FEED_DECIMALS: Final = 8
PRICE_E8_PER_TICK: Final = 10_000  # a tick is $0.0001; a feed counts in 1e-8 dollars


class Fill(NamedTuple):
    """One fill as the vault settles it; the buyer pays price_ticks * qty_lots µUSDC."""

    buyer: int  # vault account index
    seller: int
    price_ticks: int
    qty_lots: int
    instrument: int
    event_number: int

    @property
    def amount_usdc6(self) -> int:
        return self.price_ticks * self.qty_lots


def pack_fills(fills: Iterable[Fill]) -> bytes:
    """The calldata of `settle`. Cheapest on chain when the fills of one buyer are neighbours."""
    return b"".join(FILL_STRUCT.pack(*fill) for fill in fills)


def unpack_fills(packed: bytes) -> list[Fill]:
    """Inverse of pack_fills. Raises struct.error unless the length is a multiple of FILL_BYTES."""
    return [Fill._make(fields) for fields in FILL_STRUCT.iter_unpack(packed)]


def fills_hash(packed: bytes) -> bytes:
    """keccak256 of the packed fills: what the vault records for the batch. 32 bytes."""


class Keys(NamedTuple):
    """32-byte private keys of the exchange's roles. They may be one key, but need not be."""

    deployer: bytes  # also pays for gas of wallets that are funded
    settler: bytes  # settle and withdraw
    publisher: bytes  # prices


class Deposit(NamedTuple):
    """One deposit as logged by the vault; `number` counts 1, 2, 3, ... vault-wide."""

    number: int
    account: int
    owner: bytes  # 20-byte wallet address of the account
    amount_usdc6: int
    purse: Purse
    block_number: int


class VaultAccount(NamedTuple):
    """One account's slots in the vault."""

    account: int
    owner: bytes  # 20 bytes
    free_usdc6: int
    locked_usdc6: int
    bond_usdc6: int
    exit_at_s: int  # Unix seconds from which the owner may take the free funds; 0: no exit asked


class VaultState(NamedTuple):
    """The vault's counters at one block."""

    block_number: int
    head: int  # id of the last settled batch; 0: none
    head_hash: bytes  # fills_hash of it; 32 zero bytes if there is none
    deposits: int  # number of the last deposit
    accounts: int  # index of the last account
    last_withdrawal: int  # id of the last withdrawal executed
    token_balance_usdc6: int  # token.balanceOf(vault)


class SignedTransaction(NamedTuple):
    """Ready to send, as often as needed: the same bytes are mined at most once."""

    nonce: int
    raw: bytes
    hash: bytes  # 32 bytes


class Receipt(NamedTuple):
    hash: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int


class Funding(NamedTuple):
    """Test USDC that a wallet mints and deposits; an amount of 0 skips that part."""

    key: bytes  # the wallet's private key
    cash_usdc6: int
    bond_usdc6: int


class PricePoint(NamedTuple):
    """One product's price for the window that ended at `window_end_s`."""

    product: int  # catalog's packed product, u64
    price_e8: int  # 1e-8 dollars per GPU-hour, above zero
    window_end_s: int  # Unix seconds; becomes the feed's updatedAt


class FeedAnswer(NamedTuple):
    """What AggregatorV3Interface answers, and nothing converted."""

    round_id: int
    answer: int  # price_e8
    started_at_s: int
    updated_at_s: int
    answered_in_round: int


class Options(NamedTuple):
    confirmations: int = 0  # blocks on top before a block counts as final
    poll_seconds: float = 0.01  # between two looks for a receipt
    wait_seconds: float = 60.0  # for a receipt, before TransactionNotMined
    request_seconds: float = 30.0  # for one answer of the node, before ChainUnavailable


class Chain:
    """One node, one set of contracts. Addresses are 20 bytes; `checksum()` prints them."""

    chain_id: int
    token: bytes
    vault: bytes
    oracle: bytes

    @classmethod
    async def connect(
        cls, node: AsyncBaseProvider | str, keys: Keys, options: Options | None = None
    ) -> "Chain":
        """`node` is `EmbeddedChain.provider` or an RPC URL. Raises ChainUnavailable."""

    async def close(self) -> None: ...

    async def deploy_or_load(self, directory: Path | None, token: bytes | None = None) -> bool:
        """Use the contracts in `directory`/contracts.json, or deploy and write that file.

        `token` is an existing six-decimal USDC to settle in; without it TestUSDC is deployed.
        With `directory` None nothing is kept. True if it deployed. Raises ChainMismatch when the
        file is about another chain, or the code at an address is not the committed one.
        """

    # --- blocks -----------------------------------------------------------------------------
    async def final_block(self) -> int:
        """Number of the newest block that counts as final; 0 at the start of the chain."""

    async def block_hash(self, number: int) -> bytes:
        """Canonical hash at this height: compare with Receipt.block_hash to see a reorg."""

    # --- the vault: reads -------------------------------------------------------------------
    async def deposits(self, after_number: int, up_to_block: int, limit: int) -> list[Deposit]:
        """Deposits after_number + 1, + 2, ... in blocks up to `up_to_block`; at most `limit`."""

    async def vault_state(self, block: int) -> VaultState: ...

    async def vault_accounts(self, block: int) -> list[VaultAccount]:
        """All accounts, ascending from index 1, as of the end of `block`."""

    async def batch_hash(self, batch_id: int, block: int | None = None) -> bytes:
        """fills_hash recorded for the batch; 32 zero bytes if it is not settled."""

    async def account_of(self, owner: bytes) -> int:
        """Vault index of a wallet address as of the latest block; 0 if it has none."""

    async def token_balance_usdc6(self, owner: bytes, block: int | None = None) -> int: ...

    # --- the vault: transactions of the settler -----------------------------------------------
    async def settler_nonce(self) -> int:
        """Next nonce by the latest block. What was prepared but not mined is the caller's."""

    async def simulate_settle(self, batch_id: int, packed: bytes) -> None:
        """Raises ContractRejected (AccountRejected names the account) as the vault would."""

    async def simulate_withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        """Raises ContractRejected as the vault would."""

    async def prepare_settle(self, batch_id: int, packed: bytes, nonce: int) -> SignedTransaction:
        """Sign without sending. The batch is not simulated here."""

    async def prepare_withdraw(
        self, withdrawal_id: int, account: int, amount_usdc6: int, nonce: int
    ) -> SignedTransaction: ...

    # --- sending ------------------------------------------------------------------------------
    async def send(self, transaction: SignedTransaction) -> None:
        """Hand it to the node; harmless when the node knows it already.

        Raises NonceUsed (another transaction took the nonce, or one before it is missing),
        TransactionRefused, ChainUnavailable (the node may have it all the same).
        """

    async def receipt(self, transaction_hash: bytes) -> Receipt | None:
        """None while it is not mined. A reverted one is returned with `succeeded` false."""

    async def wait(self, transaction_hash: bytes) -> Receipt:
        """Poll until mined. Raises TransactionNotMined after `wait_seconds`."""

    # --- prices -------------------------------------------------------------------------------
    async def ensure_feeds(self, descriptions: dict[int, str]) -> dict[int, bytes]:
        """Feed addresses by product, deploying what is missing; idempotent."""

    async def publish(self, points: Sequence[PricePoint]) -> Receipt:
        """One transaction for all. Raises RoundOutOfOrder, ContractRejected; nothing is partial."""

    async def feed_address(self, product: int) -> bytes:
        """20 zero bytes if the product has no feed."""

    async def read_feed(self, feed: bytes, round_id: int | None = None) -> FeedAnswer:
        """Through Chainlink's AggregatorV3Interface: latest, or one round. Raises NoData."""

    async def feed_description(self, feed: bytes) -> tuple[str, int]:
        """description() and decimals()."""

    # --- wallets ------------------------------------------------------------------------------
    async def fund(self, fundings: Sequence[Funding]) -> list[int]:
        """Each wallet mints test USDC and deposits it with its own signature.

        The deployer sends gas money first. Accounts open in the order given; returns their
        vault indices. Raises ChainMismatch when the token is not TestUSDC.
        """
