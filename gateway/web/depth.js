// A book as cumulative steps and as paths of a drawing. Pure: numbers in, numbers or text out.

/** [[priceTicks, cumulativeLots]], best first. */
export function cumulate(levels, count) {
  let total = 0;
  return levels.slice(0, count).map(([price, qty]) => [price, (total += qty)]);
}

/** What the chart shows: both sides up to `count` levels, a common price range and height.
 * Null while a book has nothing. */
export function depthView(bids, asks, count) {
  const [bidSteps, askSteps] = [cumulate(bids, count), cumulate(asks, count)];
  const steps = [...bidSteps, ...askSteps];
  if (steps.length === 0) return null;
  const prices = steps.map(([price]) => price);
  const [low, high] = [Math.min(...prices), Math.max(...prices)];
  const margin = Math.max(1, Math.ceil((high - low) / 20));
  return {
    bidSteps,
    askSteps,
    low: Math.max(0, low - margin),
    high: high + margin,
    top: Math.max(...steps.map(([, lots]) => lots)),
  };
}

/** The outline of one side, closed along the bottom, in a width x height box; "" for none. */
export function stepPath(steps, view, width, height, towardLow) {
  if (steps.length === 0) return "";
  const { low, high, top } = view;
  const x = (price) => round(((price - low) / (high - low)) * width);
  const y = (lots) => round(height - (lots / top) * (height - 4));
  const points = [`M${x(steps[0][0])} ${height}`];
  steps.forEach(([price, lots], i) => {
    points.push(`V${y(lots)}`);
    const next = i + 1 < steps.length ? x(steps[i + 1][0]) : towardLow ? 0 : width;
    points.push(`H${next}`);
  });
  return `${points.join("")}V${height}Z`;
}

/** The step under a price: [priceTicks, cumulativeLots], or null between or beyond the sides. */
export function stepAt(steps, price, towardLow) {
  let found = null;
  for (const step of steps) {
    if (towardLow ? step[0] >= price : step[0] <= price) found = step;
  }
  return found;
}

function round(value) {
  return Math.round(value * 10) / 10;
}
