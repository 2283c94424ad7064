"""Fills that somebody did not sign for: undone, so that who did sign is free again.

Owns the table withheld. Invariant: a fill is undone only if nobody can be held to it on chain, that
is, before it is in a batch; and only where the engine can undo it, so hours of a window, which
their buyer could be selling again, are undone while the buyer's account is closed. Only
settlement's service calls it: `closings`, have them booked, `mark`, have the void fills undone.
"""

from typing import Final

from engine.port import Port
from engine.records import Command, CommandKind
from settlement.database import Database
from settlement.products import settled

UNDONE_AFTER: Final = 6  # times what an order may stay unsigned
FILLS_PER_TURN_MAX: Final = 1_000
NS_PER_S: Final = 1_000_000_000

# Fills matched before $2 of which a side is not covered at $1 s, and what was sold again of them.
_UNDONE: Final = """
    WITH RECURSIVE late AS (
        SELECT DISTINCT event_number FROM fill_sides($1) WHERE NOT covered AND time_ns < $2
        ORDER BY event_number LIMIT $3
    ), undone AS (
        SELECT f.event_number, f.buyer, f.instrument FROM fill f JOIN late USING (event_number)
        UNION
        SELECT f.event_number, f.buyer, f.instrument FROM fill f JOIN undone u
            ON f.seller = u.buyer AND f.instrument = u.instrument AND f.resold
            AND f.event_number > u.event_number
            AND f.batch_id IS NULL AND f.void_number IS NULL
    )
"""


class Withholding:
    """`since_ns` is when this node began to listen: before that nobody could sign."""

    def __init__(self, database: Database, port: Port, sign_within_ns: int, since_ns: int) -> None:
        self._database = database
        self._port = port
        self._after_ns = UNDONE_AFTER * sign_within_ns
        self._since_ns = since_ns

    async def closings(self, now_ns: int) -> list[Command]:
        """Close, for a moment, who bought hours of a window that are to be undone."""
        rows = await self._database.rows(
            f"{_UNDONE} SELECT DISTINCT buyer FROM undone"
            " WHERE NOT instrument = ANY($4::bigint[]) AND NOT EXISTS"
            " (SELECT FROM closed_account c WHERE c.account = buyer AND c.emptied) ORDER BY buyer",
            *self._late(now_ns),
            self._spot(),
        )
        return [Command(kind=CommandKind.CLOSE_ACCOUNT, account=row["buyer"]) for row in rows]

    async def mark(self, now_ns: int) -> int:
        """Make void what can be undone now, last sale first, and note who did not sign; how many
        fills those are."""
        async with self._database.transaction():
            rows = await self._database.rows(
                f"{_UNDONE} SELECT event_number, instrument = ANY($4::bigint[]) OR EXISTS"
                " (SELECT FROM closed_account c WHERE c.account = buyer AND c.emptied) AS possible"
                " FROM undone ORDER BY event_number DESC",
                *self._late(now_ns),
                self._spot(),
            )
            # What was sold again goes before what it came from: all of it, or what comes first.
            waits = any(not row["possible"] for row in rows)
            chosen = [row["event_number"] for row in rows if row["possible"]]
            if waits or not chosen:
                return 0
            # Whoever had signed in time is not to blame for what could not be settled since.
            await self._database.execute(
                "INSERT INTO withheld SELECT event_number, account, $2 FROM fill_sides("
                "  (SELECT min(time_ns) / 1000000000 FROM fill WHERE event_number = ANY($1))"
                " ) WHERE NOT covered AND event_number = ANY($1::bigint[])",
                *(chosen, now_ns),
            )
            return await self._database.execute(
                "UPDATE fill SET void_number = numbered.void_number FROM ("
                "  SELECT event_number, row_number() OVER (ORDER BY event_number DESC)"
                "   + (SELECT coalesce(max(void_number), 0) FROM fill) AS void_number"
                "  FROM unnest($1::bigint[]) event_number"
                " ) numbered WHERE fill.event_number = numbered.event_number",
                chosen,
            )

    def _late(self, now_ns: int) -> tuple[int, int, int]:
        begins_ns = now_ns - self._after_ns
        before_ns = begins_ns if begins_ns >= self._since_ns else 0
        return now_ns // NS_PER_S, before_ns, FILLS_PER_TURN_MAX

    def _spot(self) -> list[int]:
        """Markets without a window, whose hours nobody sells again."""
        return [x.instrument for x in self._port.markets() if not settled(x.product).window]
