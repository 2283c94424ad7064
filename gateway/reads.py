"""Reads over HTTP: which there are, what each may be asked, how it is answered.

Invariant: `READS` is the one table of them, from which both the answers and their description
are made; every answer is bounded and spelt as the websocket spells it. `gateway.http` calls.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from compex_client import messages as m
from compex_client import reads as r
from compex_client.units import PRICE_TICK, QTY_LOT
from compex_client.wallet import address_text

from engine.catalog import HOUR_S, Catalog, ProductParts
from engine.rejects import Reject
from gateway import translate
from gateway.mirror import TRADES_KEPT, MarketState
from gateway.public import INDEX_ROUNDS_KEPT
from gateway.session import Desk
from gateway.wire import BadRequest

QUERY_CHARS_MAX: Final = 1_024
QUERY_FIELDS_MAX: Final = 16
MARKET: Final = "/{market}"  # ends the path of a read of one market
assert r.TRADES_MAX == TRADES_KEPT and r.ROUNDS_MAX == INDEX_ROUNDS_KEPT

_Entry = TypeVar("_Entry")


class Asked(NamedTuple):
    """`market` is named in the path, `account` is whose bearer asks; "" and 0 where neither is."""

    query: Any
    market: str = ""
    account: int = 0


class Read(NamedTuple):
    """`make` says, by its docstring, what is read; `query` and `answer` are types."""

    path: str
    query: type[msgspec.Struct]
    answer: type[msgspec.Struct]
    make: Callable[[Desk, Asked], msgspec.Struct]
    is_private: bool = False
    is_cached: bool = True  # a client may keep it and ask whether it is still so


def parse_query(text: str, into: type[msgspec.Struct]) -> msgspec.Struct:
    """What stands after the "?". Raises BadRequest, which names the field."""
    if len(text) > QUERY_CHARS_MAX:
        raise BadRequest(Reject.INVALID_FIELD, None, f"a query has at most {QUERY_CHARS_MAX} chars")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise BadRequest(Reject.INVALID_FIELD, None, "a parameter is given twice")
        return msgspec.convert(dict(pairs), into, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise BadRequest(Reject.INVALID_FIELD, field_named(str(error)), str(error)) from error


def field_named(words: str) -> str | None:
    """The field that msgspec's words are about."""
    for before in ("at `$.", "field `"):
        if before in words:
            return words.split(before, 1)[1].split("`", maxsplit=1)[0]
    return None


def instruments(desk: Desk, asked: Asked) -> r.Instruments:
    """The listed markets, by class, region, grade or tenor if asked for."""
    query: r.InstrumentsQuery = asked.query
    if query.after:
        desk.feed.market(query.after)  # or nothing would be behind it
    wanted = query.hardware, query.region, query.grade, query.tenor
    found = (
        instrument_of(market, desk.catalog)
        for market in _behind(desk.feed.mirror.markets.values(), query.after, "ticker", "symbol")
        if not any(wanted) or _is_wanted(desk.catalog.parts(market.product), wanted)
    )
    chosen, more = _page(found, query.limit)
    return r.Instruments(chosen, more)


def _is_wanted(parts: ProductParts, wanted: tuple[str, str, str, str]) -> bool:
    """Whether each is as it was asked for, if it was."""
    found = parts.hardware.id, parts.region.name, parts.grade.name, parts.window.name
    return all(not name or name == one for one, name in zip(found, wanted, strict=True))


def _behind(entries: Any, after: Any, *names: str) -> Iterator[Any]:
    """Those behind the one that has `after` as one of these attributes; all without it."""
    entries = iter(entries)
    if after:
        for entry in entries:
            if after in [getattr(entry, name) for name in names]:
                break
    return entries


def _page(entries: Iterator[_Entry], limit: int) -> tuple[list[_Entry], bool]:
    chosen = list(islice(entries, limit + 1))
    return chosen[:limit], len(chosen) > limit


def instrument(desk: Desk, asked: Asked) -> r.Instrument:
    """One listed market."""
    return instrument_of(desk.feed.market(asked.market), desk.catalog)


def instrument_of(market: MarketState, catalog: Catalog) -> r.Instrument:
    parts = catalog.parts(market.product)
    starts_s, ends_s = catalog.window_s(market.product)
    return r.Instrument(
        **msgspec.structs.asdict(market.info()),
        hardware=parts.hardware.id,
        title=parts.hardware.title,
        region=parts.region.name,
        grade=parts.grade.name,
        tenor=parts.window.name,
        starts_s=starts_s,
        hours=(ends_s - starts_s) // HOUR_S,
        tick=PRICE_TICK,
    )


def book(desk: Desk, asked: Asked) -> m.BookSnapshot:
    """The best levels of one market's book. `crc` is of the top 10 levels of each side, also where
    fewer are asked for."""
    market = desk.feed.market(asked.market)
    depth: int = asked.query.depth
    return m.BookSnapshot(
        market=market.ticker,
        seq=market.book.seq,
        bids=[translate.level(*x) for x in market.book.levels("buy", depth)],
        asks=[translate.level(*x) for x in market.book.levels("sell", depth)],
        crc=market.book.checksum(),
    )


def trades(desk: Desk, asked: Asked) -> r.Trades:
    """The latest trades of one market."""
    kept = desk.feed.market(asked.market).trades
    return r.Trades(_last(kept, asked.query.limit))


def candles(desk: Desk, asked: Asked) -> r.Candles:
    """Prices and volumes of one market, interval by interval."""
    query: r.CandlesQuery = asked.query
    ticker = desk.feed.market(asked.market).ticker
    wanted = m.Subscribe(1, "candles", ticker, interval_s=query.interval_s)
    topic, from_s = desk.feed.topic(wanted, 0), query.from_s
    # They are made as they are taken, and one costs as much as most reads do in all.
    count = desk.feed.closed_since(topic, from_s) if from_s else query.limit
    kept = desk.feed.first(topic, max(1, count))
    found = (x for x in kept if isinstance(x, m.Candle) and x.start_s >= from_s)
    return r.Candles([*islice(found, query.limit)] if from_s else [*found][-query.limit :])


def _last(entries: deque[_Entry], limit: int) -> list[_Entry]:
    return list(islice(entries, max(len(entries) - limit, 0), None))


def indexes(desk: Desk, _asked: Asked) -> r.Indexes:
    """The latest round of every spot price."""
    return r.Indexes(desk.feed.indexes())


def rounds(desk: Desk, asked: Asked) -> r.Rounds:
    """The latest rounds of one spot price, by the ticker of its SPOT market."""
    return r.Rounds(_last(desk.feed.rounds(asked.market), asked.query.limit))


def time(desk: Desk, _asked: Asked) -> r.Time:
    """The server's time of day."""
    return r.Time(translate.time_us(desk.time_ns()))


def limits(desk: Desk, _asked: Asked) -> r.Terms:
    """What holds for every connection, as `hello` says it."""
    return r.Terms(
        version=m.PROTOCOL_VERSION,
        chain_id=desk.domain.chain_id,
        vault=address_text(desk.domain.vault),
        price_tick=PRICE_TICK,
        qty_lot=QTY_LOT,
        build=desk.build,
        limits=desk.limits,
    )


def orders(desk: Desk, asked: Asked) -> r.Orders:
    """The account's open orders."""
    query: r.OrdersQuery = asked.query
    named = desk.feed.market(query.market).instrument if query.market else 0
    account = desk.feed.account(asked.account)
    if query.after and query.after not in account.orders:
        raise BadRequest(Reject.UNKNOWN_ORDER, "after")
    found = (
        desk.feed.mirror.order_info(order)
        for order in _behind(account.orders.values(), query.after, "order_id")
        if not query.market or order.instrument == named
    )
    chosen, more = _page(found, query.limit)
    return r.Orders(chosen, more)


def balances(desk: Desk, asked: Asked) -> m.Balances:
    """The account's money, as last published."""
    return desk.feed.balances(asked.account)


def fills(desk: Desk, asked: Asked) -> r.Fills:
    """The account's fills."""
    query: r.KeptQuery = asked.query
    return r.Fills(_kept(desk.history.fills, asked.account, query))


def leases(desk: Desk, asked: Asked) -> r.Leases:
    """The account's leases: hours bought and sold."""
    query: r.KeptQuery = asked.query
    return r.Leases(_kept(desk.history.leases, asked.account, query))


def _kept(
    ask: Callable[[int, int, int], list[_Entry]], account: int, query: r.KeptQuery
) -> list[_Entry]:
    try:
        return ask(account, query.after, query.limit)
    except sqlite3.Error as error:
        raise BadRequest(Reject.BUSY, None, "what is kept cannot be read now") from error


READS: Final = (
    Read("/api/v1/instruments", r.InstrumentsQuery, r.Instruments, instruments),
    Read("/api/v1/instruments" + MARKET, r.Nothing, r.Instrument, instrument),
    Read("/api/v1/book" + MARKET, r.BookQuery, m.BookSnapshot, book),
    Read("/api/v1/trades" + MARKET, r.TradesQuery, r.Trades, trades),
    Read("/api/v1/candles" + MARKET, r.CandlesQuery, r.Candles, candles),
    Read("/api/v1/index", r.Nothing, r.Indexes, indexes),
    Read("/api/v1/index" + MARKET, r.RoundsQuery, r.Rounds, rounds),
    Read("/api/v1/time", r.Nothing, r.Time, time, is_cached=False),
    Read("/api/v1/limits", r.Nothing, r.Terms, limits),
    Read("/api/v1/account/orders", r.OrdersQuery, r.Orders, orders, is_private=True),
    Read("/api/v1/account/balances", r.Nothing, m.Balances, balances, is_private=True),
    Read("/api/v1/account/fills", r.KeptQuery, r.Fills, fills, is_private=True),
    Read("/api/v1/account/leases", r.KeptQuery, r.Leases, leases, is_private=True),
)
