// A configuration's bits as CSV and as a picture.

import { colour, csv, download } from "./charts.js";

const title = document.title.split(" · ")[0].replace(/[^A-Za-z0-9._-]+/g, "-");

document.querySelector("[data-bits-csv]").addEventListener("click", () => {
  const rows = document.getElementById("plan").textContent.trim().split("\n").map((line) => {
    const [layer, precision] = line.split(" ");
    return { layer, precision };
  });
  download(`${title}-bits.csv`, csv(rows), "text/csv");
});

document.querySelector("[data-bits-png]").addEventListener("click", () => {
  const place = document.querySelector("[data-bits]");
  const origin = place.getBoundingClientRect();
  const scale = 2;
  const canvas = Object.assign(document.createElement("canvas"), {
    width: scale * (place.scrollWidth + 24), height: scale * (origin.height + 24),
  });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = colour("paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const element of place.querySelectorAll("h4, dt, th, .prefix, .cell, td.none")) {
    const box = element.getBoundingClientRect();
    const look = getComputedStyle(element);
    const [x, y] = [box.x - origin.x + 12, box.y - origin.y + 12];
    if (element.classList.contains("cell")) {
      context.fillStyle = look.backgroundColor;
      context.beginPath();
      context.roundRect(x, y, box.width, box.height, 3);
      context.fill();
    }
    context.fillStyle = look.color;
    context.font = `${look.fontWeight} ${look.fontSize} ${look.fontFamily}`;
    context.textBaseline = "middle";
    context.textAlign = look.textAlign === "center" ? "center" : "left";
    context.fillText(element.textContent.trim(), x + (context.textAlign === "center" ? box.width / 2 : 0), y + box.height / 2);
  }
  download(`${title}-bits.png`, canvas.toDataURL("image/png"));
});
