"use strict";
// Cells and nodes carry data-c, the number of their model, edges data-e, the two numbers at their ends; #cards holds the models; each section has one card.
const { tasks, first, models } = JSON.parse(document.getElementById("cards").textContent);
const percent = (score) => (100 * score).toFixed(1);
const signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

function make(name, text, kind) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text; // never as HTML: names come from the journal
  if (kind) node.className = kind;
  return node;
}

function sign(task) {
  return make("span", signs[task % 26], "sign t" + (task % 5));
}

function meter(label, part, task) {
  const row = make("div", undefined, "meter" + (task === undefined ? "" : " t" + (task % 5)));
  const name = make("span");
  if (task !== undefined) name.append(sign(task));
  name.append(label);
  const bar = make("i");
  bar.style.setProperty("--part", Math.max(0, Math.min(100, 100 * part)) + "%");
  row.append(name, bar, make("b", percent(part)));
  return row;
}

function several(names) {
  if (!names.length) return "unknown models";
  const shown = names.slice(0, 8).join(", ");
  return names.length > 8 ? shown + " and " + (names.length - 8) + " more" : shown;
}

function origin(model) {
  if (model.origin === "seed") return "A seed.";
  if (model.origin === "merge") return "Merge of " + several(model.parents) + ".";
  const active = model.task === null ? "" : " In the archive of " + tasks[model.task] + ".";
  return "Child of " + model.parents.join(" and ") + "." + active;
}

function fill(card, id) {
  const model = models[id];
  if (!model) return;
  const who = make("div"), scores = make("div"), shares = make("div");
  const digest = make("p");
  digest.append(make("code", model.digest));
  who.append(make("h4", model.label), make("p", origin(model)), digest);
  const mean = model.means.reduce((sum, value) => sum + value, 0) / (model.means.length || 1);
  scores.append(make("p", "Search score in %, mean " + percent(mean)));
  model.means.forEach((value, task) => scores.append(meter(tasks[task], value, task)));
  shares.append(make("p", "Share of ancestry in %"));
  model.shares.slice(0, 5).forEach(([name, share]) => shares.append(meter(name, share)));
  card.replaceChildren(who, scores, shares);
}

// A frame of its own, drawn over all cells: a cell's neighbours would cover its outline.
function frame(section, id) {
  for (const picture of section.querySelectorAll(".heat")) {
    const cell = picture.querySelector(`[data-c="${id}"]`), edge = picture.querySelector(".frame");
    for (const name of ["x", "y", "width", "height"]) edge.setAttribute(name, cell ? cell.getAttribute(name) : 0);
  }
}

function nearest(spots, from, key) {
  const middle = (spot) => { const box = spot.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  const [x, y] = middle(from);
  let best = null, least = Infinity;
  for (const spot of spots) {
    const [u, v] = middle(spot);
    const ahead = (u - x) * dx + (v - y) * dy, aside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
    if (ahead > 1 && ahead + 2 * aside < least) { best = spot; least = ahead + 2 * aside; }
  }
  return best;
}

for (const section of document.querySelectorAll(".explore")) {
  const card = section.querySelector(".card");
  let chosen = first;
  const show = (id) => {
    fill(card, id);
    frame(section, id);
    for (const edge of section.querySelectorAll("[data-e]")) edge.classList.toggle("on", edge.dataset.e.split(" ").includes(String(id)));
    for (const spot of section.querySelectorAll("[data-c]")) spot.classList.toggle("on", spot.dataset.c === String(id));
  };
  const choose = (spot) => { chosen = spot.dataset.c; show(chosen); };
  for (const picture of section.querySelectorAll("svg")) {
    const spots = [...picture.querySelectorAll("[data-c]")];
    if (!spots.length) continue;
    spots[0].setAttribute("tabindex", "0"); // one tab stop per picture; arrow keys move inside it
    picture.addEventListener("pointerover", (event) => { const spot = event.target.closest("[data-c]"); if (spot) show(spot.dataset.c); });
    picture.addEventListener("pointerleave", () => show(chosen));
    picture.addEventListener("click", (event) => { const spot = event.target.closest("[data-c]"); if (spot) choose(spot); });
    picture.addEventListener("focusin", (event) => {
      const spot = event.target.closest("[data-c]");
      if (!spot) return;
      for (const other of spots) other.setAttribute("tabindex", other === spot ? "0" : "-1");
      choose(spot);
    });
    picture.addEventListener("keydown", (event) => {
      if (!event.key.startsWith("Arrow")) return;
      const next = nearest(spots, event.target.closest("[data-c]") || spots[0], event.key);
      if (next) { event.preventDefault(); next.focus(); }
    });
  }
  show(chosen);
}
