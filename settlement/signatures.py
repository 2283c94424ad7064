"""Signed orders: taken in, checked, kept, and asked for when something is to be settled.

Owns the tables signing_key, order_root and signed_order, on a connection of its own, so that
traders who hand signatures in wait neither for a turn of settlement nor for each other's checks.
Invariant: a row is there only if the vault would take it as the owner's order, by the owner's
signature or by that of a key which the owner lets trade; what is signed once for an order is only
ever widened, so a fill that was covered stays so. Repeating is harmless. The gateway hands in
through a protocol of its own, which the node connects with this; `answers` and `withholding` read
the tables.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from engine.rejects import CatalogError, Reject
from settlement import database as db
from settlement.errors import DatabaseUnavailable
from settlement.orders import (
    Authority,
    Order,
    as_vault_takes,
    digest,
    markets_hash,
    may_trade,
    order_hashes,
    recover,
    signed_hash,
)
from settlement.products import settled

GRACE_S: Final = 86_400  # as Accounts.sol has it: so long after its end an order may be settled
# Of the grace, what is left for a batch to be mined once it is sealed: behind stuck transactions
# and reorganised blocks an order that just about covered a fill would not answer for it any more.
POSTING_S: Final = GRACE_S // 2
FOR_EVER_S: Final = 1 << 62
# Who did not sign what was traded trades nothing for so long the first time, then twice as long ...
SUSPENDED_S: Final = 600
SUSPENDED_S_MAX: Final = 7 * 86_400
AUTHORITIES_KEPT: Final = 1 << 14  # that were checked; checking one again costs a recovery


class Handed(NamedTuple):
    """One order as it is handed in: which of the engine's it is, and what was signed for it."""

    order_id: int
    number: int
    product: int
    instrument: int
    is_buy: bool
    price_ticks: int
    qty_lots: int
    fee_ppm_max: int
    valid_until_s: int


class Outcome(NamedTuple):
    """Of handing in: kept, all of it, or refused, all of it."""

    reject: Reject | None
    place: int  # of the order that is at fault; -1: the signature, or none
    last_number: int  # the account's highest


class Unsigned(NamedTuple):
    """An order with fills that its owner's signatures do not cover."""

    account: int
    order_id: int
    instrument: int
    is_buy: bool
    price_ticks: int  # of its fills and of what is signed, the worst
    qty_lots: int  # all its fills, or more if more is signed
    number: int  # under which it is signed, not far enough; 0: not at all


class Body(NamedTuple):
    """What an order is signed for."""

    order_id: int
    number: int
    price_ticks: int
    qty_lots: int


class _Row(NamedTuple):
    """Of the table signed_order."""

    account: int
    order_id: int
    number: int
    verified: bool
    instrument: int
    is_buy: bool
    series: int
    delivery: int
    price_ticks: int
    qty_lots: int
    fee_ppm_max: int
    valid_until_s: int
    root: int
    place: int
    post_from_s: int
    post_until_s: int

    def is_same_order(self, other: "_Row") -> bool:
        return self[:8] == other[:8]

    def covers(self, other: "_Row") -> bool:
        """Whether this is all that the other is, or more."""
        return self.is_as_wide(other) and self.post_until_s >= other.post_until_s

    def is_as_wide(self, other: "_Row") -> bool:
        """Whether it is so but for its time."""
        if self.is_buy:
            covers = self.price_ticks >= other.price_ticks
        else:
            covers = self.price_ticks <= other.price_ticks
        return (
            covers and self.qty_lots >= other.qty_lots and self.fee_ppm_max >= other.fee_ppm_max
            and self.post_from_s <= other.post_from_s
        )  # fmt: skip


class _Refused(Exception):
    def __init__(self, reject: Reject, place: int = -1) -> None:
        super().__init__(reject.name)
        self.reject = reject
        self.place = place


class Signatures:
    """`owner_of` gives the 20 bytes of an account's wallet, `domain` is the vault's, `clock` gives
    ns since the Unix epoch. The database is one that settlement has prepared; `connect` opens a
    connection to it, and once more when that was lost."""

    def __init__(
        self,
        database_url: str,
        domain: bytes,
        owner_of: Callable[[int], bytes],
        clock: Callable[[], int],
        connect: Callable[[str], Awaitable[db.Database]] = db.connect_beside,
    ) -> None:
        self._database_url = database_url
        self._connect = connect
        self._domain = domain
        self._owner_of = owner_of
        self._clock = clock
        self._lock = asyncio.Lock()  # one statement at a time is all a connection does
        self._database: db.Database | None = None  # until it is needed, and when it was lost
        self._authorities: dict[tuple[bytes, Authority], None] = {}  # that may trade

    async def close(self) -> None:
        async with self._lock:
            if self._database is not None:
                await self._database.close()
                self._database = None

    # --- handing in ----------------------------------------------------------------------------
    async def hand_in(
        self,
        account: int,
        handed: Sequence[Handed],
        signature: bytes,
        authority: Authority | None = None,
    ) -> Outcome:
        """Keep what one signature covers: the order, if it is one, or the root over all of them in
        this order. Of the owner's own key without an authority. Raises DatabaseUnavailable; then
        nobody knows whether it is kept, and it may be handed in again."""
        owner = self._owner_of(account)
        key = authority or Authority(owner)
        try:
            orders = [_order(account, place, x) for place, x in enumerate(handed)]
            if len({x.order_id for x in handed}) < len(handed):
                raise _Refused(Reject.INVALID_FIELD)
            proof = as_vault_takes(signature)
            # In a thread: recovering one signature takes as long as matching a hundred orders.
            leaves = await asyncio.to_thread(self._check, orders, owner, proof, key)
            async with self._connected() as database, database.transaction():
                await _check_not_taken_back(database, owner, key.key, orders)
                await self._keep(database, handed, orders, leaves, proof, key)
        except _Refused as refused:
            return Outcome(refused.reject, refused.place, await self.last_number(account))
        return Outcome(None, -1, await self.last_number(account))

    def _check(
        self, orders: Sequence[Order], owner: bytes, signature: bytes, authority: Authority
    ) -> list[bytes]:
        """The hashes of the orders, if the key has signed them and may. Raises _Refused."""
        known = (owner, authority)
        if known not in self._authorities:
            if not may_trade(authority, owner, self._domain):
                raise _Refused(Reject.KEY_NOT_AUTHORISED)
            if len(self._authorities) >= AUTHORITIES_KEPT:
                self._authorities.clear()
            self._authorities[known] = None
        leaves = order_hashes(orders)
        signed = digest(self._domain, signed_hash(orders[0].account, leaves))
        signer = recover(signed, signature)
        if signer != authority.key:
            raise _Refused(Reject.WRONG_WALLET if signer else Reject.BAD_SIGNATURE)
        return leaves

    async def _keep(
        self,
        database: db.Database,
        handed: Sequence[Handed],
        orders: Sequence[Order],
        leaves: Sequence[bytes],
        signature: bytes,
        authority: Authority,
    ) -> None:
        account = orders[0].account
        kept = await _kept(database, account, handed)
        by_order, taken = {x.order_id: x for x in kept}, {x.number for x in kept}
        new: list[_Row] = []
        wider: list[_Row] = []
        enough_s = self._now_s() + GRACE_S
        for place, (asked, order) in enumerate(zip(handed, orders, strict=True)):
            row = _row(asked, order, place, authority)
            known = by_order.get(asked.order_id)
            if known is None:
                if asked.number in taken:
                    raise _Refused(Reject.CLIENT_ID_REUSED, place)
                taken.add(asked.number)
                new.append(row)
            elif not known.is_same_order(row):
                raise _Refused(Reject.CLIENT_ID_REUSED, place)
            elif known.covers(row):
                pass  # nothing that is not signed already
            # For less long, by a clock that was set back: still long enough to settle it.
            elif row.covers(known) or (row.is_as_wide(known) and row.post_until_s >= enough_s):
                wider.append(row)
            else:
                raise _Refused(Reject.INVALID_TERMS, place)
        if new or wider:
            root = await self._keep_root(database, account, leaves, signature, authority)
            await _write(database, new, wider, root)

    async def _keep_root(
        self,
        database: db.Database,
        account: int,
        leaves: Sequence[bytes],
        signature: bytes,
        authority: Authority,
    ) -> int:
        key, scopes, markets, begins_s, ends_s, nonce, proof = authority
        await database.execute(
            "INSERT INTO signing_key (account, key, scopes, markets_hash, valid_from_s,"
            " valid_until_s, nonce, signature) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
            " ON CONFLICT (account, key, nonce) DO NOTHING",
            *(account, key, scopes, markets, begins_s, ends_s, nonce, proof),
        )
        return await database.value(
            "INSERT INTO order_root (account, signing_key, leaves, signature, time_ns)"
            " SELECT $1, id, $4, $5, $6 FROM signing_key"
            " WHERE account = $1 AND key = $2 AND nonce = $3 RETURNING id",
            *(account, key, nonce, b"".join(leaves), signature, self._clock()),
        )

    # --- asking --------------------------------------------------------------------------------
    async def last_number(self, account: int) -> int:
        """The highest that the account has used, or cancelled on chain; 0: none."""
        [row] = await self._ask(
            "SELECT greatest(0, (SELECT max(number) FROM signed_order WHERE account = $1),"
            " (SELECT max(below) - 1 FROM cancelled_below WHERE account = $1)) AS number",
            account,
        )
        return row["number"]

    async def unsigned(self, account: int) -> list[Unsigned]:
        """The account's orders that were filled beyond what it has signed, oldest fill first; of
        account 0 everybody's."""
        rows = await self._ask(
            "SELECT s.account, s.order_id, s.instrument, s.is_buy, CASE WHEN s.is_buy"
            " THEN greatest(max(s.price_ticks), max(o.price_ticks))"
            " ELSE least(min(s.price_ticks), min(o.price_ticks)) END AS price_ticks,"
            " greatest(max(s.filled_lots), max(o.qty_lots)) AS qty_lots,"
            " coalesce(max(s.number), 0) AS number"
            " FROM fill_sides($2) s LEFT JOIN signed_order o USING (account, order_id)"
            " WHERE $1::bigint IN (account, 0::bigint)"
            " GROUP BY s.account, s.order_id, s.instrument, s.is_buy"
            " HAVING NOT bool_and(covered) ORDER BY min(event_number)",
            *(account, self._now_s()),
        )
        return [Unsigned._make(row.values()) for row in rows]

    async def bodies(self, order_ids: Sequence[int]) -> list[Body]:
        """What these orders are signed for, those that are."""
        rows = await self._ask(
            "SELECT order_id, number, price_ticks, qty_lots FROM signed_order"
            " WHERE verified AND order_id = ANY($1::bigint[])",
            list(order_ids),
        )
        return [Body._make(row.values()) for row in rows]

    async def suspended(self) -> list[int]:
        """As `suspended`, now."""
        async with self._connected() as database:
            return await suspended(database, self._now_s())

    async def taken_back(self) -> list[tuple[int, int]]:
        """(account, order id) of the orders that count no more, or soon will not: by what their
        owners have told the vault."""
        rows = await self._ask(
            "SELECT DISTINCT account, order_id FROM order_taken_back b"
            " JOIN signed_order USING (account, order_id)"
            " WHERE signed_order.post_until_s >= $1 ORDER BY order_id",
            self._now_s(),
        )
        return [(row["account"], row["order_id"]) for row in rows]

    async def _ask(self, sql: str, *arguments: object) -> Sequence[db.Row]:
        async with self._connected() as database:
            return await database.rows(sql, *arguments)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[db.Database]:
        """The connection, this caller's alone; one that is lost is opened again by the next."""
        async with self._lock:
            if self._database is None:
                self._database = await self._connect(self._database_url)
            try:
                yield self._database
            except DatabaseUnavailable:
                lost, self._database = self._database, None
                await lost.close()
                raise

    def _now_s(self) -> int:
        return self._clock() // 1_000_000_000


async def suspended(database: db.Database, now_s: int) -> list[int]:
    """Accounts that did not sign for what they traded, for twice as long each time."""
    rows = await database.rows(
        "SELECT account FROM withheld GROUP BY account HAVING max(time_ns) / 1000000000"
        " + least($2::bigint, $1::bigint << least(count(DISTINCT time_ns), 30)::integer - 1)"
        " > $3::bigint"
        " ORDER BY account",
        *(SUSPENDED_S, SUSPENDED_S_MAX, now_s),
    )
    return [row["account"] for row in rows]


async def _check_not_taken_back(
    database: db.Database, owner: bytes, key: bytes, orders: Sequence[Order]
) -> None:
    """Raises _Refused if the wallet has told the vault that the key or a number counts no more."""
    if await database.value("SELECT 1 FROM revoked_key WHERE owner = $1 AND key = $2", owner, key):
        raise _Refused(Reject.KEY_NOT_AUTHORISED)
    below: int = await database.value(
        "SELECT coalesce(max(below), 0) FROM cancelled_below WHERE account = $1",
        orders[0].account,
    )
    for place, order in enumerate(orders):
        if order.number < below:
            raise _Refused(Reject.INVALID_TERMS, place)


async def _kept(database: db.Database, account: int, handed: Sequence[Handed]) -> list[_Row]:
    """What is there of these orders, or under these numbers."""
    rows = await database.rows(
        "SELECT * FROM signed_order"
        " WHERE account = $1 AND (order_id = ANY($2::bigint[]) OR number = ANY($3::bigint[]))",
        *(account, [x.order_id for x in handed], [x.number for x in handed]),
    )
    return [_Row(**row) for row in rows]


async def _write(database: db.Database, new: list[_Row], wider: list[_Row], root: int) -> None:
    if new:
        rows = [row._replace(root=root) for row in new]
        await database.copy("signed_order", _Row._fields, rows)
    for row in wider:
        await database.execute(
            "UPDATE signed_order SET price_ticks = $3, qty_lots = $4, fee_ppm_max = $5,"
            " valid_until_s = $6, root = $7, place = $8, post_from_s = $9, post_until_s = $10"
            " WHERE account = $1 AND order_id = $2",
            *(row.account, row.order_id, row.price_ticks, row.qty_lots, row.fee_ppm_max),
            *(row.valid_until_s, root, row.place, row.post_from_s, row.post_until_s),
        )


def authority_of(
    key: bytes,
    scopes: int,
    markets: Sequence[str],
    valid_from_s: int,
    valid_until_s: int,
    nonce: int,
    signature: bytes,
) -> Authority:
    """What a wallet signed for a session key, as the gateway has it."""
    named = markets_hash(markets)
    proof = as_vault_takes(signature)
    return Authority(key, scopes, named, valid_from_s, valid_until_s, nonce, proof)


def _order(account: int, place: int, x: Handed) -> Order:
    """Raises _Refused if the vault has no name for what is traded."""
    try:
        series, window = settled(x.product)
    except CatalogError as error:
        raise _Refused(Reject.UNKNOWN_INSTRUMENT, place) from error
    return Order(
        account, x.is_buy, series, window, x.price_ticks, x.qty_lots, x.number, x.fee_ppm_max,
        x.valid_until_s,
    )  # fmt: skip


def _row(asked: Handed, order: Order, place: int, authority: Authority) -> _Row:
    """Its root is still to come. The owner's own key begins and ends never."""
    ends_s = authority.valid_until_s if authority.signature else FOR_EVER_S
    return _Row(
        account=order.account,
        order_id=asked.order_id,
        number=asked.number,
        verified=True,
        instrument=asked.instrument,
        is_buy=asked.is_buy,
        series=order.series,
        delivery=order.window,
        price_ticks=asked.price_ticks,
        qty_lots=asked.qty_lots,
        fee_ppm_max=asked.fee_ppm_max,
        valid_until_s=asked.valid_until_s,
        root=0,
        place=place,
        post_from_s=authority.valid_from_s,
        post_until_s=min(asked.valid_until_s, ends_s) + GRACE_S - POSTING_S,
    )
