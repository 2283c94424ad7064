"""One shard for scenarios: the kernel and the executable specification take every command
together and must answer alike; accounts are rich and operators have capacity from the start."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from engine.book import StateArray
from engine.invariants import check_invariants
from engine.records import (
    Command,
    CommandKind,
    Event,
    EventKind,
    Purse,
    Side,
    command_array,
    decode_events,
)
from engine.reference import Reference
from engine.rejects import Reject
from engine.replay import Matcher
from engine.snapshot import state_hash

MARKET: Final = 0
COARSE_MARKET: Final = 3  # quantities are multiples of 8
BOND_USDC6_PER_LOT: Final = 10
CASH_USDC6: Final = 10**12
BOND_USDC6: Final = 10**9
CAPACITY_LOTS: Final = 10**6
ALICE, BOB, CAROL = 1, 2, 3


class Shard:
    """Markets 0 and 3, accounts 1 to 3 with cash, bond and capacity in both."""

    def __init__(self) -> None:
        self.matcher = Matcher()
        self.reference = Reference()
        self.sequence = 0
        self.deposits = 0
        self.later_ns = 0  # how much time has passed besides ten nanoseconds a command
        for instrument, multiple in ((MARKET, 1), (COARSE_MARKET, 8)):
            self.list_market(instrument, lot_multiple=multiple)
        for account in (ALICE, BOB, CAROL):
            self.do(CommandKind.OPEN_ACCOUNT, account=account, order_id=account << 40)
            self.deposit(account, CASH_USDC6)
            self.deposit(account, BOND_USDC6, Purse.BOND)
            for instrument in (MARKET, COARSE_MARKET):
                self.declare(account, instrument, CAPACITY_LOTS)

    @property
    def state(self) -> StateArray:
        return self.matcher.state

    def do(self, kind: int, **fields: Any) -> list[Event]:
        return self.do_all([Command(kind=kind, **fields)])

    def do_all(self, commands: Iterable[Command]) -> list[Event]:
        """Many at once; the kernel's events must be the specification's."""
        stamped: list[Command] = []
        time_ns = 0
        for command in commands:
            self.sequence += 1
            if command.kind != CommandKind.PART:
                time_ns = self.sequence * 10 + self.later_ns
            stamped.append(command._replace(sequence=self.sequence, time_ns=time_ns))
        parts = self.matcher.match(command_array(stamped))
        events = [event for part in parts for event in decode_events(part)]
        assert events == self.reference.apply_all(stamped)
        return events

    def do_several(self, kind: int, parts: Iterable[dict[str, int]], **fields: Any) -> list[Event]:
        """A head and its parts."""
        behind = [Command(kind=CommandKind.PART, **part) for part in parts]
        return self.do_all([Command(kind=kind, parts=len(behind), **fields), *behind])

    def matcher_only(self, kind: int, **fields: Any) -> list[Event]:
        """Past the specification, where a test has put the kernel's state ahead by hand."""
        self.sequence += 1
        command = Command(sequence=self.sequence, kind=kind, **fields)
        return [
            e for part in self.matcher.match(command_array([command])) for e in decode_events(part)
        ]

    def list_market(self, instrument: int, *, lot_multiple: int = 1, **fields: int) -> list[Event]:
        listing = {"order_id": 7 + instrument, "price_ticks": BOND_USDC6_PER_LOT} | fields
        return self.do(
            CommandKind.LIST_MARKET, instrument=instrument, qty_lots=lot_multiple, **listing
        )

    def deposit(self, account: int, amount_usdc6: int, purse: Purse = Purse.CASH) -> list[Event]:
        events = self.do(
            CommandKind.DEPOSIT,
            account=account,
            price_ticks=amount_usdc6,
            client_id=self.deposits + 1,
            side=purse,
        )
        self.deposits += events[0].kind == EventKind.DEPOSITED
        return events

    def declare(self, account: int, instrument: int, qty_lots: int) -> list[Event]:
        return self.do(
            CommandKind.DECLARE_CAPACITY, account=account, instrument=instrument, qty_lots=qty_lots
        )

    def order(
        self, account: int, side: Side, price_ticks: int, qty_lots: int, **fields: int
    ) -> list[Event]:
        return self.do(
            CommandKind.NEW_ORDER,
            account=account,
            side=side,
            price_ticks=price_ticks,
            qty_lots=qty_lots,
            **fields,
        )

    def buy(self, account: int, price_ticks: int, qty_lots: int, **fields: int) -> list[Event]:
        return self.order(account, Side.BUY, price_ticks, qty_lots, **fields)

    def sell(self, account: int, price_ticks: int, qty_lots: int, **fields: int) -> list[Event]:
        return self.order(account, Side.SELL, price_ticks, qty_lots, **fields)

    def rest(self, account: int, side: Side, price_ticks: int, qty_lots: int, **fields: int) -> int:
        """The id of an order that rests, untouched."""
        [accepted] = self.order(account, side, price_ticks, qty_lots, **fields)
        assert accepted.kind == EventKind.ACCEPTED, accepted
        return accepted.order_id

    def cancel(self, account: int, order_id: int) -> list[Event]:
        return self.do(CommandKind.CANCEL, account=account, order_id=order_id)

    def money(self, account: int) -> dict[str, int]:
        """The account's balances, by field, µUSDC."""
        return self.reference.balances(account)._asdict()

    def best(self, side: Side, instrument: int = MARKET) -> int | None:
        """The best price of a side; None when nobody is there."""
        return self.reference.books[instrument].best(side)

    def check(self) -> None:
        check_invariants(self.state)
        assert self.state["total_usdc6"][0] == self.reference.total
        for account in self.reference.accounts:
            row = self.state["balances"][0, account].tolist()
            assert tuple(row) == tuple(self.reference.balances(account))

    def rules_hash(self) -> str:
        """The state's hash without the place of the last command in the order."""
        header = self.state[0]
        sequence, time_ns = header["sequence"].copy(), header["time_ns"].copy()
        header["sequence"] = header["time_ns"] = 0
        found = state_hash(self.state)
        header["sequence"], header["time_ns"] = sequence, time_ns
        return found

    def refuses(self, act: Callable[[], list[Event]]) -> Reject:
        """The number of a refusal that changed nothing."""
        before = self.rules_hash()
        [event] = act()
        assert event.kind == EventKind.REJECTED, event
        assert self.rules_hash() == before, "a refused command changes nothing"
        return Reject(event.reason)
