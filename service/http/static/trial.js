// A configuration's bits as CSV and as a picture.

import { colour, csv, download } from "./charts.js";

const title = document.title.split(" · ")[0].replace(/[^A-Za-z0-9._-]+/g, "-");
const MARGIN = 12;
const SCALE = 2;

function rows() {
  return document.getElementById("plan").textContent.trim().split("\n").map((line) => {
    const [layer, precision] = line.split(" ");
    return { layer, precision };
  });
}

/** The table of bits as it is on the page, as SVG. */
function drawn() {
  const place = document.querySelector("[data-bits]");
  const origin = place.getBoundingClientRect();
  const parts = [...place.querySelectorAll("h4, dt, th, .prefix, .legend-title, .cell, td.none")];
  const right = Math.max(...parts.map((part) => {
    const text = document.createRange();
    text.selectNodeContents(part);
    const end = part.classList.contains("cell") ? part : text;
    return end.getBoundingClientRect().right;
  }));
  const [width, height] = [Math.ceil(right - origin.x) + 2 * MARGIN, Math.ceil(origin.height) + 2 * MARGIN];
  const picture = document.implementation.createDocument("http://www.w3.org/2000/svg", "svg");
  const add = (name, attributes, text = "") => {
    const element = picture.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    picture.documentElement.append(element);
  };
  for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` })) {
    picture.documentElement.setAttribute(key, value);
  }
  add("rect", { width: "100%", height: "100%", fill: colour("paper") });
  for (const element of parts) {
    const box = element.getBoundingClientRect();
    const look = getComputedStyle(element);
    const [x, y] = [box.x - origin.x + MARGIN, box.y - origin.y + MARGIN];
    if (element.classList.contains("cell")) {
      add("rect", { x, y, width: box.width, height: box.height, rx: 3, fill: look.backgroundColor });
    }
    const centred = look.textAlign === "center";
    add("text", {
      x: x + (centred ? box.width / 2 : 0), y: y + box.height / 2,
      "text-anchor": centred ? "middle" : "start", "dominant-baseline": "central", fill: look.color,
      "font-family": look.fontFamily, "font-size": look.fontSize, "font-weight": look.fontWeight,
    }, element.textContent.trim());
  }
  return { width, height, text: new XMLSerializer().serializeToString(picture) };
}

async function painted({ width, height, text }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: SCALE * width, height: SCALE * height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

const SAVED = {
  csv: () => download(`${title}-bits.csv`, csv(rows()), "text/csv"),
  svg: () => download(`${title}-bits.svg`, drawn().text, "image/svg+xml"),
  png: async () => download(`${title}-bits.png`, await painted(drawn())),
};

for (const button of document.querySelectorAll("[data-save-bits]")) {
  button.addEventListener("click", SAVED[button.dataset.saveBits]);
}
