# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # Steer a persona with features, and check that it worked
#
# Pairs of statements go in, a vector of named SAE features comes out. Then the question that most
# demonstrations leave out: does it do more than any push of the same strength would?

# %%
import matplotlib.pyplot as plt

import saesteer as ss

# %% [markdown]
# ## Pairs
# A pair is two texts that differ in the trait. These come with saesteer;
# `ss.load_pairs("mine.csv")` reads your own, from a table with the columns `positive` and
# `negative`. The split keeps statements that are worded nearly alike on one side of the line, so
# that what is tested is new.

# %%
pairs = ss.load_pairs("agreeableness", max_pairs=120)
train, test = pairs.split(test=0.4, seed=0)
print(len(train), "pairs to fit on,", len(test), "to test on")
train.table[["positive", "negative"]].head(4)

# %% [markdown]
# ## A vector made of features
# The SAE turns the residual stream at its site into features that fire on few texts.
# `ClusteredSAE` picks those that fire on one side more than on the other, keeps the clusters that
# tell the sides apart on the training pairs, and fits weights so that their sum comes near the
# difference between the sides. It takes seconds; `AttributedSAE`, which `saesteer steer` uses, is
# fitted to what moves the model's words, and takes minutes.

# %%
model, sae = ss.load_model("smollm2"), ss.load_sae("smollm2")
method = ss.ClusteredSAE()
vector = method.fit(model, train, sae=sae).vector_
vector.features[["index", "weight", "cluster", "label"]].head(8)

# %%
strongest = vector.features.head(16).iloc[::-1]
colours = ["tab:blue" if weight > 0 else "tab:red" for weight in strongest["weight"]]
figure, axes = plt.subplots(figsize=(8, 5))
axes.barh([text[:60] for text in strongest["label"]], strongest["weight"], color=colours)
axes.axvline(0, color="black", linewidth=0.8)
axes.set_xlabel("weight in the vector")
axes.set_title("The 16 strongest of its features")

# %% [markdown]
# A label is a guess made from the places where a feature fires. Look at the places themselves
# before you believe it:

# %%
first = sae.feature(int(vector.features["index"][0]))
for context in first.contexts:
    print(f"{context.activation:5.1f}  {context.text}")

# %% [markdown]
# ## Read what it does
# Strength is in units of the mean residual norm at the site; 0 is the model as it is. All rows
# are one batch, so the three columns differ by the steering alone.

# %%
questions = ["How was your day?", "A colleague made a mistake. What do you say to them?"]
written = ss.generate(model, questions, vector, strength=[-0.3, 0, 0.3], max_new_tokens=40)
written.table[["prompt", "strength", "text"]]

# %% [markdown]
# Three answers persuade nobody. A small model's text shifts in tone whatever one adds to it, and
# an eye that knows what it looks for finds it.
#
# ## Measure it
# The *margin* of a held-out pair is how much likelier its positive statement is than its negative
# one, in nats per token, when the model is to say it. If the vector is the persona's, the margin
# rises with strength and falls the other way. What it costs is the KL divergence on neutral
# answers.

# %%
means = ss.DifferenceInMeans().fit(model, train, site=sae.site).vector_
chance = [ss.RandomDirection(draw=n).fit(model, train, site=sae.site).vector_ for n in range(2)]
meter = ss.PropensityMeter(model, test, request="What would you say?")
strengths = [-0.4, -0.2, 0, 0.2, 0.4]
figure, axes = plt.subplots(figsize=(7, 4))
for one in (vector, means, chance[0]):
    margins = [meter.margins(one, strength=s).mean() for s in strengths]
    axes.plot(strengths, margins, marker="o", label=one.method)
axes.set(xlabel="strength (residual norms)", ylabel="mean margin (nats per token)")
axes.set_title(f"{len(test)} held-out pairs")
axes.legend()

# %% [markdown]
# ## At equal cost
# Vectors have different lengths and disturb a model differently, so equal strength is no fair
# comparison. `evaluate` finds for each vector the strengths that cost the same KL either way, and
# gives half the difference of the margins, E, with a 95% interval over the pairs.

# %%
table = ss.evaluate(model, test, [vector, means, *chance], kl_target=0.3)
table.round(3)

# %%
figure, axes = plt.subplots(figsize=(7, 2.6))
low, high = table["effect"] - table["low"], table["high"] - table["effect"]
axes.errorbar(table["effect"], table.index, xerr=[low, high], fmt="o", capsize=3)
axes.axvline(0, color="black", linewidth=0.8)
axes.set_yticks(table.index, table["method"])
axes.invert_yaxis()
axes.set_xlabel("E at 0.3 nats of KL per token")

# %% [markdown]
# Read it so: the vector worked if its interval lies clear of zero *and* of what random directions
# do at the same KL. Two draws show the idea; for a p-value take twenty, as `saesteer steer
# agreeableness evaluation.random_directions=20` does. The interval is over the pairs of this one
# persona and says nothing of others. A dense difference in means may well do as much or more:
# what features add is that you can read what the vector is made of, and change it.
#
# ## Keep it

# %%
vector.save("kind.safetensors")

# %% language="bash"
# saesteer vector show kind.safetensors | head -n 12

# %% [markdown]
# ## Something to change
# - Another persona: `"optimism"`, `"risk-taking"`, or a table of your own in `load_pairs`.
# - `ss.AttributedSAE(n_features=32)` in place of `ClusteredSAE`: minutes instead of seconds. Does
#   E grow?
# - `ss.ClusteredSAE(selection={"n_features": 8})`: how few features still do something?
# - `kl_target=0.1`: does the order of the methods hold when the push is weaker?
# - `saesteer app --vector kind.safetensors` opens a page to move the strength by hand.
