"""The kernel and the executable specification, driven side by side over every command.

After each step the events must be equal field for field, the balances too, and every invariant of
the state must hold. A failing example is printed by hypothesis as the steps that reproduce it.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.invariants import check_invariants
from engine.records import (
    ALL_INSTRUMENTS,
    EFFECTS_MAX,
    OF_SEVERAL,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SPOT_WINDOW,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Flag,
    ListingFlag,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
    command_array,
    decode_events,
    order_terms,
)
from engine.reference import Reference
from engine.reference.compound import HOUR_WINDOW
from engine.rejects import Reject
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
BURST_TERMS = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(Side),
    st.integers(97, 103),
    st.integers(1, 30),
    st.sampled_from(TimeInForce),
    st.sampled_from(SelfTrade),
    st.sampled_from((0, 0, 0, Flag.POST_ONLY, Flag.MARKET, Flag.ALL_OR_NONE)),
    st.sampled_from((0, 0, 1, 2, 3, 31)),
    st.sampled_from((0, 0, 0, 1, 5, 12)),
    st.integers(-1, 4),
)
CHANGE = st.tuples(
    st.sampled_from((0, 0, 0, 0, 0, 1)),  # 0: the order's own account
    st.one_of(st.just(0), st.integers(96, 104), st.integers(-1, PRICE_TICKS_MAX + 1)),
    st.one_of(st.integers(0, 20), st.just(QTY_LOTS_MAX)),
    st.sampled_from((0, 0, 0, 0, 1, 2)),
    st.sampled_from((0, 1, 2, 3, 4)),
)
# Stops near the prices at which bursts trade: (account, side, stop, limit or protection, lots, time
# in force, self-trade mode, flags, life in seconds, session).
STOPS = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(Side),
    st.integers(97, 103),
    st.integers(97, 103),
    st.integers(1, 12),
    st.sampled_from((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.GTT)),
    st.sampled_from(SelfTrade),
    st.sampled_from((0, 0, Flag.MARKET, Flag.POST_ONLY)),
    st.integers(0, 9),
    st.integers(0, 2),
)
RESALES = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from((Side.SELL, Side.SELL, Side.SELL, Side.BUY)),
    st.integers(97, 103),
    st.integers(1, 12),
    st.sampled_from((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK)),
    st.sampled_from(SelfTrade),
    st.sampled_from((0, 0, 0, Flag.POST_ONLY, Flag.ALL_OR_NONE)),
    st.sampled_from((0, 0, 0, 99, 101)),
    st.sampled_from((1, 1, 1, 1, 1, 0, 2)),
)
WHOLES = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(Side),
    st.integers(97, 103),
    st.integers(1, 60),
    st.sampled_from(SelfTrade),
    st.integers(0, 9),
)
# (account, side, price, lots, how many are shown, life in seconds)
GATHERED = st.tuples(
    st.sampled_from(ACCOUNTS),
    st.sampled_from(Side),
    st.integers(95, 105),
    st.sampled_from((8, 8, 16, 24, 1, 3, 31)),
    st.sampled_from((0, 0, 0, 8, 1)),
    st.sampled_from((0, 0, 0, 0, 1, 9)),
)
ANY_U32 = st.integers(0, (1 << 32) - 1)
# Two markets are hours, one after the other, so that blocks of them can be bought and sold again.
FIRST_PRODUCT = 1 << 48 | 1 << 40 | 1 << 32 | HOUR_WINDOW << 24 | 500_000
SPOT_PRODUCT = 1 << 48 | 1 << 40 | 1 << 32 | SPOT_WINDOW << 24
LEG = st.fixed_dictionaries({
    "instrument": st.sampled_from(INSTRUMENTS * 8 + (2,)),
    "side": st.sampled_from((Side.BUY, Side.BUY, Side.BUY, Side.SELL)),
    "price_ticks": st.sampled_from((*range(97, 104),) * 3 + (0, -1, PRICE_TICKS_MAX)),
    "qty_lots": st.sampled_from((1, 2, 5, 8, 8, 8, 16, 16, 24, 0)),
    "client_id": st.integers(0, 9),
    "resale": st.sampled_from((0,) * 9 + (1,)),
})  # fmt: skip


SHORT_LIVED = 100  # markets above this number come and go


class KernelEqualsReference(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.matcher = Matcher()
        self.reference = Reference()
        self.sequence = 0
        self.deposits = 0
        self.order_ids: list[int] = [0]
        self.fills: list[Event] = []
        self.voids = 0
        self.ends = 0
        self.exits: dict[int, int] = {}
        self.listed = SHORT_LIVED

    def both(self, kind: int, **fields: Any) -> list[Event]:
        return self.both_at_once([Command(kind=kind, **fields)])

    def both_several(self, kind: int, parts: list[dict[str, int]], **fields: Any) -> list[Event]:
        behind = [Command(kind=CommandKind.PART, **part) for part in parts]
        return self.both_at_once([Command(kind=kind, parts=len(behind), **fields), *behind])

    def both_at_once(self, records: list[Command]) -> list[Event]:
        time_ns = (self.sequence + 1) * 300_000_000  # three commands a second
        records = [
            record._replace(sequence=sequence, time_ns=time_ns)
            for sequence, record in enumerate(records, start=self.sequence + 1)
        ]
        self.sequence += len(records)
        arrays = self.matcher.match(command_array(records))
        events = [event for array in arrays for event in decode_events(array)]
        assert events == self.reference.apply_all(records), records
        self.order_ids += [e.order_id for e in events if e.kind == EventKind.ACCEPTED]
        self.fills += [e for e in events if e.kind == EventKind.FILL]
        return events

    @initialize()
    def open_the_exchange(self) -> None:
        for i, instrument in enumerate(INSTRUMENTS):
            multiple, bond = (1, 8, 1)[i], (5, 1, 900)[i]
            self.both(
                CommandKind.LIST_MARKET,
                instrument=instrument,
                order_id=SPOT_PRODUCT if i == 2 else FIRST_PRODUCT + i,
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
        lots=st.sampled_from([0, -1, 1, QTY_LOTS_MAX, QTY_LOTS_MAX + 1, (1 << 31) - 1]),
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

    @rule(orders=st.lists(BURST_TERMS, min_size=1, max_size=8))
    def burst_with_terms(self, orders: list[tuple[int, ...]]) -> None:
        """Icebergs, minimum quantities, market orders and short lives around one price."""
        for account, side, price, lots, tif, mode, flags, display, minimum, life in orders:
            now_s = (self.sequence + 1) * 300_000_000 // 1_000_000_000
            self.both(
                CommandKind.NEW_ORDER,
                account=account,
                instrument=INSTRUMENTS[0],
                side=side,
                price_ticks=price if flags != Flag.MARKET else price - 97,
                qty_lots=lots,
                time_in_force=tif,
                self_trade=mode,
                flags=flags,
                order_id=order_terms(display_lots=display, min_lots=minimum),
                expiry_s=now_s + life if tif == TimeInForce.GTT else 0,
                client_id=self.sequence,
            )

    @rule(orders=st.lists(STOPS, min_size=1, max_size=8))
    def stops(self, orders: list[tuple[int, ...]]) -> None:
        for account, side, stop, price, lots, tif, mode, flags, life, session in orders:
            now_s = (self.sequence + 1) * 300_000_000 // 1_000_000_000
            self.both(
                CommandKind.NEW_STOP,
                account=account,
                instrument=INSTRUMENTS[0],
                side=side,
                price_ticks=price if flags != Flag.MARKET else price - 97,
                qty_lots=lots,
                time_in_force=TimeInForce.IOC if flags == Flag.MARKET else tif,
                self_trade=mode,
                flags=flags,
                order_id=stop,
                expiry_s=now_s + life if tif == TimeInForce.GTT and flags != Flag.MARKET else 0,
                client_id=self.sequence,
                session=session,
            )

    @rule(orders=st.lists(RESALES, min_size=1, max_size=6))
    def sell_again(self, orders: list[tuple[int, ...]]) -> None:
        for account, side, price, lots, tif, mode, flags, stop, resale in orders:
            self.both(
                CommandKind.NEW_STOP if stop else CommandKind.NEW_ORDER,
                account=account,
                instrument=INSTRUMENTS[0],
                side=side,
                price_ticks=price,
                qty_lots=lots,
                time_in_force=tif,
                self_trade=mode,
                flags=flags,
                order_id=stop,
                client_id=self.sequence,
                resale=resale,
            )

    @rule(orders=st.lists(WHOLES, min_size=1, max_size=6))
    def all_or_none(self, orders: list[tuple[int, ...]]) -> None:
        for account, side, price, lots, mode, life in orders:
            now_s = (self.sequence + 1) * 300_000_000 // 1_000_000_000
            self.both(
                CommandKind.NEW_ORDER,
                account=account,
                instrument=INSTRUMENTS[0],
                side=side,
                price_ticks=price,
                qty_lots=lots,
                time_in_force=TimeInForce.GTT if life else TimeInForce.GTC,
                expiry_s=now_s + life if life else 0,
                self_trade=mode,
                flags=Flag.ALL_OR_NONE,
                client_id=self.sequence,
                session=life % 3,
            )

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        stop=ANY_U32,
        price=st.sampled_from((-1, 0, 1, PRICE_TICKS_MAX, PRICE_TICKS_MAX + 1)),
        lots=st.sampled_from((-1, 0, 1, QTY_LOTS_MAX + 1)),
        side=st.integers(0, 3),
        tif=st.integers(0, 5),
        mode=st.integers(0, 5),
        flags=st.integers(0, 9),
        expiry_s=st.sampled_from((0, 1, (1 << 32) - 1)),
    )
    def hostile_stop(
        self,
        account: int,
        stop: int,
        price: int,
        lots: int,
        side: int,
        tif: int,
        mode: int,
        flags: int,
        expiry_s: int,
    ) -> None:
        self.both(
            CommandKind.NEW_STOP,
            account=account,
            instrument=INSTRUMENTS[1],
            order_id=stop,
            price_ticks=price,
            qty_lots=lots,
            side=side,
            time_in_force=tif,
            self_trade=mode,
            flags=flags,
            expiry_s=expiry_s,
        )

    @rule(
        tier=st.sampled_from((0, 0, 1, 15, 16)),
        maker=st.sampled_from((0, 0, 1, 333, 50_000)),
        taker=st.sampled_from((0, 777, 50_000, 50_001)),
    )
    def set_fees(self, tier: int, maker: int, taker: int) -> None:
        self.both(CommandKind.SET_FEES, side=tier, order_id=maker | taker << 16)

    @rule(account=st.sampled_from((*ACCOUNTS, 4)), tier=st.sampled_from((0, 1, 15, 16)))
    def set_fee_tier(self, account: int, tier: int) -> None:
        self.both(CommandKind.SET_FEE_TIER, account=account, side=tier)

    @rule(
        life=st.sampled_from((0, 0, 40)),
        closing=st.booleans(),
        opening=st.sampled_from((0, 0, ListingFlag.OPENING_CALL, 2)),
        calls=st.sampled_from((0, 0, 1 << 20, 5 << 32, 1 << 63)),
    )
    def list_or_close(self, life: int, closing: bool, opening: int, calls: int) -> None:
        """A market of its own, so that the others go on."""
        now_s = (self.sequence + 1) * 300_000_000 // 1_000_000_000
        if closing and self.listed > SHORT_LIVED:
            self.both(CommandKind.CLOSE_MARKET, instrument=self.listed)
            return
        self.listed += 1
        gate = {"expiry_s": now_s + life} if life else {}
        self.both(
            CommandKind.LIST_MARKET,
            instrument=self.listed,
            order_id=9,
            qty_lots=1,
            price_ticks=2,
            flags=opening,
            client_id=calls,
            **gate,
        )
        for account in ACCOUNTS:
            self.declare_capacity(account, self.listed, 900)

    @rule(orders=st.lists(BURST_ORDER, min_size=1, max_size=9), stop=st.integers(0, 103))
    def trade_where_it_may_close(
        self, orders: list[tuple[int, int, int, int, int, int]], stop: int
    ) -> None:
        for account, side, price, lots, tif, mode in orders:
            self.both(
                CommandKind.NEW_STOP if stop > 96 else CommandKind.NEW_ORDER,
                account=account,
                instrument=self.listed,
                side=side,
                price_ticks=price,
                qty_lots=lots,
                time_in_force=tif,
                self_trade=mode,
                order_id=stop if stop > 96 else 0,
            )

    @rule(
        orders=st.lists(GATHERED, min_size=1, max_size=16),
        until_s=st.sampled_from((0, 0, 1 << 20)),
        end=st.booleans(),
        instrument=st.sampled_from((INSTRUMENTS[0], INSTRUMENTS[0], INSTRUMENTS[1], SHORT_LIVED)),
    )
    def auction(
        self, orders: list[tuple[int, ...]], until_s: int, end: bool, instrument: int
    ) -> None:
        """Orders that cross gather in a call, with and without icebergs and short lives."""
        instrument = self.listed if instrument == SHORT_LIVED else instrument
        self.both(CommandKind.CALL_MARKET, instrument=instrument, expiry_s=until_s)
        for account, side, price, lots, display, life in orders:
            now_s = (self.sequence + 1) * 300_000_000 // 1_000_000_000
            self.both(
                CommandKind.NEW_ORDER,
                account=account,
                instrument=instrument,
                side=side,
                price_ticks=price,
                qty_lots=lots,
                time_in_force=TimeInForce.GTT if life else TimeInForce.GTC,
                order_id=order_terms(display_lots=min(display, lots)),
                expiry_s=now_s + life if life else 0,
                client_id=self.sequence,
            )
        self.both(CommandKind.INDICATE_MARKET, instrument=instrument)
        if end:
            self.both(CommandKind.UNCROSS_MARKET, instrument=instrument)

    @rule(
        kind=st.sampled_from((CommandKind.INDICATE_MARKET, *(CommandKind.UNCROSS_MARKET,) * 4)),
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
    )
    def uncross(self, kind: int, instrument: int) -> None:
        self.both(kind, instrument=instrument)

    @rule(
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
        static_ppm=st.sampled_from((0, 0, 0, 20_000, 1_000_000, 1_000_001)),
        dynamic_ppm=st.sampled_from((0, 0, 9_999, 10_000, 25_000, 1_000_000)),
        reference=st.sampled_from((0, 0, 100, 99, PRICE_TICKS_MAX, -1)),
        seconds=st.sampled_from((0, 1, 30, 86_400, 86_401)),
    )
    def set_bands(
        self, instrument: int, static_ppm: int, dynamic_ppm: int, reference: int, seconds: int
    ) -> None:
        self.both(
            CommandKind.SET_BANDS,
            instrument=instrument,
            order_id=static_ppm | dynamic_ppm << 32,
            price_ticks=reference,
            expiry_s=seconds,
        )

    @rule(changes=st.lists(CHANGE, min_size=1, max_size=6), data=st.data())
    def amend(self, changes: list[tuple[int, int, int, int, int]], data: st.DataObject) -> None:
        for stranger, price, lots, flags, mode in changes:
            orders = list(self.reference.orders.values())
            order = data.draw(st.sampled_from(orders)) if orders else None
            self.both(
                CommandKind.AMEND,
                account=stranger or (order.account if order else 1),
                order_id=order.order_id if order else self.order_ids[-1],
                price_ticks=price,
                qty_lots=lots,
                flags=flags,
                self_trade=mode,
            )

    @rule(account=st.sampled_from(ACCOUNTS), data=st.data())
    def expire(self, account: int, data: st.DataObject) -> None:
        mortal = [o.order_id for o in self.reference.orders.values() if o.expiry_s]
        order_id = data.draw(st.sampled_from(mortal or self.order_ids))
        self.both(CommandKind.EXPIRE, account=account, order_id=order_id)

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
        sides=st.integers(0, 3),
        session=st.sampled_from((0, 1, 2)),
    )
    def cancel_all(self, account: int, instrument: int, sides: int, session: int) -> None:
        self.both(
            CommandKind.CANCEL_ALL,
            account=account,
            instrument=instrument,
            flags=sides,
            session=session,
        )

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
        kind=st.sampled_from((
            CommandKind.CONFIRM_ESCROW,
            CommandKind.CONFIRM_WITHDRAWAL,
            CommandKind.CANCEL_WITHDRAWAL,
        )),
        account=st.sampled_from((*ACCOUNTS, 4)),
        amount=st.integers(0, 5000),
        reference=st.integers(0, 30),
    )  # fmt: skip
    def confirm(self, kind: int, account: int, amount: int, reference: int) -> None:
        self.both(kind, account=account, price_ticks=amount, client_id=reference)

    @rule(
        kind=st.sampled_from((
            CommandKind.CLOSE_ACCOUNT,
            CommandKind.REOPEN_ACCOUNT,
            CommandKind.REOPEN_ACCOUNT,  # or most commands would meet closed accounts
            CommandKind.REOPEN_ACCOUNT,
        )),
        account=st.sampled_from((*ACCOUNTS, 4)),
        instrument=ANY_U32,
    )  # fmt: skip
    def close_or_reopen(self, kind: int, account: int, instrument: int) -> None:
        self.both(kind, account=account, instrument=instrument)

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        amount=st.one_of(st.integers(-1, 5000), st.just(10**13)),
        ahead=st.sampled_from((1, 1, 1, 0, 2)),
    )
    def confirm_exit(self, account: int, amount: int, ahead: int) -> None:
        done = self.exits.get(account, 0)
        events = self.both(
            CommandKind.CONFIRM_EXIT, account=account, price_ticks=amount, client_id=done + ahead
        )
        self.exits[account] = done + (events[0].kind == EventKind.EXIT_CONFIRMED)

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        amount=st.one_of(st.integers(-1, 5000), st.just(10**13)),
        bond=st.one_of(st.integers(0, 5000), st.just(1 << 63)),
        ahead=st.sampled_from((1, 1, 1, 0, 2)),
    )
    def end_leases(self, account: int, amount: int, bond: int, ahead: int) -> None:
        events = self.both(
            CommandKind.END_LEASES,
            account=account,
            price_ticks=amount,
            order_id=bond,
            client_id=self.ends + ahead,
        )
        self.ends += events[0].kind == EventKind.LEASES_ENDED

    @rule(
        data=st.data(),
        more=st.sampled_from((0, 0, 0, 0, 1)),
        ahead=st.sampled_from((1, 1, 1, 0, 5)),
    )
    def void_a_fill(self, data: st.DataObject, more: int, ahead: int) -> None:
        if not self.fills:
            return
        fill = data.draw(st.sampled_from(self.fills))
        buyer, seller = fill.account, fill.counter_account
        if fill.side == Side.SELL:
            buyer, seller = seller, buyer
        events = self.both(
            CommandKind.VOID_FILL,
            account=buyer,
            order_id=seller | (self.voids + ahead) << 32,
            instrument=fill.instrument,
            price_ticks=fill.price_ticks,
            qty_lots=fill.qty_lots + more,
            expiry_s=fill.taker_fee_ppm if fill.side == Side.BUY else fill.maker_fee_ppm,
            resale=int(fill.reason == FillNote.RESOLD),
            client_id=7,
        )
        if events[0].kind == EventKind.FILL_VOIDED:
            self.voids += ahead

    @rule(
        account=st.sampled_from((*ACCOUNTS, 4)),
        seller=st.sampled_from((*ACCOUNTS, 4, (1 << 32) - 1)),
        number=st.integers(0, (1 << 32) - 1),
        instrument=st.sampled_from((*INSTRUMENTS, 2, (1 << 32) - 1)),
        price=st.sampled_from((-1, 0, 1, PRICE_TICKS_MAX, PRICE_TICKS_MAX + 1)),
        lots=st.sampled_from((-1, 0, 1, QTY_LOTS_MAX, QTY_LOTS_MAX + 1)),
    )
    def void_of_anything(
        self, account: int, seller: int, number: int, instrument: int, price: int, lots: int
    ) -> None:
        events = self.both(
            CommandKind.VOID_FILL,
            account=account,
            order_id=seller | number << 32,
            instrument=instrument,
            price_ticks=price,
            qty_lots=lots,
        )
        if events[0].kind == EventKind.FILL_VOIDED:
            self.voids = number

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
        kind=st.sampled_from((CommandKind.HALT_MARKET, *(CommandKind.RESUME_MARKET,) * 4)),
        instrument=st.sampled_from((*INSTRUMENTS, 2)),
    )
    def halt_or_resume(self, kind: int, instrument: int) -> None:
        self.both(kind, instrument=instrument)

    @rule(
        account=st.sampled_from(ACCOUNTS),
        windows=st.sampled_from(((0, 1), (0, 1), (0, 1), (0,), (1,), (1, 0), (0, 7))),
        price=st.integers(96, 106),
        lots=st.sampled_from((8, 8, 16, 24, 3)),
        dearest=st.sampled_from((0, 0, 101, 103)),
    )
    def block(
        self, account: int, windows: tuple[int, ...], price: int, lots: int, dearest: int
    ) -> None:
        self.both_several(
            CommandKind.BLOCK,
            [{"instrument": instrument, "price_ticks": dearest} for instrument in windows],
            account=account,
            price_ticks=price,
            qty_lots=lots,
        )

    @rule(
        kind=st.sampled_from((CommandKind.EXCLUSIVE, CommandKind.BASKET)),
        account=st.sampled_from((*ACCOUNTS, *ACCOUNTS, *ACCOUNTS, 4)),
        legs=st.lists(LEG, max_size=4),
        mode=st.sampled_from((*SelfTrade, SelfTrade.CANCEL_MAKER, SelfTrade.CANCEL_MAKER, 4)),
    )
    def legs(self, kind: int, account: int, legs: list[dict[str, int]], mode: int) -> None:
        self.both_several(kind, legs, account=account, self_trade=mode)

    @rule(
        kind=st.sampled_from((*OF_SEVERAL, CommandKind.NEW_ORDER)),
        parts=st.integers(0, 255),
        behind=st.lists(st.sampled_from((CommandKind.PART, CommandKind.PART, 2)), max_size=4),
    )
    def records_that_do_not_belong_together(self, kind: int, parts: int, behind: list[int]) -> None:
        head = Command(kind=kind, parts=parts, account=1, price_ticks=100, qty_lots=8)
        self.both_at_once([head, *(Command(kind=other, account=1) for other in behind)])

    @rule(
        side=st.sampled_from((Side.SELL, Side.SELL, Side.BUY)),
        orders=st.lists(
            st.tuples(
                st.sampled_from(ACCOUNTS),
                st.sampled_from(INSTRUMENTS),
                st.integers(97, 103),
                st.integers(1, 4),
                st.sampled_from((0, 0, 0, 8)),
            ),
            min_size=6,
            max_size=24,
        ),
    )
    def offers_in_every_market(
        self, side: int, orders: list[tuple[int, int, int, int, int]]
    ) -> None:
        for account, instrument, price, nodes, display in orders:
            self.both(
                CommandKind.NEW_ORDER,
                account=account,
                instrument=instrument,
                side=side,
                price_ticks=price,
                qty_lots=nodes * 8,
                order_id=order_terms(display_lots=display),
                self_trade=SelfTrade.CANCEL_MAKER,
            )

    @rule(kind=st.integers(0, 255), instrument=ANY_U32, account=ANY_U32, lots=st.integers(-1, 9))
    def any_kind_at_all(self, kind: int, instrument: int, account: int, lots: int) -> None:
        self.both(kind, instrument=instrument, account=account, qty_lots=lots)

    @invariant()
    def the_state_is_sound(self) -> None:
        check_invariants(self.matcher.state)
        assert self.matcher.state["total_usdc6"][0] == self.reference.total
        for account in self.reference.accounts:
            row = self.matcher.state["balances"][0, account].tolist()
            assert row == list(self.reference.balances(account))


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


def test_closing_an_account_of_many_orders_takes_as_many_commands_as_it_must() -> None:
    machine = KernelEqualsReference()
    machine.open_the_exchange()
    for i in range(EFFECTS_MAX + 3):
        machine.both(
            CommandKind.NEW_ORDER,
            account=1,
            instrument=INSTRUMENTS[0],
            side=Side.BUY,
            price_ticks=1 + i % 500,
            qty_lots=1,
        )
    first = machine.both(CommandKind.CLOSE_ACCOUNT, account=1)
    assert len(first) == EFFECTS_MAX + 1
    assert {e.reason for e in first[:-1]} == {CancelReason.ACCOUNT_CLOSED}
    assert (first[-1].qty_lots, first[-1].reason) == (EFFECTS_MAX, CancelReason.EFFECTS_LIMIT)
    second = machine.both(CommandKind.CLOSE_ACCOUNT, account=1)
    assert (len(second), second[-1].reason) == (4, 0)
    (third,) = machine.both(CommandKind.CLOSE_ACCOUNT, account=1)
    assert (third.kind, third.qty_lots) == (EventKind.ACCOUNT_CLOSED, 0)
    assert machine.reference.balances(1).held_usdc6 == 0
    machine.the_state_is_sound()


def test_a_closed_account_only_moves_money_until_it_is_reopened() -> None:
    machine = KernelEqualsReference()
    machine.open_the_exchange()
    order: dict[str, int] = {"account": 1, "price_ticks": 100, "qty_lots": 1}
    machine.both(CommandKind.CLOSE_ACCOUNT, account=1)
    for kind, fields in (
        (CommandKind.NEW_ORDER, order),
        (CommandKind.DECLARE_CAPACITY, {"account": 1, "qty_lots": 3000}),
    ):
        (refused,) = machine.both(kind, **fields)
        assert (refused.kind, refused.reason) == (EventKind.REJECTED, Reject.ACCOUNT_CLOSED)
    machine.deposit(1, 5, Purse.CASH, 0)
    (reserved,) = machine.both(CommandKind.WITHDRAW, account=1, price_ticks=10**12 + 5)
    assert reserved.kind == EventKind.WITHDRAWAL_RESERVED
    paid_back = {"account": 1, "price_ticks": 10**12 + 5, "client_id": reserved.reference}
    (cancelled,) = machine.both(CommandKind.CANCEL_WITHDRAWAL, **paid_back)
    assert cancelled.kind == EventKind.WITHDRAWAL_CANCELLED
    for kind in (CommandKind.CANCEL_WITHDRAWAL, CommandKind.CONFIRM_WITHDRAWAL):
        (again,) = machine.both(kind, **paid_back)
        assert again.reason == Reject.WITHDRAWAL_OUT_OF_ORDER
    machine.both(CommandKind.REOPEN_ACCOUNT, account=1)
    assert machine.both(CommandKind.NEW_ORDER, **order)[0].kind == EventKind.ACCEPTED


def test_a_voided_fill_leaves_both_sides_as_if_it_had_not_been() -> None:
    machine = KernelEqualsReference()
    machine.open_the_exchange()
    before = [machine.reference.balances(account) for account in ACCOUNTS]
    common: dict[str, int] = {"instrument": INSTRUMENTS[1], "price_ticks": 100, "qty_lots": 16}
    machine.both(CommandKind.NEW_ORDER, account=2, side=Side.SELL, **common)
    _, fill = machine.both(CommandKind.NEW_ORDER, account=1, side=Side.BUY, **common)
    assert fill.kind == EventKind.FILL
    void: dict[str, int] = {"account": 1, "order_id": 2 | 1 << 32, "client_id": 44, **common}
    (voided,) = machine.both(CommandKind.VOID_FILL, **void)
    assert (voided.kind, voided.reference, voided.counter_account) == (EventKind.FILL_VOIDED, 44, 2)
    assert [machine.reference.balances(account) for account in ACCOUNTS] == before
    (again,) = machine.both(CommandKind.VOID_FILL, **void)
    assert again.reason == Reject.VOID_OUT_OF_ORDER
    (more,) = machine.both(CommandKind.VOID_FILL, **{**void, "order_id": 2 | 2 << 32})
    assert more.reason == Reject.VOID_EXCEEDS_FILLS


def test_an_exit_takes_free_money_once() -> None:
    machine = KernelEqualsReference()
    machine.open_the_exchange()
    taken: dict[str, int] = {"account": 1, "price_ticks": 10**12, "client_id": 1}
    (more,) = machine.both(CommandKind.CONFIRM_EXIT, **{**taken, "price_ticks": 10**12 + 1})
    assert more.reason == Reject.EXIT_EXCEEDS_FREE
    (done,) = machine.both(CommandKind.CONFIRM_EXIT, **taken)
    assert done.kind == EventKind.EXIT_CONFIRMED
    assert machine.reference.balances(1).free_usdc6 == 0
    (again,) = machine.both(CommandKind.CONFIRM_EXIT, **taken)
    assert again.reason == Reject.EXIT_OUT_OF_ORDER
    machine.the_state_is_sound()
