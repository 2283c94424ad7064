"""What was promised, held against what is there: the journal, the specification, ledger and vault.

Owns the comparisons at the end of a run. Invariant: nothing here asks the node; the journal's
commands are read from its files and answered by the executable specification, the ledger is read
by SQL and the vault on chain. `World` calls it once everything has come to rest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compex_client import messages as m
from compex_client.units import parse_qty, qty_text

from engine.journal import read
from engine.records import (
    PPM,
    Balances,
    Command,
    CommandKind,
    Event,
    EventKind,
    Purse,
    Side,
    decode_commands,
)
from engine.reference import Reference
from gateway.translate import balances_of
from settlement import batch
from settlement.answers import Answers, read_fill
from settlement.chain import PRICE_E8_PER_TICK, PricePoint
from settlement.products import settled
from settlement.vault import Place
from tests.simulate.bots import Bot, Errand
from tests.simulate.vault import EXCHANGE, Credit, Posted, Vault

Rows = Callable[[str], Sequence[Any]]  # of one SQL query


class Settled(NamedTuple):
    """A fill as both parties, and not the settler alone, know it."""

    buyer: int
    seller: int
    price_ticks: int
    qty_lots: int
    series: int
    window: int
    buyer_order: int  # its id
    seller_order: int
    buyer_fee_ppm: int
    seller_fee_ppm: int


class Truth:
    """The whole history once more, from the files, by the slow rules."""

    def __init__(self, directory: Path) -> None:
        commands: list[Command] = []
        for frame in read(directory):
            commands += decode_commands(frame.commands)
        self.reference = Reference()
        self.events: list[Event] = self.reference.apply_all(commands)
        named = {
            c.sequence: (c.account, c.client_id)
            for c in commands
            if c.client_id and c.kind < CommandKind.PART
        }
        # The first event of a named command is its answer.
        self.done: dict[tuple[int, int], list[Event]] = defaultdict(list)
        for event in self.events:
            name = named.pop(event.sequence, None)
            if name is not None and event.kind != EventKind.REJECTED:
                self.done[name].append(event)
        void = {e.reference for e in self.events if e.kind == EventKind.FILL_VOIDED}
        fills = [n for n, e in enumerate(self.events, 1) if e.kind == EventKind.FILL]
        self.fills = [number for number in fills if number not in void]
        self.void = sorted(void)
        self._stood = _histories(self.events)

    # --- what the bots were told ---------------------------------------------------------------
    def check_bot(self, bot: Bot) -> None:
        for errand in bot.errands.values():
            where = f"{bot.name}, errand {errand.client_id} ({errand.method})"
            assert not errand.is_unknown, f"{where}: never cleared up"
            self._check_errand(errand, self.done[bot.account, errand.client_id], where)
        reference = self.reference
        mine = [o for o in reference.orders.values() if o.account == bot.account]
        assert bot.view.orders == {o.order_id: qty_text(o.left) for o in mine}, bot.name
        assert not bot.cancelled & {o.order_id for o in mine}, "cancelled means cancelled"
        assert bot.view.balances == balances_of(reference.balances(bot.account)), bot.name
        for instrument, stream in enumerate(bot.books):
            sides = reference.books[instrument].sides
            found = (dict(stream.book.bids), dict(stream.book.asks))
            for side, levels in zip((Side.BUY, Side.SELL), found, strict=True):
                true = {p: sum(o.qty_lots for o in queue) for p, queue in sides[side].items()}
                assert levels == true, f"{bot.name}: the book of {stream.book.market}"
            assert stream.resyncs == 0, "no delta was missing, no checksum was wrong"

    def _check_errand(self, errand: Errand, done: list[Event], where: str) -> None:
        assert len(done) <= 1, f"{where}: done {len(done)} times"
        if not errand.acks and not errand.seen:
            assert not done, f"{where}: was said not to be done, and was"
            return
        assert done, f"{where}: was said to be done, and is lost"
        [event] = done
        for ack in errand.acks:
            assert ack.sequence == event.sequence, f"{where}: acknowledged as another command"
            expected = event.reference if errand.method == "withdraw" else event.order_id
            given = ack.withdrawal_id if errand.method == "withdraw" else ack.order_id
            if errand.method in {"place", "withdraw"}:
                assert given == expected, f"{where}: acknowledged under another number"
        for info in errand.seen:
            stood = (parse_qty(info.left), info.state)
            assert info.order_id == event.order_id, f"{where}: asked for, another order was told"
            assert stood in self._stood[event.order_id], f"{where}: it never stood at {stood}"

    # --- what was settled ----------------------------------------------------------------------
    def check_money(self, vault: Vault, rows: Rows) -> None:
        """Engine = ledger = vault for every account."""
        balances = {n: self.reference.balances(n) for n in self.reference.accounts}
        assert balances.keys() == vault.owners.keys()
        ledger: dict[int, Counter[str]] = defaultdict(Counter)
        ended: dict[int, Counter[str]] = defaultdict(Counter)  # with what the vault has moved since
        for account, bucket, amount_usdc6, by_vault_usdc6 in rows(
            "SELECT account, bucket::text, balance_usdc6, by_vault_usdc6 FROM ledger_account"
        ):
            ledger[account][bucket] = amount_usdc6 - by_vault_usdc6
            ended[account][bucket] = amount_usdc6
        told_usdc6: Counter[int] = Counter()  # to the engine, of leases that are over
        for e in self.events:
            if e.kind == EventKind.LEASES_ENDED:
                told_usdc6[e.account] += e.amount_usdc6
        [(open_leases,)] = rows("SELECT count(*) FROM lease WHERE NOT counted")
        for account, b in balances.items():
            where = f"account {account}"
            over = b.escrow_usdc6 == b.bond_locked_usdc6 == 0
            assert over or open_leases, f"{where}: what was delivered is still held"
            assert ledger[account] == _buckets(b), f"{where}: engine and ledger"
            assert b.pending_usdc6 == b.leaving_usdc6 == 0, f"{where}: not at rest"
            slots = vault.accounts[account]
            locked_usdc6 = slots.locked_usdc6 + slots.unlocked_usdc6 - told_usdc6[account]
            held = (slots.free_usdc6, locked_usdc6, slots.bond_usdc6)
            bond_usdc6 = b.bond_free_usdc6 + b.bond_held_usdc6 + b.bond_locked_usdc6
            due = (b.free_usdc6 + b.held_usdc6, b.escrow_usdc6, bond_usdc6)
            assert due == held, f"{where}: engine and vault"
        for account, slots in vault.accounts.items():
            found = (ended[account]["escrow"], ended[account]["earnings"])
            assert found == (slots.locked_usdc6, slots.earned_usdc6), f"{account}: ledger and vault"
        assert ended[EXCHANGE]["settler_bond"] == vault.settler_bond_usdc6
        came_usdc6 = sum(vault.deposits_usdc6)
        assert came_usdc6 == vault.held_usdc6 + sum(vault.paid_usdc6.values()), "it is conserved"
        [(differing,)] = rows(
            "SELECT count(*) FROM ledger_account a WHERE balance_usdc6 <> (SELECT"
            " coalesce(sum(amount_usdc6), 0) FROM posting p"
            " WHERE (p.account, p.bucket) = (a.account, a.bucket))"
        )
        [(total_usdc6,)] = rows("SELECT sum(balance_usdc6) FROM ledger_account")
        assert (differing, total_usdc6) == (0, 0), "the trial balance"
        credited = [
            (e.reference, Credit(e.account, e.amount_usdc6, e.side == Purse.BOND))
            for e in self.events
            if e.kind == EventKind.DEPOSITED
        ]
        assert credited == list(enumerate(vault.credits, 1)), "what became free is credited once"

    def check_fills(self, vault: Vault, rows: Rows) -> None:
        """Each fill is in one batch, or void; in the vault it is what the journal says it is."""
        booked = rows(
            "SELECT f.event_number FROM fill f JOIN outgoing o"
            " ON o.kind = 'settle' AND o.id = f.batch_id AND o.state = 'RECONCILED'"
            " ORDER BY f.event_number"
        )
        assert [number for (number,) in booked] == self.fills, "every fill is booked once"
        undone = rows(
            "SELECT event_number FROM fill WHERE void_number IS NOT NULL AND batch_id IS NULL"
            " ORDER BY event_number"
        )
        assert [number for (number,) in undone] == self.void, "what is void is not settled"
        orders = {
            (account, number): order_id
            for account, number, order_id in rows(
                "SELECT account, number, order_id FROM signed_order"
            )
        }
        found = Counter(
            Settled._make([
                *fill[:6], orders[fill[0], fill[6]], orders[fill[1], fill[7]], *fill[8:],
            ])
            for posted in vault.batches
            for fill in batch.unpack(posted.packed).tolist()
        )  # fmt: skip
        assert found == Counter(self._settled()), "every fill is settled once"

    def _settled(self) -> Iterator[Settled]:
        """What the vault has to know of the fills that are not void."""
        product_of = {
            e.instrument: e.product for e in self.events if e.kind == EventKind.MARKET_LISTED
        }
        for number in self.fills:
            e = self.events[number - 1]
            taker = (e.account, e.order_id, e.taker_fee_ppm)
            maker = (e.counter_account, e.counter_order_id, e.maker_fee_ppm)
            bought, sold = (taker, maker) if e.side == Side.BUY else (maker, taker)
            product = settled(product_of[e.instrument])
            yield Settled(
                bought[0], sold[0], e.price_ticks, e.qty_lots, product.series, product.window,
                bought[1], sold[1], bought[2], sold[2],
            )  # fmt: skip

    def check_releases(self, vault: Vault) -> None:
        """Each lease was paid out once, in full: nobody has stopped or reported one."""
        leases = {
            (batch_id, place): fill
            for batch_id, posted in enumerate(vault.batches, 1)
            for place, fill in enumerate(batch.unpack(posted.packed).tolist())
        }
        assert vault.closed == leases.keys(), "every lease is released"
        for released in vault.released:
            for index, *record in released.records.tolist():
                buyer, seller, price_ticks, qty_lots, *_, buyer_fee, seller_fee = leases[
                    released.batch_id, index
                ]
                notional_usdc6 = price_ticks * qty_lots
                sellers_usdc6 = notional_usdc6 * seller_fee // PPM
                fees_usdc6 = notional_usdc6 * buyer_fee // PPM + sellers_usdc6
                due = [buyer, seller, notional_usdc6 - sellers_usdc6, 0, fees_usdc6]
                assert record == due, f"lease {released.batch_id}:{index} pays otherwise"

    async def check_signatures(self, batches: Sequence[Posted], answers: Answers) -> None:
        """Whichever fill was asked about, with all of its orders' fills, could be answered for.
        Raises NoAnswer."""
        lots: Counter[tuple[int, int]] = Counter()
        places: list[tuple[Place, int]] = []
        for batch_id, posted in enumerate(batches, 1):
            rows = batch.pack(batch.unpack(posted.packed))
            for index, row in enumerate(rows):
                fill = Place(batch_id, index, int.from_bytes(row.tobytes(), "big"), ())
                places.append((fill, posted.time_s))
        for place, _ in places:
            fill = read_fill(place.fill)
            for is_buy in (True, False):
                lots[fill.party(is_buy)] += fill.qty_lots
        for place, posted_at_s in places:
            fill = read_fill(place.fill)
            bought, sold = (lots[fill.party(is_buy)] for is_buy in (True, False))
            await answers.answer(place, bought, sold, posted_at_s)

    def check_feeds(self, rounds: dict[int, list[PricePoint]]) -> None:
        """Each product's rounds go forward in time, and say what trades there were."""
        traded = {
            e.price_ticks * PRICE_E8_PER_TICK for e in self.events if e.kind == EventKind.FILL
        }
        for points in rounds.values():
            ends = [point.window_end_s for point in points]
            assert ends == sorted(set(ends)), "one round for one window"
            for point in points:
                assert min(traded) <= point.price_e8 <= max(traded), "a price that nobody paid"


def _buckets(b: Balances) -> Counter[str]:
    return Counter(
        cash=b.free_usdc6 + b.held_usdc6,
        pending=b.pending_usdc6,
        escrow=b.escrow_usdc6,
        leaving=b.leaving_usdc6,
        bond=b.bond_free_usdc6 + b.bond_held_usdc6 + b.bond_locked_usdc6,
    )


def _histories(events: Sequence[Event]) -> dict[int, list[tuple[int, m.OrderState]]]:
    """For each order id every (lots left, state) in which it ever stood."""
    stood: dict[int, list[tuple[int, m.OrderState]]] = {}

    def take(order_id: int, lots: int, end: m.OrderState) -> None:
        left = stood[order_id][-1][0] - lots
        stood[order_id].append((left, "open" if left else end))

    for e in events:
        match e.kind:
            case EventKind.ACCEPTED:
                stood[e.order_id] = [(e.qty_lots, "open")]
            case EventKind.FILL:
                take(e.order_id, e.qty_lots, "filled")
                take(e.counter_order_id, e.qty_lots, "filled")
            case EventKind.DECREMENTED:
                take(e.order_id, e.qty_lots, "cancelled")
                take(e.counter_order_id, e.qty_lots, "cancelled")
            case EventKind.CANCELLED:
                take(e.order_id, e.qty_lots, "cancelled")
            case EventKind.AMENDED:
                stood[e.order_id].append((e.qty_lots, "open"))
            case _:
                pass
    return stood
