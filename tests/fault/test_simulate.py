"""A whole node from one seed: what it promised holds through every crash, and breaking it shows.

`COMPEX_SEEDS` says how many seeds to try, from `COMPEX_SEED` on. A seed that fails prints the
command that shows what happened in it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from engine import journal
from engine.client_ids import ClientIds
from engine.journal import FRAME_HEADER_BYTES, FRAME_MAGIC, Disk, Journal
from engine.records import COMMAND, CommandArray
from engine.sequence import Sequencer
from settlement import database as db
from settlement.ledger import Ledger, Numbered
from tests.simulate.database import Databases
from tests.simulate.world import Outcome, run

FIRST_SEED: Final = int(os.environ.get("COMPEX_SEED", "1"))
SEEDS: Final = int(os.environ.get("COMPEX_SEEDS", "50"))
SOAK_SEEDS: Final = int(os.environ.get("COMPEX_SOAK_SEEDS", "10000"))
PARTS: Final = 5  # so that no test is near its time limit


@pytest.fixture(scope="module")
def databases(postgres: db.Server) -> Iterator[Databases]:
    databases = Databases(postgres)
    yield databases
    databases.close()


def try_seeds(databases: Databases, seeds: range) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for seed in seeds:
        outcome = run(seed, databases)
        assert not outcome.failure, f"{outcome}\nshown by: {outcome.reproduce} --trace"
        outcomes.append(outcome)
    return outcomes


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept_whatever_fails_and_all_comes_to_rest(
    databases: Databases, part: int
) -> None:
    seeds = range(FIRST_SEED + SEEDS * part // PARTS, FIRST_SEED + SEEDS * (part + 1) // PARTS)
    outcomes = try_seeds(databases, seeds)
    if SEEDS >= 50:
        assert sum(outcome.lives for outcome in outcomes) > 2 * len(outcomes), "nodes did crash"
        assert sum(outcome.acknowledged for outcome in outcomes) > 20 * len(outcomes)
        assert sum(outcome.fills for outcome in outcomes) > 10 * len(outcomes)


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_every_promise_is_kept_for_ten_thousand_seeds(
    databases: Databases, record_property: Callable[[str, object], None]
) -> None:
    survived = lives = acknowledged = 0
    try:
        for seed in range(FIRST_SEED, FIRST_SEED + SOAK_SEEDS):
            [outcome] = try_seeds(databases, range(seed, seed + 1))
            survived += 1
            lives += outcome.lives
            acknowledged += outcome.acknowledged
    finally:
        said = f"{SOAK_SEEDS} seeds from {FIRST_SEED}, {survived} survived: {lives} lives,"
        record_property("profile", f"{said} {acknowledged} acknowledged")


def test_the_same_seed_is_the_same_run_also_in_another_process(databases: Databases) -> None:
    outcomes = [run(3, databases), run(4, databases), run(3, databases)]
    assert outcomes[0] == outcomes[2]
    assert outcomes[0].trace_hash != outcomes[1].trace_hash
    _uv, _run, _python, *command = outcomes[0].reproduce.split()
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, *command, "--trace"],
        cwd=root, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(outcomes[0]) in told
    assert re.search(r"^ +\d+\.\d+  node: life 2 begins$", told, re.MULTILINE)


# --- what it finds --------------------------------------------------------------------------------


class Unsynced:
    """A disk whose sync returns at once, and syncs nothing."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def sync(self, fd: int) -> None:
        pass


def acknowledge_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def early(self: Any, commands: bytes) -> None:
        disk = self._disk
        self._disk = Unsynced(disk)
        append(self, commands)
        self._disk = disk

    patch.setattr(Journal, "append", early)


def keep_the_torn_tail(patch: pytest.MonkeyPatch) -> None:
    """Whatever begins like a frame is taken for one, whole or not."""
    parsed: Any = vars(journal)["_Parsed"]

    def trusting(data: bytes, offset: int) -> Any:
        head = data[offset : offset + FRAME_HEADER_BYTES]
        if not head.startswith(FRAME_MAGIC):
            return None
        first, count = (int.from_bytes(head[at : at + 8], "little") for at in (8, 16))
        body = offset + FRAME_HEADER_BYTES
        end = body + count * COMMAND.itemsize
        return parsed(first, head[32:48], head[48:], data[body:end], end)

    patch.setattr(journal, "_parse_frame", trusting)


def forget_client_ids(patch: pytest.MonkeyPatch) -> None:
    resume = Sequencer.resume

    def forgetful(self: Any, commands: CommandArray) -> None:
        resume(self, commands)
        self._client_ids = ClientIds()
        self._in_flight.clear()

    patch.setattr(Sequencer, "resume", forgetful)


def book_twice(patch: pytest.MonkeyPatch) -> None:
    post = Ledger.post

    async def again(self: Any, events: Sequence[Numbered]) -> int:
        mark = self._watermark
        await post(self, events)
        self._watermark = mark
        return await post(self, events)

    patch.setattr(Ledger, "post", again)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (acknowledge_before_the_sync, ("what was told is not there", "DamagedJournal")),
        (keep_the_torn_tail, ("the journal has no gaps",)),
        (forget_client_ids, ("done 2 times",)),
        (book_twice, ("SettlementHalted",)),
    ],
)
def test_a_broken_promise_is_found_within_the_default_seeds(
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    said: tuple[str, ...],
) -> None:
    break_it(monkeypatch)
    failures: list[str] = []
    for seed in range(1, 51):
        failures.append(run(seed, databases).failure)
        if any(words in failures[-1] for words in said):
            return
    raise AssertionError(f"nobody noticed; {[f for f in failures if f]}")
