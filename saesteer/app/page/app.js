"use strict";
// Whatever comes from the model, a file or a link is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const made = (tag, text = "", name = "") => {
  const found = document.createElement(tag);
  found.textContent = text;
  if (name) found.className = name;
  return found;
};
const short = (number) => (number == null ? "–" : String(+number.toPrecision(3)));

let about = null;
let measures = { norm: null, raw: 1, max_act: null };
// {index, weight, on, cluster, label, fires, promotes}; weight is what it came with or was set to.
let features = [];
let rest = { weight: 1, on: true };
let turns = [];
let writing = null;
let measuring = null;
let waiting = 0;
// The unit that the strength on the page is in, while another one is being chosen.
let unitBefore = "norm";

// The server.

async function ask(what, body, signal) {
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const reply = await fetch(`api/${what}`, sent).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("the app does not answer; start saesteer app again.");
  });
  if (!reply.ok) throw new Error((await reply.json()).error);
  return reply;
}

const asked = async (what, body, signal) => (await ask(what, body, signal)).json();

function complain(error) {
  if (error && error.name === "AbortError") return;
  const said = error ? error.message : "";
  $("error").textContent = said ? said[0].toUpperCase() + said.slice(1) : "";
  $("error").hidden = !said;
}

async function trying(work) {
  try {
    complain(null);
    return await work();
  } catch (error) {
    complain(error);
    return null;
  }
}

// The mix.

function mix() {
  const chosen = {};
  for (const one of features) if (one.on && one.weight) chosen[one.index] = one.weight;
  return { rest: about.rest && rest.on ? rest.weight : 0, features: chosen };
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
  for (const one of features) {
    const cluster = one.cluster == null ? "–" : String(one.cluster);
    lines.push(row(one, String(one.index), { ...one, cluster }));
  }
  $("mix").tBodies[0].replaceChildren(...lines);
  const chosen = $("by").value;
  const choices = [["", `the vector, ${about.vector.name}`]];
  for (const one of features) choices.push([String(one.index), `${one.index} ${one.label || ""}`.slice(0, 70)]);
  $("by").replaceChildren(
    ...choices.map(([value, text]) => Object.assign(made("option", text), { value })),
  );
  $("by").value = choices.some(([value]) => value === chosen) ? chosen : "";
}

function add(one) {
  const found = features.find((each) => each.index === one.index);
  if (found) found.on = true;
  else features.push({ ...one, weight: typicalWeight(), on: true, cluster: null });
  showMix();
  changed();
  tell("added", `Feature ${one.index} is in the mix.`);
}

// As much as the largest there is, or a tenth of the residual norm, so that it is heard.
function typicalWeight() {
  const sizes = features.filter((one) => one.on).map((one) => Math.abs(one.weight));
  if (sizes.length) return Number(Math.max(...sizes).toPrecision(3));
  return Number(((measures.norm || 10) / 10).toPrecision(3));
}

const hit = (one, note) => {
  const line = made("li");
  const button = made("button", "Add");
  button.type = "button";
  button.setAttribute("aria-label", `Add feature ${one.index}`);
  button.addEventListener("click", () => add(one));
  const place = described(one);
  place.prepend(made("strong", `${one.index} `));
  line.append(place);
  if (note) line.append(made("span", note, "none"));
  line.append(button);
  return line;
};

// Strength and cost.

const strength = () => Number($("amount").value);

function span() {
  // A residual norm either way, in whatever unit.
  const per = measures[$("unit").value];
  return (measures.norm || 1) / (per || 1);
}

function showStrength(value) {
  const most = Math.max(span(), Math.abs(value));
  $("strength").min = -most;
  $("strength").max = most;
  $("strength").value = value;
  $("amount").value = short(value);
  unitBefore = $("unit").value;
  showUnits();
}

function showUnits() {
  const length = strength() * (measures[$("unit").value] || NaN);
  const parts = [
    ["norm", "× residual norm"],
    ["raw", "L2 length"],
    ["max_act", "× maximum activation"],
  ].map(([unit, name]) => `${measures[unit] && length === length ? short(length / measures[unit]) : "–"} ${name}`);
  $("units").textContent = `= ${parts.join(" = ")}`;
}

function showMeasures(found) {
  const length = strength() * (measures[$("unit").value] || NaN);
  measures = found;
  for (const option of $("unit").options) option.disabled = measures[option.value] == null;
  if (measures[$("unit").value] == null) {
    $("unit").value = measures.norm == null ? "raw" : "norm";
    showStrength(Number.isNaN(length) ? strength() : length / measures[$("unit").value]);
  }
  showUnits();
}

// What the mix or the strength was changed to is measured once nothing moves any more.
function changed() {
  showUnits();
  $("kl").value = "…";
  clearTimeout(waiting);
  waiting = setTimeout(measure, 350);
}

async function measure() {
  // The model writes one thing at a time; it is measured after that.
  if (writing) return;
  if (measuring) measuring.abort();
  const own = (measuring = new AbortController());
  const body = { mix: mix(), strength: strength(), unit: $("unit").value };
  const found = await trying(() => asked("cost", body, own.signal));
  if (own !== measuring) return;
  measuring = null;
  $("kl").value = found ? short(found.kl) : "–";
  if (found) showMeasures(found.measures);
}

async function toKl(button) {
  clearTimeout(waiting);
  if (measuring) measuring.abort();
  const own = (measuring = new AbortController());
  $("kl").value = "…";
  const sign = strength() < 0 ? -1 : 1;
  const body = { mix: mix(), kl: Number(button.dataset.kl), sign, unit: $("unit").value };
  const found = await trying(() => asked("strength", body, own.signal));
  if (own !== measuring) return;
  measuring = null;
  $("kl").value = found ? short(found.kl) : "–";
  if (!found) return;
  showMeasures(found.measures);
  showStrength(found.strength);
}

// Writing.

async function write() {
  if (writing) return;
  clearTimeout(waiting);
  // What is being measured would wait for the answer and be refused; it is measured afterwards.
  if (measuring) measuring.abort();
  measuring = null;
  const own = (writing = new AbortController());
  const prompt = $("prompt").value;
  const value = strength();
  const strengths = $("opposite").checked ? [0, value, -value] : [0, value];
  const unit = $("unit").selectedOptions[0].textContent;
  const columns = strengths.map((each, at) => {
    const column = made("div", "", "column");
    const title = made("h5", at ? `steered, ${short(each)} ${unit}` : "plain");
    const said = made("p", "", "said");
    said.dir = "auto";
    column.append(title, said);
    return { column, said };
  });
  $("answers").style.setProperty("--columns", columns.length);
  $("answers").replaceChildren(...columns.map((each) => each.column));
  $("answers").setAttribute("aria-busy", "true");
  $("go").disabled = true;
  $("stop").disabled = false;
  $("speed").textContent = "";
  const started = performance.now();
  let first = 0;
  const chat = $("chat").checked && about.chat;
  const body = {
    prompt,
    strengths,
    unit: $("unit").value,
    mix: mix(),
    chat,
    earlier: chat ? turns.map((turn) => [turn.asked, turn.said]) : [],
    temperature: Number($("temperature").value),
    max_new_tokens: Number($("length").value),
    seed: Number($("seed").value),
  };
  await trying(async () => {
    const reply = await ask("write", body, own.signal);
    for await (const event of events(reply)) {
      if ("row" in event) {
        first = first || performance.now();
        columns[event.row].said.textContent += event.text;
      } else if (event.error) {
        throw new Error(event.error);
      } else {
        event.answers.forEach((answer, at) => (columns[at].said.textContent = answer.text));
        showSpeed(event.answers, first - started, performance.now() - started);
      }
    }
  });
  $("answers").setAttribute("aria-busy", "false");
  $("go").disabled = false;
  $("stop").disabled = true;
  writing = null;
  if (chat) for (const each of columns) offerToGoOn(each, prompt);
  measure();
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const parts = left.split("\n\n");
    left = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}

function showSpeed(answers, first, whole) {
  const tokens = answers.reduce((sum, answer) => sum + answer.tokens, 0);
  const each = (tokens / whole) * 1000;
  $("speed").textContent = `first token after ${short(first / 1000)} s, ${short(each)} tokens/s in all`;
}

function offerToGoOn({ column, said }, prompt) {
  if (!said.textContent.trim()) return;
  const button = made("button", "Go on from this answer");
  button.type = "button";
  button.addEventListener("click", () => {
    turns.push({ asked: prompt, said: said.textContent });
    $("answers").replaceChildren();
    showTurns();
    $("prompt").value = "";
    $("prompt").focus();
  });
  column.append(button);
}

function showTurns() {
  $("turns").replaceChildren(
    ...turns.map((turn) => {
      const place = made("div", "", "turn");
      place.append(made("p", turn.asked, "asked"), made("p", turn.said, "said"));
      return place;
    }),
  );
  $("anew").hidden = !turns.length;
}

// Reading.

async function read() {
  const by = $("by").value;
  const feature = by === "" ? null : Number(by);
  const found = await trying(() => asked("read", { text: $("text").value, feature }));
  if (!found) return;
  const most = Math.max(...found.tokens.map((token) => Math.abs(token.value)), 1e-9);
  $("firing").replaceChildren();
  $("value").textContent = `the largest value is ${short(most)}; choose a token to list its features`;
  const buttons = found.tokens.map((token) => {
    const button = made("button", token.text, "token");
    button.type = "button";
    button.title = short(token.value);
    const share = Math.round((75 * Math.abs(token.value)) / most);
    const colour = token.value < 0 ? "against" : "towards";
    if (share) button.style.background = `color-mix(in srgb, var(--${colour}) ${share}%, transparent)`;
    const show = () => ($("value").textContent = `“${token.text}”: ${short(token.value)}`);
    button.addEventListener("mouseenter", show);
    button.addEventListener("focus", show);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      show();
      const lines = token.features.map(([index, value]) =>
        hit({ index, label: found.labels[index], fires: [], promotes: [] }, short(value)),
      );
      $("firing").replaceChildren(...(lines.length ? lines : [made("li", "No feature is known to fire here.")]));
    });
    return button;
  });
  $("tokens").replaceChildren(...buttons);
}

// The state, to hand on.

const DIALS = ["prompt", "unit", "length", "temperature", "seed", "text"];

function state() {
  const found = { strength: strength(), chat: $("chat").checked, opposite: $("opposite").checked, turns, rest };
  for (const name of DIALS) found[name] = $(name).value;
  found.features = features.map(({ index, weight, on, cluster, label }) => ({ index, weight, on, cluster, label }));
  return found;
}

function opened(text, unpack) {
  try {
    restore(unpack(text));
  } catch {
    asItCame();
    throw new Error("that is no state of this page; open a file or a link that it made.");
  }
}

function restore(given) {
  for (const name of DIALS) if (name in given) $(name).value = String(given[name]);
  for (const name of ["chat", "opposite"]) if (name in given) $(name).checked = Boolean(given[name]);
  if (Array.isArray(given.features)) {
    const known = new Map(about.features.map((one) => [one.index, one]));
    features = given.features
      .filter((one) => Number.isInteger(one.index) && Number.isFinite(one.weight))
      .map(({ index, weight, on, cluster, label }) => ({
        ...known.get(index),
        ...{ index, weight, on: Boolean(on), cluster, label: String(label || "") },
      }));
  }
  if (given.rest) rest = { weight: Number(given.rest.weight), on: Boolean(given.rest.on) };
  if (Array.isArray(given.turns)) {
    turns = given.turns.map((turn) => ({ asked: String(turn.asked), said: String(turn.said) }));
  }
  if (!$("unit").value) $("unit").value = "raw";
  showTurns();
  showMix();
  if (Number.isFinite(given.strength)) showStrength(given.strength);
}

const packed = () => btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(state()))));
const unpacked = (text) => JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text), (c) => c.charCodeAt(0))));

function download(blob, name) {
  const link = made("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function tell(where, text) {
  $(where).textContent = text;
}

// Beginning.

function begin(found) {
  about = found;
  $("name").textContent = about.vector.name;
  const facts = { Model: about.model, Method: about.vector.method, Site: about.vector.site, SAE: about.sae || "none" };
  $("meta").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const place = made("div");
      place.append(made("dt", name), made("dd", value));
      return place;
    }),
  );
  document.title = `${about.vector.name} – saesteer`;
  $("chat").disabled = !about.chat;
  $("chat").checked = about.chat;
  $("finder").hidden = !about.search;
  $("features-about").textContent = about.sae
    ? "What the vector is made of. A change is heard in the next answer."
    : "The vector is dense, and no SAE is open to mix features from; start the app with --sae.";
  $("read-about").textContent = about.sae
    ? "Tokens coloured by how strongly a feature fires on them, or by their projection on the vector. Choose a token to list the features that fire there."
    : "Tokens coloured by their projection on the vector.";
  asItCame();
  if (location.hash.startsWith("#state=")) {
    trying(async () => opened(location.hash.slice(7), unpacked));
  }
  showMeasures(about.measures);
  showStrength(strength());
  document.documentElement.dataset.ready = "yes";
  measure();
}

function asItCame() {
  features = about.features.map((one) => ({ ...one, on: true }));
  rest = { weight: 1, on: true };
  showMix();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  write();
});
$("stop").addEventListener("click", () => writing && writing.abort());
$("anew").addEventListener("click", () => {
  turns = [];
  showTurns();
});
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
  showStrength(length / measures[$("unit").value]);
});
for (const button of document.querySelectorAll("[data-kl]")) button.addEventListener("click", () => toKl(button));
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const found = await asked("search", { words: $("words").value });
    const lines = found.features.map((one) => hit(one));
    $("found").replaceChildren(...(lines.length ? lines : [made("li", "No feature has these words.")]));
  });
});
$("reset").addEventListener("click", () => {
  asItCame();
  changed();
});
$("save").addEventListener("click", () =>
  trying(async () => download(await (await ask("save", { mix: mix() })).blob(), "vector.safetensors")),
);
$("reading").addEventListener("submit", (event) => {
  event.preventDefault();
  read();
});
$("link").addEventListener("click", () =>
  trying(async () => {
    history.replaceState(null, "", `#state=${packed()}`);
    try {
      await navigator.clipboard.writeText(location.href);
      tell("told", "The link is copied.");
    } catch {
      tell("told", "The link is in the address bar.");
    }
  }),
);
$("keep").addEventListener("click", () =>
  download(new Blob([JSON.stringify(state(), null, 1)], { type: "application/json" }), "saesteer.json"),
);
$("open").addEventListener("change", () =>
  trying(async () => {
    const file = $("open").files[0];
    if (!file) return;
    opened(await file.text(), JSON.parse);
    $("open").value = "";
    changed();
  }),
);

trying(async () => {
  const reply = await fetch("api/about");
  begin(await reply.json());
});
