"""The kernel and the executable specification side by side, compared after every command.

Invariant: once `apply` returns, both have answered the command with the same events, every
invariant of the kernel's state holds, and both say the same of all money; what stands in the books
and everything else both keep is the same too, looked at every `look_every` commands as it takes
longer. Whatever differs raises AssertionError.
"""

from typing import Final, NamedTuple

from engine.book import ORDER, TRADING, StateArray
from engine.invariants import check_invariants
from engine.records import Command, Event, Side, command_array, decode_events
from engine.reference import Reference
from engine.replay import Matcher

LOOK_EVERY: Final = 8
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
    before_slot: int
    behind_slot: int


class Pair:
    def __init__(self, look_every: int = LOOK_EVERY) -> None:
        self.matcher = Matcher()
        self.reference = Reference()
        self.sequence = 0
        self._look_every = look_every
        self._capacity_slots: dict[tuple[int, int], int] = {}

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
        meant = [event for command in stamped for event in self.reference.apply(command)]
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
        numbers = [int(state[f"last_{name}"]) for name in ("deposit", "withdrawal", "void")]
        assert numbers == [
            reference.last_deposit, reference.last_withdrawal, reference.last_void
        ]  # fmt: skip
        for number, account in reference.accounts.items():
            row = state["identities"][number]
            assert row["owner"].tobytes() == account.owner
            assert (row["opened"] != TRADING) == account.closed, f"account {number}"
            assert (row["exits"], row["last_batch"]) == (account.exits, account.last_batch)
        self._compare_capacities()
        self._compare_books()

    def _compare_capacities(self) -> None:
        capacities = self.state["capacities"][0]
        for (account, instrument), meant in self.reference.capacities.items():
            key = account << 32 | instrument
            slot = self._capacity_slots.get((account, instrument))
            if slot is None:
                slot = int((capacities["key"] == key).argmax())
                self._capacity_slots[account, instrument] = slot
            row = capacities[slot].tolist()
            assert row == (key, meant.declared, meant.held, meant.sold), f"capacity {key:x}"

    def _compare_books(self) -> None:
        state, reference = self.state[0], self.reference
        rows = state["orders"][: int(state["order_high"]) + 1].tolist()
        assert state["open_orders"] == len(reference.orders), "open orders"
        for instrument, book in reference.books.items():
            row = state["books"][instrument]
            terms = (row["status"], row["lot_multiple"], row["bond_usdc6_per_lot"], row["product"])
            assert terms == (book.status, book.lot_multiple, book.bond_per_lot, book.product)
            for side in Side:
                for queue in book.sides[side].values():
                    slots = [0, *(order.order_id & 0xFFFFFF for order in queue), 0]
                    for i, order in enumerate(queue):
                        meant = Place(
                            order.order_id, order.client_id, order.account, order.price_ticks,
                            order.qty_lots, order.hidden_lots, order.display_lots,
                            order.expiry_s, slots[i], slots[i + 2],
                        )  # fmt: skip
                        found = _place(slots[i + 1], rows[slots[i + 1]])
                        assert found == meant, f"market {instrument}: {found}, meant {meant}"


def _place(slot: int, row: tuple[int, ...]) -> Place:
    def of(name: str) -> int:
        return row[_COLUMN[name]]

    return Place(
        of("generation") << 24 | slot, of("client_id"), of("account"), of("price_ticks"),
        of("qty_lots"), of("hidden_lots"), of("display_lots"), of("expiry_s"),
        of("prev"), of("next"),
    )  # fmt: skip


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
