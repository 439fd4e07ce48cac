# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Probes and interventions
#
# A linear probe asks what the residual stream says of a text. An intervention asks whether the
# model uses it. The first without the second is a correlation, the second without somebody else
# to judge it is the probe grading its own work.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import saesteer as ss

# %% [markdown]
# ## A probe on some layers
# `sentiment` is a bundled configuration: short texts in three balanced classes, in which nothing
# but the reaction tells the class. One pass reads all layers. `ss.run` is what `saesteer probe
# sentiment` calls; the settings after it make it smaller than the command's own.

# %%
found = ss.run(
    "probe/sentiment",
    overrides=[
        "data.max_texts=800",
        "reading.layers=[0, 3, 6, 9, 11, 12, 13, 14, 15, 18, 21, 24, 27]",
    ],
)
layers = pd.read_csv(found.folder.path / "layers.csv")
layers[["layer", "macro_f1", "auroc", "control_auroc"]]

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
axes.plot(layers["layer"], layers["auroc"], marker="o", label="probe")
axes.plot(layers["layer"], layers["control_auroc"], marker="o", label="control")
axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":", label="a coin")
axes.set(xlabel="layer", ylabel="AUROC on held-out texts")
axes.legend()

# %% [markdown]
# The *control* is the same probe on shuffled labels. It has to stay at a coin's level; where it
# does not, texts leak from training to test.
#
# ## Read token by token
# The reading of a token is its residual stream's projection on the probe's direction. The first
# token is left out: models park a very long vector there.

# %%
model = ss.load_model("smollm2")
vector = found.probes.vector(14)
text = "I loved the first half of the film, but the ending was dreadful."
_, cache = model.run_with_cache(text, names_filter=str(vector.site))
stream = next(iter(cache.values()))[0].float()
words = model.to_str_tokens(text)[1:]
readings = (stream @ vector.direction.float())[1:]
figure, axes = plt.subplots(figsize=(9, 3))
axes.bar(range(len(words)), readings, color=np.where(readings > 0, "tab:blue", "tab:red"))
axes.set_xticks(range(len(words)), words, rotation=60)
axes.axhline(0, color="black", linewidth=0.8)
axes.set_ylabel("reading")

# %% [markdown]
# ## Intervene
# With reading alpha, an edit writes x + (alpha' - alpha) v and leaves all that is orthogonal to v
# alone: `Flip` mirrors the reading, `Ablate` takes it away, `Set` fixes it, `Add` is steering. On
# several layers the edit is worked out from the untouched model's reading, so that flips do not
# undo each other.

# %%
prompts = [
    "The hotel was fantastic and",
    "The film was terrible and",
    "I regret this trip, because",
]
directions = [found.probes.vector(layer) for layer in (11, 12, 13, 14)]


def write(*edits):
    if not edits:
        return list(ss.generate(model, prompts, chat=False, max_new_tokens=20).table["text"])
    with ss.intervene(model, edits, positions="all"):
        return write()


pd.DataFrame(
    {
        "prompt": prompts,
        "plain": write(),
        "flipped": write(*(ss.Flip(one) for one in directions)),
        "ablated": write(*(ss.Ablate(one) for one in directions)),
    }
)

# %% [markdown]
# ## Ask somebody else
# Three texts persuade nobody, and the probe would find its own flip convincing. So the command
# asks two others, a lexicon (VADER) and a classifier on sentence embeddings that learnt from
# texts no probe saw, whether each text moved away from its prompt's side. Random directions,
# scaled until they cost the same KL, say how many texts any push of that size moves.

# %% language="bash"
# saesteer probe intervene runs/sentiment-* --prompts sentiment_prompts --group score \
#     --max-new-tokens 16 --layers 11-14 --random 2 | tail -n 13

# %% [markdown]
# In the run shown here the answer is: not beyond doubt. The flip moves about as many texts as
# random directions at the same KL do, and every interval overlaps with theirs; what it lowers
# further is the mean of both measures, for which no interval is given. That a probe reads a mood
# nearly without error does not make its direction the one that the model writes by. The page
# about probes has settings that do better, chosen on other prompts: probes on many more texts,
# rated by people, and six layers.
#
# ## Something to change
# - `--layers 6-19`, `--direction means`, `--amount 1.5`: does the flip part from chance? Choose
#   on `--group tune`, and look at `--group score` once.
# - The layers in `directions`: one layer alone, all late ones.
# - `ss.Flip(one, 3)`: further than the mirror. What does the text look like then?
# - `ss.generate(model, prompts, vector, [-0.3, 0, 0.3], chat=False)`: a probe's direction steers
#   like any other vector.
# - Your own texts and labels, from a table: `ss.Probe(layers=[12, 14]).fit(model, texts, labels)`
#   gives `.scores_`, `.predict(...)` and `.vector_`; `saesteer probe my_texts.csv` does all of
#   the above.
