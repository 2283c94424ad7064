"""What was promised, held against what is there: the journal, the specification, ledger and vault.

Owns the comparisons at the end of a run. Invariant: nothing here asks the node; the journal's
commands are read from its files and answered by the executable specification, the ledger is read
by SQL and the vault on chain. `World` calls it once everything has come to rest.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compex_client import messages as m
from compex_client.units import parse_qty, qty_text

from benchmarks.vault import Fill
from engine.journal import read
from engine.records import (
    Balances,
    Command,
    CommandKind,
    Event,
    EventKind,
    Side,
    decode_commands,
)
from engine.reference import Reference
from gateway.translate import balances_of
from settlement.chain import PRICE_E8_PER_TICK, PricePoint
from tests.simulate.bots import Bot, Errand
from tests.simulate.chain import Vault

Rows = Callable[[str], Sequence[Any]]  # of one SQL query


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
        """Engine = ledger = vault for every account, and each fill in one batch."""
        balances = {n: self.reference.balances(n) for n in self.reference.accounts}
        assert balances.keys() == vault.accounts.keys()
        ledger: dict[int, Counter[str]] = defaultdict(Counter)
        for account, bucket, amount_usdc6 in rows(
            "SELECT account, bucket::text, balance_usdc6 FROM ledger_account"
            " WHERE account > 0 AND bucket <> 'earnings'"
        ):
            ledger[account][bucket] = amount_usdc6
        for account, b in balances.items():
            assert ledger[account] == _buckets(b), f"account {account}: engine and ledger"
            assert b.pending_usdc6 == b.leaving_usdc6 == 0, f"account {account}: not at rest"
            slots = vault.accounts[account]
            held = (slots.free_usdc6, slots.locked_usdc6, slots.bond_usdc6)
            bond_usdc6 = b.bond_free_usdc6 + b.bond_held_usdc6 + b.bond_locked_usdc6
            due = (b.free_usdc6 + b.held_usdc6, b.escrow_usdc6, bond_usdc6)
            assert due == held, f"account {account}: engine and vault"
        came_usdc6 = sum(vault.deposits_usdc6)
        there_usdc6 = sum(sum(b) for b in balances.values())
        assert came_usdc6 == there_usdc6 + sum(vault.paid_usdc6.values()), "money is conserved"
        [(differing,)] = rows(
            "SELECT count(*) FROM ledger_account a WHERE balance_usdc6 <> (SELECT"
            " coalesce(sum(amount_usdc6), 0) FROM posting p"
            " WHERE (p.account, p.bucket) = (a.account, a.bucket))"
        )
        [(total_usdc6,)] = rows("SELECT sum(balance_usdc6) FROM ledger_account")
        assert (differing, total_usdc6) == (0, 0), "the trial balance"
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
        settled = sorted(_parts(fill) for fill in vault.fills)
        assert settled == sorted(map(self._settled, self.fills)), "every fill is settled once"
        credited = [e.reference for e in self.events if e.kind == EventKind.DEPOSITED]
        assert credited == list(range(1, len(vault.deposits_usdc6) + 1))

    def _settled(self, number: int) -> tuple[int, ...]:
        """A fill of the engine's, as `_parts` of one in the vault."""
        e = self.events[number - 1]
        taker, maker = (e.account, e.taker_fee_ppm), (e.counter_account, e.maker_fee_ppm)
        buyer, seller = (taker, maker) if e.side == Side.BUY else (maker, taker)
        return (buyer[0], seller[0], e.price_ticks, e.qty_lots, buyer[1], seller[1])

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


def _parts(fill: Fill) -> tuple[int, ...]:
    """What the engine says of a fill as well."""
    return (fill.buyer, fill.seller, fill.price, fill.qty, fill.buyer_fee, fill.seller_fee)


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
