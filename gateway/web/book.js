// One market's book by price level, kept from a snapshot and numbered deltas.
// Invariant: after every message the CRC-32 of the top levels is the server's; a book that missed
// a message or disagrees says so (OutOfStep) and is worthless until the next snapshot.

import { parsePrice, parseQty } from "./decimal.js";

export const CHECKSUM_LEVELS = 10;

export class OutOfStep extends Error {}

const CRC_TABLE = new Uint32Array(256).map((_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

export function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Bids first, best first; a level is two little-endian int64: ticks, lots (negative: ask). */
export function checksum(bids, asks) {
  const levels = [
    ...bids.slice(0, CHECKSUM_LEVELS),
    ...asks.slice(0, CHECKSUM_LEVELS).map(([price, qty]) => [price, -qty]),
  ];
  const view = new DataView(new ArrayBuffer(levels.length * 16));
  levels.forEach(([price, qty], i) => {
    view.setBigInt64(i * 16, BigInt(price), true);
    view.setBigInt64(i * 16 + 8, BigInt(qty), true);
  });
  return crc32(new Uint8Array(view.buffer));
}

export class Book {
  constructor() {
    this.seq = 0; // of the last message applied; 0: no snapshot yet
    this.bids = []; // [priceTicks, qtyLots], best first
    this.asks = [];
  }

  /** Forget everything and take a `book_snapshot`. Throws OutOfStep if it contradicts itself. */
  applySnapshot(message) {
    this.seq = 0;
    this.bids = [];
    this.asks = [];
    this.#change(message);
    this.seq = message.seq;
  }

  /** Take a `book_delta`. Throws OutOfStep. */
  applyDelta(message) {
    if (message.prev !== this.seq) {
      throw new OutOfStep(`at ${this.seq}, but ${message.prev} was before this`);
    }
    this.#change(message);
    this.seq = message.seq;
  }

  #change(message) {
    try {
      for (const level of message.bids) setLevel(this.bids, level, -1);
      for (const level of message.asks) setLevel(this.asks, level, 1);
    } catch (error) {
      throw new OutOfStep(error.message);
    }
    if (checksum(this.bids, this.asks) !== message.crc) {
      throw new OutOfStep("the checksum disagrees");
    }
  }
}

/** `direction` 1: ascending prices (asks), -1: descending (bids). */
function setLevel(levels, [priceText, qtyText], direction) {
  const price = parsePrice(priceText);
  const qty = parseQty(qtyText);
  let low = 0;
  let high = levels.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((levels[middle][0] - price) * direction < 0) low = middle + 1;
    else high = middle;
  }
  const there = low < levels.length && levels[low][0] === price;
  if (qty === 0) {
    if (there) levels.splice(low, 1);
  } else if (there) {
    levels[low] = [price, qty];
  } else {
    levels.splice(low, 0, [price, qty]);
  }
}
