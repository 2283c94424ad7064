"""What the gateway knows of the exchange, rebuilt from its events: markets, books, open orders.

Invariant: after the events of a whole command, every level is the sum of what the open orders at
its price show, and no book of an open market is crossed. Only the feed changes it; sessions read it
through the feed.

How a book follows from events: ACCEPTED adds the order's quantity at its side and limit; FILL takes
from the maker at the maker's price and from the taker at the taker's own limit; DECREMENTED takes
what it says. WAITING takes an order off, whole, until it is TRIGGERED. So a taker that never rests
nets to nothing. CONCEALED takes off what an iceberg that has come to rest does not show, REFRESHED
adds what it shows next, and CANCELLED takes what was still shown. AMENDED takes from where the
order stood, concealed lots first; if it lost its place (`reason` 1) it comes again, whole, at its
new price.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec
from compex_client import messages as m
from compex_client.book import Book
from compex_client.units import price_text, qty_text, usdc_text

from engine.catalog import Catalog
from engine.records import Event, MarketStatus, Side
from gateway import translate, wildcards
from gateway.translate import SIDE_NAMES, STATUS_NAMES

CLOSED_ORDERS_KEPT: Final = 256  # of each account, for questions about what became of them
TRADES_KEPT: Final = 50  # of each market, for new subscribers


class OpenOrder(msgspec.Struct, array_like=True, gc=False):
    """One accepted order, while it is open and for a while after."""

    order_id: int
    client_id: int
    account: int
    instrument: int
    side: int
    price_ticks: int
    qty_lots: int
    left_lots: int
    time_us: int
    state: m.OrderState = "open"
    hidden_lots: int = 0  # of what is left, the part that the book does not show
    waits: bool = False  # off the book, until its condition holds
    stop_ticks: int = 0  # ... which is a trade at this price; 0: that it can be filled whole
    expires_s: int = 0
    session: int = 0

    @property
    def shown_lots(self) -> int:
        return self.left_lots - self.hidden_lots

    @property
    def is_on_book(self) -> bool:
        """Of an order as a command leaves it."""
        return self.state == "open" and not self.waits

    def shown(self) -> str:
        """As the wire has it: empty where all is shown."""
        return qty_text(self.shown_lots) if self.hidden_lots else ""

    def stop(self) -> str:
        return price_text(self.stop_ticks) if self.stop_ticks else ""


class MarketState(msgspec.Struct):
    """One listed market with its book; `seq` is the last command that changed the book."""

    instrument: int
    product: int
    ticker: str
    symbol: str
    status: int
    lot_multiple: int
    bond_usdc6_per_lot: int
    book: Book
    trades: deque[m.Trade]
    status_sequence: int
    status_time_us: int
    closes_s: int = 0  # 0: it stays open
    until_s: int = 0  # in a call: when it is uncrossed; 0: by hand
    auction: m.Auction | None = None  # in a call: what it would come to
    # Every order on the book: of each price, the first is the one that trades first.
    queue: dict[int, OpenOrder] = msgspec.field(default_factory=dict[int, OpenOrder])

    def info(self) -> m.MarketInfo:
        return m.MarketInfo(
            market=self.ticker,
            symbol=self.symbol,
            status=STATUS_NAMES[self.status],
            lot=qty_text(self.lot_multiple),
            bond=usdc_text(self.bond_usdc6_per_lot),
            closes_s=self.closes_s,
            until_s=self.until_s,
        )

    def status_message(self) -> m.MarketStatus:
        return m.MarketStatus(
            market=self.ticker,
            symbol=self.symbol,
            status=STATUS_NAMES[self.status],
            sequence=self.status_sequence,
            time_us=self.status_time_us,
            until_s=self.until_s,
        )

    def snapshot(self) -> m.BookSnapshot:
        book = self.book
        return m.BookSnapshot(
            market=self.ticker,
            seq=book.seq,
            bids=[translate.level(*x) for x in book.bids],
            asks=[translate.level(*x) for x in book.asks],
            crc=book.checksum(),
        )


class Change(NamedTuple):
    """What one command did to one book: (prev, seq) and new quantities by price_ticks."""

    market: MarketState
    prev: int
    seq: int
    bids: dict[int, int]
    asks: dict[int, int]


class Moves(NamedTuple):
    """What one command did to the orders of one book, for who asks for them by `watch`."""

    touched: dict[int, OpenOrder]  # what they show may be other than before
    queued: dict[int, OpenOrder]  # behind all others of their price, the later the further


class AccountState(msgspec.Struct):
    """One account's open orders, oldest first, its lately closed ones, and its capacities."""

    wallet: bytes = bytes(20)
    aseq: int = 0  # private messages so far; the same after a restart
    orders: dict[int, OpenOrder] = msgspec.field(default_factory=dict[int, OpenOrder])
    by_client_id: dict[int, OpenOrder] = msgspec.field(default_factory=dict[int, OpenOrder])
    closed: deque[OpenOrder] = msgspec.field(
        default_factory=lambda: deque[OpenOrder](maxlen=CLOSED_ORDERS_KEPT)
    )
    capacities: dict[int, int] = msgspec.field(default_factory=dict[int, int])

    def find(self, order_id: int, client_id: int) -> OpenOrder | None:
        """By exactly one id; closed ones are searched newest first."""
        known = self.orders.get(order_id) if order_id else self.by_client_id.get(client_id)
        if known is not None:
            return known
        for order in reversed(self.closed):
            if order.order_id == order_id or (client_id and order.client_id == client_id):
                return order
        return None


class _SavedMarket(msgspec.Struct, array_like=True):
    """What is not in the market's listing, and its listing."""

    instrument: int
    product: int
    status: int
    lot_multiple: int
    bond_usdc6_per_lot: int
    book_seq: int
    levels: list[tuple[str, int, int]]  # side, price_ticks, qty_lots
    trades: list[m.Trade]
    status_sequence: int
    status_time_us: int
    closes_s: int
    until_s: int
    auction: m.Auction | None
    queue: list[int] = []  # order ids


class _SavedAccount(msgspec.Struct, array_like=True):
    account: int
    wallet: bytes
    aseq: int
    orders: list[OpenOrder]
    closed: list[OpenOrder]
    capacities: dict[int, int]


class SavedMirror(msgspec.Struct, array_like=True):
    """A mirror in a snapshot."""

    markets: list[_SavedMarket]
    accounts: list[_SavedAccount]


def _saved_market(market: MarketState) -> _SavedMarket:
    levels = [(side, *level) for side in SIDE_NAMES for level in market.book.levels(side)]
    return _SavedMarket(
        instrument=market.instrument,
        product=market.product,
        status=market.status,
        lot_multiple=market.lot_multiple,
        bond_usdc6_per_lot=market.bond_usdc6_per_lot,
        book_seq=market.book.seq,
        levels=levels,
        trades=list(market.trades),
        status_sequence=market.status_sequence,
        status_time_us=market.status_time_us,
        closes_s=market.closes_s,
        until_s=market.until_s,
        auction=market.auction,
        queue=list(market.queue),
    )


def _unnamed(_product: int) -> tuple[int, int]:
    return 0, 0


class Mirror:
    """All markets and accounts. `add_*`, `take`, ... apply one event; `changes` ends a command."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.markets: dict[int, MarketState] = {}
        self.accounts: dict[int, AccountState] = {}
        self.account_of: dict[bytes, int] = {}
        self.settled: Callable[[int], tuple[int, int]] = _unnamed  # (series, window) of a product
        self.instrument_of: dict[int, int] = {}  # by product
        self._instrument_of: dict[str, int] = {}  # by ticker and symbol
        # Net change of the running command: (instrument, side, price_ticks) → lots.
        self._moved: dict[tuple[int, int, int], int] = {}
        self.watched: set[int] = set()  # instruments of which `moves` shall tell
        self._moves: dict[int, Moves] = {}

    # --- reading -------------------------------------------------------------------------------
    def market_named(self, name: str) -> MarketState | None:
        """By ticker or symbol; None unless it is listed."""
        instrument = self._instrument_of.get(name)
        return None if instrument is None else self.markets[instrument]

    def market_info(self, market: MarketState) -> m.MarketInfo:
        info = market.info()
        info.series, info.window = self.settled(market.product)
        return info

    def wildcards_covering(self, instrument: int) -> tuple[str, ...]:
        return wildcards.covering(self.markets[instrument].symbol)

    def account(self, account: int) -> AccountState:
        state = self.accounts.get(account)
        if state is None:
            state = self.accounts[account] = AccountState()
        return state

    def order_info(self, order: OpenOrder) -> m.OrderInfo:
        return m.OrderInfo(
            order_id=order.order_id,
            client_id=order.client_id,
            market=self.markets[order.instrument].ticker,
            side=SIDE_NAMES[order.side],
            price=price_text(order.price_ticks),
            qty=qty_text(order.qty_lots),
            left=qty_text(order.left_lots),
            state=order.state,
            time_us=order.time_us,
            shown=order.shown(),
            stop=order.stop(),
            waiting=order.waits,
            expires_s=order.expires_s,
            session=order.session,
        )

    # --- applying events -----------------------------------------------------------------------
    def open_account(self, event: Event) -> None:
        self.account(event.account).wallet = event.owner
        self.account_of[event.owner] = event.account

    def list_market(self, event: Event) -> MarketState:
        ticker = self._catalog.ticker(event.product)
        market = MarketState(
            instrument=event.instrument,
            product=event.product,
            ticker=ticker,
            symbol=self._catalog.symbol(event.product),
            status=MarketStatus.CALL if event.reason else MarketStatus.OPEN,
            lot_multiple=event.lot_multiple,
            bond_usdc6_per_lot=event.bond_usdc6_per_lot,
            book=Book(ticker),
            trades=deque(maxlen=TRADES_KEPT),
            status_sequence=event.sequence,
            status_time_us=translate.time_us(event.time_ns),
            closes_s=event.closes_s,
            until_s=event.opens_s,
        )
        self._enter(market)
        return market

    def _enter(self, market: MarketState) -> None:
        instrument = market.instrument
        self.markets[instrument] = market
        self.instrument_of[market.product] = instrument
        self._instrument_of[market.ticker] = self._instrument_of[market.symbol] = instrument

    def set_status(self, event: Event, status: MarketStatus, until_s: int = 0) -> MarketState:
        market = self.markets[event.instrument]
        market.status = status
        market.until_s = until_s
        market.status_sequence = event.sequence
        market.status_time_us = translate.time_us(event.time_ns)
        return market

    def add_order(self, event: Event) -> OpenOrder:
        order = self._open_order(event)
        self._enqueue(order)
        self._move(order, order.qty_lots)
        return order

    def rest(self, event: Event, wanted: bool) -> tuple[OpenOrder, Change | None]:
        """A command that is an ACCEPTED and nothing else, begun and ended; of an instrument that
        nobody watches. The Change is made if it is wanted."""
        order = self._open_order(event)
        market = self.markets[order.instrument]
        market.queue[order.order_id] = order
        book, price_ticks = market.book, order.price_ticks
        prev, book.seq = book.seq, event.sequence
        total = book.add(SIDE_NAMES[order.side], price_ticks, order.qty_lots)
        if not wanted:
            return order, None
        level = {price_ticks: total}
        bids, asks = ({}, level) if order.side else (level, {})
        return order, Change(market, prev, event.sequence, bids, asks)

    def _open_order(self, event: Event) -> OpenOrder:
        order = OpenOrder(
            order_id=event.order_id,
            client_id=event.client_id,
            account=event.account,
            instrument=event.instrument,
            side=event.side,
            price_ticks=event.price_ticks,
            qty_lots=event.qty_lots,
            left_lots=event.qty_lots,
            time_us=translate.time_us(event.time_ns),
            expires_s=event.expiry_s,
            session=event.session,
        )
        state = self.account(event.account)
        assert order.order_id not in state.orders, "an order id is accepted once"
        state.orders[order.order_id] = order
        if order.client_id:
            state.by_client_id[order.client_id] = order
        return order

    def take(self, account: int, order_id: int, lots: int, end: m.OrderState) -> OpenOrder:
        """`lots` leave an open order; if none are left it closes as `end`."""
        state = self.accounts[account]
        order = state.orders[order_id]
        whole = lots == order.left_lots
        assert whole or 0 < lots <= order.shown_lots, "an order gives what it shows, or all"
        self._move(order, -order.shown_lots if whole else -lots)
        order.left_lots -= lots
        if whole:
            order.hidden_lots = 0
            order.state = end
            del state.orders[order_id]
            self.markets[order.instrument].queue.pop(order_id, None)
            state.by_client_id.pop(order.client_id, None)
            state.closed.append(order)
        return order

    def amend(self, event: Event) -> OpenOrder:
        """The order has the event's price now, and so much left, all of it shown if it lost its
        place; a CONCEALED follows if not."""
        order = self.accounts[event.account].orders[event.order_id]
        self._move(order, -order.shown_lots)
        if event.reason:
            order.hidden_lots = 0
            self._enqueue(order)
        else:
            cut = order.left_lots - event.qty_lots
            order.hidden_lots -= min(cut, order.hidden_lots)
        order.price_ticks = event.price_ticks
        order.qty_lots += event.qty_lots - order.left_lots
        order.left_lots = event.qty_lots
        self._move(order, order.shown_lots)
        return order

    def hide(self, event: Event, lots: int) -> OpenOrder:
        """An iceberg conceals `lots` more of what is left or, if negative, shows them."""
        order = self.accounts[event.account].orders[event.order_id]
        order.hidden_lots += lots
        assert 0 <= order.hidden_lots <= order.left_lots, "no more is concealed than is left"
        self._move(order, -lots)
        return order

    def refresh(self, event: Event) -> OpenOrder:
        """An iceberg shows its next part, behind all others of its price; an auction takes the
        whole of it where it stands."""
        order = self.hide(event, -event.qty_lots)
        if self.markets[order.instrument].status == MarketStatus.OPEN:
            self._enqueue(order)
        return order

    def wait(self, event: Event) -> OpenOrder:
        """The order is off the book until its condition holds."""
        order = self.hide(event, event.qty_lots)
        order.waits, order.stop_ticks = True, event.stop_ticks
        self.markets[order.instrument].queue.pop(order.order_id, None)
        return order

    def trigger(self, event: Event) -> OpenOrder:
        order = self.hide(event, -event.qty_lots)
        order.waits, order.stop_ticks = False, 0
        self._enqueue(order)
        return order

    def _enqueue(self, order: OpenOrder) -> None:
        """Behind all others of its price."""
        queue, order_id = self.markets[order.instrument].queue, order.order_id
        queue.pop(order_id, None)
        queue[order_id] = order
        if order.instrument in self.watched:
            queued = self._moves_of(order).queued
            queued.pop(order_id, None)
            queued[order_id] = order

    def _moves_of(self, order: OpenOrder) -> Moves:
        moves = self._moves.get(order.instrument)
        if moves is None:
            moves = self._moves[order.instrument] = Moves({}, {})
        return moves

    def _move(self, order: OpenOrder, lots: int) -> None:
        key = (order.instrument, order.side, order.price_ticks)
        self._moved[key] = self._moved.get(key, 0) + lots
        if order.instrument in self.watched:
            self._moves_of(order).touched[order.order_id] = order

    def moves(self) -> dict[int, Moves]:
        """What the command did to the orders of watched instruments; forgotten now."""
        moves = self._moves
        if moves:
            self._moves = {}
        return moves

    @property
    def is_changing(self) -> bool:
        """Whether the running command has moved anything."""
        return bool(self._moved)

    def changes(self, sequence: int) -> Iterator[Change]:
        """Apply the command's net moves to the books; one Change for each book that changed."""
        changed: dict[int, Change] = {}
        for (instrument, side, price_ticks), lots in self._moved.items():
            if lots == 0:
                continue
            if instrument not in changed:
                market = self.markets[instrument]
                changed[instrument] = Change(market, market.book.seq, sequence, {}, {})
                market.book.seq = sequence
            change = changed[instrument]
            book, name = change.market.book, SIDE_NAMES[side]
            total = book.qty_at(name, price_ticks) + lots
            book.set_level(name, price_ticks, total)
            (change.bids if side == Side.BUY else change.asks)[price_ticks] = total
        self._moved.clear()
        yield from changed.values()

    # --- snapshots -----------------------------------------------------------------------------
    def save(self) -> SavedMirror:
        assert not self._moved, "in the middle of a command"
        return SavedMirror(
            [_saved_market(market) for market in self.markets.values()],
            [
                _SavedAccount(
                    account,
                    state.wallet,
                    state.aseq,
                    list(state.orders.values()),
                    list(state.closed),
                    state.capacities,
                )
                for account, state in self.accounts.items()
            ],
        )

    def load(self, saved: SavedMirror) -> None:
        """Into a new mirror, with the catalog of this build."""
        for market in saved.markets:
            self._load_market(market)
        for found in saved.accounts:
            state = self.account(found.account)
            state.wallet, state.aseq, state.capacities = found.wallet, found.aseq, found.capacities
            state.orders = {order.order_id: order for order in found.orders}
            state.by_client_id = {
                order.client_id: order for order in found.orders if order.client_id
            }
            state.closed.extend(found.closed)
            if any(found.wallet):
                self.account_of[found.wallet] = found.account
        self._load_queues(saved.markets)

    def _load_queues(self, saved: list[_SavedMarket]) -> None:
        """Of a snapshot that has none, the orders stand in the order in which they came: an
        iceberg's or an amended one's place is then a guess, until it leaves."""
        on_book = {
            order.order_id: order
            for state in self.accounts.values()
            for order in state.orders.values()
            if not order.waits
        }
        for market in saved:
            queue = self.markets[market.instrument].queue
            queue.update((order_id, on_book.pop(order_id)) for order_id in market.queue)
        for order in sorted(on_book.values(), key=lambda order: order.time_us):
            self.markets[order.instrument].queue[order.order_id] = order

    def _load_market(self, saved: _SavedMarket) -> None:
        ticker = self._catalog.ticker(saved.product)
        book = Book(ticker)
        book.seq = saved.book_seq
        for side, price_ticks, qty_lots in saved.levels:
            book.set_level(side, price_ticks, qty_lots)
        market = MarketState(
            instrument=saved.instrument,
            product=saved.product,
            ticker=ticker,
            symbol=self._catalog.symbol(saved.product),
            status=saved.status,
            lot_multiple=saved.lot_multiple,
            bond_usdc6_per_lot=saved.bond_usdc6_per_lot,
            book=book,
            trades=deque(saved.trades, maxlen=TRADES_KEPT),
            status_sequence=saved.status_sequence,
            status_time_us=saved.status_time_us,
            closes_s=saved.closes_s,
            until_s=saved.until_s,
            auction=saved.auction,
        )
        self._enter(market)

    def check_invariants(self) -> None:
        """Every level is the sum of what its orders show; no open market is crossed.

        O(orders + levels).
        """
        assert not self._moved, "in the middle of a command"
        sums: dict[tuple[int, int, int], int] = {}
        for account, state in self.accounts.items():
            for order_id, order in state.orders.items():
                assert order.account == account and order.order_id == order_id
                assert order.state == "open" and 0 < order.left_lots <= order.qty_lots
                assert (order.hidden_lots == order.left_lots) == order.waits
                assert 0 <= order.hidden_lots <= order.left_lots
                if order.waits:
                    continue
                key = (order.instrument, order.side, order.price_ticks)
                sums[key] = sums.get(key, 0) + order.shown_lots
            with_ids = [x for x in state.orders.values() if x.client_id]
            assert state.by_client_id == {x.client_id: x for x in with_ids}
        levels: dict[tuple[int, int, int], int] = {}
        queued = {x: order for market in self.markets.values() for x, order in market.queue.items()}
        all_open = (x for state in self.accounts.values() for x in state.orders.values())
        assert queued == {x.order_id: x for x in all_open if not x.waits}
        for instrument, market in self.markets.items():
            market.book.check_invariants(may_cross=market.status != MarketStatus.OPEN)
            for side, name in enumerate(SIDE_NAMES):
                for price, lots in market.book.levels(name):
                    levels[instrument, side, price] = lots
        assert sums == levels
