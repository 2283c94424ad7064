"""The stream benchmark finds what an independent book of twenty lines finds."""

import json
import subprocess
import sys
from collections import defaultdict, deque
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.match import RECORD, main

MASK = (1 << 64) - 1
PRELOAD = 500
Expected = dict[str, int | str]


def a_stream(seed: int, count: int) -> NDArray[np.void]:
    """Limits, cancels (some of orders that are gone) and IOCs on three instruments."""
    random = Random(seed)
    records = np.zeros(count, RECORD)
    last_id = 0
    placed: list[tuple[int, int, int]] = []
    for i in range(count):
        if i >= PRELOAD and random.randrange(100) < 40:
            order_id, instrument, side = placed[random.randrange(max(0, last_id - 400), last_id)]
            records[i] = (order_id, 0, 0, instrument, 1, side, (0,) * 6)
            continue
        last_id += 1
        instrument, side = random.randrange(3), random.randrange(2)
        behind = random.randrange(1 if i < PRELOAD else -15, 60)
        price = 1000 - behind if side == 0 else 1000 + behind
        op = 2 if i >= PRELOAD and random.randrange(10) == 0 else 0
        records[i] = (last_id, price, 1 + random.randrange(50), instrument, op, side, (0,) * 6)
        placed.append((last_id, instrument, side))
    return records


def expected(records: NDArray[np.void]) -> Expected:
    """Plain dictionaries, scanning all prices for the best."""
    books: dict[tuple[int, int], dict[int, deque[list[int]]]] = defaultdict(dict)
    resting: dict[int, list[int]] = {}  # id -> [id, lots left]
    fills = volume = notional = 0
    fold = 1469598103934665603
    for taker, price, wanted, instrument, op, side, _ in records.tolist():
        if op == 1:
            if taker in resting:
                resting.pop(taker)[1] = 0
            continue
        other = books[instrument, 1 - side]
        lots = wanted
        while lots:
            for level in [p for p, queue in other.items() if not any(o[1] for o in queue)]:
                del other[level]
            if not other or (min(other) > price if side == 0 else max(other) < price):
                break
            best = min(other) if side == 0 else max(other)
            maker = next(o for o in other[best] if o[1])
            qty = min(lots, maker[1])
            lots -= qty
            maker[1] -= qty
            if maker[1] == 0:
                del resting[maker[0]]
            fills, volume, notional = fills + 1, volume + qty, notional + qty * best
            mixed = maker[0] * 0x9E3779B97F4A7C15 + taker * 0xC2B2AE3D27D4EB4F
            mixed += qty * 0x165667B19E3779F9 + best
            fold = (fold ^ (mixed & MASK)) * 1099511628211 & MASK
        if lots and op == 0:
            resting[taker] = order = [taker, lots]
            books[instrument, side].setdefault(price, deque()).append(order)
    return {"fills": fills, "volume": volume, "notional": notional, "fill_hash": f"{fold:016x}"}


@pytest.fixture
def stream(tmp_path: Path) -> tuple[Path, Expected]:
    records = a_stream(5, 6000)
    path = tmp_path / "stream.bin"
    records.tofile(path)
    return path, expected(records)


def test_the_command_line_prints_what_an_independent_book_finds(
    stream: tuple[Path, Expected],
) -> None:
    path, wanted = stream
    arguments = [f"--stream={path}", f"--preload={PRELOAD}", "--runs=1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.match", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {name: found[name] for name in wanted} == wanted
    assert found["fills"] > 500
    assert found["ops"] == 6000 - PRELOAD
    assert found["ns_per_op"] > 0


def test_without_json_it_prints_one_figure_a_line(
    stream: tuple[Path, Expected], capsys: pytest.CaptureFixture[str]
) -> None:
    path, wanted = stream
    main([f"--stream={path}", f"--preload={PRELOAD}", "--runs=1"])
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {name: lines[name] for name in wanted} == {k: str(v) for k, v in wanted.items()}
