// The page: wires connection and exchange to the document. All text comes in through
// textContent, all work on the document happens in one animation frame however fast data comes.

import { Connection } from "./connection.js";
import { clockText, priceText, qtyText, shortQtyText, spreadText } from "./decimal.js";
import { depthView, stepAt, stepPath } from "./depth.js";
import { Exchange } from "./exchange.js";
import { describe, detail } from "./names.js";

const LADDER_ROWS = 8;
const DEPTH_LEVELS = 200;
const TRADES_SHOWN = 17; // as many as the ladder is high
const CHART = { width: 600, height: 180 };
const NOTICE_MS = 8_000;
const NONE = "–";

const $ = (id) => document.getElementById(id);
const rows = new Map(); // ticker -> the row's parts
const dirty = new Set(); // tickers whose row is out of date
let listDirty = true; // markets came, or order or filter changed
let oneDirty = true;
let framePending = false;
let sort = { by: "name", descending: false };
let chart = null; // what the depth chart shows, for the pointer
let noticeTimer = 0;
let lastTradeId = 0;

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// --- data in -------------------------------------------------------------------------------------
const connection = new Connection({
  url: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`,
  makeSocket: (url) => new WebSocket(url),
  timers: { set: (act, ms) => setTimeout(act, ms), clear: (timer) => clearTimeout(timer) },
  onState(state, reason) {
    $("connection").dataset.state = state;
    const words = { connecting: "connecting", open: "live", waiting: "disconnected" };
    setText($("connection"), words[state] + (reason ? `: ${reason}` : ""));
    if (state === "waiting") exchange.closed();
    if (state === "connecting") exchange.opened();
  },
  onMessage: (message) => exchange.receive(message),
});

const exchange = new Exchange({
  send: (body) => connection.send(body),
  restart: (reason) => connection.restart(reason),
  changed(market) {
    if (market === null) {
      listDirty = true;
      oneDirty = true;
    } else {
      dirty.add(market.ticker);
      if (market.ticker === exchange.selected) oneDirty = true;
    }
    schedule();
  },
  notice(text) {
    setText($("notice"), text);
    $("notice").hidden = false;
    clearTimeout(noticeTimer);
    noticeTimer = setTimeout(() => ($("notice").hidden = true), NOTICE_MS);
  },
});

function schedule() {
  if (framePending) return;
  framePending = true;
  // A hidden page gets no animation frames; it must not pile up either: one flag, no queue.
  requestAnimationFrame(() => {
    framePending = false;
    render();
  });
}

function render() {
  if (listDirty) renderList();
  for (const ticker of dirty) {
    const row = rows.get(ticker);
    if (row) renderRow(row);
  }
  dirty.clear();
  if (oneDirty) renderOne();
  setText($("fact-sequence"), exchange.sequence ? qtyText(exchange.sequence * 100) : NONE);
}

// --- the list ------------------------------------------------------------------------------------
const KEYS = {
  bid: (market) => market.bid?.[0],
  ask: (market) => market.ask?.[0],
  last: (market) => market.last?.priceTicks,
  index: (market) => market.index?.priceTicks,
};

function shownMarkets() {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const region = $("region").value;
  const shown = [...rows.values()].filter(
    (row) =>
      (!region || row.about.region === region) && words.every((word) => row.text.includes(word)),
  );
  const byName = (a, b) => (a.order < b.order ? -1 : 1);
  const key = KEYS[sort.by];
  shown.sort((a, b) => {
    if (!key) return byName(a, b) * (sort.descending ? -1 : 1);
    const [x, y] = [key(a.market), key(b.market)];
    if (x === undefined || y === undefined) {
      return (x === undefined) - (y === undefined) || byName(a, b); // without a value: last
    }
    return (x - y) * (sort.descending ? -1 : 1) || byName(a, b);
  });
  return shown;
}

function renderList() {
  listDirty = false;
  for (const market of exchange.markets.values()) {
    if (!rows.has(market.ticker)) rows.set(market.ticker, makeRow(market));
    dirty.add(market.ticker);
  }
  const shown = shownMarkets();
  $("markets").tBodies[0].replaceChildren(...shown.map((row) => row.tr));
  $("empty").hidden = shown.length > 0 || rows.size === 0;
  setText($("fact-markets"), String(rows.size || NONE));
  renderRegions();
  if (!exchange.markets.has(exchange.selected) && shown.length > 0) {
    const linked = decodeURIComponent(location.hash.slice(1));
    select(exchange.markets.has(linked) ? linked : shown[0].market.ticker);
  }
  exchange.want(shown.map((row) => row.market.ticker), exchange.selected);
}

function renderRegions() {
  const known = new Set([...$("region").options].map((option) => option.value));
  for (const { about } of rows.values()) {
    if (known.has(about.region)) continue;
    known.add(about.region);
    const after = [...$("region").options].find((option) => option.value > about.region);
    const option = new Option(`${about.region}  ${about.regionName}`, about.region);
    $("region").add(option, after ?? null);
  }
}

function makeRow(market) {
  const about = describe(market.symbol);
  const tr = element("tr");
  const pick = element("button", "pick");
  const name = element("b", "", about.model);
  const status = element("span", "tag");
  pick.type = "button";
  const terms = about.window === "SPOT" ? about.grade : `${about.grade} ${about.window}`;
  pick.append(
    name,
    element("span", "tag", about.region),
    element("span", "tag", terms),
    status,
    element("small", "", detail(about)),
  );
  pick.dataset.ticker = market.ticker;
  const first = element("td");
  first.append(pick);
  const cells = Object.fromEntries(Object.keys(KEYS).map((key) => [key, element("td", "num")]));
  for (const [side, tone] of [["bid", "buy"], ["ask", "sell"]]) {
    cells[side].append(element("span", tone), element("span", "size"));
  }
  cells.last.append(element("span"));
  cells.index.append(element("span"), element("span", "quality"));
  tr.append(first, ...Object.values(cells));
  tr.addEventListener("click", () => select(market.ticker));
  return {
    market,
    about,
    tr,
    pick,
    cells,
    status,
    order: [about.model, about.memoryGib, about.gpus, about.fabric, market.symbol].join("\0"),
    text: [market.symbol, market.ticker, about.vendor, about.model, about.regionName]
      .join(" ")
      .toLowerCase(),
  };
}

function renderRow({ market, tr, cells, status, pick }) {
  for (const side of ["bid", "ask"]) {
    const best = market[side];
    const [price, size] = cells[side].children;
    setText(price, best ? priceText(best[0]) : NONE);
    setText(size, best ? shortQtyText(best[1]) : "");
  }
  setText(cells.last.firstChild, market.last ? priceText(market.last.priceTicks) : NONE);
  const [value, quality] = cells.index.children;
  setText(value, market.index ? priceText(market.index.priceTicks) : NONE);
  setText(quality, market.index?.quality ?? "");
  quality.dataset.quality = market.index?.quality ?? "";
  quality.hidden = market.index === null;
  status.hidden = market.tag === "";
  status.className = `tag ${market.tag}`;
  setText(status, market.tag);
  const selected = market.ticker === exchange.selected;
  tr.setAttribute("aria-selected", String(selected));
  if (selected) pick.setAttribute("aria-current", "true");
  else pick.removeAttribute("aria-current");
}

// --- the selected market -------------------------------------------------------------------------
function select(ticker) {
  dirty.add(exchange.selected).add(ticker);
  lastTradeId = Infinity; // what is there already is not news
  exchange.want(exchange.wanted, ticker);
  oneDirty = true;
  if (location.hash.slice(1) !== ticker) history.replaceState(null, "", `#${ticker}`);
  schedule();
}

function renderOne() {
  oneDirty = false;
  const market = exchange.markets.get(exchange.selected);
  if (market === undefined) return;
  const about = describe(market.symbol);
  setText($("one-title"), `${about.model} · ${about.regionName} · grade ${about.grade}`);
  const terms = `${about.vendor}, ${detail(about)}, ${about.window}`;
  setText($("one-detail"), `${terms} — ${market.symbol} (${market.ticker})`);
  $("one-status").hidden = market.tag === "";
  $("one-status").className = market.tag;
  setText($("one-status"), market.tag);
  const price = market.ask ? `${priceText(market.ask[0])} ` : "";
  document.title = `${price}${about.model} ${about.region} – compex`;
  renderStats(market);
  const live = market.bookState === "live";
  const states = { live: "", syncing: "(syncing)", none: "(not connected)" };
  setText($("book-state"), states[market.bookState]);
  const { bids, asks } = live ? market.book : { bids: [], asks: [] };
  renderLadder(bids, asks);
  renderDepth(bids, asks);
  renderTrades(market);
}

function renderStats({ bid, ask, last, index }) {
  setText($("stat-bid"), bid ? priceText(bid[0]) : NONE);
  setText($("stat-ask"), ask ? priceText(ask[0]) : NONE);
  const spread = bid && ask ? spreadText(ask[0], bid[0]) : "";
  setText($("stat-spread"), spread || NONE);
  const middle = spread ? `spread ${priceText(ask[0] - bid[0])} (${spread})` : "one-sided";
  setText($("middle-text"), middle);
  setText($("stat-last"), last ? priceText(last.priceTicks) : NONE);
  $("stat-last").className = last?.side ?? "";
  setText($("stat-index"), index ? `${priceText(index.priceTicks)} ${index.quality}` : NONE);
  $("stat-index").title = index
    ? `quality ${index.quality}, round ${index.round}, ${clockText(index.timeUs)} UTC`
    : "";
}

function ladderRow(body, i) {
  while (body.rows.length <= i) {
    const tr = element("tr");
    tr.append(element("td"), element("td", "num"), element("td", "num"));
    body.append(tr);
  }
  return body.rows[i];
}

function renderLadder(bids, asks) {
  const sides = [
    [$("bids"), bids.slice(0, LADDER_ROWS), false],
    [$("asks"), asks.slice(0, LADDER_ROWS), true],
  ];
  const sum = (levels) => levels.reduce((total, [, qty]) => total + qty, 0);
  const top = Math.max(1, ...sides.map(([, levels]) => sum(levels)));
  $("ladder").style.setProperty("--ladder-width", `${$("ladder").clientWidth}px`);
  for (const [body, levels, upward] of sides) {
    let total = 0;
    for (let i = 0; i < LADDER_ROWS; i += 1) {
      const tr = ladderRow(body, upward ? LADDER_ROWS - 1 - i : i);
      const level = levels[i];
      total += level?.[1] ?? 0;
      const [price, qty, sofar] = tr.cells;
      setText(price, level ? priceText(level[0]) : "\u00a0");
      setText(qty, level ? qtyText(level[1]) : "");
      setText(sofar, level ? shortQtyText(total) : "");
      tr.style.setProperty("--share", level ? String(total / top) : "0");
    }
  }
}

function renderDepth(bids, asks) {
  chart = depthView(bids, asks, DEPTH_LEVELS);
  const { width, height } = CHART;
  const { bidSteps, askSteps } = chart ?? { bidSteps: [], askSteps: [] };
  $("depth-bids").setAttribute("d", stepPath(bidSteps, chart, width, height, true));
  $("depth-asks").setAttribute("d", stepPath(askSteps, chart, width, height, false));
  setText($("axis-low"), chart ? priceText(chart.low) : "");
  setText($("axis-high"), chart ? priceText(chart.high) : "");
  const levels = `${bids.length} bid levels, ${asks.length} ask levels`;
  const words = chart ? `${levels}, up to ${qtyText(chart.top)} GPU-hours` : "the book is empty";
  $("depth").setAttribute("aria-label", `Depth: ${words}`);
  if ($("depth-cursor").hasAttribute("hidden")) {
    setText($("depth-note"), chart ? `${bids.length} bids · ${asks.length} asks` : "");
  }
}

function renderTrades(market) {
  const body = $("trades").tBodies[0];
  const shown = market.trades.slice(0, TRADES_SHOWN);
  $("no-trades").hidden = shown.length > 0;
  shown.forEach((trade, i) => {
    if (body.rows.length <= i) {
      const tr = element("tr");
      tr.append(element("td"), element("td"), element("td", "num"), element("td", "num"));
      body.append(tr);
    }
    const tr = body.rows[i];
    const [time, side, price, qty] = tr.cells;
    tr.className = trade.id > lastTradeId ? "fresh" : "";
    setText(time, clockText(trade.timeUs));
    setText(side, trade.block ? `${trade.side}, block` : trade.side);
    side.className = trade.side;
    setText(price, priceText(trade.priceTicks));
    setText(qty, qtyText(trade.qtyLots));
  });
  while (body.rows.length > shown.length) body.deleteRow(-1);
  lastTradeId = shown[0]?.id ?? 0;
}

// --- people --------------------------------------------------------------------------------------
$("find").addEventListener("input", relist);
$("region").addEventListener("change", relist);
function relist() {
  listDirty = true;
  schedule();
}

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    const by = button.dataset.sort;
    sort = { by, descending: sort.by === by && !sort.descending };
    for (const th of document.querySelectorAll("#markets th")) th.removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", sort.descending ? "descending" : "ascending");
    relist();
  });
}

$("markets").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const tr = event.target.closest("tbody tr");
  if (!step || !tr) return;
  const next = step > 0 ? tr.nextElementSibling : tr.previousElementSibling;
  if (!next) return;
  event.preventDefault();
  const pick = next.querySelector(".pick");
  pick.focus();
  select(pick.dataset.ticker);
});

addEventListener("hashchange", () => {
  const ticker = decodeURIComponent(location.hash.slice(1));
  if (exchange.markets.has(ticker)) select(ticker);
});

$("depth").addEventListener("pointermove", (event) => {
  if (!chart) return;
  const box = $("depth").getBoundingClientRect();
  const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  const price = Math.round(chart.low + share * (chart.high - chart.low));
  const step = stepAt(chart.bidSteps, price, true) ?? stepAt(chart.askSteps, price, false);
  const cursor = $("depth-cursor");
  cursor.removeAttribute("hidden"); // an SVG element has no such property
  cursor.setAttribute("x1", String(share * CHART.width));
  cursor.setAttribute("x2", String(share * CHART.width));
  const there = step ? `${qtyText(step[1])} GPU-hours` : "in the spread";
  setText($("depth-note"), `${priceText(price)}: ${there}`);
});
$("depth").addEventListener("pointerleave", () => {
  $("depth-cursor").setAttribute("hidden", "");
  oneDirty = true;
  schedule();
});

const THEME_KEY = "compex-theme";
function theme(name) {
  document.documentElement.dataset.theme = name;
}
const remembered = localStorage.getItem(THEME_KEY);
if (remembered) theme(remembered);
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
  localStorage.setItem(THEME_KEY, dark ? "light" : "dark");
});

const tick = () => setText($("fact-clock"), clockText(Date.now() * 1000));
tick();
setInterval(tick, 1000);
addEventListener("resize", () => {
  oneDirty = true;
  schedule();
});
connection.open();
