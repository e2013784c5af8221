// What all pictures share: the page's colours and fonts, and saving a picture as CSV, PNG or SVG.

const pictures = new Map();

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Draws a picture, and draws it again when the theme changes; `make` returns {data, layout, rows}. */
export function draw(id, make) {
  const place = document.getElementById(id);
  if (!place) return;
  pictures.set(id, make);
  const { data, layout, rows } = make();
  place.closest("figure").classList.toggle("bare", !rows.length);
  if (!rows.length) return;
  window.Plotly.react(place, data, dressed(layout), {
    displayModeBar: false,
    responsive: true,
    plotlyServerURL: "",
    scrollZoom: false,
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [id, make] of pictures) draw(id, make);
});

function dressed(layout) {
  const axis = {
    gridcolor: colour("line"), linecolor: colour("line"), zeroline: false,
    tickfont: { color: colour("quiet") }, automargin: true,
  };
  const narrow = innerWidth < 760;
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("ink") };
  const title = (own) => own?.title && {
    text: own.title, standoff: 12, font: { color: colour("quiet"), size: 12.5 },
  };
  return {
    template: "none",
    autosize: true,
    font,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: narrow ? 46 : 62, r: 12, t: 12, b: 52 },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { ...font }, align: "left" },
    legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top", font: { size: 12 } },
    dragmode: false,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis, title: title(layout.xaxis) },
    yaxis: { ...axis, ...layout.yaxis, title: title(layout.yaxis) },
  };
}

export const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(1)} %`);

const UNITS = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]];

export function sizeUnit(nbytes) {
  return UNITS.find(([scale]) => nbytes >= scale) ?? UNITS.at(-1);
}

export function size(nbytes) {
  const [scale, symbol] = sizeUnit(nbytes);
  const value = nbytes / scale;
  return `${value.toFixed(symbol === "B" ? 0 : value < 10 ? 2 : value < 100 ? 1 : 0)} ${symbol}`;
}

export function seconds(value) {
  return value >= 0.1 ? `${Number(value.toPrecision(3))} s` : `${Number((1000 * value).toPrecision(3))} ms`;
}

export function download(name, content, type) {
  const url = content.startsWith("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

/** Rows of objects as CSV; text that a spreadsheet would take for a formula gets an apostrophe. */
export function csv(rows) {
  if (!rows.length) return "";
  const keys = Object.keys(rows[0]);
  const cell = (value) => {
    let text = value == null ? "" : String(value);
    if (typeof value === "string" && /^\s*[=+\-@]/.test(text)) text = `'${text}`;
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [keys, ...rows.map((row) => keys.map((key) => row[key]))]
    .map((line) => line.map(cell).join(",") + "\n").join("");
}

const answers = new Map();

/** What the interface answers; the same object as before where nothing has changed. */
export async function answer(path) {
  const known = answers.get(path);
  const headers = { accept: "application/json", ...(known && { "if-none-match": known.tag }) };
  const response = await fetch(path, { headers });
  if (response.status === 304) return known.content;
  const content = await response.json();
  if (!response.ok) throw new Error(content.detail);
  const tag = response.headers.get("etag");
  if (tag) answers.set(path, { tag, content });
  return content;
}

document.addEventListener("click", async (event) => {
  const save = event.target.closest("[data-save]");
  if (save) {
    const id = save.closest("[data-picture]").dataset.picture;
    const study = document.querySelector("[data-study]")?.dataset.study ?? "bitfront";
    if (save.dataset.save === "csv") {
      download(`${study}-${id}.csv`, csv(pictures.get(id)().rows), "text/csv");
    } else {
      const place = document.getElementById(id);
      const { clientWidth: width, clientHeight: height } = place;
      const layout = { ...place.layout, paper_bgcolor: colour("paper"), width, height };
      const image = { format: save.dataset.save, width, height, scale: save.dataset.save === "png" ? 2 : 1 };
      const url = await window.Plotly.toImage({ data: place.data, layout }, image);
      download(`${study}-${id}.${image.format}`, url);
    }
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    await navigator.clipboard.writeText(copy.parentElement.querySelector("code").textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  }
});
