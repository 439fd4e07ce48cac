// The page's state as a link or a file, to hand on.
import { $, download, trying } from "./dom.js";
import { asItCame, features, put, rest } from "./mix.js";
import { changed, showStrength, strength } from "./strength.js";
import { setTurns, turns } from "./write.js";

const DIALS = ["prompt", "unit", "length", "temperature", "seed", "text", "at-kl", "side"];
const SWITCHES = ["chat", "opposite"];

function state() {
  const found = { strength: strength(), turns, rest };
  for (const name of DIALS) found[name] = $(name).value;
  for (const name of SWITCHES) found[name] = $(name).checked;
  found.features = features.map(({ index, weight, on, cluster, label }) => ({ index, weight, on, cluster, label }));
  return found;
}

export function opened(text, unpack) {
  try {
    restore(unpack(text));
  } catch {
    asItCame();
    throw new Error("that is no state of this page; open a file or a link that it made.");
  }
}

function restore(given) {
  for (const name of DIALS) if (name in given) $(name).value = String(given[name]);
  for (const name of SWITCHES) if (name in given) $(name).checked = Boolean(given[name]);
  const listed = Array.isArray(given.features) ? given.features : null;
  put(
    listed &&
      listed
        .filter((one) => Number.isInteger(one.index) && Number.isFinite(one.weight))
        .map(({ index, weight, on, cluster, label }) => ({ index, weight, on: Boolean(on), cluster, label: String(label || "") })),
    given.rest && { weight: Number(given.rest.weight), on: Boolean(given.rest.on) },
  );
  const said = Array.isArray(given.turns) ? given.turns : [];
  setTurns(said.map((turn) => ({ asked: String(turn.asked), said: String(turn.said) })));
  if (!$("unit").value) $("unit").value = "raw";
  if (Number.isFinite(given.strength)) showStrength(given.strength);
}

const packed = () => btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(state()))));
export const unpacked = (text) =>
  JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text), (c) => c.charCodeAt(0))));

export function listen() {
  $("link").addEventListener("click", () =>
    trying(async () => {
      history.replaceState(null, "", `#state=${packed()}`);
      try {
        await navigator.clipboard.writeText(location.href);
        $("told").textContent = "The link is copied.";
      } catch {
        $("told").textContent = "The link is in the address bar.";
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
}
