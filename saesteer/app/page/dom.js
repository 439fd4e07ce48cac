// Whatever comes from the model, a file or a link is set as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function made(tag, text = "", name = "") {
  const found = document.createElement(tag);
  found.textContent = text;
  if (name) found.className = name;
  return found;
}

export function button(text, act, label = "") {
  const found = made("button", text);
  found.type = "button";
  if (label) found.setAttribute("aria-label", label);
  found.addEventListener("click", act);
  return found;
}

export const short = (number) => (number == null ? "–" : String(+number.toPrecision(3)));
export const signed = (number) => (number > 0 ? "+" : "") + short(number).replace("-", "−");

export function download(blob, name) {
  const link = made("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function complain(error) {
  if (error && error.name === "AbortError") return;
  const said = error ? error.message : "";
  $("error").textContent = said ? said[0].toUpperCase() + said.slice(1) : "";
  $("error").hidden = !said;
}

// Do something; what it stumbles over is a sentence on the page, and null comes back.
export async function trying(work) {
  try {
    complain(null);
    return await work();
  } catch (error) {
    complain(error);
    return null;
  }
}
