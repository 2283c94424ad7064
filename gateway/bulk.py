"""The replies of several requests gathered into one: of the items of a batch.

Invariant: what is gathered is told once, when the last of it is there, in the order of the items
and not of their arrival. Sessions make one for each batch; what the engine answers comes to it
through the `part` that each item was given for its reply.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

from compex_client import messages as m

from engine.rejects import Reject

Told: TypeAlias = Callable[[m.ServerMessage], None]  # to whom a reply goes
ItemReply: TypeAlias = m.Ack | m.Reject | m.ReplaceAck


class Gathering:
    def __init__(self, size: int, tell: Callable[[list[ItemReply]], None]) -> None:
        self._replies: list[ItemReply | None] = [None] * size
        self._missing = size
        self._tell = tell
        self.is_busy = False  # an item was not taken, so none behind it may be

    def part(self, index: int) -> Told:
        """Where the reply of this item goes."""
        return partial(self._put, index)

    def _put(self, index: int, reply: m.ServerMessage) -> None:
        assert isinstance(reply, ItemReply) and self._replies[index] is None, "one reply each"
        self._replies[index] = reply
        self._missing -= 1
        self.is_busy |= isinstance(reply, m.Reject) and reply.code == Reject.BUSY
        if not self._missing:
            self._tell(cast(list[ItemReply], self._replies))


def levels_in(items: list[m.New | m.Cancel | m.Amend | m.Replace | m.Quote]) -> int:
    return sum(len(x.bids) + len(x.asks) for x in items if isinstance(x, m.Quote))
