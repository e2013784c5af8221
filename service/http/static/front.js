// The picture of a front: trials, the front as steps, uniform baselines, full precision.

import { colour, percent, seconds, size, sizeUnit } from "./charts.js";

const LABELS = {
  nbytes: "size of the packed checkpoint",
  bits_per_weight: "mean bits of a weight",
  bit_operations: "bit operations of a sample",
  latency_s: "latency of a sample",
};
const FULL = "16 bits";

const error = (point) => point.estimate ?? point.values.error;

function scaleOf(axis, points) {
  const most = Math.max(...points.map((point) => point.values[axis]), 0);
  if (axis === "nbytes") return sizeUnit(most);
  if (axis === "latency_s") return most >= 0.1 ? [1, "s"] : [1e-3, "ms"];
  return axis === "bit_operations" ? [1e9, "10⁹"] : [1, ""];
}

/** The axes that some points have values for. */
export function axesOf(points) {
  return Object.keys(LABELS).filter((axis) => points.some((point) => point.values[axis] != null));
}

function words(point) {
  const name = point.baseline ? `uniform ${point.baseline}` : point.origin.replace("_", " ");
  const lines = [`trial ${point.trial} (${name})`, `error ${percent(point.values.error)}`];
  if (point.low != null) lines[1] += ` (${percent(point.low)} to ${percent(point.high)})`;
  if (point.estimate != null) lines.push(`estimated ${percent(point.estimate)}`);
  if (point.test_error != null) lines.push(`test ${percent(point.test_error)}`);
  if (point.values.nbytes != null) lines.push(size(point.values.nbytes));
  if (point.values.latency_s != null) lines.push(seconds(point.values.latency_s));
  if (point.has_recovery) lines.push("with a recovery");
  return lines.join("<br>");
}

function markers(name, points, axis, scale, marker, intervals) {
  const bars = intervals && points.some((point) => point.low != null);
  return {
    name,
    x: points.map((point) => point.values[axis] / scale),
    y: points.map((point) => point.values.error),
    customdata: points.map((point) => point.trial),
    text: points.map(words),
    hovertemplate: "%{text}<extra></extra>",
    mode: "markers",
    marker: { line: { color: colour("paper"), width: 1 }, ...marker },
    error_y: bars ? {
      type: "data",
      symmetric: false,
      array: points.map((point) => (point.high ?? point.values.error) - point.values.error),
      arrayminus: points.map((point) => point.values.error - (point.low ?? point.values.error)),
      color: marker.color, thickness: 1, width: 0,
    } : undefined,
  };
}

function steps(front, axis, scale, color, widest, name) {
  const ranked = [...front].sort((a, b) => a.values[axis] - b.values[axis] || a.values.error - b.values.error);
  const corners = [];
  for (const point of ranked) {
    if (!corners.length || point.values.error < corners.at(-1).values.error) corners.push(point);
  }
  if (!corners.length) return null;
  return {
    name, x: [...corners.map((point) => point.values[axis]), widest].map((value) => value / scale),
    y: [...corners.map((point) => point.values.error), corners.at(-1).values.error],
    mode: "lines", line: { shape: "hv", color, width: 2 }, hoverinfo: "skip", showlegend: false,
  };
}

/** The picture of one study. */
export function frontPicture(points, { axis = "nbytes", intervals = true, marked = null } = {}) {
  const known = points.filter((point) => point.values[axis] != null);
  const quantized = known.filter((point) => point.baseline !== FULL);
  const full = known.find((point) => point.baseline === FULL);
  const [scale, unit] = scaleOf(axis, quantized);
  const front = quantized.filter((point) => point.on_front);
  const baselines = quantized.filter((point) => point.baseline);
  const others = quantized.filter((point) => !point.on_front && !point.baseline);
  const widest = Math.max(...quantized.map((point) => point.values[axis]), 0);
  const data = [];
  if (others.length) data.push(markers("other trials", others, axis, scale, { color: colour("c-trial"), size: 6, opacity: 0.7 }, false));
  const line = steps(front, axis, scale, colour("c-front"), widest, "steps");
  if (line) data.push(line);
  if (baselines.length) data.push(markers("uniform precision", baselines, axis, scale, { color: colour("c-base"), size: 10, symbol: "diamond" }, false));
  const tested = front.filter((point) => point.test_error != null);
  if (tested.length) {
    data.push({
      ...markers("front, on the test split", tested, axis, scale, { color: colour("paper"), size: 7, line: { color: colour("c-test"), width: 1.5 } }, false),
      y: tested.map((point) => point.test_error),
    });
  }
  if (front.length) data.push(markers("front", front, axis, scale, { color: colour("c-front"), size: 9 }, intervals));
  const chosen = known.find((point) => point.trial === marked);
  if (chosen && chosen !== full) {
    data.push(markers("chosen", [chosen], axis, scale, { color: "rgba(0,0,0,0)", size: 18, line: { color: colour("c-mark"), width: 2.5 } }, false));
  }
  const shapes = [];
  if (full) {
    if (full.low != null && intervals) {
      shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: full.low, y1: full.high, fillcolor: colour("c-full"), opacity: 0.06, line: { width: 0 }, layer: "below" });
    }
    const test = full.test_error == null ? "" : `, test ${percent(full.test_error)}`;
    const smallest = Math.min(...quantized.map((point) => point.values[axis]), widest);
    data.unshift({
      name: `full precision: ${percent(full.values.error)}${test}`,
      x: [smallest / scale, widest / scale], y: [full.values.error, full.values.error],
      mode: "lines", line: { color: colour("c-full"), width: 1.2, dash: "dash" }, hoverinfo: "skip",
    });
  }
  const tops = quantized.flatMap((point) => [point.values.error, point.on_front && intervals ? point.high ?? 0 : 0]);
  return {
    data,
    layout: {
      shapes, hovermode: "closest",
      xaxis: { title: unit ? `${LABELS[axis]} (${unit})` : LABELS[axis] },
      yaxis: { title: "error (1 − accuracy)", tickformat: ".0%", range: [0, 1.06 * Math.max(...tops, full?.high ?? 0, 0.01)] },
    },
    rows: known.map((point) => ({
      trial: point.trial, origin: point.origin, baseline: point.baseline, on_front: point.on_front,
      error: point.values.error, low: point.low, high: point.high, estimated_error: point.estimate,
      test_error: point.test_error, nbytes: point.values.nbytes,
      bits_per_weight: point.values.bits_per_weight, latency_s: point.values.latency_s,
    })),
  };
}

/** The fronts of two studies in one picture. */
export function twoFronts(named) {
  const all = named.flatMap(([, points]) => points.filter((point) => point.values.nbytes != null && point.baseline !== FULL));
  const [scale, unit] = scaleOf("nbytes", all);
  const widest = Math.max(...all.map((point) => point.values.nbytes), 0);
  const looks = [[colour("c-front"), "circle"], [colour("c-base"), "diamond"]];
  const data = named.flatMap(([name, points], place) => {
    const [color, symbol] = looks[place];
    const front = points.filter((point) => point.on_front && point.values.nbytes != null && point.baseline !== FULL);
    return [
      steps(front, "nbytes", scale, color, widest, `${name} steps`),
      markers(name, front, "nbytes", scale, { color, symbol, size: 9 }, true),
    ].filter(Boolean);
  });
  const tops = all.filter((point) => point.on_front).map((point) => point.high ?? point.values.error);
  return {
    data,
    layout: {
      hovermode: "closest",
      xaxis: { title: `${LABELS.nbytes} (${unit})` },
      yaxis: { title: "error (1 − accuracy)", tickformat: ".0%", range: [0, 1.06 * Math.max(...tops, 0.01)] },
    },
    rows: named.flatMap(([study, points]) => points.filter((point) => point.on_front).map((point) => ({
      study, trial: point.trial, error: point.values.error, low: point.low, high: point.high,
      estimated_error: point.estimate, test_error: point.test_error, nbytes: point.values.nbytes,
    }))),
  };
}
