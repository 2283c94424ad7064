"""With which exit status a command ends, and why: for whoever starts nodes by script.

Invariant: a status never changes its meaning, and from 3 on a person has to act before a node is
started again. `cli` ends with them; README and `compex up --help` list them.
"""

from enum import IntEnum
from typing import Final

from engine.rejects import DamagedJournal, DiskFailed, EngineBroken, OtherBuild


class Ending(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2  # argparse's own
    DISK_FAILED = 3
    DAMAGED = 4
    OTHER_BUILD = 5
    BROKEN = 6
    VAULT_OUTDATED = 7
    NOT_COVERED = 8
    INTERRUPTED = 130


WORDS: Final[dict[Ending, str]] = {
    Ending.DONE: "done; a node: stopped by SIGINT or SIGTERM",
    Ending.FAILED: "not done, for the reason printed: a setting, a port in use, no database, ...",
    Ending.USAGE: "the command line is wrong",
    Ending.DISK_FAILED: "the journal's disk failed or is full",
    Ending.DAMAGED: "the journal is damaged",
    Ending.OTHER_BUILD: "the journal is another build's and not adopted yet",
    Ending.BROKEN: "the engine broke while it ran: keep the directory, report the message",
    Ending.VAULT_OUTDATED: "the vault is of an earlier version; its money has to leave it first",
    Ending.NOT_COVERED: "verify: a batch was settled that its parties' orders do not cover",
    Ending.INTERRUPTED: "interrupted",
}
assert set(WORDS) == set(Ending), "every status has its words"

_ENDINGS: Final[dict[type[Exception], Ending]] = {
    DiskFailed: Ending.DISK_FAILED,
    DamagedJournal: Ending.DAMAGED,
    OtherBuild: Ending.OTHER_BUILD,
    EngineBroken: Ending.BROKEN,
}


def ending_of(error: Exception) -> Ending:
    """The status for what a command raised."""
    return _ENDINGS.get(type(error), Ending.FAILED)


def endings_text() -> str:
    rows = (f"  {ending.value:>3}  {words}" for ending, words in WORDS.items())
    return "\n".join(["exit status:", *rows])
