// How much each layer suffers from few bits, and the proxy against the measured error.

import { answer, colour, draw, isDark } from "./charts.js";

const root = document.getElementById("sensitivity");

const short = ({ layer, tower }) => layer
  .replace(/\.?(weight)$|_weight$/, "")
  .replace(/(transformer\.resblocks|encoder\.layers|vision_model|text_model|model\.layers)\./g, "")
  .replace(/^(?=\d)/, `${tower}.`);

function layersPicture({ layers, measure }) {
  const widths = [...new Set(layers.flatMap((layer) => Object.keys(layer.errors).map(Number)))].sort((a, b) => a - b);
  const floor = 1e-9;
  const z = layers.map((layer) => widths.map((bits) => (layer.errors[bits] == null ? null : Math.log10(Math.max(layer.errors[bits], floor)))));
  const known = z.flat().filter((value) => value != null);
  const low = Math.floor(Math.min(...known));
  const high = Math.ceil(Math.max(...known));
  const ticks = Array.from({ length: high - low + 1 }, (_, n) => low + n);
  const scale = isDark()
    ? [[0, "#1c2229"], [0.5, "#2f6ba3"], [1, "#d7e8fa"]]
    : [[0, "#f3f6f9"], [0.5, "#73b2d8"], [1, "#08306b"]];
  return {
    data: [{
      type: "heatmap", x: widths.map(String), y: layers.map((_, n) => n), z, colorscale: scale, zmin: low, zmax: high,
      xgap: 2, ygap: 2, hoverongaps: false,
      customdata: layers.map((layer) => widths.map((bits) => `${layer.layer}<br>${layer.tower}, block ${layer.block}<br>${bits} bits: ${layer.errors[bits]?.toPrecision(3) ?? "–"}`)),
      hovertemplate: "%{customdata}<extra></extra>",
      colorbar: {
        title: { text: measure === "output_kl" ? "nats" : "error", font: { size: 12 } }, thickness: 12, outlinewidth: 0,
        tickvals: ticks, ticktext: ticks.map((tick) => `10^${tick}`.replace(/\^(-?\d+)/, (_, n) => [...n].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join(""))),
      },
    }],
    layout: {
      height: Math.max(220, 90 + 19 * layers.length),
      margin: { l: 10, r: 10, t: 8, b: 52 },
      xaxis: { title: "weight bits", type: "category", showgrid: false, fixedrange: true },
      yaxis: { tickvals: layers.map((_, n) => n), ticktext: layers.map((layer) => short(layer)), autorange: "reversed", showgrid: false, tickfont: { size: 11, color: colour("quiet") }, fixedrange: true },
    },
    rows: layers.flatMap((layer) => Object.entries(layer.errors).map(([bits, error]) => ({ layer: layer.layer, tower: layer.tower, block: layer.block, bits: Number(bits), error }))),
  };
}

function proxyPicture({ pairs, measure }) {
  return {
    data: [{
      x: pairs.map((pair) => pair.proxy), y: pairs.map((pair) => pair.error), mode: "markers",
      marker: { color: colour("c-front"), size: 8, opacity: 0.8 }, showlegend: false,
      text: pairs.map((pair) => `trial ${pair.trial}`),
      hovertemplate: "%{text}<br>proxy %{x:.3g}, error %{y:.1%}<extra></extra>",
    }],
    layout: {
      hovermode: "closest",
      xaxis: { title: `summed error of the cells${measure === "output_kl" ? " (nats)" : ""}` },
      yaxis: { title: "error (1 − accuracy)", tickformat: ".0%", rangemode: "tozero" },
    },
    rows: pairs,
  };
}

if (document.getElementById("layers")) {
  const found = await answer(`/api/v1/studies/${encodeURIComponent(root.dataset.study)}/sensitivity`);
  const place = document.getElementById("layers");
  place.style.height = `${Math.max(220, 90 + 19 * found.layers.length)}px`;
  draw("layers", () => layersPicture(found));
  draw("proxy", () => proxyPicture(found));
}
