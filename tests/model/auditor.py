"""An auditor: what every account owns and every operator has promised, by events alone.

It knows nothing of how the engine keeps its state and calls none of its rules. Invariant, asserted
at every single event: nobody has spent, sold, locked or withdrawn what they did not have; and the
sum over all accounts is what was deposited and has not left. `compare` holds the engine's own
balances to it, after any command. What events do not say, that an order offers hours bought here,
is taken from the command.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from engine.book import BUYS_KEY, LEASE, StateArray
from engine.records import (
    PPM,
    Balances,
    Event,
    EventKind,
    FillNote,
    Purse,
    Side,
)

LOTS: Final = ("declared_lots", "held_lots", "sold_lots")


@dataclass
class Account:
    """Each a running sum over events."""

    cash_usdc6: int = 0  # deposited and still here, wherever it lies
    pending_usdc6: int = 0
    escrow_usdc6: int = 0
    leaving_usdc6: int = 0
    bond_usdc6: int = 0
    locked_usdc6: int = 0

    def check(self) -> None:
        assert (
            min(self.pending_usdc6, self.escrow_usdc6, self.leaving_usdc6, self.locked_usdc6) >= 0
        )
        assert self.pending_usdc6 + self.escrow_usdc6 + self.leaving_usdc6 <= self.cash_usdc6, (
            "spent more than it has"
        )
        assert self.locked_usdc6 <= self.bond_usdc6, "locked more bond than it has"


@dataclass
class Capacity:
    """Lots of one market that an operator declared, or a buyer bought."""

    declared_lots: int = 0
    held_lots: int = 0
    sold_lots: int = 0

    def check(self) -> None:
        promised_lots = self.held_lots + self.sold_lots
        assert self.held_lots >= 0 and self.sold_lots >= 0
        # A void names amounts, not a fill. Where nothing bought can be sold again it may take from
        # one purchase what was another's.
        assert not promised_lots or promised_lots <= self.declared_lots, "promised more than it has"


@dataclass
class Order:
    account: int
    side: int
    left_lots: int
    capacity: Capacity | None  # which an ask takes from


@dataclass
class Auditor:
    deposited_usdc6: int = 0
    left_usdc6: int = 0  # the exchange, by withdrawals, exits and ends of leases
    accounts: dict[int, Account] = field(default_factory=dict[int, Account])
    capacities: defaultdict[tuple[int, int], Capacity] = field(
        default_factory=lambda: defaultdict(Capacity)
    )
    bonds: dict[int, int] = field(default_factory=dict[int, int])  # per lot, by market
    orders: dict[int, Order] = field(default_factory=dict[int, Order])

    def hear(self, event: Event, resale: bool) -> None:
        """`resale`: the command of the event offers hours that were bought here."""
        if event.kind == EventKind.REJECTED:
            return
        self._money(event)
        self._lots(event, resale)
        for number in (event.account, event.counter_account):
            if number in self.accounts:
                self.accounts[number].check()
        total = sum(account.cash_usdc6 + account.bond_usdc6 for account in self.accounts.values())
        assert total == self.deposited_usdc6 - self.left_usdc6, "money is made or lost"

    def _money(self, event: Event) -> None:
        # What would be nobody's shows in the sum over everybody.
        account, amount = self.accounts.get(event.account, Account()), event.amount_usdc6
        match event.kind:
            case EventKind.ACCOUNT_OPENED:
                self.accounts[event.account] = account
            case EventKind.DEPOSITED:
                self.deposited_usdc6 += amount
                if event.side == Purse.BOND:
                    account.bond_usdc6 += amount
                else:
                    account.cash_usdc6 += amount
            case EventKind.WITHDRAWAL_RESERVED:
                account.leaving_usdc6 += amount
            case EventKind.WITHDRAWAL_CANCELLED:
                account.leaving_usdc6 -= amount
            case EventKind.WITHDRAWAL_CONFIRMED:
                account.leaving_usdc6 -= amount
                account.cash_usdc6 -= amount
                self.left_usdc6 += amount
            case EventKind.EXIT_CONFIRMED:
                account.cash_usdc6 -= amount
                self.left_usdc6 += amount
            case EventKind.LEASES_ENDED:
                account.escrow_usdc6 -= amount
                account.cash_usdc6 -= amount
                account.locked_usdc6 -= event.bond_usdc6
                self.left_usdc6 += amount
            case EventKind.ESCROW_CONFIRMED:
                account.pending_usdc6 -= amount
                account.escrow_usdc6 += amount
            case EventKind.MARKET_LISTED:
                self.bonds[event.instrument] = event.bond_usdc6_per_lot
            case EventKind.FILL:
                buyer, seller, fee_ppm = self._parties(event)
                self._trade(event, buyer, seller, fee_ppm, 1)
            case EventKind.FILL_VOIDED:
                ends = event.account, event.counter_account
                self._trade(event, *ends, event.taker_fee_ppm, -1)
            case _:
                pass

    def _parties(self, event: Event) -> tuple[int, int, int]:
        if event.side == Side.BUY:
            return event.account, event.counter_account, event.taker_fee_ppm
        return event.counter_account, event.account, event.maker_fee_ppm

    def _trade(self, event: Event, buyer: int, seller: int, fee_ppm: int, sign: int) -> None:
        """A fill, or with a sign of -1 that it is void."""
        resold = bool(event.reason & FillNote.RESOLD)
        notional = event.price_ticks * event.qty_lots
        self.accounts[buyer].pending_usdc6 += sign * (notional + notional * fee_ppm // PPM)
        bought = self.capacities[buyer | LEASE, event.instrument]
        bought.declared_lots += sign * event.qty_lots
        sold_from = self.capacities[seller | LEASE * resold, event.instrument]
        sold_from.sold_lots += sign * event.qty_lots
        bought.check()
        if not resold:
            self.accounts[seller].locked_usdc6 += (
                sign * self.bonds[event.instrument] * event.qty_lots
            )
        self.accounts[buyer].check()
        self.accounts[seller].check()

    def _lots(self, event: Event, resale: bool) -> None:
        match event.kind:
            case EventKind.CAPACITY_DECLARED:
                declared = self.capacities[event.account, event.instrument]
                declared.declared_lots = event.qty_lots
                declared.check()
            case EventKind.ACCEPTED:
                owner = event.account | LEASE * resale
                sells = event.side == Side.SELL
                capacity = self.capacities[owner, event.instrument] if sells else None
                self.orders[event.order_id] = Order(event.account, event.side, 0, capacity)
                self._change(event.order_id, event.qty_lots)
            case EventKind.AMENDED:
                self._change(event.order_id, event.qty_lots - self.orders[event.order_id].left_lots)
            case EventKind.FILL | EventKind.DECREMENTED:
                self._change(event.order_id, -event.qty_lots)
                self._change(event.counter_order_id, -event.qty_lots)
            case EventKind.CANCELLED:
                self._change(event.order_id, -event.qty_lots)
            case _:
                pass

    def _change(self, order_id: int, lots: int) -> None:
        order = self.orders[order_id]
        order.left_lots += lots
        assert order.left_lots >= 0, "an order gave more than it had"
        if order.capacity is not None:
            order.capacity.held_lots += lots
            order.capacity.check()
        if order.left_lots == 0:
            del self.orders[order_id]

    def compare(self, state: StateArray) -> None:
        """The engine's balances are what its events say: shape (1,), dtype STATE."""
        total = 0
        for number, account in self.accounts.items():
            row = Balances(*state["balances"][0, number].tolist())
            assert min(row) >= 0
            total += sum(row)
            spendable = (
                account.cash_usdc6
                - account.pending_usdc6
                - account.escrow_usdc6
                - account.leaving_usdc6
            )
            assert row.free_usdc6 + row.held_usdc6 == spendable, number
            assert row.pending_usdc6 == account.pending_usdc6, number
            assert row.escrow_usdc6 == account.escrow_usdc6, number
            assert row.leaving_usdc6 == account.leaving_usdc6, number
            assert (
                row.bond_free_usdc6 + row.bond_held_usdc6
                == account.bond_usdc6 - account.locked_usdc6
            )
            assert row.bond_locked_usdc6 == account.locked_usdc6, number
        assert total == self.deposited_usdc6 - self.left_usdc6, "money in the engine"

    def compare_capacities(self, state: StateArray) -> None:
        """So are its capacities; what was bought counts only in markets of a window."""
        rows = state["capacities"][0]
        used = (rows["key"] != 0) & (rows["key"] != BUYS_KEY)
        for row in rows[used]:
            key = int(row["key"])
            capacity = self.capacities[key >> 32, key & 0xFFFFFFFF]
            found = tuple(int(row[name]) for name in LOTS)
            meant = capacity.declared_lots, capacity.held_lots, capacity.sold_lots
            assert found == meant, f"capacity {key:x}: {found}, meant {meant}"
