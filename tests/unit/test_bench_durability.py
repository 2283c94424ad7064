"""The durability benchmark measures what it says: every section runs, on arrivals of its own."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.arrivals import arrivals, received
from benchmarks.durability import SECTIONS, main, percentile_us


def test_each_command_comes_once_with_the_time_it_was_sent_at() -> None:
    begin_ns = time.monotonic_ns()
    with arrivals(gap_ns=1_000, commands=700, seed=3) as pipe:
        came: list[int] = []
        while part := received(pipe):
            came += part
            assert part[-1] <= time.monotonic_ns()
    assert came == sorted(came) and len(came) == 700
    assert came[0] > begin_ns


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
