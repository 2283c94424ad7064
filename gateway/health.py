"""What `/live` and `/ready` say: whether the process runs, and whether it takes orders.

Invariant: ready means that an order sent now would be sequenced. The server calls it.
"""

from collections.abc import Callable
from typing import Final

from compex_client import reads as r

from engine.port import JournalSpace, Port
from engine.rejects import WORDS, Reject

STANDALONE: Final = "standalone"
SPACE_WARNINGS: Final[dict[JournalSpace, str]] = {
    "enough": "",
    "low": "the journal's disk is filling up; every order is still taken",
    "too_low": WORDS[Reject.DISK_NEARLY_FULL],
}


class Health:
    """`role` is this node's part in the deployment."""

    def __init__(
        self,
        port: Port,
        settlement: Callable[[], r.Settling] = r.Settling,
        role: str = STANDALONE,
    ) -> None:
        self._port = port
        self.settlement: Final = settlement
        self._role = role

    def live(self) -> r.Live:
        """This process answers."""
        return r.Live()

    def ready(self) -> r.Ready:
        """Whether commands are taken, or the reason why not, in words."""
        ready = self._port.ready()
        taking = not ready.stopped and ready.has_room and ready.journal_space != "too_low"
        return r.Ready(
            ready=taking,
            role=self._role,
            last_sequence=ready.last_sequence,
            durable_sequence=ready.durable_sequence,
            event_number=ready.event_number,
            started_from=ready.started_from,
            stopped=ready.stopped,
            has_room=ready.has_room,
            journal_bytes_free=ready.journal_bytes_free,
            journal_space=ready.journal_space,
            warning=SPACE_WARNINGS[ready.journal_space],
            settlement=self.settlement(),
        )
