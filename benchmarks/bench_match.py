"""The matching core on seeded flow: ns per command, by mix, and per order of a sweep.

    uv run pytest benchmarks/bench_match.py --benchmark-enable --benchmark-only -n 0

Each round starts from a copy of a prepared state, so that every round does the same work; the
copy is outside the timed part. With benchmarks disabled each runs once, as a test.
"""

from typing import Any

import numpy as np
import pytest

from benchmarks.workload import Shape, opening, order_flow
from engine.book import StateArray, new_state
from engine.match import execute
from engine.outbox import OUTBOX
from engine.records import (
    ALL_INSTRUMENTS,
    EFFECTS_MAX,
    Command,
    CommandArray,
    CommandKind,
    EventArray,
    EventKind,
    Side,
    command_array,
)
from engine.snapshot import state_hash

COMMANDS = 20_000
ROUNDS = 5
SHAPES = {
    "one market": Shape(instruments=1),
    "eight markets": Shape(),
    "a thousand markets": Shape(instruments=1000, accounts=16),
    "no cancels": Shape(cancel_percent=0),
    "mostly cancels": Shape(cancel_percent=80, immediate_percent=2),
}


class Run:
    """A prepared state and the commands that are timed on it."""

    def __init__(self, before: CommandArray, timed: CommandArray) -> None:
        self._before = before
        self._timed = timed
        self.state: StateArray = new_state()
        self._outbox = np.zeros(1, OUTBOX)

    @property
    def last_events(self) -> EventArray:
        """Of the last part of a batch, all of it if it is small."""
        return self._outbox["events"][0, : int(self._outbox["count"][0])]

    def _take(self, commands: CommandArray) -> None:
        done = 0
        while done < len(commands):
            done = execute(self.state, commands, done, self._outbox)

    def prepare(self) -> None:
        self.state = new_state()
        self._take(self._before)

    def __call__(self) -> None:
        self._take(self._timed)

    def measure(self, benchmark: Any) -> None:
        self.prepare()
        benchmark.pedantic(self, setup=self.prepare, rounds=ROUNDS, iterations=1)
        benchmark.extra_info["commands"] = len(self._timed)
        if benchmark.stats is not None:
            seconds = benchmark.stats.stats.median
            benchmark.extra_info["ns_per_command"] = round(seconds * 1e9 / len(self._timed), 1)


@pytest.mark.parametrize("name", SHAPES)
def test_mixed_flow_is_matched(benchmark: Any, name: str) -> None:
    shape = SHAPES[name]
    flow = order_flow(3, COMMANDS, shape)
    first = len(opening(shape))
    run = Run(flow[:first], flow[first:])
    run.measure(benchmark)
    again = Run(flow, flow[:0])
    again.prepare()
    assert state_hash(run.state) == state_hash(again.state)


def _resting(count: int, accounts: int) -> list[Command]:
    """The opening and `count` asks of one lot at a hundred prices, of all accounts in turn."""
    shape = Shape(instruments=1, accounts=accounts)
    asks = [
        Command(
            kind=CommandKind.NEW_ORDER,
            account=1 + i % (accounts - 1),
            side=Side.SELL,
            price_ticks=1000 + i % 100,
            qty_lots=1,
        )
        for i in range(count)
    ]
    return [*opening(shape), *asks]


def _numbered(commands: list[Command]) -> CommandArray:
    return command_array(c._replace(sequence=i) for i, c in enumerate(commands, 1))


def test_one_order_sweeps_as_many_as_it_may(benchmark: Any) -> None:
    makers = EFFECTS_MAX - 1  # being accepted is the first effect of all
    taker = Command(kind=CommandKind.NEW_ORDER, account=4, price_ticks=5000, qty_lots=makers)
    all_commands = _numbered([*_resting(makers, 4), taker])
    run = Run(all_commands[:-1], all_commands[-1:])
    run.measure(benchmark)
    assert (run.last_events["kind"] == EventKind.FILL).sum() == makers


@pytest.mark.parametrize("slots", [1_000, 100_000])
def test_cancel_all_of_an_account_without_orders_looks_at_every_slot(
    benchmark: Any, slots: int
) -> None:
    command = Command(kind=CommandKind.CANCEL_ALL, account=4, instrument=ALL_INSTRUMENTS)
    all_commands = _numbered([*_resting(slots, 4), command])
    run = Run(all_commands[:-1], all_commands[-1:])
    run.measure(benchmark)
    assert run.last_events["kind"][0] == EventKind.CANCEL_ALL_DONE
