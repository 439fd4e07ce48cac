"""The figures of a patching run, from its results and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.patching.result import PatchResult
from saesteer.patching.summary import Effects, Scale, effects, sample_means
from saesteer.report import plots
from saesteer.report.plots import Series

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from saesteer.patching.agreement import Agreement

MOST_ROWS = 24
RESAMPLES = 2000
LOGITS = "logit difference, right less wrong"
NAMES = {
    "resid_pre": "residual stream before the block",
    "resid_mid": "residual stream before the MLP",
    "resid_post": "residual stream after the block",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "z": "head outputs",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "pattern": "attention patterns",
    "sae": "SAE features",
}


def unit_of(result: PatchResult, scale: Scale) -> str:
    """Return in words what an effect's numbers are."""
    metric = result.metric.replace("_", " ")
    if scale == "change":
        return f"change of the {metric}"
    if result.mode == "denoising":
        return "share restored: 0 corrupted, 1 clean"
    return f"share of the {metric} lost: 0 unharmed, \N{MINUS SIGN}1 corrupted"


def title_of(result: PatchResult) -> str:
    """Return a result's title."""
    method = result.method.replace("_", " ")
    name = NAMES.get(result.component, result.component)
    return f"{name[:1].upper()}{name[1:]}: {method} patching, {result.mode}".replace(
        "integrated gradients patching", "integrated gradients"
    )


def effect_map(
    result: PatchResult,
    scale: Scale,
    *,
    title: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Draw a result's effects over all pairs, layers upwards.

    A third axis is folded into the rows: the heads of the strongest effects stand for all.

    Args:
        result: Its axes are layer and position, place or head, or layer, head and position.
        scale: See `effects`.
        title: What it shows, if not said by the result.
        resamples: Bootstrap resamples of the intervals on hover.
        seed: Seeds them.
    """
    found = effects(result, scale, resamples=resamples, seed=seed)
    across = result.dims[-1]
    rows, row_title, (value, low, high, n) = _rows(result, found)
    there = np.any(n > 0, axis=0)
    keep = there if there.any() else ~there
    columns = [name for name, kept in zip(column_labels(result, across), keep, strict=True) if kept]
    return plots.heatmap(
        value[:, keep],
        rows,
        columns,
        title=title_of(result) if title is None else title,
        row_title=row_title,
        column_title=across,
        unit=unit_of(result, scale),
        low=low[:, keep],
        high=high[:, keep],
        n=n[:, keep],
    )


def _rows(result: PatchResult, found: Effects) -> tuple[list[str], str, list[np.ndarray]]:
    parts = [found.value, found.low, found.high, found.n]
    first, *more = result.dims[:-1]
    if not more:
        return [str(name) for name in result.coords[first]], first, parts
    names = [f"{a}.{b}" for a in result.coords[first] for b in result.coords[more[0]]]
    flat = [part.reshape(len(names), -1) for part in parts]
    strongest = np.argsort(-np.nan_to_num(np.abs(flat[0])).max(axis=1), kind="stable")[:MOST_ROWS]
    order = np.sort(strongest)
    title = f"{first}.{more[0]}"
    if len(names) > len(order):
        title += f", the {MOST_ROWS} strongest"
    return [names[i] for i in order], title, [part[order] for part in flat]


def column_labels(result: PatchResult, dim: str) -> list[str]:
    """Return an axis' labels: tokens with their column where it holds positions.

    Prompts that differ at a column share a label that says so: the first one's token and an
    ellipsis.
    """
    coords = result.coords[dim]
    if dim != "position" or not result.tokens:
        return [str(name) for name in coords]
    labels = []
    for place, column in enumerate(coords):
        words = [row[place] for row in result.tokens]
        known = [word for word in words if word != ""]
        word = shown_token(known[0]) if known else ""
        labels.append(f"{column}: {word}{'…' if len(set(words)) > 1 else ''}")
    return labels


def shown_token(token: str) -> str:
    """Return a token with its white space visible."""
    return token.replace(" ", "\N{OPEN BOX}").replace(
        "\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    )


def one_prompt(result: PatchResult, pair: int, scale: Scale) -> Figure:
    """Draw one pair's own effects, its own tokens on the axis."""
    parts = ("values", "clean", "corrupted", "pairs", "tokens")
    single = replace(result, **{part: getattr(result, part)[pair : pair + 1] for part in parts})
    return effect_map(single, scale, title=prompt_title(result, pair), resamples=0)


def prompt_title(result: PatchResult, pair: int) -> str:
    """Return the title of one pair's own effects."""
    return f"{title_of(result)}: {result.pairs[pair]}"


def profile(placed: PatchResult, scale: Scale, *, seed: int = 0) -> Figure:
    """Draw a result by layer and place as one line over layers for each place."""
    found = effects(placed, scale, seed=seed)
    series = [
        Series(
            str(name),
            found.value[:, i].tolist(),
            (),
            found.low[:, i].tolist(),
            found.high[:, i].tolist(),
        )
        for i, name in enumerate(placed.coords["place"])
    ]
    return plots.lines(
        series,
        [str(layer) for layer in placed.coords["layer"]],
        title=title_of(placed),
        x_title="layer",
        y_title=unit_of(placed, scale),
    )


def effect_bars(
    result: PatchResult,
    scale: Scale,
    *,
    title: str | None = None,
    words: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw a result of one axis as bars; with words of features, the strongest first.

    Args:
        result: By layer, feature or cluster.
        scale: See `effects`.
        title: What it shows, if not said by the result.
        words: What each feature stands for; None keeps the order of the axis.
        seed: Seeds the intervals' resamples.
    """
    found, dim = effects(result, scale, seed=seed), result.dims[0]
    order = np.arange(len(found.value))
    if words is not None:
        order = np.argsort(-np.nan_to_num(np.abs(found.value)), kind="stable")
    names = [str(result.coords[dim][place]) for place in order]
    parts = (part[order].tolist() for part in (found.value, found.low, found.high))
    value, low, high = parts
    return plots.bars(
        [Series(dim, value, (), low, high)],
        [f"{name} {(words or {}).get(name) or ''}".strip() for name in names],
        title=title_of(result) if title is None else title,
        x_title=dim,
        y_title=unit_of(result, scale),
    )


def agreement_scatter(found: Sequence[Agreement], result: PatchResult) -> Figure:
    """Draw approximations against activation patching, cell by cell.

    Args:
        found: Their comparisons, in the metric's own units.
        result: The activation patching, for titles and tokens.
    """
    clouds = []
    for one in found:
        names = {
            dim: dict(zip(result.coords[dim], column_labels(result, dim), strict=True))
            for dim in one.dims
        }
        labels = [
            ", ".join(f"{dim} {names[dim][at]}" for dim, at in zip(one.dims, cell, strict=True))
            for cell in one.labels
        ]
        rank = one.rank_correlation
        said = "" if np.isnan(rank) else f", rank correlation {rank:.2f}"
        name = f"{one.method.replace('_', ' ')}{said}"
        x, y = one.actual.tolist(), one.approximate.tolist()
        clouds.append(Series(name, y, x, labels=labels))
    unit = unit_of(result, "change")
    return plots.scatter(
        clouds,
        title=agreement_title(result),
        x_title=f"activation patching, {unit}",
        y_title=f"attribution, {unit}",
        diagonal=True,
    )


def agreement_title(result: PatchResult) -> str:
    """Return the title of what is held against a result."""
    name = NAMES.get(result.component, result.component)
    return f"{name[:1].upper()}{name[1:]}, {result.mode}"


def strongest_cells(
    result: PatchResult, scale: Scale, most: int, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, object]]:
    """Return the cells of the largest |effect|, as records with interval."""
    found = effects(result, scale, resamples=resamples, seed=seed)
    order = np.argsort(-np.nan_to_num(np.abs(found.value.ravel())), kind="stable")[:most]
    rows: list[dict[str, object]] = []
    for place in order.tolist():
        at = np.unravel_index(place, found.value.shape)
        labels = {d: result.coords[d][int(i)] for d, i in zip(result.dims, at, strict=True)}
        ends = {name: float(getattr(found, name).ravel()[place]) for name in ("low", "high")}
        rows.append({**labels, "effect": float(found.value.ravel()[place]), **ends})
    return rows


LENS = {
    "lens": "Logit lens: logit difference at the answer position",
    "lens-rank": "Logit lens: place of the right answer among all tokens (median and quartiles)",
}


def lens_figure(table: pd.DataFrame, name: str) -> Figure:
    """Draw the lens at the answer's position: "lens" in logits, "lens-rank" by place."""
    last: Any = table[table["position"] == table["position"].max()]
    points = list(dict.fromkeys(zip(last["layer"], last["component"], strict=True)))
    value = "logit_difference" if name == "lens" else "rank"
    wide = last.pivot(index="pair", columns=["layer", "component"], values=value)[points]
    if name == "lens":
        mean, low, high = _mean(wide)
        series, y_title = (
            Series("mean over prompts", mean.tolist(), (), low.tolist(), high.tolist()),
            LOGITS,
        )
    else:
        low, middle, high = np.quantile(1 + wide.to_numpy(), [0.25, 0.5, 0.75], axis=0).tolist()
        series = Series("median over prompts", middle, (), low, high)
        y_title = "place, 1 is the most likely"
    return plots.lines(
        [series],
        [_point(layer, component) for layer, component in points],
        title=LENS[name],
        x_title="sub-layer: attention (mid), MLP (post)",
        y_title=y_title,
        log_y=name == "lens-rank",
    )


def _point(layer: int, component: str) -> str:
    if component == "resid_pre":
        return "embedding" if layer == 0 else f"{layer} pre"
    return f"{layer} {component.removeprefix('resid_')}"


def lens_map(table: pd.DataFrame) -> Figure:
    """Draw the lens of the first prompt at every token."""
    first: Any = table[table["pair"] == table["pair"].iloc[0]]
    points = list(dict.fromkeys(zip(first["layer"], first["component"], strict=True)))
    words = first.drop_duplicates("position").sort_values("position")
    wide = first.pivot(index=["layer", "component"], columns="position", values="logit_difference")
    return plots.heatmap(
        wide.loc[points, words["position"].tolist()].to_numpy(),
        [_point(layer, component) for layer, component in points],
        [f"{p}: {shown_token(t)}" for p, t in zip(words["position"], words["token"], strict=True)],
        title=f"Logit lens at every token: {first['pair'].iloc[0]}",
        row_title="sub-layer",
        column_title="position",
        unit=LOGITS,
    )


def direct_layers(table: pd.DataFrame) -> Figure:
    """Draw what embedding, attention and MLPs write into the logit difference, by layer."""
    mean: Any = table.groupby(["component", "layer"])["share"].mean()
    layers = sorted(table.loc[table["component"] == "mlp_out", "layer"].unique())
    bias = float(mean.get(("bias", -1), 0.0))
    series = [
        Series("attention", (0.0, *(float(mean["attn_out", layer]) for layer in layers), 0.0)),
        Series("MLP", (0.0, *(float(mean["mlp_out", layer]) for layer in layers), 0.0)),
        Series("embedding and bias", (float(mean["embed", -1]), *(0.0 for _ in layers), bias)),
    ]
    return plots.bars(
        series,
        ["embedding", *map(str, layers), "bias"],
        title="Direct logit attribution by layer",
        x_title="layer",
        y_title=LOGITS,
    )


def direct_heads(table: pd.DataFrame) -> Figure:
    """Draw what every head writes into the logit difference."""
    heads: Any = table[table["component"] == "head"]
    layers, numbers = (sorted(heads[name].unique()) for name in ("layer", "head"))
    wide = heads.pivot(index="pair", columns=["layer", "head"], values="share")
    shares = wide[[(layer, head) for layer in layers for head in numbers]]
    shape = (len(layers), len(numbers))
    mean, low, high = (part.reshape(shape) for part in _mean(shares))
    return plots.heatmap(
        mean,
        [str(layer) for layer in layers],
        [str(number) for number in numbers],
        title="Direct logit attribution by head",
        row_title="layer",
        column_title="head",
        unit=LOGITS,
        low=low,
        high=high,
        n=np.full(shape, len(shares)),
    )


def _mean(wide: Any) -> tuple[Float[np.ndarray, " cell"], ...]:
    """Return the mean over pairs, which a table has as rows, with its interval."""
    values = sample_means(wide.to_numpy(), [str(name) for name in wide.index])
    pairs = len(values)
    if pairs < 2:
        nothing = np.full(values.shape[1], np.nan)
        return values.mean(axis=0), nothing, nothing
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES) @ values / pairs
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return values.mean(axis=0), low, high


def circuit_title(record: Mapping[str, Any]) -> str:
    """Return the title of a circuit's map."""
    return f"The circuit: {record['size']} heads by what each is needed for"


def circuit_map(record: Mapping[str, Any], shape: tuple[int, int], metric: str) -> Figure:
    """Draw a circuit's heads by what each is needed for.

    Args:
        record: Its `circuit.json`.
        shape: The model's layers and heads.
        metric: What is measured.
    """
    values = np.full(shape, np.nan)
    for one in record["minimality"]:
        at = one["layer"], one["number"]
        # A head at several positions counts by the one where it is needed most.
        values[at] = np.fmax(values[at], one["change"])
    layers, heads = shape
    return plots.heatmap(
        values,
        [str(layer) for layer in range(layers)],
        [str(head) for head in range(heads)],
        title=circuit_title(record),
        row_title="layer",
        column_title="head",
        unit=f"change of the {metric.replace('_', ' ')} without it",
        n=np.full(shape, record["pairs"]),
    )
