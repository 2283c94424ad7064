"""The durability benchmark measures what it says: every section runs, on arrivals of its own."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.arrivals import Schedule, arrivals
from benchmarks.durability import SECTIONS, main, percentile_us


def test_arrivals_come_when_their_seed_says_and_never_before_that() -> None:
    schedule = Schedule(first_ns=7, gap_ns=1_000, commands=5_000, seed=3)
    times = schedule.times_ns()
    assert times == schedule.times_ns() == sorted(times)
    assert times != schedule._replace(seed=4).times_ns()
    assert (times[0], len(times)) == (7, 5_000)
    assert 900 < (times[-1] - times[0]) / 5_000 < 1_100, "the gap is the mean of the gaps"


def test_as_many_bytes_come_as_commands_are_due() -> None:
    with arrivals(gap_ns=1_000, commands=700, seed=3) as (pipe, due_ns):
        came = 0
        while part := os.read(pipe, 4096):
            came += len(part)
        assert came == len(due_ns) == 700


@pytest.mark.parametrize(("percent", "wanted"), [(1, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_the_smallest_that_so_many_do_not_exceed(percent: int, wanted: int) -> None:
    assert percentile_us([1000 * n for n in range(1, 101)], percent) == wanted
    assert percentile_us([7000], percent) == 7


def test_every_section_gives_figures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """States and counts are compared inside, so that a wrong journal fails here."""
    found = tmp_path / "found.json"
    main(["--quick", "--runs", "1", "--dir", str(tmp_path), "--json", str(found)])
    rows = json.loads(found.read_text("utf-8"))["rows"]
    assert all(row["measured"] > 0 for row in rows)
    names = [row["name"] for row in rows if not row["name"].startswith(" ")]
    assert {name.split()[0].rstrip(",") for name in names} == {
        "journal", "ack", "replay", "snapshot", "event",
    }  # fmt: skip
    assert len(SECTIONS) == 6 and sum(name.startswith("replay") for name in names) == 2
    assert list(tmp_path.iterdir()) == [found]
