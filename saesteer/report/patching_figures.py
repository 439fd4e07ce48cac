"""The data of patching figures, apart from their drawing: heatmaps, lines, bars, scatters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from saesteer.patching.result import PatchResult
from saesteer.patching.summary import Effects, Scale, effects

if TYPE_CHECKING:
    from saesteer.patching.agreement import Agreement

MOST_ROWS = 24
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


class Heatmap(NamedTuple):
    """Effects of cells in rows and columns.

    Attributes:
        title: What is shown.
        row_title: What rows are, such as "layer".
        rows: Their labels.
        column_title: What columns are.
        columns: Their labels.
        values: Effects, [row, column]; NaN where there is no such cell.
        low: Lower ends of the intervals over prompts.
        high: Upper ends.
        n: Prompts that have the cell.
        unit: What the numbers are.
    """

    title: str
    row_title: str
    rows: tuple[str, ...]
    column_title: str
    columns: tuple[str, ...]
    values: Float[np.ndarray, "row column"]
    low: Float[np.ndarray, "row column"]
    high: Float[np.ndarray, "row column"]
    n: Float[np.ndarray, "row column"]
    unit: str


class Series(NamedTuple):
    """One line or one group of bars: a value for each label, with an interval where known."""

    name: str
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class Chart(NamedTuple):
    """Lines or bars over labels.

    Attributes:
        title: What is shown.
        labels: The labels along x.
        series: The lines, or the groups of bars.
        x_title: What the labels are.
        y_title: What the values are.
        bars: Bars instead of lines.
        log: A logarithmic y axis.
    """

    title: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    x_title: str
    y_title: str
    bars: bool = False
    log: bool = False


class Cloud(NamedTuple):
    """One method's values of cells against those that they approximate.

    Attributes:
        name: The method, with its rank correlation.
        x: What is approximated.
        y: The approximation.
        labels: The cells' names.
    """

    name: str
    x: Float[np.ndarray, " cell"]
    y: Float[np.ndarray, " cell"]
    labels: tuple[str, ...]


class Scatter(NamedTuple):
    """Approximations of the same cells.

    Attributes:
        title: What is shown.
        clouds: The approximations.
        x_title: What is approximated.
        y_title: What approximates it.
    """

    title: str
    clouds: tuple[Cloud, ...]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Exhibit:
    """One figure.

    Attributes:
        part: The part of the report that it belongs to.
        name: The name of its files.
        figure: Its data.
        note: What to see in it.
        limit: The |value| of a heatmap's full colour, shared by maps that are to be compared.
    """

    part: str
    name: str
    figure: Heatmap | Chart | Scatter
    note: str = ""
    limit: float | None = None


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


def heatmap(result: PatchResult, scale: Scale, *, resamples: int = 1000, seed: int = 0) -> Heatmap:
    """Return a result's heatmap over all pairs, layers down.

    A third axis is folded into the rows: the heads of the strongest effects stand for all.

    Args:
        result: Its axes are layer and position, place or head, or layer, head and position.
        scale: See `effects`.
        resamples: Bootstrap resamples of the intervals on hover.
        seed: Seeds them.
    """
    found = effects(result, scale, resamples=resamples, seed=seed)
    across = result.dims[-1]
    columns = column_labels(result, across)
    rows, row_title, parts = _rows(result, found)
    there = np.any(parts[3] > 0, axis=0)
    keep = there if there.any() else ~there
    return Heatmap(
        title=title_of(result),
        row_title=row_title,
        rows=rows,
        column_title=across,
        columns=tuple(name for name, kept in zip(columns, keep, strict=True) if kept),
        values=parts[0][:, keep],
        low=parts[1][:, keep],
        high=parts[2][:, keep],
        n=parts[3][:, keep],
        unit=unit_of(result, scale),
    )


def _rows(
    result: PatchResult, found: Effects
) -> tuple[tuple[str, ...], str, tuple[np.ndarray, ...]]:
    parts = (found.value, found.low, found.high, found.n)
    first, *more = result.dims[:-1]
    if not more:
        return tuple(map(str, result.coords[first])), first, parts
    outer, inner = result.coords[first], result.coords[more[0]]
    names = [f"{a}.{b}" for a in outer for b in inner]
    flat = tuple(part.reshape(len(names), -1) for part in parts)
    strongest = np.argsort(-np.nan_to_num(np.abs(flat[0])).max(axis=1), kind="stable")[:MOST_ROWS]
    order = np.sort(strongest)
    title = f"{first}.{more[0]}" + (
        f", the {MOST_ROWS} strongest" if len(names) > len(order) else ""
    )
    return tuple(names[i] for i in order), title, tuple(part[order] for part in flat)


def column_labels(result: PatchResult, dim: str) -> tuple[str, ...]:
    """Return an axis' labels: tokens with their column where it holds positions.

    Prompts that differ at a column share a label that says so: the first one's token and an
    ellipsis.
    """
    coords = result.coords[dim]
    if dim != "position" or not result.tokens:
        return tuple(map(str, coords))
    labels = []
    for place, column in enumerate(coords):
        words = [row[place] for row in result.tokens]
        known = [word for word in words if word != ""]
        word = shown_token(known[0]) if known else ""
        more = "…" if len(set(words)) > 1 else ""
        labels.append(f"{column}: {word}{more}")
    return tuple(labels)


def shown_token(token: str) -> str:
    """Return a token with its white space visible."""
    return token.replace(" ", "\N{OPEN BOX}").replace(
        "\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    )


def one_prompt(result: PatchResult, pair: int, scale: Scale) -> Heatmap:
    """Return one pair's own heatmap, its own tokens on the axis."""
    single = PatchResult(
        result.method,
        result.component,
        result.mode,
        result.metric,
        result.dims,
        result.coords,
        result.values[pair : pair + 1],
        result.clean[pair : pair + 1],
        result.corrupted[pair : pair + 1],
        result.pairs[pair : pair + 1],
        result.tokens[pair : pair + 1],
    )
    return heatmap(single, scale, resamples=0)._replace(
        title=f"{title_of(result)}: {result.pairs[pair]}"
    )


def scatter(found: Sequence[Agreement], result: PatchResult) -> Scatter:
    """Return approximations against activation patching, cell by cell.

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
        labels = tuple(
            ", ".join(f"{dim} {names[dim][at]}" for dim, at in zip(one.dims, cell, strict=True))
            for cell in one.labels
        )
        rank = one.rank_correlation
        said = "" if np.isnan(rank) else f", rank correlation {rank:.2f}"
        method = one.method.replace("_", " ")
        clouds.append(Cloud(f"{method}{said}", one.actual, one.approximate, labels))
    name = NAMES.get(result.component, result.component)
    unit = unit_of(result, "change")
    return Scatter(
        title=f"{name[:1].upper()}{name[1:]}, {result.mode}",
        clouds=tuple(clouds),
        x_title=f"activation patching, {unit}",
        y_title=f"attribution, {unit}",
    )


def strongest_cells(
    result: PatchResult, scale: Scale, most: int, *, resamples: int = 1000, seed: int = 0
) -> list[dict[str, object]]:
    """Return the cells of the largest |effect|, as records with interval."""
    found = effects(result, scale, resamples=resamples, seed=seed)
    flat = found.value.ravel()
    order = np.argsort(-np.nan_to_num(np.abs(flat)), kind="stable")[:most]
    rows: list[dict[str, object]] = []
    for place in order.tolist():
        at = np.unravel_index(place, found.value.shape)
        labels = {d: result.coords[d][int(i)] for d, i in zip(result.dims, at, strict=True)}
        rows.append(
            {
                **labels,
                "effect": float(flat[place]),
                "low": float(found.low.ravel()[place]),
                "high": float(found.high.ravel()[place]),
            }
        )
    return rows


def layer_bars(result: PatchResult, scale: Scale, *, seed: int = 0) -> Chart:
    """Return the bars of a result by layer alone."""
    found = effects(result, scale, seed=seed)
    parts = (tuple(part.tolist()) for part in (found.value, found.low, found.high))
    return Chart(
        title=title_of(result),
        labels=tuple(map(str, result.coords["layer"])),
        series=(Series("layer", *parts),),
        x_title="layer",
        y_title=unit_of(result, scale),
        bars=True,
    )


def chart_of_effects(results: Sequence[PatchResult], scale: Scale, *, seed: int = 0) -> Chart:
    """Return the profile over layers: one line for each place of each result by layer and place."""
    series = []
    for result in results:
        found = effects(result, scale, seed=seed)
        for place, name in enumerate(result.coords["place"]):
            series.append(
                Series(
                    str(name),
                    *(
                        tuple(part[:, place].tolist())
                        for part in (found.value, found.low, found.high)
                    ),
                )
            )
    first = results[0]
    return Chart(
        title=title_of(first),
        labels=tuple(map(str, first.coords["layer"])),
        series=tuple(series),
        x_title="layer",
        y_title=unit_of(first, scale),
    )
