// How much of the vector is added, in every unit, and what that costs.
import { $, short, trying } from "./dom.js";
import { mix } from "./mix.js";
import { asked } from "./server.js";
import { busy } from "./write.js";

const UNITS = [
  ["norm", "× residual norm"],
  ["raw", "L2 length"],
  ["max_act", "× maximum activation"],
];
// The L2 length of strength 1 in every unit; null where the vector does not carry it.
export let measures = { norm: null, raw: 1, max_act: null };
let measuring = null;
let waiting = 0;
let searching = null;
// The unit that the strength on the page is in, while another one is being chosen.
let unitBefore = "norm";

export const strength = () => Number($("amount").value);
export const unit = () => $("unit").value;

export function showStrength(value) {
  // A residual norm either way, in whatever unit.
  const most = Math.max((measures.norm || 1) / (measures[unit()] || 1), Math.abs(value));
  $("strength").min = -most;
  $("strength").max = most;
  $("strength").value = value;
  $("amount").value = short(value);
  unitBefore = unit();
  showUnits();
}

function showUnits() {
  const length = strength() * (measures[unit()] || NaN);
  const parts = UNITS.map(
    ([name, words]) => `${measures[name] && length === length ? short(length / measures[name]) : "–"} ${words}`,
  );
  $("units").textContent = `= ${parts.join(" = ")}`;
}

export function showMeasures(found) {
  const length = strength() * (measures[unit()] || NaN);
  measures = found;
  for (const option of $("unit").options) option.disabled = measures[option.value] == null;
  if (measures[unit()] == null) {
    $("unit").value = measures.norm == null ? "raw" : "norm";
    showStrength(Number.isNaN(length) ? strength() : length / measures[unit()]);
  }
  showUnits();
}

// What the mix or the strength was changed to is measured once nothing moves any more; a search that
// still runs would put its strength in place of the one set by hand.
export function changed() {
  stopMeasuring();
  showUnits();
  $("kl").value = "…";
  waiting = setTimeout(measure, 350);
}

// What is being measured would wait for an answer and be refused.
export function stopMeasuring() {
  clearTimeout(waiting);
  if (measuring) measuring.abort();
  measuring = null;
}

async function measured(what, body) {
  stopMeasuring();
  const own = (measuring = new AbortController());
  $("kl").value = "…";
  const found = await trying(() => asked(what, { mix: mix(), unit: unit(), ...body }, own.signal));
  if (own !== measuring) return null;
  measuring = null;
  $("kl").value = found ? short(found.kl) : "–";
  if (found) showMeasures(found.measures);
  return found;
}

export async function measure() {
  // The model writes one thing at a time; it is measured after that.
  if (!busy()) await measured("cost", { strength: strength() });
}

async function searched(kl) {
  const found = await measured("strength", { kl: strength() < 0 ? -kl : kl });
  if (found) showStrength(found.strength);
  return found;
}

export function toKl(kl) {
  searching = searched(kl).finally(() => (searching = null));
  return searching;
}

// Whoever asks for a KL and writes at once means the strength that is being looked for.
export const settled = async () => searching;

export function listen() {
  $("strength").addEventListener("input", () => {
    $("amount").value = short(Number($("strength").value));
    changed();
  });
  $("amount").addEventListener("change", () => {
    showStrength(strength());
    changed();
  });
  $("unit").addEventListener("change", () => {
    // The same length, in the unit that is chosen now.
    const length = strength() * measures[unitBefore];
    showStrength(length / measures[unit()]);
  });
  for (const one of document.querySelectorAll("[data-kl]")) {
    one.addEventListener("click", () => toKl(Number(one.dataset.kl)));
  }
}
