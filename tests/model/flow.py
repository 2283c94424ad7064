"""A seeded stream of commands of every kind, drawn with an eye on what the exchange holds.

`MAKERS` is the table: a weight and a function that makes one command, given a `Flow`. Each episode
multiplies the weights by luck of its own, some by nothing, and draws how rich its accounts are and
how wide its prices spread, so that episodes go to different corners. Invariant: the same seed over
the same specification gives the same commands. A new kind of command is one more maker.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Final, TypeVar

from engine.records import (
    ACCOUNTS_MAX,
    ALL_INSTRUMENTS,
    AMOUNT_USDC6_MAX,
    BAND_PPM_MAX,
    BASKET_LEGS_MAX,
    BY_TIME,
    CALL_SECONDS_MAX,
    EXCLUSIVE_LEGS_MAX,
    FEE_PPM_MAX,
    FEE_TIERS,
    INSTRUMENTS_MAX,
    OF_SEVERAL,
    PARTS_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    SECOND_NS,
    SPOT_WINDOW,
    Command,
    CommandKind,
    Event,
    EventKind,
    FillNote,
    Flag,
    ListingFlag,
    MarketStatus,
    Purse,
    SelfTrade,
    Side,
    TimeInForce,
    order_terms,
)
from engine.reference import Reference
from engine.reference.state import Book, Order

Step = tuple[Command, ...]  # one command, and the records that belong to it
T = TypeVar("T")

# Markets of an episode: number, lots multiple, bond per lot. Numbers and accounts stay small, as
# each check after each step looks at all up to the highest.
MARKETS: Final = ((0, 1, 5), (1, 8, 1), (3, 1, 900), (8, 3, 40))
ACCOUNTS_MOST: Final = 6
LATE_ACCOUNT: Final = 8  # not open from the start
LATE_MARKETS: Final = range(9, 25)
STRANGERS: Final = (0, ACCOUNTS_MAX, (1 << 32) - 1)
NO_MARKETS: Final = (7, INSTRUMENTS_MAX, ALL_INSTRUMENTS)
# Far apart, so that tries grow and shrink, and where their levels begin and end.
FAR_PRICES: Final = (1, 63, 64, 65, 4_095, 4_096, 4_097, 262_143, 262_144, PRICE_TICKS_MAX)
# Where ranges end, and beyond.
EDGE_PRICES: Final = (
    -(1 << 63), -1, 0, 1, PRICE_TICKS_MAX, PRICE_TICKS_MAX + 1, 1 << 32, (1 << 63) - 1
)  # fmt: skip
EDGE_LOTS: Final = (-(1 << 31), -1, 0, QTY_LOTS_MAX, QTY_LOTS_MAX + 1, (1 << 31) - 1)
EDGE_AMOUNTS: Final = (-1, 0, 1, AMOUNT_USDC6_MAX, AMOUNT_USDC6_MAX + 1, (1 << 63) - 1)
CENTRES: Final = (100, 100, 64, 4_096, 24_150, PRICE_TICKS_MAX - 50)
LUCK: Final = (0, 0.3, 1, 1, 1, 3)  # what an episode may multiply a weight by
STEP_NS: Final = (0, 1_000_000, 300_000_000, 300_000_000, 2 * SECOND_NS)
DEEP_CLIPS: Final = 9_000  # refreshed and filled one by one: more events than a command may cause
REMEMBERED: Final = 64
SESSIONS: Final = (0, 1, 2, 255)


class Flow:
    """Draws the commands of one episode. After each, `observe` wants its events."""

    def __init__(self, chance: Random, reference: Reference) -> None:
        self.chance = chance
        self.reference = reference
        self.time_ns = 0
        self.fills: deque[Event] = deque(maxlen=REMEMBERED)
        self.order_ids: deque[int] = deque([0], maxlen=REMEMBERED)
        self.accounts = range(1, chance.randint(2, ACCOUNTS_MOST) + 1)
        self.markets = [row[0] for row in MARKETS[: chance.randint(1, len(MARKETS))]]
        self.fees = chance.random() < 0.5
        self.centres = {market: chance.choice(CENTRES) for market in self.markets}
        self.spread = chance.choice((2, 4, 10, 40))
        self.rich = chance.random() < 0.7
        self.capacity_lots = 10_000 if self.rich else 200
        # What an account starts with: enough for so many lots in the dearest market.
        self.cash_usdc6 = max(self.centres.values()) * (10_000 if self.rich else 60)
        dearest = max(bond for _, _, bond in MARKETS[: len(self.markets)])
        self.bond_usdc6 = dearest * chance.choice((10_000, 30))
        self._weights = [
            weight * max(chance.choice(LUCK), maker in RESTORING) for weight, maker in MAKERS
        ]
        self._next: deque[Step] = deque(self._opening())

    def next(self) -> Step:
        self.time_ns += self.chance.choice(STEP_NS)
        if self.one_in(8):
            self.time_ns += -self.time_ns % SECOND_NS
        if self.one_in(25):  # to the very moment when the next order ends
            mortal = [o for o in self.reference.orders.values() if o.expiry_s]
            if mortal:
                self._meet(min(mortal, key=lambda order: order.expiry_s))
        if not self._next:
            [(_, maker)] = self.chance.choices(MAKERS, self._weights)
            if self.is_over_everywhere() and self.one_in(10):
                maker = list_market
            made = maker(self)
            self._next.appendleft((made,) if isinstance(made, Command) else made)
        return tuple(record._replace(time_ns=self.time_ns) for record in self._next.popleft())

    def observe(self, events: list[Event]) -> None:
        for event in events[:REMEMBERED]:
            if event.kind == EventKind.ACCEPTED:
                self.order_ids.append(event.order_id)
            elif event.kind == EventKind.FILL:
                self.fills.append(event)
            elif event.kind == EventKind.MARKET_LISTED and event.instrument not in self.markets:
                self.markets.append(event.instrument)
                self.centres[event.instrument] = self.chance.choice(CENTRES[:3])

    def then(self, *made: Command | Step) -> None:
        """What comes after the command that is being made."""
        self._next.extend((each,) if isinstance(each, Command) else each for each in made)

    def _opening(self) -> Iterable[Step]:
        for number, multiple, bond in MARKETS[: len(self.markets)]:
            closes_s = self.chance.choice((0, 0, 0, 400, 1_000))
            yield (list_command(number, multiple, bond)._replace(expiry_s=closes_s),)
        if self.fees:
            yield (set_fees(self),)
        deposit = 0
        for account in self.accounts:
            yield (Command(kind=CommandKind.OPEN_ACCOUNT, account=account, order_id=account << 40),)
            for purse in Purse:
                deposit += 1
                amount = self.cash_usdc6 if purse == Purse.CASH else self.bond_usdc6
                yield (deposit_command(account, amount, deposit, purse),)
            for market in self.markets:
                yield (capacity_command(account, market, self.capacity_lots),)

    # --- what makers draw from ------------------------------------------------------------------

    def _meet(self, order: Order) -> None:
        """Somebody wants to trade with an order in the moment in which it ends."""
        self.time_ns = max(self.time_ns, order.expiry_s * SECOND_NS)
        taker = limit_order(self, order.instrument, Side(1 - order.side))
        self._next.appendleft((taker._replace(price_ticks=order.price_ticks),))

    def one_in(self, n: int) -> bool:
        return self.chance.randrange(n) == 0

    def mostly(self, usual: T, others: Iterable[T], n: int) -> T:
        """One in n times one of the others."""
        return self.chance.choice(tuple(others)) if self.one_in(n) else usual

    def account(self) -> int:
        return self.mostly(self.chance.choice(self.accounts), (*STRANGERS, LATE_ACCOUNT), 60)

    def market(self) -> int:
        others = (*NO_MARKETS, *LATE_MARKETS[:2], *self.markets)
        return self.mostly(self.chance.choice(self.open_markets() or self.markets), others, 60)

    def open_markets(self) -> list[int]:
        """Those that are not closed for good."""
        books = self.reference.books
        return [number for number in self.markets if not self.is_over(books.get(number))]

    def is_over_everywhere(self) -> bool:
        return not self.open_markets()

    def is_over(self, book: Book | None) -> bool:
        """Whether nobody will trade there any more."""
        if book is None:
            return False
        shut = 0 < book.closes_s <= self.now_s()
        return shut or book.status is MarketStatus.CLOSED

    def price(self, market: int, side: int) -> int:
        """Around the market's centre, and mostly on the side's own half."""
        if self.one_in(50):
            return self.chance.choice(FAR_PRICES)
        away = self.chance.randint(-max(1, self.spread // 4), self.spread)
        if self.one_in(5):
            away = -away
        centre = self.centres.get(market, CENTRES[0])
        if self.one_in(200) and market in self.centres:
            self.centres[market] = min(max(centre + away, 2), PRICE_TICKS_MAX)
        price = centre + (away if side == Side.SELL else -away)
        return min(max(price, 1), PRICE_TICKS_MAX)

    def multiple(self, market: int) -> int:
        book = self.reference.books.get(market)
        return min(book.lot_multiple, DEEP_CLIPS) if book else 1  # many times it is in range

    def resale(self, market: int, side: int) -> int:
        """1 where the hours of a window are sold again."""
        book = self.reference.books.get(market)
        usual = side == Side.SELL and book is not None and book.is_window and self.one_in(3)
        return self.mostly(int(usual), (1, 2, 255), 100)

    def lots(self, market: int, most: int = 12) -> int:
        lots = self.chance.randint(1, most * 5 if self.one_in(20) else most)
        off = self.mostly(0, (1,), 50)
        return lots * self.multiple(market) + off

    def now_s(self) -> int:
        return self.time_ns // SECOND_NS

    def soon_s(self) -> int:
        """A time at which an order may end: this second, which is over, or a later one."""
        return self.now_s() + self.chance.randint(0, self.chance.choice((1, 40)))

    def open_order(self, *, mortal: bool = False) -> tuple[int, int]:
        """(account, order id) of an open order, or of one that was, or of a stranger."""
        orders = [o for o in self.reference.orders.values() if o.expiry_s or not mortal]
        if not orders or self.one_in(25):
            return self.account(), self.chance.choice(self.order_ids)
        order = self.chance.choice(orders)
        return self.mostly(order.account, self.accounts, 40), order.order_id


Maker = Callable[[Flow], Command | Step]


# --- commands that more than one maker needs -----------------------------------------------------


def list_command(market: int, multiple: int, bond_usdc6: int) -> Command:
    return Command(
        kind=CommandKind.LIST_MARKET,
        instrument=market,
        # Of odd numbers hours of a window, one after the other.
        order_id=(market + 1) // 2 + (SPOT_WINDOW + market % 2 << 24),
        qty_lots=multiple,
        price_ticks=bond_usdc6,
    )


def deposit_command(account: int, amount_usdc6: int, number: int, purse: int) -> Command:
    return Command(
        kind=CommandKind.DEPOSIT,
        account=account,
        price_ticks=amount_usdc6,
        client_id=number,
        side=purse,
    )


def capacity_command(account: int, market: int, lots: int) -> Command:
    return Command(
        kind=CommandKind.DECLARE_CAPACITY, account=account, instrument=market, qty_lots=lots
    )


# --- orders --------------------------------------------------------------------------------------


def limit_order(flow: Flow, market: int | None = None, side: Side | None = None) -> Command:
    chance = flow.chance
    market = flow.market() if market is None else market
    side = chance.choice(tuple(Side)) if side is None else side
    tifs = (TimeInForce.GTC,) * 5 + (TimeInForce.IOC, TimeInForce.FOK)
    return Command(
        kind=CommandKind.NEW_ORDER,
        account=flow.account(),
        instrument=market,
        side=side,
        price_ticks=flow.mostly(flow.price(market, side), EDGE_PRICES, 100),
        qty_lots=flow.mostly(flow.lots(market), EDGE_LOTS, 100),
        time_in_force=chance.choice(tifs),
        self_trade=chance.choice(tuple(SelfTrade)),
        flags=flow.mostly(0, (Flag.POST_ONLY,), 8),
        client_id=chance.randrange(1 << 53),
        session=flow.mostly(0, SESSIONS, 3),
        resale=flow.resale(market, side),
    )


def resting_order(flow: Flow) -> Command:
    return limit_order(flow)._replace(time_in_force=TimeInForce.GTC)


def larger(lots: int, times: int) -> int:
    """So many times the lots, unless they are out of range already."""
    return lots * times if 0 < lots < DEEP_CLIPS else lots


def iceberg(flow: Flow) -> Command:
    order = limit_order(flow)
    multiple = flow.multiple(order.instrument)
    display = multiple * flow.chance.choice((1, 1, 2, 3, 7)) + flow.mostly(0, (1,), 30)
    return order._replace(
        time_in_force=flow.mostly(TimeInForce.GTC, (TimeInForce.IOC,), 30),
        qty_lots=larger(order.qty_lots, flow.chance.choice((1, 3))),
        order_id=order_terms(display_lots=display),
    )


def minimum_quantity(flow: Flow) -> Command:
    order = limit_order(flow)
    minimum = flow.multiple(order.instrument) * flow.chance.choice((1, 2, 5, 12))
    return order._replace(order_id=order_terms(min_lots=minimum + flow.mostly(0, (1,), 30)))


def good_till_time(flow: Flow) -> Command:
    return limit_order(flow)._replace(
        time_in_force=flow.mostly(TimeInForce.GTT, tuple(TimeInForce), 20),
        expiry_s=flow.soon_s(),
    )


def market_order(flow: Flow) -> Command:
    return limit_order(flow)._replace(
        flags=Flag.MARKET,
        price_ticks=flow.mostly(flow.chance.randint(0, flow.spread), EDGE_PRICES, 50),
        time_in_force=flow.mostly(TimeInForce.IOC, tuple(TimeInForce), 4),
    )


def all_or_none(flow: Flow) -> Command:
    tif = flow.mostly(TimeInForce.GTC, tuple(TimeInForce), 6)
    order = limit_order(flow)
    return order._replace(
        flags=Flag.ALL_OR_NONE,
        qty_lots=larger(order.qty_lots, flow.chance.choice((1, 2, 4))),
        time_in_force=tif,
        expiry_s=flow.soon_s() if tif == TimeInForce.GTT else 0,
        order_id=flow.mostly(0, (order_terms(display_lots=1), order_terms(min_lots=1)), 30),
    )


def stop_order(flow: Flow) -> Command:
    order, chance = limit_order(flow), flow.chance
    market = chance.random() < 0.3
    usual = TimeInForce.IOC if market else chance.choice((TimeInForce.GTC, TimeInForce.GTT))
    tif = flow.mostly(usual, tuple(TimeInForce), 10)
    away = flow.mostly(chance.randint(0, flow.spread), EDGE_PRICES, 30)
    flags = Flag.MARKET if market else flow.mostly(0, (Flag.POST_ONLY, Flag.ALL_OR_NONE, 9), 30)
    # A stop on its own side of the market, where trades reach it as they move away.
    stop = flow.price(order.instrument, 1 - order.side if order.side <= Side.SELL else 0)
    return order._replace(
        kind=CommandKind.NEW_STOP,
        order_id=flow.mostly(stop, (0, PRICE_TICKS_MAX + 1, (1 << 32) - 1), 30),
        price_ticks=away if market else order.price_ticks,
        flags=flags,
        time_in_force=tif,
        expiry_s=flow.soon_s() if (tif == TimeInForce.GTT) != flow.one_in(30) else 0,
    )


def order_with_any_terms(flow: Flow) -> Command:
    """Terms of every kind at once, most of which contradict each other."""
    order, chance = limit_order(flow), flow.chance
    terms = order_terms(
        display_lots=chance.choice((0, 0, 1, 2, 8)), min_lots=chance.choice((0, 0, 1, 5, 16))
    )
    return order._replace(
        time_in_force=chance.choice(tuple(TimeInForce)),
        flags=chance.choice((0, 0, *Flag)),
        expiry_s=chance.choice((0, 0, flow.soon_s())),
        kind=chance.choice((CommandKind.NEW_ORDER, CommandKind.NEW_ORDER, CommandKind.NEW_STOP)),
        order_id=terms,
    )


def hostile_order(flow: Flow) -> Command:
    """Any bytes at all in some of its fields."""
    chance = flow.chance
    order = limit_order(flow)
    anything = {
        "side": chance.randrange(256),
        "time_in_force": chance.randrange(256),
        "self_trade": chance.randrange(256),
        "flags": chance.randrange(256),
        "order_id": chance.getrandbits(64),
        "expiry_s": chance.getrandbits(32),
        "price_ticks": chance.choice(EDGE_PRICES),
        "qty_lots": chance.choice(EDGE_LOTS),
    }
    some = chance.sample(sorted(anything), chance.randint(1, 3))
    kind = flow.mostly(order.kind, (CommandKind.NEW_STOP,), 3)
    return order._replace(kind=kind, **{name: anything[name] for name in some})


# --- of several records --------------------------------------------------------------------------


def of_several(head: Command, legs: Iterable[Command]) -> Step:
    parts = [leg._replace(kind=CommandKind.PART) for leg in legs]
    return head._replace(parts=min(len(parts), 255)), *parts


def _leg(flow: Flow, market: int, side: Side) -> Command:
    """One that mostly finds somebody: at the price of the other side, for what stands there."""
    order, other = limit_order(flow, market, side), Side(1 - side)
    book = flow.reference.books.get(market)
    best = book.best(other) if book else None
    if book is None or best is None or flow.one_in(8):
        return order
    there = sum(maker.left for maker in book.sides[other][best])
    lots = flow.multiple(market) * flow.chance.randint(1, 12)
    return order._replace(
        price_ticks=best,
        qty_lots=lots if flow.one_in(5) else min(there, lots),
        resale=flow.mostly(0, (1,), 15),
    )


def exclusive(flow: Flow) -> Step:
    count = flow.mostly(flow.chance.randint(1, 4), (0, EXCLUSIVE_LEGS_MAX + 1), 20)
    legs = [_leg(flow, flow.market(), Side.BUY) for _ in range(count)]
    if flow.one_in(15) and legs:
        legs[-1] = legs[-1]._replace(side=flow.mostly(Side.SELL, (2,), 5))
    return of_several(limit_order(flow)._replace(kind=CommandKind.EXCLUSIVE), legs)


def basket(flow: Flow) -> Step:
    markets = flow.open_markets()
    chosen = flow.chance.sample(markets, min(len(markets), flow.chance.choice((1, 2, 2, 3))))
    legs = [_leg(flow, market, flow.chance.choice(tuple(Side))) for market in chosen]
    if flow.one_in(15):
        legs *= flow.chance.choice((0, 2, BASKET_LEGS_MAX + 1))
    return of_several(limit_order(flow)._replace(kind=CommandKind.BASKET), legs)


def mass_quote(flow: Flow) -> Step:
    """A ladder around the centre: bids below, asks above, or nothing; some levels meet somebody."""
    chance, market = flow.chance, flow.market()
    head = limit_order(flow)._replace(
        kind=CommandKind.MASS_QUOTE,
        instrument=market,
        time_in_force=0,
        flags=flow.mostly(0, (Flag.POST_ONLY, Flag.POST_ONLY, Flag.POST_ONLY, Flag.MARKET), 2),
        self_trade=flow.mostly(chance.choice(tuple(SelfTrade)), (4, 255), 40),
    )
    middle = flow.price(market, Side.SELL)
    levels: list[Command] = []
    for _ in range(flow.mostly(chance.randint(1, 6), (0, 0, 0, PARTS_MAX), 6)):
        order = limit_order(flow)
        away = chance.randint(0, flow.spread) + (order.side == Side.SELL)
        price = middle + (away if order.side == Side.SELL else -away)
        wrong = flow.one_in(60)
        levels.append(
            order._replace(
                price_ticks=order.price_ticks if wrong else min(max(price, 1), PRICE_TICKS_MAX),
                qty_lots=order.qty_lots if wrong else flow.multiple(market) * chance.randint(1, 5),
                resale=order.resale if wrong else 0,
            )
        )
    return of_several(head, levels)


def block(flow: Flow) -> Step:
    """Of one hour or more of those that follow each other, mostly."""
    chance = flow.chance
    hours = [market for market in flow.open_markets() if market % 2]
    first = chance.choice(hours or flow.markets)
    windows = [first]
    while windows[-1] + 2 in hours and chance.random() < 0.7:
        windows.append(windows[-1] + 2)
    if flow.one_in(15):
        windows.append(windows[-1] + 2)
    if flow.one_in(20):
        chance.shuffle(windows)
        windows = windows[chance.randint(0, 1) :]
    usual = flow.price(first, Side.SELL)
    order = limit_order(flow, first, flow.mostly(Side.BUY, (Side.SELL,), 30))._replace(
        kind=CommandKind.BLOCK,
        qty_lots=flow.lots(first, chance.choice((1, 4))),
        price_ticks=usual + flow.spread,
    )
    dearest = flow.mostly(flow.mostly(0, (usual,), 3), EDGE_PRICES, 30)
    return of_several(order, (Command(instrument=w, price_ticks=dearest) for w in windows))


def records_that_do_not_belong_together(flow: Flow) -> Step:
    """A head without all its parts, parts without a head, others in between."""
    chance = flow.chance
    kinds = (*OF_SEVERAL, CommandKind.NEW_ORDER, CommandKind.PART)
    head = limit_order(flow)._replace(kind=chance.choice(kinds), parts=chance.randrange(256))
    behind = [limit_order(flow) for _ in range(chance.randint(0, 3))]
    return head, *(flow.mostly(c._replace(kind=CommandKind.PART), (c,), 3) for c in behind)


# --- more than one command may do, changed and ended ---------------------------------------------


def deep_iceberg(flow: Flow) -> Command:
    """More clips than one command may refresh and fill, and an order that meets them all."""
    market = flow.chance.choice(flow.markets)
    multiple = flow.multiple(market)
    buyer, seller = flow.chance.sample(flow.accounts, 2)
    lots, price = DEEP_CLIPS * multiple, 2
    deposit = flow.reference.last_deposit
    order = Command(kind=CommandKind.NEW_ORDER, instrument=market, price_ticks=price, qty_lots=lots)
    flow.then(
        deposit_command(seller, 10**8, deposit + 2, Purse.BOND),
        capacity_command(seller, market, QTY_LOTS_MAX),
        order._replace(account=buyer, order_id=order_terms(display_lots=multiple)),
        of_several(
            Command(kind=CommandKind.BASKET, account=seller, self_trade=SelfTrade.CANCEL_MAKER),
            [order._replace(side=Side.SELL)],
        ),
        order._replace(
            account=seller,
            side=Side.SELL,
            time_in_force=flow.chance.choice((TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK)),
            self_trade=flow.chance.choice(tuple(SelfTrade)),
        ),
    )
    return deposit_command(buyer, 10**8, deposit + 1, Purse.CASH)


def amend(flow: Flow) -> Command:
    account, order_id = flow.open_order()
    order = flow.reference.orders.get(order_id)
    chance = flow.chance
    market, side = (order.instrument, order.side) if order else (0, 0)
    lots = (
        0,
        flow.lots(market),
        order.left if order else 1,
        max(1, order.left - 1 if order else 1),
    )
    return Command(
        kind=CommandKind.AMEND,
        account=account,
        order_id=order_id,
        price_ticks=flow.mostly(chance.choice((0, flow.price(market, side))), EDGE_PRICES, 50),
        qty_lots=flow.mostly(chance.choice(lots), EDGE_LOTS, 50),
        flags=flow.mostly(chance.choice((0, 0, Flag.POST_ONLY)), (2, 3, 4, 255), 50),
        self_trade=flow.mostly(chance.choice(tuple(SelfTrade)), (4, 255), 50),
    )


def cancel(flow: Flow) -> Command:
    account, order_id = flow.open_order()
    return Command(
        kind=CommandKind.CANCEL,
        account=account,
        order_id=flow.mostly(order_id, (flow.chance.getrandbits(64),), 50),
    )


def expire(flow: Flow) -> Command:
    account, order_id = flow.open_order(mortal=True)
    return Command(kind=CommandKind.EXPIRE, account=account, order_id=order_id)


def cancel_all(flow: Flow) -> Command:
    return Command(
        kind=CommandKind.CANCEL_ALL,
        account=flow.account(),
        instrument=flow.mostly(flow.market(), (ALL_INSTRUMENTS,), 3),
        flags=flow.mostly(flow.chance.randrange(3), (3, 255), 20),
        session=flow.chance.choice(SESSIONS),
    )


# --- money and capacity --------------------------------------------------------------------------


def declare_capacity(flow: Flow) -> Command:
    """What the account has promised in this market, and mostly some more."""
    account, market = flow.account(), flow.market()
    row = flow.reference.capacities.get((account, market))
    promised = row.held + row.sold if row else 0
    more = flow.chance.randint(-3, flow.chance.choice((10, flow.capacity_lots)))
    return capacity_command(account, market, flow.mostly(promised + more, EDGE_LOTS, 20))


def deposit(flow: Flow) -> Command:
    number = flow.reference.last_deposit + flow.mostly(1, (0, 2), 20)
    purse = flow.chance.choice(tuple(Purse))
    amount = flow.chance.randint(1, flow.bond_usdc6 if purse == Purse.BOND else flow.cash_usdc6)
    return deposit_command(flow.account(), flow.mostly(amount, EDGE_AMOUNTS, 20), number, purse)


def _move_of(flow: Flow, kind: int, balance: str, number: int) -> Command:
    """A little of what lies in one balance of an account, sometimes all and a little more."""
    number_of_account = flow.account()
    account = flow.reference.accounts.get(number_of_account)
    there = getattr(account, balance) if account else 0
    amount = flow.mostly(there // 20 or there, (there // 3, there, there + 1), 3)
    return Command(
        kind=kind,
        account=number_of_account,
        price_ticks=flow.mostly(amount, EDGE_AMOUNTS, 20),
        client_id=number,
    )


def withdraw(flow: Flow) -> Command:
    return _move_of(flow, CommandKind.WITHDRAW, "free", 0)


def answer_withdrawal(flow: Flow) -> Command:
    kinds = (CommandKind.CONFIRM_WITHDRAWAL, CommandKind.CANCEL_WITHDRAWAL)
    number = flow.reference.last_withdrawal + flow.mostly(1, (0, 3), 10)
    return _move_of(flow, flow.chance.choice(kinds), "leaving", number)


def confirm_escrow(flow: Flow) -> Command:
    command = _move_of(flow, CommandKind.CONFIRM_ESCROW, "pending", 0)
    account = flow.reference.accounts.get(command.account)
    batch = account.last_batch if account else 0
    return command._replace(client_id=batch + flow.mostly(1, (0, 5), 10))


def confirm_exit(flow: Flow) -> Command:
    command = _move_of(flow, CommandKind.CONFIRM_EXIT, "free", 0)
    account = flow.reference.accounts.get(command.account)
    exits = account.exits if account else 0
    return command._replace(client_id=exits + flow.mostly(1, (0, 2, 1 << 40), 10))


def end_leases(flow: Flow) -> Command:
    number = flow.reference.last_end + flow.mostly(1, (0, 2, 1 << 40), 10)
    command = _move_of(flow, CommandKind.END_LEASES, "escrow", number)
    account = flow.reference.accounts.get(command.account)
    there = account.bond_locked if account else 0
    bond = flow.mostly(there // 20, (0, there, there + 1, 1 << 63), 3)
    return command._replace(order_id=bond)


def void_fill(flow: Flow) -> Command:
    """A fill that was, sometimes with one number wrong."""
    number = flow.reference.last_void + flow.mostly(1, (0, 7), 10)
    seller, command = 1, Command(kind=CommandKind.VOID_FILL, account=2, price_ticks=1, qty_lots=1)
    if flow.fills:
        fill = flow.chance.choice(flow.fills)
        bought = fill.side == Side.BUY
        seller = fill.counter_account if bought else fill.account
        command = command._replace(
            account=fill.account if bought else fill.counter_account,
            instrument=fill.instrument,
            price_ticks=fill.price_ticks,
            qty_lots=fill.qty_lots,
            client_id=fill.sequence,
            expiry_s=fill.taker_fee_ppm if bought else fill.maker_fee_ppm,
            resale=int(fill.reason & FillNote.RESOLD != 0),
        )
    wrong = {
        "expiry_s": FEE_PPM_MAX + 1,
        "resale": flow.chance.choice((0, 1, 2)),
        "account": flow.account(),
        "instrument": flow.market(),
        "price_ticks": flow.chance.choice(EDGE_PRICES),
        "qty_lots": flow.chance.choice(EDGE_LOTS),
    }
    if flow.one_in(6):
        name = flow.chance.choice(sorted(wrong))
        command = command._replace(**{name: wrong[name]})
    return command._replace(order_id=flow.mostly(seller, STRANGERS, 30) | number << 32)


def open_account(flow: Flow) -> Command:
    return Command(
        kind=CommandKind.OPEN_ACCOUNT,
        account=flow.chance.choice((*flow.accounts, LATE_ACCOUNT, *STRANGERS)),
        order_id=flow.chance.getrandbits(64),
        price_ticks=flow.chance.getrandbits(62),
        qty_lots=flow.chance.getrandbits(30),
    )


def close_account(flow: Flow) -> Command:
    sides = flow.mostly(0, (1, 2, 255), 4)
    instrument = flow.chance.getrandbits(32)
    return Command(
        kind=CommandKind.CLOSE_ACCOUNT, account=flow.account(), instrument=instrument, flags=sides
    )


def reopen_account(flow: Flow) -> Command:
    closed = [number for number, account in flow.reference.accounts.items() if account.closed]
    if not closed and not flow.one_in(6):
        return resting_order(flow)
    account = flow.chance.choice(closed) if closed else flow.account()
    return Command(kind=CommandKind.REOPEN_ACCOUNT, account=account)


def set_fees(flow: Flow) -> Command:
    chance = flow.chance
    rates = (0, 100, 1_000, 2_500, FEE_PPM_MAX)
    maker, taker = sorted((chance.choice(rates), chance.choice(rates)))
    if flow.one_in(8):
        maker, taker = flow.mostly(taker + 1, (1 << 15,), 2), maker
    return Command(
        kind=CommandKind.SET_FEES,
        side=flow.mostly(chance.randrange(3), (FEE_TIERS, FEE_TIERS - 1, 255), 8),
        order_id=maker | taker << 16,
    )


def set_fee_tier(flow: Flow) -> Command:
    tier = flow.mostly(flow.chance.randrange(3), (FEE_TIERS, FEE_TIERS - 1, 255), 8)
    return Command(kind=CommandKind.SET_FEE_TIER, account=flow.account(), side=tier)


# --- markets -------------------------------------------------------------------------------------


def list_market(flow: Flow) -> Command:
    """A new one when another has closed, mostly; with a gate of its own, or none."""
    fresh = [market for market in LATE_MARKETS if market not in flow.reference.books]
    market = flow.chance.choice((*flow.markets, *NO_MARKETS[1:]))
    if fresh and (len(flow.open_markets()) < 2 or flow.one_in(30)):
        market = fresh[0]
        flow.then(*(capacity_command(who, market, flow.capacity_lots) for who in flow.accounts))
    command = list_command(market, flow.chance.choice((1, 2)), flow.chance.choice((1, 70)))
    closes_s = flow.chance.choice((0, flow.now_s() + flow.chance.randint(60, 2_000)))
    command = command._replace(expiry_s=closes_s)
    edges = {
        "expiry_s": max(1, flow.now_s() + flow.chance.choice((-1, 0, 1))),
        "order_id": flow.chance.choice((0, 1)),
        "qty_lots": flow.chance.choice(EDGE_LOTS),
        "price_ticks": flow.chance.choice(EDGE_PRICES),
        "flags": flow.chance.choice((2, 255)),
        "client_id": flow.chance.choice((1, 1 << 32, flow.chance.getrandbits(64))),
    }
    if flow.one_in(4):
        opens_s = flow.mostly(0, (flow.now_s(), flow.now_s() + 30, flow.now_s() + 4_000), 2)
        command = command._replace(flags=ListingFlag.OPENING_CALL, client_id=opens_s)
    if closes_s and flow.one_in(3):
        command = command._replace(client_id=command.client_id | 20 << 32)
    if flow.one_in(3):
        name = flow.chance.choice(sorted(edges))
        command = command._replace(**{name: edges[name]})
    return command


def halt_market(flow: Flow) -> Command:
    return Command(kind=CommandKind.HALT_MARKET, instrument=flow.market())


def resume_market(flow: Flow) -> Command:
    books = flow.reference.books.items()
    halted = [number for number, book in books if book.status is MarketStatus.HALTED]
    if not halted and not flow.one_in(6):
        return resting_order(flow)
    market = flow.chance.choice(halted) if halted else flow.market()
    return Command(kind=CommandKind.RESUME_MARKET, instrument=market)


def close_market(flow: Flow) -> Command:
    """One whose gate is shut, and sometimes another."""
    books = flow.reference.books.items()
    shut = [
        number
        for number, book in books
        if 0 < book.closes_s <= flow.now_s() and book.status is not MarketStatus.CLOSED
    ]
    market = flow.chance.choice(shut) if shut else flow.mostly(NO_MARKETS[0], (flow.market(),), 6)
    flags = flow.chance.choice((0, BY_TIME))
    return Command(kind=CommandKind.CLOSE_MARKET, instrument=market, flags=flags)


def call_market(flow: Flow) -> Command:
    """With some orders that cross, and mostly an end."""
    chance, market = flow.chance, flow.market()
    for _ in range(chance.randint(0, 9)):
        order = chance.choice((resting_order, resting_order, iceberg, good_till_time))(flow)
        side = chance.choice(tuple(Side))
        price = flow.price(market, 1 - side)
        # No offers of hours bought, which others may have none of.
        flow.then(order._replace(instrument=market, side=side, price_ticks=price, resale=0))
    flow.then(Command(kind=CommandKind.INDICATE_MARKET, instrument=market))
    if not flow.one_in(3):
        flow.then(Command(kind=CommandKind.UNCROSS_MARKET, instrument=market))
    until_s = chance.choice((0, flow.now_s(), flow.now_s() + chance.randint(1, 90)))
    flags = chance.choice((0, 0, BY_TIME))
    return Command(kind=CommandKind.CALL_MARKET, instrument=market, expiry_s=until_s, flags=flags)


def uncross_market(flow: Flow) -> Command:
    books = flow.reference.books.items()
    called = [number for number, book in books if book.status is MarketStatus.CALL]
    if not called and not flow.one_in(6):
        return resting_order(flow)
    kinds = (CommandKind.UNCROSS_MARKET, CommandKind.UNCROSS_MARKET, CommandKind.INDICATE_MARKET)
    market = flow.chance.choice(called) if called else flow.market()
    flags = flow.chance.choice((0, 0, BY_TIME))
    return Command(kind=flow.chance.choice(kinds), instrument=market, flags=flags)


def set_bands(flow: Flow) -> Command:
    chance, market = flow.chance, flow.market()
    static_ppm = chance.choice((0, 0, 0, 100_000, 400_000))
    dynamic_ppm = chance.choice((0, 0, 5_000, 30_000, 100_000))
    seconds = chance.choice((1, 30, CALL_SECONDS_MAX)) if dynamic_ppm else 0
    wrong = {
        "order_id": chance.choice((BAND_PPM_MAX + 1, BAND_PPM_MAX + 1 << 32)),
        "price_ticks": chance.choice(EDGE_PRICES[:2] + EDGE_PRICES[3:]),
        "expiry_s": chance.choice((0, CALL_SECONDS_MAX + 1)),
    }
    command = Command(
        kind=CommandKind.SET_BANDS,
        instrument=market,
        order_id=static_ppm | dynamic_ppm << 32,
        price_ticks=chance.choice((0, flow.centres.get(market, CENTRES[0]))),
        expiry_s=seconds,
    )
    if flow.one_in(8):
        name = chance.choice(sorted(wrong))
        command = command._replace(**{name: wrong[name]})
    return command


def any_kind_at_all(flow: Flow) -> Command:
    chance = flow.chance
    return Command(
        kind=chance.randrange(256),
        account=flow.account(),
        instrument=flow.market(),
        order_id=chance.choice((0, chance.getrandbits(64))),
        price_ticks=chance.choice((0, 100, *EDGE_PRICES)),
        qty_lots=chance.choice((0, 1, 24, *EDGE_LOTS)),
        client_id=chance.choice((0, chance.getrandbits(64))),
        side=chance.choice((0, 1, chance.randrange(256))),
    )


MAKERS: Final[tuple[tuple[float, Maker], ...]] = (
    (30, limit_order),
    (35, resting_order),
    (6, iceberg),
    (4, minimum_quantity),
    (6, good_till_time),
    (5, market_order),
    (5, all_or_none),
    (6, stop_order),
    (3, order_with_any_terms),
    (2, hostile_order),
    (5, exclusive),
    (4, basket),
    (6, block),
    (10, mass_quote),
    (1, records_that_do_not_belong_together),
    (0.02, deep_iceberg),
    (12, amend),
    (6, cancel),
    (2, expire),
    (0.7, cancel_all),
    (3, declare_capacity),
    (2, deposit),
    (1, withdraw),
    (2, answer_withdrawal),
    (2, confirm_escrow),
    (0.7, confirm_exit),
    (0.7, end_leases),
    (2, void_fill),
    (0.5, open_account),
    (0.4, close_account),
    (4, reopen_account),
    (0.8, list_market),
    (0.6, halt_market),
    (4, resume_market),
    (0.4, close_market),
    (1.5, call_market),
    (6, uncross_market),
    (0.7, set_bands),
    (0.3, set_fees),
    (0.6, set_fee_tier),
    (1, any_kind_at_all),
)
# Without these an episode would come to rest.
RESTORING: Final = frozenset({
    declare_capacity, deposit, reopen_account, resume_market, list_market, uncross_market
})  # fmt: skip
