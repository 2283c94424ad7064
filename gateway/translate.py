"""Wire messages ↔ the engine's records: names and decimal strings here, integers there.

Invariant: exact both ways, or a numbered refusal that names the field. Pure functions; sessions
and the feed call them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from compex_client import messages as m
from compex_client.errors import NotADecimal, NumberError
from compex_client.units import (
    CACHED,
    parse_price,
    parse_qty,
    parse_usdc,
    price_text,
    qty_text,
    usdc_text,
)

from engine.records import (
    AMOUNT_USDC6_MAX,
    CLIENT_ID_MAX,
    PRICE_TICKS_MAX,
    QTY_LOTS_MAX,
    Balances,
    CancelReason,
    Command,
    CommandKind,
    Event,
    EventKind,
    Flag,
    ListingFlag,
    MarketStatus,
    OneSide,
    SelfTrade,
    Side,
    TimeInForce,
    order_terms,
)
from engine.rejects import Reject
from gateway.wire import BadRequest

assert m.ID_MAX == CLIENT_ID_MAX

SIDES: Final[dict[m.Side, Side]] = {"buy": Side.BUY, "sell": Side.SELL}
SIDE_NAMES: Final[tuple[m.Side, m.Side]] = ("buy", "sell")
STATUS_NAMES: Final[dict[int, m.Status]] = {
    MarketStatus.OPEN: "open",
    MarketStatus.HALTED: "halted",
    MarketStatus.CLOSED: "closed",
    MarketStatus.CALL: "call",
}
_TIMES: Final[dict[m.TimeInForce, TimeInForce]] = {
    "gtc": TimeInForce.GTC,
    "ioc": TimeInForce.IOC,
    "fok": TimeInForce.FOK,
    "gtt": TimeInForce.GTT,
}
_SELF_TRADES: Final[dict[m.SelfTrade, SelfTrade]] = {
    "cancel_taker": SelfTrade.CANCEL_TAKER,
    "cancel_maker": SelfTrade.CANCEL_MAKER,
    "cancel_both": SelfTrade.CANCEL_BOTH,
    "decrement": SelfTrade.DECREMENT,
}
_MARKET_COMMANDS: Final[dict[str, CommandKind]] = {
    "halt": CommandKind.HALT_MARKET,
    "resume": CommandKind.RESUME_MARKET,
    "close": CommandKind.CLOSE_MARKET,
    "call": CommandKind.CALL_MARKET,
    "uncross": CommandKind.UNCROSS_MARKET,
}
_ONE_SIDES: Final[dict[str, OneSide]] = {
    "": OneSide.BOTH,
    "buy": OneSide.BUYS,
    "sell": OneSide.SELLS,
}


def time_us(time_ns: int) -> int:
    """Rounded down, so that no time on the wire is later than the event."""
    return time_ns // 1_000


@lru_cache(CACHED)
def price_ticks(text: str, field: str = "price", least: int = 1) -> int:
    try:
        ticks = parse_price(text)
    except NotADecimal as error:
        raise BadRequest(Reject.INVALID_FIELD, field, str(error)) from error
    except NumberError as error:
        raise BadRequest(Reject.PRICE_NOT_ON_TICK, field) from error
    if not least <= ticks <= PRICE_TICKS_MAX:
        raise BadRequest(Reject.PRICE_OUT_OF_RANGE, field)
    return ticks


@lru_cache(CACHED)
def qty_lots(text: str, field: str = "qty", least: int = 1) -> int:
    try:
        lots = parse_qty(text)
    except NotADecimal as error:
        raise BadRequest(Reject.INVALID_FIELD, field, str(error)) from error
    except NumberError as error:
        raise BadRequest(Reject.QTY_NOT_A_MULTIPLE, field) from error
    if not least <= lots <= QTY_LOTS_MAX:
        raise BadRequest(Reject.QTY_OUT_OF_RANGE, field)
    return lots


def amount_usdc6(text: str, field: str = "amount") -> int:
    try:
        amount = parse_usdc(text)
    except NumberError as error:
        raise BadRequest(Reject.INVALID_FIELD, field, str(error)) from error
    if not 0 < amount <= AMOUNT_USDC6_MAX:
        raise BadRequest(Reject.AMOUNT_OUT_OF_RANGE, field)
    return amount


# --- requests → commands -----------------------------------------------------------------------
# Members of an IntEnum cost a look-up each time they are named; orders come by the million.
_SIDE_OF: Final = {name: int(side) for name, side in SIDES.items()}
_TIME_OF: Final = {name: int(time) for name, time in _TIMES.items()}
_SELF_TRADE_OF: Final = {name: int(way) for name, way in _SELF_TRADES.items()}
_NEW_ORDER: Final = int(CommandKind.NEW_ORDER)
_NEW_STOP: Final = int(CommandKind.NEW_STOP)
_POST_ONLY: Final = int(Flag.POST_ONLY)
_ALL_OR_NONE: Final = int(Flag.ALL_OR_NONE)
_MARKET: Final = int(Flag.MARKET)


def new_order(message: m.New, account: int, instrument: int, session: int = 0) -> Command:
    """Terms that contradict each other are left to the engine to refuse, if it can see them."""
    kind = message.type
    lots = qty_lots(message.qty)
    terms = stop = 0
    flags = _POST_ONLY if message.post_only else 0
    if message.all_or_none:
        flags |= _ALL_OR_NONE
    if kind == "limit" and not message.protection:
        ticks = price_ticks(message.price)
    else:
        ticks = _limit_or_protection(message)
    if kind != "limit" or message.min_qty or message.display_qty or message.stop:
        stop, terms = _stop_and_terms(message)
        if kind in {"market", "stop"}:
            flags |= _MARKET
    if message.resale and message.side == "buy":
        raise BadRequest(Reject.INVALID_FIELD, "resale", "hours are sold again, not bought")
    return Command(
        0,
        0,
        message.client_id,
        stop or terms,
        ticks,
        lots,
        message.expires_s,
        account,
        instrument,
        _NEW_STOP if stop else _NEW_ORDER,
        _SIDE_OF[message.side],
        _TIME_OF[message.tif],
        _SELF_TRADE_OF[message.self_trade],
        flags,
        session,
        0,
        int(message.resale),
    )


def _stop_and_terms(message: m.New) -> tuple[int, int]:
    stop = _stop(message)
    min_lots = qty_lots(message.min_qty, "min_qty") if message.min_qty else 0
    display_lots = qty_lots(message.display_qty, "display_qty") if message.display_qty else 0
    if stop and (min_lots or display_lots):
        words = "a stop has no minimum and conceals nothing"
        raise BadRequest(Reject.INVALID_TERMS, "stop", words)
    return stop, order_terms(display_lots=display_lots, min_lots=min_lots)


def _stop(message: m.New) -> int:
    """The stop's price in ticks; 0 for an order without."""
    if message.type in {"stop", "stop_limit"}:
        return price_ticks(message.stop, "stop")
    if message.stop:
        raise BadRequest(Reject.INVALID_FIELD, "stop", "it belongs to a stop order")
    return 0


def _limit_or_protection(message: m.New) -> int:
    if message.type in {"limit", "stop_limit"}:
        if message.protection:
            words = "it belongs to an order without a limit"
            raise BadRequest(Reject.INVALID_FIELD, "protection", words)
        return price_ticks(message.price)
    if message.price:
        words = "an order of this type has none; its limit is the protection"
        raise BadRequest(Reject.INVALID_FIELD, "price", words)
    return price_ticks(message.protection, "protection", least=0)


class Several(NamedTuple):
    """A command of several records, as `port.submit` takes it."""

    head: Command
    parts: tuple[Command, ...]


def quote(message: m.Quote, account: int, instrument: int, session: int) -> Several:
    sides = (("bids", Side.BUY, message.bids), ("asks", Side.SELL, message.asks))
    parts = tuple(
        Command(
            kind=CommandKind.PART,
            account=account,
            instrument=instrument,
            side=side,
            price_ticks=price_ticks(price, field),
            qty_lots=qty_lots(qty, field),
        )
        for field, side, levels in sides
        for price, qty in levels
    )
    head = Command(
        kind=CommandKind.MASS_QUOTE,
        account=account,
        instrument=instrument,
        client_id=message.client_id,
        self_trade=_SELF_TRADES[message.self_trade],
        flags=Flag.POST_ONLY if message.post_only else 0,
        session=session,
        parts=len(parts),
    )
    return Several(head, parts)


def block(message: m.Block, account: int, instruments: Sequence[int], session: int) -> Several:
    """`instruments`: the markets of its hours, one after the other."""
    parts = tuple(
        Command(kind=CommandKind.PART, account=account, instrument=instrument)
        for instrument in instruments
    )
    head = Command(
        kind=CommandKind.BLOCK,
        account=account,
        client_id=message.client_id,
        price_ticks=price_ticks(message.price),
        qty_lots=qty_lots(message.qty),
        session=session,
        parts=len(parts),
    )
    return Several(head, parts)


def legs(
    kind: CommandKind,
    chosen: Iterable[tuple[int, m.Leg]],
    account: int,
    client_id: int,
    session: int,
) -> Several:
    """An EXCLUSIVE or a BASKET of (instrument, leg)."""
    parts = tuple(
        Command(
            kind=CommandKind.PART,
            account=account,
            instrument=instrument,
            side=SIDES[leg.side],
            price_ticks=price_ticks(leg.price),
            qty_lots=qty_lots(leg.qty),
        )
        for instrument, leg in chosen
    )
    head = Command(
        kind=kind, account=account, client_id=client_id, session=session, parts=len(parts)
    )
    return Several(head, parts)


def amend(message: m.Amend, account: int, order_id: int) -> Command:
    if not (message.price or message.qty):
        raise BadRequest(Reject.INVALID_FIELD, "price", "give a price, a quantity, or both")
    return Command(
        kind=CommandKind.AMEND,
        account=account,
        order_id=order_id,
        price_ticks=price_ticks(message.price) if message.price else 0,
        qty_lots=qty_lots(message.qty) if message.qty else 0,
        self_trade=_SELF_TRADES[message.self_trade],
        flags=Flag.POST_ONLY if message.post_only else 0,
    )


def cancel(account: int, order_id: int) -> Command:
    return Command(kind=CommandKind.CANCEL, account=account, order_id=order_id)


def cancel_all(account: int, instrument: int, side: str = "", session: int = 0) -> Command:
    """`instrument` may be ALL_INSTRUMENTS; `side` "" means both, `session` 0 all."""
    return Command(
        kind=CommandKind.CANCEL_ALL,
        account=account,
        instrument=instrument,
        flags=_ONE_SIDES[side],
        session=session,
    )


def capacity(message: m.Capacity, account: int, instrument: int) -> Command:
    return Command(
        kind=CommandKind.DECLARE_CAPACITY,
        account=account,
        instrument=instrument,
        qty_lots=qty_lots(message.qty, least=0),
    )


def withdraw(message: m.Withdraw, account: int) -> Command:
    return Command(
        kind=CommandKind.WITHDRAW,
        account=account,
        client_id=message.client_id,
        price_ticks=amount_usdc6(message.amount),  # the bytes of amount_usdc6
    )


def list_market(
    message: m.Market,
    instrument: int,
    product: int,
    bond_usdc6: int,
    lot_multiple: int,
    closes_s: int,
) -> Command:
    """What the message leaves out of its bond and its lot is as given here."""
    if message.bond:
        bond_usdc6 = amount_usdc6(message.bond, "bond")
    if message.lot:
        lot_multiple = qty_lots(message.lot, "lot")
    return Command(
        kind=CommandKind.LIST_MARKET,
        instrument=instrument,
        order_id=product,  # the bytes of product
        price_ticks=bond_usdc6,  # the bytes of bond_usdc6_per_lot
        qty_lots=lot_multiple,  # the bytes of lot_multiple
        expiry_s=closes_s,  # the bytes of closes_s
        client_id=message.opens_s | message.closing_call_s << 32,  # the bytes of both
        flags=ListingFlag.OPENING_CALL if message.opening_call else 0,
    )


def set_fees(tier: int, maker_ppm: int, taker_ppm: int) -> Command:
    return Command(
        kind=CommandKind.SET_FEES,
        side=tier,  # the bytes of fee_tier
        order_id=maker_ppm | taker_ppm << 16,  # the bytes of both rates
    )


def change_market(message: m.Market, instrument: int) -> Command:
    if message.action == "bands":
        return Command(
            kind=CommandKind.SET_BANDS,
            instrument=instrument,
            order_id=message.static_ppm | message.dynamic_ppm << 32,  # the bytes of both
            expiry_s=message.call_s,  # the bytes of call_seconds
            price_ticks=price_ticks(message.reference, "reference") if message.reference else 0,
        )
    kind = _MARKET_COMMANDS[message.action]
    return Command(kind=kind, instrument=instrument, expiry_s=message.until_s)


def set_fee_tier(account: int, tier: int) -> Command:
    # The tier lies in the bytes of `side`.
    return Command(kind=CommandKind.SET_FEE_TIER, account=account, side=tier)


# --- events → replies --------------------------------------------------------------------------
_ACCEPTED: Final = int(EventKind.ACCEPTED)


def ack_of(request: int, event: Event, market: str) -> m.Ack:
    """The ack of the request that caused a terminal event (not a REJECTED one)."""
    # Durable, or the event would not have been published.
    if event.kind == _ACCEPTED:
        return m.Ack(
            request,
            event.sequence,
            event.time_ns // 1_000,
            event.order_id,
            event.counter_order_id,  # the bytes of its client_id
            price=price_text(event.price_ticks),
            market=market,
            level="durable",
        )
    ack = m.Ack(request, sequence=event.sequence, time_us=time_us(event.time_ns), market=market)
    ack.level = "durable"
    match event.kind:
        case EventKind.AMENDED:
            ack.order_id, ack.client_id = event.order_id, event.client_id
            ack.price, ack.qty = price_text(event.price_ticks), qty_text(event.qty_lots)
            ack.lost_place = bool(event.reason)
        case EventKind.CANCELLED:
            ack.order_id, ack.client_id = event.order_id, event.client_id
            ack.qty = qty_text(event.qty_lots)
        case EventKind.CANCEL_ALL_DONE | EventKind.MARKET_CLOSED:
            ack.count = event.qty_lots
            ack.partial = event.reason == CancelReason.EFFECTS_LIMIT
        case EventKind.QUOTED:
            ack.client_id, ack.count = event.client_id, event.qty_lots
        case EventKind.LEGS_FILLED:
            ack.client_id, ack.count = event.client_id, event.qty_lots
            ack.amount = usdc_text(event.amount_usdc6)
        case EventKind.CAPACITY_DECLARED:
            ack.qty = qty_text(event.qty_lots)
        case EventKind.WITHDRAWAL_RESERVED:
            ack.withdrawal_id = event.reference
        case EventKind.MARKET_UNCROSSED:
            ack.price, ack.qty = price_text(event.price_ticks), qty_text(event.volume_lots)
            ack.partial = event.reason == CancelReason.EFFECTS_LIMIT
        case _:
            assert event.kind in {
                EventKind.MARKET_CALLED,
                EventKind.BANDS_SET,
                EventKind.MARKET_LISTED,
                EventKind.MARKET_HALTED,
                EventKind.MARKET_RESUMED,
                EventKind.FEE_TIER_SET,
            }, f"event kind {event.kind} answers no request of a session"
    return ack


def balances_of(balances: Balances) -> m.Balances:
    return m.Balances(*map(usdc_text, balances))


def auction(event: Event, market: str) -> m.Auction:
    return m.Auction(
        market=market,
        price=price_text(event.price_ticks),
        qty=qty_text(event.volume_lots),
        surplus=qty_text(event.surplus_lots),
        side=SIDE_NAMES[event.side],
        time_us=time_us(event.time_ns),
        final=event.kind == EventKind.MARKET_UNCROSSED,
    )


def level(price: int, lots: int) -> m.Level:
    """(price_ticks, qty_lots) as the wire has them."""
    return price_text(price), qty_text(lots)
