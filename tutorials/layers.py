# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Layers removed, tasks, and the agent
#
# What a layer is for shows when it is missing. This runs a model without some of its layers, on
# tasks that come with saesteer and on one of your own, and then lets the agent look for the layer
# that matters most and check its own claim.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import saesteer as ss

# %% [markdown]
# ## A task of your own
# A task is a JSON file of prompts with answers. Before each question stand a few of the other
# examples.

# %%
plurals = [
    ("cat", "cats"),
    ("child", "children"),
    ("dog", "dogs"),
    ("mouse", "mice"),
    ("book", "books"),
    ("man", "men"),
    ("tree", "trees"),
    ("foot", "feet"),
    ("house", "houses"),
    ("woman", "women"),
    ("car", "cars"),
    ("tooth", "teeth"),
]
task = {
    "name": "plurals",
    "description": "More than one of a thing.",
    "examples": [{"prompt": f"One {one}, two", "answer": many} for one, many in plurals],
}
Path("plurals.json").write_text(json.dumps(task, indent=1))

# %% language="bash"
# saesteer corrupt complete "The capital of France is" --program "skip 0" --program "skip 4" \
#     --program "keep 20"

# %% [markdown]
# ## Without each layer
# `depth` is a bundled configuration: keep the first k layers, and skip each one. All programs
# share one walk through the model.

# %%
found = ss.run(
    "depth",
    overrides=[
        "tasks.source=[capitals, agreement, plurals.json]",
        "tasks.max_questions=10",
        "completions=null",
    ],
)
scores = pd.read_csv(found.folder.path / "tables" / "scores.csv")
scores.head(3)

# %% [markdown]
# `loss_change` is what a program adds to the loss, in nats per answer token.

# %%
skips = scores[scores["program"].str.startswith("skip")].copy()
skips["layer"] = skips["program"].str.removeprefix("skip ").astype(int)
lost = skips.pivot(index="task", columns="layer", values="loss_change")
figure, axes = plt.subplots(figsize=(9, 2.4))
picture = axes.imshow(lost.clip(upper=4), cmap="Reds", vmin=0, aspect="auto")
axes.set_yticks(range(len(lost)), lost.index)
axes.set_xticks(range(0, 30, 2), range(0, 30, 2))
axes.set(xlabel="layer left out", title="What the answers lose (nats per token, 4 and more alike)")
figure.colorbar(picture)

# %% [markdown]
# One layer is indispensable for everything, most can go, and some serve one task and not another.
# That a task suffers without a layer does not say that the layer does the task: the layers above
# may only be unable to read what reaches them. So look at the other end too, at how few layers
# are enough.

# %%
keeps = scores[scores["program"].str.startswith("keep")].copy()
keeps["kept"] = keeps["program"].str.removeprefix("keep ").astype(int)
figure, axes = plt.subplots(figsize=(7, 3.5))
for task_name, rows in keeps.groupby("task"):
    axes.plot(rows["kept"], rows["accuracy"], marker="o", markersize=3, label=task_name)
axes.set(xlabel="layers kept, from the first", ylabel="accuracy on 10 questions")
axes.legend()

# %% [markdown]
# ## Let the agent look
# The agent plans experiments, runs them within a budget that the program keeps, and holds every
# claim against the runs that it names. Without a language model's endpoint it searches by
# halving: all layers on few questions, the worst of them again on more. What it may vary is said
# in a file; here the tasks are set for it, our own among them.

# %% language="bash"
# saesteer agent --goal "Which layer's removal costs most?" --budget 5 \
#     --set experiments.corrupt.tasks.source=[agreement,plurals.json] \
#     --set experiments.corrupt.tasks.max_questions=6

# %% [markdown]
# *Supported* means that the claim's number stands in the experiment that it names. It does not
# mean that the experiment answers the question: that is for you to judge. Every experiment is a
# run of its own.

# %% language="bash"
# saesteer runs filter kind=corrupt --sort seconds

# %% [markdown]
# ## Something to change
# - The task: twelve prompts and answers of your own in `plurals`. Which layer does it need that
#   `agreement` does not?
# - `families: [{kind: zero_mlp}]` in a file of settings (`saesteer configs depth` prints one to
#   start from): is it the layer's MLP or its attention?
# - `saesteer corrupt linear`: how much of a layer is a linear map?
# - `--set search.parameters.programs="skip {layer}, skip 4"`: which layer costs most once layer 4
#   is gone already?
# - A language model as the planner: `saesteer agent configs/agent/planned.yaml --base-url URL
#   --model NAME`.
