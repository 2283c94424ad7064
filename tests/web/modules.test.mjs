// The page's pure modules, run by node; test_modules.py starts it and gives it the server's own
// checksums in COMPEX_VECTORS.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { Book, checksum, crc32, OutOfStep } from "../../gateway/web/book.js";
import { Connection, PAUSES_MS, SILENCE_MS } from "../../gateway/web/connection.js";
import {
  clockText,
  NotADecimal,
  parsePrice,
  parseQty,
  priceText,
  qtyText,
  shortQtyText,
  spreadText,
} from "../../gateway/web/decimal.js";
import { depthView, stepAt, stepPath } from "../../gateway/web/depth.js";
import {
  ASKS_PER_PUMP,
  Exchange,
  RESYNCS_MAX,
  SPARE_SUBSCRIPTIONS,
  TRADES_KEPT,
} from "../../gateway/web/exchange.js";
import { describe, detail } from "../../gateway/web/names.js";

const NARROW = "\u202f";

// --- decimal -------------------------------------------------------------------------------------
test("decimal strings become whole numbers exactly", () => {
  assert.equal(parsePrice("2.4150"), 24_150);
  assert.equal(parsePrice("2.415"), 24_150);
  assert.equal(parsePrice("0.0001"), 1);
  assert.equal(parsePrice("1677.7215"), 16_777_215);
  assert.equal(parseQty("16"), 1_600);
  assert.equal(parseQty("10000000"), 1_000_000_000);
  assert.equal(parseQty("0.10000"), 10);
});

test("anything but a plain decimal that fits is refused", () => {
  const signs = ["", "1.", ".5", "-1", "+1", "1e3", " 1", "1,5", "NaN", "0x1", "0.00001", "١"];
  for (const bad of signs) {
    assert.throws(() => parsePrice(bad), NotADecimal, bad);
  }
  assert.throws(() => parseQty("99999999999999999"), NotADecimal);
});

test("numbers read well", () => {
  assert.equal(priceText(24_150), "2.4150");
  assert.equal(priceText(5), "0.0005");
  assert.equal(qtyText(160_050), `1${NARROW}600.5`);
  assert.equal(qtyText(5), "0.05");
  assert.equal(qtyText(100_000_000), `1${NARROW}000${NARROW}000`);
  assert.equal(shortQtyText(123_456), `1${NARROW}234.56`);
  assert.equal(shortQtyText(1_234_567), "12.3k");
  assert.equal(shortQtyText(12_345_678), "123k");
  assert.equal(shortQtyText(1_234_567_800), "12.3M");
  assert.equal(spreadText(20_100, 20_000), "0.50 %");
  assert.equal(clockText(1_795_219_200_000_000), "00:00:00");
});

test("every price and quantity survives the way to text and back", () => {
  for (let n = 1; n < 16_777_215; n += 7_919) {
    assert.equal(parsePrice(priceText(n).replaceAll(NARROW, "")), n);
    assert.equal(parseQty(qtyText(n).replaceAll(NARROW, "")), n);
  }
});

// --- book ----------------------------------------------------------------------------------------
test("the checksum is the common CRC-32", () => {
  assert.equal(crc32(new TextEncoder().encode("123456789")), 0xcbf43926);
  assert.equal(checksum([], []), 0);
});

test("the page's book equals the server's after every message", () => {
  const { snapshot, deltas, bids, asks } = JSON.parse(readFileSync(process.env.COMPEX_VECTORS));
  assert.ok(deltas.length >= 500);
  const book = new Book();
  book.applySnapshot(snapshot);
  for (const delta of deltas) book.applyDelta(delta);
  assert.deepEqual(book.bids, bids);
  assert.deepEqual(book.asks, asks);
});

test("a missing message and a wrong checksum are noticed", () => {
  const { snapshot, deltas } = JSON.parse(readFileSync(process.env.COMPEX_VECTORS));
  const book = new Book();
  book.applySnapshot(snapshot);
  assert.throws(() => book.applyDelta(deltas[1]), OutOfStep);
  book.applySnapshot(snapshot);
  assert.throws(() => book.applyDelta({ ...deltas[0], crc: deltas[0].crc ^ 1 }), OutOfStep);
  assert.throws(() => new Book().applySnapshot({ ...snapshot, crc: 1 }), OutOfStep);
  const nonsense = { ...deltas[0], bids: [["1e3", "5"]] };
  book.applySnapshot(snapshot);
  assert.throws(() => book.applyDelta(nonsense), OutOfStep);
});

// --- names ---------------------------------------------------------------------------------------
test("a symbol is told in words", () => {
  const about = describe("nv.h100-sxm-80g.x8.ib|us-e|B|SPOT");
  assert.equal(about.model, "H100 SXM");
  assert.equal(about.regionName, "US East");
  assert.equal(detail(about), "80 GB · 8 GPUs · InfiniBand");
  assert.equal(describe("nv.rtx4090-24g.x1|eu-n|C|H|2026-12-01T14").window, "H 2026-12-01T14");
  assert.equal(describe("nv.rtxa6000-48g.x1|ca|C|SPOT").model, "RTX A6000");
  assert.equal(describe("nv.rtx6000ada-48g.x1|ca|C|SPOT").model, "RTX 6000 Ada");
  assert.equal(detail(describe("nv.l4-pcie-24g.x1|ca|C|SPOT")), "24 GB · 1 GPU");
  assert.equal(describe("something else").model, "something else");
});

// --- depth ---------------------------------------------------------------------------------------
test("depth adds up from the best price outward", () => {
  const view = depthView([[99, 5], [98, 5]], [[101, 10], [110, 30]], 200);
  assert.deepEqual(view.bidSteps, [[99, 5], [98, 10]]);
  assert.deepEqual(view.askSteps, [[101, 10], [110, 40]]);
  assert.equal(view.top, 40);
  assert.ok(view.low < 98 && view.high > 110);
  assert.deepEqual(stepAt(view.askSteps, 105, false), [101, 10]);
  assert.deepEqual(stepAt(view.bidSteps, 98, true), [98, 10]);
  assert.equal(stepAt(view.bidSteps, 100, true), null);
  assert.match(stepPath(view.askSteps, view, 600, 180, false), /^M[\d.]+ 180V[\d.]+H.*H600V180Z$/);
  assert.match(stepPath(view.bidSteps, view, 600, 180, true), /H0V180Z$/);
  assert.equal(depthView([], [], 200), null);
  assert.equal(stepPath([], null, 600, 180, true), "");
});

// --- exchange ------------------------------------------------------------------------------------
const HELLO = { t: "hello", version: 1, limits: { subscriptions: 256 } };

function harness() {
  const sent = [];
  const restarts = [];
  const notices = [];
  const exchange = new Exchange({
    send: (body) => sent.push(body),
    restart: (reason) => restarts.push(reason),
    changed: () => {},
    notice: (text) => notices.push(text),
  });
  const ackAll = () => {
    for (const { id } of sent.splice(0)) exchange.receive({ t: "ack", id });
  };
  return { exchange, sent, restarts, notices, ackAll };
}

function listed(count) {
  return Array.from({ length: count }, (_, i) => ({
    market: `M${i}`,
    symbol: `nv.l4-pcie-24g.x${i}|ca|C|SPOT`,
    status: "open",
  }));
}

function started(count, subscriptions = 256) {
  const made = harness();
  made.exchange.receive({ ...HELLO, limits: { subscriptions } });
  const [query] = made.sent;
  assert.equal(query.t, "query");
  const channels = made.sent.slice(1).map((body) => body.channel);
  assert.deepEqual(channels, ["status", "index", "trades"]);
  made.exchange.receive({ t: "ack", id: query.id, markets: listed(count) });
  for (const { id } of made.sent.splice(0).slice(1)) made.exchange.receive({ t: "ack", id });
  return made;
}

const level = (price, qty, side) => checksum(
  side === "bid" ? [[parsePrice(price), parseQty(qty)]] : [],
  side === "ask" ? [[parsePrice(price), parseQty(qty)]] : [],
);
const snapshot = (market, seq, price) => ({
  t: "book_snapshot", market, seq, bids: [[price, "8"]], asks: [], crc: level(price, "8", "bid"),
});
const delta = (market, prev, seq, qty, price) => ({
  t: "book_delta", market, prev, seq, bids: [[price, qty]], asks: [],
  crc: level(price, qty, "bid"), time_us: 1,
});

test("nothing is asked before the server's hello", () => {
  const { exchange, sent } = harness();
  exchange.want(["M0"], "M0");
  assert.deepEqual(sent, []);
});

test("books are asked for a few at a time until all are there", () => {
  const { exchange, sent, ackAll } = started(200);
  const books = new Set();
  for (let round = 0; round < 200 && sent.length > 0; round += 1) {
    assert.ok(sent.length <= ASKS_PER_PUMP * 2 + 2);
    for (const { t, channel, market } of sent) {
      if (t === "subscribe" && channel === "book") books.add(market);
    }
    ackAll();
  }
  assert.equal(books.size, 200);
  assert.equal(new Set([...exchange.subscribed]).size, 200);
});

test("the wanted market comes first and the subscription limit is kept", () => {
  const { exchange, sent, ackAll } = started(300, 40);
  for (let round = 0; round < 50 && sent.length > 0; round += 1) ackAll();
  assert.equal(exchange.subscribed.size, 40 - SPARE_SUBSCRIPTIONS);
  exchange.want(["M299", "M298"], "M299");
  const messages = sent.map((body) => `${body.t} ${body.channel} ${body.market}`);
  assert.ok(messages.includes("subscribe book M299"));
  assert.ok(messages.some((text) => text.startsWith("unsubscribe book")));
  assert.equal(exchange.subscribed.size, 40 - SPARE_SUBSCRIPTIONS);
});

test("a book is shown from its snapshot on and follows its deltas", () => {
  const { exchange } = started(1);
  const market = exchange.markets.get("M0");
  assert.equal(market.bookState, "syncing");
  exchange.receive(delta("M0", 3, 4, "9", "2.0000")); // of before: belongs to no snapshot
  assert.equal(market.bid, undefined);
  exchange.receive(snapshot("M0", 7, "2.0000"));
  assert.deepEqual(market.bid, [20_000, 800]);
  exchange.receive(delta("M0", 7, 9, "16", "2.0000"));
  assert.deepEqual(market.bid, [20_000, 1_600]);
  assert.equal(exchange.sequence, 9);
});

test("a gap hides the book and asks for it again", () => {
  const { exchange, sent } = started(1);
  const market = exchange.markets.get("M0");
  exchange.receive(snapshot("M0", 7, "2.0000"));
  sent.length = 0;
  exchange.receive(delta("M0", 8, 9, "16", "2.0000"));
  assert.equal(market.bookState, "syncing");
  assert.equal(market.bid, undefined);
  assert.deepEqual(sent.map((body) => [body.t, body.channel, body.market]), [
    ["subscribe", "book", "M0"],
  ]);
  exchange.receive(snapshot("M0", 9, "2.0000"));
  assert.equal(market.bookState, "live");
});

test("a book that never agrees drops the connection", () => {
  const { exchange, restarts } = started(1);
  for (let i = 0; i <= RESYNCS_MAX; i += 1) {
    assert.equal(restarts.length, 0);
    exchange.receive({ ...snapshot("M0", 7, "2.0000"), crc: 1 });
  }
  assert.equal(restarts.length, 1);
});

test("trades are newest first, each once, and not without end", () => {
  const { exchange } = started(1);
  const trade = (id) => ({
    t: "trade", market: "M0", trade_id: id, price: "2.0000", qty: "8", side: "buy", time_us: id,
  });
  for (const id of [5, 7, 9, 7, 6, 9]) exchange.receive(trade(id));
  const market = exchange.markets.get("M0");
  assert.deepEqual(market.trades.map(({ id }) => id), [9, 7, 6, 5]);
  for (let id = 10; id < 200; id += 1) exchange.receive(trade(id));
  assert.equal(market.trades.length, TRADES_KEPT);
  assert.equal(market.last.id, 199);
});

test("a block sets no price: the last trade is the last that is none", () => {
  const { exchange } = started(1);
  const market = exchange.markets.get("M0");
  const trade = (id, block) => ({
    t: "trade", market: "M0", trade_id: id, price: `${id}`, qty: "8", side: "buy", time_us: id,
    ...(block && { block }),
  });
  exchange.receive(trade(5, true));
  assert.equal(market.last, undefined);
  for (const [id, block] of [[7, false], [9, true], [6, false]]) exchange.receive(trade(id, block));
  assert.equal(market.last.priceTicks, 70_000);
  assert.deepEqual(market.trades.map(({ id, block }) => [id, block]), [
    [9, true], [7, false], [6, false], [5, true],
  ]);
  for (let id = 10; id < 10 + TRADES_KEPT; id += 1) exchange.receive(trade(id, true));
  assert.equal(market.last.id, 7, "also when only blocks are kept");
});

test("every status but open is shown beside a market's name", () => {
  const { exchange } = started(1);
  const market = exchange.markets.get("M0");
  const told = { t: "market_status", market: "M0", symbol: market.symbol, sequence: 1, time_us: 1 };
  const words = ["halted", "call", "closed", "open"].map((status) => {
    exchange.receive({ ...told, status });
    return market.tag;
  });
  assert.deepEqual(words, ["halted", "call", "closed", ""]);
});

test("a market listed later appears and a halt is shown", () => {
  const { exchange, sent } = started(1);
  sent.length = 0;
  const status = { t: "market_status", market: "NEW", symbol: "nv.l4-pcie-24g.x1|ca|A|SPOT" };
  exchange.receive({ ...status, status: "open", sequence: 1, time_us: 1 });
  assert.ok(sent.some((body) => body.channel === "book" && body.market === "NEW"));
  exchange.receive({ ...status, status: "halted", sequence: 2, time_us: 2 });
  assert.equal(exchange.markets.get("NEW").status, "halted");
});

test("an index without a known quality is not shown", () => {
  const { exchange } = started(1);
  const index = { t: "index", market: "M0", price: "2.5000", quality: "A", round: 1, time_us: 1 };
  exchange.receive({ ...index, quality: "Z" });
  assert.equal(exchange.markets.get("M0").index, null);
  exchange.receive(index);
  assert.equal(exchange.markets.get("M0").index.priceTicks, 25_000);
});

test("a refused book is shown as missing, in words, and asked for again later", () => {
  const { exchange, sent, notices } = started(1);
  exchange.opened();
  sent.length = 0;
  exchange.receive(HELLO);
  exchange.pump();
  const { id } = sent.find((body) => body.channel === "book");
  exchange.receive({ t: "reject", id, code: 1011, reason: "RATE_LIMITED", message: "too many" });
  assert.equal(exchange.markets.get("M0").bookState, "none");
  assert.deepEqual(notices, ["RATE_LIMITED: too many"]);
  sent.length = 0;
  exchange.receive({ t: "heartbeat", time_us: 1, sequence: 5 });
  assert.ok(sent.some((body) => body.channel === "book"));
});

test("refused trades are asked for again later", () => {
  const { exchange, sent } = started(1);
  exchange.opened();
  sent.length = 0;
  exchange.receive(HELLO);
  exchange.want(["M0"], "M0");
  const ofTrades = (body) => body.t === "subscribe" && body.channel === "trades" && body.market;
  const { id } = sent.find(ofTrades);
  exchange.receive({ t: "reject", id, code: 1011, reason: "RATE_LIMITED", message: "too many" });
  sent.length = 0;
  exchange.receive({ t: "heartbeat", time_us: 1, sequence: 5 });
  assert.ok(sent.some(ofTrades));
});

test("after a reconnection no old book is shown", () => {
  const { exchange } = started(1);
  exchange.receive(snapshot("M0", 7, "2.0000"));
  exchange.closed();
  assert.equal(exchange.markets.get("M0").bid, undefined);
});

test("a server of another protocol is told apart", () => {
  const { exchange, sent, notices } = harness();
  exchange.receive({ ...HELLO, version: 2 });
  assert.deepEqual(sent, []);
  assert.equal(notices.length, 1);
});

test("a message this page does not know is passed over", () => {
  const { exchange } = started(1);
  exchange.receive({ t: "something_new" });
});

// --- connection ----------------------------------------------------------------------------------
function wire() {
  const sockets = [];
  const waiting = new Map();
  const states = [];
  const messages = [];
  let timer = 0;
  const connection = new Connection({
    url: "ws://test/ws",
    makeSocket() {
      const socket = { readyState: 1, sent: [], closed: false, close() { this.closed = true; } };
      socket.send = (frame) => socket.sent.push(frame);
      sockets.push(socket);
      return socket;
    },
    timers: {
      set(act, ms) {
        timer += 1;
        waiting.set(timer, { act, ms });
        return timer;
      },
      clear: (which) => waiting.delete(which),
    },
    onState: (state) => states.push(state),
    onMessage: (message) => messages.push(message),
  });
  const fire = () => {
    const [[which, { act, ms }]] = waiting;
    waiting.delete(which);
    act();
    return ms;
  };
  return { connection, sockets, states, messages, waiting, fire };
}

test("a connection that keeps failing is tried ever less often", () => {
  const { connection, sockets, fire } = wire();
  connection.open();
  const pauses = [];
  for (let i = 0; i < 7; i += 1) {
    sockets.at(-1).onclose({ reason: "" });
    pauses.push(fire());
  }
  assert.deepEqual(pauses, [...PAUSES_MS, PAUSES_MS.at(-1), PAUSES_MS.at(-1)]);
  assert.equal(sockets.length, 8);
});

test("silence ends a connection and its late frames are not delivered", () => {
  const { connection, sockets, states, messages, fire } = wire();
  connection.open();
  const [first] = sockets;
  first.onopen();
  first.onmessage({ data: '{"t":"hello"}' });
  assert.equal(fire(), SILENCE_MS);
  assert.ok(first.closed);
  fire();
  first.onmessage({ data: '{"t":"trade"}' });
  first.onclose({ reason: "late" });
  assert.equal(sockets.length, 2);
  assert.deepEqual(messages, [{ t: "hello" }]);
  assert.deepEqual(states, ["connecting", "open", "waiting", "connecting"]);
});

test("a broken frame ends a connection", () => {
  const { connection, sockets, states } = wire();
  connection.open();
  sockets[0].onmessage({ data: "{" });
  assert.equal(states.at(-1), "waiting");
  connection.send({ t: "ping" }); // no socket: dropped, not thrown
});
