"""Fills that somebody did not sign for: undone, so that who did sign is free again.

Owns the table withheld. Invariant: a fill is undone only if nobody can be held to it on chain, that
is, before it is in a batch. Only settlement's service calls it, in the order of `undoing`.
"""

from typing import Final

from engine.records import Command
from settlement.database import Database
from settlement.signatures import POSTING_S
from settlement.undoing import Undoing

UNDONE_AFTER: Final = 6  # times what an order may stay unsigned
FILLS_PER_TURN_MAX: Final = 1_000
NS_PER_S: Final = 1_000_000_000

# Fills matched before $3 ns of which a side is not covered at $2 s.
_LATE: Final = """
    SELECT DISTINCT event_number FROM fill_sides($2) WHERE NOT covered AND time_ns < $3
    ORDER BY event_number LIMIT $4
"""
# Sides of the fills $1 that were not covered at the last moment at which they had to be, $4 s after
# they were matched; who is not late yet, as of what was sold again of them, is not to blame.
_BLAMED: Final = """
    SELECT event_number, account, $2::bigint FROM (
        SELECT *, time_ns / 1000000000 + $4::bigint AS due_s FROM signed_sides()
    ) side
    WHERE event_number = ANY($1::bigint[]) AND time_ns < $3 AND NOT (
        is_signed AND due_s BETWEEN post_from_s AND post_until_s
        AND NOT EXISTS (
            SELECT FROM order_taken_back b WHERE b.account = side.account
                AND b.order_id = side.order_id AND due_s > b.post_until_s))
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
            _, before_ns, _ = self._late(now_ns)
            # An order that has not ended when it is matched covers the fill for so long at least.
            due_after_s = min(self._after_ns // NS_PER_S, POSTING_S)
            await self._database.execute(
                f"INSERT INTO withheld {_BLAMED}", *(chosen, now_ns, before_ns, due_after_s)
            )
            await self._undoing.mark(chosen)

    def _late(self, now_ns: int) -> tuple[int, int, int]:
        begins_ns = now_ns - self._after_ns
        before_ns = begins_ns if begins_ns >= self._since_ns else 0
        return now_ns // NS_PER_S, before_ns, FILLS_PER_TURN_MAX
