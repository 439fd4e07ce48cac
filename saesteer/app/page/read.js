// A text's tokens, coloured by what they are read as.
import { $, made, short, trying } from "./dom.js";
import { about, hit } from "./mix.js";
import { asked } from "./server.js";

async function read() {
  const by = $("by").value;
  const probe = by === "probe";
  const feature = by === "" || probe ? null : Number(by);
  const found = await trying(() => asked("read", { text: $("text").value, feature, probe }));
  if (!found) return;
  // A probe reads from -1 to 1; the others are shown by the largest.
  const most = probe ? 1 : Math.max(...found.tokens.map((token) => Math.abs(token.value)), 1e-9);
  $("firing").replaceChildren();
  const classes = probe ? about.probe.classes : [];
  $("value").textContent = "";
  $("legend").textContent = probe
    ? `1 is ${classes.at(-1)} and −1 is ${classes[0]}; choose a token to list its features`
    : `the largest value is ${short(most)}; choose a token to list its features`;
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

export function listen() {
  $("reading").addEventListener("submit", (event) => {
    event.preventDefault();
    read();
  });
}
