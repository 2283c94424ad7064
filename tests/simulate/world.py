"""A whole exchange from one seed: its node, crashing and coming back, and all who live around it.

    bots ─▶ network ─▶ node (gateway, engine, settlement) ─▶ disk, database, chain

Owns the course of a run: money is deposited, the bots trade while faults come, then no fault comes
any more and everything must be at rest within a bound of virtual time, and true. Invariant: the
same seed makes the same trace, of which `Outcome` has the hash. `run` is the only way in.
"""

import asyncio
import contextlib
import gc
import hashlib
import logging
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from compex_client.wallet import Wallet

from engine.records import EVENT_STRUCT, Event, EventKind, Purse
from engine.replay import verify
from settlement.answers import Answers
from settlement.database import Database
from settlement.orders import separator
from settlement.upkeep import COLLECT_USDC6_MIN, QUIET_SECONDS_MAX
from tests.simulate.bots import Administrator, Bot
from tests.simulate.chain import BLOCK_SECONDS
from tests.simulate.database import Databases, Sessions
from tests.simulate.faults import Chance, Faults, drawn
from tests.simulate.loop import VirtualLoop
from tests.simulate.network import Link
from tests.simulate.node import DAY_NS, DOMAIN, HOUR_NS, Life, Machine
from tests.simulate.truth import Truth
from tests.simulate.vault import ExitStep, Vault

BOTS: Final = 4
TRADING_SECONDS: Final = 12.0
LIFE_SECONDS: Final = (0.05, 8.0)
DOWN_SECONDS: Final = (0.01, 1.5)
HEAL_SECONDS_MAX: Final = 120.0
LOOK_SECONDS: Final = 0.5
SNAPSHOT_SECONDS: Final = (0.2, 5.0)
SNAPSHOT_RESTS: Final = 8  # times as long, once there is little that is new
DIES_WRITING: Final = 0.7  # of the lives
CASH_USDC6: Final = 20_000_000_000
BOND_USDC6: Final = 1_000_000_000
# In the end days go by, so that leases are paid out, earnings mature, and a silent settler, if it
# were one, could be frozen out.
LEAPS: Final = 4
DAYS_PER_LEAP: Final = 6


class Outcome(NamedTuple):
    """What a run came to. `failure` is empty if every promise was kept."""

    seed: int
    failure: str
    trace_hash: str
    faults: tuple[str, ...]
    lives: int
    commands: int
    acknowledged: int
    fills: int
    virtual_seconds: float

    def __str__(self) -> str:
        kept = f"FAILED: {self.failure}" if self.failure else "kept"
        return (
            f"seed {self.seed}: {kept}; {self.lives} lives, {self.commands} commands,"
            f" {self.acknowledged} acknowledged, {self.fills} fills,"
            f" {self.virtual_seconds:.1f} s, faults: {' '.join(self.faults)}; {self.trace_hash}"
        )

    @property
    def reproduce(self) -> str:
        return f"uv run python -m tests.simulate --seed {self.seed}"


class World:
    def __init__(
        self,
        seed: int,
        loop: VirtualLoop,
        directory: Path,
        sessions: Callable[..., Sessions],
        tell: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._tell = tell
        self._hash = hashlib.blake2b(digest_size=16)
        self._chance = Chance(seed, "world")
        self.faults: Faults = drawn(Chance(seed, "faults").random)
        self._directory = directory / "journal"
        self.fault_names = tuple(self.faults.names())
        self.machine = Machine(
            loop, self._directory, lambda part: Chance(seed, part), self.faults, sessions
        )
        self._published: list[bytes] = []
        self._last = (0, 0)
        self._credited = 0  # deposits
        self._ended_usdc6: Counter[int] = Counter()  # of leases, by account, as the engine heard
        self._life: Life | None = None
        self.lives = 0
        self.bots = [
            Bot(
                f"bot {number}", Wallet((100 + number).to_bytes(32, "big")),
                Chance(seed, f"bot {number}"), self.faults, self._connect, self.say,
                self.machine.clock.now_ns,
            )
            for number in range(1, BOTS + 1)
        ]  # fmt: skip
        self.administrator = Administrator(Chance(seed, "administrator"), self._connect, self.say)
        self._tasks: list[asyncio.Task[None]] = []
        self._rests = False
        self._leapt_s = 0  # when days went by last, as it was before
        self.commands = self.fills = 0

    # --- the trace -----------------------------------------------------------------------------
    def say(self, who: str, what: str) -> None:
        line = f"{self._loop.time():12.6f}  {who}: {what}"
        self._hash.update(line.encode())
        self._tell(line)

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    # --- the node ------------------------------------------------------------------------------
    def _connect(self) -> Link | None:
        life = self._life
        return life.connect() if life is not None and life.is_open else None

    def _hear(self, number: int, event: Event) -> None:
        """Whatever was published once is published again, the same, by every life after; but for
        what a snapshot stands for."""
        raw = EVENT_STRUCT.pack(*event)
        if number <= len(self._published):
            same = raw == self._published[number - 1]
            assert same, f"event {number} was another one: {event}"
            return
        assert number == len(self._published) + 1, "no event is left out"
        sequence, time_ns = self._last
        assert event.sequence >= sequence and event.time_ns >= time_ns, "both only go forward"
        self._last = (event.sequence, event.time_ns)
        self._published.append(raw)
        self._hash.update(raw)
        self._credited += event.kind == EventKind.DEPOSITED
        if event.kind == EventKind.LEASES_ENDED:
            self._ended_usdc6[event.account] += event.amount_usdc6

    async def _keep_node(self) -> None:
        """Life after life, until cancelled."""
        while True:
            self.lives += 1
            self._life = life = Life(self.machine, self._hear, lambda: len(self._published))
            self.say("node", f"life {self.lives} begins")
            lived = life.begin()
            end = self._loop.time() + self._chance.seconds(*LIFE_SECONDS)
            while not (lived.done() or life.ended or self._is_time_to_die(end)):
                await asyncio.sleep(LOOK_SECONDS / 10)
                if life.is_open:
                    there = life.engine.ready().event_number
                    assert there >= len(self._published), "what was told is not there any more"
            if self._chance.random.random() < DIES_WRITING and not self._rests:
                with contextlib.suppress(TimeoutError):  # the worst moment: the disk is at work
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self.machine.disk.at_work.wait()
            await self._end(life)
            await asyncio.sleep(self._chance.seconds(*DOWN_SECONDS))

    def _is_time_to_die(self, end: float) -> bool:
        faults = self.faults
        dies = faults.kill_ppm or faults.power_ppm or faults.stop_ppm
        return bool(dies) and self._loop.time() >= end

    async def _end(self, life: Life) -> None:
        """By one of the ways to die that the seed has; by itself, if it already has."""
        faults = self.faults
        weights = (faults.kill_ppm, faults.power_ppm, faults.stop_ppm if life.is_open else 0)
        ways = ("kill", "power", "stop")
        [way] = self._chance.random.choices(ways, weights) if any(weights) else ["kill"]
        self.say("node", f"{life.ended or 'is to end'}; {way}")
        self._life = None
        if way == "stop":
            await life.stop()
        else:
            await life.crash(power=way == "power")
        _check_end(life.ended, started=life.has_opened)
        loud = self._loop.failures
        assert not loud, loud

    # --- all around it -------------------------------------------------------------------------
    async def _mine(self) -> None:
        while True:
            await asyncio.sleep(BLOCK_SECONDS)
            self.machine.chain.mine()

    async def _keep_snapshots(self) -> None:
        """Also while no node runs: the process that makes them outlives the one that wanted it."""
        needed = 0
        while True:
            seconds = self._chance.seconds(*SNAPSHOT_SECONDS)
            await asyncio.sleep(seconds * SNAPSHOT_RESTS if self._rests else seconds)
            if self._life is not None and self._life.is_open:
                needed = self._life.engine.heard()
            self.say("snapshot", self.machine.snapshot(needed))

    async def _weather(self) -> None:
        """Now and then somebody sets the clock, somebody deposits."""
        while True:
            await asyncio.sleep(1.0)
            if self._chance.happens(self.faults.jump_ppm):
                self.machine.clock.ahead_ns += self._chance.random.choice((-HOUR_NS, HOUR_NS))
                self.say("clock", f"is {self.machine.clock.ahead_ns // HOUR_NS} hours ahead")
            if self._chance.happens(100_000) and not self._rests:
                self._deposit(self._chance.random.choice(self.bots), 10_000_000, Purse.CASH)
            for account, slots in self.machine.chain.latest.owners.items():
                self._leave(account, slots.exit_at_s)

    def _leave(self, account: int, exit_at_s: int) -> None:
        """Who wants to leave may think better of it; in the end everybody has left or stays."""
        step: ExitStep = "requested"
        if exit_at_s:
            step = "finished" if self._chance.happens(950_000) else "cancelled"
            if exit_at_s > self.machine.clock.true_s() and step == "finished":
                return
        elif not self._chance.happens(self.faults.exit_ppm):
            return
        self.say(f"account {account}", f"exit {step}")
        self.machine.chain.exit(account, step)

    def _deposit(self, bot: Bot, amount_usdc6: int, purse: Purse) -> None:
        self.say(bot.name, f"deposits {amount_usdc6} {purse.name}")
        self.machine.chain.deposit(bot.wallet.address_bytes, amount_usdc6, purse)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(self._loop.create_task(work))

    async def _wait(self, seconds: float, enough: Callable[[], bool]) -> bool:
        """Look again and again; False when the time is over. Raises what anybody has raised."""
        end = self._loop.time() + seconds
        while not enough():
            for task in self._tasks:
                if task.done():
                    task.result()
            if self._loop.time() >= end:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    # --- the course of a run -------------------------------------------------------------------
    async def live(self) -> None:
        for bot in self.bots:
            self._deposit(bot, CASH_USDC6, Purse.CASH)
            self._deposit(bot, BOND_USDC6, Purse.BOND)
        people = [person.live() for person in (*self.bots, self.administrator)]
        around = (self._keep_node(), self._keep_snapshots(), self._mine(), self._weather())
        for work in (*around, *people):
            self._start(work)
        await self._wait(TRADING_SECONDS, lambda: False)
        self.say("world", "no more faults")
        self.faults.heal()
        self._rests = True
        for person in (*self.bots, self.administrator):
            person.resting = True
        await self._converge()
        await self._reconcile()
        for _ in range(LEAPS):
            self._leapt_s = self.machine.clock.true_s()
            self.machine.clock.passed_ns += DAYS_PER_LEAP * DAY_NS
            self.machine.chain.freeze()
            self.say("world", f"{DAYS_PER_LEAP} days go by")
            await self._converge()
        await self._reconcile()
        await self._converge()
        self._check()
        assert self._life is not None
        await self._life.stop()

    async def _reconcile(self) -> None:
        assert self._life is not None
        report = await self._life.settling.reconcile()
        assert report.reconciled, report.gaps

    async def _converge(self) -> None:
        converged = await self._wait(HEAL_SECONDS_MAX, self._is_at_rest)
        assert converged, f"not at rest {HEAL_SECONDS_MAX} s after the last fault: {self._unrest()}"

    def _is_at_rest(self) -> bool:
        return not self._unrest()

    def _unrest(self) -> str:
        """What still goes on, in words."""
        life, vault = self._life, self.machine.chain.latest
        if life is None or not life.is_open or life.ended:
            return "the node is down"
        for bot in self.bots:
            if not bot.is_settled:
                return f"{bot.name} does not know all"
        ready = life.engine.ready()
        if ready.last_sequence != ready.durable_sequence or not life.is_quiet:
            return "something is on its way"
        if self._credited != len(vault.credits):
            return "what became free is not credited"
        for account, slots in vault.owners.items():
            b = life.engine.balances(account)
            if slots.exit_at_s:
                return f"account {account} is leaving"
            locked_usdc6 = slots.locked_usdc6 + slots.unlocked_usdc6 - self._ended_usdc6[account]
            held = (b.free_usdc6 + b.held_usdc6, b.escrow_usdc6)
            if held != (slots.free_usdc6, locked_usdc6) or b.pending_usdc6 or b.leaving_usdc6:
                return f"account {account}: {b}, in the vault {slots}"
        [(left,)] = self._rows(
            "SELECT count(*) FROM outgoing WHERE state NOT IN ('RECONCILED', 'RETURNED')"
        )
        if left:
            return f"{left} of settlement's transactions are not final"
        return self._overdue(vault) if self._leapt_s else ""

    def _overdue(self, vault: Vault) -> str:
        """What settlement has to do unasked once days have gone by."""
        assert not vault.is_frozen, "somebody could freeze the vault"
        time_s = self.machine.clock.true_s()
        # Only what was posted before: those days end an auction too, and what it trades is newer.
        [(leases,)] = self._rows(
            f"SELECT count(*) FROM lease WHERE ended IS NULL AND posted_at_s <= {self._leapt_s}"
        )
        if leases:
            return f"{leases} leases are not released"
        [(untold,)] = self._rows(
            f"SELECT count(*) FROM lease WHERE NOT counted AND ended_at_s <= {self._leapt_s}"
        )
        [(unheard,)] = self._rows(
            "SELECT (SELECT coalesce(max(number), 0) FROM ended_leases) - number"
            " FROM ended_leases_booked"
        )
        if untold or unheard:
            return f"the engine has not heard of the end of {untold} leases, nor {unheard} times"
        for account, slots in vault.owners.items():
            if slots.matured_usdc6(time_s) >= COLLECT_USDC6_MIN:
                return f"account {account}: matured earnings are not collected"
        is_silent = time_s - vault.last_heard_s > QUIET_SECONDS_MAX
        return "nothing is heard of the settler" if is_silent else ""

    def _rows(self, sql: str) -> Sequence[Any]:
        database = self.machine.database
        return database.run(database.physical.fetch(sql))

    def _check(self) -> None:
        """In one moment of rest: everything that was promised."""
        assert self._life is not None
        found = verify(self._directory)
        assert found.state_hash == self._life.engine.state_hash(), "replayed to another state"
        self.machine.keep_segments()
        truth = Truth(self.machine.archive)
        assert [EVENT_STRUCT.pack(*e) for e in truth.events] == self._published
        for bot in self.bots:
            truth.check_bot(bot)
        vault = self.machine.chain.latest
        truth.check_fills(vault, self._rows)
        truth.check_releases(vault)
        truth.check_money(vault, self._rows)
        database = self.machine.database
        answers = Answers(
            Database(database.physical), separator(*DOMAIN), lambda n: vault.accounts[n].owner
        )
        database.run(truth.check_signatures(vault.batches, answers))
        truth.check_feeds(self.machine.chain.rounds)
        self.commands = found.sequence
        self.fills = len(truth.fills)
        self.say(
            "world",
            f"all is true: state {found.state_hash}, {self.fills} fills settled,"
            f" {len(truth.void)} void, {len(vault.released)} releases,"
            f" prices of {len(self.machine.chain.rounds)} feeds",
        )

    @property
    def acknowledged(self) -> int:
        return sum(bool(e.acks) for bot in self.bots for e in bot.errands.values())

    async def abandon(self) -> None:
        """After a failure: end whatever still runs."""
        self._tell("abandoned")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._life is not None:
            await self._life.crash(power=False)


def _check_end(reason: str, *, started: bool) -> None:
    """Why a life may end by itself; anything else is the failure of a promise."""
    foreseen = (
        "the engine: the journal's disk failed",
        "DiskFailed: the journal's disk failed",
        "SettlementHalted: settlement is halted: the engine: ",
    )
    if not started:
        foreseen += ("DatabaseUnavailable",)  # later it is connected to again
    assert reason.startswith(foreseen) or not reason, f"the node ended: {reason}"


@contextlib.contextmanager
def _unlogged() -> Generator[None]:
    """What is logged of the faults is in the trace; and whoever keeps a record of an error, as
    pytest does until the test's end, keeps the whole life that it happened in."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@_unlogged()
def run(seed: int, databases: Databases, tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """One seed, whatever it takes of real time; says what came of it, and raises nothing."""
    ram = Path("/dev/shm")
    loop = VirtualLoop()
    failure = ""
    with (
        databases.fresh() as sessions,
        tempfile.TemporaryDirectory(dir=ram if ram.is_dir() else None) as directory,
    ):
        world = World(seed, loop, Path(directory), sessions, tell)
        try:
            loop.run_until_complete(world.live())
        except Exception as error:  # noqa: BLE001 - whatever it is, this seed has found it
            failure = f"{type(error).__name__}: {error}"
            tell("".join(traceback.format_exception(error)))
        with contextlib.suppress(Exception):
            loop.run_until_complete(world.abandon())
        world.machine.database.end()
    loop.close()
    gc.collect()  # lives are few objects in cycles, of gigabytes that may be touched
    return Outcome(
        seed, failure, world.trace_hash, world.fault_names, world.lives, world.commands,
        world.acknowledged, world.fills, loop.time(),
    )  # fmt: skip
