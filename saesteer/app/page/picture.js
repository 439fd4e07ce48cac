// The answers as a picture, drawn as the page shows them.
import { $, download } from "./dom.js";
import { about } from "./mix.js";
import { written } from "./write.js";

const WIDTH = 1200;
const EDGE = 40;
const GAP = 20;
const PADDING = 18;
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

// A text as lines that fit; a word that does not is broken.
function lines(pen, text, width) {
  const found = [];
  for (const paragraph of text.split("\n")) {
    let line = "";
    for (let word of paragraph.split(/(?<=\s)/)) {
      if (line && pen.measureText((line + word).trimEnd()).width > width) {
        found.push(line);
        line = "";
      }
      while (pen.measureText(word.trimEnd()).width > width) {
        let cut = word.length - 1;
        while (cut > 1 && pen.measureText(word.slice(0, cut)).width > width) cut--;
        found.push(word.slice(0, cut));
        word = word.slice(cut);
      }
      line += word;
    }
    found.push(line);
  }
  return found;
}

function draw({ prompt, columns }) {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const fonts = { head: `600 26px ${FONT}`, small: `15px ${FONT}`, title: `600 16px ${FONT}`, said: `18px ${FONT}` };
  const parts = (font, text, width) => {
    pen.font = fonts[font];
    return lines(pen, text, width);
  };
  const wide = (WIDTH - 2 * EDGE - GAP * (columns.length - 1)) / columns.length;
  const boxes = columns.map((each) => ({
    kind: each.kind,
    title: parts("title", each.title, wide - 2 * PADDING),
    note: parts("small", each.note, wide - 2 * PADDING),
    said: parts("said", each.said, wide - 2 * PADDING),
  }));
  const asked = parts("head", prompt, WIDTH - 2 * EDGE);
  const facts = `${about.model} at ${about.vector.site}, steered by ${about.vector.name} (${about.vector.method})`;
  const high = Math.max(...boxes.map((box) => 22 * (box.title.length + box.note.length) + 27 * box.said.length)) + 2 * PADDING + 10;
  const height = EDGE + 34 * asked.length + 44 + high + EDGE;
  const scale = 2;
  canvas.width = WIDTH * scale;
  canvas.height = height * scale;
  pen.scale(scale, scale);
  pen.textBaseline = "top";
  const put = (font, name, found, x, y, step) => {
    pen.font = fonts[font];
    pen.fillStyle = colour(name);
    found.forEach((line, at) => pen.fillText(line, x, y + at * step));
    return y + found.length * step;
  };
  pen.fillStyle = colour("ground");
  pen.fillRect(0, 0, WIDTH, height);
  let y = put("head", "ink", asked, EDGE, EDGE, 34);
  y = put("small", "soft", [facts], EDGE, y + 2, 42);
  boxes.forEach((box, at) => {
    const x = EDGE + at * (wide + GAP);
    pen.fillStyle = colour("card");
    pen.fillRect(x, y, wide, high);
    pen.fillStyle = colour({ plain: "middle", steered: "blue", opposite: "orange" }[box.kind] || "fill");
    pen.fillRect(x, y, wide, 4);
    let below = put("title", "ink", box.title, x + PADDING, y + PADDING, 22);
    below = put("small", "soft", box.note, x + PADDING, below, 22);
    put("said", "ink", box.said, x + PADDING, below + 10, 27);
  });
  return canvas;
}

export function listen() {
  for (const one of document.querySelectorAll("[data-picture]")) {
    one.addEventListener("click", () => {
      const found = written[one.dataset.picture];
      if (found) draw(found).toBlob((blob) => download(blob, "saesteer.png"), "image/png");
      else $("told").textContent = "There is no answer yet to draw.";
    });
  }
}
