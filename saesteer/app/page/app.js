// The page: what is shown first, and what listens to whom.
import { $, download, made, trying } from "./dom.js";
import * as mix from "./mix.js";
import * as picture from "./picture.js";
import * as read from "./read.js";
import * as state from "./state.js";
import * as strength from "./strength.js";
import * as write from "./write.js";

const FIRST_KL = 0.5;

function begin(about) {
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
  $("to-report").hidden = !about.report;
  $("compare-about").textContent =
    `The prompt above, answered by ${[about.vector.name, ...about.others].join(", ")}, each at the strength that costs the same KL.`;
  $("features-about").textContent = about.sae
    ? "What the vector is made of. A change is heard in the next answer."
    : "The vector is dense, and no SAE is open to mix features from; start the app with --sae.";
  $("read-about").textContent = about.sae
    ? "Tokens coloured by how strongly a feature fires on them, or by their projection on the vector. Choose a token to list the features that fire there."
    : "Tokens coloured by their projection on the vector.";
  mix.open(about);
  const handed = location.hash.startsWith("#state=");
  if (handed) trying(async () => state.opened(location.hash.slice(7), state.unpacked));
  strength.showMeasures(about.measures);
  strength.showStrength(strength.strength());
  for (const part of [strength, write, read, picture]) part.listen();
  mix.listen(download);
  state.listen();
  document.documentElement.dataset.ready = "yes";
  // So that a first answer differs; where no strength costs that much, as it stands.
  if (handed) strength.measure();
  else strength.toKl(FIRST_KL).then((found) => found || strength.measure());
}

// The token has become a cookie; it need not stand in the address.
if (location.search) history.replaceState(null, "", location.pathname + location.hash);

trying(async () => {
  const reply = await fetch("api/about");
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  begin(found);
});
