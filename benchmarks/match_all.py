"""The matching core beside the bare ladder, on nine streams, as one table.

    python -m benchmarks.match_all [--json PATH] [--plot PATH] [--runs N] [NAME ...]

Everything runs on one core. Core and ladder are timed in turns, a run of each on every stream
before the next round, so that a busy minute of the machine falls on both alike. A ratio is the
median of the rounds' ratios; ns are medians of their own; `best` is the ratio of the fastest runs,
which on a busy machine is nearer to the truth. The fills of both are verified in runs that are not
timed. Then come the limits that are no ratios: cost over depth, memory, the kernel's start. Speed
never fails the command, a wrong fill does. `match` says what of the core is timed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numba
from rich.console import Console
from rich.table import Table

from benchmarks.match import timed, verify
from benchmarks.streams import SHAPES, Expected, Stream, find_or_make, read_manifest
from benchmarks.table import Bar, draw_bars
from benchmarks.yardstick import LADDER, Yardstick, compiler

ROOT: Final = Path(__file__).parent.parent
KEPT: Final = ROOT / ".benchmarks" / "streams"
RUNS: Final = 5
QUICK_OPERATIONS: Final = 5_000
TABLE_COLUMNS: Final = 100
# Multiples of the ladder's time that the fastest open C++ engine needs, by stream.
TARGETS: Final = {
    "mixed-1": 1.75,
    "mixed-256": 3.6,
    "sparse-50k": 3.0,
    "depth-1e6": 3.0,
    "sweep": 2.7,
    "sweep-pure": 1.6,
}
PER_FILL: Final = frozenset({"sweep-pure"})  # its operations are what they fill
SHALLOW: Final = "depth-1e3"
DEEP: Final = "depth-1e6"
DEEP_PER_SHALLOW_MAX: Final = 2.5
BOOKS: Final = 50_000
BOOKS_MB_MAX: Final = 64.0  # MB are 10^6 bytes
ORDERS_MB_MAX: Final = 128.0
LOAD_SECONDS_MAX: Final = 2.0


class Row(NamedTuple):
    """One stream. What the ladder gave is None where there is no compiler."""

    stream: str
    seed: int
    operations: int
    unit: str  # what the ns are per: "op" or "fill"
    core_ns_each: float
    ladder_ns_each: float | None
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    ratio_of_best: float | None
    target: float | None
    within: bool | None
    fill_hash: str
    core_fills_right: bool
    ladder_fills_right: bool | None


class Limit(NamedTuple):
    name: str
    measured: float
    unit: str
    limit: float | None
    within: bool | None


def pin(core: int | None) -> int | None:
    """Keep this process and its children on one core; None where that cannot be had."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def core_fills(stream: Stream) -> Expected:
    fills, volume, notional, fold = (int(total) for total in verify(stream.records()))
    return Expected(fills, volume, notional, f"{fold:016x}")


def core_ns_per_operation(stream: Stream) -> float:
    records = stream.records()
    return timed(records, stream.preload) * 1e9 / (len(records) - stream.preload)


class Comparison:
    """Core and yardstick on the same streams, in turns."""

    def __init__(self, streams: Sequence[Stream], yardstick: Yardstick | None) -> None:
        self._streams = streams
        self._yardstick = yardstick
        self._core: defaultdict[str, list[float]] = defaultdict(list)
        self._ladder: defaultdict[str, list[float]] = defaultdict(list)

    def round(self, number: int) -> None:
        """One run of both on every stream; who goes first changes from round to round."""
        for stream in self._streams:
            if number % 2 == 0:
                self._core[stream.name].append(core_ns_per_operation(stream))
            if self._yardstick is not None:
                self._ladder[stream.name].append(self._yardstick.ns_per_operation(stream))
            if number % 2 == 1:
                self._core[stream.name].append(core_ns_per_operation(stream))

    def row(self, stream: Stream) -> Row:
        """Verify the fills of both and sum up the rounds."""
        core, ladder = self._core[stream.name], self._ladder[stream.name]
        ratios = [ours / theirs for ours, theirs in zip(core, ladder, strict=False)]
        operations = stream.path.stat().st_size // 32 - stream.preload
        per_fill = stream.name in PER_FILL
        scale = operations / stream.expected.fills if per_fill else 1.0
        ratio = round(statistics.median(ratios), 3) if ratios else None
        target = TARGETS.get(stream.name)
        ladder_right = None
        if self._yardstick is not None:
            ladder_right = self._yardstick.fill_hash(stream) == stream.expected.fill_hash
        return Row(
            stream=stream.name,
            seed=stream.seed,
            operations=operations,
            unit="fill" if per_fill else "op",
            core_ns_each=round(statistics.median(core) * scale, 2),
            ladder_ns_each=round(statistics.median(ladder) * scale, 2) if ladder else None,
            ratio=ratio,
            ratio_min=round(min(ratios), 3) if ratios else None,
            ratio_max=round(max(ratios), 3) if ratios else None,
            ratio_of_best=round(min(core) / min(ladder), 3) if ladder else None,
            target=target,
            within=ratio <= target if ratio is not None and target is not None else None,
            fill_hash=stream.expected.fill_hash,
            core_fills_right=core_fills(stream) == stream.expected,
            ladder_fills_right=ladder_right,
        )

    def deep_per_shallow(self) -> Limit | None:
        """What a million resting orders cost, in what a thousand cost, round by round."""
        ratios = [
            deep / shallow
            for deep, shallow in zip(self._core[DEEP], self._core[SHALLOW], strict=False)
        ]
        if not ratios:
            return None
        name = f"{DEEP} / {SHALLOW}"
        return _limit(name, statistics.median(ratios), "×", DEEP_PER_SHALLOW_MAX)


def _limit(name: str, measured: float, unit: str, limit: float | None) -> Limit:
    within = None if limit is None else measured <= limit
    return Limit(name, round(measured, 3), unit, limit, within)


def _fresh(*words: str, cache: str | None = None) -> dict[str, Any]:
    """The answer of a fresh process, with a kernel cache of its own if one is named."""
    environment = {**os.environ} if cache is None else {**os.environ, "XDG_CACHE_HOME": cache}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.fresh", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(run.stdout)


def fresh_limits(streams: Iterable[Stream], *, compiles: bool) -> list[Limit]:
    """Each of a fresh process; `compiles` measures the kernel's first start too, a minute."""
    books = _fresh("books", str(BOOKS))
    found = [_limit(f"{books['count']:,} empty books", books["bytes"] / 1e6, "MB", BOOKS_MB_MAX)]
    for stream in streams:
        if stream.name == DEEP:
            orders = _fresh("orders", str(stream.path.resolve()), str(stream.preload))
            name = f"{orders['count']:,} resting orders, all in"
            found.append(_limit(name, orders["bytes"] / 1e6, "MB", ORDERS_MB_MAX))
    with tempfile.TemporaryDirectory() as empty:
        cache = empty if compiles else None
        if compiles:
            first = _fresh("kernel", cache=cache)["seconds"]
            found.append(_limit("kernel, first start: import and compile", first, "s", None))
        later = _fresh("kernel", cache=cache)["seconds"]
    found.append(_limit("kernel, later starts: import and load", later, "s", LOAD_SECONDS_MAX))
    return found


def machine(core: int | None) -> dict[str, str | int | None]:
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = [
            line.split(":", 1)[1].strip()
            for line in information.read_text("utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = named[0] if named else cpu
    return {
        "cpu": cpu,
        "core": core,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numba": numba.__version__,
        "compiler": compiler(),
    }


# --- what is shown ------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _verdict(within: bool | None) -> str:
    return {None: "", True: "ok", False: "over"}[within]


def _fills(row: Row) -> str:
    wrong = [
        name
        for name, right in (("core", row.core_fills_right), ("ladder", row.ladder_fills_right))
        if right is False
    ]
    return "WRONG: " + ", ".join(wrong) if wrong else "ok"


def show(console: Console, rows: Iterable[Row], limits: Iterable[Limit]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("stream", "ops", "core ns", "ladder ns"):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    table.add_column("per")
    for heading in ("ratio", "min–max", "best", "target"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("fills")
    for row in rows:
        spread = "–" if row.ratio is None else f"{row.ratio_min:.2f}–{row.ratio_max:.2f}"
        table.add_row(
            row.stream,
            f"{row.operations:,}",
            _number(row.core_ns_each, 1),
            _number(row.ladder_ns_each, 1),
            row.unit,
            _number(row.ratio),
            spread,
            _number(row.ratio_of_best),
            _number(row.target),
            _verdict(row.within),
            _fills(row),
        )
    console.print(table)
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left", "left", "left"):
        table.add_column(justify=justify)  # pyright: ignore[reportArgumentType]
    for limit in limits:
        at_most = "" if limit.limit is None else f"at most {limit.limit:g}"
        table.add_row(
            limit.name, _number(limit.measured), limit.unit, at_most, _verdict(limit.within)
        )
    console.print()
    console.print(table)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Bars of the ratios with their spread, a mark at each target; ns where there is no ladder."""
    compared = all(row.ratio is not None for row in rows)
    bars = [
        Bar(
            row.stream,
            row.ratio if row.ratio is not None else row.core_ns_each,
            (f"{row.ratio:.2f}×, " if row.ratio is not None else "")
            + f"{row.core_ns_each:.1f} ns per {row.unit}",
            row.ratio_min,
            row.ratio_max,
            row.target if compared else None,
        )
        for row in rows
    ]
    label = "time in multiples of the bare ladder; black: all runs, red: target"
    draw_bars(path, bars, label if compared else "ns")


# --- the command --------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.match_all")
    parser.add_argument("names", nargs="*", metavar="NAME", help="streams; all if none is named")
    parser.add_argument("--runs", type=int, default=RUNS, help="rounds (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the ratios as SVG")
    parser.add_argument("--streams", type=Path, metavar="DIR",
                        help="use DIR's files and the fills its manifest.json expects")  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", default=KEPT,
                        help="where generated streams are kept (default %(default)s)")  # fmt: skip
    parser.add_argument("--seed-shift", type=int, default=0, metavar="N",
                        help="other streams of the same shapes")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="cap all sizes, compile nothing anew: measures nothing")  # fmt: skip
    parser.add_argument("--ratios-only", action="store_true",
                        help="leave out memory and the kernel's start")  # fmt: skip
    parser.add_argument("--yardstick", type=Path, metavar="FILE.cpp", default=LADDER,
                        help="another ladder with the same command line")  # fmt: skip
    parser.add_argument("--core", type=int, metavar="N", help="the core (default: the last)")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs: at least 1")
    if options.streams is not None and (options.quick or options.seed_shift):
        parser.error("--streams are as they are; --quick and --seed-shift make new ones")
    known = {shape.name for shape in SHAPES}
    if options.streams is not None:
        known = {stream.name for stream in read_manifest(options.streams)}
    if unknown := set(options.names) - known:
        parser.error(f"no stream is named {', '.join(sorted(unknown))}")
    return options


def _streams(options: argparse.Namespace) -> list[Stream]:
    names = options.names
    if options.streams is not None:
        return [s for s in read_manifest(options.streams) if not names or s.name in names]
    directory = options.keep / (
        f"seed-shift-{options.seed_shift}" + ("-quick" if options.quick else "")
    )
    shapes = [s._replace(seed=s.seed + options.seed_shift) for s in SHAPES]
    if options.quick:
        shapes = [shape.capped(QUICK_OPERATIONS) for shape in shapes]
    return [find_or_make(s, directory) for s in shapes if not names or s.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 if any fill was wrong."""
    options = _options(arguments)
    progress = Console(stderr=True, highlight=False)
    core = pin(options.core)
    about = machine(core)
    progress.print("streams: generate or find")
    streams = _streams(options)
    with tempfile.TemporaryDirectory() as directory:
        yardstick = None
        if about["compiler"]:
            yardstick = Yardstick(options.yardstick, Path(directory))
        else:
            progress.print("no g++ here: the core alone, without the ladder and ratios")
        core_ns_per_operation(streams[0])  # compiles what is not cached
        comparison = Comparison(streams, yardstick)
        for number in range(options.runs):
            progress.print(f"round {number + 1} of {options.runs}")
            comparison.round(number)
        progress.print("fills")
        rows = [comparison.row(stream) for stream in streams]
    flatness = comparison.deep_per_shallow()
    limits = [flatness] if flatness is not None else []
    if not options.ratios_only:
        progress.print("memory and the kernel's start, in fresh processes")
        limits += fresh_limits(streams, compiles=not options.quick)
    console = Console(width=TABLE_COLUMNS, highlight=False)
    console.print(f"{about['cpu']}, core {core}, medians of {options.runs} interleaved runs")
    console.print("QUICK: sizes are capped, the figures say nothing\n" if options.quick else "")
    show(console, rows, limits)
    right = all(row.core_fills_right and row.ladder_fills_right is not False for row in rows)
    if options.json is not None:
        measured = {
            "machine": about,
            "runs": options.runs,
            "quick": options.quick,
            "seed_shift": options.seed_shift,
            "yardstick": options.yardstick.name if yardstick is not None else None,
            "streams": [row._asdict() for row in rows],
            "limits": [limit._asdict() for limit in limits],
            "fills_right": right,
            "within": all(entry.within is not False for entry in (*rows, *limits)),
        }
        options.json.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.plot is not None:
        plot(options.plot, rows)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
