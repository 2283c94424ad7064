"""An Ethereum chain in memory, answered in JSON-RPC's own shapes: py-evm under Prague rules.

Owns blocks, receipts and state. Invariant: it is a pure function of its genesis time and the
blocks it was given (time, transactions), down to each block hash; no clock, no randomness, no
disk. Not safe for threads: only `devchain` calls it, from its one worker.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

from eth._utils.address import generate_contract_address
from eth.abc import BlockAPI, BlockHeaderAPI, ReceiptAPI, SignedTransactionAPI
from eth.chains.base import MiningChain
from eth.constants import (
    BLANK_ROOT_HASH,
    POST_MERGE_DIFFICULTY,
    POST_MERGE_MIX_HASH,
    POST_MERGE_NONCE,
    ZERO_ADDRESS,
)
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_typing import Address, BlockNumber
from eth_utils.exceptions import ValidationError

CHAIN_ID: Final = 636_867  # of no public network
BLOCK_GAS_MAX: Final = 30_000_000
TRANSACTION_GAS_MAX: Final = 1 << 24  # EIP-7825's limit, which the next fork enforces
TRANSACTION_BYTES_MAX: Final = 128 * 1024  # what other nodes' pools take
PRIORITY_FEE_WEI: Final = 1
TRANSACTION_TYPES: Final = (0, 1, 2)  # legacy, access list, fee market; no blobs, no delegation
LOG_BLOCKS_MAX: Final = 10_000  # one eth_getLogs looks at no more blocks
GENESIS_BALANCE_WEI: Final = 10**27

Json = dict[str, Any]


class RpcError(Exception):
    """An answer in JSON-RPC's `error` field. Code 3 is a revert, `data` what it reverted with."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Mined(NamedTuple):
    """What became of one transaction: its hash, and why it was refused (then nothing changed)."""

    hash: bytes
    refusal: str


class _Chain(MiningChain):
    chain_id = CHAIN_ID
    vm_configuration = ((BlockNumber(0), PragueVM),)


def _hex(value: bytes | int) -> str:
    return hex(value) if isinstance(value, int) else "0x" + value.hex()


def _from_hex(text: object, what: str) -> bytes:
    if not isinstance(text, str) or not text.startswith("0x"):
        raise RpcError(-32602, f"{what}: hexadecimal digits after 0x expected")
    try:
        return bytes.fromhex(text[2:])
    except ValueError:
        raise RpcError(-32602, f"{what}: an even number of hexadecimal digits expected") from None


def _quantity(text: object, what: str) -> int:
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 66:
        raise RpcError(-32602, f"{what}: a quantity such as 0x1 expected")
    try:
        return int(text, 16)
    except ValueError:
        raise RpcError(-32602, f"{what}: a quantity such as 0x1 expected") from None


def _address(text: object, what: str) -> Address:
    raw = _from_hex(text, what)
    if len(raw) != 20:
        raise RpcError(-32602, f"{what}: an address of 20 bytes expected")
    return Address(raw)


class Evm:
    """Blocks are made by `mine` alone; everything else reads. Errors are RpcError."""

    def __init__(self, genesis_time_s: int, funded: Sequence[bytes]) -> None:
        """`funded` are the 20-byte addresses that own ether at the start."""
        parameters: Any = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": BLOCK_GAS_MAX,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "timestamp": genesis_time_s,
            "transaction_root": BLANK_ROOT_HASH,
        }
        account: dict[str, object] = {
            "balance": GENESIS_BALANCE_WEI,
            "nonce": 0,
            "code": b"",
            "storage": {},
        }
        state: Any = {Address(address): account for address in funded}
        self._chain = cast(_Chain, _Chain.from_genesis(AtomicDB(), parameters, state))
        self._headers: list[BlockHeaderAPI] = [self._chain.get_canonical_head()]
        self._blocks: list[Json] = [self._block_json(self._chain.get_canonical_block_by_number(0))]  # pyright: ignore[reportArgumentType]
        self._number_of: dict[str, int] = {self._blocks[0]["hash"]: 0}
        self._transactions: dict[str, Json] = {}
        self._receipts: dict[str, Json] = {}
        self._logs: list[list[Json]] = [[]]  # by block number
        self._pending_s = genesis_time_s + 1
        self._methods: dict[str, Callable[..., object]] = {
            "eth_blockNumber": lambda: _hex(self.height),
            "eth_call": self._call,
            "eth_chainId": lambda: _hex(CHAIN_ID),
            "eth_estimateGas": self._estimate_gas,
            "eth_gasPrice": lambda: _hex(_base_fee_wei(self._headers[-1]) + PRIORITY_FEE_WEI),
            "eth_getBalance": self._balance,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getCode": self._code,
            "eth_getLogs": self._get_logs,
            "eth_getStorageAt": self._storage,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionCount": self._nonce,
            "eth_getTransactionReceipt": self._receipt,
            "eth_maxPriorityFeePerGas": lambda: _hex(PRIORITY_FEE_WEI),
            "eth_syncing": lambda: False,
            "net_version": lambda: str(CHAIN_ID),
            "web3_clientVersion": lambda: "compex/embedded/py-evm",
        }

    # --- blocks ---------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        return len(self._headers) - 1

    @property
    def time_s(self) -> int:
        """Timestamp of the newest block."""
        return self._headers[-1].timestamp

    def block_hash(self, number: int) -> bytes:
        return self._headers[number].hash

    def decode(self, raw: bytes) -> SignedTransactionAPI:
        """Check what does not depend on the state. Raises RpcError."""
        if len(raw) > TRANSACTION_BYTES_MAX:
            raise RpcError(-32000, f"oversized data: at most {TRANSACTION_BYTES_MAX} bytes")
        try:
            transaction = PragueVM.get_transaction_builder().decode(raw)
            transaction.validate()
            transaction.check_signature_validity()
        except Exception as error:  # whatever a decoder of foreign bytes may raise
            raise RpcError(-32000, f"invalid transaction: {error}") from error
        if (getattr(transaction, "type_id", None) or 0) not in TRANSACTION_TYPES:
            raise RpcError(-32000, "transaction type not supported")
        if transaction.chain_id != CHAIN_ID:
            raise RpcError(-32000, f"invalid chain id: this is chain {CHAIN_ID}")
        if transaction.max_priority_fee_per_gas > transaction.max_fee_per_gas:
            raise RpcError(-32000, "max priority fee per gas higher than max fee per gas")
        if transaction.gas < _least_gas(transaction):
            raise RpcError(-32000, f"intrinsic gas too low: {_least_gas(transaction)} needed")
        if transaction.gas > TRANSACTION_GAS_MAX:
            raise RpcError(-32000, f"transaction gas limit too high: {TRANSACTION_GAS_MAX}")
        if _hex(transaction.hash) in self._transactions:
            raise RpcError(-32000, "already known")
        return transaction

    def mine(self, time_s: int, transactions: Sequence[SignedTransactionAPI]) -> list[Mined]:
        """One block of those that the state allows; no block if it allows none.

        `time_s` must be later than the newest block's. One entry for each transaction, in order.
        """
        assert time_s > self._headers[-1].timestamp, "block times only increase"
        refusals: dict[int, str] = {}
        while not self._try_block(time_s, transactions, refusals):
            pass  # one more refusal
        return [Mined(t.hash, refusals.get(i, "")) for i, t in enumerate(transactions)]

    def _try_block(
        self, time_s: int, transactions: Sequence[SignedTransactionAPI], refusals: dict[int, str]
    ) -> bool:
        """Mine all but the refused ones; false if one more had to be refused half-way.

        What fails half-way may have changed the state, so the block is begun anew without it.
        """
        header = self._chain.create_header_from_parent(
            self._headers[-1], gas_limit=BLOCK_GAS_MAX, timestamp=time_s, coinbase=ZERO_ADDRESS
        )
        vm = self._chain.get_vm(header)
        included: list[SignedTransactionAPI] = []
        receipts: list[ReceiptAPI] = []
        for i, transaction in enumerate(transactions):
            if i in refusals:
                continue
            refusal = self._refusal(transaction, header, vm.state)
            if refusal:
                refusals[i] = refusal
                continue
            try:
                receipt, _ = vm.apply_transaction(header, transaction)
            except (ValidationError, VMError) as error:
                refusals[i] = str(error)
                return False
            header = vm.add_receipt_to_header(header, receipt)
            included.append(transaction)
            receipts.append(receipt)
        if included:
            filled = vm.set_block_transactions_and_withdrawals(
                vm.get_block(), header, tuple(included), tuple(receipts)
            )
            block = vm.mine_block(filled).block
            self._chain.persist_block(block)
            self._remember(block, receipts)
        return True

    def _refusal(
        self, transaction: SignedTransactionAPI, header: BlockHeaderAPI, state: Any
    ) -> str:
        """Why the state does not allow it, in the words of other nodes; "" if it does."""
        base_fee = _base_fee_wei(header)
        if transaction.max_fee_per_gas < base_fee:
            return f"max fee per gas less than block base fee: {base_fee}"
        nonce = state.get_nonce(transaction.sender)
        if transaction.nonce < nonce:
            return f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}"
        if transaction.nonce > nonce:
            return f"nonce too high: next nonce {nonce}, tx nonce {transaction.nonce}"
        cost = transaction.value + transaction.gas * transaction.max_fee_per_gas
        balance = state.get_balance(transaction.sender)
        if balance < cost:
            return f"insufficient funds for gas * price + value: have {balance} want {cost}"
        return ""

    def _remember(self, block: BlockAPI, receipts: Sequence[ReceiptAPI]) -> None:
        self._headers.append(block.header)
        self._blocks.append(self._block_json(block))
        self._number_of[_hex(block.hash)] = block.number
        logs: list[Json] = []
        gas_before = 0
        for index, (transaction, receipt) in enumerate(
            zip(block.transactions, receipts, strict=True)
        ):
            key = _hex(transaction.hash)
            place = {
                "blockHash": _hex(block.hash),
                "blockNumber": _hex(block.number),
                "transactionIndex": _hex(index),
            }
            own_logs = [
                {
                    **place,
                    "transactionHash": key,
                    "address": _hex(log.address),
                    "topics": [_hex(topic.to_bytes(32, "big")) for topic in log.topics],
                    "data": _hex(log.data),
                    "logIndex": _hex(len(logs) + i),
                    "removed": False,
                }
                for i, log in enumerate(receipt.logs)
            ]
            logs += own_logs
            self._transactions[key] = {**self._transaction_json(transaction), **place}
            self._receipts[key] = {
                **place,
                **self._receipt_json(block.header, transaction, receipt, gas_before),
                "logs": own_logs,
            }
            gas_before = receipt.gas_used
        self._logs.append(logs)

    # --- JSON shapes ----------------------------------------------------------------------------

    @staticmethod
    def _block_json(block: BlockAPI) -> Json:
        header = block.header
        return {
            "number": _hex(header.block_number),
            "hash": _hex(header.hash),
            "parentHash": _hex(header.parent_hash),
            "nonce": _hex(header.nonce),
            "sha3Uncles": _hex(header.uncles_hash),
            "logsBloom": _hex(header.bloom.to_bytes(256, "big")),
            "transactionsRoot": _hex(header.transaction_root),
            "stateRoot": _hex(header.state_root),
            "receiptsRoot": _hex(header.receipt_root),
            "miner": _hex(header.coinbase),
            "difficulty": _hex(header.difficulty),
            "extraData": _hex(header.extra_data),
            "gasLimit": _hex(header.gas_limit),
            "gasUsed": _hex(header.gas_used),
            "timestamp": _hex(header.timestamp),
            "baseFeePerGas": _hex(_base_fee_wei(header)),
            "mixHash": _hex(header.mix_hash),
            "size": "0x0",
            "uncles": [],
            "transactions": [_hex(transaction.hash) for transaction in block.transactions],
        }

    @staticmethod
    def _transaction_json(transaction: SignedTransactionAPI) -> Json:
        return {
            "hash": _hex(transaction.hash),
            "type": _hex(getattr(transaction, "type_id", None) or 0),
            "nonce": _hex(transaction.nonce),
            "from": _hex(transaction.sender),
            "to": _hex(transaction.to) if transaction.to else None,
            "value": _hex(transaction.value),
            "gas": _hex(transaction.gas),
            "gasPrice": _hex(transaction.max_fee_per_gas),
            "maxFeePerGas": _hex(transaction.max_fee_per_gas),
            "maxPriorityFeePerGas": _hex(transaction.max_priority_fee_per_gas),
            "chainId": _hex(CHAIN_ID),
            "input": _hex(transaction.data),
            "v": _hex(transaction.y_parity),
            "r": _hex(transaction.r),
            "s": _hex(transaction.s),
        }

    @staticmethod
    def _receipt_json(
        header: BlockHeaderAPI,
        transaction: SignedTransactionAPI,
        receipt: ReceiptAPI,
        gas_before: int,
    ) -> Json:
        base_fee = _base_fee_wei(header)
        tip = min(transaction.max_priority_fee_per_gas, transaction.max_fee_per_gas - base_fee)
        created = None
        if not transaction.to:
            created = _hex(generate_contract_address(transaction.sender, transaction.nonce))
        return {
            "transactionHash": _hex(transaction.hash),
            "type": _hex(getattr(transaction, "type_id", None) or 0),
            "from": _hex(transaction.sender),
            "to": _hex(transaction.to) if transaction.to else None,
            "contractAddress": created,
            "cumulativeGasUsed": _hex(receipt.gas_used),
            "gasUsed": _hex(receipt.gas_used - gas_before),
            "effectiveGasPrice": _hex(base_fee + tip),
            "logsBloom": _hex(receipt.bloom.to_bytes(256, "big")),
            "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
        }

    # --- JSON-RPC -------------------------------------------------------------------------------

    @property
    def methods(self) -> frozenset[str]:
        """What `answer` knows; sending is the owner's business."""
        return frozenset(self._methods)

    def answer(self, method: str, parameters: Sequence[object], now_s: int = 0) -> object:
        """The `result` of a reading method; `now_s` is the time that a block would have which was
        mined now. Raises RpcError."""
        self._pending_s = max(now_s, self.time_s + 1)
        handler = self._methods.get(method)
        if handler is None:
            raise RpcError(-32601, f"the method {method[:64]} is not offered")
        try:
            return handler(*parameters)
        except (TypeError, ValidationError) as error:
            raise RpcError(-32602, f"{method}: {error}") from error

    def _number(self, block: object) -> int:
        """Of a mined block. The pending one is the newest, but for its time: what is sent is mined
        at once."""
        if block in (None, "latest", "pending", "safe", "finalized"):
            return self.height
        if block == "earliest":
            return 0
        number = _quantity(block, "block")
        if number > self.height:
            raise RpcError(-32000, f"block {number} is not mined yet")
        return number

    def _state(self, block: object) -> Any:
        """As of the end of a block; gas costs nothing, so that calls need no ether."""
        header = self._headers[self._number(block)]
        if block == "pending":
            header = header.copy(timestamp=self._pending_s)
        return self._chain.get_vm(header.copy(base_fee_per_gas=0)).state

    def _transaction(self, key: object) -> Json | None:
        return self._transactions.get(str(key).lower())

    def _receipt(self, key: object) -> Json | None:
        return self._receipts.get(str(key).lower())

    def _balance(self, address: object, block: object = None) -> str:
        return _hex(self._state(block).get_balance(_address(address, "address")))

    def _nonce(self, address: object, block: object = None) -> str:
        return _hex(self._state(block).get_nonce(_address(address, "address")))

    def _code(self, address: object, block: object = None) -> str:
        return _hex(self._state(block).get_code(_address(address, "address")))

    def _storage(self, address: object, slot: object, block: object = None) -> str:
        value = self._state(block).get_storage(
            _address(address, "address"), _quantity(slot, "slot")
        )
        return _hex(value.to_bytes(32, "big"))

    def _block_by_number(self, block: object, full: object = False) -> Json | None:
        if isinstance(block, str) and block.startswith("0x"):
            number = _quantity(block, "block")
            return self._block_view(number, full) if number <= self.height else None
        found = self._block_view(self._number(block), full)
        return {**found, "timestamp": _hex(self._pending_s)} if block == "pending" else found

    def _block_by_hash(self, block_hash: object, full: object = False) -> Json | None:
        number = self._number_of.get(str(block_hash).lower())
        return None if number is None else self._block_view(number, full)

    def _block_view(self, number: int, full: object) -> Json:
        block = self._blocks[number]
        if not full:
            return block
        return {**block, "transactions": [self._transactions[h] for h in block["transactions"]]}

    def _get_logs(self, query: object) -> list[Json]:
        if not isinstance(query, dict):
            raise RpcError(-32602, "a filter object expected")
        fields = cast(Json, query)
        if "blockHash" in fields:
            number = self._number_of.get(str(fields["blockHash"]).lower())
            if number is None:
                raise RpcError(-32000, "unknown block")
            first = last = number
        else:
            first = self._number(fields.get("fromBlock"))
            last = self._number(fields.get("toBlock"))
        if last - first >= LOG_BLOCKS_MAX:
            raise RpcError(-32005, f"at most {LOG_BLOCKS_MAX} blocks in one query")
        wanted = fields.get("address")
        addresses = None if wanted is None else _lowered(wanted)
        topics = [None if t is None else _lowered(t) for t in fields.get("topics") or ()]
        return [
            log
            for number in range(first, last + 1)
            for log in self._logs[number]
            if (addresses is None or log["address"] in addresses)
            and len(log["topics"]) >= len(topics)
            and all(t is None or log["topics"][i] in t for i, t in enumerate(topics))
        ]

    def _spoofed(self, call: object) -> SignedTransactionAPI:
        if not isinstance(call, dict):
            raise RpcError(-32602, "a transaction object expected")
        fields = cast(Json, call)
        gas = _quantity(fields["gas"], "gas") if "gas" in fields else BLOCK_GAS_MAX
        data = fields.get("input", fields.get("data", "0x"))
        unsigned = PragueVM.get_transaction_builder().create_unsigned_transaction(
            nonce=0,
            gas_price=0,
            gas=min(gas, BLOCK_GAS_MAX),
            to=_address(fields["to"], "to") if fields.get("to") else Address(b""),
            value=_quantity(fields.get("value", "0x0"), "value"),
            data=_from_hex(data, "data"),
        )
        sender = _address(fields["from"], "from") if fields.get("from") else ZERO_ADDRESS
        return cast(SignedTransactionAPI, SpoofTransaction(unsigned, from_=sender))

    def _execute(self, transaction: SignedTransactionAPI, block: object) -> bytes:
        state = self._state(block)
        spoofed = cast(Any, transaction)
        spoofed = spoofed.copy(nonce=state.get_nonce(spoofed.sender))
        try:
            computation = state.costless_execute_transaction(spoofed)
        except ValidationError as error:
            raise RpcError(-32000, str(error)) from error
        if computation.is_error:
            raise _execution_error(computation.error)
        return computation.output

    def _call(self, call: object, block: object = None) -> str:
        return _hex(self._execute(self._spoofed(call), block))

    def _estimate_gas(self, call: object, block: object = None) -> str:
        """The smallest sufficient limit, to within two per cent, and those on top."""
        spoofed = cast(Any, self._spoofed(call))
        high = spoofed.gas
        self._execute(spoofed, block)
        low = spoofed.intrinsic_gas - 1
        while high - low > max(low, 21_000) // 50:
            middle = (low + high) // 2
            try:
                self._execute(spoofed.copy(gas=middle), block)
                high = middle
            except RpcError:
                low = middle
        return _hex(high)


def _base_fee_wei(header: BlockHeaderAPI) -> int:
    fee = header.base_fee_per_gas
    assert fee is not None, "every block is one of Prague's"
    return fee


def _least_gas(transaction: SignedTransactionAPI) -> int:
    """What a transaction costs before it does anything, EIP-7623's floor for calldata included."""
    zeros = transaction.data.count(0)
    floor = 21_000 + 10 * (zeros + 4 * (len(transaction.data) - zeros))
    return max(transaction.intrinsic_gas, floor)


def _lowered(one_or_many: object) -> frozenset[str]:
    many = cast(list[object], one_or_many) if isinstance(one_or_many, list) else [one_or_many]
    return frozenset(str(entry).lower() for entry in many)


def _execution_error(error: VMError) -> RpcError:
    if isinstance(error, Revert):
        data = error.args[0] if error.args and isinstance(error.args[0], bytes) else b""
        return RpcError(3, "execution reverted", _hex(data))
    return RpcError(-32000, f"{type(error).__name__}: {error}")
