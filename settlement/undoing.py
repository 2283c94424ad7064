"""Fills that are undone, with whatever was sold again of them: hours that nobody delivers to the
first buyer cannot come to the second.

Owns which fills are void. Invariant: what was sold again is undone before the purchase it came
from, last sale first, and only where the engine can undo it: a buyer of hours of a window may have
offered them or be selling them, so its account is closed meanwhile. A fill is undone only before it
is in a batch. Exits and withholding say which, by a query that gives the event numbers of fills:
`closings`, have them booked, `mark` what is `possible`, have `commands` booked, then open whoever
was closed and has nothing left to be undone.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from engine.port import Port
from engine.records import Command, CommandKind
from settlement.database import Database
from settlement.products import settled

VOIDS_PER_TURN_MAX: Final = 1_000

# Fills that are void and that the engine has not undone: until it has, who bought them stays
# closed.
MARKED: Final = """
    SELECT * FROM fill WHERE batch_id IS NULL AND void_number IS NOT NULL
        AND NOT EXISTS (SELECT FROM booked t
                        WHERE t.kind = 'void' AND t.reference = fill.event_number)
"""

# $1 are the markets without a window, whose hours nobody sells again.
_UNDONE: Final = """
    WITH RECURSIVE first AS MATERIALIZED ({first}), undone AS (
        SELECT f.event_number, f.buyer, f.seller, f.instrument, f.resold
            FROM fill f JOIN first USING (event_number)
            WHERE f.batch_id IS NULL AND f.void_number IS NULL
        UNION
        SELECT f.event_number, f.buyer, f.seller, f.instrument, f.resold FROM fill f JOIN undone u
            ON f.seller = u.buyer AND f.instrument = u.instrument AND f.resold
            AND f.event_number > u.event_number
            AND f.batch_id IS NULL AND f.void_number IS NULL
    ), ready AS (
        SELECT event_number, buyer, seller, instrument, resold,
            event_number IN (SELECT event_number FROM first) AS is_first,
            instrument = ANY($1::bigint[]) OR EXISTS
            (SELECT FROM closed_account c WHERE c.account = buyer AND c.emptied) AS possible
        FROM undone
    )
"""


class _Sale(NamedTuple):
    event_number: int
    buyer: int
    seller: int
    instrument: int
    resold: bool
    is_first: bool  # to be undone for its own sake, not because of a purchase it came from
    possible: bool


class Undoing:
    def __init__(self, database: Database, port: Port) -> None:
        self._database = database
        self._port = port

    async def closings(self, first: str, *arguments: object) -> list[Command]:
        """Close, for a moment, who bought hours of a window that are to be undone; again, whose
        orders were more than one command cancels. `first` is the query, its arguments from $2
        on."""
        rows = await self._database.rows(
            f"{_UNDONE.format(first=first)} SELECT buyer FROM ready WHERE NOT possible"
            " UNION SELECT account FROM closed_account WHERE NOT emptied ORDER BY buyer",
            self._spot(),
            *arguments,
        )
        return [Command(kind=CommandKind.CLOSE_ACCOUNT, account=row["buyer"]) for row in rows]

    async def possible(self, first: str, *arguments: object) -> list[int]:
        """The event numbers of all that is to be undone and can be, ascending."""
        rows = await self._database.rows(
            f"{_UNDONE.format(first=first)}"
            f" SELECT {', '.join(_Sale._fields)} FROM ready ORDER BY event_number",
            self._spot(),
            *arguments,
        )
        return _possible([_Sale._make(row.values()) for row in rows])

    async def mark(self, chosen: Sequence[int]) -> None:
        """Make them void: the last sale comes first. Each number is used once, also of fills whose
        period was taken out since."""
        await self._database.execute(
            "UPDATE fill SET void_number = numbered.void_number FROM ("
            "  SELECT event_number, row_number() OVER (ORDER BY event_number DESC)"
            "   + (SELECT coalesce(max(void_number), 0) FROM voided_fill) AS void_number"
            "  FROM unnest($1::bigint[]) event_number"
            " ) numbered WHERE fill.event_number = numbered.event_number",
            list(chosen),
        )

    async def commands(self) -> list[Command]:
        """Undo the fills that are void, and that the engine has not undone yet."""
        rows = await self._database.rows(
            "SELECT void_number, event_number, buyer, seller, instrument, price_ticks, qty_lots,"
            f" buyer_fee_ppm, resold FROM ({MARKED}) marked ORDER BY void_number LIMIT $1",
            VOIDS_PER_TURN_MAX,
        )
        return [
            Command(
                kind=CommandKind.VOID_FILL,
                account=row["buyer"],
                client_id=row["event_number"],  # the bytes of reference
                order_id=row["seller"] | row["void_number"] << 32,
                instrument=row["instrument"],
                price_ticks=row["price_ticks"],
                qty_lots=row["qty_lots"],
                expiry_s=row["buyer_fee_ppm"],  # the bytes of buyer_fee_ppm
                resale=int(row["resold"]),
            )
            for row in rows
        ]

    def _spot(self) -> list[int]:
        return [x.instrument for x in self._port.markets() if not settled(x.product).window]


def _possible(sales: Sequence[_Sale]) -> list[int]:
    """Whoever's orders could not be cancelled yet holds up what that account bought, and what those
    hours came from; nobody else's. `sales` come in the order of their event numbers."""
    held: set[tuple[int, int]] = set()  # (seller, instrument) of what was sold again, and stays
    free: list[_Sale] = []
    for sale in reversed(sales):
        if sale.possible and (sale.buyer, sale.instrument) not in held:
            free.append(sale)
        elif sale.resold:
            held.add((sale.seller, sale.instrument))
    bought: set[tuple[int, int]] = set()  # (buyer, instrument) of what is undone
    chosen: list[int] = []
    for sale in reversed(free):
        if sale.is_first or (sale.seller, sale.instrument) in bought:
            bought.add((sale.buyer, sale.instrument))
            chosen.append(sale.event_number)
    return chosen
