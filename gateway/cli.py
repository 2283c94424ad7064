"""The `compex` command: run a node, run the demonstration, look after both.

Invariant: what a command prints on standard output is for people; its exit status, one of
`ending`'s, says whether it did what it was asked, and if not, who has to act. Heavy parts
are imported by the command that needs them.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import fcntl
import gc
import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.ending import Ending, ending_of, endings_text

DEFAULT_DIRECTORY: Final = Path(".compex")
DEFAULT_SEED: Final = 7
DEMO_MARK: Final = "demonstration"
SEQUENCE_MAX: Final = (1 << 63) - 1
STOPPED_SECONDS: Final = 5.0  # a node whose engine stopped says why in `/ready` before it ends

console = Console(highlight=False)
_Result = TypeVar("_Result")


def main(arguments: list[str] | None = None) -> int:
    """Entry of the console script; returns the exit status."""
    options = command_line().parse_args(arguments)
    from compex_client import CompexClientError

    from engine.rejects import CompexError
    from settlement.errors import SettlementError, VaultOutdated

    try:
        return options.run(options)
    except VaultOutdated as error:
        _tell(error)
        return Ending.VAULT_OUTDATED
    except (
        CompexError,
        CompexClientError,
        SettlementError,
        OSError,
    ) as error:  # OSError: a port in use, a full disk
        _tell(error)
        return ending_of(error)
    except KeyboardInterrupt:
        return Ending.INTERRUPTED


def _tell(error: Exception) -> None:
    """Where the output goes to a file on a disk that is full, too, the status is as it would be."""
    try:
        console.print(f"[red]compex: {error}[/red]", soft_wrap=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or what is left in its buffer fails at the exit


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Says every default but that of an option that does nothing until it is given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Of `compex` and of each of its commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)


def command_line() -> argparse.ArgumentParser:
    """Every command and its options; `run` of what it parses is the command itself."""
    parser = _Parser(prog="compex", description="An exchange for GPU-hours.")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="a whole market on embedded parts")
    demo.add_argument("--once", action="store_true", help="play one seeded run to its end, exit")
    demo.add_argument("--json", type=Path, metavar="PATH", help="with --once: the summary as JSON")
    demo.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of all that the actors do")
    demo.add_argument("--port", type=int, default=8765, help="of the page and the websocket")
    demo.add_argument(
        "--dir", type=Path, default=DEFAULT_DIRECTORY / "demo", help="its own: a new run erases it"
    )
    demo.set_defaults(run=_demo)

    up = commands.add_parser("up", help="a node, its state kept in --dir", epilog=endings_text())
    up.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="where its state is kept")
    up.add_argument("--settings", type=Path, metavar="TOML", help="what is not as by default")
    up.set_defaults(run=_up)

    settings = commands.add_parser("settings", help="print a settings file with all defaults")
    settings.set_defaults(run=_settings)

    _prints_documents(commands.add_parser("documents", help="print the protocol, for programs"))

    replay = commands.add_parser("replay", help="replay a journal and print its state hash")
    _takes_journal(replay)
    replay.add_argument("--verify", action="store_true", help="check the state's invariants, too")
    replay.set_defaults(run=_replay)
    snapshot = commands.add_parser("snapshot", help="keep the state, so that a start is quick")
    _takes_journal(snapshot)
    snapshot.add_argument("--background", action="store_true", help="let everything else go first")
    snapshot.set_defaults(run=_snapshot)

    journal = commands.add_parser("journal", help="look into a journal, or take it over")
    _takes_actions_of_journal(journal)

    audit = commands.add_parser("audit", help="who did what to the exchange, line by line")
    audit.add_argument(
        "dir", type=Path, nargs="?", default=DEFAULT_DIRECTORY, metavar="DIR", help="a node's"
    )
    audit.add_argument("--verify", action="store_true", help="only whether lines are missing")
    audit.set_defaults(run=_audit)

    _takes_deposit(commands.add_parser("fund", help="mint test USDC and deposit it from a wallet"))
    _takes_batch(commands.add_parser("verify", help="whether a settled batch was signed for"))
    _takes_bond(commands.add_parser("bond", help="put USDC behind the settler's word"))

    market = commands.add_parser(
        "market", help="list, halt, resume, call, uncross or close (administrator)"
    )
    market.add_argument(
        "action",
        choices=("list", "halt", "resume", "call", "uncross", "close"),
        help="call: orders gather; uncross: they trade at one price; close: for good",
    )
    market.add_argument("symbol", help="class|region|grade|window, in quotes")
    _takes_administrator(market)
    market.set_defaults(run=_market)

    tier = commands.add_parser("tier", help="a wallet's tier of fees (administrator)")
    tier.add_argument("wallet", help="its address")
    tier.add_argument("tier", type=int, help="from 0; the rates are in the node's settings")
    _takes_administrator(tier)
    tier.set_defaults(run=_tier)
    return parser


def _prints_documents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", choices=("asyncapi", "openapi"), help="websocket, or plain HTTP")
    parser.set_defaults(run=_documents)


def _takes_deposit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="of the node")
    parser.add_argument("--rpc", default="http://127.0.0.1:8545", help="of the embedded chain")
    parser.add_argument("--key", help="the wallet's private key in hex; without it one is made")
    parser.add_argument("--cash", type=int, default=1_000, help="whole USDC to trade with")
    parser.add_argument("--bond", type=int, default=0, help="whole USDC of bond, to sell")
    parser.set_defaults(run=_fund)


def _takes_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", type=int, help="its number, from 1")
    parser.add_argument("--rpc", default="http://127.0.0.1:8545", help="of the vault's chain")
    parser.add_argument("--vault", help="its address; without it the one that --dir names")
    parser.add_argument("--since", type=int, default=0, help="a block no later than the vault's")
    parser.add_argument("--orders", type=Path, metavar="FILE", help="the signed orders")
    parser.add_argument("--database", metavar="URL", help="where they are, if not in a file")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="of the node, if here")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the orders to a file")
    parser.set_defaults(run=_verify)


def _takes_bond(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("usdc", type=int, help="whole USDC, of the deployer's")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="of the node")
    parser.add_argument("--settings", type=Path, metavar="TOML", help="of a node on another chain")
    parser.add_argument("--rpc", default="http://127.0.0.1:8545", help="of the embedded chain")
    parser.set_defaults(run=_bond)


def _takes_actions_of_journal(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="action")
    inspect = actions.add_parser("inspect", help="print it as text; also while a node writes")
    _takes_journal(inspect)
    inspect.add_argument(
        "--from", type=int, default=1, metavar="N", dest="first", help="a command's sequence"
    )
    inspect.add_argument(
        "--to", type=int, metavar="N", dest="last", help="another; without it the last one"
    )
    inspect.set_defaults(run=_inspect)
    adopt = actions.add_parser("adopt", help="replay another build's and go on with this one")
    _takes_journal(adopt)
    adopt.set_defaults(run=_adopt)


def _takes_journal(parser: argparse.ArgumentParser) -> None:
    """What the commands that work on a journal, and not on a node, have alike."""
    parser.add_argument(
        "dir",
        type=Path,
        nargs="?",
        default=DEFAULT_DIRECTORY,
        metavar="DIR",
        help="a node's directory, or its journal's",
    )


def _takes_administrator(parser: argparse.ArgumentParser) -> None:
    """What the commands have alike that ask a running node as its administrator."""
    parser.add_argument("--url", default="ws://127.0.0.1:8765/ws", help="of the node's websocket")
    parser.add_argument(
        "--key-file",
        type=Path,
        default=DEFAULT_DIRECTORY / "administrator.key",
        help="has the administrator's private key in hex",
    )


def _run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


@contextlib.contextmanager
def owning(directory: Path) -> Generator[None]:
    """Hold the directory against another run; the lock tells whose it is. Raises CompexError."""
    from engine.rejects import CompexError

    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("a+", encoding="ascii") as lock:
        lock.seek(0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = lock.read().strip() or "unknown"
            raise CompexError(f"another process, {owner}, runs in {directory}") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")  # whom to signal
        lock.flush()
        yield


class Steps:
    """Progress of the start and of the run, on one bar each."""

    def __init__(self, work: str = "") -> None:
        self._work = work
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._trading: Any = None

    def __enter__(self) -> "Steps":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def step(self, what: str) -> Generator[None]:
        task = self._bars.add_task(what, total=None)
        yield
        self._bars.update(task, total=1, completed=1)

    def advance(self, done: int, total: int) -> None:
        if self._trading is None:
            self._trading = self._bars.add_task(self._work, total=total)
        self._bars.update(self._trading, completed=done)


# --- demo ---------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    if options.json is not None and not options.once:
        console.print("[red]compex: --json goes with --once[/red]")
        return 2
    if options.once:
        with owning(options.dir):
            return _demo_once(options)
    with owning(options.dir):
        return _demo_live(options)


def _clear(directory: Path) -> None:
    """An empty directory for a demonstration; what another kind of run left is never erased."""
    from engine.rejects import CompexError

    mark = directory / DEMO_MARK
    if directory.exists() and any(directory.iterdir()) and not mark.exists():
        raise CompexError(f"{directory} was not made by a demonstration; nothing was erased")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    mark.write_text("made by compex demo, which erases it at the next start\n", "utf-8")


def _demo_once(options: argparse.Namespace) -> int:
    """Start afresh, or go on where a run of the same seed was cut off."""
    from gateway.demo.play import play_once

    mark = options.dir / "running.json"
    wanted = {"seed": options.seed}
    resumed = mark.exists() and json.loads(mark.read_text("utf-8")) == wanted
    if not resumed:
        _clear(options.dir)
        mark.write_text(json.dumps(wanted), "utf-8")
    else:
        console.print(f"going on with the run that was cut off in {options.dir}")
    with Steps("trading and settling") as steps:
        outcome = _run(
            play_once(
                options.dir,
                options.seed,
                progress=steps.step,
                advance=steps.advance,
                resumed=resumed,
            )
        )
    mark.unlink()
    _print_outcome(outcome)
    if options.json is not None:
        import msgspec

        body = msgspec.json.format(msgspec.json.encode(outcome), indent=2)
        options.json.write_bytes(body + b"\n")
    return 0 if outcome.reconciled else 1


def _print_outcome(outcome: Any) -> None:
    table = Table(title="one market in GPU-hours", show_header=False)
    rows = {
        "markets": f"{outcome.markets}",
        "operators, buyers": f"{outcome.operators}, {outcome.buyers}",
        "prices used, not used": f"{outcome.quotes}, {sum(outcome.skipped.values())}",
        "fills": f"{outcome.fills} (an onlooker heard {outcome.trades_heard})",
        "volume": f"{outcome.volume_lots / 100:,.2f} GPU-hours",
        "notional": f"{outcome.notional_usdc6 / 1e6:,.6f} USDC",
        "buyers' fees, in escrow": f"{outcome.buyer_fees_usdc6 / 1e6:,.6f} USDC",
        "sellers' fees, due": f"{outcome.seller_fees_usdc6 / 1e6:,.6f} USDC",
        "batches mined": f"{outcome.batches}, {outcome.gas_per_fill:,} gas a fill",
        "spot prices": f"{len(outcome.index)} series on chain",
        "state hash": outcome.state_hash,
        "engine = ledger = escrow": "yes" if outcome.reconciled else "NO",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for gap in outcome.gaps:
        console.print(f"[red]gap: {gap}[/red]")
    if outcome.skipped:
        reasons = ", ".join(f"{name.lower()} {n}" for name, n in outcome.skipped.items())
        console.print(f"prices not used: {reasons}")
    prices = Table(title="spot price per class, region and grade, read from its feed contract")
    prices.add_column("series", overflow="fold", min_width=30)
    for column in ("USD", "quality", "prints", "feed answer, 1e-8"):
        prices.add_column(column, justify="right")
    busiest = sorted(outcome.index.items(), key=lambda item: -item[1].prints)[:12]
    for series, point in busiest:
        prices.add_row(
            series, point.price, point.quality, str(point.prints), str(point.feed_answer_e8)
        )
    console.print(prices)
    console.print("seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in outcome.seconds.items()))


def _demo_live(options: argparse.Namespace) -> int:
    _clear(options.dir)
    return _run(_trade_live(options))


async def _trade_live(options: argparse.Namespace) -> int:
    from gateway.demo.live import open_market, trade_on

    with Steps("posting the opening asks") as steps:
        opened = await open_market(
            options.dir, options.seed, options.port, steps.step, steps.advance
        )
    return await trade_on(opened, console)


# --- node ---------------------------------------------------------------------------------------


def _up(options: argparse.Namespace) -> int:
    from gateway.settings import load_settings

    settings = load_settings(options.settings)
    with owning(options.dir):
        return _run(_serve(options.dir, settings))


async def _serve(directory: Path, settings: Any) -> int:
    """Run a node until interrupted; settlement may halt, trading and `/ready` go on.

    Raises what stopped the engine, if it stops by itself.
    """
    import signal

    from engine.clock import SystemClock
    from gateway.node import Node

    asked, over = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        asked.set()
        over.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)
    faulthandler.register(signal.SIGUSR1)  # where each thread stands, for a node that hangs
    with Steps() as steps:
        node = await Node.open(directory, settings, SystemClock(), progress=steps.step)
    # What a start has made stays: walking it again in each full collection of garbage would stop
    # the event loop for most of a tenth of a second.
    gc.collect()
    gc.freeze()
    console.print(f"page, health   {node.url}  {node.url}/ready")
    console.print(f"websocket      {node.websocket_url}")
    console.print(f"chain          {node.rpc_url or 'embedded, in process'}")
    console.print(f"contracts      {directory / 'contracts.json'}")
    settling = asyncio.create_task(node.run())
    node.engine.when_stopped(lambda _reason: over.set())
    try:
        if node.engine.failure is None:
            await over.wait()
        if node.engine.failure is None:
            return Ending.DONE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOPPED_SECONDS):
                await asked.wait()
        raise node.engine.failure
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        await node.close()


def _settings(_options: argparse.Namespace) -> int:
    from gateway.settings import example_settings

    sys.stdout.write(example_settings())
    return 0


def _journal(directory: Path) -> Path:
    """The journal of a node's directory, or the directory itself if it is one."""
    from engine.rejects import JournalError

    for journal in (directory / "journal", directory):
        if any(journal.glob("*.cxj")):
            return journal
    raise JournalError(f"{directory}: there is no journal")


def _documents(options: argparse.Namespace) -> int:
    import msgspec

    from gateway.documents import asyncapi
    from gateway.http import http_document
    from gateway.session import BUILD

    make = asyncapi if options.which == "asyncapi" else http_document
    body = msgspec.json.format(msgspec.json.encode(make(BUILD)), indent=2)
    sys.stdout.write(body.decode() + "\n")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from engine.replay import replay, verify

    run = verify if options.verify else replay
    found = run(_journal(options.dir))
    console.print(f"sequence    {found.sequence}")
    console.print(f"events      {found.events}")
    console.print(f"state hash  {found.state_hash}")
    if options.verify:
        console.print("invariants  all hold")
    console.print(f"snapshots   {found.snapshots} agree")
    console.print(f"seconds     {found.seconds:.3f}")
    return 0


def _snapshot(options: argparse.Namespace) -> int:
    from gateway.snapshots import take

    if options.background:
        # Not only a smaller share, as `nice` would give it: whoever wakes up goes first, at once.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    taken = take(_journal(options.dir))
    if taken is None:
        console.print("nothing new since the last snapshot")
        return 0
    console.print(f"sequence    {taken.mark.sequence}")
    console.print(f"events      {taken.event_number}")
    console.print(f"state hash  {taken.state_hash}")
    console.print(f"bytes       {taken.path.stat().st_size}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from engine.transcript import transcript

    last = SEQUENCE_MAX if options.last is None else options.last
    for line in transcript(_journal(options.dir), options.first, last):
        sys.stdout.write(line + "\n")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from gateway.audit import AUDIT_FILE, verify

    path = options.dir / AUDIT_FILE
    found = verify(path)
    if not options.verify:
        sys.stdout.write(path.read_text("utf-8", errors="replace"))
        return 0
    console.print(f"lines       {found.lines}")
    console.print(f"cut off     {found.cut_off}")
    console.print(f"digest      {found.digest}")
    return 0


def _adopt(options: argparse.Namespace) -> int:
    from engine.journal import SystemDisk
    from engine.replay import adopt

    found = adopt(_journal(options.dir), SystemDisk())
    console.print(f"sequence    {found.replayed.sequence}")
    console.print(f"state hash  {found.replayed.state_hash}")
    console.print("invariants  all hold")
    console.print(f"old build   {found.old_build}")
    console.print(f"new build   {found.new_build}")
    return 0


def _fund(options: argparse.Namespace) -> int:
    return _run(_fund_wallet(options))


async def _fund_wallet(options: argparse.Namespace) -> int:
    from compex_client import Wallet

    from engine.rejects import CompexError
    from settlement.chain import Chain, Funding
    from settlement.devchain import KEYS

    await asyncio.to_thread(_require_contracts, options.dir)
    if options.cash < 0 or options.bond < 0 or options.cash + options.bond == 0:
        raise CompexError("--cash and --bond are whole USDC, at least 1 together")
    wallet = Wallet(options.key) if options.key else Wallet.create()
    chain = await Chain.connect(options.rpc, KEYS)
    try:
        await chain.deploy_or_load(options.dir)
        secret = bytes.fromhex(wallet.export_secret().removeprefix("0x"))
        cash, bond = options.cash * 1_000_000, options.bond * 1_000_000
        [account] = await chain.fund([Funding(secret, cash, bond)])
    finally:
        await chain.close()
    console.print(f"wallet   {wallet.address}")
    if not options.key:
        console.print(f"key      {wallet.export_secret()}")
    console.print(f"account  {account}, credited when settlement has seen the deposit")
    return 0


def _require_contracts(directory: Path) -> None:
    from engine.rejects import CompexError
    from settlement.addresses import CONTRACTS_FILE

    contracts = directory / CONTRACTS_FILE
    if not contracts.exists():
        raise CompexError(f"{contracts}: no node has deployed its contracts here; see --dir")


def _verify(options: argparse.Namespace) -> int:
    return _run(_verify_batch(options))


async def _verify_batch(options: argparse.Namespace) -> int:
    """Replay the chain, take the orders from a file or a database, say which fills they cover."""
    from settlement import evidence, verify
    from settlement.chain import NOBODY, Chain

    if not options.vault:
        await asyncio.to_thread(_require_contracts, options.dir)
    chain = await Chain.connect(options.rpc, NOBODY)
    try:
        if options.vault:
            await chain.watch(options.vault, options.since)
        else:
            await chain.watch_deployed(options.dir)
        history = await verify.History.read(chain, options.batch)
    finally:
        await chain.close()
    if options.orders:
        orders = await asyncio.to_thread(evidence.read, options.orders)
    else:
        async with _database_of(options) as url:
            orders = await evidence.kept(url, history.parties())
    if options.export:
        await asyncio.to_thread(evidence.write, options.export, orders)
    report = await asyncio.to_thread(verify.check, history, evidence.by_party(orders))
    for objection in report.objections:
        console.print(f"[red]{objection}[/red]")
    for number in report.false_roots:
        console.print(f"[red]batch {number}: its calldata is not what the vault keeps[/red]")
    console.print(f"batch       {report.batch_id}")
    console.print(f"fills       {report.fills}, {report.void} of them void")
    console.print(f"orders      {len(orders)}")
    console.print(f"root        {'as the vault keeps it' if not report.false_roots else 'FALSE'}")
    console.print(f"covered     {'yes' if report.is_covered else 'NO'}")
    return Ending.DONE if report.is_covered else Ending.NOT_COVERED


@contextlib.asynccontextmanager
async def _database_of(options: argparse.Namespace) -> AsyncGenerator[str]:
    """The URL of the database that is named, or of the node's own, whether it runs or not."""
    from settlement import database
    from settlement.errors import DatabaseInUse

    if options.database:
        yield options.database
        return
    await asyncio.to_thread(_require_contracts, options.dir)
    try:
        server = await database.serve(options.dir)
    except DatabaseInUse:
        yield await asyncio.to_thread(database.running, options.dir)
        return
    try:
        yield server.url
    finally:
        await server.stop()


def _bond(options: argparse.Namespace) -> int:
    return _run(_add_bond(options))


async def _add_bond(options: argparse.Namespace) -> int:
    from engine.rejects import CompexError
    from gateway.node import read_keys
    from gateway.settings import load_settings
    from settlement.chain import Chain
    from settlement.devchain import KEYS

    await asyncio.to_thread(_require_contracts, options.dir)
    if options.usdc < 1:
        raise CompexError("a bond is of whole USDC, at least 1")
    elsewhere = load_settings(options.settings).chain
    keys = read_keys(Path(elsewhere.keys_file)) if elsewhere.rpc_url else KEYS
    chain = await Chain.connect(elsewhere.rpc_url or options.rpc, keys)
    try:
        await chain.deploy_or_load(options.dir)
        await chain.add_settler_bond(options.usdc * 1_000_000)
        state = await chain.vault_state(await chain.final_block())
    finally:
        await chain.close()
    console.print(f"settler's bond  {state.settler_bond_usdc6 / 1e6:,.6f} USDC")
    return 0


def _market(options: argparse.Namespace) -> int:
    return _run(_administer(options, f"{options.action}_market", options.symbol))


def _tier(options: argparse.Namespace) -> int:
    return _run(_administer(options, "set_fee_tier", options.wallet, options.tier))


async def _administer(options: argparse.Namespace, action: str, *arguments: str | int) -> int:
    """One call of the client's, as the administrator."""
    from compex_client import CompexClientError, Wallet, connect

    key = await asyncio.to_thread(options.key_file.read_text, "ascii")
    try:
        async with await connect(options.url, Wallet(key.strip())) as administrator:
            ack = await getattr(administrator, action)(*arguments)
    except CompexClientError as error:
        console.print(f"[red]compex: {error}[/red]")
        return 1
    console.print(f"{action}: {ack.market or arguments[0]} at sequence {ack.sequence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
