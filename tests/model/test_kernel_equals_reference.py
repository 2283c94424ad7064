"""The kernel and the executable specification, driven side by side over every command.

After each step the events must be equal field for field, the balances too, and every invariant of
the state must hold. A failing example is printed by hypothesis as the steps that reproduce it.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.book import check_invariants
from engine.records import (
    ALL_INSTRUMENTS,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
    command_array,
    decode_events,
)
from engine.reference import Reference
from engine.replay import Matcher

ACCOUNTS = (1, 2, 3)
INSTRUMENTS = (0, 1, 7)
# Close together so that orders meet, and far apart so that tries grow and shrink.
PRICES = st.one_of(
    st.integers(90, 110),
    st.sampled_from([1, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, PRICE_TICKS_MAX]),
    st.integers(1, PRICE_TICKS_MAX),
)
LOTS = st.one_of(st.integers(1, 12), st.integers(1, 40).map(lambda n: n * 8))
BURST_ORDER = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(Side),
    st.integers(97, 103),
    st.integers(1, 12),
    st.sampled_from((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK)),
    st.sampled_from(SelfTrade),
)
ANY_U32 = st.integers(0, (1 << 32) - 1)


class KernelEqualsReference(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.matcher = Matcher()
        self.reference = Reference()
        self.sequence = 0
        self.deposits = 0
        self.order_ids: list[int] = [0]

    def both(self, kind: int, **fields: Any) -> list[Event]:
        self.sequence += 1
        command = Command(sequence=self.sequence, time_ns=self.sequence * 10, kind=kind, **fields)
        parts = self.matcher.match(command_array([command]))
        events = [event for part in parts for event in decode_events(part)]
        assert events == self.reference.apply(command), command
        self.order_ids += [e.order_id for e in events if e.kind == EventKind.ACCEPTED]
        return events

    @initialize()
    def open_the_exchange(self) -> None:
        for i, instrument in enumerate(INSTRUMENTS):
            multiple, bond = (1, 8, 1)[i], (5, 1, 900)[i]
            self.both(
                CommandKind.LIST_MARKET,
                instrument=instrument,
                order_id=i + 1,
                qty_lots=multiple,
                price_ticks=bond,
            )
        for account in ACCOUNTS:
            self.both(CommandKind.OPEN_ACCOUNT, account=account, order_id=account << 40)
            self.deposit(account, 10**12, Purse.CASH, 0)
            self.deposit(account, 10**6, Purse.BOND, 0)
            for instrument in INSTRUMENTS:
                self.both(
                    CommandKind.DECLARE_CAPACITY,
                    account=account,
                    instrument=instrument,
                    qty_lots=2000,
                )

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
        side=st.sampled_from(Side),
        price=PRICES,
        lots=LOTS,
        tif=st.sampled_from((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK)),
        mode=st.sampled_from(SelfTrade),
        post_only=st.booleans(),
    )
    def new_order(
        self,
        account: int,
        instrument: int,
        side: int,
        price: int,
        lots: int,
        tif: int,
        mode: int,
        post_only: bool,
    ) -> None:
        self.both(
            CommandKind.NEW_ORDER,
            account=account,
            instrument=instrument,
            side=side,
            price_ticks=price,
            qty_lots=lots,
            time_in_force=tif,
            self_trade=mode,
            flags=Flag.POST_ONLY if post_only and tif == TimeInForce.GTC else 0,
            client_id=self.sequence,
        )

    @rule(orders=st.lists(BURST_ORDER, min_size=4, max_size=24))
    def burst(self, orders: list[tuple[int, int, int, int, int, int]]) -> None:
        """Many orders around one price in one market, so that queues form and trade."""
        for account, side, price, lots, tif, mode in orders:
            self.both(
                CommandKind.NEW_ORDER,
                account=account,
                instrument=INSTRUMENTS[0],
                side=side,
                price_ticks=price,
                qty_lots=lots,
                time_in_force=tif,
                self_trade=mode,
                client_id=self.sequence,
            )

    @rule(
        account=st.sampled_from((*ACCOUNTS, 0, 4, (1 << 32) - 1)),
        instrument=st.one_of(st.sampled_from(INSTRUMENTS), ANY_U32),
        side=st.integers(0, 255),
        price=st.integers(-(1 << 63), (1 << 63) - 1),
        lots=st.sampled_from([0, -1, 1, QTY_LOTS_MAX, QTY_LOTS_MAX + 1, (1 << 63) - 1]),
        tif=st.integers(0, 255),
        mode=st.integers(0, 255),
        flags=st.integers(0, 255),
    )
    def hostile_order(
        self,
        account: int,
        instrument: int,
        side: int,
        price: int,
        lots: int,
        tif: int,
        mode: int,
        flags: int,
    ) -> None:
        self.both(
            CommandKind.NEW_ORDER,
            account=account,
            instrument=instrument,
            side=side,
            price_ticks=price,
            qty_lots=lots,
            time_in_force=tif,
            self_trade=mode,
            flags=flags,
        )

    @rule(account=st.sampled_from(ACCOUNTS), data=st.data())
    def cancel(self, account: int, data: st.DataObject) -> None:
        self.both(
            CommandKind.CANCEL, account=account, order_id=data.draw(st.sampled_from(self.order_ids))
        )

    @rule(account=st.sampled_from(ACCOUNTS), order_id=st.integers(0, (1 << 64) - 1))
    def cancel_of_anything(self, account: int, order_id: int) -> None:
        self.both(CommandKind.CANCEL, account=account, order_id=order_id)

    @rule(
        account=st.sampled_from(ACCOUNTS),
        instrument=st.sampled_from((*INSTRUMENTS, 2, ALL_INSTRUMENTS)),
    )
    def cancel_all(self, account: int, instrument: int) -> None:
        self.both(CommandKind.CANCEL_ALL, account=account, instrument=instrument)

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        amount=st.one_of(st.integers(-1, 10**9), st.just(10**15 + 1)),
        purse=st.sampled_from(Purse),
        ahead=st.sampled_from((0, 0, 0, 1, -1)),
    )
    def deposit(self, account: int, amount: int, purse: int, ahead: int) -> None:
        events = self.both(
            CommandKind.DEPOSIT,
            account=account,
            price_ticks=amount,
            client_id=self.deposits + 1 + ahead,
            side=purse,
        )
        self.deposits += events[0].kind == EventKind.DEPOSITED

    @rule(account=st.sampled_from((*ACCOUNTS, 4)), amount=st.integers(0, 2 * 10**12))
    def withdraw(self, account: int, amount: int) -> None:
        self.both(CommandKind.WITHDRAW, account=account, price_ticks=amount)

    @rule(
        kind=st.sampled_from((CommandKind.CONFIRM_ESCROW, CommandKind.CONFIRM_WITHDRAWAL)),
        account=st.sampled_from((*ACCOUNTS, 4)),
        amount=st.integers(0, 5000),
        reference=st.integers(0, 30),
    )
    def confirm(self, kind: int, account: int, amount: int, reference: int) -> None:
        self.both(kind, account=account, price_ticks=amount, client_id=reference)

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
        lots=st.integers(-1, 3000),
    )
    def declare_capacity(self, account: int, instrument: int, lots: int) -> None:
        self.both(
            CommandKind.DECLARE_CAPACITY, account=account, instrument=instrument, qty_lots=lots
        )

    @rule(
        kind=st.sampled_from((CommandKind.HALT_MARKET, CommandKind.RESUME_MARKET)),
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
    )
    def halt_or_resume(self, kind: int, instrument: int) -> None:
        self.both(kind, instrument=instrument)

    @rule(kind=st.integers(0, 255), instrument=ANY_U32, account=ANY_U32, lots=st.integers(-1, 9))
    def any_kind_at_all(self, kind: int, instrument: int, account: int, lots: int) -> None:
        self.both(kind, instrument=instrument, account=account, qty_lots=lots)

    @invariant()
    def the_state_is_sound(self) -> None:
        check_invariants(self.matcher.state)
        for account in self.reference.accounts:
            row = self.matcher.state["balances"][0, account].tolist()
            assert row == tuple(self.reference.balances(account))


def _profile(examples: int, steps: int) -> Callable[[], None]:
    def run() -> None:
        from hypothesis.stateful import run_state_machine_as_test

        run_state_machine_as_test(
            KernelEqualsReference,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
                print_blob=True,
            ),
        )

    return run


def test_the_kernel_gives_the_reference_s_events_for_every_command() -> None:
    _profile(examples=80, steps=40)()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_kernel_gives_the_reference_s_events_for_a_long_time() -> None:
    _profile(examples=2000, steps=500)()
