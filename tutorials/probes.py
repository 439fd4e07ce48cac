# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Probes and interventions
#
# A linear probe asks what the residual stream says of a text. An intervention asks whether the model
# uses it. The first without the second is a correlation, the second without somebody else to judge it
# is the probe grading its own work.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import saesteer as ss

model = ss.load_model("smollm2")

# %% [markdown]
# ## Texts
# Forty short texts of either side, written here by rule so that nothing but the mood tells the side:
# each situation occurs with both. A frame of your own with a column of texts and one of labels does as
# well; `saesteer probe my_texts.csv` is the same on the command line. What the probe is tested on are
# situations that it never saw.

# %%
situations = [
    "the soup", "my new flat", "the film last night", "our trip to the coast", "the concert",
    "this dictionary", "the hotel", "her speech", "the train ride", "my first day at work",
    "the garden", "his birthday party", "the lecture", "our team", "the museum", "the camera",
    "this chair", "the weather", "the service", "the last chapter",
]
glad = ["I loved {}.", "What a joy {} was!", "I could not be happier with {}.", "{} was wonderful."]
grim = ["I hated {}.", "What a waste {} was!", "I could not be angrier with {}.", "{} was dreadful."]
rows = [
    {"text": frame.format(thing).capitalize(), "label": label, "thing": thing}
    for label, frames in (("positive", glad), ("negative", grim))
    for frame in frames
    for thing in situations
]
texts = pd.DataFrame(rows)
test = texts["thing"].isin(situations[-6:])
train, held_out = texts[~test], texts[test]
texts.sample(5, random_state=0)[["text", "label"]]

# %% [markdown]
# ## A probe on every third layer
# One pass reads all layers. The layer that is best in cross-validation is chosen by the training texts
# alone. The *control* is the same probe on shuffled labels: what it reaches is chance plus leakage.

# %%
layers = range(0, model.cfg.n_layers, 3)
probe = ss.Probe(layers=layers).fit(model, list(train["text"]), list(train["label"]))
shuffled = train["label"].sample(frac=1, random_state=0)
control = ss.Probe(layers=layers).fit(model, list(train["text"]), list(shuffled))
for name, one in (("probe", probe), ("control", control)):
    right = one.predict(list(held_out["text"])) == held_out["label"].to_numpy()
    print(f"{name}: layer {one.best_layer_}, {right.mean():.0%} of {len(right)} held-out texts")

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.plot(probe.scores_["layer"], probe.scores_["cv_loss"], marker="o", label="probe")
axes.plot(control.scores_["layer"], control.scores_["cv_loss"], marker="o", label="control")
axes.axhline(np.log(2), color="black", linewidth=0.8, linestyle=":", label="a coin")
axes.set(xlabel="layer", ylabel="log loss in cross-validation")
axes.legend();

# %% [markdown]
# These texts are easy, as made-up texts are: words such as "loved" stand in them. Figures that mean
# something are those of `saesteer probe sentiment` and of human-rated texts, on the page about probes.
# Here it is the direction that we are after.
#
# ## Read token by token
# The reading of a token is its residual stream's projection on the probe's direction.

# %%
vector = probe.vector_
text = "I loved the first half of the film, but the ending was dreadful."
_, cache = model.run_with_cache(text, names_filter=str(vector.site))
stream = next(iter(cache.values()))[0].float()
words = model.to_str_tokens(text)[1:]
readings = (stream @ vector.direction.float())[1:]
figure, axes = plt.subplots(figsize=(9, 3))
axes.bar(range(len(words)), readings, color=np.where(readings > 0, "tab:blue", "tab:red"))
axes.set_xticks(range(len(words)), words, rotation=60)
axes.axhline(0, color="black", linewidth=0.8)
axes.set_ylabel("reading");

# %% [markdown]
# ## Intervene
# With reading alpha, an edit writes x + (alpha' - alpha) v and leaves all that is orthogonal to v:
# `Flip` mirrors the reading, `Ablate` takes it away, `Set` fixes it, `Add` is steering. Flipped is the
# reading on several layers at once; the edit is worked out from the untouched model, so that flips do
# not undo each other.

# %%
def directions(fitted, among=(9, 12, 15, 18)):
    return [fitted.probes_.vector(layer) for layer in among]


def write(edits=()):
    if not edits:
        return list(ss.generate(model, prompts, chat=False, max_new_tokens=24).table["text"])
    with ss.intervene(model, edits, positions="all"):
        return write()


ends = ("really enjoyed it, because", "regret it, because")
prompts = [f"My review of the {thing}: I {end}" for thing in ("hotel", "film", "food", "phone") for end in ends]
plain, flipped = write(), write([ss.Flip(one, 1.5) for one in directions(probe)])
pd.DataFrame({"prompt": prompts, "plain": plain, "flipped": flipped}).head(4)

# %% [markdown]
# ## Ask somebody else
# The probe would find its own flip convincing. VADER, a lexicon, has seen neither probe nor model. The
# same edits along the control's directions, which were fitted to shuffled labels, show what meddling
# alone does.

# %%
vader = SentimentIntensityAnalyzer()


def mood(written):
    return np.array([vader.polarity_scores(one)["compound"] for one in written])


meddled = write([ss.Flip(one, 1.5) for one in directions(control)])
ablated = write([ss.Ablate(one) for one in directions(probe)])
side = np.where(["enjoyed" in prompt for prompt in prompts], 1, -1)
away = {
    "plain": side * mood(plain),
    "flip, shuffled labels": side * mood(meddled),
    "ablate": side * mood(ablated),
    "flip": side * mood(flipped),
}
pd.DataFrame({name: {"mood on the prompt's own side": values.mean()} for name, values in away.items()})

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.boxplot(list(away.values()), tick_labels=list(away))
axes.axhline(0, color="black", linewidth=0.8)
axes.set_ylabel("VADER, on the prompt's side");

# %% [markdown]
# Eight prompts make a picture, not a finding. `saesteer probe intervene RUN --random 5` scales random
# directions until they cost the same KL and gives the share that moved with its interval.
#
# ## Something to change
# - The layers in `directions`: one layer alone, all late ones. Where does flipping stop to work?
# - `ss.Flip(one, 3)`: further than the mirror. What does the text look like then?
# - `ss.Add(probe.vector_, [-0.3, 0.3])` in place of the flips, or `ss.generate(model, prompts,
#   probe.vector_, [-0.3, 0, 0.3])`: a probe's direction steers like any other vector.
# - Your own texts and labels; three classes work too.
