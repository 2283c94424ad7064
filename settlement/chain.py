"""The contracts as the rest of settlement sees them, on the embedded chain or any other node.

Owns the conversation with one node: what is deployed where, who signs what, which block counts as
final. It stores nothing but the addresses file: whoever sends a transaction whose loss would
matter prepares it first (the signed bytes and their hash are known before they are sent) and
keeps it. Invariant: the same calls do the same on every node; amounts are integers throughout.
Only settlement's service, the node that assembles it, and the tests call this module.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

from aiohttp import ClientError
from coincurve import PrivateKey
from eth_account import Account
from eth_typing import ChecksumAddress
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import (
    BlockNotFound,
    ContractLogicError,
    ProviderConnectionError,
    TransactionNotFound,
    Web3RPCError,
)
from web3.providers.async_base import AsyncBaseProvider
from web3.types import BlockIdentifier

from settlement import addresses as file
from settlement import vault as v
from settlement.abi import Interface, rejection
from settlement.addresses import CONTRACTS_FILE, Addresses
from settlement.contracts import artifact
from settlement.errors import (
    ChainMismatch,
    ChainUnavailable,
    NonceUsed,
    TransactionNotMined,
    TransactionRefused,
    TransactionReverted,
    Underpriced,
)
from settlement.fees import Fees, Market
from settlement.vault import VAULT, Call, VaultAccount, VaultLog, VaultState

PRICE_E8_PER_TICK: Final = 10_000  # a tick is $0.0001; a feed counts in 1e-8 dollars
PRICES_PER_ROUND_MAX: Final = 256  # one transaction below the gas limit, all slots being new
TRANSACTION_GAS_MAX: Final = 1 << 24  # EIP-7825
LOG_BLOCKS_MAX: Final = 5_000  # nodes refuse longer ranges in one query
ACCOUNTS_PER_READ: Final = 500
SENDS_AT_ONCE: Final = 64
TIMELOCK_SECONDS: Final = 8 * 86_400  # from a proposal to the vault's administrator to its effect
_DEPLOY_GAS: Final = 6_000_000
_VAULT_GAS: Final = 15_000_000  # both halves
_ROUND_GAS: Final = 60_000  # per price
_FEED_GAS: Final = 700_000
_WALLET_GAS: Final = 250_000  # each of mint, approve, deposit
_TRANSFER_GAS: Final = 21_000

_TOKEN: Final = Interface("TestUSDC")
_ORACLE: Final = Interface("PriceOracle")
_FEED: Final = Interface("AggregatorV3Interface")
_NO_ADDRESS: Final = bytes(20)
# As geth and its kin say it, OpenEthereum, Nethermind.
_KNOWN_ALREADY: Final = ("already known", "already imported", "alreadyknown")
_BESU_KNOWN: Final = "known transaction"  # at the beginning: an "unknown transaction type" is not
_TAGS: Final[tuple[BlockIdentifier, ...]] = ("latest", "safe", "finalized")
_T = TypeVar("_T")


def address_of(key: bytes) -> bytes:
    """The 20-byte address of a 32-byte private key."""
    return keccak(PrivateKey(key).public_key.format(compressed=False)[1:])[-20:]


def checksum(address: bytes) -> ChecksumAddress:
    """The address as people and web3 write it (EIP-55)."""
    return to_checksum_address(address)


class Keys(NamedTuple):
    """32-byte private keys of the exchange's roles. They may be one key, but need not be."""

    deployer: bytes  # also pays for gas of wallets that are funded
    settler: bytes  # settle and withdraw
    publisher: bytes  # prices


NOBODY: Final = Keys(b"", b"", b"")  # who only reads


class Officers(NamedTuple):
    """20-byte addresses of who has a word in a vault that is deployed here, beside the settler."""

    arbiter: bytes  # decides on bonds; never the settler
    pauser: bytes  # stops deposits, settling and releasing


class SignedTransaction(NamedTuple):
    """Ready to send, as often as needed: the same bytes are mined at most once."""

    nonce: int
    raw: bytes
    hash: bytes  # 32 bytes


class Heights(NamedTuple):
    """Numbers of blocks, each at most the one before; 0 at the start of the chain."""

    newest: int
    safe: int  # unlikely to be reorganised away
    final: int  # counts as never to be


class Receipt(NamedTuple):
    hash: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    contract: bytes = bytes(20)  # address of the contract it created, if any


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
    confirmations: int = 0  # blocks on top before a block counts as final, half of them as safe
    asks_node: bool = False  # which blocks are safe and final, instead of counting
    poll_seconds: float = 0.01  # between two looks for a receipt
    wait_seconds: float = 60.0  # for a receipt, before TransactionNotMined
    request_seconds: float = 30.0  # for one answer of the node, before ChainUnavailable


class Chain:
    """One node, one set of contracts. Addresses are 20 bytes; `checksum()` prints them."""

    def __init__(self, w3: AsyncWeb3[Any], chain_id: int, keys: Keys, options: Options) -> None:
        """Use `connect`."""
        self._w3 = w3
        self._is_embedded = not isinstance(cast(object, w3.provider), AsyncHTTPProvider)
        self.keys = keys
        self._options = options
        self._publishing = asyncio.Lock()
        self._deploying = asyncio.Lock()  # also: sending gas money
        self._addresses = Addresses()
        self.chain_id = chain_id

    @property
    def token(self) -> bytes:
        return self._addresses.token

    @property
    def vault(self) -> bytes:
        return self._addresses.vault

    @property
    def oracle(self) -> bytes:
        return self._addresses.oracle

    @property
    def deploy_block(self) -> int:
        """No log of the vault is older."""
        return self._addresses.deploy_block

    @classmethod
    async def connect(
        cls, node: AsyncBaseProvider | str, keys: Keys, options: Options | None = None
    ) -> "Chain":
        """`node` is `EmbeddedChain.provider` or an RPC URL. Raises ChainUnavailable."""
        options = options or Options()
        provider = AsyncHTTPProvider(node) if isinstance(node, str) else node
        w3: AsyncWeb3[Any] = AsyncWeb3(provider, middleware=[])
        chain = cls(w3, 0, keys, options)
        chain.chain_id = await chain._ask(w3.eth.chain_id)
        return chain

    async def close(self) -> None:
        """Close the connection to the node; the node itself is whoever opened it's."""
        provider = cast(object, self._w3.provider)
        if isinstance(provider, AsyncHTTPProvider):
            await provider.disconnect()

    async def _ask(self, question: Awaitable[_T]) -> _T:
        """One request, with settlement's own errors."""
        try:
            async with asyncio.timeout(self._options.request_seconds):
                return await question
        except (TransactionNotFound, BlockNotFound):
            raise  # an answer, not a failure
        except ContractLogicError as error:
            data = error.data if isinstance(error.data, str) else "0x"
            raise rejection(bytes.fromhex(data.removeprefix("0x"))) from error
        except Web3RPCError as error:
            raise ChainUnavailable(f"the node answered: {_said(error)}") from error
        except (TimeoutError, OSError, ClientError, ProviderConnectionError) as error:
            raise ChainUnavailable(f"the node does not answer: {error!r}") from error

    async def _call(
        self,
        address: bytes,
        interface: Interface,
        function: str,
        *arguments: object,
        block: BlockIdentifier | None = None,
        sender: bytes = _NO_ADDRESS,
    ) -> tuple[Any, ...]:
        data = interface.encode(function, *arguments)
        transaction: Any = {"from": checksum(sender), "to": checksum(address), "data": data}
        at: Any = "latest" if block is None else block
        return interface.decode(function, await self._ask(self._w3.eth.call(transaction, at)))

    # --- deployment ---------------------------------------------------------------------------

    async def deploy_or_load(
        self, directory: Path | None, token: bytes | None = None, officers: Officers | None = None
    ) -> bool:
        """Use the contracts in `directory`/contracts.json, or deploy and write that file.

        `token` is an existing six-decimal USDC to settle in; without it TestUSDC is deployed.
        `officers` are the deployer, unless they are named. With `directory` None nothing is kept.
        True if it deployed. Raises ChainMismatch when the file is about another chain, or the code
        at an address is not the committed one; VaultOutdated.
        """
        path = None if directory is None else directory / CONTRACTS_FILE
        if path is not None and path.exists():
            self._addresses = file.load(path, self.chain_id)
            await self._verify(path)
            if token is not None and token != self.token:
                raise ChainMismatch(f"{path} settles in {checksum(self.token)}")
            return False
        deployer = address_of(self.keys.deployer)
        await self._deploy(token, officers or Officers(deployer, deployer))
        await self._verify(None)
        if path is not None:
            file.save(path, self.chain_id, self._addresses)
        return True

    async def watch(self, vault: str, deploy_block: int = 0) -> None:
        """Only read a vault, whoever settles on it; its address is given as people write it. Raises
        ChainMismatch when it is not one of this version."""
        if not is_address(vault):
            raise ChainMismatch(f"{vault!r} is not an address")
        self._addresses = Addresses(vault=_bytes(vault), deploy_block=deploy_block)
        await self._verify_vault(None)

    async def watch_deployed(self, directory: Path) -> None:
        """The same of the vault in `directory`/contracts.json."""
        addresses = file.load(directory / CONTRACTS_FILE, self.chain_id)
        await self.watch(checksum(addresses.vault), addresses.deploy_block)

    async def _verify(self, path: Path | None) -> None:
        addresses = self._addresses
        expected = [("PriceOracle", self.oracle), ("ParameterTimelock", addresses.timelock)]
        if addresses.is_test_token:
            expected.append(("TestUSDC", self.token))
        for name, address in expected:
            await self._verify_code(name, address, path)
        await self._verify_vault(path)

    async def _verify_vault(self, path: Path | None) -> None:
        await self._verify_code("VaultV2", self.vault, path)
        # The other half is the vault's own choice: whatever is there, its money is moved by it.
        (half,) = await self._call(self.vault, VAULT, "DISPUTES")
        await self._verify_code("Disputes", _bytes(half), path)

    async def _verify_code(self, name: str, address: bytes, path: Path | None) -> None:
        code = await self._ask(self._w3.eth.get_code(checksum(address)))
        if not artifact(name).is_runtime(bytes(code)):
            source = "" if path is None else f", which {path} names,"
            found = "other code" if code else "nothing"
            raise ChainMismatch(
                f"at {checksum(address)}{source} there is {found}, not this version's {name}"
            )

    async def _deploy(self, token: bytes | None, officers: Officers) -> None:
        deployer, settler = address_of(self.keys.deployer), address_of(self.keys.settler)
        if officers.arbiter == settler:
            raise ChainMismatch("the settler must not be the arbiter of its own leases")
        async with self._deploying:
            given = Addresses(token=token or _NO_ADDRESS, is_test_token=token is None)
            if token is None:
                given = given._replace(token=(await self._create("TestUSDC")).contract)
            timelock = await self._create(
                "ParameterTimelock", TIMELOCK_SECONDS, [deployer], [_NO_ADDRESS]
            )
            vault = await self._create(
                "VaultV2", given.token, timelock.contract, settler, *officers,
                v.SETTLER_BOND_MIN_USDC6, gas=_VAULT_GAS,
            )  # fmt: skip
            publisher = address_of(self.keys.publisher)
            oracle = await self._create("PriceOracle", deployer, publisher)
            self._addresses = given._replace(
                timelock=timelock.contract,
                vault=vault.contract,
                deploy_block=vault.block_number,
                oracle=oracle.contract,
            )
        if given.is_test_token:
            await self.add_settler_bond(2 * v.SETTLER_BOND_MIN_USDC6)

    async def _create(self, name: str, *arguments: object, gas: int = _DEPLOY_GAS) -> Receipt:
        data = artifact(name).bytecode + Interface(name).constructor(*arguments)
        nonce = await self._nonce(address_of(self.keys.deployer))
        signed = await self._sign(self.keys.deployer, nonce, None, data, gas)
        await self.send(signed)
        return await self._mined(signed)

    async def add_settler_bond(self, amount_usdc6: int) -> None:
        """Put the deployer's money behind the settler's word; of test USDC it makes some."""
        key, deployer = self.keys.deployer, address_of(self.keys.deployer)
        calls = [
            Call(self.token, _TOKEN.encode("approve", self.vault, amount_usdc6), _WALLET_GAS),
            v.add_settler_bond(self.vault, amount_usdc6),
        ]
        if self._addresses.is_test_token:
            data = _TOKEN.encode("mint", deployer, amount_usdc6)
            calls.insert(0, Call(self.token, data, _WALLET_GAS))
        async with self._deploying:
            for call in calls:
                nonce = await self._nonce(deployer)
                signed = await self._sign(key, nonce, call.to, call.data, call.gas)
                await self.send(signed)
                await self._mined(signed)

    # --- blocks -------------------------------------------------------------------------------

    async def heights(self) -> Heights:
        """As the node knows them now; another answer may come from a node that lags behind."""
        if self._options.asks_node:
            blocks = [await self._block(tag) for tag in _TAGS]
            newest, safe, final = (int(block["number"]) for block in blocks)
            return Heights(newest, min(safe, newest), min(final, safe, newest))
        newest = await self._ask(self._w3.eth.block_number)
        on_top = self._options.confirmations
        return Heights(newest, max(0, newest - -(-on_top // 2)), max(0, newest - on_top))

    async def final_block(self) -> int:
        """Number of the newest block that counts as final; 0 at the start of the chain."""
        return (await self.heights()).final

    async def block_hash(self, number: int) -> bytes | None:
        """Canonical hash at this height; None above the newest block that the node has."""
        try:
            block: Any = await self._ask(self._w3.eth.get_block(number))
        except BlockNotFound:
            return None
        return bytes(block["hash"])

    async def block_time_s(self, number: int) -> int:
        """Unix seconds that the contracts saw in this block."""
        return (await self._block(number))["timestamp"]

    async def _block(self, which: BlockIdentifier) -> Any:
        """Raises ChainUnavailable when the node does not have it: another one may."""
        try:
            return await self._ask(self._w3.eth.get_block(which))
        except BlockNotFound as error:
            raise ChainUnavailable(f"the node has not got block {which!r}") from error

    async def past_s(self, block: int) -> int:
        """Unix seconds that no block behind this one is before: its own time. Where blocks come
        with transactions alone, on the embedded chain, time goes on without them: what the block
        to come would have, if there is none yet behind this one."""
        if self._is_embedded:
            pending = await self._block("pending")
            if pending["number"] == block:
                return pending["timestamp"]
        return await self.block_time_s(block)

    # --- the vault: reads -----------------------------------------------------------------------

    async def vault_logs(self, first_block: int, last_block: int) -> list[VaultLog]:
        """All that the vault and its other half have logged in these blocks, in order."""
        logs: list[VaultLog] = []
        for first in range(max(first_block, self.deploy_block), last_block + 1, LOG_BLOCKS_MAX):
            query: Any = {
                "address": checksum(self.vault),
                "fromBlock": first,
                "toBlock": min(first + LOG_BLOCKS_MAX - 1, last_block),
            }
            found = cast(list[Any], await self._ask(self._w3.eth.get_logs(query)))
            logs += [log for log in map(v.read_log, found) if log is not None]
        return sorted(logs, key=lambda log: (log.block_number, log.log_index))

    async def vault_state(self, block: int) -> VaultState:
        """The vault's counters as of the end of `block`."""
        c, n, balance_usdc6 = await self._call(self.vault, VAULT, "state", block=block)
        head, last_withdrawal, settler_bond, last_heard, accounts, is_paused, is_frozen = c
        deposits, releases, exits = n
        return VaultState(
            block, head, await self.batch_root(head, block), deposits, accounts, last_withdrawal,
            exits, releases, settler_bond, last_heard, is_paused, is_frozen, balance_usdc6,
        )  # fmt: skip

    async def vault_accounts(self, block: int | None = None) -> list[VaultAccount]:
        """All accounts, ascending from 0, the exchange's, as of the end of `block`, or now: after
        what the node knows to be on its way, and with what has matured by this time."""
        accounts: list[VaultAccount] = []
        while True:
            page = await self._accounts_from(len(accounts), ACCOUNTS_PER_READ, block)
            accounts += page
            if len(page) < ACCOUNTS_PER_READ:
                return accounts

    async def vault_account(self, account: int, block: int | None = None) -> VaultAccount:
        """One account that exists, as of the end of `block`, or now."""
        (found,) = await self._accounts_from(account, 1, block)
        return found

    async def _accounts_from(self, first: int, count: int, block: int | None) -> list[VaultAccount]:
        at = "pending" if block is None else block
        (page,) = await self._call(self.vault, VAULT, "accountsFrom", first, count, block=at)
        return [
            VaultAccount(
                first + i, _bytes(owner), free, locked, bond, exit_at, matured, earning, bond_at
            )
            for i, (owner, free, locked, bond, matured, earning, exit_at, bond_at)
            in enumerate(page)
        ]  # fmt: skip

    async def batch_root(self, batch_id: int, block: int | None = None) -> bytes:
        """The first 27 bytes of the batch's root; zeros if it is not settled."""
        return (await self._call(self.vault, VAULT, "batch", batch_id, block=block))[0]

    async def account_of(self, owner: bytes) -> int:
        """Vault index of a wallet address as of the latest block; 0 if it has none."""
        return (await self._call(self.vault, VAULT, "indexOf", owner))[0]

    async def token_balance_usdc6(self, owner: bytes, block: int | None = None) -> int:
        """What a wallet or contract holds of the token; as of the latest block by default."""
        return (await self._call(self.token, _TOKEN, "balanceOf", owner, block=block))[0]

    async def settled_fills(self, batch_id: int, transaction_hash: bytes) -> bytes:
        """The bytes that this transaction settled as the batch. Raises ChainMismatch when it did
        not call the vault itself, so that they are not to be read from it."""
        try:
            found: Any = await self._ask(self._w3.eth.get_transaction(HexBytes(transaction_hash)))
        except TransactionNotFound:
            raise ChainUnavailable(f"the node lacks 0x{transaction_hash.hex()}") from None
        called = VAULT.arguments("settle", bytes(found["input"]))
        to = _bytes(found["to"]) if found["to"] else _NO_ADDRESS
        if to != self.vault or called is None or called[0] != batch_id:
            raise ChainMismatch(f"0x{transaction_hash.hex()} does not settle batch {batch_id}")
        return called[1]

    # --- the vault: transactions of the settler -------------------------------------------------

    async def settler_nonce(self, block: int | None = None) -> int:
        """Next nonce, by the latest block or as of the end of `block`. What was prepared but not
        mined is the caller's."""
        return await self._nonce(address_of(self.keys.settler), block)

    async def simulate(self, call: Call) -> None:
        """Raises ContractRejected (AccountRejected names the account) as the contract would, after
        what the node knows to be on its way."""
        settler = checksum(address_of(self.keys.settler))
        transaction: Any = {"from": settler, "to": checksum(call.to), "data": call.data}
        await self._ask(self._w3.eth.call(transaction, "pending"))

    def settle_call(self, batch_id: int, packed: bytes) -> Call:
        """Lock what buyers pay for a batch."""
        return v.settle(self.vault, batch_id, packed)

    def withdraw_call(self, withdrawal_id: int, account: int, amount_usdc6: int) -> Call:
        """Pay an account's owner out."""
        return v.withdraw(self.vault, withdrawal_id, account, amount_usdc6)

    def release_call(self, release_id: int, batch_id: int, accounts: bytes, records: bytes) -> Call:
        """Pay leases out of escrow."""
        return v.release(self.vault, release_id, batch_id, accounts, records)

    def collect_call(self, account: int) -> Call:
        """Make an account's matured earnings free."""
        return v.collect(self.vault, account)

    def heartbeat_call(self) -> Call:
        """Say that the settler is there."""
        return v.heartbeat(self.vault)

    async def simulate_settle(self, batch_id: int, packed: bytes) -> None:
        """Raises ContractRejected (AccountRejected names the account) as the vault would."""
        await self.simulate(self.settle_call(batch_id, packed))

    async def simulate_withdraw(self, withdrawal_id: int, account: int, amount_usdc6: int) -> None:
        """Raises ContractRejected as the vault would."""
        await self.simulate(self.withdraw_call(withdrawal_id, account, amount_usdc6))

    async def is_paid(self, withdrawal_id: int, block: int) -> bool:
        """Whether a withdrawal was executed by the end of `block`, going by the vault's logs."""
        topics = [HexBytes(VAULT.topic("Withdrawn")), HexBytes(withdrawal_id.to_bytes(32, "big"))]
        last = block
        while last >= self.deploy_block:  # it was most likely not long ago
            first = max(last - LOG_BLOCKS_MAX + 1, self.deploy_block)
            query: Any = {
                "address": checksum(self.vault), "topics": topics,
                "fromBlock": first, "toBlock": last,
            }  # fmt: skip
            if await self._ask(self._w3.eth.get_logs(query)):
                return True
            last = first - 1
        return False

    async def sign(self, call: Call, nonce: int, fees: Fees | None = None) -> SignedTransaction:
        """As the settler, without sending: the same bytes for the same arguments. Without `fees`
        what is usual now."""
        return await self._sign(
            self.keys.settler, nonce, call.to, call.data, call.gas, fees_wei=fees
        )

    async def market(self) -> Market:
        """What gas costs by the newest block."""
        block = await self._block("latest")
        return Market(int(block["baseFeePerGas"]), await self._ask(self._w3.eth.max_priority_fee))

    async def _nonce(self, sender: bytes, block: int | None = None) -> int:
        at: Any = "latest" if block is None else block
        return await self._ask(self._w3.eth.get_transaction_count(checksum(sender), at))

    async def _max_fee_wei(self) -> tuple[int, int]:
        """(fee cap, tip): the cap outlives a doubling of the base fee."""
        market = await self.market()
        return 2 * market.base_fee_wei + market.tip_wei, market.tip_wei

    async def _sign(
        self,
        key: bytes,
        nonce: int,
        to: bytes | None,
        data: bytes,
        gas: int,
        value_wei: int = 0,
        fees_wei: tuple[int, int] | None = None,
    ) -> SignedTransaction:
        cap, tip = fees_wei or await self._max_fee_wei()
        fields: dict[str, Any] = {
            "chainId": self.chain_id,
            "nonce": nonce,
            "gas": gas,
            "maxFeePerGas": cap,
            "maxPriorityFeePerGas": tip,
            "value": value_wei,
            "data": data,
        }
        if to is not None:
            fields["to"] = checksum(to)
        signed = Account.sign_transaction(fields, key)
        return SignedTransaction(nonce, bytes(signed.raw_transaction), bytes(signed.hash))

    # --- sending --------------------------------------------------------------------------------

    async def send(self, transaction: SignedTransaction) -> None:
        """Hand it to the node; harmless when the node knows it already.

        Raises NonceUsed (another transaction took the nonce, or one before it is missing),
        Underpriced, TransactionRefused, ChainUnavailable (the node may have it all the same).
        """
        try:
            async with asyncio.timeout(self._options.request_seconds):
                await self._w3.eth.send_raw_transaction(HexBytes(transaction.raw))
        except Web3RPCError as error:
            said = _said(error).lower()
            if said.startswith(_BESU_KNOWN) or any(words in said for words in _KNOWN_ALREADY):
                return
            if "nonce too low" in said and await self.receipt(transaction.hash) is not None:
                return
            if "underpriced" in said or "less than block base fee" in said:
                raise Underpriced(f"nonce {transaction.nonce}: {said}") from error
            if "nonce" in said:
                raise NonceUsed(f"nonce {transaction.nonce}: {said}") from error
            raise TransactionRefused(said) from error
        except (TimeoutError, OSError, ClientError, ProviderConnectionError) as error:
            raise ChainUnavailable(f"the node does not answer: {error!r}") from error

    async def receipt(self, transaction_hash: bytes) -> Receipt | None:
        """None while it is not mined. A reverted one is returned with `succeeded` false."""
        try:
            found: Any = await self._ask(
                self._w3.eth.get_transaction_receipt(HexBytes(transaction_hash))
            )
        except TransactionNotFound:
            return None
        created = found["contractAddress"]
        return Receipt(
            hash=transaction_hash,
            block_number=found["blockNumber"],
            block_hash=bytes(found["blockHash"]),
            succeeded=found["status"] == 1,
            gas_used=found["gasUsed"],
            contract=_bytes(created) if created else _NO_ADDRESS,
        )

    async def wait(self, transaction_hash: bytes) -> Receipt:
        """Poll until mined. Raises TransactionNotMined after `wait_seconds`."""
        try:
            async with asyncio.timeout(self._options.wait_seconds):
                while (found := await self.receipt(transaction_hash)) is None:  # noqa: ASYNC110 a node
                    await asyncio.sleep(self._options.poll_seconds)
                return found
        except TimeoutError:
            raise TransactionNotMined(
                f"0x{transaction_hash.hex()} after {self._options.wait_seconds} s"
            ) from None

    async def _mined(self, transaction: SignedTransaction) -> Receipt:
        found = await self.wait(transaction.hash)
        if not found.succeeded:
            raise TransactionReverted(f"0x{transaction.hash.hex()} in block {found.block_number}")
        return found

    # --- prices ---------------------------------------------------------------------------------

    async def ensure_feeds(self, descriptions: dict[int, str]) -> dict[int, bytes]:
        """Feed addresses by product, deploying what is missing; idempotent."""
        key = self.keys.publisher
        async with self._publishing:
            missing = [
                (product, description)
                for product, description in descriptions.items()
                if await self.feed_address(product) == _NO_ADDRESS
            ]
            nonce, fees = await self._nonce(address_of(key)), await self._max_fee_wei()
            calls = [_ORACLE.encode("createFeed", *entry) for entry in missing]
            await self._send_all(
                [
                    await self._sign(key, nonce + i, self.oracle, data, _FEED_GAS, 0, fees)
                    for i, data in enumerate(calls)
                ]
            )
        return {product: await self.feed_address(product) for product in descriptions}

    async def publish(self, points: Sequence[PricePoint]) -> Receipt:
        """One transaction for all. Raises RoundOutOfOrder, WindowNotOver, ContractRejected; nothing
        is partial."""
        assert 0 < len(points) <= PRICES_PER_ROUND_MAX, "the caller splits longer lists"
        async with self._publishing:
            sender = address_of(self.keys.publisher)
            rows = [tuple(point) for point in points]
            # The newest block may be older than the window, where blocks come with transactions.
            await self._call(self.oracle, _ORACLE, "publish", rows, block="pending", sender=sender)
            signed = await self._sign(
                self.keys.publisher,
                await self._nonce(sender),
                self.oracle,
                _ORACLE.encode("publish", rows),
                100_000 + _ROUND_GAS * len(points),
            )
            await self.send(signed)
            return await self._mined(signed)

    async def feed_address(self, product: int) -> bytes:
        """20 zero bytes if the product has no feed."""
        return _bytes((await self._call(self.oracle, _ORACLE, "feed", product))[0])

    async def read_feed(self, feed: bytes, round_id: int | None = None) -> FeedAnswer:
        """Through Chainlink's AggregatorV3Interface: latest, or one round. Raises NoData."""
        if round_id is None:
            return FeedAnswer._make(await self._call(feed, _FEED, "latestRoundData"))
        return FeedAnswer._make(await self._call(feed, _FEED, "getRoundData", round_id))

    async def feed_description(self, feed: bytes) -> tuple[str, int]:
        """description() and decimals()."""
        (description,) = await self._call(feed, _FEED, "description")
        (decimals,) = await self._call(feed, _FEED, "decimals")
        return description, decimals

    # --- wallets --------------------------------------------------------------------------------

    async def fund(self, fundings: Sequence[Funding]) -> list[int]:
        """Each wallet mints test USDC and deposits it with its own signature.

        The deployer sends gas money first. Accounts open in the order given; returns their
        vault indices. Each wallet appears once; an amount is 0 or within the vault's limits (a
        dollar at least). Raises ChainMismatch when the token is not TestUSDC.
        """
        assert len({funding.key for funding in fundings}) == len(fundings), "each wallet once"
        if not self._addresses.is_test_token:
            raise ChainMismatch("only test USDC can be minted")
        fees = await self._max_fee_wei()
        await self._send_gas_money([address_of(funding.key) for funding in fundings], fees)
        steps = [await self._funding_steps(funding, fees) for funding in fundings]
        await self._send_all([signed for wallet in steps for signed in wallet[:2]])
        # The first deposits open the accounts: one by one, so that they open in the order given.
        for wallet in steps:
            for signed in wallet[2:3]:
                await self.send(signed)
        for wallet in steps:
            for signed in wallet[2:3]:
                await self._mined(signed)
        await self._send_all([signed for wallet in steps for signed in wallet[3:]])
        return [await self.account_of(address_of(funding.key)) for funding in fundings]

    async def _send_all(self, transactions: Sequence[SignedTransaction]) -> None:
        """Many at once, and wait for all; a node keeps what comes ahead of its nonce."""
        for start in range(0, len(transactions), SENDS_AT_ONCE):
            part = transactions[start : start + SENDS_AT_ONCE]
            await asyncio.gather(*(self.send(signed) for signed in part))
        for signed in transactions:
            await self._mined(signed)

    async def _send_gas_money(self, wallets: Sequence[bytes], fees_wei: tuple[int, int]) -> None:
        # A wallet's own transactions may find the base fee doubled by those before them.
        value = 4 * _WALLET_GAS * fees_wei[0] * 4
        key = self.keys.deployer
        async with self._deploying:
            nonce = await self._nonce(address_of(key))
            await self._send_all(
                [
                    await self._sign(key, nonce + i, wallet, b"", _TRANSFER_GAS, value, fees_wei)
                    for i, wallet in enumerate(wallets)
                ]
            )

    async def _funding_steps(
        self, funding: Funding, fees_wei: tuple[int, int]
    ) -> list[SignedTransaction]:
        wallet = address_of(funding.key)
        total = funding.cash_usdc6 + funding.bond_usdc6
        calls = [
            (self.token, _TOKEN.encode("mint", wallet, total)),
            (self.token, _TOKEN.encode("approve", self.vault, total)),
        ]
        if funding.cash_usdc6:
            calls.append((self.vault, VAULT.encode("deposit", funding.cash_usdc6, False)))
        if funding.bond_usdc6:
            calls.append((self.vault, VAULT.encode("deposit", funding.bond_usdc6, True)))
        nonce = await self._nonce(wallet)
        return [
            await self._sign(funding.key, nonce + i, to, data, _WALLET_GAS, 0, fees_wei)
            for i, (to, data) in enumerate(calls)
        ]


def _said(error: Web3RPCError) -> str:
    """The node's own words, which web3 wraps."""
    answer = cast("dict[str, Any]", error.rpc_response or {}).get("error")
    return (
        str(cast("dict[str, Any]", answer)["message"]) if isinstance(answer, dict) else str(error)
    )


def _bytes(address: str) -> bytes:
    return bytes.fromhex(address.removeprefix("0x"))
