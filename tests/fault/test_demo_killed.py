"""The whole demonstration as a process, killed -9 on its way and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compex_client import Wallet, connect

from engine.clock import ScriptedClock
from gateway.demo.play import once_settings, open_stage
from gateway.demo.script import DOLLAR, START_NS, Actor, actor_key
from gateway.node import Funding, Node
from tests.passable import passable_directory

SECONDS_MAX = 120.0
SYMBOL = "nv.h100-sxm-80g.x1|us-e|C|SPOT"
COMMAND = (sys.executable, "-m", "gateway.cli", "demo", "--once", "--dir")


@pytest.fixture
def directory() -> Iterator[Path]:
    with passable_directory() as path:
        yield path


def journal_bytes(directory: Path) -> int:
    """How far the run has come: the last byte of its journal that is not zero."""
    segments = sorted((directory / "journal").glob("*.cxj"))
    return len(segments[-1].read_bytes().rstrip(b"\0")) if segments else 0


def start(directory: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*COMMAND, directory], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill_at(directory: Path, size: int) -> bool:
    """Kill -9 a run when its journal has reached this size; False if it ended before."""
    run = start(directory)
    deadline_s = time.monotonic() + SECONDS_MAX
    while run.poll() is None and time.monotonic() < deadline_s:
        if journal_bytes(directory) >= size:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            return True
        time.sleep(0.01)
    assert run.poll() is not None, "the run neither ended nor wrote its journal"
    return False


def finish(directory: Path, report: Path) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, directory, "--json", report],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text("utf-8"))


def check(outcome: dict[str, Any]) -> None:
    assert outcome["resumed"]
    assert outcome["reconciled"], outcome["gaps"]
    assert outcome["fills"] >= 500
    assert outcome["operators"] >= 10
    assert outcome["markets"] >= 20
    assert outcome["batches"] >= 1
    assert 0 < outcome["seller_fees_usdc6"] < outcome["buyer_fees_usdc6"], "most buyers take"
    assert outcome["index"], "spot prices were published"


def test_a_run_killed_twice_goes_on_from_its_journal_and_reconciles(
    directory: Path, tmp_path: Path
) -> None:
    assert kill_at(directory / "run", 140_000)
    assert kill_at(directory / "run", 240_000)
    check(finish(directory / "run", tmp_path / "out.json"))


async def test_what_the_cut_left_unsigned_is_signed_when_its_actors_are_back(
    directory: Path,
) -> None:
    seller = Actor("seller", "operator", actor_key(1, "seller"), 0, 1_000 * DOLLAR)
    buyer = Actor("buyer", "buyer", actor_key(1, "buyer"), 1_000 * DOLLAR, 0)
    node = await Node.open(directory / "run", once_settings([SYMBOL]), ScriptedClock(START_NS))
    try:
        for actor in (seller, buyer):
            await node.fund([Funding(actor.key, actor.cash_usdc6, actor.bond_usdc6)])
            await node.turn()
            async with await connect(node.websocket_url, Wallet(actor.key), signing=None) as client:
                if actor is seller:
                    await client.declare_capacity(SYMBOL, "8")
                await client.place(SYMBOL, "sell" if actor is seller else "buy", "2.5", "8")
        await node.turn()
        unsigned = await node.settlement.summary()
        assert (unsigned.fills, unsigned.fills_settled) == (1, 0)
        stage = await open_stage(node, [seller, buyer])
        await node.turn()
        assert (await node.settlement.summary()).fills_settled == 1
        assert (await node.settlement.reconcile()).reconciled
        await stage.close()
    finally:
        await node.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_killed_anywhere_goes_on_and_reconciles(directory: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(20):
        run = directory / f"run-{number}"
        if kill_at(run, chance.randrange(1_000, 320_000)):
            check(finish(run, tmp_path / "out.json"))
