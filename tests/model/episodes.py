"""Episodes of random commands from a fresh exchange, and what is left of one that failed.

An episode is named by a seed and a number and can be run alone. One that fails is cut down to the
commands it takes (delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating
Failure-Inducing Input", 2002) and written as text, one command a line, for the corpus that the
tests replay. Invariant: what is written fails as it is read back. Run it by itself, without limit
on the number of commands, as

    uv run python -m tests.model.episodes SEED FIRST_EPISODE [EPISODES]
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from engine.records import CancelReason, Command, CommandKind, Event, EventKind
from engine.rejects import Reject
from tests.model.flow import Flow, Step
from tests.model.pair import Pair

CORPUS: Final = Path(__file__).parent / "corpus"
EPISODE_STEPS: Final = 2_500
EPISODES_MAX: Final = 1_000_000  # of one seed; keeps the episodes of two seeds apart
SHRINK_RUNS_MAX: Final = 2_000


class Told(NamedTuple):
    """A step as it was drawn, and what its numbers mean, so that it can follow others."""

    step: Step
    order_of: tuple[int, int] | None  # its order id is the n-th accepted by another step
    next_deposit: bool  # its deposit number was the one that was due
    number: int  # of the step in its episode


@dataclass
class Tally:
    """What was done, and which outcomes were seen."""

    steps: int = 0
    commands: Counter[CommandKind] = field(default_factory=Counter[CommandKind])
    events: Counter[EventKind] = field(default_factory=Counter[EventKind])
    cancels: Counter[CancelReason] = field(default_factory=Counter[CancelReason])
    rejects: Counter[Reject] = field(default_factory=Counter[Reject])

    @property
    def outcomes(self) -> tuple[Counter[EventKind], Counter[CancelReason], Counter[Reject]]:
        return self.events, self.cancels, self.rejects

    def count(self, step: Step, events: Iterable[Event]) -> None:
        self.steps += 1
        self.commands.update(_KINDS[record.kind] for record in step if record.kind in _KINDS)
        for event in events:
            self.events[EventKind(event.kind)] += 1
            if event.kind == EventKind.CANCELLED:
                self.cancels[CancelReason(event.reason)] += 1
            elif event.kind == EventKind.REJECTED:
                self.rejects[Reject(event.reason)] += 1


_KINDS: Final = {kind.value: kind for kind in CommandKind}


class EpisodeError(AssertionError):
    """Kernel and specification parted, or an invariant broke."""

    def __init__(self, name: str, told: list[Told], cause: Exception) -> None:
        super().__init__(f"{name}, step {len(told) - 1}: {cause}")
        self.name = name
        self.told = told
        self.cause = cause


class Player:
    """Applies steps to a pair, and sees to it that they mean what they meant when drawn."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.born: dict[int, tuple[int, int]] = {}  # order id -> step, how manieth of it
        self._ids: dict[tuple[int, int], int] = {}

    def draw(self, step: Step, number: int) -> Told:
        assert all(record.pack() for record in step), step
        due = self.pair.reference.last_deposit + 1
        is_deposit = step[0].kind == CommandKind.DEPOSIT
        next_deposit = is_deposit and step[0].client_id == due
        return Told(step, self.born.get(step[0].order_id), next_deposit, number)

    def meant(self, told: Told) -> Step:
        """The step with the numbers that are right where it stands now."""
        first, *more = told.step
        if told.order_of is not None:
            first = first._replace(order_id=self._ids.get(told.order_of, first.order_id))
        if told.next_deposit:
            first = first._replace(client_id=self.pair.reference.last_deposit + 1)
        return first, *more

    def apply(self, told: Told) -> list[Event]:
        events = self.pair.apply(self.meant(told))
        accepted = [e.order_id for e in events if e.kind == EventKind.ACCEPTED]
        for nth, order_id in enumerate(accepted):
            self.born[order_id] = told.number, nth
            self._ids[told.number, nth] = order_id
        return events


def episode_name(seed: int, episode: int) -> str:
    return f"seed {seed}, episode {episode}"


def run_episode(seed: int, episode: int, tally: Tally, steps: int = EPISODE_STEPS) -> None:
    """Raises EpisodeError."""
    assert 0 <= episode < EPISODES_MAX
    pair = Pair()
    player = Player(pair)
    flow = Flow(Random(seed * EPISODES_MAX + episode), pair.reference)
    told: list[Told] = []
    for number in range(steps):
        step = flow.next()
        told.append(player.draw(step, number))
        try:
            events = player.apply(told[-1])
            if number == steps - 1:
                pair.compare_all()
        except Exception as error:
            raise EpisodeError(episode_name(seed, episode), told, error) from error
        flow.observe(events)
        tally.count(step, events)


# --- what is left of a failure -------------------------------------------------------------------


def first_failure(told: Sequence[Told]) -> tuple[list[Step], Exception] | None:
    """The steps up to the one that fails, as they were applied, and how it fails; or None."""
    player = Player(Pair(look_every=1))
    applied: list[Step] = []
    for one in told:
        applied.append(player.meant(one))
        try:
            player.apply(one)
        except Exception as error:  # noqa: BLE001 whatever a faulty rule raises is its failure
            return applied, error
    return None


def shrink(told: list[Told]) -> list[Told]:
    """Fewer steps that fail still; none of them can be left out, unless the runs ran out."""
    runs = 0

    def cut(candidate: list[Told]) -> list[Told] | None:
        nonlocal runs
        runs += 1
        failure = first_failure(candidate)
        return candidate[: len(failure[0])] if failure else None

    chunk = len(told) // 2
    while chunk and runs < SHRINK_RUNS_MAX:
        before = len(told)
        end = len(told)
        # From the end, as what comes later rests on what came before.
        while end > 0 and runs < SHRINK_RUNS_MAX:
            start = max(0, end - chunk)
            fewer = cut(told[:start] + told[end:])
            end = start
            if fewer is not None:
                told = fewer
                end = min(end, len(told))
        if chunk > 1 or len(told) == before:
            chunk //= 2
    return told


def keep_failure(error: EpisodeError, directory: Path) -> Path:
    """Shrink a failure and write it; the file fails when it is replayed."""
    told = shrink(error.told)
    failure = first_failure(told)
    assert failure is not None, f"{error.name} fails only as it was drawn: {error}"
    steps, how = failure
    path = directory / (error.name.replace(", ", "-").replace(" ", "-") + ".txt")
    words = [f"# {error.name}, {len(error.told)} steps cut down to {len(steps)}; it failed with"]
    words += [f"#   {line}" for line in str(how).splitlines()]
    path.write_text("\n".join(words) + "\n" + write_steps(steps), "utf-8")
    return path


# --- steps as text -------------------------------------------------------------------------------


def write_steps(steps: Iterable[Step]) -> str:
    """One record a line, those that belong to a command indented below it.

    Fields that are 0 are left out, and so is the time where it is that of the line before.
    """
    lines: list[str] = []
    time_ns = 0
    for step in steps:
        for i, record in enumerate(step):
            known = record.kind in _KINDS
            words = ["  " * (i > 0) + (_KINDS[record.kind].name if known else "ANOTHER_KIND")]
            fields = record._asdict()
            if known:
                del fields["kind"]
            if record.time_ns == time_ns:
                del fields["time_ns"]
            time_ns = record.time_ns
            del fields["sequence"]
            words += [f"{name}={value}" for name, value in fields.items() if value]
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def read_steps(text: str) -> list[Step]:
    """The inverse of `write_steps`; lines that begin with # are for people."""
    steps: list[Step] = []
    time_ns = 0
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *words = line.split()
        fields = {key: int(value) for key, _, value in (word.partition("=") for word in words)}
        time_ns = fields.setdefault("time_ns", time_ns)
        if name in CommandKind.__members__:
            fields["kind"] = CommandKind[name]
        record = Command(**fields)
        if line.startswith(" "):
            steps[-1] = (*steps[-1], record)
        else:
            steps.append((record,))
    return steps


def replay(steps: Iterable[Step], tally: Tally) -> None:
    """The steps exactly as written, compared after each. Raises what differs."""
    pair = Pair(look_every=1)
    for step in steps:
        tally.count(step, pair.apply(step))


# --- many episodes -------------------------------------------------------------------------------


def run_episodes(
    seed: int,
    episodes: Iterable[int],
    tally: Tally,
    directory: Path = CORPUS,
    say: Callable[[str], None] = print,
) -> None:
    """Run them; a failure is shrunk, written to the directory, said, and raised."""
    for episode in episodes:
        try:
            run_episode(seed, episode, tally)
        except EpisodeError as error:
            path = keep_failure(error, directory)
            say(f"{error}\n{path}\n{path.read_text('utf-8')}")
            say(f"again: uv run python -m tests.model.episodes {seed} {episode} 1")
            raise


def _main(arguments: list[str]) -> None:
    seed, first, *count = map(int, arguments)
    tally = Tally()
    begin = time.perf_counter()
    run_episodes(seed, range(first, first + (count[0] if count else 1)), tally)
    seconds = time.perf_counter() - begin
    print(f"seed {seed}: {tally.steps} steps in {seconds:.0f} s, {tally.steps / seconds:.0f}/s")
    for counter in (tally.commands, *tally.outcomes):
        print("  ".join(f"{what.name} {count}" for what, count in counter.most_common()))


if __name__ == "__main__":
    _main(sys.argv[1:])
