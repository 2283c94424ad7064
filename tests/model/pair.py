"""The kernel and the executable specification side by side, compared after every command.

Invariant: once `apply` returns, both have answered the command with the same events, every
invariant of the kernel's state holds, and both say the same of all money; what stands in the books
and everything else both keep is the same too, looked at every `look_every` commands as it takes
longer. Whatever differs raises AssertionError.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from engine.book import (
    BUY_STOPS,
    CAPACITY_SLOTS,
    LEASE,
    ORDER,
    RANK_MASK,
    RULE_CALL,
    SELL_STOPS,
    TRADING,
    TRAIT_ALL_OR_NONE,
    TRAIT_ENDS,
    TRAIT_QUOTE,
    TRAIT_RESALE_BIT,
    WHOLE_BUYS,
    StateArray,
)
from engine.invariants import check_invariants
from engine.records import Command, Event, Side, command_array, decode_events
from engine.reference import Reference
from engine.reference.state import Book, Order
from engine.replay import Matcher
from engine.reserve import capacity_home

LOOK_EVERY: Final = 8
AUCTION_FIELDS: Final = (
    "uncross_s", "auction_ticks", "auction_lots", "reference_ticks", "static_ppm", "dynamic_ppm",
    "call_seconds",
)  # fmt: skip
EVENTS_SHOWN: Final = 6  # of each side, where they differ
_COLUMN: Final = {name: i for i, name in enumerate(ORDER.names or ())}


class Place(NamedTuple):
    """An order as it stands in its queue."""

    order_id: int
    client_id: int
    account: int
    price_ticks: int
    qty_lots: int
    hidden_lots: int
    display_lots: int
    expiry_s: int
    fee_ppm: int
    session: int
    sequence: int
    traits: int
    market: int
    trie: int
    level_ticks: int
    before_slot: int
    behind_slot: int


class Pair:
    def __init__(self, look_every: int = LOOK_EVERY) -> None:
        self.matcher = Matcher()
        self.reference = Reference()
        self.sequence = 0
        self._look_every = look_every
        self._capacity_slots: dict[int, int] = {}

    @property
    def state(self) -> StateArray:
        return self.matcher.state

    def apply(self, step: tuple[Command, ...]) -> list[Event]:
        """One command with the records that belong to it; its events."""
        stamped = [
            record._replace(sequence=self.sequence + i) for i, record in enumerate(step, start=1)
        ]
        self.sequence += len(stamped)
        parts = self.matcher.match(command_array(stamped))
        events = [event for part in parts for event in decode_events(part)]
        meant = self.reference.apply_all(stamped)
        assert events == meant, _difference(events, meant)
        check_invariants(self.state)
        self._compare_money()
        if self.sequence % self._look_every == 0:
            self.compare_all()
        return events

    def _compare_money(self) -> None:
        state = self.state[0]
        assert state["total_usdc6"] == self.reference.total, "money in the exchange"
        rows = state["balances"][: int(state["account_high"]) + 1].tolist()
        for account in self.reference.accounts:
            meant = list(self.reference.balances(account))
            assert rows[account] == meant, f"account {account}: {rows[account]}, meant {meant}"

    def compare_all(self) -> None:
        """Everything that both keep beside money."""
        state, reference = self.state[0], self.reference
        numbers = [int(state[f"last_{name}"]) for name in ("deposit", "withdrawal", "void", "end")]
        assert numbers == [
            reference.last_deposit, reference.last_withdrawal, reference.last_void,
            reference.last_end,
        ]  # fmt: skip
        for number, account in reference.accounts.items():
            row = state["identities"][number]
            assert row["owner"].tobytes() == account.owner
            assert (row["opened"] != TRADING) == account.closed, f"account {number}"
            numbers = tuple(int(row[name]) for name in ("exits", "last_batch", "fee_tier"))
            assert numbers == (account.exits, account.last_batch, account.fee_tier)
        assert state["fees"].tolist() == [list(rates) for rates in reference.fees]
        self._compare_capacities()
        self._compare_books()

    def _compare_capacities(self) -> None:
        capacities = self.state["capacities"][0]
        meant = {
            owner << 32 | instrument: row
            for lease, table in ((0, self.reference.capacities), (LEASE, self.reference.leases))
            for (account, instrument), row in table.items()
            for owner in (account | lease,)
        }
        assert len(meant) == self.state["capacities_used"], "capacities"
        for key, row in meant.items():
            slot = self._capacity_slots.get(key)
            if slot is None:
                slot = int(capacity_home(np.uint32(key >> 32), np.uint32(key & 0xFFFFFFFF)))
                while capacities["key"][slot] not in {0, key}:
                    slot = (slot + 1) % CAPACITY_SLOTS
                self._capacity_slots[key] = slot
            found = capacities[slot].tolist()
            assert found == (key, row.declared, row.held, row.sold), f"capacity {key:x}"

    def _compare_books(self) -> None:
        state, reference = self.state[0], self.reference
        assert state["open_orders"] == len(reference.orders), "open orders"
        high = int(state["order_high"]) + 1
        rows = state["orders"][:high].tolist()
        leaves = state["leaves"][: int(state["leaf_high"]) + 1]
        markets, tries, keys = (leaves[name].tolist() for name in ("instrument", "side", "key"))
        for instrument, book in reference.books.items():
            self._compare_terms(instrument, book)
            for trie, level_ticks, queue in _queues(book):
                slots = [0, *(order.order_id & 0xFFFFFF for order in queue), 0]
                for i, order in enumerate(queue):
                    slot = slots[i + 1]
                    row = rows[slot]
                    leaf, rank = divmod(row[_COLUMN["level"]], 64)
                    ticks = (keys[leaf] << 6 | rank) ^ (RANK_MASK * (trie & 1))
                    found = _place(slot, row, (markets[leaf], tries[leaf], ticks))
                    around = (instrument, trie, level_ticks, slots[i], slots[i + 2])
                    meant = _meant_place(order, around)
                    assert found == meant, f"market {instrument}: {found}, meant {meant}"

    def _compare_terms(self, instrument: int, book: Book) -> None:
        row = self.state["books"][0, instrument]
        closes_s = self.state["markets"][0, instrument]["closes_s"]
        found = (row["status"], row["lot_multiple"], row["bond_usdc6_per_lot"], row["product"])
        assert found == (book.status, book.lot_multiple, book.bond_per_lot, book.product)
        assert (row["last_ticks"], closes_s) == (book.last_ticks, book.closes_s)
        assert bool(row["rules"] & RULE_CALL) == book.called
        market = self.state["markets"][0, instrument]
        for name in AUCTION_FIELDS:
            assert market[name] == getattr(book, name), f"{name} of market {instrument}"


def _queues(book: Book) -> Iterator[tuple[int, int, Iterable[Order]]]:
    """Each level that has orders: its trie, its price, and who stands there, first to last."""
    for side in Side:
        for level_ticks, queue in book.sides[side].items():
            yield side, level_ticks, queue
    waiting: dict[tuple[int, int], list[Order]] = {}
    for order in book.waiting:
        stops = BUY_STOPS if order.side is Side.BUY else SELL_STOPS
        trie = stops if order.stop_ticks else WHOLE_BUYS + order.side
        waiting.setdefault((trie, order.stop_ticks or order.price_ticks), []).append(order)
    for (trie, level_ticks), queue in waiting.items():
        yield trie, level_ticks, queue


def _meant_place(order: Order, around: tuple[int, int, int, int, int]) -> Place:
    traits = order.resale << TRAIT_RESALE_BIT | TRAIT_QUOTE * order.quote
    if order.waits:
        traits |= order.self_trade | TRAIT_ENDS * order.ends
        traits |= TRAIT_ALL_OR_NONE * (order.stop_ticks == 0)
    return Place(
        order.order_id, order.client_id, order.account, order.price_ticks, order.qty_lots,
        order.hidden_lots, order.display_lots, order.expiry_s, order.fee_ppm, order.session,
        order.sequence, traits, *around,
    )  # fmt: skip


_FROM_ROW: Final = [
    _COLUMN[name] for name in Place._fields[1 : Place._fields.index("traits") + 1]
]  # fmt: skip


def _place(slot: int, row: tuple[int, ...], level: tuple[int, int, int]) -> Place:
    order_id = row[_COLUMN["generation"]] << 24 | slot
    links = row[_COLUMN["prev"]], row[_COLUMN["next"]]
    return Place._make((order_id, *(row[column] for column in _FROM_ROW), *level, *links))


def _difference(events: list[Event], meant: list[Event]) -> str:
    """The first events that differ, and how many there are."""
    same = 0
    while same < min(len(events), len(meant)) and events[same] == meant[same]:
        same += 1
    lines = [f"{same} events are alike; then"]
    for who, said in (("kernel", events), ("reference", meant)):
        lines += [f"  {who}: {event}" for event in said[same : same + EVENTS_SHOWN]]
        lines.append(f"  {who}: {len(said)} events in all")
    return "\n".join(lines)
