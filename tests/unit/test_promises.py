"""The closing table: what tests count in any process is in it, and so is what did not hold."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import BUDGETS, Counted, table

ROOT = Path(__file__).parent.parent.parent
TESTS = """
from tests.promises import Trial, tries

@tries("kills")
def test_that_holds(trial: Trial) -> None:
    trial.note = "as it was"
    assert list(trial.each(range(trial.budget))) == list(range(trial.budget))

@tries("kills")
def test_that_breaks_at_the_third(trial: Trial) -> None:
    for n in trial.each(range(trial.budget)):
        assert n < 2
"""


def closing_lines(directory: Path, *options: str) -> list[str]:
    (directory / "test_planted.py").write_text(TESTS, "utf-8")
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n    soak: in full\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.promises", *options, str(directory)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith((" ", "what was"))]


@pytest.mark.parametrize(
    ("profile", "workers"), [("not soak", "-n0"), ("not soak", "-n2"), ("soak", "-n2")]
)
def test_what_broke_is_counted_in_whichever_process(
    tmp_path: Path, profile: str, workers: str
) -> None:
    budget = BUDGETS["kills"]
    tries = budget.soak if profile == "soak" else budget.default
    row, note = closing_lines(tmp_path, "-m", profile, workers)[-2:]
    assert row.split(" | ")[1:3] == [f"{tries + 3:10,}", f"{tries + 2:10,}"]
    assert note == "  as it was"


def test_a_promise_that_was_not_tried_is_named() -> None:
    lines = table([Counted("kills", 1, 1, 0.4, ""), Counted("kills", 2, 1, 0.4, "")])
    assert lines[1].split(" | ")[1:] == [f"{3:10}", f"{2:10}", f"{1:7}"]
    for key, budget in BUDGETS.items():
        assert (f"not tried in this run: {budget.promise}" in lines) == (key != "kills")
