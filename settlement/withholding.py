"""Fills that somebody did not sign for: undone, so that who did sign is free again.

Owns the table withheld. Invariant: a fill is undone only if nobody can be held to it on chain, that
is, before it is in a batch. Only settlement's service calls it, in the order of `undoing`.
"""

from typing import Final

from engine.records import Command
from settlement.database import Database
from settlement.undoing import Undoing

UNDONE_AFTER: Final = 6  # times what an order may stay unsigned
FILLS_PER_TURN_MAX: Final = 1_000
NS_PER_S: Final = 1_000_000_000

# Fills matched before $3 ns of which a side is not covered at $2 s.
_LATE: Final = """
    SELECT DISTINCT event_number FROM fill_sides($2) WHERE NOT covered AND time_ns < $3
    ORDER BY event_number LIMIT $4
"""


class Withholding:
    """`since_ns` is when this node began to listen: before that nobody could sign."""

    def __init__(
        self, database: Database, undoing: Undoing, sign_within_ns: int, since_ns: int
    ) -> None:
        self._database = database
        self._undoing = undoing
        self._after_ns = UNDONE_AFTER * sign_within_ns
        self._since_ns = since_ns

    async def closings(self, now_ns: int) -> list[Command]:
        """Close, for a moment, who bought hours of a window that are to be undone."""
        return await self._undoing.closings(_LATE, *self._late(now_ns))

    async def mark(self, now_ns: int) -> None:
        """Make void what can be undone now, and note who did not sign."""
        async with self._database.transaction():
            chosen = await self._undoing.possible(_LATE, *self._late(now_ns))
            if not chosen:
                return
            # Whoever had signed in time is not to blame for what could not be settled since.
            await self._database.execute(
                "INSERT INTO withheld SELECT event_number, account, $2 FROM fill_sides("
                "  (SELECT min(time_ns) / 1000000000 FROM fill WHERE event_number = ANY($1))"
                " ) WHERE NOT covered AND event_number = ANY($1::bigint[])",
                *(chosen, now_ns),
            )
            await self._undoing.mark(chosen)

    def _late(self, now_ns: int) -> tuple[int, int, int]:
        begins_ns = now_ns - self._after_ns
        before_ns = begins_ns if begins_ns >= self._since_ns else 0
        return now_ns // NS_PER_S, before_ns, FILLS_PER_TURN_MAX
