"""Settlement's benchmark measures what it says: every section runs and its sums are compared."""

import json
from pathlib import Path

from benchmarks.settlement import SECTIONS, main


def test_every_section_gives_figures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Roots, sums and the trial balance are compared inside, so that a wrong batch fails here."""
    found = tmp_path / "found.json"
    main(["--quick", "--runs", "1", "--dir", str(tmp_path), "--json", str(found)])
    rows = json.loads(found.read_text("utf-8"))["rows"]
    assert all(row["measured"] > 0 for row in rows)
    assert len([row for row in rows if row["target"]]) == len(SECTIONS) == 3
    assert list(tmp_path.iterdir()) == [found]
