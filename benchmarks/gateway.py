"""What the gateway costs: orders, updates, idle connections and HTTP beside other people's servers.

    python -m benchmarks.gateway [--runs N] [--dir DIR] [--json PATH] [--plot PATH] [--quick]
                                 [SECTION ...]

Ours is the real server with real sessions on the real engine (`served`), theirs do as little as
they can (`peers`); each measurement has a server process of its own on the first core, and the
load generator (`load`) on the last. All of a section run in turns within each round (`table`); who
goes first changes. A ratio is ours through theirs; `by CPU` it is that of what a second of the
servers' CPU does. DIR lies on the disk that is meant. Speed never fails the command; a message that
is missing, wrong or one too many does. To add a figure, write a `Section` and name it in SECTIONS.

orders: from an order to its ack, with the disk and without it, beside servers that only echo.
Orders rest, at a hundred prices of four markets; then once more so that each second one trades.
alone: one client that waits for each ack, beside one write and sync of that disk.
fanout: an update of 300 bytes to a thousand subscribers, one by one and ten at a time.
idle: the memory of connections that only stay, in the server's process.
http: two small JSON answers on connections that are kept.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from compex_client import messages as m
from rich.console import Console
from rich.table import Table

from benchmarks import load
from benchmarks.load import Found, Frames, Opening, Plan
from benchmarks.match_all import machine
from benchmarks.peers import Unavailable, node_ws
from benchmarks.served import ACCOUNTS, DOMAIN, tickers, trader, update
from benchmarks.table import (
    TABLE_COLUMNS,
    Bar,
    Rounds,
    Row,
    Section,
    draw_bars,
    figure,
    parse_sections,
    section_parser,
    show,
)
from benchmarks.targets import HOST, Target
from benchmarks.yardstick import compiler
from engine.catalog import load_catalog
from engine.journal import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    SystemDisk,
)
from engine.records import COMMAND

RUNS: Final = 3
QUICK_DIVISOR: Final = 50
WARM_UP_PARTS: Final = 5  # the first of so many parts is not measured
CONNECTIONS: Final = 32
assert CONNECTIONS <= ACCOUNTS, "each connection trades for an account of its own"
IN_FLIGHT: Final = 8
ORDERS: Final = 2_000  # on each connection, as the following
ECHOES: Final = {"websockets": 2_000, "framing": 15_000, "node": 4_000}
ALONE: Final = 1_500
SYNCS: Final = 500
ECHO: Final = (
    b'{"t":"new","id":12345,"market":"H100SXM8IBUSEB","side":"buy","price":"2.4150","qty":"16",'
    b'"client_id":123456,"tif":"gtc"}'
)
assert len(ECHO) == 120
SUBSCRIBERS: Final = 1_000
UPDATES: Final = 50
TOGETHER: Final = 10
IDLE: Final = 10_000
FILES_KEPT: Final = 500  # descriptors that are no idle connection
REQUESTS: Final = 500
BROADCAST: Final = "websockets.broadcast"
HEARTBEAT: Final = '{"t":"heartbeat"'
WS_PATH: Final = "/ws"
HTTP_PATHS: Final = ("/markets", "/live")

DURABLE_BY_WEBSOCKETS_MIN: Final = 2.0
DURABLE_BY_NODE_MIN: Final = 1.0
UNSYNCED_BY_FRAMING_MIN: Final = {IN_FLIGHT: 0.35, 1: 0.6}
DURABLE_BY_UNSYNCED_MIN: Final = 0.75
CODEC_SHARE_MAX: Final = 0.15
ALONE_SYNCS_MAX: Final = 3.0
FANOUT_BY_BROADCAST_MIN: Final = 1.3
TOGETHER_BY_ONE_MIN: Final = 7.0
IDLE_KIB_MAX: Final = 8.0
HTTP_BY_STARLETTE_MIN: Final = 3.0


class Measured(NamedTuple):
    """One run of the generator, for the second table and for the JSON."""

    what: str
    round: int
    plan: Plan
    found: Found


class Bench:
    """What the sections share: the generator, servers, and a record of every run."""

    def __init__(self, directory: Path, *, quick: bool, install: bool) -> None:
        self.directory = directory
        self._scale = QUICK_DIVISOR if quick else 1
        self._may_install = install
        self._generator = load.Generator(directory)
        self.measured: list[Measured] = []
        self.round = 0

    def scaled(self, count: int) -> int:
        return max(count // self._scale, 1)

    @contextmanager
    def ours(self, how: str) -> Generator[Target]:
        """`how` is "durable" or "unsynced"."""
        journal = self.directory / "journal"
        with Target.module("benchmarks.served", str(journal), how) as target:
            yield target
        shutil.rmtree(journal)

    def node(self) -> Target:
        return node_ws(may_install=self._may_install)

    def run(
        self,
        what: str,
        target: Target,
        plan: Plan,
        frames: Frames = (),
        opening: Opening | None = None,
        when_open: Callable[[], None] = lambda: None,
        when_begun: Callable[[], None] = lambda: None,
    ) -> Found:
        found = self._generator.run(target, plan, frames, opening, when_open, when_begun)
        self.measured.append(Measured(what, self.round, plan, found))
        return found


def _peer(name: str, *words: str) -> Target:
    return Target.module("benchmarks.peers", name, *words)


def _in_turns(number: int, runs: Sequence[Callable[[], None]]) -> None:
    for run in runs if number % 2 else runs[::-1]:
        run()


def _warm_up(plan: Plan) -> Plan:
    return plan._replace(warm_up=plan.connections * plan.messages // WARM_UP_PARTS)


def _nonce_signed(number: int, hello: bytes) -> bytes:
    """The login of a connection, over the nonce that it was greeted with."""
    wallet = trader(1 + number % ACCOUNTS)
    nonce = msgspec.json.decode(hello, type=m.Hello).nonce
    signature = wallet.sign_login(DOMAIN, bytes.fromhex(nonce[2:]))
    return msgspec.json.encode(m.Login(1, wallet.address, nonce, "0x" + signature.hex()))


class LogIn(Opening):
    """Each connection logs in as another account and places a first order."""

    asks = 2

    def __init__(self, firsts: Sequence[bytes]) -> None:
        self._firsts = firsts
        self.acks: list[bytes] = []  # of the first orders

    def frames(self, number: int, hello: bytes) -> Sequence[bytes]:
        return _nonce_signed(number, hello), self._firsts[number]

    def answered(self, answer: bytes) -> None:
        ack = msgspec.json.decode(answer, type=m.ServerMessage)
        assert isinstance(ack, m.Ack), answer
        if ack.order_id:
            self.acks.append(answer)


class Subscribe(Opening):
    asks = 1

    def __init__(self, market: str) -> None:
        self._frame = msgspec.json.encode(m.Subscribe(1, "index", market))

    def frames(self, number: int, hello: bytes) -> Sequence[bytes]:
        del number, hello
        return (self._frame,)

    def answered(self, answer: bytes) -> None:
        assert isinstance(msgspec.json.decode(answer, type=m.ServerMessage), m.Ack), answer


class Orders:
    """Draws the requests of one server's life: no client id comes twice."""

    def __init__(self) -> None:
        self._tickers = tickers(load_catalog())
        self._drawn = 0

    def draw(self, connections: int, count: int, *, trade: bool = False) -> list[list[bytes]]:
        """So many for each connection. They rest, or each second one trades with another's."""
        first, self._drawn = self._drawn, self._drawn + count
        draw = self._crossing if trade else self._resting
        return [
            [msgspec.json.encode(draw(number, first + i)) for i in range(count)]
            for number in range(connections)
        ]

    def _resting(self, number: int, i: int) -> m.New:
        market = self._tickers[number % len(self._tickers)]
        return m.New(2 + i, market, "buy", f"2.{7 * i % 100:04}", "16", client_id=1 + i)

    def _crossing(self, number: int, i: int) -> m.New:
        market = self._tickers[number // 2 % len(self._tickers)]
        side = "buy" if number % 2 else "sell"
        return m.New(2 + i, market, side, "2.4150", "16", client_id=1 + i)


def _order_acks(
    bench: Bench,
    what: str,
    target: Target,
    orders: Orders,
    plan: Plan,
    *,
    trade: bool = False,
) -> tuple[Found, LogIn]:
    """Place orders over fresh connections, logged in before the clock starts."""
    drawn = orders.draw(plan.connections, plan.messages + 1, trade=trade)
    log_in = LogIn([script[0] for script in drawn])
    plan = plan._replace(path=WS_PATH, counts='{"t":"ack"', ignores=HEARTBEAT)
    found = bench.run(what, target, plan, [script[1:] for script in drawn], log_in)
    return found, log_in


class OrdersSection:
    """Many connections with several orders under way, and as many that only echo."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rounds = Rounds()
        self._no_node = ""

    def round(self, number: int) -> None:
        _in_turns(
            number, [self._durable, self._unsynced, self._websockets, self._framing, self._node]
        )

    def _plan(self, messages: int, in_flight: int = IN_FLIGHT) -> Plan:
        """Fewer messages where each waits for the one before."""
        count = self._bench.scaled(messages if in_flight > 1 else messages // 3)
        return _warm_up(Plan("talk", CONNECTIONS, count, in_flight))

    def _durable(self) -> None:
        orders, plan = Orders(), self._plan(ORDERS)
        with self._bench.ours("durable") as target:
            found, _ = _order_acks(self._bench, "orders, durable", target, orders, plan)
            self._rounds.add("durable", found.per_second, found.cpu_us)
            found, _ = _order_acks(
                self._bench, "orders that trade, durable", target, orders, plan, trade=True
            )
            self._rounds.add("trading", found.per_second, found.cpu_us)

    def _unsynced(self) -> None:
        orders, what = Orders(), "orders, not synced"
        with self._bench.ours("unsynced") as target:
            plan = self._plan(ORDERS)
            found, log_in = _order_acks(self._bench, what, target, orders, plan)
            self._rounds.add(f"unsynced {IN_FLIGHT}", found.per_second, found.cpu_us)
            self._rounds.add("cpu", found.cpu_us)
            requests = orders.draw(CONNECTIONS, 8)
            codec = target.tell(
                "codec",
                {
                    "requests": [frame.decode() for script in requests for frame in script],
                    "acks": [ack.decode() for ack in log_in.acks],
                },
            )
            self._rounds.add("codec", codec["decode_us"] + codec["encode_us"])
            found, _ = _order_acks(self._bench, what, target, orders, self._plan(ORDERS, 1))
            self._rounds.add("unsynced 1", found.per_second, found.cpu_us)

    def _echo(self, name: str, target: Target, in_flight: int) -> None:
        found = self._bench.run(
            f"{name} echo", target, self._plan(ECHOES[name], in_flight), [[ECHO]]
        )
        self._rounds.add(f"{name} {in_flight}", found.per_second, found.cpu_us)

    def _websockets(self) -> None:
        with _peer("websockets") as target:
            self._echo("websockets", target, IN_FLIGHT)

    def _framing(self) -> None:
        with _peer("framing") as target:
            self._echo("framing", target, IN_FLIGHT)
            self._echo("framing", target, 1)

    def _node(self) -> None:
        try:
            peer = self._bench.node()
        except Unavailable as reason:
            self._no_node = str(reason)
            return
        with peer as target:
            self._echo("node", target, IN_FLIGHT)

    def rows(self) -> list[Row]:
        rounds, many = self._rounds, f"{CONNECTIONS}x{IN_FLIGHT}"
        name, unit = f"{many} order to ack, durable, by websockets echo", "/s"
        by_websockets = rounds.row(
            name, unit, "durable", f"websockets {IN_FLIGHT}", at_least=DURABLE_BY_WEBSOCKETS_MIN
        )
        by_node = Row("  by node ws echo", rounds.median("durable"), unit, skipped=self._no_node)
        if not self._no_node:
            by_node = rounds.row(
                by_node.name, unit, "durable", f"node {IN_FLIGHT}", at_least=DURABLE_BY_NODE_MIN
            )
        by_framing = [
            rounds.row(
                f"{CONNECTIONS}x{k} order to ack, not synced, by framing echo",
                unit,
                f"unsynced {k}",
                f"framing {k}",
                at_least=least,
            )
            for k, least in UNSYNCED_BY_FRAMING_MIN.items()
        ]
        synced = rounds.row(
            f"{many} durable by not synced",
            unit,
            "durable",
            f"unsynced {IN_FLIGHT}",
            at_least=DURABLE_BY_UNSYNCED_MIN,
        )
        codec = rounds.row(
            f"{many} codec by an order's CPU", "µs", "codec", "cpu", at_most=CODEC_SHARE_MAX
        )
        trading = rounds.row(f"{many} half of them trade by none does", unit, "trading", "durable")
        return [by_websockets, by_node, *by_framing, synced, codec, trading]


class AloneSection:
    """One client, one order at a time: what waiting for the disk adds."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        found: dict[str, float] = {}

        def ours(how: str) -> None:
            plan = _warm_up(Plan("talk", 1, self._bench.scaled(ALONE)))
            with self._bench.ours(how) as target:
                acked, _ = _order_acks(self._bench, f"orders, {how}", target, Orders(), plan)
            found[how] = acked.p50_us

        def bare() -> None:
            found["sync"] = _sync_p50_us(self._bench.directory, self._bench.scaled(SYNCS))

        _in_turns(number, [lambda: ours("durable"), lambda: ours("unsynced"), bare])
        self._rounds.add("added", found["durable"] - found["unsynced"])
        for name, figure_us in found.items():
            self._rounds.add(name, figure_us)

    def rows(self) -> list[Row]:
        rounds = self._rounds
        name = "1x1 p50 that the disk adds, by its write and sync"
        added = rounds.row(name, "µs", "added", "sync", at_most=ALONE_SYNCS_MAX)
        if added.measured <= 0:  # waiting for the disk took no time, says a busy machine
            added = added._replace(within=None, skipped="too busy a machine to tell")
        return [
            added,
            rounds.row("1x1 p50, durable by not synced", "µs", "durable", "unsynced"),
        ]


def _sync_p50_us(directory: Path, count: int) -> float:
    """The bare disk's, of a frame with one command, in a file made like a segment."""
    disk, path, size = SystemDisk(), directory / "bare", FRAME_HEADER_BYTES + COMMAND.itemsize
    fd = disk.create(path, SEGMENT_BYTES)
    found: list[int] = []
    for i in range(count):
        begin_ns = time.monotonic_ns()
        disk.write(fd, b"\x5a" * size, HEADER_BYTES + i * size)
        disk.sync(fd)
        found.append(time.monotonic_ns() - begin_ns)
    disk.close(fd)
    path.unlink()
    return statistics.median(found) / 1000


def _updates(together: int) -> str:
    return f"updates, {together} a turn"


class FanoutSection:
    """The same update to all."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rounds = Rounds()
        self._ticker = tickers(load_catalog())[0]

    def round(self, number: int) -> None:
        _in_turns(number, [lambda: self._ours(1), lambda: self._ours(TOGETHER), self._broadcast])

    def _publish(
        self,
        what: str,
        target: Target,
        plan: Plan,
        asked: object,
        opening: Opening | None = None,
    ) -> None:
        begun: list[int] = []

        def publish() -> None:
            begun.append(target.tell("publish", asked))

        found = self._bench.run(what, target, plan, opening=opening, when_begun=publish)
        per_second = found.messages / (found.end_ns - begun[0]) * 1e9
        self._rounds.add(what, per_second, found.cpu_us)

    def _plan(self, updates: int) -> Plan:
        return Plan("listen", self._bench.scaled(SUBSCRIBERS), updates, path=WS_PATH)

    def _ours(self, together: int) -> None:
        updates = self._bench.scaled(UPDATES) * together
        plan = self._plan(updates)._replace(counts='{"t":"index"', ignores=HEARTBEAT)
        asked = {"count": updates, "together": together}
        with self._bench.ours("unsynced") as target:
            self._publish(_updates(together), target, plan, asked, Subscribe(self._ticker))

    def _broadcast(self) -> None:
        plan = self._plan(self._bench.scaled(UPDATES))
        text = msgspec.json.encode(update(self._ticker, 0)).decode()
        with _peer("websockets") as target:
            asked = {"count": plan.messages, "text": text}
            self._publish(BROADCAST, target, plan, asked)

    def rows(self) -> list[Row]:
        many = f"{self._bench.scaled(SUBSCRIBERS):,} subscribers"
        return [
            self._rounds.row(
                f"update to {many}, by broadcast",
                "deliveries/s",
                _updates(1),
                BROADCAST,
                at_least=FANOUT_BY_BROADCAST_MIN,
            ),
            self._rounds.row(
                f"{TOGETHER} updates a turn, by one a turn",
                "deliveries/s",
                _updates(TOGETHER),
                _updates(1),
                at_least=TOGETHER_BY_ONE_MIN,
            ),
        ]


class IdleSection:
    """Connections that were greeted and then neither send nor subscribe."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rounds = Rounds()
        self._count = min(bench.scaled(IDLE), _files_max() - FILES_KEPT)

    def round(self, number: int) -> None:
        def ours() -> None:
            with self._bench.ours("unsynced") as target:
                self._hold("ours", target, Opening())

        def websockets() -> None:
            with _peer("websockets") as target:
                self._hold("websockets", target, None)

        _in_turns(number, [ours, websockets])

    def _hold(self, name: str, target: Target, opening: Opening | None) -> None:
        before = target.resident_bytes()
        after: list[int] = []
        plan = Plan("hold", self._count, 0, path=WS_PATH, ignores=HEARTBEAT)

        def look() -> None:
            after.append(target.resident_bytes())

        self._bench.run(f"{name}, idle", target, plan, opening=opening, when_open=look)
        self._rounds.add(name, (after[0] - before) / 1024 / self._count)

    def rows(self) -> list[Row]:
        found = self._rounds.median("ours")
        row = self._rounds.row(
            f"idle connection of {self._count:,}, by websockets",
            "KiB",
            "ours",
            "websockets",
        )
        few = self._count < self._bench.scaled(IDLE)
        target = f"at most {IDLE_KIB_MAX:g} KiB"
        reason = f"{IDLE:,} want more open files than the system allows" if few else ""
        return [row._replace(target=target, within=found <= IDLE_KIB_MAX, skipped=reason)]


def _files_max() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


class HttpSection:
    """Small answers, one request at a time on each connection."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._rounds = Rounds()

    def round(self, number: int) -> None:
        _in_turns(number, [partial(self._both, path) for path in HTTP_PATHS])

    def _both(self, path: str) -> None:
        """Ours first: theirs answers with the same body."""
        body = self._bench.directory / "body.json"
        with self._bench.ours("unsynced") as target:
            with urllib.request.urlopen(f"http://{HOST}:{target.port}{path}") as answer:
                body.write_bytes(answer.read())
            self._get("ours", path, target)
        with _peer("starlette", str(body)) as target:
            self._get("starlette", path, target)

    def _get(self, name: str, path: str, target: Target) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: application/json\r\n\r\n"
        plan = Plan("http", CONNECTIONS, self._bench.scaled(REQUESTS), counts="HTTP/1.1 200")
        found = self._bench.run(f"{name}, GET {path}", target, _warm_up(plan), [[request.encode()]])
        self._rounds.add(f"{name} {path}", found.per_second, found.cpu_us)

    def rows(self) -> list[Row]:
        return [
            self._rounds.row(
                f"GET {path}, by uvicorn + starlette",
                "/s",
                f"ours {path}",
                f"starlette {path}",
                at_least=HTTP_BY_STARLETTE_MIN,
            )
            for path in HTTP_PATHS
        ]


SECTIONS: Final[dict[str, Callable[[Bench], Section]]] = {
    "orders": OrdersSection,
    "alone": AloneSection,
    "fanout": FanoutSection,
    "idle": IdleSection,
    "http": HttpSection,
}


# --- what is shown ------------------------------------------------------------------------------


def _medians(measured: Sequence[Measured]) -> list[tuple[Measured, Found]]:
    """Each kind of run once, with the medians of its rounds."""
    kinds: dict[tuple[str, Plan], list[Found]] = {}
    for run in measured:
        kinds.setdefault((run.what, run.plan), []).append(run.found)
    return [
        (
            Measured(what, 0, plan, found[0]),
            Found._make(statistics.median(figures) for figures in zip(*found, strict=True)),
        )
        for (what, plan), found in kinds.items()
    ]


def show_runs(console: Console, measured: Sequence[Measured]) -> None:
    """What each server did and took, and how busy the generator was."""
    table = Table(box=None, pad_edge=False)
    headings = ("server", "connections", "messages/s", "CPU µs each", "p50 µs", "p99 µs",
                "generator")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for run, found in _medians(measured):
        if run.plan.mode == "hold":
            continue
        waits = run.plan.mode != "listen"
        table.add_row(
            run.what,
            f"{run.plan.connections}x{run.plan.in_flight}" if waits else f"{run.plan.connections}",
            figure(found.messages / found.seconds, 0),
            figure(found.cpu_us),
            figure(found.p50_us if waits else None, 0),
            figure(found.p99_us if waits else None, 0),
            f"{found.own_cpu_share:.0%}",
        )
    console.print(table)
    for run, found in _medians(measured):
        if found.own_cpu_share > load.SATURATED_SHARE and run.plan.mode != "hold":
            console.print(f"{run.what}: the generator was busy all the time; this is a floor")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Every ratio, with a mark at its target."""
    bars = [
        Bar(
            row.name.strip(),
            row.ratio,
            f"{row.ratio:.2f}×, {row.measured:,.0f} {row.unit}",
            row.ratio_min,
            row.ratio_max,
            row.limit,
        )
        for row in rows
        if row.ratio is not None and row.ratio > 0
    ]
    label = "ours through theirs; black: all runs, red: target"
    draw_bars(path, bars, label, logarithmic=True)


# --- the command --------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    quick = "cap all sizes, install nothing: measures nothing"
    parser = section_parser("gateway", SECTIONS, RUNS, quick)
    parser.add_argument("--plot", type=Path, metavar="PATH", help="write the ratios as SVG")
    return parse_sections(parser, SECTIONS, arguments)


def _measure(options: argparse.Namespace, progress: Console) -> tuple[list[Row], list[Measured]]:
    rows: list[Row] = []
    where: AbstractContextManager[str] = tempfile.TemporaryDirectory(dir=options.dir)
    with where as directory:
        progress.print("build the load generator")
        bench = Bench(Path(directory), quick=options.quick, install=not options.quick)
        for name in options.sections or SECTIONS:
            section = SECTIONS[name](bench)
            for number in range(options.runs):
                progress.print(f"{name}: round {number + 1} of {options.runs}")
                bench.round = number
                section.round(number)
            rows += section.rows()
    return rows, bench.measured


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where there is no compiler. Raises AssertionError if what was measured was wrong."""
    options = _options(arguments)
    progress = Console(stderr=True, highlight=False)
    if not compiler():
        progress.print("no g++ here, and the load generator is in C++: nothing is measured")
        return 1
    rows, measured = _measure(options, progress)
    about = machine(None)
    console = Console(width=TABLE_COLUMNS, highlight=False)
    console.print(f"{about['cpu']}, medians of {options.runs} interleaved runs")
    console.print("QUICK: sizes are capped, the figures say nothing\n" if options.quick else "")
    show(console, rows, beside="theirs")
    console.print()
    show_runs(console, measured)
    if options.json is not None:
        packages = ("websockets", "uvloop", "msgspec", "uvicorn", "starlette", "httptools")
        written = {
            "machine": {**about, **{name: version(name) for name in packages}},
            "runs": options.runs,
            "quick": options.quick,
            "rows": [row._asdict() for row in rows],
            "measured": [
                {
                    "what": run.what,
                    "round": run.round,
                    **run.plan._asdict(),
                    **run.found._asdict(),
                    "per_second": run.found.per_second,
                }
                for run in measured
            ],
            "within": all(row.within is not False for row in rows),
            "skipped": [row.name.strip() for row in rows if row.skipped],
        }
        options.json.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.plot is not None:
        plot(options.plot, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
