"""The same commands give the same state: in any process, compiled now or before, or replayed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.workload import DEFAULT_SHAPE, Shape, flow_hash, flow_hashes, opening, order_flow
from engine.invariants import check_invariants
from engine.journal import FRAME_COMMANDS_MAX, Journal, SystemDisk
from engine.kernel import cache_directory
from engine.records import CommandKind, EventKind
from engine.replay import Matcher, verify
from engine.snapshot import state_hash
from tests.promises import Trial, tries

SEED = 7
COMMANDS = 100_000
POINTS = 100  # in a flow, at which states are compared


def another_process(commands: int, **environment: str) -> subprocess.Popen[str]:
    """One that prints the state hash at each point."""
    said = (f"--seed={SEED}", f"--commands={commands}", f"--points={POINTS}")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.workload", *said],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


@tries("one-hash")
def test_three_processes_two_of_them_warm_and_one_cold_agree_at_every_point(
    tmp_path: Path, trial: Trial
) -> None:
    """The cold one compiles everything anew while the others run what is compiled."""
    said: list[str] = []
    trial.tried = trial.budget
    compiling = another_process(trial.budget, XDG_CACHE_HOME=str(tmp_path))
    with compiling as cold, another_process(trial.budget) as warm:
        assert cold.stdout is not None and warm.stdout is not None
        for mine in flow_hashes(SEED, trial.budget, POINTS):
            theirs = warm.stdout.readline().strip(), cold.stdout.readline().strip()
            where = f"python -m benchmarks.workload --seed {SEED}, point {len(said) + 1}"
            assert theirs == (mine, mine), where
            said.append(mine)
            trial.survived = trial.budget * len(said) // POINTS
        assert cold.wait() == warm.wait() == 0
    assert len(said) == POINTS == len(set(said)), "every point was reached"
    compiled = tmp_path / "compex" / cache_directory().name
    assert list(compiled.rglob("*.nbi")), "the cold one did compile"
    trial.note = f"commands; state hashes compared at {POINTS} points, the last one {said[-1]}"


def test_a_replay_from_the_journal_gives_the_same_state(tmp_path: Path) -> None:
    flow = order_flow(SEED, COMMANDS)
    journal = Journal(tmp_path, SystemDisk(), 1 << 20)
    list(journal.recover())
    for start in range(0, len(flow), FRAME_COMMANDS_MAX):
        journal.append(flow[start : start + FRAME_COMMANDS_MAX].tobytes())
    journal.close()
    found = verify(tmp_path)
    assert (found.sequence, found.state_hash) == (len(flow), flow_hash(SEED, COMMANDS))


def test_how_commands_are_grouped_does_not_matter() -> None:
    flow = order_flow(SEED, 5000)
    states: list[str] = []
    events: list[bytes] = []
    for size in (1, 7, 4096):
        matcher = Matcher()
        parts = [
            part.tobytes()
            for start in range(0, len(flow), size)
            for part in matcher.match(flow[start : start + size])
        ]
        events.append(b"".join(parts))
        states.append(state_hash(matcher.state))
    assert len(set(states)) == len(set(events)) == 1


def test_one_command_more_or_another_seed_is_another_state() -> None:
    assert len({flow_hash(1, 500), flow_hash(1, 501), flow_hash(2, 500)}) == 3


def test_the_flow_is_a_mixed_market() -> None:
    """What tests and benchmarks stand on: it trades, rests, cancels and is refused."""
    flow = order_flow(SEED, 20_000)
    assert (flow["sequence"] == np.arange(1, len(flow) + 1)).all()
    drawn = flow[len(opening()) :]
    assert len(drawn) == 20_000
    matcher = Matcher()
    seen = np.concatenate(list(matcher.match(flow)))
    counts = {kind: int((seen["kind"] == kind).sum()) for kind in EventKind}
    assert counts[EventKind.ACCEPTED] > 8_000
    assert counts[EventKind.FILL] > 2_000
    assert counts[EventKind.CANCELLED] > 3_000
    assert counts[EventKind.DECREMENTED] > 0
    assert matcher.state["open_orders"][0] > 1_000
    assert set(drawn["instrument"][drawn["kind"] == CommandKind.NEW_ORDER].tolist()) == set(
        range(DEFAULT_SHAPE.instruments)
    )
    check_invariants(matcher.state)


def test_the_flow_takes_its_shape() -> None:
    flow = order_flow(SEED, 1000, Shape(instruments=2, accounts=3, cancel_percent=0))
    drawn = flow[len(opening(Shape(instruments=2, accounts=3))) :]
    assert set(drawn["kind"].tolist()) == {CommandKind.NEW_ORDER}
    assert set(drawn["instrument"].tolist()) == {0, 1}
    assert set(drawn["account"].tolist()) == {1, 2, 3}
