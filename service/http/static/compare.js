// The fronts of two studies in one picture.

import { answer, draw } from "./charts.js";
import { twoFronts } from "./front.js";

const root = document.getElementById("compare");
if (root) {
  const names = [root.dataset.a, root.dataset.b];
  const found = await Promise.all(names.map((name) => answer(`/api/v1/studies/${encodeURIComponent(name)}/points`)));
  draw("fronts", () => twoFronts(names.map((name, place) => [name, found[place].points])));
}
