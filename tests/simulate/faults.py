"""Which faults a seed has, and how often each comes.

Invariant: everything is drawn from the seed's own stream before the run begins, and each seed has
about half of the kinds (a swarm): a fault that is always there hides what needs its absence. Once
`heal` is called none comes any more. The disk, the network, the chain and the node ask.
"""

from dataclasses import dataclass, fields
from random import Random


@dataclass
class Faults:
    """Chances are per occasion, in parts per million; times in seconds of the virtual clock."""

    # the node
    kill_ppm: int = 0  # of its lives that end by kill -9: what was written is still there
    power_ppm: int = 0  # ... by a power cut: of what was not synced anything may be gone
    stop_ppm: int = 0  # ... by being asked to
    # the disk
    slow_sync_ppm: int = 0  # a sync takes many milliseconds
    write_error_ppm: int = 0  # EIO or ENOSPC, with part of the bytes written
    sync_error_ppm: int = 0
    snapshot_killed_ppm: int = 0  # per call of the process that writes a snapshot
    retired_ppm: int = 0  # after a snapshot: what is older than all of them is removed
    # the network
    cut_ppm: int = 0  # per frame of a client: its connection breaks
    repeat_ppm: int = 0  # a client sends the same again without waiting for the answer
    slow_reader_ppm: int = 0  # per connection
    # time of day
    jump_ppm: int = 0  # per second: an hour forward or back
    # the chain
    chain_away_ppm: int = 0  # per call: no answer, done or not
    chain_loses_ppm: int = 0  # per transaction: forgotten by the node
    chain_slow_ppm: int = 0  # per transaction: many blocks late
    exit_ppm: int = 0  # per second and wallet: it wants to leave the vault by itself
    # the database
    database_lost_ppm: int = 0  # per statement: the connection is gone, before it or after it

    def heal(self) -> None:
        for field in fields(self):
            setattr(self, field.name, 0)

    def names(self) -> list[str]:
        """Those that this seed has."""
        return [f.name.removesuffix("_ppm") for f in fields(self) if getattr(self, f.name)]


_WORST = Faults(
    kill_ppm=400_000,
    power_ppm=600_000,
    stop_ppm=200_000,
    slow_sync_ppm=400_000,
    write_error_ppm=4_000,
    sync_error_ppm=4_000,
    snapshot_killed_ppm=20_000,
    retired_ppm=1_000_000,
    cut_ppm=20_000,
    repeat_ppm=100_000,
    slow_reader_ppm=200_000,
    jump_ppm=60_000,
    chain_away_ppm=20_000,
    chain_loses_ppm=200_000,
    chain_slow_ppm=200_000,
    exit_ppm=60_000,
    database_lost_ppm=1_000,
)


def drawn(random: Random) -> Faults:
    """A swarm: each kind with the chance of one half, and then more or less of it."""
    faults = Faults()
    for field in fields(Faults):
        worst: int = getattr(_WORST, field.name)
        if random.random() < 0.5:
            setattr(faults, field.name, max(1, worst * random.randrange(1, 5) // 4))
    return faults


class Chance:
    """One part's own stream of random numbers, so that no part disturbs another's."""

    def __init__(self, seed: int, part: str) -> None:
        self.random = Random(f"{seed} {part}")

    def happens(self, ppm: int) -> bool:
        return ppm > 0 and self.random.randrange(1_000_000) < ppm

    def seconds(self, least: float, most: float) -> float:
        """Mostly little, seldom much: as delays are."""
        return least + (most - least) * self.random.random() ** 3
