"""Signed orders as evidence: what is kept of them here, and a file of them for anybody else.

Owns the file's format: a line of JSON for each signed order, whole in itself, with every hash and
signature as hexadecimal digits. Invariant: what is written is read back as it was, and a line that
is not one is refused, not skipped. Nothing in it is trusted: `verify` recovers every signature.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from settlement.answers import signed_orders
from settlement.database import connect_beside
from settlement.errors import DamagedEvidence
from settlement.orders import Authority, Order, Signed

Party: TypeAlias = tuple[int, int]  # account, number of its order
Evidence: TypeAlias = Mapping[Party, Sequence[Signed]]  # signed again it is there twice
PARTIES_PER_READ: Final = 1_000

_U16: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 16)]
_U32: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
_Seconds: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Bytes: TypeAlias = Annotated[str, Meta(pattern="^0x([0-9a-f]{2})*$")]


class _Key(Struct, frozen=True, forbid_unknown_fields=True):
    key: _Bytes
    scopes: Annotated[int, Meta(ge=0, lt=1 << 8)]
    markets_hash: _Bytes
    valid_from_s: _Seconds
    valid_until_s: _Seconds
    nonce: _Seconds
    signature: _Bytes


class _Line(Struct, frozen=True, forbid_unknown_fields=True):
    account: _U32
    is_buy: bool
    series: _U16
    window: _U32
    price_ticks: _U32
    qty_lots: _U32
    number: _U32
    fee_ppm_max: _U16
    valid_until_s: _Seconds
    path: list[_Bytes]
    signature: _Bytes
    key: _Key


def by_party(orders: Iterable[Signed]) -> Evidence:
    """The same by whose they are and under which number."""
    found: dict[Party, list[Signed]] = {}
    for signed in orders:
        found.setdefault((signed.order.account, signed.order.number), []).append(signed)
    return found


async def kept(database_url: str, parties: Sequence[Party]) -> list[Signed]:
    """What is kept of these orders, beside whoever settles into the database."""
    database = await connect_beside(database_url)
    try:
        found: list[Signed] = []
        for first in range(0, len(parties), PARTIES_PER_READ):
            found += await signed_orders(database, parties[first : first + PARTIES_PER_READ])
        return found
    finally:
        await database.close()


def write(path: Path, orders: Iterable[Signed]) -> None:
    """Makes the file anew."""
    with path.open("wb") as file:
        for signed in orders:
            file.write(msgspec.json.encode(_line(signed)) + b"\n")


def read(path: Path) -> list[Signed]:
    """Raises DamagedEvidence, OSError."""
    found: list[Signed] = []
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(_signed(decoder.decode(line)))
            except msgspec.MsgspecError as error:
                raise DamagedEvidence(f"{path}, line {number}: {error}") from error
    return found


def _line(signed: Signed) -> _Line:
    key = signed.authority
    return _Line(
        **signed.order._asdict(),
        path=[_text(node) for node in signed.path],
        signature=_text(signed.signature),
        key=_Key(
            _text(key.key), key.scopes, _text(key.markets_hash), key.valid_from_s,
            key.valid_until_s, key.nonce, _text(key.signature),
        ),
    )  # fmt: skip


def _signed(line: _Line) -> Signed:
    key = line.key
    authority = Authority(
        _data(key.key), key.scopes, _data(key.markets_hash), key.valid_from_s, key.valid_until_s,
        key.nonce, _data(key.signature),
    )  # fmt: skip
    order = Order._make(getattr(line, name) for name in Order._fields)
    return Signed(order, [_data(node) for node in line.path], _data(line.signature), authority)


def _text(data: bytes) -> str:
    return "0x" + data.hex()


def _data(text: str) -> bytes:
    return bytes.fromhex(text[2:])
