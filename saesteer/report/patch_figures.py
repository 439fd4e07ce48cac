"""The figures of a patching run, from its results and tables; each is drawn when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.patching.result import PatchResult
from saesteer.patching.summary import (
    Agreement,
    Effects,
    Scale,
    effects,
    mean_interval,
    sample_means,
)
from saesteer.report import plots
from saesteer.report.layout import Figure
from saesteer.report.plots import Series

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure as Drawing

MOST_ROWS = 24
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


def named(result: PatchResult) -> str:
    """Return a result's component as the beginning of a title."""
    name = NAMES.get(result.component, result.component)
    return f"{name[:1].upper()}{name[1:]}"


def title_of(result: PatchResult) -> str:
    """Return a result's title."""
    method = {"integrated_gradients": "integrated gradients"}.get(
        result.method, f"{result.method} patching"
    )
    return f"{named(result)}: {method}, {result.mode}"


def effect_map(
    name: str,
    result: PatchResult,
    scale: Scale,
    *,
    title: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Return a map of effects over all pairs, layers upwards.

    The result's axes are layer and position, place or head, or layer, head and position; of three
    the first two are folded into the rows: those of the strongest effects stand for all.
    """
    title = title or title_of(result)

    def draw() -> Drawing:
        found = effects(result, scale, resamples=resamples, seed=seed)
        across = result.dims[-1]
        rows, row_title, (value, low, high, n) = _rows(result, found)
        there = np.any(n > 0, axis=0)
        keep = there if there.any() else ~there
        labels = column_labels(result, across)
        return plots.heatmap(
            value[:, keep],
            rows,
            [label for label, kept in zip(labels, keep, strict=True) if kept],
            title=title,
            row_title=row_title,
            column_title=across,
            unit=unit_of(result, scale),
            low=low[:, keep],
            high=high[:, keep],
            n=n[:, keep],
        )

    return Figure(name, title, draw)


def _rows(result: PatchResult, found: Effects) -> tuple[list[str], str, Sequence[np.ndarray]]:
    first, *more = result.dims[:-1]
    if not more:
        return [str(name) for name in result.coords[first]], first, found
    names = [f"{a}.{b}" for a in result.coords[first] for b in result.coords[more[0]]]
    flat = [part.reshape(len(names), -1) for part in found]
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
        word = shown_token(next((word for word in words if word != ""), ""))
        labels.append(f"{column}: {word}{'…' if len(set(words)) > 1 else ''}")
    return labels


def shown_token(token: str) -> str:
    """Return a token with its white space visible."""
    return token.replace(" ", "\N{OPEN BOX}").replace(
        "\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    )


def one_prompt(name: str, result: PatchResult, pair: int, scale: Scale) -> Figure:
    """Return one pair's own effects, its own tokens on the axis."""
    parts = ("values", "clean", "corrupted", "pairs", "tokens")
    single = replace(result, **{part: getattr(result, part)[pair : pair + 1] for part in parts})
    title = f"{title_of(result)}: {result.pairs[pair]}"
    return effect_map(name, single, scale, title=title, resamples=0)


def profile(name: str, placed: PatchResult, scale: Scale) -> Figure:
    """Return a result by layer and place as one line over layers for each place."""

    def draw() -> Drawing:
        value, low, high, _ = (part.T.tolist() for part in effects(placed, scale))
        places = enumerate(map(str, placed.coords["place"]))
        return plots.lines(
            [Series(place, value[i], (), low[i], high[i]) for i, place in places],
            [str(layer) for layer in placed.coords["layer"]],
            title=title_of(placed),
            x_title="layer",
            y_title=unit_of(placed, scale),
        )

    return Figure(name, title_of(placed), draw)


def effect_bars(
    name: str,
    result: PatchResult,
    scale: Scale,
    *,
    title: str = "",
    words: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Figure:
    """Return a result of one axis as bars; with words of features, the strongest first."""
    title = title or title_of(result)

    def draw() -> Drawing:
        found, dim = effects(result, scale, seed=seed), result.dims[0]
        order = np.arange(len(found.value))
        if words is not None:
            order = np.argsort(-np.nan_to_num(np.abs(found.value)), kind="stable")
        labels = [str(result.coords[dim][place]) for place in order]
        value, low, high, _ = (part[order].tolist() for part in found)
        return plots.bars(
            [Series(dim, value, (), low, high)],
            [f"{label} {(words or {}).get(label) or ''}".strip() for label in labels],
            title=title,
            x_title=dim,
            y_title=unit_of(result, scale),
        )

    return Figure(name, title, draw)


def agreement_scatter(name: str, found: Sequence[Agreement], result: PatchResult) -> Figure:
    """Return approximations, in the metric's own units, against activation patching of cells."""
    title = f"{named(result)}, {result.mode}"

    def cloud(one: Agreement) -> Series:
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
        method = f"{one.method.replace('_', ' ')}{said}"
        return Series(method, one.approximate.tolist(), one.actual.tolist(), labels=labels)

    def draw() -> Drawing:
        unit = unit_of(result, "change")
        return plots.scatter(
            [cloud(one) for one in found],
            title=title,
            x_title=f"activation patching, {unit}",
            y_title=f"attribution, {unit}",
            diagonal=True,
        )

    return Figure(name, title, draw)


def lens_figures(table: pd.DataFrame) -> list[Figure]:
    """Return the lens at the answer's position, in logits and by place, and at every token."""
    title = "Logit lens: logit difference at the answer position"
    by_rank = "Logit lens: place of the right answer among all tokens (median and quartiles)"
    found = [
        Figure("lens", title, partial(_lens, table, title, "logit_difference")),
        Figure("lens-rank", by_rank, partial(_lens, table, by_rank, "rank")),
    ]
    first: Any = table[table["pair"] == table["pair"].iloc[0]]
    if first["position"].nunique() > 1:
        found.append(Figure("lens-tokens", "Logit lens at every token", partial(_lens_map, first)))
    return found


def _lens(table: pd.DataFrame, title: str, value: str) -> Drawing:
    last: Any = table[table["position"] == table["position"].max()]
    points = _points(last)
    wide = last.pivot(index="pair", columns=["layer", "component"], values=value)[list(points)]
    if value == "rank":
        low, middle, high = np.quantile(1 + wide.to_numpy(), [0.25, 0.5, 0.75], axis=0)
        series, y_title = "median over prompts", "place, 1 is the most likely"
    else:
        middle, low, high = _mean(wide)
        series, y_title = "mean over prompts", LOGITS
    return plots.lines(
        [Series(series, middle.tolist(), (), low.tolist(), high.tolist())],
        list(points.values()),
        title=title,
        x_title="sub-layer: attention (mid), MLP (post)",
        y_title=y_title,
        log_y=value == "rank",
    )


def _lens_map(prompt: Any) -> Drawing:
    """Draw the lens of one prompt at every token."""
    points, words = _points(prompt), prompt.drop_duplicates("position").sort_values("position")
    wide = prompt.pivot(index=["layer", "component"], columns="position", values="logit_difference")
    return plots.heatmap(
        wide.loc[list(points), words["position"].tolist()].to_numpy(),
        list(points.values()),
        [f"{p}: {shown_token(t)}" for p, t in zip(words["position"], words["token"], strict=True)],
        title=f"Logit lens at every token: {prompt['pair'].iloc[0]}",
        row_title="sub-layer",
        column_title="position",
        unit=LOGITS,
    )


def _points(table: Any) -> dict[tuple[int, str], str]:
    """Return the sub-layers of a lens by layer and component, with their names."""
    pairs = zip(table["layer"], table["component"], strict=True)
    return {(layer, component): _point(layer, component) for layer, component in pairs}


def _point(layer: int, component: str) -> str:
    if component == "resid_pre":
        return "embedding" if layer == 0 else f"{layer} pre"
    return f"{layer} {component.removeprefix('resid_')}"


def direct_figures(table: pd.DataFrame) -> list[Figure]:
    """Return what every layer and every head writes into the logit difference."""
    made = (("layer", _direct_layers), ("head", _direct_heads))
    titles = {by: f"Direct logit attribution by {by}" for by, _ in made}
    return [
        Figure(f"direct-{by}s", titles[by], partial(draw, table, titles[by])) for by, draw in made
    ]


def _direct_layers(table: pd.DataFrame, title: str) -> Drawing:
    mean: Any = table.groupby(["component", "layer"])["share"].mean()
    layers = sorted(table.loc[table["component"] == "mlp_out", "layer"].unique())
    bias = float(mean.get(("bias", -1), 0.0))
    series = [
        Series("attention", (0.0, *(float(mean["attn_out", layer]) for layer in layers), 0.0)),
        Series("MLP", (0.0, *(float(mean["mlp_out", layer]) for layer in layers), 0.0)),
        Series("embedding and bias", (float(mean["embed", -1]), *(0.0 for _ in layers), bias)),
    ]
    names = ["embedding", *map(str, layers), "bias"]
    return plots.bars(series, names, title=title, x_title="layer", y_title=LOGITS)


def _direct_heads(table: pd.DataFrame, title: str) -> Drawing:
    heads: Any = table[table["component"] == "head"]
    layers, numbers = (sorted(heads[name].unique()) for name in ("layer", "head"))
    wide = heads.pivot(index="pair", columns=["layer", "head"], values="share")
    shares = wide[[(layer, head) for layer in layers for head in numbers]]
    shape = (len(layers), len(numbers))
    mean, low, high = (part.reshape(shape) for part in _mean(shares))
    n = np.full(shape, len(shares))
    return _head_map(mean, layers, numbers, title=title, unit=LOGITS, low=low, high=high, n=n)


def _head_map(
    values: np.ndarray, layers: Iterable[int], heads: Iterable[int], **more: Any
) -> Drawing:
    names = [[str(number) for number in numbers] for numbers in (layers, heads)]
    return plots.heatmap(values, *names, row_title="layer", column_title="head", **more)


def _mean(wide: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over pairs, which a table has as rows, with its interval."""
    return mean_interval(sample_means(wide.to_numpy(), [str(name) for name in wide.index]))


def circuit_map(record: Mapping[str, Any], shape: tuple[int, int], metric: str) -> Figure:
    """Return the heads of a circuit (its `circuit.json`) by what each is needed for.

    `shape` are the model's layers and heads.
    """
    title = f"The circuit: {record['size']} heads by what each is needed for"
    values = np.full(shape, np.nan)
    for one in record["minimality"]:
        at = one["layer"], one["number"]
        # A head at several positions counts by the one where it is needed most.
        values[at] = np.fmax(values[at], one["change"])
    unit = f"change of the {metric.replace('_', ' ')} without it"
    n = np.full(shape, record["pairs"])
    draw = partial(_head_map, values, *map(range, shape), title=title, unit=unit, n=n)
    return Figure("circuit", title, draw)
