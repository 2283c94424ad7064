"""kill -9 at random points: every acknowledged order is there afterwards, and none is there twice.

The processes work on one journal, one after the other, so that each also recovers what the ones
before it left, and now and then takes it over from another build. Each is killed in a moment drawn
for it: while it recovers, adopts, trades or changes the segment. A failure prints its seed; `SEED`
below reproduces the points in time, as far as a machine repeats itself.
"""

import asyncio
import multiprocessing
import os
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from engine.clock import SystemClock
from engine.journal import BUILD, Journal, SystemDisk
from engine.pipeline import Pipeline
from engine.port import Batch
from engine.records import Event, EventKind
from engine.replay import adopt
from tests.fault.under_load import (
    QUOTE_LEVELS,
    RECORD,
    SEGMENT_BYTES,
    Moment,
    trade_until_killed,
)
from tests.promises import Trial, tries

SEED: Final = 20_261_121
START_SECONDS_MAX: Final = 60
ROUND: Final = 25  # kills on one journal, so that no recovery replays an hour of trading
# How long after a process says what it is at it may live on, at most.
SECONDS_MAX: Final = {
    Moment.RECOVERING: 0.05,
    Moment.ADOPTING: 0.1,
    Moment.TRADING: 0.1,
    Moment.CHANGING_SEGMENT: 0.01,
}
MOMENTS: Final = tuple(SECONDS_MAX)


class Plan(NamedTuple):
    """When a process is killed: so many seconds after it said for the nth time what it is at."""

    moment: Moment
    nth: int
    seconds: float


class Killed(NamedTuple):
    at: Moment
    acknowledged: list[tuple[int, int, int]]  # (client id, sequence, order id)


class Listener(threading.Thread):
    """Hears what a process says until its end, and when its moment has come."""

    def __init__(self, pipe: int, plan: Plan) -> None:
        super().__init__()
        self._pipe = pipe
        self._plan = plan
        self._heard = 0
        self.at = Moment.RECOVERING
        self.acknowledged: list[tuple[int, int, int]] = []
        self.has_come = threading.Event()

    def run(self) -> None:
        rest = b""
        while data := os.read(self._pipe, 1 << 16):
            rest += data
            whole = len(rest) // RECORD.size * RECORD.size
            for said in RECORD.iter_unpack(rest[:whole]):
                if said[0]:
                    self.acknowledged.append(said)
                else:
                    self._is_at(Moment(said[1]))
            rest = rest[whole:]

    def _is_at(self, moment: Moment) -> None:
        self.at = moment
        self._heard += moment == self._plan.moment
        if self._heard == self._plan.nth:
            self.has_come.set()


def _plan(run: int, random: Random) -> Plan:
    moment = MOMENTS[run % len(MOMENTS)]
    # What a first process has nothing of: it recovers and adopts nothing.
    if run == 1 and moment is Moment.ADOPTING:
        moment = Moment.TRADING
    nth = random.randint(1, 4) if moment is Moment.CHANGING_SEGMENT else 1
    return Plan(moment, nth, random.random() * SECONDS_MAX[moment])


def _run_and_kill(directory: Path, run: int, build: str, plan: Plan) -> Killed:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fault.under_load"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=trade_until_killed, args=(directory, run, build, writer))
    process.start()
    writer.close()  # or the end of the process would not be the end of the pipe
    listener = Listener(reader.fileno(), plan)
    listener.start()
    assert listener.has_come.wait(START_SECONDS_MAX), f"run {run} never came to {plan}"
    time.sleep(plan.seconds)
    process.kill()
    process.join()
    listener.join()
    reader.close()
    assert process.exitcode == -9, "it was killed, it did not fail by itself"
    return Killed(listener.at, listener.acknowledged)


async def _recover(directory: Path, build: str) -> tuple[list[Event], str]:
    journal = Journal(directory, SystemDisk(), SEGMENT_BYTES, build)
    pipeline = Pipeline(journal, SystemClock())
    events: list[Event] = []

    def hear(batch: Batch) -> None:
        events.extend(batch.events)

    pipeline.subscribe(hear)
    await pipeline.start()
    state = pipeline.state_hash()
    await pipeline.close()
    return events, state


def _check(directory: Path, build: str, acknowledged: list[tuple[int, int, int]]) -> None:
    """What is in the journal is what was acknowledged, and what was in flight, each once."""
    adopted = adopt(directory, SystemDisk(), build)  # or the last one killed never came to it
    events, state = asyncio.run(_recover(directory, build))
    assert adopted.replayed.state_hash == state
    accepted = [
        (e.client_id, e.sequence, e.order_id) for e in events if e.kind == EventKind.ACCEPTED
    ]
    placed = set(accepted)
    assert len({client_id for client_id, _, _ in accepted}) == len(accepted), "none twice"
    quoted = [e for e in events if e.kind == EventKind.QUOTED]
    sequences = {sequence for _, sequence, _ in accepted}
    for head in quoted:
        levels = {head.sequence + n for n in range(1, QUOTE_LEVELS + 1)}
        assert levels <= sequences, "a command of several records is there whole or not at all"
    assert quoted, "they did quote"
    lost = [ack for ack in acknowledged if ack not in placed]
    assert not lost, f"seed {SEED}: {len(lost)} of {len(acknowledged)} lost, first {lost[0]}"
    assert len(list(directory.glob("*.cxj"))) > 1, "segments were changed under the kills"


@tries("kills")
def test_every_acknowledged_order_survives_kill_nine(tmp_path: Path, trial: Trial) -> None:
    random = Random(SEED)
    moments: Counter[Moment] = Counter()
    acknowledged: list[tuple[int, int, int]] = []
    in_all = 0
    build = BUILD
    for kill in trial.each(range(trial.budget)):
        number, run = divmod(kill, ROUND)
        directory = tmp_path / str(number)
        plan = _plan(run + 1, random)
        if plan.moment is Moment.ADOPTING:
            build = random.randbytes(8).hex()
        killed = _run_and_kill(directory, kill + 1, build, plan)
        moments[killed.at] += 1
        acknowledged += killed.acknowledged
        if run == ROUND - 1 or kill == trial.budget - 1:
            _check(directory, build, acknowledged)
            in_all += len(acknowledged)
            acknowledged.clear()
    assert in_all > trial.budget, "the processes did trade"
    assert set(moments) == set(Moment), f"killed in every moment, not only in {moments}"
    where = ", ".join(f"{moments[moment]} {moment.name.lower()}" for moment in Moment)
    trial.note = f"killed while {where}; {in_all:,} acknowledged, 0 lost, 0 twice"
