# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Attribution and activation patching on prompts of unequal length
#
# Patching compares two runs position by position. Prompts of your own rarely have equal lengths:
# "France" is one token and "the United Kingdom" three. This is what then stands for what, and how
# far a cheap estimate can be trusted.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import saesteer as ss

# %% [markdown]
# ## A file of your own
# A record has a clean and a corrupted prompt, each with its answer of one token. Here is a small
# file; put the path of yours in place of `None`.

# %%
MINE = os.environ.get("PROMPT_PAIRS", None)

places = [
    ("France", "Paris"),
    ("the United Kingdom", "London"),
    ("Germany", "Berlin"),
    ("the Czech Republic", "Prague"),
    ("Japan", "Tokyo"),
    ("the Kingdom of Sweden", "Stockholm"),
    ("Russia", "Moscow"),
    ("South Korea", "Seoul"),
    ("Spain", "Madrid"),
    ("the Republic of Ireland", "Dublin"),
]
sides = [{"question": f"The capital city of {a} is", "answer": b} for a, b in places]
records = [{"clean": c, "corrupted": d} for c, d in zip(sides[::2], sides[1::2], strict=True)]
Path("capitals_mine.json").write_text(json.dumps(records, indent=1))
source = MINE or "capitals_mine.json"
pairs = ss.load_prompt_pairs(source)
pd.DataFrame([{"clean": p.clean, "corrupted": p.corrupted} for p in pairs])

# %% [markdown]
# ## Does the model solve it?
# If it does not, nothing below says how it would. The logit difference is right answer less wrong
# answer: above zero on clean prompts, below on corrupted ones.

# %%
model = ss.load_model("smollm2", dtype="float32")
layers = range(0, 30, 6)
exact = ss.patch(model, pairs, "resid_pre", layers=layers)
pd.DataFrame({"clean": exact.clean, "corrupted": exact.corrupted}, index=list(exact.pairs))

# %% [markdown]
# ## What stands for what
# The equal beginnings of both prompts stand for each other, and so do their equal ends, counted
# from the end. What lies between does where it is equally long; where it is not, those tokens
# have no counterpart and are left alone. Cells without a counterpart are in no result: this is
# one pair.


# %%
def draw(found, pair, title):
    shares = found.normalised()[pair]
    there = ~np.isnan(shares).all(axis=0)
    words = [word for word, kept in zip(found.tokens[pair], there, strict=True) if kept]
    figure, axes = plt.subplots(figsize=(7, 4))
    picture = axes.imshow(shares[:, there], cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(words)), words, rotation=60)
    axes.set_yticks(range(len(found.coords["layer"])), found.coords["layer"])
    axes.set(ylabel="layer", title=title)
    figure.colorbar(picture, label="share restored")


print("clean:    ", pairs[0].clean)
print("corrupted:", pairs[0].corrupted)
print("tokens of the patched run:", *exact.tokens[0])
draw(exact, 0, "Activation patching: one run for every cell")

# %% [markdown]
# The words that differ have no column, so the lower layers look empty: there, the answer hangs on
# tokens that nothing can be copied to. It shows once it has moved to the words behind them.
#
# ## The cheap estimate
# Attribution patching estimates every cell from one backward pass: what an activation differs by,
# times the gradient in the run that is patched. Integrated gradients average the gradient over
# points on a line between the two runs, and there are two such lines. The default, `inputs`,
# moves the model's input; `activations` moves the patched activation itself, layer by layer, and
# costs more.

# %%
estimates = {
    "attribution": ss.patch(model, pairs, "resid_pre", method="attribution", layers=layers),
    "inputs": ss.patch(
        model, pairs, "resid_pre", method="integrated_gradients", line="inputs", layers=layers
    ),
    "activations": ss.patch(
        model,
        pairs,
        "resid_pre",
        method="integrated_gradients",
        line="activations",
        steps=3,
        layers=layers,
    ),
}
apart = np.nanmax(np.abs(estimates["inputs"].change - estimates["attribution"].change))
print(
    f"integrated gradients along the inputs against attribution: {apart:.4f} logits apart at most"
)

# %% [markdown]
# They are the same numbers, and that is no accident. The words that differ have no counterpart,
# so they stay as they are; all other words are equal in both prompts, so the input has nowhere to
# move. On prompts like these, integrated gradients along the inputs are attribution under another
# name. A second estimate that agrees with the first says something only if it could have
# disagreed.
#
# ## How far they can be trusted
# On the dotted line the estimate is exact.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
known = ~np.isnan(exact.change)
for one, name in zip(axes, ("attribution", "activations"), strict=True):
    x, y = exact.change[known], estimates[name].change[known]
    one.scatter(x, y, s=12, alpha=0.6)
    one.axline((0, 0), slope=1, linestyle=":", color="black")
    one.set(title=f"{name}: off by {np.abs(y - x).max():.2f} at most", xlabel="patched (logits)")
axes[0].set_ylabel("estimated (logits)")

# %% [markdown]
# A correlation would hide this: most cells do nothing and are estimated so. Look at the cells
# that matter, at the upper right.
#
# ## Sub-layers, over all pairs
# Summed over positions an estimate says which layers do the work, whatever the lengths.

# %%
figure, axes = plt.subplots(figsize=(7, 3.5))
for component in ("attn_out", "mlp_out"):
    found = ss.patch(model, pairs, component, method="attribution")
    by_layer = np.nansum(found.change, axis=2).mean(axis=0)
    axes.plot(found.coords["layer"], by_layer, marker="o", markersize=3, label=component)
axes.axhline(0, color="black", linewidth=0.8)
axes.set(xlabel="layer", ylabel="effect (logits, estimated)")
axes.legend()

# %% [markdown]
# On the command line all of it is one line, with intervals over pairs, heads and a page to read:
# `saesteer patch capitals_mine.json --suggest-site`.
#
# ## Something to change
# - `MINE`: a file of your own. Look at the logit differences first; on short-term against
#   long-term goals, for one, SmolLM2 always says the same answer, and then there is nothing to
#   explain.
# - An `alignment` in a record, `[[clean position, corrupted position], ...]`: let "Kingdom" stand
#   for "France". What appears in the lower layers, and do the two lines still agree?
# - `mode="noising"`: what is necessary, and not what is sufficient.
# - `ss.patch(model, pairs, "z", method="attribution")`: which heads would you patch for sure?
