// What the page knows of the exchange: markets, their books, trades and index, from messages.
// Invariant: a book is shown only while every message since its snapshot was applied and its
// checksum agreed; after a gap it is asked for again and is "syncing" until then. No I/O: frames
// go out by `send`, one method takes each message in. The protocol is compex_client/messages.py.

import { Book, OutOfStep } from "./book.js";
import { parsePrice, parseQty } from "./decimal.js";

export const PROTOCOL_VERSION = 1;
export const TRADES_KEPT = 50;
export const RESYNCS_MAX = 5; // in a row without one good delta; then the connection starts anew
export const SPARE_SUBSCRIPTIONS = 8; // for status, trades, index and changes of selection
export const ASKS_PER_PUMP = 20; // books asked for at once, so that a page start is no burst
const QUALITIES = new Set(["A", "B", "C"]);

/** One market's row. `bookState` is none | syncing | live; `book` counts only while live. */
export class Market {
  constructor(ticker, symbol) {
    this.ticker = ticker;
    this.symbol = symbol;
    this.status = "open";
    this.bookState = "none";
    this.book = new Book();
    this.resyncs = 0;
    this.trades = []; // newest first, {id, priceTicks, qtyLots, side, timeUs, block}
    this.last = undefined; // the newest trade that is no block: a block sets no price
    this.tradesAsked = false;
    this.index = null; // {priceTicks, quality, round, timeUs}
  }

  get bid() {
    return this.bookState === "live" ? this.book.bids[0] : undefined;
  }

  get ask() {
    return this.bookState === "live" ? this.book.asks[0] : undefined;
  }

  /** What is said beside its name: nothing while it is open. */
  get tag() {
    return this.status === "open" ? "" : this.status;
  }
}

export class Exchange {
  /** `send(object)`; `restart(reason)` drops the connection; `changed(market | null)` is called
   * after what is shown of a market, or of the whole list (null), became different. */
  constructor({ send, restart, changed, notice }) {
    this.send = send;
    this.restart = restart;
    this.changed = changed;
    this.notice = notice;
    this.markets = new Map(); // ticker -> Market
    this.wanted = []; // tickers in the order in which their books are wanted
    this.selected = "";
    this.sequence = 0;
    this.opened();
  }

  /** A new connection: nothing that was known of a book holds any more. */
  opened() {
    this.ready = false;
    this.lastId = 0;
    this.asked = new Map(); // request id -> {what, ticker}
    this.subscribed = new Set(); // tickers with a book subscription
    this.subscriptionsMax = 0;
    for (const market of this.markets.values()) {
      market.bookState = "none";
      market.tradesAsked = false;
      market.resyncs = 0;
    }
    this.changed(null);
  }

  /** The connection is gone; prices on the page are as old as that. */
  closed() {
    this.opened();
  }

  request(body, what, ticker = "") {
    this.lastId += 1;
    this.asked.set(this.lastId, { what, ticker });
    this.send({ ...body, id: this.lastId });
  }

  receive(message) {
    const handler = HANDLERS[message.t];
    if (handler) handler.call(this, message); // others are for traders, or newer than this page
  }

  /** The page shows these markets first; `selected` also wants its latest trades. */
  want(tickers, selected) {
    this.wanted = tickers;
    this.selected = selected;
    this.pump();
  }

  /** Ask for books that are wanted, a few at a time; give up unwanted ones when at the limit. */
  pump() {
    if (!this.ready) return;
    const order = [this.selected, ...this.wanted, ...this.markets.keys()];
    const room = this.subscriptionsMax - SPARE_SUBSCRIPTIONS;
    const keep = [...new Set(order)].filter((ticker) => this.markets.has(ticker)).slice(0, room);
    const kept = new Set(keep);
    for (const ticker of this.subscribed) {
      if (!kept.has(ticker)) this.#leave(ticker);
    }
    // The selected market whole, then everybody's book, then everybody's latest trades.
    const books = keep.filter((ticker) => !this.subscribed.has(ticker));
    const trades = [this.selected, ...this.wanted].filter((ticker) => {
      return this.markets.has(ticker) && !this.markets.get(ticker).tradesAsked;
    });
    const first = trades[0] === this.selected ? trades.splice(0, 1) : [];
    for (const ticker of first) this.#askTrades(this.markets.get(ticker));
    for (const ticker of books.slice(0, ASKS_PER_PUMP)) {
      this.subscribed.add(ticker);
      this.#subscribeBook(this.markets.get(ticker));
    }
    if (books.length > 0) return;
    for (const ticker of trades.slice(0, ASKS_PER_PUMP)) this.#askTrades(this.markets.get(ticker));
  }

  /** The latest ones come at once; new ones come with the subscription to all markets. */
  #askTrades(market) {
    market.tradesAsked = true;
    const { ticker } = market;
    this.request({ t: "subscribe", channel: "trades", market: ticker }, "recent", ticker);
    this.request({ t: "unsubscribe", channel: "trades", market: market.ticker }, "recent");
  }

  #subscribeBook(market) {
    market.bookState = "syncing";
    this.request({ t: "subscribe", channel: "book", market: market.ticker }, "book", market.ticker);
    this.changed(market);
  }

  #leave(ticker) {
    this.subscribed.delete(ticker);
    this.markets.get(ticker).bookState = "none";
    this.request({ t: "unsubscribe", channel: "book", market: ticker }, "leave", ticker);
  }

  addMarket(ticker, symbol, status) {
    let market = this.markets.get(ticker);
    const isNew = market === undefined;
    if (isNew) {
      market = new Market(ticker, symbol);
      this.markets.set(ticker, market);
    }
    market.status = status;
    this.changed(isNew ? null : market);
    return isNew;
  }

  applyBook(market, apply) {
    try {
      apply(market.book);
      market.bookState = "live";
      this.changed(market);
      return true;
    } catch (error) {
      if (!(error instanceof OutOfStep)) throw error;
      market.resyncs += 1;
      if (market.resyncs > RESYNCS_MAX) {
        this.restart(`${market.ticker}: ${error.message}`);
      } else {
        this.#subscribeBook(market);
      }
      return false;
    }
  }
}

const HANDLERS = {
  hello(message) {
    if (message.version !== PROTOCOL_VERSION) {
      this.notice(`This page speaks protocol ${PROTOCOL_VERSION}, the server ${message.version}.`);
      return;
    }
    this.ready = true;
    this.subscriptionsMax = message.limits.subscriptions;
    this.request({ t: "query", what: "markets" }, "markets");
    for (const channel of ["status", "index", "trades"]) {
      this.request({ t: "subscribe", channel }, channel);
    }
  },

  ack(message) {
    this.asked.delete(message.id);
    if (message.markets) {
      for (const info of message.markets) this.addMarket(info.market, info.symbol, info.status);
    }
    if (this.asked.size === 0) this.pump(); // the server kept up: the next few
  },

  reject(message) {
    const asked = this.asked.get(message.id);
    this.asked.delete(message.id);
    const market = asked && this.markets.get(asked.ticker);
    if (asked?.what === "book" && market) {
      market.bookState = "none"; // asked again by the next pump
      this.subscribed.delete(asked.ticker);
      this.changed(market);
    }
    if (asked?.what === "recent" && market) market.tradesAsked = false; // likewise
    this.notice(`${message.reason}: ${message.message}`);
  },

  book_snapshot(message) {
    const market = this.markets.get(message.market);
    if (market && this.subscribed.has(message.market)) {
      this.applyBook(market, (book) => book.applySnapshot(message));
    }
  },

  book_delta(message) {
    const market = this.markets.get(message.market);
    // While syncing, deltas belong to the old book; the snapshot on its way contains them.
    if (market === undefined || market.bookState !== "live") return;
    if (this.applyBook(market, (book) => book.applyDelta(message))) market.resyncs = 0;
    this.sequence = Math.max(this.sequence, message.seq);
  },

  trade(message) {
    const market = this.markets.get(message.market);
    if (market === undefined) return;
    const { trades } = market;
    const at = trades.findIndex((trade) => trade.id <= message.trade_id);
    if (at >= 0 && trades[at].id === message.trade_id) return; // told by both subscriptions
    const trade = {
      id: message.trade_id,
      priceTicks: parsePrice(message.price),
      qtyLots: parseQty(message.qty),
      side: message.side,
      timeUs: message.time_us,
      block: message.block === true,
    };
    trades.splice(at < 0 ? trades.length : at, 0, trade);
    trades.length = Math.min(trades.length, TRADES_KEPT);
    if (!trade.block && !(market.last?.id > trade.id)) market.last = trade;
    this.changed(market);
  },

  index(message) {
    const market = this.markets.get(message.market);
    if (market === undefined || !QUALITIES.has(message.quality)) return;
    market.index = {
      priceTicks: parsePrice(message.price),
      quality: message.quality,
      round: message.round,
      timeUs: message.time_us,
    };
    this.changed(market);
  },

  market_status(message) {
    if (this.addMarket(message.market, message.symbol, message.status)) this.pump();
  },

  heartbeat(message) {
    this.sequence = Math.max(this.sequence, message.sequence);
    this.pump();
  },
};
