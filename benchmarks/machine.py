"""An EVM of Prague's rules without blocks: calls one after the other, at the time that is set.

Owns nothing but its state. Invariant: what a call costs and does is what a block with that call
alone would; a mark is all of the state, so a test or a measurement begins where another stopped for
the price of an assignment. Keys are not needed: a call is from whom it says. For the tests and the
benchmarks of the contracts; `settlement.evm` is the chain that the exchange runs on.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from eth._utils.address import generate_contract_address
from eth.chains.base import MiningChain
from eth.constants import BLANK_ROOT_HASH, ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_typing import Address, BlockNumber

from settlement.abi import Interface, rejection
from settlement.contracts import artifact
from settlement.evm import CHAIN_ID, TRANSACTION_GAS_MAX

_ETHER_WEI: Final = 10**30


class _Chain(MiningChain):
    chain_id = CHAIN_ID
    vm_configuration = ((BlockNumber(0), PragueVM),)


class Log(NamedTuple):
    address: bytes
    topics: list[bytes]
    data: bytes


class Outcome(NamedTuple):
    """Of a call that went well; another raises ContractRejected and changes nothing."""

    output: bytes
    gas: int
    logs: list[Log]


class Mark(NamedTuple):
    root: Any
    now_s: int


class Machine:
    """`payer` owns all the ether; every call is paid by its sender, who needs none."""

    def __init__(self, start_s: int) -> None:
        parameters: Any = {
            "difficulty": 0,
            "extra_data": b"",
            "gas_limit": 10**9,
            "mix_hash": bytes(32),
            "nonce": bytes(8),
            "receipt_root": BLANK_ROOT_HASH,
            "timestamp": start_s,
            "transaction_root": BLANK_ROOT_HASH,
            "coinbase": ZERO_ADDRESS,
        }
        self._chain = cast(Any, _Chain.from_genesis(AtomicDB(), parameters, {}))
        self._header = self._chain.create_header_from_parent(
            self._chain.get_canonical_head(), gas_limit=10**9, timestamp=start_s + 1
        ).copy(base_fee_per_gas=0)
        self._state: Any = self._chain.get_vm(self._header).state
        self._now_s = start_s + 1
        # Called with each frame that was executed, the deepest first; for whoever traces.
        self.observer: Callable[[Any], None] | None = None

    @property
    def now_s(self) -> int:
        return self._now_s

    def wait(self, seconds: int) -> None:
        """Time goes by."""
        assert seconds >= 0
        self._go_to(self._root(), self._now_s + seconds)

    def mark(self) -> Mark:
        return Mark(self._root(), self._now_s)

    def reset(self, mark: Mark) -> None:
        self._go_to(*mark)

    def _root(self) -> Any:
        self._state.lock_changes()
        self._state.persist()
        return self._state.state_root

    def _go_to(self, root: Any, now_s: int) -> None:
        self._now_s = now_s
        header = self._header.copy(state_root=root, timestamp=now_s)
        self._state = self._chain.get_vm(header).state

    def transact(self, sender: bytes, to: bytes, data: bytes) -> Outcome:
        """Raises ContractRejected."""
        self._state.lock_changes()  # a new transaction: every slot and address is cold again
        return self._run(sender, to, data)

    def _run(self, sender: bytes, to: bytes, data: bytes) -> Outcome:
        state = self._state
        address = Address(sender)
        state.set_balance(address, _ETHER_WEI)
        unsigned = PragueVM.get_transaction_builder().create_unsigned_transaction(
            nonce=state.get_nonce(address),
            gas_price=1,
            gas=TRANSACTION_GAS_MAX,
            to=Address(to),
            value=0,
            data=data,
        )
        before = state.snapshot()
        computation = state.apply_transaction(SpoofTransaction(cast(Any, unsigned), from_=address))
        gas = _ETHER_WEI - state.get_balance(address)
        if computation.is_error:
            state.revert(before)
            error = computation.error
            if isinstance(error, Revert):
                raise rejection(cast(bytes, error.args[0]))
            raise error
        logs = [
            Log(bytes(who), [t.to_bytes(32, "big") for t in topics], bytes(what))
            for who, topics, what in computation.get_log_entries()
        ]
        return Outcome(bytes(computation.output), gas, logs)

    def create(self, sender: bytes, name: str, *arguments: object) -> bytes:
        """Deploy one of our contracts; its address."""
        nonce = self._state.get_nonce(Address(sender))
        data = artifact(name).bytecode + Interface(name).constructor(*arguments)
        self.transact(sender, b"", data)
        return bytes(generate_contract_address(Address(sender), nonce))

    def look(self, sender: bytes, to: bytes, data: bytes) -> bytes:
        """The answer to a call without effect. Raises ContractRejected."""
        self._state.lock_changes()
        before = self._state.snapshot()
        try:
            return self._run(sender, to, data).output
        finally:
            self._state.revert(before)
