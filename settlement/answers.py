"""The answer to a question about a fill: both signed orders, from what was kept of them.

Invariant: what is given back the vault takes; if it would not, because somebody has not signed, or
not for that much, that is said instead, and which side it is. Whoever follows the vault's events
calls it, with the place of the fill that was named and the sums that the event tells.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from settlement.database import Database, Row
from settlement.errors import SettlementError
from settlement.orders import Authority, Order, Signed, may_trade, path_of, signer_of, tree
from settlement.signatures import GRACE_S

WORD: Final = 32
Place = tuple[int, int, int, list[bytes]]  # batch, index, the fill's 30 bytes as a number, path


class NoAnswer(SettlementError):
    """A side has not signed for the fill: the settler will lose it."""

    def __init__(self, is_buy: bool, why: str) -> None:
        super().__init__(f"the {'buyer' if is_buy else 'seller'} of the fill {why}")
        self.is_buy: Final = is_buy


class Fill(NamedTuple):
    """As Fills.sol reads its 30 bytes."""

    buyer: int
    seller: int
    price_ticks: int
    qty_lots: int
    series: int
    window: int
    buyer_order: int
    seller_order: int
    buyer_fee_ppm: int
    seller_fee_ppm: int

    def party(self, is_buy: bool) -> tuple[int, int]:
        """(account, number of its order)."""
        return (self.buyer, self.buyer_order) if is_buy else (self.seller, self.seller_order)


_BITS: Final = (24, 24, 24, 32, 16, 24, 32, 32, 16, 16)


def read_fill(packed: int) -> Fill:
    fields: list[int] = []
    for bits in reversed(_BITS):
        fields.append(packed & (1 << bits) - 1)
        packed >>= bits
    return Fill._make(reversed(fields))


class Answers:
    """`owner_of` gives the 20 bytes of an account's wallet, `domain` is the vault's."""

    def __init__(self, database: Database, domain: bytes, owner_of: Callable[[int], bytes]) -> None:
        self._database = database
        self._domain = domain
        self._owner_of = owner_of

    async def answer(
        self, place: Place, bought_lots: int, sold_lots: int, posted_at_s: int
    ) -> tuple[Place, int, int, tuple[object, ...], tuple[object, ...]]:
        """The arguments of the vault's `answer`; the sums are those of the event Challenged, the
        time is when the fill's batch was posted. Raises NoAnswer."""
        fill = read_fill(place[2])
        buy = await self._side(fill, True, bought_lots, posted_at_s)
        sell = await self._side(fill, False, sold_lots, posted_at_s)
        return place, bought_lots, sold_lots, buy.argument(), sell.argument()

    async def _side(self, fill: Fill, is_buy: bool, lots: int, posted_at_s: int) -> Signed:
        account, number = fill.party(is_buy)
        row = await self._database.row(_SIGNED, account, number)
        if row is None:
            raise NoAnswer(is_buy, f"has signed no order {number}")
        signed = _signed(row)
        if objection := covers(signed, fill, is_buy, lots, posted_at_s):
            raise NoAnswer(is_buy, f"has signed order {number} {objection}")
        if not is_signed(signed, self._owner_of(account), self._domain):
            raise NoAnswer(is_buy, f"has not signed order {number} as it is kept")
        return signed


def covers(signed: Signed, fill: Fill, is_buy: bool, lots: int, posted_at_s: int) -> str:
    """Why the order, whoever signed it, is not one that covers the fill; "" if it is. As
    Disputes.sol asks it, `lots` being all fills of the order that are named."""
    order, key = signed.order, signed.authority
    fee_ppm = fill.buyer_fee_ppm if is_buy else fill.seller_fee_ppm
    if order[:4] != (fill.party(is_buy)[0], is_buy, fill.series, fill.window):
        return "for something else"
    if fill.price_ticks > order.price_ticks if is_buy else fill.price_ticks < order.price_ticks:
        return "at another price"
    if lots > order.qty_lots or fee_ppm > order.fee_ppm_max:
        return "for less"
    if posted_at_s > order.valid_until_s + GRACE_S:
        return "for a time that was over"
    is_own = not key.signature
    if not is_own and not key.valid_from_s <= posted_at_s <= key.valid_until_s + GRACE_S:
        return "with a key whose time was over, or not begun"
    return ""


def is_signed(signed: Signed, owner: bytes, domain: bytes) -> bool:
    """By the owner's key, or one that the owner has let trade."""
    is_by_key = signer_of(signed, domain) == signed.authority.key
    return is_by_key and may_trade(signed.authority, owner, domain)


def _signed(row: Row) -> Signed:
    leaves = [row["leaves"][i : i + WORD] for i in range(0, len(row["leaves"]), WORD)]
    order = Order._make(row[name] for name in Order._fields)
    authority = Authority(
        row["key"], row["scopes"], row["markets_hash"], row["valid_from_s"], row["key_until_s"],
        row["nonce"], row["proof"],
    )  # fmt: skip
    return Signed(order, path_of(tree(leaves), row["place"]), row["signature"], authority)


# The order's own end is `valid_until_s`; the key's is named apart.
_SIGNED: Final = """
    SELECT o.account, o.is_buy, o.series, o.delivery AS "window", o.price_ticks, o.qty_lots,
           o.number, o.fee_ppm_max, o.valid_until_s, o.place, r.leaves, r.signature, k.key,
           k.scopes,
           k.markets_hash, k.valid_from_s, k.valid_until_s AS key_until_s, k.nonce,
           k.signature AS proof
    FROM signed_order o JOIN order_root r ON r.id = o.root
    JOIN signing_key k ON k.id = r.signing_key
    WHERE o.account = $1 AND o.number = $2 AND o.verified
"""
