// One study, live: its pictures follow its events, and a slider chooses within a budget.

import { answer, colour, draw, percent, seconds, size } from "./charts.js";
import { axesOf, frontPicture } from "./front.js";

const root = document.getElementById("study");
const name = root.dataset.study;
const api = `/api/v1/studies/${encodeURIComponent(name)}`;
const page = `/studies/${encodeURIComponent(name)}`;
const axis = document.getElementById("axis");
const intervals = document.getElementById("intervals");
const form = document.getElementById("budget");
let points = [];
let history = [];
let marked = null;

function drawFront() {
  draw("front", () => frontPicture(points, { axis: axis.value, intervals: intervals.checked, marked }));
  root.dataset.points = points.length;
}

function drawHistory() {
  draw("hypervolume", () => ({
    data: [{
      x: history.map((point) => point.completed), y: history.map((point) => point.hypervolume),
      mode: "lines", line: { shape: "hv", color: colour("c-front"), width: 2 },
      hovertemplate: "%{x} trials: %{y:.4f}<extra></extra>", showlegend: false,
    }],
    layout: {
      xaxis: { title: "complete trials", rangemode: "tozero" },
      yaxis: { title: "hypervolume (share of the box)", tickformat: ".2f" },
    },
    rows: history,
  }));
}

async function load() {
  const [found, grown] = await Promise.all([answer(`${api}/points`), answer(`${api}/hypervolume`)]);
  if (found.points !== points) {
    points = found.points;
    const axes = axesOf(points);
    for (const option of axis.options) option.hidden = option.disabled = axes.length > 0 && !axes.includes(option.value);
    drawFront();
    fit();
  }
  if (grown.points !== history) {
    history = grown.points;
    drawHistory();
  }
}

axis.addEventListener("change", drawFront);
intervals.addEventListener("change", drawFront);

// What changes while the study runs.

async function refresh() {
  const response = await fetch(`${page}/live`);
  if (!response.ok) return;
  const parts = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const id of ["live", "activity"]) {
    const place = document.getElementById(id);
    const isUsed = place.contains(document.activeElement) && document.activeElement !== document.body;
    const open = [...place.querySelectorAll("details")].map((details) => details.open);
    if (isUsed && document.activeElement.matches("input")) continue;
    place.replaceChildren(...parts.querySelector(`[data-part=${id}]`).childNodes);
    place.querySelectorAll("details").forEach((details, n) => { details.open = open[n] ?? details.open; });
  }
}

// One look for all events of a while; the longer a look takes, the longer is the while.
const SHORTEST_MS = 1000;
const REST = 10;
let isWaiting = false;
let tookMs = 0;
function soon() {
  if (isWaiting || document.hidden) {
    isStale = true;
    return;
  }
  isWaiting = true;
  setTimeout(async () => {
    isStale = false;
    const started = performance.now();
    await Promise.allSettled([refresh(), load()]);
    tookMs = performance.now() - started;
    isWaiting = false;
    if (isStale) soon();
  }, Math.max(SHORTEST_MS, REST * tookMs));
}

// A page that nobody sees asks for nothing, and catches up when it is seen.
let isStale = false;
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && isStale) soon();
});

const source = new EventSource(`${api}/events?after=${root.dataset.after}`);
let isFirst = true;
source.addEventListener("line", soon);
source.addEventListener("status", () => {
  if (!isFirst) soon();
  isFirst = false;
});
source.addEventListener("end", () => source.close());
addEventListener("pagehide", () => source.close());

// The slider.

const drag = document.getElementById("drag");
const choice = document.getElementById("choice");
const WRITE = { nbytes: size, error: percent, latency_s: seconds };
const LIMITED = { nbytes: "Largest size", error: "Highest error", latency_s: "Longest latency" };

function chosen() {
  return form.querySelector("input[name=limit]:checked");
}

function limit() {
  const { low, high, figure } = chosen().dataset;
  const share = drag.value / drag.max;
  // Ends are met exactly; between them the scale is logarithmic.
  const value = share === 1 ? Number(high) : Number(low) * (high / low) ** share;
  return figure === "nbytes" ? Math.floor(value) : value;
}

function tell() {
  const { figure } = chosen().dataset;
  const text = WRITE[figure](limit());
  document.getElementById("drag-value").textContent = text;
  document.getElementById("drag-label").textContent = LIMITED[figure];
  drag.setAttribute("aria-valuetext", text);
}

// The slider has the figures that the front has; its ends follow the front.
function fit() {
  const front = points.filter((point) => point.on_front && point.baseline !== "16 bits");
  for (const input of form.querySelectorAll("input[name=limit]")) {
    const { figure } = input.dataset;
    const values = front.map((point) => (figure === "error" ? point.estimate : null) ?? point.values[figure]);
    const isKnown = values.length > 0 && values.every((value) => value > 0);
    input.disabled = input.parentElement.hidden = !isKnown;
    if (!isKnown) continue;
    const room = figure === "nbytes" ? 1 : 1 + 1e-9; // what has the value holds the limit
    Object.assign(input.dataset, { low: Math.min(...values) * room, high: Math.max(...values) * room });
  }
  const section = document.getElementById("budget-section");
  if (!front.length || chosen().disabled) return;
  if (section.hidden) {
    section.hidden = false;
    start();
    choose();
  } else {
    tell();
  }
}

function start() {
  const { low, high, start: wanted } = chosen().dataset;
  const first = Math.min(Math.max(wanted ?? Math.sqrt(low * high), low), high);
  drag.value = high > low ? Math.round(drag.max * Math.log(first / low) / Math.log(high / low)) : drag.max;
}

let asked = 0;
async function choose() {
  tell();
  const own = (asked += 1);
  choice.setAttribute("aria-busy", "true");
  const response = await fetch(`${page}/choice?${chosen().value}=${limit()}`);
  const text = await response.text();
  if (own !== asked) return;
  const parsed = new DOMParser().parseFromString(text, "text/html");
  choice.replaceChildren(...(response.ok ? parsed.body.childNodes : []));
  choice.setAttribute("aria-busy", "false");
  const found = choice.querySelector("[data-trial]");
  marked = found ? Number(found.dataset.trial) : null;
  if (points.length) drawFront();
}

form.addEventListener("submit", (event) => event.preventDefault());
form.querySelectorAll("input[name=limit]").forEach((one) => one.addEventListener("change", () => { start(); choose(); }));
let timer = 0;
drag.addEventListener("input", () => {
  tell();
  clearTimeout(timer);
  timer = setTimeout(choose, 120);
});

load();
