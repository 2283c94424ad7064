"""The generated streams are functions of their seed, and core and generator agree on every fill."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.match_all import (
    BOOKS,
    QUICK_OPERATIONS,
    TARGETS,
    Limit,
    Row,
    core_fills,
    main,
)
from benchmarks.streams import (
    CANCEL,
    GENERATOR,
    IMMEDIATE,
    LIMIT,
    SHAPES,
    Kind,
    Shape,
    find_or_make,
    generate,
    read_manifest,
)

ROOT = Path(__file__).parent.parent.parent
OPERATIONS = 2_000


def small(shape: Shape) -> Shape:
    return shape.capped(OPERATIONS)._replace(instruments=min(shape.instruments, 100))


SMALL = [small(shape) for shape in SHAPES]
each_shape = pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)


@each_shape
def test_the_core_fills_what_the_generators_book_fills(shape: Shape, tmp_path: Path) -> None:
    stream = find_or_make(shape, tmp_path)
    assert stream.expected.fills > 100
    assert core_fills(stream) == stream.expected


@each_shape
def test_one_seed_gives_one_stream_and_another_seed_another(shape: Shape) -> None:
    records, expected = generate(shape)
    again, expected_again = generate(shape)
    assert records.tobytes() == again.tobytes() and expected == expected_again
    other, expected_other = generate(shape._replace(seed=shape.seed + 1))
    assert records.tobytes() != other.tobytes() and expected != expected_other


@each_shape
def test_a_stream_is_what_its_shape_says(shape: Shape) -> None:
    records, _ = generate(shape)
    assert len(records) == shape.preload + shape.timed
    cancels = records[records["op"] == CANCEL]
    orders = records[records["op"] != CANCEL]
    assert (orders["id"] == np.arange(1, len(orders) + 1)).all()
    assert orders["price_ticks"].min() >= 1 and orders["price_ticks"].max() <= 65_534
    assert orders["qty_lots"].min() >= 1
    assert len(np.unique(orders["instrument"])) > shape.instruments // 2
    assert (records[: shape.preload]["op"] == LIMIT).all()
    named = orders[cancels["id"].astype(np.int64) - 1]
    for field in ("instrument", "side"):
        assert (named[field] == cancels[field]).all()
    kinds = np.bincount(records["op"][shape.preload :], minlength=3) / shape.timed
    if shape.kind == Kind.MIXED:
        assert abs(kinds[IMMEDIATE] - 0.08) < 0.02 and abs(kinds[CANCEL] - 0.42) < 0.06
    else:
        assert len(cancels) == 0
        assert kinds[IMMEDIATE] == (1 if shape.kind == Kind.SWEEP_ONLY else 39 / OPERATIONS)


def test_the_preload_trades_nothing() -> None:
    for shape in SMALL:
        _, expected = generate(shape._replace(timed=0))
        assert expected.fills == 0, shape.name


def test_a_kept_stream_is_found_and_one_of_another_generator_is_made_anew(tmp_path: Path) -> None:
    shape = SMALL[0]
    made = find_or_make(shape, tmp_path)
    made.path.write_bytes(b"")  # would be replaced if it were not found
    assert find_or_make(shape, tmp_path) == made and made.path.stat().st_size == 0
    assert read_manifest(tmp_path) == [made]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace(GENERATOR, "0" * 16), "utf-8")
    assert find_or_make(shape, tmp_path) == made
    assert core_fills(made) == made.expected


def compared(directory: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run the command on small streams; how it ended, and what it wrote as JSON."""
    json_path = directory / "measured.json"
    command = [sys.executable, "-m", "benchmarks.match_all", "--json", json_path, *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return run, json.loads(json_path.read_text("utf-8")) if json_path.exists() else None


def test_the_comparison_runs_end_to_end_and_writes_what_it_measured(tmp_path: Path) -> None:
    picture = tmp_path / "ratios.svg"
    words = ("--quick", "--runs", "1", "--keep", str(tmp_path), "--plot", str(picture))
    run, measured = compared(tmp_path, *words)
    assert run.returncode == 0, run.stdout + run.stderr
    assert measured["quick"] is True and measured["fills_right"] is True
    assert measured["runs"] == 1 and measured["seed_shift"] == 0
    compiled = shutil.which("g++") is not None
    assert measured["yardstick"] == ("ladder.cpp" if compiled else None)
    rows = [Row(**row) for row in measured["streams"]]
    assert [row.stream for row in rows] == [shape.name for shape in SHAPES]
    for row in rows:
        assert row.operations == QUICK_OPERATIONS and row.core_ns_each > 0
        assert row.core_fills_right is True
        assert row.target == TARGETS.get(row.stream)
        assert row.stream in run.stdout
        if compiled:
            assert row.ladder_fills_right is True
            assert row.ladder_ns_each is not None and row.ladder_ns_each > 0
            assert row.ratio_min is not None and row.ratio_max is not None
            assert row.ratio is not None and row.ratio_min <= row.ratio <= row.ratio_max
    limits = [Limit(**limit) for limit in measured["limits"]]
    assert all(limit.measured > 0 for limit in limits)
    assert [limit.unit for limit in limits] == ["×", "MB", "MB", "s"]
    assert limits[1].name == f"{BOOKS:,} empty books"
    drawn = "".join(ElementTree.parse(picture).getroot().itertext())
    assert all(row.stream in drawn for row in rows)


def test_a_wrong_fill_fails_the_comparison_and_is_named(tmp_path: Path) -> None:
    shape = SMALL[0]
    stream = find_or_make(shape, tmp_path)
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text("utf-8").replace(stream.expected.fill_hash, "0" * 16)
    manifest.write_text(text, "utf-8")
    run, measured = compared(tmp_path, "--streams", str(tmp_path), "--runs", "1", "--ratios-only")
    assert run.returncode == 1, run.stderr
    assert "WRONG: core" in run.stdout
    assert measured["fills_right"] is False


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("no-such-stream",), "no stream is named no-such-stream"),
        (("--runs", "0"), "--runs: at least 1"),
        (("--streams", ".", "--seed-shift", "1"), "--streams are as they are"),
    ],
)
def test_a_wrong_option_is_named(
    words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert complaint in capsys.readouterr().err
