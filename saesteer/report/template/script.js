"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const settings = { responsive: true, displayModeBar: false, showTips: false };
  const drawn = new Set();
  const plotly = window.Plotly;

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Figures are made for a light page; what is drawn on the page's own ground follows it.
  const inPageColours = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line, edge, card] = ["ink", "soft", "line", "edge", "card"].map((name) =>
      style.getPropertyValue(`--${name}`).trim(),
    );
    const made = structuredClone(layout);
    const own = made.template.layout;
    for (const axis of [own.xaxis, own.yaxis]) {
      Object.assign(axis, { gridcolor: line, linecolor: line, zerolinecolor: edge });
      axis.title.font.color = soft;
    }
    own.font.color = ink;
    Object.assign(own.hoverlabel, { bgcolor: card, bordercolor: edge });
    for (const note of made.annotations ?? []) {
      if (note.bgcolor) Object.assign(note, { bgcolor: card, font: { ...note.font, color: soft } });
    }
    return made;
  };

  // A figure in a hidden panel has no width yet, so it is drawn when its panel is shown.
  const drawShown = () => {
    const waiting = [];
    for (const place of document.querySelectorAll("[data-figure]")) {
      const name = place.dataset.figure;
      if (drawn.has(name) || place.offsetParent === null) continue;
      drawn.add(name);
      const { data, layout } = figures[name];
      // On a small screen the legend has a line for each name.
      const names = layout.showlegend && place.clientWidth < 560
        ? data.filter((trace) => trace.name && trace.showlegend !== false).length
        : 0;
      layout.height += 12 * names;
      place.replaceChildren();
      waiting.push(plotly.newPlot(place, data, inPageColours(layout), settings));
    }
    return Promise.all(waiting);
  };
  dark.addEventListener("change", () => {
    for (const name of drawn) {
      const { data, layout } = figures[name];
      plotly.react(document.getElementById(`figure-${name}`), data, inPageColours(layout), settings);
    }
  });

  // Numbers go by their exact value, all else by its letters; what is missing comes last.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : Number(value);
  };
  const sortBy = (button) => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = Number(button.dataset.sort);
    const descending = head.getAttribute("aria-sort") !== "descending";
    const missing = (key) => key === "" || key === "–";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [keyOf(a, column), keyOf(b, column)];
      if (missing(x) || missing(y)) return Number(missing(x)) - Number(missing(y));
      const order = typeof x === "number" && typeof y === "number"
        ? x - y
        : String(x).localeCompare(String(y), undefined, { numeric: true });
      return descending ? -order : order;
    });
    for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows);
  };
  for (const button of document.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => sortBy(button));
  }

  const choose = (group, value) => {
    for (const panel of document.querySelectorAll(`[data-panel="${group}"]`)) {
      panel.hidden = panel.dataset.value !== value;
    }
    for (const select of document.querySelectorAll(`select[data-choose="${group}"]`)) {
      if ([...select.options].some((option) => option.value === value)) select.value = value;
    }
    return drawShown();
  };

  for (const select of document.querySelectorAll("select[data-choose]")) {
    select.addEventListener("change", () => choose(select.dataset.choose, select.value));
  }
  // The page itself asks nothing of the network; a dashboard comes only when somebody wants it.
  for (const button of document.querySelectorAll("button[data-embed]")) {
    button.addEventListener("click", () => {
      const shown = button.nextElementSibling;
      const open = shown === null;
      button.setAttribute("aria-expanded", String(open));
      if (!open) return shown.remove();
      const place = document.createElement("div");
      place.className = "embed";
      if (navigator.onLine) {
        const frame = document.createElement("iframe");
        frame.title = "Dashboard on Neuronpedia";
        frame.referrerPolicy = "no-referrer";
        frame.setAttribute("sandbox", "allow-scripts allow-same-origin allow-popups");
        frame.setAttribute("src", button.dataset.embed);
        place.append(frame);
      } else {
        place.textContent = "You are offline; the dashboard needs a connection.";
      }
      button.after(place);
    });
  }
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", drawShown);
  }

  const links = new Map();
  for (const link of document.querySelectorAll("nav a")) links.set(link.hash.slice(1), link);
  const sections = [...document.querySelectorAll("main > section[id]")];
  const markPlace = () => {
    const bottom = window.innerHeight + window.scrollY >= document.body.scrollHeight - 2;
    const passed = sections.filter((section) => section.getBoundingClientRect().top < 120);
    const here = bottom ? sections.at(-1) : passed.at(-1);
    for (const [id, link] of links) link.classList.toggle("here", here?.id === id);
  };
  window.addEventListener("scroll", markPlace, { passive: true });

  markPlace();
  drawShown().then(() => {
    document.documentElement.dataset.ready = "yes";
  });
})();
