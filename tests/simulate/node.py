"""One life of a whole node, from its start to its crash, put together as `gateway.node` does it.

Owns the engine on its journal, the desk with its sessions, settlement, and every task of theirs.
Invariant: after `crash` nothing of a life moves any more, and all that is left of it is on the
simulated disk, in the database and on the chain. `World` starts one life after the other.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from compex_client import messages as m
from compex_client.wallet import Domain, Wallet

from engine.catalog import load_catalog
from engine.clock import Clock
from engine.index import SpotIndex
from engine.journal import Journal, segments
from engine.pipeline import QUICK_NS, Pipeline
from engine.port import Batch
from engine.records import Event
from engine.rejects import CompexError, SnapshotError
from engine.replay import verify
from engine.replica import Replica, retain, take_snapshot
from gateway import translate
from gateway.feed import Feed
from gateway.history import History
from gateway.limits import DEFAULT_LIMITS
from gateway.node import KeptSignatures
from gateway.session import open_desk
from settlement.errors import SettlementError
from settlement.fees import FeePolicy
from settlement.orders import separator
from settlement.sealing import Triggers
from settlement.service import Settings, Settlement
from settlement.signatures import Signatures
from tests.simulate.chain import CHAIN_ID, VAULT, SimulatedChain
from tests.simulate.database import Sessions
from tests.simulate.disk import Killed, MortalDisk, SimulatedDisk
from tests.simulate.faults import Chance, Faults
from tests.simulate.loop import VirtualLoop
from tests.simulate.network import Link

START_NS: Final = 1_795_219_200_000_000_000  # 2026-11-21, 00:00 UTC
SECOND_NS: Final = 1_000_000_000
HOUR_NS: Final = 3600 * SECOND_NS
DAY_NS: Final = 24 * HOUR_NS
DOMAIN: Final = Domain(CHAIN_ID, VAULT)
ADMINISTRATOR: Final = Wallet((1).to_bytes(32, "big"))
FLAGSHIP: Final = "nv.h100-sxm-80g.x8.ib|us-e|B"
HOUR: Final = f"{FLAGSHIP}|H|2026-11-22T0"
SYMBOLS: Final = (f"{FLAGSHIP}|SPOT", f"{HOUR}1", f"{HOUR}2", f"{HOUR}3")
CLOSES_S: Final = START_NS // 1_000_000_000 + 2 * 3600  # of the last market: jumps reach it
LISTINGS: Final = [
    m.Market(1, "list", symbol, bond="0.001", lot="0.01", closes_s=closes_s)
    for symbol, closes_s in zip(SYMBOLS, (0, 0, 0, CLOSES_S), strict=True)
]
PARTITION_NS: Final = 500_000_000  # of the index; in a run there are twelve of them and more
SNAPSHOTS_KEPT: Final = 2
FEES: Final = (200, 500)  # ppm, maker and taker
CATALOG: Final = load_catalog()
TICKERS: Final = [CATALOG.ticker(CATALOG.parse(symbol)) for symbol in SYMBOLS]
LIMITS: Final = msgspec.structs.replace(DEFAULT_LIMITS, outbound_bytes=1 << 16)
SETTLING: Final = Settings(
    turn_seconds=1.0,
    turns_per_reconciliation=5,
    batches=Triggers(fills_max=64),
    fees=FeePolicy(stuck_ns=4_000_000_000),  # sooner than a slow transaction is mined
)


class JumpingClock:
    """The time of day, which somebody sets forward or back; `true_ns` is everybody else's."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self.ahead_ns = 0
        self.passed_ns = 0  # days that have gone by without anything to tell of them

    def now_ns(self) -> int:
        return self.true_ns() + self.ahead_ns

    def true_ns(self) -> int:
        return START_NS + self._now_ns() + self.passed_ns

    def true_s(self) -> int:
        return self.true_ns() // SECOND_NS


class Machine:
    """What outlives the node's lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        directory: Path,
        chance: Callable[[str], Chance],
        faults: Faults,
        sessions: Callable[..., Sessions],
    ) -> None:
        self.loop = loop
        self.directory = directory
        self.faults = faults
        self.clock = JumpingClock(loop.now_ns)
        self.disk = SimulatedDisk(chance("disk"), faults, loop.call_later)
        self.chain = SimulatedChain(chance("chain"), faults, asyncio.sleep, self.clock.true_s)
        self.database = sessions(chance("database"), faults, asyncio.sleep)
        self.network = chance("network")
        self.login = chance("login")
        self.archive = directory.with_name("archive")  # the segments that were removed
        self._beside = chance("snapshots")
        self._commits = chance("commits")
        self.segment_bytes = chance("segments").random.choice((1 << 12, 1 << 14, 1 << 16))

    def quick_ns(self) -> int:
        """Of a life: in half of them the loop goes on while another thread has the disk."""
        return self._commits.random.choice((0, QUICK_NS))

    def snapshot(self, needed: int) -> str:
        """What the process beside the node does; what came of it, in words."""
        replica = Replica(self.clock)
        Feed(replica, CATALOG, answer=lambda _event: None, done=lambda: None)
        index = SpotIndex(CATALOG, PARTITION_NS)
        replica.subscribe(index.on_batch, keeper=index)
        disk: Any = MortalDisk(self.disk, self._beside, self.faults)
        try:
            found = take_snapshot(self.directory, disk, replica)
        except Killed:
            return "killed"
        except SnapshotError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            return "the disk failed"
        if found is None:
            return "nothing new"
        self.keep_segments()
        history = not self._beside.happens(self.faults.retired_ppm)
        removed = retain(self.directory, SNAPSHOTS_KEPT, needed, history=history)
        return f"of sequence {found.mark.sequence}, {len(removed)} files removed"

    def keep_segments(self) -> None:
        """For the truth at the end, which begins at the first command. Of what is kept already,
        only the removed ones stand: of the others a crash may have left less."""
        self.archive.mkdir(exist_ok=True)
        present, _ = segments(self.directory)
        for kept in self.archive.iterdir():
            if not present or kept.name >= present[0].name:
                kept.unlink()
        for path in present:
            (self.archive / path.name).write_bytes(path.read_bytes())


class Life:
    """`start` it in its own context (`begin`), then `connect`; at the end `crash` or `stop`."""

    def __init__(
        self,
        machine: Machine,
        published: Callable[[int, Event], None],
        heard: Callable[[], int],
    ) -> None:
        self._machine = machine
        self._published = published
        self._heard = heard
        self.blocking = machine.disk.blocking
        self._context = contextvars.copy_context()  # whatever is begun in it, a crash ends
        self.tasks: list[asyncio.Task[Any]] = []
        self.links: list[Link] = []
        self.engine: Pipeline
        self.settlement: Settlement | None = None
        self._history: History | None = None
        self._history_path = machine.directory.with_name("history.sqlite3")
        self.ended = ""  # why it cannot go on by itself
        self.is_open = False
        self.has_opened = False

    def begin(self) -> "asyncio.Task[None]":
        loop = self._machine.loop
        self._context.run(loop.task_owner.set, self)
        task = loop.create_task(self._live(), context=self._context)
        self.tasks.append(task)
        return task

    async def _live(self) -> None:
        """Start every part, then settle until the end."""
        try:
            await self._start()
            await self.settling.run()
        except (SettlementError, CompexError) as error:
            self.ended = f"{type(error).__name__}: {error}"

    @property
    def settling(self) -> Settlement:
        assert self.settlement is not None
        return self.settlement

    async def _start(self) -> None:
        machine = self._machine
        clock: Clock = machine.clock
        self._journal = Journal(machine.directory, machine.disk, machine.segment_bytes)
        self.engine = Pipeline(self._journal, clock, quick_ns=machine.quick_ns())
        self.engine.subscribe(self._hear, heard=self._heard)
        self.engine.when_stopped(self._stopped)
        self._history = History(self._history_path)
        self._signatures = Signatures(
            "", separator(*DOMAIN), self.engine.owner_of, clock.now_ns,
            machine.database.connect_beside,
        )  # fmt: skip
        self.desk = open_desk(
            self.engine, CATALOG, DOMAIN, administrator=ADMINISTRATOR.address_bytes,
            limits=LIMITS, now_ns=machine.loop.now_ns, time_ns=clock.now_ns,
            random_bytes=machine.login.random.randbytes,
            history=self._history, signatures=KeptSignatures(self._signatures),
        )  # fmt: skip
        chain = cast("Any", machine.chain)
        self.settlement = await Settlement.open(
            SETTLING,
            self.engine,
            chain,
            "",
            clock.now_ns,
            SpotIndex(CATALOG, PARTITION_NS),
            machine.database.connect,
        )
        await self.engine.start()
        self._history.check(self.engine.ready().event_number)
        self._check_recovered()
        await self._set_up()
        with contextlib.suppress(SettlementError):  # then it starts late
            await self.settlement.turn()
        self.desk.begin()
        self.is_open = self.has_opened = True

    async def _set_up(self) -> None:
        if self.engine.rates(0) != FEES:
            self.engine.submit(translate.set_fees(0, *FEES))
        listed = {market.product for market in self.engine.markets()}
        for instrument, listing in enumerate(LISTINGS):
            product = CATALOG.parse(listing.market)
            if product not in listed:
                plain = (listing, instrument, product, 0, 0, listing.closes_s)
                self.engine.submit(translate.list_market(*plain))
        await self.engine.settled()

    def _hear(self, batch: Batch) -> None:
        for number, event in enumerate(batch.events, batch.first_number):
            self._published(number, event)

    def _stopped(self, reason: str) -> None:
        self.ended = self.ended or f"the engine: {reason}"

    def _check_recovered(self) -> None:
        """What an auditor finds in the files is what this engine holds, and it is sound."""
        ready = self.engine.ready()
        assert ready.last_sequence == ready.durable_sequence
        found = verify(self._machine.directory)
        assert found.sequence == ready.last_sequence
        assert found.state_hash == self.engine.state_hash(), "replayed to another state"

    @property
    def is_quiet(self) -> bool:
        """Nothing is on its way to a client."""
        return all(link.is_idle for link in self.links)

    def connect(self) -> Link:
        machine = self._machine
        link = Link(machine.loop, machine.network, machine.faults, self.desk, self._context)
        self.links = [link for link in self.links if link.is_open] + [link]
        return link

    # --- its end -------------------------------------------------------------------------------
    async def crash(self, *, power: bool) -> None:
        """Nothing is told any more, nothing is written any more; then everything is forgotten."""
        self.is_open = False
        for link in self.links:
            link.cut(node_is_gone=True)
        self._machine.database.end()
        self._machine.disk.crash(power=power)
        on_disk = self._history_path.read_bytes() if power and self._history else b""
        await self._forget()
        if on_disk:  # what was not brought there is lost
            self._history_path.write_bytes(on_disk)

    async def stop(self) -> None:
        """As an operator would end it."""
        self.is_open = False
        for link in self.links:
            link.cut()
        self.tasks[0].cancel()
        await asyncio.wait([self.tasks[0]])
        if self.settlement is not None:
            await self.settlement.close()
        await self.engine.close()
        await self.desk.close()
        await self._signatures.close()
        self._machine.database.end()
        self._machine.disk.crash(power=False)
        await self._forget()

    async def _forget(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self._journal.close()
        if self._history is not None:
            await self._history.abandon()
        for task in self.tasks:
            broken = None if task.cancelled() else task.exception()
            if broken is not None:
                raise broken
