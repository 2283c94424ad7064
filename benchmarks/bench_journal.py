"""The journal: what a group commit costs on this disk, by its size, and what reading it back does.

    uv run pytest benchmarks/bench_journal.py --benchmark-enable --benchmark-only -n 0

One append is one frame, written and fdatasynced. With benchmarks disabled each runs once.
"""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.workload import order_flow
from engine.journal import FRAME_COMMANDS_MAX, Journal, SystemDisk, read
from engine.records import COMMAND, CommandArray

COMMANDS = 20_000


class Appender:
    """Appends the flow in frames of one size; each call is one frame."""

    def __init__(self, directory: Path, flow: CommandArray, size: int) -> None:
        self._data = flow.tobytes()
        self._step = size * COMMAND.itemsize
        self.journal = Journal(directory, SystemDisk())
        self.appended = sum(len(frame.commands) for frame in self.journal.recover())

    def __call__(self) -> None:
        start = self.appended * COMMAND.itemsize
        frame = self._data[start : start + self._step]
        self.journal.append(frame)
        self.appended += len(frame) // COMMAND.itemsize


@pytest.mark.parametrize("size", [1, 16, 256, FRAME_COMMANDS_MAX])
def test_a_group_is_made_durable(benchmark: Any, tmp_path: Path, size: int) -> None:
    append = Appender(tmp_path, order_flow(3, COMMANDS), size)
    rounds = min(100, COMMANDS // size)
    benchmark.pedantic(append, rounds=rounds, iterations=1)
    append.journal.close()
    benchmark.extra_info["commands"] = size
    assert sum(len(frame.commands) for frame in read(tmp_path)) == append.appended > 0


@pytest.mark.parametrize("size", [1, FRAME_COMMANDS_MAX])
def test_a_journal_is_read_and_checked(benchmark: Any, tmp_path: Path, size: int) -> None:
    count = COMMANDS if size > 1 else 1_000
    append = Appender(tmp_path, order_flow(3, COMMANDS)[:count], size)
    while append.appended < count:
        append()
    append.journal.close()
    found = benchmark(lambda: sum(len(frame.commands) for frame in read(tmp_path)))
    benchmark.extra_info["commands"] = count
    assert found == count
