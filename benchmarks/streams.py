"""Order streams of nine shapes, each a pure function of its seed, and what a correct book fills.

`generate` draws everything that is left to chance first, then plays the draws against a plain book
of its own: an array of ticks per instrument, a queue at each, best prices found by walking. The
book says which orders still rest, so that cancels can name them, and which fills a price-time
engine must make; it shares no code with the engine. `find_or_make` keeps streams in a directory
beside a manifest. Called by `match_all` and by tests.

A record is `match.RECORD`. Orders of both kinds are numbered 1, 2, 3 … in file order; a cancel
names an earlier one, about 3 in 100 one that may be gone. Quantities are 1..100 lots. Prices lie
around a middle that wanders by one tick each 50th order or so.
"""

import hashlib
import json
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.match import FILL_HASH_START, RECORD, fold_fill
from engine.kernel import allocating, int64, kernel, uint8, uint32, uint64

LIMIT: Final = 0  # RECORD's `op`
CANCEL: Final = 1
IMMEDIATE: Final = 2
BUY: Final = 0
SELL: Final = 1
SWEEP_ORDERS: Final = 50  # what one sweep takes, in average orders
IMMEDIATE_SHARE: Final = 0.08  # of mixed operations
CANCEL_SHARE: Final = 0.42  # of mixed operations when as many orders rest as at the start ...
CANCEL_SHARE_SWING: Final = 0.2  # ... and how far this goes up and down to keep it so
GONE_SHARE: Final = 0.03  # of cancels
PRICE_SPAN: Final = 65_536  # prices are 1..PRICE_SPAN - 2, so that a 16-bit book can hold them
# In the manifest: a changed generator finds none of its old streams.
GENERATOR: Final = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()


class Kind(IntEnum):
    MIXED = 0  # limits, cancels, immediate orders that reach a little behind the best price
    SWEEP = 1  # limits, and after each SWEEP_ORDERS of them an order that takes as much
    SWEEP_ONLY = 2


class Shape(NamedTuple):
    name: str
    kind: Kind
    instruments: int
    preload: int  # limits that do not cross, replayed untimed; the mix keeps as many resting
    timed: int
    spread: int  # ticks from the middle: the mean, or the end of an even distribution
    even: bool
    width: int  # ticks that an instrument's prices span at most
    seed: int

    def capped(self, operations: int) -> "Shape":
        """The same with at most this many operations, timed and not, and instruments."""
        return self._replace(
            instruments=min(self.instruments, operations),
            preload=min(self.preload, operations),
            timed=min(self.timed, operations),
        )


SHAPES: Final = (
    Shape("mixed-1", Kind.MIXED, 1, 10_000, 4_000_000, 55, False, 65_536, 1),
    Shape("mixed-256", Kind.MIXED, 256, 100_000, 4_000_000, 20, False, 4_096, 2),
    Shape("sparse-50k", Kind.MIXED, 50_000, 500_000, 2_000_000, 5, False, 512, 3),
    Shape("depth-1e3", Kind.MIXED, 1, 1_000, 1_000_000, 25, True, 65_536, 4),
    Shape("depth-1e4", Kind.MIXED, 1, 10_000, 1_000_000, 250, True, 65_536, 5),
    Shape("depth-1e5", Kind.MIXED, 1, 100_000, 1_000_000, 2_500, True, 65_536, 6),
    Shape("depth-1e6", Kind.MIXED, 1, 1_000_000, 1_000_000, 25_000, True, 65_536, 7),
    Shape("sweep", Kind.SWEEP, 1, 10_000, 1_020_000, 500, False, 65_536, 8),
    Shape("sweep-pure", Kind.SWEEP_ONLY, 1, 1_000_000, 10_000, 10_000, True, 65_536, 9),
)


class Expected(NamedTuple):
    """What a correct engine makes of a whole stream; the hash folds its fills in their order."""

    fills: int
    volume: int
    notional: int  # Σ quantity × price, mod 2^64
    fill_hash: str


class Stream(NamedTuple):
    """A stream on disk."""

    name: str
    path: Path
    preload: int
    seed: int
    expected: Expected

    def records(self, count: int = -1) -> NDArray[np.void]:
        """Shape (count,) or all, dtype RECORD."""
        return np.fromfile(self.path, RECORD, count)


DRAW: Final = np.dtype(
    [
        ("which", "<f8"),  # 0..1: what kind of operation
        ("gone", "<f8"),  # 0..1: whether a cancel names any order or one that rests
        ("pick", "<f8"),  # 0..1: which
        ("qty_lots", "<u4"),
        ("sweep_lots", "<u4"),
        ("distance", "<u4"),  # ticks from the middle
        ("instrument", "<u4"),
        ("side", "u1"),
        ("wander", "i1"),  # the middle: -1, 0 or 1 tick
    ],
    align=True,
)
QUEUE: Final = np.dtype([("first", "<u4"), ("last", "<u4")])
ORDER: Final = np.dtype(
    [
        ("behind", "<u4"),
        ("ahead", "<u4"),
        ("left_lots", "<u4"),
        ("tick", "<u4"),
        ("instrument", "<u4"),
        ("place", "<u4"),  # in the list of those that rest
        ("side", "u1"),
    ],
    align=True,
)


class Books(NamedTuple):
    """Every instrument's ticks, counted from the instrument's lowest price, and all orders."""

    queues: Any  # (instruments, width), QUEUE
    best: Any  # (instruments, 2), int64: the tick by side; -1 no bid, width no ask
    lowest: Any  # (instruments,), int64: the price of tick 0
    orders: Any  # (orders + 1,), ORDER, by number
    resting: Any  # (orders + 1,), uint32: the numbers of those that rest, in no order
    resting_count: Any  # (1,), int64
    totals: Any  # (4,), uint64: fills, volume, notional, hash


@kernel
def _find_best(books: Any, k: Any, side: Any) -> None:
    """Walk from the best tick, whose queue is empty, to the next with orders."""
    width = books.queues.shape[1]
    tick = books.best[k, side]
    step = 1 if side == SELL else -1
    while 0 <= tick < width and books.queues[k, tick].first == 0:
        tick += step
    books.best[k, side] = tick


@kernel
def _remove(books: Any, number: Any) -> None:
    """Unlink an order from its queue and from the list of those that rest."""
    order = books.orders[number]
    queue = books.queues[order.instrument, order.tick]
    if order.ahead != 0:
        books.orders[order.ahead].behind = order.behind
    else:
        queue.first = order.behind
    if order.behind != 0:
        books.orders[order.behind].ahead = order.ahead
    else:
        queue.last = order.ahead
    order.left_lots = uint32(0)
    books.resting_count[0] -= 1
    moved = books.resting[books.resting_count[0]]
    books.resting[order.place] = moved
    books.orders[moved].place = order.place
    _find_best(books, order.instrument, order.side)


@kernel
def _take(books: Any, k: Any, side: Any, tick: Any, lots: Any, taker: Any) -> Any:
    """Trade against the other side up to this tick; what is left."""
    other = 1 - side
    width = books.queues.shape[1]
    while lots > 0:
        best = books.best[k, other]
        if best < 0 or best >= width or (best > tick if side == BUY else best < tick):
            break
        number = books.queues[k, best].first
        maker = books.orders[number]
        qty = min(lots, int64(maker.left_lots))
        price = uint64(best + books.lowest[k])
        books.totals[0] += uint64(1)
        books.totals[1] += uint64(qty)
        books.totals[2] += uint64(qty) * price
        books.totals[3] = fold_fill(
            books.totals[3], uint64(number), uint64(taker), uint64(qty), price
        )
        lots -= qty
        if qty == maker.left_lots:
            _remove(books, number)
        else:
            maker.left_lots -= uint32(qty)
    return lots


@kernel
def _rest(books: Any, k: Any, side: Any, tick: Any, lots: Any, number: Any) -> None:
    order = books.orders[number]
    queue = books.queues[k, tick]
    order.left_lots = uint32(lots)
    order.tick = uint32(tick)
    order.instrument = uint32(k)
    order.side = uint8(side)
    order.ahead = queue.last
    order.behind = uint32(0)
    if queue.last != 0:
        books.orders[queue.last].behind = uint32(number)
    else:
        queue.first = uint32(number)
    queue.last = uint32(number)
    if tick > books.best[k, side] if side == BUY else tick < books.best[k, side]:
        books.best[k, side] = tick
    order.place = uint32(books.resting_count[0])
    books.resting[order.place] = uint32(number)
    books.resting_count[0] += 1


@kernel
def _operation(kind: Any, draw: Any, position: Any, resting: Any, target: Any) -> Any:
    """What the operation at this position of the timed part is."""
    if kind == Kind.SWEEP_ONLY:
        return IMMEDIATE
    if kind == Kind.SWEEP:
        return IMMEDIATE if position % (SWEEP_ORDERS + 1) == SWEEP_ORDERS else LIMIT
    surplus = (resting - target) / target / 2
    cancels = CANCEL_SHARE + min(CANCEL_SHARE_SWING, max(-CANCEL_SHARE_SWING, surplus))
    if draw.which < IMMEDIATE_SHARE:
        return IMMEDIATE
    if draw.which < IMMEDIATE_SHARE + cancels and resting > 0:
        return CANCEL
    return LIMIT


@allocating
def _play(books: Any, draws: Any, records: Any, kind: Any, preload: Any, reach: Any) -> None:
    """Make a record of each draw and apply it to the books."""
    width = books.queues.shape[1]
    drift = width // 10
    furthest = width // 2 - drift - 3
    middles = np.full(len(books.lowest), width // 2)
    newest = 0
    for i in range(len(draws)):
        draw = draws[i]
        record = records[i]
        resting = books.resting_count[0]
        op = LIMIT
        if i >= preload:
            op = _operation(kind, draw, i - preload, resting, preload)
        record.op = uint8(op)
        if op == CANCEL:
            number = books.resting[int64(draw.pick * resting)]
            if draw.gone < GONE_SHARE:
                number = uint32(1 + int64(draw.pick * newest))
            order = books.orders[number]
            record.id = uint64(number)
            record.instrument = order.instrument
            record.side = order.side
            if order.left_lots != 0:
                _remove(books, number)
            continue
        newest += 1
        k = draw.instrument
        side = int64(draw.side)
        lots = int64(draw.qty_lots)
        if i >= preload and abs(middles[k] + draw.wander - width // 2) <= drift:
            middles[k] += draw.wander
        away = -1 - min(int64(draw.distance), furthest)
        if op == IMMEDIATE:
            away = reach
            if kind != Kind.MIXED:
                away = furthest
                lots = int64(draw.sweep_lots)
                side = i & 1
        tick = middles[k] + away if side == BUY else middles[k] - away
        record.id = uint64(newest)
        record.price_ticks = tick + books.lowest[k]
        record.qty_lots = uint32(lots)
        record.instrument = k
        record.side = uint8(side)
        books.orders[newest].instrument = k
        books.orders[newest].side = uint8(side)
        left = _take(books, k, side, tick, lots, newest)
        if op == LIMIT and left > 0:
            _rest(books, k, side, tick, left, newest)


def _draw(shape: Shape, chance: np.random.Generator) -> NDArray[np.void]:
    n = shape.preload + shape.timed
    draws = np.zeros(n, DRAW)
    for name in ("which", "gone", "pick"):
        draws[name] = chance.random(n)
    draws["qty_lots"] = chance.integers(1, 101, n)
    if shape.kind != Kind.MIXED:
        for _ in range(SWEEP_ORDERS):
            draws["sweep_lots"] += chance.integers(1, 101, n, np.uint32)
    if shape.even:
        draws["distance"] = chance.integers(0, shape.spread, n)
    else:
        draws["distance"] = chance.geometric(1 / shape.spread, n) - 1
    draws["side"] = chance.integers(0, 2, n)
    draws["wander"] = chance.choice(np.array([-1, 0, 1]), n, p=[0.01, 0.98, 0.01])
    if shape.instruments > 1:  # the k-th is traded 1/k as often as the first (Zipf)
        weights = 1 / np.arange(1, shape.instruments + 1)
        draws["instrument"] = chance.choice(shape.instruments, n, p=weights / weights.sum())
    return draws


def generate(shape: Shape) -> tuple[NDArray[np.void], Expected]:
    """The stream, shape (preload + timed,), dtype RECORD, and what it must fill."""
    chance = np.random.default_rng(shape.seed)
    draws = _draw(shape, chance)
    n = len(draws)
    books = Books(
        queues=np.zeros((shape.instruments, shape.width), QUEUE),
        best=np.tile(np.array([-1, shape.width]), (shape.instruments, 1)),
        lowest=chance.integers(0, PRICE_SPAN - shape.width, shape.instruments, endpoint=True),
        orders=np.zeros(n + 1, ORDER),
        resting=np.zeros(n + 1, np.uint32),
        resting_count=np.zeros(1, np.int64),
        totals=np.array([0, 0, 0, FILL_HASH_START], np.uint64),
    )
    records = np.zeros(n, RECORD)
    reach = 10 + shape.spread // 4 if shape.even else 10
    _play(books, draws, records, shape.kind.value, shape.preload, reach)
    fills, volume, notional, fold = (int(x) for x in books.totals)
    return records, Expected(fills, volume, notional, f"{fold:016x}")


def find_or_make(shape: Shape, directory: Path) -> Stream:
    """The stream as kept in the directory by this generator, or a new one. 32 bytes a record."""
    directory.mkdir(parents=True, exist_ok=True)
    manifest = directory / "manifest.json"
    entries: dict[str, Any] = json.loads(manifest.read_text("utf-8")) if manifest.exists() else {}
    path = directory / f"{shape.name}.bin"
    made = {**shape._asdict(), "kind": shape.kind.name, "generator": GENERATOR}
    if made.items() <= entries.get(shape.name, {}).items() and path.exists():
        return _stream(shape.name, directory, entries[shape.name])
    records, expected = generate(shape)
    unfinished = path.with_suffix(".part")
    records.tofile(unfinished)
    unfinished.replace(path)
    entries[shape.name] = {**made, **expected._asdict()}
    manifest.write_text(json.dumps(entries, indent=1), "utf-8")
    return _stream(shape.name, directory, entries[shape.name])


def read_manifest(directory: Path) -> list[Stream]:
    """The streams of a directory, whoever made them, in the order of SHAPES, others behind.

    Its manifest.json has per name `preload`, `seed` and the fields of Expected; the records are in
    NAME.bin. Raises FileNotFoundError.
    """
    entries: dict[str, Any] = json.loads((directory / "manifest.json").read_text("utf-8"))
    order = [shape.name for shape in SHAPES if shape.name in entries]
    order += [name for name in entries if name not in order]
    return [_stream(name, directory, entries[name]) for name in order]


def _stream(name: str, directory: Path, entry: dict[str, Any]) -> Stream:
    expected = Expected(*(entry[field] for field in Expected._fields))
    path = directory / f"{name}.bin"
    if not path.exists():
        raise FileNotFoundError(path)
    return Stream(name, path, entry["preload"], entry["seed"], expected)
