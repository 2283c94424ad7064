// Decimal strings of the wire as whole numbers, exactly, and whole numbers as text for people.
// Invariant: prices are ticks of 0.0001, quantities lots of 0.01; no fraction is ever computed
// with. Lots of one level stay far below 2^53, where a Number is exact.

export const PRICE_DECIMALS = 4;
export const QTY_DECIMALS = 2;

const DECIMAL = /^([0-9]{1,24})(?:\.([0-9]{1,24}))?$/;

export class NotADecimal extends Error {}

/** "2.4150", 4 -> 24150. Throws NotADecimal for anything else than a plain decimal that fits. */
export function parseScaled(text, decimals) {
  const match = DECIMAL.exec(text);
  if (match === null) throw new NotADecimal(`${text} is not a plain decimal number`);
  const [, whole, fraction = ""] = match;
  if (/[1-9]/.test(fraction.slice(decimals))) throw new NotADecimal(`${text} is too fine`);
  const scaled = Number(whole + fraction.slice(0, decimals).padEnd(decimals, "0"));
  if (!Number.isSafeInteger(scaled)) throw new NotADecimal(`${text} is too large`);
  return scaled;
}

export const parsePrice = (text) => parseScaled(text, PRICE_DECIMALS);
export const parseQty = (text) => parseScaled(text, QTY_DECIMALS);

/** 24150 -> "2.4150"; always four decimals, thousands apart. */
export function priceText(ticks) {
  return grouped(Math.floor(ticks / 10_000)) + "." + String(ticks % 10_000).padStart(4, "0");
}

/** 160050 -> "1 600.5": thousands apart (narrow no-break space), no trailing zeros. */
export function qtyText(lots) {
  const rest = String(lots % 100).padStart(2, "0").replace(/0+$/, "");
  return grouped(Math.floor(lots / 100)) + (rest ? "." + rest : "");
}

/** A quantity in at most four figures for a narrow column: 1 234 567 lots -> "12.3k". */
export function shortQtyText(lots) {
  const hours = Math.floor(lots / 100);
  for (const [unit, suffix] of [[1_000_000, "M"], [1_000, "k"]]) {
    if (hours >= unit * 10) {
      const tenths = Math.floor(hours / (unit / 10));
      const [whole, tenth] = [Math.floor(tenths / 10), tenths % 10];
      return whole >= 100 || tenth === 0 ? `${whole}${suffix}` : `${whole}.${tenth}${suffix}`;
    }
  }
  return qtyText(lots);
}

/** Hundredths of a per cent between two prices, as text: (20100, 20000) -> "0.50 %". */
export function spreadText(askTicks, bidTicks) {
  const hundredths = Math.round(((askTicks - bidTicks) * 20_000) / (askTicks + bidTicks));
  return `${Math.floor(hundredths / 100)}.${String(hundredths % 100).padStart(2, "0")} %`;
}

/** Microseconds since 1970 -> "14:03:27" in UTC, the exchange's time. */
export function clockText(timeUs) {
  return new Date(Math.floor(timeUs / 1000)).toISOString().slice(11, 19);
}

function grouped(whole) {
  return String(whole).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}
