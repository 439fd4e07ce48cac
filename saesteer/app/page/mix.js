// The vector, taken apart into features: which are in it, and how much of each.
import { $, button, made, short, trying } from "./dom.js";
import { ask, asked } from "./server.js";
import { changed, measures } from "./strength.js";

// What is listed before all are asked for.
const STRONGEST = 10;

export let about = null;
// {index, weight, on, cluster, label, fires, promotes, added}; weight is what it came with or was set to.
export let features = [];
export let rest = { weight: 1, on: true };
let all = false;

export function open(found) {
  about = found;
  asItCame();
}

export function mix() {
  const chosen = {};
  for (const one of features) if (one.on && one.weight) chosen[one.index] = one.weight;
  return { rest: about.rest && rest.on ? rest.weight : 0, features: chosen };
}

export function put(given, share) {
  const known = new Map(about.features.map((one) => [one.index, one]));
  if (given) features = given.map((one) => ({ ...known.get(one.index), ...one, added: !known.has(one.index) }));
  if (share) rest = share;
  showMix();
}

export function asItCame() {
  features = about.features.map((one) => ({ ...one, on: true }));
  rest = { weight: 1, on: true };
  showMix();
}

function row(one, name, extra) {
  const line = document.createElement("tr");
  const on = made("input");
  on.type = "checkbox";
  on.checked = one.on;
  on.setAttribute("aria-label", `${name} on`);
  const slider = made("input");
  const number = made("input");
  const size = Math.max(2 * Math.abs(one.weight), 1);
  Object.assign(slider, { type: "range", min: -size, max: size, step: "any" });
  Object.assign(number, { type: "number", step: "any" });
  slider.setAttribute("aria-label", `weight of ${name}`);
  number.setAttribute("aria-label", `weight of ${name} as a number`);
  slider.value = one.weight;
  number.value = short(one.weight);
  line.classList.toggle("off", !one.on);
  on.addEventListener("change", () => {
    one.on = on.checked;
    line.classList.toggle("off", !one.on);
    changed();
  });
  slider.addEventListener("input", () => {
    one.weight = Number(slider.value);
    number.value = short(one.weight);
    changed();
  });
  number.addEventListener("change", () => {
    one.weight = Number(number.value);
    slider.max = Math.max(slider.max, Math.abs(one.weight));
    slider.min = -slider.max;
    slider.value = one.weight;
    changed();
  });
  const cells = [made("td"), made("td", name), made("td"), made("td", extra.cluster, "cluster"), made("td")];
  const weight = made("div", "", "weight");
  weight.append(slider, number);
  cells[0].append(on);
  cells[2].append(weight);
  cells[4].append(described(extra));
  line.append(...cells);
  return line;
}

function described(one) {
  const place = document.createElement("div");
  place.append(made("span", one.label || "no description"));
  const facts = [];
  if (one.fires && one.fires.length) facts.push(`fires on ${one.fires.map((t) => t.trim()).join(", ")}`);
  if (one.promotes && one.promotes.length) facts.push(`promotes ${one.promotes.map((t) => t.trim()).join(", ")}`);
  if (facts.length) place.append(made("small", facts.join("; ")));
  return place;
}

function showMix() {
  const lines = [];
  if (about.rest) {
    const whole = !about.features.length;
    const label = whole ? "the vector as it came" : "what the vector holds beside its features";
    lines.push(row(rest, whole ? about.vector.name : "the rest", { cluster: "–", label }));
  }
  const shown = all ? features : features.filter((one, at) => at < STRONGEST || one.added);
  for (const one of shown) {
    const cluster = one.cluster == null ? "–" : String(one.cluster);
    lines.push(row(one, String(one.index), { ...one, cluster }));
  }
  $("mix").tBodies[0].replaceChildren(...lines);
  const hidden = features.length - shown.length;
  $("all").hidden = !hidden;
  $("all").textContent = `Show ${hidden} weaker ones`;
  showChoices();
}

// What tokens can be coloured by.
function showChoices() {
  const chosen = $("by").value;
  const choices = [["", `the vector, ${about.vector.name}`]];
  if (about.probe) choices.push(["probe", `the probe ${about.probe.name}, layer ${about.probe.layer}`]);
  for (const one of features) choices.push([String(one.index), `${one.index} ${one.label || ""}`.slice(0, 70)]);
  $("by").replaceChildren(...choices.map(([value, text]) => Object.assign(made("option", text), { value })));
  $("by").value = choices.some(([value]) => value === chosen) ? chosen : "";
}

function add(one) {
  const found = features.find((each) => each.index === one.index);
  if (found) Object.assign(found, { on: true, added: true });
  else features.push({ ...one, weight: typicalWeight(), on: true, cluster: null, added: true });
  showMix();
  changed();
  $("added").textContent = `Feature ${one.index} is in the mix.`;
}

// As much as the largest there is, or a tenth of the residual norm, so that it is heard.
function typicalWeight() {
  const sizes = features.filter((one) => one.on).map((one) => Math.abs(one.weight));
  if (sizes.length) return Number(Math.max(...sizes).toPrecision(3));
  return Number(((measures.norm || 10) / 10).toPrecision(3));
}

// A feature that can be added, as a line of a list.
export function hit(one, note) {
  const line = made("li");
  const place = described(one);
  place.prepend(made("strong", `${one.index} `));
  if (one.url) {
    const link = made("a", "Neuronpedia");
    Object.assign(link, { href: one.url, target: "_blank", rel: "noopener noreferrer" });
    place.append(" ", link);
  }
  line.append(place);
  if (note) line.append(made("span", note, "none"));
  line.append(button("Add", () => add(one), `Add feature ${one.index}`));
  return line;
}

export async function find() {
  const found = await trying(() => asked("search", { words: $("words").value }));
  if (!found) return;
  const lines = found.features.map((one) => hit(one));
  $("found").replaceChildren(...(lines.length ? lines : [made("li", "No feature has these words.")]));
  $("how").textContent = `Found ${found.how}.`;
}

export function listen(download) {
  $("all").addEventListener("click", () => {
    all = true;
    showMix();
  });
  $("reset").addEventListener("click", () => {
    asItCame();
    changed();
  });
  $("save").addEventListener("click", () =>
    trying(async () => download(await (await ask("save", { mix: mix() })).blob(), "vector.safetensors")),
  );
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    find();
  });
}
