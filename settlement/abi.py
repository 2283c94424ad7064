"""Calls, answers, logs and custom errors of our contracts, between Python values and bytes.

Owns nothing but the reading of the committed ABIs. Invariant: what a contract says is never
guessed at; a reason that no ABI of ours names is passed on as its bytes. Addresses go in as 20
bytes and come out as 0x text, as eth-abi has it. `chain` uses it, and tests that call contracts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import (
    abi_to_signature,
    event_abi_to_log_topic,
    function_abi_to_4byte_selector,
    get_abi_input_types,
    get_abi_output_types,
)

from settlement import errors
from settlement.contracts import CONTRACTS, artifact
from settlement.errors import ContractError, ContractRejected

_PANIC: Final = bytes.fromhex("4e487b71")  # Panic(uint256)
_ERROR: Final = bytes.fromhex("08c379a0")  # Error(string)


class _Function(NamedTuple):
    selector: bytes
    inputs: list[str]
    outputs: list[str]


class _Log(NamedTuple):
    topic: bytes
    indexed: list[tuple[str, str]]  # (name, type)
    plain: list[tuple[str, str]]


class Interface:
    """One contract's functions and events by name. Our contracts overload none of them."""

    def __init__(self, name: str) -> None:
        """`name` is a committed artifact's. Raises ArtifactError."""
        self._functions: dict[str, _Function] = {}
        self._logs: dict[str, _Log] = {}
        self._constructor: list[str] = []
        for entry in cast(list[Any], artifact(name).abi):
            if entry["type"] == "function":
                self._functions[entry["name"]] = _Function(
                    function_abi_to_4byte_selector(entry),
                    get_abi_input_types(entry),
                    get_abi_output_types(entry),
                )
            elif entry["type"] == "event":
                self._logs[entry["name"]] = _Log(
                    event_abi_to_log_topic(entry),
                    [(i["name"], i["type"]) for i in entry["inputs"] if i["indexed"]],
                    [(i["name"], i["type"]) for i in entry["inputs"] if not i["indexed"]],
                )
            elif entry["type"] == "constructor":
                self._constructor = get_abi_input_types(entry)

    def encode(self, function: str, *arguments: object) -> bytes:
        """The calldata."""
        entry = self._functions[function]
        return entry.selector + encode(entry.inputs, arguments)

    def arguments(self, function: str, data: bytes) -> tuple[Any, ...] | None:
        """What calldata calls the function with; None if it calls something else."""
        entry = self._functions[function]
        if data[: len(entry.selector)] != entry.selector:
            return None
        try:
            return decode(entry.inputs, data[len(entry.selector) :])
        except DecodingError:
            return None

    def decode(self, function: str, answer: bytes) -> tuple[Any, ...]:
        """The values returned. Raises ContractRejected when there is no such function there."""
        try:
            return decode(self._functions[function].outputs, answer)
        except DecodingError:
            given: dict[str, object] = {"function": function, "answer": answer.hex()}
            raise ContractRejected(ContractError("UnexpectedAnswer", given)) from None

    def constructor(self, *arguments: object) -> bytes:
        """What follows the bytecode in a deployment."""
        return encode(self._constructor, arguments)

    @property
    def events(self) -> list[str]:
        return list(self._logs)

    def topic(self, event: str) -> bytes:
        return self._logs[event].topic

    def decode_log(
        self, event: str, topics: Sequence[bytes], data: bytes
    ) -> Mapping[str, Any] | None:
        """The event's fields by name; None for another event's log."""
        entry = self._logs[event]
        if not topics or bytes(topics[0]) != entry.topic:
            return None
        fields: dict[str, Any] = {}
        for (name, kind), topic in zip(entry.indexed, topics[1:], strict=True):
            fields[name] = decode([kind], topic)[0]
        values = decode([kind for _, kind in entry.plain], data)
        fields.update(zip((name for name, _ in entry.plain), values, strict=True))
        return fields


def _custom_errors() -> dict[bytes, tuple[str, list[tuple[str, str]]]]:
    """(name, (argument, type) ...) by selector, over all contracts."""
    found: dict[bytes, tuple[str, list[tuple[str, str]]]] = {}
    for name in CONTRACTS:
        for entry in cast(list[Any], artifact(name).abi):
            if entry["type"] == "error":
                selector = function_abi_to_4byte_selector(entry)
                arguments = [(i["name"], i["type"]) for i in entry["inputs"]]
                known = found.setdefault(selector, (entry["name"], arguments))
                assert known[0] == entry["name"], f"{abi_to_signature(entry)}: selectors collide"
    return found


_CUSTOM: Final = _custom_errors()
_CLASSES: Final[dict[str, type[ContractRejected]]] = {
    "UnknownAccount": errors.UnknownAccount,
    "InsufficientFree": errors.InsufficientFree,
    "InsufficientLocked": errors.InsufficientLocked,
    "AccountExiting": errors.AccountExiting,
    "TransferRefused": errors.TransferRefused,
    "BatchOutOfOrder": errors.BatchOutOfOrder,
    "ReleaseOutOfOrder": errors.ReleaseOutOfOrder,
    "IsPaused": errors.VaultPaused,
    "IsFrozen": errors.VaultFrozen,
    "BondTooLow": errors.BondTooLow,
    "WindowOpen": errors.WindowOpen,
    "WindowNotOver": errors.WindowNotOver,
    "LeaseClosed": errors.LeaseClosed,
    "NothingToTake": errors.NothingToTake,
    "NoSuchDispute": errors.AnswerRejected,
    "WrongProof": errors.AnswerRejected,
    "NotSigned": errors.AnswerRejected,
    "OutsideOrder": errors.AnswerRejected,
    "KeyNotAllowed": errors.AnswerRejected,
    "WithdrawalOutOfOrder": errors.WithdrawalOutOfOrder,
    "AccessControlUnauthorizedAccount": errors.NotPermitted,
    "RoundOutOfOrder": errors.RoundOutOfOrder,
    "NoData": errors.NoData,
}


def rejection(data: bytes) -> ContractRejected:
    """The exception that says what these bytes of a revert say."""
    selector, body = data[:4], data[4:]
    try:
        if selector in _CUSTOM:
            name, arguments = _CUSTOM[selector]
            values = decode([kind for _, kind in arguments], body)
            fields: dict[str, object] = dict(
                zip((key for key, _ in arguments), values, strict=True)
            )
            return _CLASSES.get(name, ContractRejected)(ContractError(name, fields))
        if selector == _ERROR:
            return ContractRejected(ContractError("Error", {"text": decode(["string"], body)[0]}))
        if selector == _PANIC:
            return ContractRejected(ContractError("Panic", {"code": decode(["uint256"], body)[0]}))
    except DecodingError:
        pass  # said by somebody else with the same four bytes
    return ContractRejected(ContractError("Unknown", {"data": "0x" + data.hex()}))
