"""What the comparing benchmarks share: rounds, rows with their targets, the table and the plot.

Each measures ours and somebody else's in turns within each round, so that a busy minute of the
machine falls on both alike; a figure is the median of the rounds, a ratio the median of the
rounds' ratios. To add figures write a `Section`. `durability`, `gateway` and `match_all` call.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

TABLE_COLUMNS: Final = 120


class Row(NamedTuple):
    """One figure, and what it is compared with; None where there is nothing to compare.

    `limit` is the target as a number, where it is one of the ratio.
    """

    name: str
    measured: float
    unit: str
    bare: float | None = None
    ratio: float | None = None
    target: str = ""
    within: bool | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    limit: float | None = None
    cpu_ratio: float | None = None  # of what a second of the servers' CPU does: the busier the
    # machine is with others, the more it says, and the less the ratio of what was measured
    skipped: str = ""  # why there is no comparison, where there should be one


class Section(Protocol):
    def round(self, number: int) -> None:
        """One run of ours and of what it is compared with; the order changes with `number`."""
        ...

    def rows(self) -> list[Row]:
        """The rounds summed up. Raises AssertionError if what was measured was wrong."""
        ...


def section_parser(
    program: str, sections: Collection[str], runs: int, quick: str
) -> ArgumentParser:
    """What the command of a benchmark in sections takes; `quick` says what --quick does."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.add_argument("sections", nargs="*", metavar="SECTION",
                        help=f"of {', '.join(sections)}; all if none is named")  # fmt: skip
    parser.add_argument("--runs", type=int, default=runs, help="rounds (default %(default)s)")
    parser.add_argument("--dir", type=Path, metavar="DIR",
                        help="on the disk to measure (default: for temporary files)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def parse_sections(
    parser: ArgumentParser, sections: Collection[str], arguments: Sequence[str] | None
) -> Namespace:
    """Of a `section_parser`; ends the process where one is wrong."""
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    if unknown := set(options.sections) - set(sections):
        parser.error(f"no section is named {', '.join(sorted(unknown))}")
    return options


class Rounds:
    """Figures by name, one of each a round."""

    def __init__(self) -> None:
        self._found: defaultdict[str, list[float]] = defaultdict(list)
        self._cpu: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, name: str, figure: float, cpu_us: float | None = None) -> None:
        """`cpu_us` is what one of them took, where the figure is so many a second."""
        self._found[name].append(figure)
        if cpu_us is not None:
            self._cpu[name].append(cpu_us)

    def median(self, name: str) -> float:
        return statistics.median(self._found[name])

    def ratios(self, ours: str, bare_one: str) -> list[float]:
        """One of each round."""
        pairs = zip(self._found[ours], self._found[bare_one], strict=True)
        return [mine / theirs for mine, theirs in pairs]

    def ratio(self, ours: str, bare_one: str) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios(ours, bare_one))

    def row(
        self,
        name: str,
        unit: str,
        ours: str,
        bare_one: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Row:
        """Ours beside the bare one's, with a target of their ratio if there is one."""
        ratios = self.ratios(ours, bare_one)
        found = statistics.median(ratios)
        cpu = zip(self._cpu[ours], self._cpu[bare_one], strict=False)
        by_cpu = [theirs / mine for mine, theirs in cpu if mine]  # too little to be counted
        target, within = "", None
        if at_least is not None:
            target, within = f"at least {at_least:g}", found >= at_least
        elif at_most is not None:
            target, within = f"at most {at_most:g}", found <= at_most
        return Row(
            name=name,
            measured=self.median(ours),
            unit=unit,
            bare=self.median(bare_one),
            ratio=found,
            target=target,
            within=within,
            ratio_min=min(ratios),
            ratio_max=max(ratios),
            limit=at_least if at_least is not None else at_most,
            cpu_ratio=statistics.median(by_cpu) if by_cpu else None,
        )


# --- what is shown ------------------------------------------------------------------------------


def figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def show(console: Console, rows: Sequence[Row], *, beside: str = "bare") -> None:
    """`beside` heads the column of what ours is compared with."""
    table = Table(box=None, pad_edge=False)
    has_cpu = any(row.cpu_ratio is not None for row in rows)
    has_spread = any(row.ratio_min is not None for row in rows)
    figures = ["measured", "", beside, "ratio", *["min–max"] * has_spread, *["by CPU"] * has_cpu]
    for heading in ("", *figures, "target", ""):
        table.add_column(heading, justify="right" if heading in figures and heading else "left")
    for row in rows:
        digits = 0 if row.measured >= 1000 else 1
        verdict = {None: "", True: "ok", False: "missed"}[row.within]
        table.add_row(
            row.name,
            figure(row.measured, digits),
            row.unit,
            figure(row.bare, digits),
            figure(row.ratio),
            *["" if row.ratio_min is None else f"{row.ratio_min:.2f}–{row.ratio_max:.2f}"]
            * has_spread,
            *["" if row.cpu_ratio is None else figure(row.cpu_ratio)] * has_cpu,
            row.target,
            f"SKIPPED: {row.skipped}" if row.skipped else verdict,
        )
    console.print(table)


class Bar(NamedTuple):
    """`least` to `most` is what the rounds lay between; `words` stand behind it."""

    name: str
    width: float
    words: str
    least: float | None = None
    most: float | None = None
    target: float | None = None


def draw_bars(path: Path, bars: Sequence[Bar], label: str, *, logarithmic: bool = False) -> None:
    """An SVG: bars from the top down with their spread, a mark at each target."""
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 0.42 * len(bars) + 1.2), layout="constrained")
    axes: Any = picture.add_subplot()
    bars = bars[::-1]  # the first on top
    places = range(len(bars))
    axes.barh(places, [bar.width for bar in bars], color="#4477aa", height=0.6)
    ends = [bar.width for bar in bars]
    for place, bar in zip(places, bars, strict=True):
        if bar.least is not None and bar.most is not None:
            axes.hlines(place, bar.least, bar.most, color="#222222", linewidth=1)
            ends.append(bar.most)
        if bar.target is not None:
            axes.vlines(bar.target, place - 0.4, place + 0.4, color="#cc3311", linewidth=2)
            ends.append(bar.target)
        axes.annotate(
            bar.words,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            verticalalignment="center",
        )
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.set_xlabel(label)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(right=1.2 * max(ends))
    else:
        axes.set_xlim(0, 1.05 * max(ends))
    axes.spines[["top", "right"]].set_visible(False)
    # Text as text and nothing of the day, so that the same figures give the same file.
    undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "compex"}):
        picture.savefig(path, format="svg", metadata=undated)
