"""Orders as they are signed for the vault: hashes, one root over many, the digest of either.

Owns the client's side of what only a signature makes binding: the typed data Order and OrderRoot.
Pure. `signing` uses it, and whoever signs elsewhere, with a key that this program does not have.

Sources: EIP-712 (typed data); OpenZeppelin's MerkleProof (each pair in ascending order).
"""

import calendar
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from compex_client.errors import WalletError
from compex_client.wallet import ORDER_FORM, ORDER_ROOT_FORM, Domain, keccak256

_ORDER_TYPE: Final = keccak256(ORDER_FORM.encode())
_ROOT_TYPE: Final = keccak256(ORDER_ROOT_FORM.encode())
_FORMS: Final = {"H": "%Y-%m-%dT%H", "D": "%Y-%m-%d", "W": "%G-W%V", "M": "%Y-%m"}
HOUR_BITS: Final = 21


class Order(NamedTuple):
    """What is signed, in its order. A buyer pays at most the price, a seller takes at least it."""

    account: int
    is_buy: bool
    series: int
    window: int
    price_ticks: int
    qty_lots: int  # all fills of it together
    number: int
    fee_ppm_max: int
    valid_until_s: int


def order_hash(order: Order) -> bytes:
    """Of the struct: the leaf of a root."""
    return keccak256(_ORDER_TYPE + b"".join(int(word).to_bytes(32, "big") for word in order))


def root_of(leaves: Sequence[bytes]) -> bytes:
    row = list(leaves)
    while len(row) > 1:
        pairs = zip(row[::2], row[1::2], strict=False)
        above = [keccak256(a + b if a < b else b + a) for a, b in pairs]
        row = above + row[len(row) & ~1 :]
    return row[0]


def orders_digest(domain: Domain, orders: Sequence[Order]) -> bytes:
    """The 32 bytes to sign for these orders of one account: of the order itself, if it is one; of
    the root over all of them, if they are several."""
    leaves = [order_hash(order) for order in orders]
    struct = leaves[0]
    if len(leaves) > 1:
        account = orders[0].account.to_bytes(32, "big")
        struct = keccak256(_ROOT_TYPE + account + root_of(leaves))
    return keccak256(b"\x19\x01" + domain.separator() + struct)


def window_of(symbol: str) -> int:
    """What the window of a market's long symbol is called in an order. So a client need not believe
    which hours it signs for. Raises WalletError if the symbol has none."""
    kind, _, start = symbol.split("|", 3)[-1].partition("|")
    if kind == "SPOT" and not start:
        return 0
    try:
        written, form = start, _FORMS[kind]
        if kind == "W":  # strptime needs a day to read an ISO week
            written, form = f"{start}-1", f"{form}-%u"
        begins = datetime.strptime(written, form).replace(tzinfo=UTC)
    except (KeyError, ValueError) as error:
        raise WalletError(f"{symbol} does not say when") from error
    number = {"H": 1, "D": 2, "W": 3}.get(kind, 0)
    if kind == "M":
        number = calendar.monthrange(begins.year, begins.month)[1] - 24
    return number << HOUR_BITS | (begins - datetime.fromtimestamp(0, UTC)) // timedelta(hours=1)
