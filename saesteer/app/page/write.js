// Answers in columns, as they are written, and what can be said of them afterwards.
import { $, button, made, short, signed, trying } from "./dom.js";
import { about, mix } from "./mix.js";
import { ask, asked, events } from "./server.js";
import { measure, settled, stopMeasuring, strength, unit } from "./strength.js";

// Questions and answers before this one.
export let turns = [];
// The columns on the page, by the id of what holds them.
export const written = {};
let writing = null;

export const busy = () => writing !== null;

export function setTurns(given) {
  turns = given;
  showTurns();
}

// Write something while nothing else is written; `work` gets the signal that stops it.
async function alone(work) {
  if (writing) return;
  writing = new AbortController();
  $("go").disabled = $("compare").disabled = true;
  for (const one of document.querySelectorAll(".stop")) one.disabled = false;
  await settled();
  stopMeasuring();
  await trying(() => work(writing.signal));
  $("go").disabled = $("compare").disabled = false;
  for (const one of document.querySelectorAll(".stop")) one.disabled = true;
  writing = null;
  measure();
}

export const stop = () => writing && writing.abort();

function asking() {
  const chat = $("chat").checked && about.chat;
  return { prompt: $("prompt").value, chat, earlier: chat ? turns.map((turn) => [turn.asked, turn.said]) : [] };
}

// Columns are {vector, strength, title, note, kind}; see what `api/write` takes.
async function writeColumns(place, columns, inUnit, signal) {
  const prompted = asking();
  const shown = columns.map(({ title, note, kind }) => {
    const column = made("div", "", `column ${kind}`);
    const head = made("h5", title);
    head.append(made("small", note));
    const said = made("p", "", "said");
    said.dir = "auto";
    const weighed = made("div", "", "weighed");
    column.append(head, said, weighed);
    return { column, said, weighed };
  });
  $(place).style.setProperty("--columns", columns.length);
  $(place).replaceChildren(...shown.map((each) => each.column));
  $(place).setAttribute("aria-busy", "true");
  $(`${place}-told`).textContent = "";
  written[place] = null;
  const body = {
    ...prompted,
    columns: columns.map((each) => [each.vector, each.strength]),
    unit: inUnit,
    mix: mix(),
    temperature: Number($("temperature").value),
    max_new_tokens: Number($("length").value),
    seed: Number($("seed").value),
  };
  const started = performance.now();
  let first = 0;
  try {
    for await (const event of events(await ask("write", body, signal))) {
      if (event.error) throw new Error(event.error);
      if ("row" in event) {
        first = first || performance.now();
        shown[event.row].said.textContent += event.text;
      } else {
        event.answers.forEach((answer, at) => (shown[at].said.textContent = answer.text));
        const tokens = event.answers.reduce((sum, answer) => sum + answer.tokens, 0);
        const speed = (tokens / (performance.now() - started)) * 1000;
        $(`${place}-told`).textContent = `first token after ${short((first - started) / 1000)} s, ${short(speed)} tokens/s in all`;
      }
    }
  } finally {
    $(place).setAttribute("aria-busy", "false");
    written[place] = { ...prompted, columns: columns.map((each, at) => ({ ...each, said: shown[at].said.textContent })) };
    if (prompted.chat && place === "answers") for (const each of shown) offerToGoOn(each, prompted.prompt);
  }
  return shown;
}

export function write() {
  return alone(async (signal) => {
    const value = strength();
    const inUnit = $("unit").selectedOptions[0].textContent;
    const columns = ($("opposite").checked ? [0, value, -value] : [0, value]).map((each, at) => ({
      vector: 0,
      strength: each,
      title: ["plain", "steered", "steered the other way"][at],
      note: at ? `${signed(each)} ${inUnit}` : "strength 0",
      kind: ["plain", "steered", "opposite"][at],
    }));
    weigh("answers", await writeColumns("answers", columns, unit(), signal), signal);
  });
}

export function compare() {
  // In the unit that every vector of a model shares.
  const inUnit = about.measures.norm == null ? "raw" : "norm";
  const kl = Number($("at-kl").value) * Number($("side").value);
  const names = [about.vector.name, ...about.others];
  return alone(async (signal) => {
    const columns = [{ vector: 0, strength: 0, title: "plain", note: "strength 0", kind: "plain" }];
    for (const [vector, name] of names.entries()) {
      $("compared-told").textContent = `looking for the strength of ${name} …`;
      const found = await asked("strength", { kl, vector, mix: mix(), unit: inUnit }, signal);
      const words = inUnit === "norm" ? "× residual norm" : "L2 length";
      const note = `${signed(found.strength)} ${words}, KL ${short(found.kl)}`;
      columns.push({ vector, strength: found.strength, title: name, note, kind: vector ? "other" : "steered" });
    }
    weigh("compared", await writeColumns("compared", columns, inUnit, signal), signal);
  });
}

// What the judge reads and how fluent the answers are, beside each; the page does not wait for it.
async function weigh(place, shown, signal) {
  const { prompt, chat, earlier, columns } = written[place];
  const texts = columns.map((each) => each.said);
  const own = written[place];
  const say = (line, at) => own === written[place] && shown[at].weighed.append(line);
  const fluent = asked("fluency", { prompt, chat, earlier, texts }, signal).then(({ answers }) =>
    answers.forEach((answer, at) => {
      const repeated = answer.repeated == null ? "–" : `${Math.round(100 * answer.repeated)}%`;
      const line = made("p", `perplexity ${short(answer.perplexity)}, repeated ${repeated}`, "fluency");
      line.title = "under the plain model; the share of 4-grams that stood before";
      say(line, at);
    }),
  );
  const judged = about.judged && judge(place, shown, prompt, texts, say, signal);
  await trying(() => Promise.all([fluent, judged]));
}

async function judge(place, shown, question, texts, say, signal) {
  const told = $(`${place}-told`);
  const before = told.textContent;
  told.textContent = `${before}; the judge reads …`;
  const { judge: by, readings } = await asked("judge", { question, texts }, signal).finally(() => (told.textContent = before));
  const auc = `AUC ${by.auc.toFixed(2)} on answers that it had not seen`;
  told.textContent = `${before}; judge: ${by.judge}, ${by.verdict} (${auc})`;
  readings.forEach((reading, at) => {
    if (reading == null) return;
    const line = made("p", "", "judge");
    line.title = "1 and −1 are as answers of the persona and of its opposite read";
    const track = made("span", "", "track");
    const bar = made("i");
    const share = Math.min(1, Math.abs(reading));
    Object.assign(bar.style, { left: `${50 - (reading < 0 ? 50 * share : 0)}%`, width: `${50 * share}%` });
    bar.style.background = `var(--${reading < 0 ? "against" : "towards"})`;
    track.append(bar);
    line.append("judge", track, signed(Number(reading.toFixed(2))));
    say(line, at);
  });
}

function offerToGoOn({ column, said }, prompt) {
  if (!said.textContent.trim()) return;
  column.append(
    button("Go on from this answer", () => {
      $("answers").replaceChildren();
      setTurns([...turns, { asked: prompt, said: said.textContent }]);
      $("prompt").value = "";
      $("prompt").focus();
    }),
  );
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

export function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    write();
  });
  $("comparing").addEventListener("submit", (event) => {
    event.preventDefault();
    compare();
  });
  for (const one of document.querySelectorAll(".stop")) one.addEventListener("click", stop);
  $("anew").addEventListener("click", () => setTurns([]));
}
