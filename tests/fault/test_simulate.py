"""A whole node from one seed: what it promised holds through every crash, and breaking it shows.

`COMPEX_SEED` is the first of the seeds that are tried. One that fails prints the command that shows
what happened in it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from compex_client import signing

from engine import journal
from engine.client_ids import ClientIds
from engine.journal import FRAME_HEADER_BYTES, FRAME_MAGIC, Disk, Frame, Journal
from engine.records import COMMAND, CommandArray
from engine.sequence import Sequencer
from settlement import database as db
from settlement import leases
from settlement.batch import Amounts, Fills, notionals_usdc6
from settlement.ledger import Ledger, Numbered
from settlement.orders import Order, order_hashes
from settlement.signatures import Signatures
from settlement.upkeep import Upkeep
from tests.promises import Trial, tries
from tests.simulate.database import Databases
from tests.simulate.world import run

FIRST_SEED: Final = int(os.environ.get("COMPEX_SEED", "1"))
PARTS: Final = 10  # so that no test is near its time limit, and no process waits for the last one
FAILURES_MAX: Final = 5  # of a part, which ends with the last of them


@pytest.fixture(scope="module")
def databases(postgres: db.Server) -> Iterator[Databases]:
    databases = Databases(postgres)
    yield databases
    databases.close()


@pytest.mark.parametrize("part", range(PARTS))
@tries("seeds")
def test_every_promise_is_kept_whatever_fails_and_all_comes_to_rest(
    databases: Databases, part: int, trial: Trial
) -> None:
    share = trial.budget // PARTS
    begin = FIRST_SEED + share * part
    lives = acknowledged = fills = 0
    failed: list[str] = []
    for seed in range(begin, begin + share):
        trial.tried += 1
        outcome = run(seed, databases)
        if outcome.failure:
            failed.append(f"{outcome}\nshown by: {outcome.reproduce} --trace")
            if len(failed) == FAILURES_MAX:
                break
            continue
        trial.survived += 1
        lives += outcome.lives
        acknowledged += outcome.acknowledged
        fills += outcome.fills
    assert not failed, "\n".join(failed)
    assert lives > 2 * share, "nodes did crash"
    assert acknowledged > 20 * share and fills > 10 * share, "and traded"
    trial.note = f"{lives:,} lives, {acknowledged:,} acknowledged, from seed {begin}"


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

    def trusting(data: memoryview, offset: int) -> Frame | None:
        head = bytes(data[offset : offset + FRAME_HEADER_BYTES])
        if not head.startswith(FRAME_MAGIC):
            return None
        first, count = (int.from_bytes(head[at : at + 8], "little") for at in (8, 16))
        body = offset + FRAME_HEADER_BYTES
        commands = data[body : body + count * COMMAND.itemsize]
        return Frame(offset, first, head[32:48], head[48:], commands)

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


def take_any_signature(patch: pytest.MonkeyPatch) -> None:
    """The bots sign something else, and nobody looks."""

    def unchecked(_self: Any, orders: Sequence[Order], *_: object) -> list[bytes]:
        return order_hashes(orders)

    patch.setattr(Signatures, "_check", unchecked)

    def another(*_: object) -> bytes:
        return bytes(range(32))

    patch.setattr(signing, "orders_digest", another)


def pay_half_of_each_lease(patch: pytest.MonkeyPatch) -> None:
    def half(fills: Fills, *_: object) -> Amounts:
        return notionals_usdc6(fills) // 2

    patch.setattr(leases, "paid_usdc6", half)


def say_nothing_to_the_vault(patch: pytest.MonkeyPatch) -> None:
    async def none(*_: object) -> int:
        return 0

    patch.setattr(Upkeep, "_plan_heartbeat", none)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (acknowledge_before_the_sync, ("what was told is not there", "DamagedJournal")),
        (keep_the_torn_tail, ("the journal has no gaps",)),
        (forget_client_ids, ("done 2 times",)),
        (book_twice, ("SettlementHalted",)),
        (take_any_signature, ("NoAnswer",)),
        (pay_half_of_each_lease, ("pays otherwise",)),
        (say_nothing_to_the_vault, ("nothing is heard of the settler",)),
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
