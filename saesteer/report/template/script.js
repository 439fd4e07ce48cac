"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const settings = { responsive: true, displayModeBar: false, showTips: false };
  const drawn = new Set();
  const plotly = window.Plotly;

  // A figure in a hidden panel has no width yet, so it is drawn when its panel is shown.
  const drawShown = () => {
    const waiting = [];
    for (const place of document.querySelectorAll("[data-figure]")) {
      const name = place.dataset.figure;
      if (drawn.has(name) || place.offsetParent === null) continue;
      drawn.add(name);
      const { data, layout } = figures[name];
      place.replaceChildren();
      waiting.push(plotly.newPlot(place, data, layout, settings));
    }
    return Promise.all(waiting);
  };

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
  for (const button of document.querySelectorAll("button[data-open]")) {
    button.addEventListener("click", () => {
      const all = [...button.closest("[data-panel]").querySelectorAll("details")];
      const open = all.some((one) => !one.open);
      for (const one of all) one.open = open;
      button.textContent = open ? "Close all" : "Open all";
    });
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
