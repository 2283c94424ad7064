"""The rules of call auctions and price bands.

In a call orders gather and nothing trades. Its price is found by trying every price at which
anything changes: most lots trade, then least is left over, then nearest to the last trade (or the
reference price, or the middle, rounded down). An order's next trade outside the dynamic band puts
its market into a call; a limit beyond the static band is refused.
"""

from engine.records import (
    AUCTION_ROUNDS_MAX,
    BAND_PPM_MAX,
    BY_TIME,
    CALL_SECONDS_MAX,
    EFFECTS_MAX,
    PPM,
    PRICE_TICKS_MAX,
    SECOND_NS,
    CancelReason,
    Command,
    CommandKind,
    EventKind,
    FillNote,
    Flag,
    MarketStatus,
    Side,
    TimeInForce,
)
from engine.reference.orders import Orders, Rule, halves
from engine.reference.state import Book, Order
from engine.rejects import Reject


class Auctions(Orders):
    def _rules(self) -> dict[CommandKind, Rule]:
        return super()._rules() | {
            CommandKind.CALL_MARKET: self._call_market,
            CommandKind.UNCROSS_MARKET: self._uncross_market,
            CommandKind.INDICATE_MARKET: self._indicate_market,
            CommandKind.SET_BANDS: self._set_bands,
        }

    # --- calls ----------------------------------------------------------------------------------

    def _require_gathered(self, c: Command, book: Book) -> None:
        self._require(not book.auction_ticks, Reject.UNCROSSING)
        at_once = c.time_in_force in {TimeInForce.IOC, TimeInForce.FOK} or c.flags == Flag.MARKET
        gathers = not at_once and c.flags != Flag.POST_ONLY
        minimum = c.order_id >> 32 if c.kind == CommandKind.NEW_ORDER else 0
        takes = c.kind in {CommandKind.NEW_ORDER, CommandKind.AMEND} and gathers and not minimum
        self._require(takes or c.kind == CommandKind.NEW_STOP, Reject.NOT_IN_A_CALL)

    def _call_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        shut = book.closes_s and book.closes_s * SECOND_NS <= c.time_ns
        closed = book.status is MarketStatus.CLOSED or shut
        self._require(not closed, Reject.MARKET_CLOSED)
        self._require(not book.auction_ticks, Reject.UNCROSSING)
        halted = c.flags == BY_TIME and book.status is MarketStatus.HALTED
        self._require(not halted, Reject.MARKET_HALTED)
        self._begin_call(book, c.expiry_s)
        self._emit(EventKind.MARKET_CALLED, **halves(book.uncross_s))

    def _begin_call(self, book: Book, until_s: int) -> None:
        """Until that time (0: by hand), or the gate's if that is sooner."""
        if book.closes_s and (until_s == 0 or until_s > book.closes_s):
            until_s = book.closes_s
        book.status, book.called, book.uncross_s = MarketStatus.CALL, True, until_s

    def _indicate_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.CALL, Reject.NO_CALL)
        price, volume, surplus = self._auction(book, c.time_ns)
        self._emit(
            EventKind.INDICATED,
            order_id=volume,
            counter_order_id=abs(surplus),
            price_ticks=price,
            qty_lots=0,
            side=Side.SELL if surplus < 0 else Side.BUY,
        )

    # --- the price ------------------------------------------------------------------------------

    def _auction(self, book: Book, time_ns: int) -> tuple[int, int, int]:
        """The price, how much trades there, and how much of the buys (of the sells if negative) is
        left over; zeros if nothing trades."""
        bids, asks = (
            [(order.price_ticks, order.left) for order in orders if not order.is_expired(time_ns)]
            for orders in (book.on_side(Side.BUY), book.on_side(Side.SELL))
        )

        def at(price: int) -> tuple[int, int]:
            wanted = sum(lots for limit, lots in bids if limit >= price)
            offered = sum(lots for limit, lots in asks if limit <= price)
            return min(wanted, offered), wanted - offered

        # Between two of these neither what is wanted nor what is offered changes.
        limits = {limit for limit, _ in bids + asks}
        prices = limits | {limit + 1 for limit in limits} | {limit - 1 for limit in limits}
        found = {price: at(price) for price in prices}
        volume = max((volume for volume, _ in found.values()), default=0)
        if not volume:
            return 0, 0, 0
        most = {price: left for price, (lots, left) in found.items() if lots == volume}
        least = min(abs(left) for left in most.values())
        best = [price for price, left in most.items() if abs(left) == least]
        wanted = book.last_ticks or book.reference_ticks or (min(best) + max(best)) // 2
        price = min(max(wanted, min(best)), max(best))
        return price, volume, at(price)[1]

    # --- the trades -----------------------------------------------------------------------------

    def _uncross_market(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is MarketStatus.CALL, Reject.NO_CALL)
        over = 0 < book.uncross_s * SECOND_NS <= c.time_ns or book.auction_ticks != 0
        self._require(over or c.flags != BY_TIME, Reject.NO_CALL)
        rounds = 0
        while self._heads(book) and len(self._events) < EFFECTS_MAX:
            if not book.auction_ticks or not self._heads(book, book.auction_ticks):
                if rounds == AUCTION_ROUNDS_MAX:
                    break
                rounds += 1
                best_bid = book.best(Side.BUY) or 0  # what is crossed may have expired
                book.auction_ticks = self._auction(book, c.time_ns)[0] or best_bid
            self._meet(c, book)
        more = self._heads(book) is not None
        volume = book.auction_lots
        price = book.last_ticks if volume else 0
        if not more:
            self._end_call(c, book, price)
        self._emit(
            EventKind.MARKET_UNCROSSED,
            order_id=volume,
            counter_order_id=0,
            price_ticks=price,
            qty_lots=0,
            side=Side.BUY,
            reason=CancelReason.EFFECTS_LIMIT if more else 0,
        )

    def _end_call(self, c: Command, book: Book, price: int) -> None:
        book.status, book.called, book.uncross_s = MarketStatus.OPEN, False, 0
        book.auction_ticks = book.auction_lots = 0
        book.reference_ticks = price or book.reference_ticks
        if not book.closes_s or book.closes_s * SECOND_NS > c.time_ns:
            self._stirred.append(book)

    def _heads(self, book: Book, price: int = 0) -> tuple[Order, Order] | None:
        """The best bid and ask if they meet, at this price if one is given."""
        bid, ask = book.best(Side.BUY), book.best(Side.SELL)
        if bid is None or ask is None or bid < (price or ask) or ask > (price or bid):
            return None
        return book.sides[Side.BUY][bid][0], book.sides[Side.SELL][ask][0]

    def _meet(self, c: Command, book: Book) -> None:
        """What is best and oldest of both sides meets at the auction's price."""
        heads = self._heads(book, book.auction_ticks)
        assert heads
        buy, sell = heads
        taker, maker = (buy, sell) if buy.sequence > sell.sequence else (sell, buy)
        expired = [order for order in heads if order.is_expired(c.time_ns)]
        if expired:
            self._remove(expired[0], CancelReason.EXPIRED)
            return
        if buy.account == sell.account:
            self._remove(taker, CancelReason.SELF_TRADE)
            return
        qty = min(buy.left, sell.left)
        for order in heads:
            more = qty - order.qty_lots
            if more > 0 and qty < order.left:
                order.qty_lots += more
                order.hidden_lots -= more
                self._emit_of(EventKind.REFRESHED, order, more, 0)
        self._emit(
            EventKind.FILL,
            order_id=taker.order_id,
            counter_order_id=maker.order_id,
            price_ticks=book.auction_ticks,
            qty_lots=qty,
            maker_fee_ppm=maker.fee_ppm,
            taker_fee_ppm=taker.fee_ppm,
            account=taker.account,
            counter_account=maker.account,
            side=taker.side,
            reason=FillNote.RESOLD if sell.resale else 0,
        )
        if book.is_window:
            self.leases[buy.account, buy.instrument].declared += qty
        book.last_ticks = book.auction_ticks
        book.auction_lots += qty
        for order in heads:
            self._settle_fill(order, qty, book.auction_ticks)
            self._leave_auction(order, qty)

    def _leave_auction(self, order: Order, qty: int) -> None:
        """An order shrinks where it stands, and shows its next clip there."""
        if qty == order.left:
            self._unlink(order)
            return
        order.qty_lots -= qty
        if not order.qty_lots:
            order.qty_lots = min(order.hidden_lots, order.display_lots)
            order.hidden_lots -= order.qty_lots
            self._emit_of(EventKind.REFRESHED, order, order.qty_lots, 0)

    # --- bands ----------------------------------------------------------------------------------

    def _set_bands(self, c: Command) -> None:
        book = self._book(c.instrument)
        self._require(book.status is not MarketStatus.CLOSED, Reject.MARKET_CLOSED)
        static, dynamic, seconds = c.order_id & 0xFFFFFFFF, c.order_id >> 32, c.expiry_s
        fits = static <= BAND_PPM_MAX and dynamic <= BAND_PPM_MAX
        fits = fits and 0 <= c.price_ticks <= PRICE_TICKS_MAX
        fits = fits and seconds <= CALL_SECONDS_MAX and (seconds > 0 or not dynamic)
        self._require(fits, Reject.INVALID_BANDS)
        book.static_ppm, book.dynamic_ppm, book.call_seconds = static, dynamic, seconds
        book.reference_ticks = c.price_ticks or book.reference_ticks or book.last_ticks
        self._emit(
            EventKind.BANDS_SET,
            order_id=c.order_id,
            price_ticks=book.reference_ticks,
            qty_lots=0,
            **halves(seconds),
        )

    def _check_band(self, c: Command, book: Book) -> None:
        width = book.reference_ticks * book.static_ppm // PPM
        beyond = c.price_ticks - book.reference_ticks
        worse = beyond if c.side == Side.BUY else -beyond
        inside = not book.reference_ticks or not book.static_ppm or worse <= width
        self._require(inside, Reject.OUTSIDE_BAND)

    def _band_end(self, c: Command, book: Book) -> int | None:
        anchor = book.last_ticks or book.reference_ticks
        if not anchor or not book.dynamic_ppm:
            return c.price_ticks
        width = anchor * book.dynamic_ppm // PPM
        if c.side == Side.BUY:
            return min(c.price_ticks, anchor + width)
        return max(c.price_ticks, anchor - width)

    def _reach(self, c: Command, book: Book) -> int | None:
        return self._band_end(c, book) if book.status is MarketStatus.OPEN else None

    def _call_beyond_band(self, c: Command, book: Book, taker: Order, reached: int | None) -> None:
        crosses = self._crosses(book, taker.side, taker.price_ticks)
        if not taker.qty_lots or not crosses or reached is None:
            return
        self._begin_call(book, -(-c.time_ns // SECOND_NS) + book.call_seconds)
        self._emit(
            EventKind.VOLATILITY_CALL,
            order_id=taker.order_id,
            price_ticks=reached,
            qty_lots=taker.qty_lots,
            **halves(book.uncross_s),
        )
        if c.time_in_force != TimeInForce.GTC:
            self._end_taker(taker, CancelReason.VOLATILITY)
