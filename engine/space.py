"""How full the journal's disk is: enough, low, too low.

Owns the last look at its free bytes, and the two marks that they are held against. Invariant: a
crossing of a mark is logged once, when it is seen, and a disk that cannot say how much it has left
is taken for full. `pipeline` looks on the thread that writes the journal, and refuses by it.
"""

import logging
from collections.abc import Callable

from engine.journal import SEGMENT_BYTES
from engine.port import MARK_BYTES_MIN, JournalSpace, SpaceMarks

assert MARK_BYTES_MIN >= 2 * SEGMENT_BYTES, "refusing starts before a segment cannot be allocated"

log = logging.getLogger("compex.journal")


class Space:
    """`free_bytes` asks the disk and may raise OSError."""

    def __init__(self, free_bytes: Callable[[], int], marks: SpaceMarks) -> None:
        assert 0 < marks.too_low_bytes < marks.low_bytes
        self._ask = free_bytes
        self._marks = marks
        self._logged: JournalSpace = "enough"
        self.free_bytes = marks.low_bytes  # until the first look

    @property
    def state(self) -> JournalSpace:
        if self.free_bytes < self._marks.too_low_bytes:
            return "too_low"
        return "low" if self.free_bytes < self._marks.low_bytes else "enough"

    def look(self) -> None:
        """Ask the disk; may block as long as the disk does."""
        try:
            self.free_bytes = self._ask()
        except OSError as error:
            self.free_bytes = 0
            self._log(f"the disk does not say how much is free: {error}")
        else:
            self._log(f"{self.free_bytes} bytes are free")

    def _log(self, words: str) -> None:
        if self.state != self._logged:
            self._logged = self.state
            log.warning("the journal's space is %s: %s", self.state.replace("_", " "), words)
