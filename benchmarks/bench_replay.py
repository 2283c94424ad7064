"""Restart: a journal replayed to its state, and the hash that proves it.

    uv run pytest benchmarks/bench_replay.py --benchmark-enable --benchmark-only -n 0

With benchmarks disabled each runs once, as a test.
"""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.workload import flow_hash, order_flow
from engine.journal import FRAME_COMMANDS_MAX, Journal, SystemDisk
from engine.replay import Matcher, verify
from engine.snapshot import state_hash

COMMANDS = 50_000
SEED = 3


@pytest.fixture(scope="module")
def journal_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("journal")
    flow = order_flow(SEED, COMMANDS)
    journal = Journal(directory, SystemDisk())
    list(journal.recover())
    for start in range(0, len(flow), FRAME_COMMANDS_MAX):
        journal.append(flow[start : start + FRAME_COMMANDS_MAX].tobytes())
    journal.close()
    return directory


def test_a_journal_is_replayed_and_hashed(benchmark: Any, journal_directory: Path) -> None:
    found = benchmark(verify, journal_directory)
    benchmark.extra_info["commands"] = found.sequence
    assert found.state_hash == flow_hash(SEED, COMMANDS)


def test_a_state_is_hashed(benchmark: Any) -> None:
    matcher = Matcher()
    for _ in matcher.match(order_flow(SEED, COMMANDS)):
        pass
    assert benchmark(state_hash, matcher.state) == flow_hash(SEED, COMMANDS)
