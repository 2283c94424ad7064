"""Settlement: from the engine's fills to final escrow on chain, and back into the engine.

    events ─▶ ledger ─▶ sealed batch ─▶ vault ─▶ final ─▶ confirmations ─▶ engine
    final logs of the vault: deposits, earnings, ends, exits ──▶ engine      index ─▶ feeds
                             leases ─▶ release ─▶ vault

Owns the order of these steps. Invariant: every side effect is permitted by something already
stored and is harmless when repeated, so the process may stop anywhere and `open` goes on there;
when money does not add up by one µUSDC, nothing more is settled. The node and tests call this.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from engine.index import SpotIndex
from engine.port import Batch, Port
from engine.records import ACCOUNT_ORDERS_MAX, EFFECTS_MAX, EVENT_STRUCT, Balances, Command
from engine.rejects import CompexError
from settlement import database as db
from settlement.answers import Answering, Answers
from settlement.chain import Chain
from settlement.deliver import Delivery
from settlement.errors import (
    ChainUnavailable,
    DatabaseUnavailable,
    LedgerError,
    SettlementHalted,
    TransactionNotMined,
    TransactionRefused,
)
from settlement.exits import Exits
from settlement.fees import FeePolicy
from settlement.fence import Fence
from settlement.finality import Finality
from settlement.follow import Credit, Follower
from settlement.leases import Leases
from settlement.ledger import Ledger, Numbered
from settlement.oracle import Oracle, Published
from settlement.orders import separator
from settlement.outgoing import Outbox
from settlement.reconcile import Report, Sides, compare
from settlement.sealing import Batches, Triggers
from settlement.signatures import POSTING_S
from settlement.undoing import Undoing
from settlement.upkeep import Collections, Heartbeats, Upkeep
from settlement.vault import VaultState
from settlement.withdrawals import Withdrawals
from settlement.withholding import Withholding

EVENTS_QUEUED_MAX: Final = 1 << 18  # then the engine takes no more commands until they are booked
EVENTS_PER_POSTING_MAX: Final = 1 << 12  # in one database transaction; bounds the pause it makes
CLOSINGS_PER_TURN_MAX: Final = 64
UNREAD_SECONDS_MAX: Final = 6 * 3_600  # of the vault's logs, while batches are sealed
ENDS_PER_TURN_MAX: Final = 1_000
BATCHES_PER_TURN_MAX: Final = 16
QUIET_ATTEMPTS_MAX: Final = 20  # to find the engine between two groups of commands
QUIET_SECONDS: Final = 0.005

assert UNREAD_SECONDS_MAX < POSTING_S, "what is taken back now is read before it is void"
assert CLOSINGS_PER_TURN_MAX * EFFECTS_MAX > ACCOUNT_ORDERS_MAX, "one turn empties an account"

_Done = TypeVar("_Done")
# They pass, or somebody else sees to it: the next turn tries again.
_CHAIN_FAILURES: Final = (ChainUnavailable, TransactionNotMined, TransactionRefused)

log = logging.getLogger("compex.settlement")


class Settings(NamedTuple):
    turn_seconds: float = 1.0  # between two turns of `run`
    turns_per_reconciliation: int = 60
    sign_within_ns: int = 0  # fills that stay unsigned much longer are undone; 0: none are
    batches: Triggers = Triggers()
    fees: FeePolicy = FeePolicy()


class Turn(NamedTuple):
    """What one pass did."""

    events: int  # booked
    deposits: int  # and earnings, submitted to the engine
    sealed_fills: int
    steps: int  # of all that the vault is told: batches, releases, withdrawals, answers, ...
    confirmations: int  # submitted to the engine
    points: int  # prices published
    exits: int  # submitted because wallets leave the vault, or did not sign for their fills

    @property
    def idle(self) -> bool:
        return not any(self)


class Summary(NamedTuple):
    """Totals since the ledger began."""

    fills: int
    volume_lots: int
    notional_usdc6: int
    buyer_fees_usdc6: int  # in escrow on chain
    seller_fees_usdc6: int  # of the same fills: due when their proceeds are released
    fills_safe: int  # in batches mined so deep that they will hardly be reorganised away
    fills_settled: int  # in batches that are RECONCILED
    batches: int  # RECONCILED
    withdrawals: int  # RECONCILED
    refused_withdrawals: int
    quarantined_accounts: int
    voided_fills: int
    foreign_transactions: int  # of the settler's key, signed by nobody here: it is not ours alone
    gas_used: int  # by the transactions of batches
    gas_per_fill: int  # rounded down; 0 before the first


class Settlement:
    """`open` it before the engine starts, so that no event is missed."""

    def __init__(
        self,
        settings: Settings,
        port: Port,
        chain: Chain,
        clock: Callable[[], int],
        database: db.Database,
        connect: Callable[[], Awaitable[db.Database]],
        ledger: Ledger,
        fence: Fence,
        last_deposit: int,
        index: SpotIndex | None,
    ) -> None:
        self._settings = settings
        self._port = port
        self._chain = chain
        self._clock = clock
        self._database = database
        self._connect = connect  # once more, after the connection was lost
        self._ledger = ledger
        self._index = index
        self._follower = Follower(database, fence, ledger, chain)
        self._delivery = Delivery(port, self._follower, last_deposit)
        self._fence = fence
        self._finality = Finality(database, fence, chain)
        self._batches = Batches(database, fence, ledger, chain, clock, settings.batches)
        self._leases = Leases(database, fence, chain, clock)
        self._upkeep = Upkeep(database, fence, chain, clock)
        domain = separator(chain.chain_id, chain.vault)
        answers = Answers(database, domain, port.owner_of)
        self._answering = Answering(database, fence, chain, answers)
        kinds = {
            "answer": self._answering,
            "settle": self._batches,
            "withdraw": Withdrawals(database, chain),
            "release": self._leases,
            "collect": Collections(database, chain),
            "heartbeat": Heartbeats(database, chain),
        }
        self._outbox = Outbox(database, fence, chain, clock, kinds, settings.fees)
        self._undoing = Undoing(database, port)
        self._exits = Exits(database, chain, port, self._undoing, clock)
        since_ns = clock()
        self._withholding = Withholding(database, self._undoing, settings.sign_within_ns, since_ns)
        self._oracle = Oracle(chain, clock)
        self._opened_at = ledger.watermark
        self._queue: deque[Batch] = deque()
        self._queued = 0
        self._received_number = 0
        self._continues = False  # that engine, ledger and vault belong together was checked
        self._halted = ""
        self._failed = ""  # why, in words, no turn was finished since; empty when the last one was
        self._turn_lock = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        settings: Settings,
        port: Port,
        chain: Chain,
        database_url: str,
        clock: Callable[[], int],
        index: SpotIndex | None = None,
        connect: Callable[[str], Awaitable[db.Database]] = db.connect,
    ) -> "Settlement":
        """Connect to the database, see how far it is, subscribe to the engine.

        `clock` gives ns since the Unix epoch. `index` is fed here, and with it only here.
        Raises DatabaseUnavailable, DatabaseInUse, SchemaMismatch.
        """
        connecting = partial(connect, database_url)
        database = await connecting()
        try:
            ledger = await Ledger.open(database)
            self = cls(
                settings, port, chain, clock, database, connecting, ledger,
                await Fence.take(database), await ledger.last_deposit(), index,
            )  # fmt: skip
            port.subscribe(self._receive, self._has_room, heard=self._booked_before)
            if index is not None:
                port.subscribe(index.on_batch, keeper=index)
        except BaseException:
            await database.close()
            raise
        return self

    async def close(self) -> None:
        """Finish the turn under way and disconnect. What is left is done after the next `open`."""
        async with self._turn_lock:
            self._halted = self._halted or "closed"
            await self._database.close()

    @property
    def halted(self) -> str:
        """Why nothing more is settled, in words; empty while all is well."""
        return self._halted

    @property
    def waiting(self) -> str:
        """Why nothing is sent to the vault though it could be, in words; it passes by itself."""
        waiting = self._failed or self._finality.waiting or self._outbox.waiting
        return waiting or self._upkeep.warning or self._oracle.warning

    @property
    def unbooked_events(self) -> int:
        """Heard from the engine and not yet in the ledger."""
        return self._queued

    # --- from the engine ------------------------------------------------------------------------
    def _receive(self, batch: Batch) -> None:
        last = batch.first_number + len(batch.events) - 1
        self._received_number = last
        mark = self._opened_at
        if batch.first_number <= mark.event_number <= last:
            event = batch.events[mark.event_number - batch.first_number]
            if EVENT_STRUCT.pack(*event) != mark.event:
                self._halted = (
                    f"event {mark.event_number} of the journal is not the one that was booked"
                )
        if last > mark.event_number:
            self._queue.append(batch)
            self._queued += len(batch.events)

    def _booked_before(self) -> int:
        """The last event that need not come again; the one it ends with is compared, see above."""
        return self._ledger.watermark.event_number - 1

    def _has_room(self) -> bool:
        return self._queued < EVENTS_QUEUED_MAX

    async def _book(self, up_to: int) -> int:
        """Book queued events with numbers up to `up_to`, which is the end of a batch."""
        booked = 0
        while self._queue and self._queue[0].first_number <= up_to:
            batches: list[Batch] = []
            events = 0
            for batch in self._queue:
                if batch.first_number > up_to or events >= EVENTS_PER_POSTING_MAX:
                    break
                batches.append(batch)
                events += len(batch.events)
            booked += await self._ledger.post([
                Numbered(number, event)
                for batch in batches
                for number, event in enumerate(batch.events, batch.first_number)
            ])  # fmt: skip
            for batch in batches:
                self._queue.popleft()
                self._queued -= len(batch.events)
                self._delivery.booked(batch.events)
        return booked

    # --- one pass -------------------------------------------------------------------------------
    async def turn(self) -> Turn:
        """Do everything that can be done now, once.

        Raises SettlementHalted when only a person can go on, ChainError and DatabaseError when
        the next turn may do better; nothing is lost by any of them.
        """
        async with self._working():
            done = await self._turn()
            self._failed = ""
            return done

    async def reconcile(self) -> Report:
        """Compare engine, ledger and vault. A gap halts settlement; the report names it."""
        async with self._working():
            report = await self._reconcile()
            if report.gaps:
                self._halted = f"{len(report.gaps)} gaps, the first: {report.gaps[0]}"
            else:
                await self._ledger.close_periods()
            return report

    @asynccontextmanager
    async def _working(self) -> AsyncGenerator[None]:
        """One at a time, not when halted; what only a person can repair halts for good."""
        async with self._turn_lock:
            if self._halted:
                raise SettlementHalted(self._halted)
            try:
                yield
            except SettlementHalted as error:
                self._halted = error.reason
                raise
            except (*_CHAIN_FAILURES, DatabaseUnavailable) as error:
                self._failed = str(error)
                raise
            except LedgerError as error:
                self._halted = str(error)
                raise SettlementHalted(self._halted) from error
            except CompexError as error:  # from the port: the engine has stopped
                raise SettlementHalted(f"the engine: {error}") from error

    async def _turn(self) -> Turn:
        events = await self._catch_up()
        final_block = await self._finality.look()
        if self._finality.waiting:
            return Turn(events, 0, 0, 0, 0, 0, 0)
        if not self._continues:
            await self._check_continuity(final_block)
        await self._read_logs(final_block)  # what was taken back there is not sealed any more
        held = await self._held()
        steps = await self._outbox.advance(held)
        confirmations, booked = await self._confirm(final_block)
        await self._read_logs(final_block)  # beyond a batch that is confirmed only now
        ends, heard = await self._end_leases()
        confirmations, events = confirmations + ends, events + heard
        deposits = await self._delivery.credits()
        exits, heard = await self._follow_exits()
        if self._settings.sign_within_ns:
            undone, booked_again = await self._undo_withheld()
            exits, heard = exits + undone, heard + booked_again
        events += booked + heard
        sealed, sent = await self._seal_and_send(held)
        planned = await self._answering.plan()
        planned += await self._leases.build(await self._follower.seen())
        planned += await self._upkeep.plan(final_block)
        if planned:
            sent += await self._outbox.advance(held)
        if sent:  # what was mined just now may be final
            final_block = await self._finality.look()
        confirmed, booked = await self._confirm(final_block)
        events += booked
        if deposits:
            events += await self._catch_up()
        points = 0
        if self._index is not None:
            points = await self._oracle.publish(self._index.values(self._clock()))
        confirmations += confirmed
        return Turn(events, deposits, sealed, steps + sent, confirmations, points, exits)

    async def _confirm(self, final_block: int) -> tuple[int, int]:
        """Tell the engine what of ours is final: (commands submitted, events booked)."""
        due = await self._outbox.confirmations(final_block)
        confirmations = self._delivery.payments(due)
        if not confirmations:
            return 0, 0
        booked = await self._catch_up()
        await self._outbox.confirmations(final_block)  # those just booked become RECONCILED
        return confirmations, booked

    async def _read_logs(self, final_block: int) -> int:
        """Write down what the vault has said up to this block; where that ends now. Not beyond a
        batch that the engine has not confirmed: what follows from it would come out of nothing."""
        seen = await self._follower.seen()
        if final_block <= seen:  # a node may lag behind the one that was asked before
            return seen
        state = await self._chain.vault_state(final_block)
        if state.head > await self._batches.last_reconciled():
            return seen
        return await self._follower.read(final_block)

    async def _end_leases(self) -> tuple[int, int]:
        """Tell the engine of leases that are over: (commands submitted, events booked)."""
        if not await self._leases.have_ended():
            return 0, 0
        read_until_s = await self._chain.block_time_s(await self._follower.seen())
        await self._leases.count_ends(read_until_s, self._port.markets())
        ends = self._delivery.commands(await self._leases.ends(ENDS_PER_TURN_MAX))
        return ends, await self._catch_up() if ends else 0

    async def _held(self) -> Mapping[str, str]:
        """What must not be sealed or signed now, and why: no batch while so much of what the vault
        has said is not read that it may be void by the time it is posted."""
        seen = await self._follower.seen()
        unread_s = self._clock() // 1_000_000_000 - await self._chain.past_s(seen)
        # Where blocks come with transactions alone, there may be none behind it for long.
        if unread_s <= UNREAD_SECONDS_MAX or seen == (await self._chain.heights()).newest:
            return {}
        return {"settle": f"of what the vault has said the last {unread_s} s are not read"}

    async def _seal_and_send(self, held: Mapping[str, str]) -> tuple[int, int]:
        """(fills sealed, steps of what is sent)"""
        sealed = steps = 0
        for _ in range(BATCHES_PER_TURN_MAX):
            fills = 0 if "settle" in held else await self._batches.seal()
            steps += await self._outbox.advance(held)
            if not fills:
                break
            sealed += fills
        return sealed, steps

    async def _follow_exits(self) -> tuple[int, int]:
        """Do what follows from wallets leaving the vault: (commands submitted, events booked)."""
        if not await self._exits.any():
            return 0, 0
        booked = await self._catch_up()
        commands = self._delivery.commands(await self._exits.closings())
        booked += await self._catch_up()
        closed, heard = await self._close(self._exits.entanglements)
        commands, booked = commands + closed, booked + heard
        await self._exits.mark()
        commands += self._delivery.commands(await self._undoing.commands())
        booked += await self._catch_up()
        commands += self._delivery.commands(await self._exits.reopenings())
        booked += await self._catch_up()
        commands += self._delivery.commands(await self._exits.drainings())
        booked += await self._catch_up()
        return commands, booked

    async def _undo_withheld(self) -> tuple[int, int]:
        """Undo fills that somebody did not sign for: (commands submitted, events booked)."""
        now_ns = self._clock()
        commands, booked = await self._close(partial(self._withholding.closings, now_ns))
        await self._withholding.mark(now_ns)
        commands += self._delivery.commands(await self._undoing.commands())
        booked += await self._catch_up() if commands else 0
        # Each turn: the engine may have had no room for all, or this process stopped before.
        reopened = self._delivery.commands(await self._exits.reopenings())
        booked += await self._catch_up() if reopened else 0
        return commands + reopened, booked

    async def _close(self, closings: Callable[[], Awaitable[list[Command]]]) -> tuple[int, int]:
        """Close accounts until none of their orders is left: (commands submitted, events booked).
        One command cancels so many orders and no more."""
        commands = booked = 0
        for _ in range(CLOSINGS_PER_TURN_MAX):
            closed = self._delivery.commands(await closings())
            if not closed:
                break
            commands += closed
            booked += await self._catch_up()
        return commands, booked

    async def _catch_up(self) -> int:
        await self._port.settled()
        return await self._book(self._received_number)

    async def _check_continuity(self, final_block: int) -> None:
        """That the journal, the ledger and the vault are each other's. Once, after the replay."""
        booked = self._ledger.watermark.event_number
        if self._received_number < booked:
            raise SettlementHalted(
                f"the engine has {self._received_number} events, the ledger has booked {booked}"
            )
        state = await self._chain.vault_state(final_block)
        last_batch = await self._batches.last()
        if state.head > last_batch:
            raise SettlementHalted(
                f"the vault has settled batch {state.head}, the ledger has sealed {last_batch}"
            )
        # A ledger from before products were booked learns them here; afterwards from the events.
        markets = self._port.markets()
        await self._ledger.list_products([(m.instrument, m.product) for m in markets])
        marks = await self._follower.marks()
        if marks.credit < await self._ledger.last_deposit():
            raise SettlementHalted("the ledger has more deposits and earnings than were read")
        if state.deposits < marks.deposit:
            raise SettlementHalted("the vault has fewer deposits than the ledger")
        if state.exits < marks.exit:
            raise SettlementHalted("the vault has fewer exits than the ledger")
        self._continues = True

    # --- reconciliation -------------------------------------------------------------------------
    async def _reconcile(self) -> Report:
        engine = await self._quiet_engine()
        # Whatever comes in from here on is booked later: both sides stand at this event.
        await self._book(self._received_number)
        state, uncredited = await self._vault_state()
        vault = await self._chain.vault_accounts(state.block_number)
        return compare(
            Sides(
                event_number=self._ledger.watermark.event_number,
                engine=engine,
                ledger=await self._ledger.balances(),
                trial=await self._ledger.trial_balance(),
                vault={slots.account: slots for slots in vault},
                state=state,
                moved=await self._ledger.moved_by_vault(),
                uncredited=uncredited,
                unconfirmed=[
                    *await self._outbox.executed(state.block_number),
                    *await self._exits.due(),
                ],
                ahead=await self._outbox.confirmed_after(state.block_number),
            )
        )

    async def _quiet_engine(self) -> dict[int, Balances] | None:
        """The engine's balances at the last event received; None if it was never quiet.

        Between two groups of commands the engine may have matched more than it has published.
        """
        for _ in range(QUIET_ATTEMPTS_MAX):
            await self._port.settled()
            ready = self._port.ready()
            if ready.last_sequence == ready.durable_sequence:
                balances: dict[int, Balances] = {}
                while any(self._port.owner_of(len(balances) + 1)):
                    balances[len(balances) + 1] = self._port.balances(len(balances) + 1)
                return balances
            await asyncio.sleep(QUIET_SECONDS)
        return None

    async def _vault_state(self) -> tuple[VaultState, list[Credit]]:
        """The vault at the block up to which its logs are read, and what of them is not booked."""
        final_block = await self._finality.look()
        if self._finality.waiting:
            raise ChainUnavailable(self._finality.waiting)
        block = await self._read_logs(final_block)
        state = await self._chain.vault_state(block)
        if state.head and not await self._batches.has(state.head, state.head_root):
            raise SettlementHalted(f"the vault's batch {state.head} is not the one sealed here")
        marks = await self._follower.marks()
        for what, counted, seen in (
            ("deposit", state.deposits, marks.deposit),
            ("exit", state.exits, marks.exit),
        ):
            if counted != seen:
                raise SettlementHalted(f"the vault counts {what} {counted}, its logs {seen}")
        last = await self._ledger.last_deposit()
        return state, await self._follower.credits(last, marks.credit - last)

    # --- reads ------------------------------------------------------------------------------------
    async def summary(self) -> Summary:
        async with self._turn_lock:
            row = await self._database.row(_SUMMARY)
        assert row is not None
        return Summary(**row, gas_per_fill=row["gas_used"] // max(row["fills_settled"], 1))

    async def published(self) -> list[Published]:
        """The feeds, read back through AggregatorV3Interface."""
        return await self._oracle.published()

    async def run(self) -> None:
        """Turn after turn until cancelled, through failures of chain and database that pass.

        Raises what else `turn` raises, and DatabaseInUse when another process settles by now.
        """
        turns = 0
        while True:
            turns += 1  # also one that failed: else who fails it for long hides every gap
            await self._try(self.turn)
            if turns % self._settings.turns_per_reconciliation == 0:
                report = await self._try(self.reconcile)
                if report is not None and report.gaps:
                    raise SettlementHalted(self._halted)
            await asyncio.sleep(self._settings.turn_seconds)

    async def _try(self, step: Callable[[], Awaitable[_Done]]) -> _Done | None:
        """None if chain or database failed, and that passes."""
        try:
            return await step()
        except _CHAIN_FAILURES as error:
            log.warning("the chain: %s; trying again", error)
        except DatabaseUnavailable as error:
            log.warning("the database: %s; connecting again", error)
            await self._connect_again()
        return None

    async def _connect_again(self) -> None:
        """Until it succeeds. Of a transaction that was being committed nobody knows whether it is:
        the database says, and what it has is not booked again."""
        while True:
            await asyncio.sleep(self._settings.turn_seconds)
            with suppress(DatabaseUnavailable):
                async with self._turn_lock:
                    await self._database.replace(await self._connect())
                    await self._ledger.reopen()
                    await self._fence.retake()
                log.warning("the database is there again")
                return


_SUMMARY: Final = """
    SELECT fills, volume_lots, notional_usdc6, buyer_fees_usdc6, seller_fees_usdc6,
           fills_safe, fills_settled, batches, withdrawals, refused_withdrawals,
           quarantined_accounts, voided_fills, foreign_transactions, gas_used
    FROM (SELECT count(*) AS fills, coalesce(sum(qty_lots), 0)::bigint AS volume_lots,
                 coalesce(sum(notional_usdc6), 0)::bigint AS notional_usdc6 FROM fill) matched,
         (SELECT coalesce(sum(b.fills), 0)::bigint AS fills_safe
          FROM outgoing o JOIN batch b USING (id)
          WHERE o.kind = 'settle' AND o.state IN ('SAFE', 'FINAL', 'RECONCILED')) safe,
         (SELECT coalesce(sum(f.buyer_fee_usdc6), 0)::bigint AS buyer_fees_usdc6,
                 coalesce(sum(f.seller_fee_usdc6), 0)::bigint AS seller_fees_usdc6
          FROM outgoing o JOIN fill f ON f.batch_id = o.id
          WHERE o.kind = 'settle' AND o.state = 'RECONCILED') charged,
         (SELECT coalesce(sum(b.fills), 0)::bigint AS fills_settled, count(*) AS batches,
                 coalesce(sum(o.gas_used), 0)::bigint AS gas_used
          FROM outgoing o JOIN batch b USING (id)
          WHERE o.kind = 'settle' AND o.state = 'RECONCILED') settled,
         (SELECT count(*) FILTER (WHERE state = 'RECONCILED') AS withdrawals,
                 count(*) FILTER (WHERE state IN ('REFUSED', 'RETURNED')) AS refused_withdrawals
          FROM outgoing WHERE kind = 'withdraw') withdrawn,
         (SELECT count(*) AS quarantined_accounts FROM quarantine) quarantined,
         (SELECT count(*) AS foreign_transactions FROM foreign_nonce) foreign_ones,
         (SELECT count(*) AS voided_fills FROM fill WHERE void_number IS NOT NULL) voided
"""
