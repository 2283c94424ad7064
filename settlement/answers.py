"""The answer to a question about a fill: both signed orders, from what was kept of them.

Invariant: what is given back the vault takes; if it would not, because somebody has not signed, or
not for that much, that is said instead, and which side it is. `Answers` builds them from the place
of the fill and the sums that were asked about; `Answering` tells the vault, as one of the outbox's
kinds, and settlement's service has it planned.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from settlement import batch
from settlement import vault as v
from settlement.chain import Chain
from settlement.database import Database, Row
from settlement.errors import ContractRejected, PartRejected, SettlementError
from settlement.fence import Fence
from settlement.orders import Authority, Order, Signed, may_trade, path_of, signer_of, tree
from settlement.outgoing import Standing
from settlement.signatures import GRACE_S

WORD: Final = 32

log = logging.getLogger("compex.settlement")


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
        self, place: v.Place, bought_lots: int, sold_lots: int, posted_at_s: int
    ) -> tuple[v.Place, int, int, v.SignedOrder, v.SignedOrder]:
        """The arguments of the vault's `answer`; the sums are those of the event Challenged, the
        time is when the fill's batch was posted. Raises NoAnswer."""
        fill = read_fill(place.fill)
        buy = await self._side(fill, True, bought_lots, posted_at_s)
        sell = await self._side(fill, False, sold_lots, posted_at_s)
        return place, bought_lots, sold_lots, _shown(buy), _shown(sell)

    async def _side(self, fill: Fill, is_buy: bool, lots: int, posted_at_s: int) -> Signed:
        account, number = fill.party(is_buy)
        kept = await signed_orders(self._database, [(account, number)])
        if not kept:
            raise NoAnswer(is_buy, f"has signed no order {number}")
        [signed] = kept
        if objection := covers(signed, fill, is_buy, lots, posted_at_s):
            raise NoAnswer(is_buy, f"has signed order {number} {objection}")
        if not is_signed(signed, self._owner_of(account), self._domain):
            raise NoAnswer(is_buy, f"has not signed order {number} as it is kept")
        return signed


def covers(signed: Signed, fill: Fill, is_buy: bool, lots: int, posted_at_s: int) -> str:
    """Why the order, whoever signed it, is not one that covers the fill; "" if it is. As
    Disputes.sol asks it, `lots` being all fills of the order that are named."""
    if why := outside(signed.order, fill, is_buy, lots, posted_at_s):
        return why
    key = signed.authority
    is_own = not key.signature
    if not is_own and not key.valid_from_s <= posted_at_s <= key.valid_until_s + GRACE_S:
        return "with a key whose time was over, or not begun"
    return ""


def outside(order: Order, fill: Fill, is_buy: bool, lots: int, posted_at_s: int) -> str:
    """The same of the order alone, whichever key has signed it."""
    fee_ppm = fill.buyer_fee_ppm if is_buy else fill.seller_fee_ppm
    if order[:4] != (fill.party(is_buy)[0], is_buy, fill.series, fill.window):
        return "for something else"
    if fill.price_ticks > order.price_ticks if is_buy else fill.price_ticks < order.price_ticks:
        return "at another price"
    if lots > order.qty_lots or fee_ppm > order.fee_ppm_max:
        return "for less"
    if posted_at_s > order.valid_until_s + GRACE_S:
        return "for a time that was over"
    return ""


def is_signed(signed: Signed, owner: bytes, domain: bytes) -> bool:
    """By the owner's key, or one that the owner has let trade."""
    is_by_key = signer_of(signed, domain) == signed.authority.key
    return is_by_key and may_trade(signed.authority, owner, domain)


def _shown(signed: Signed) -> v.SignedOrder:
    order = signed.order
    return v.SignedOrder(
        order.price_ticks, order.qty_lots, order.fee_ppm_max, order.valid_until_s, signed.path,
        signed.signature, v.Authority(*signed.authority),
    )  # fmt: skip


async def signed_orders(database: Database, named: Sequence[tuple[int, int]]) -> list[Signed]:
    """Those that are kept of the orders named: (account, number) of each."""
    accounts, numbers = [account for account, _ in named], [number for _, number in named]
    return [_signed(row) for row in await database.rows(_SIGNED, accounts, numbers)]


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
    JOIN unnest($1::bigint[], $2::bigint[]) AS named (account, number)
        ON named.account = o.account AND named.number = o.number
    WHERE o.verified
    ORDER BY o.account, o.number
"""


class Answering:
    """Questions about fills, each answered once if there is an answer. Who asked may answer, too,
    before we do: then the vault refuses ours, and nothing waits for it. What final logs leave open
    is answered anew as soon as the vault would take it."""

    def __init__(self, database: Database, fence: Fence, chain: Chain, answers: Answers) -> None:
        self._database = database
        self._fence = fence
        self._chain = chain
        self._answers = answers
        self._hopeless: set[int] = set()  # said once

    async def plan(self) -> int:
        """Write down what can be answered and is not yet; how many rows that were."""
        rows = await self._database.rows(
            "SELECT c.id, o.id IS NOT NULL AS refused"
            " FROM challenge c JOIN lease USING (batch_id, place)"
            " LEFT JOIN outgoing o ON o.kind = 'answer' AND o.id = c.id"
            " WHERE NOT answered AND ended IS NULL"
            " AND (o.id IS NULL OR o.state IN ('REFUSED', 'RETURNED')) ORDER BY c.id"
        )
        planned = 0
        for number, refused in (tuple(row.values()) for row in rows):
            if not await self._has_answer(number) or (refused and not await self._is_taken(number)):
                continue
            async with self._fence.transaction():
                await self._database.execute(
                    "DELETE FROM outgoing WHERE kind = 'answer' AND id = $1", number
                )
                await self._database.execute(
                    "INSERT INTO outgoing (kind, id) VALUES ('answer', $1)", number
                )
            planned += 1
        return planned

    async def _has_answer(self, number: int) -> bool:
        try:
            await self.call(number)
        except NoAnswer as error:
            if number not in self._hopeless:
                log.error("question %d has no answer, and the fill will be void: %s",
                          number, error)  # fmt: skip
                self._hopeless.add(number)
            return False
        return True

    async def _is_taken(self, number: int) -> bool:
        """Whether the vault would take it, though it was refused before: the block in which
        somebody else had answered was taken back, or the node asked then lagged."""
        try:
            await self.simulate(number)
        except ContractRejected:
            return False
        return True

    async def simulate(self, number: int) -> None:
        await self._chain.simulate(await self.call(number))

    async def call(self, number: int) -> v.Call:
        """Raises NoAnswer."""
        row = await self._database.row(
            "SELECT c.batch_id, c.place, c.bought, c.sold, l.posted_at_s, b.packed"
            " FROM challenge c JOIN lease l USING (batch_id, place) JOIN batch b ON b.id = batch_id"
            " WHERE c.id = $1",
            number,
        )
        assert row is not None, "it was asked"
        index, packed = row["place"], row["packed"]
        fill = packed[index * batch.FILL_BYTES : (index + 1) * batch.FILL_BYTES]
        path = batch.path_of(packed, index)
        place = v.Place(row["batch_id"], index, int.from_bytes(fill, "big"), path)
        arguments = await self._answers.answer(
            place, row["bought"], row["sold"], row["posted_at_s"]
        )
        return v.answer(self._chain.vault, *arguments)

    async def renew(self, number: int) -> bool:  # noqa: ARG002
        return False  # it is made of what does not change

    async def standing(self, number: int, block: int) -> Standing:  # noqa: ARG002
        """As far as the vault's logs are read: answering again is refused, and harmless."""
        row = await self._database.row(
            "SELECT answered, ended FROM challenge JOIN lease USING (batch_id, place)"
            " WHERE id = $1",
            number,
        )
        assert row is not None, "it was asked"
        if row["answered"]:
            return "done"
        return "open" if row["ended"] is None else "passed"

    async def leave_out(self, number: int, error: PartRejected) -> bool:  # noqa: ARG002
        return False

    async def due(self, number: int) -> Mapping[int, int]:  # noqa: ARG002
        return {}
