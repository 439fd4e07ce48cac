"""The figures of what was read without patching, and of the circuit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.patch.results import CIRCUIT, DIRECT, LENS, PatchResults
from saesteer.patching.summary import sample_means
from saesteer.report.patching_figures import Chart, Exhibit, Heatmap, Series, shown_token

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
LOGITS = "logit difference, right less wrong"


def lens_charts(table: pd.DataFrame, seed: int = 0) -> Iterator[Chart]:
    """Return the lens at the answer's position: logit difference and the answer's place."""
    last: Any = table[table["position"] == table["position"].max()]
    points = list(dict.fromkeys(zip(last["layer"], last["component"], strict=True)))
    labels = tuple(_point(layer, component) for layer, component in points)
    x_title = "sub-layer: attention (mid), MLP (post)"
    wide = last.pivot(index="pair", columns=["layer", "component"], values="logit_difference")
    yield Chart(
        title="Logit lens: logit difference at the answer position",
        labels=labels,
        series=(_series("mean over prompts", wide[points], seed),),
        x_title=x_title,
        y_title=LOGITS,
    )
    wide = last.pivot(index="pair", columns=["layer", "component"], values="rank")
    low, middle, high = np.quantile(1 + wide[points].to_numpy(), [0.25, 0.5, 0.75], axis=0).tolist()
    yield Chart(
        title="Logit lens: place of the right answer among all tokens (median and quartiles)",
        labels=labels,
        series=(Series("median over prompts", tuple(middle), tuple(low), tuple(high)),),
        x_title=x_title,
        y_title="place, 1 is the most likely",
        log=True,
    )


def _point(layer: int, component: str) -> str:
    if component == "resid_pre":
        return "embedding" if layer == 0 else f"{layer} pre"
    return f"{layer} {component.removeprefix('resid_')}"


def lens_map(table: pd.DataFrame) -> Heatmap | None:
    """Return the lens of the first prompt at every token; None where it read the last alone."""
    first: Any = table[table["pair"] == table["pair"].iloc[0]]
    if first["position"].nunique() < 2:
        return None
    points = list(dict.fromkeys(zip(first["layer"], first["component"], strict=True)))
    words = first.drop_duplicates("position").sort_values("position")
    wide = first.pivot(index=["layer", "component"], columns="position", values="logit_difference")
    values = wide.loc[points, words["position"].tolist()].to_numpy()
    nothing = np.full(values.shape, np.nan)
    return Heatmap(
        title=f"Logit lens at every token: {first['pair'].iloc[0]}",
        row_title="sub-layer",
        rows=tuple(_point(layer, component) for layer, component in points),
        column_title="position",
        columns=tuple(
            f"{p}: {shown_token(t)}" for p, t in zip(words["position"], words["token"], strict=True)
        ),
        values=values,
        low=nothing,
        high=nothing,
        n=np.ones(values.shape),
        unit=LOGITS,
    )


def direct_layers(table: pd.DataFrame) -> Chart:
    """Return what embedding, attention and MLPs write into the logit difference, by layer."""
    mean: Any = table.groupby(["component", "layer"])["share"].mean()
    layers = sorted(table.loc[table["component"] == "mlp_out", "layer"].unique())
    bias = float(mean.get(("bias", -1), 0.0))
    series = (
        Series("attention", (0.0, *(float(mean["attn_out", layer]) for layer in layers), 0.0)),
        Series("MLP", (0.0, *(float(mean["mlp_out", layer]) for layer in layers), 0.0)),
        Series("embedding and bias", (float(mean["embed", -1]), *(0.0 for _ in layers), bias)),
    )
    return Chart(
        title="Direct logit attribution by layer",
        labels=("embedding", *map(str, layers), "bias"),
        series=series,
        x_title="layer",
        y_title=LOGITS,
        bars=True,
    )


def direct_heads(table: pd.DataFrame, seed: int = 0) -> Heatmap:
    """Return what every head writes into the logit difference."""
    heads: Any = table[table["component"] == "head"]
    layers, numbers = (sorted(heads[name].unique()) for name in ("layer", "head"))
    wide = heads.pivot(index="pair", columns=["layer", "head"], values="share")
    shares = wide[[(layer, head) for layer in layers for head in numbers]]
    mean, low, high = _mean(shares, seed)
    shape = (len(layers), len(numbers))
    return Heatmap(
        title="Direct logit attribution by head",
        row_title="layer",
        rows=tuple(map(str, layers)),
        column_title="head",
        columns=tuple(map(str, numbers)),
        values=mean.reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        n=np.full(shape, len(shares)),
        unit=LOGITS,
    )


def _series(name: str, wide: Any, seed: int) -> Series:
    return Series(name, *(tuple(part.tolist()) for part in _mean(wide, seed)))


def _mean(wide: Any, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over pairs, which a table has as rows, with its interval."""
    values = sample_means(wide.to_numpy(), [str(name) for name in wide.index])
    pairs = len(values)
    if pairs < 2:
        nothing = np.full(values.shape[1], np.nan)
        return values.mean(axis=0), nothing, nothing
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES) @ values / pairs
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return values.mean(axis=0), low, high


def reading_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the figures of the logit lens and of direct logit attribution."""
    lens, direct = run.table(LENS), run.table(DIRECT)
    if lens is not None:
        for name, chart in zip(("lens", "lens-rank"), lens_charts(lens), strict=True):
            yield Exhibit("reading", name, chart)
        whole = lens_map(lens)
        if whole is not None:
            yield Exhibit("reading", "lens-tokens", whole)
    if direct is not None:
        yield Exhibit("reading", "direct-layers", direct_layers(direct))
        yield Exhibit("reading", "direct-heads", direct_heads(direct))


def circuit_exhibits(run: PatchResults) -> Iterator[Exhibit]:
    """Return the map of the circuit's heads by what each is needed for."""
    if not run.folder.has(CIRCUIT):
        return
    record = run.folder.read_json(CIRCUIT)
    shape = _shape(run, record)
    values = np.full(shape, np.nan)
    for one in record["minimality"]:
        at = one["layer"], one["number"]
        # A head at several positions counts by the one where it is needed most.
        values[at] = np.fmax(values[at], one["change"])
    nothing = np.full(shape, np.nan)
    layers, heads = shape
    figure = Heatmap(
        title=f"The circuit: {record['size']} heads by what each is needed for",
        row_title="layer",
        rows=tuple(map(str, range(layers))),
        column_title="head",
        columns=tuple(map(str, range(heads))),
        values=values,
        low=nothing,
        high=nothing,
        n=np.full(shape, record["pairs"]),
        unit=f"change of the {run.config.metric.replace('_', ' ')} without it",
    )
    yield Exhibit("circuit", "circuit", figure)


def _shape(run: PatchResults, record: dict[str, Any]) -> tuple[int, int]:
    for result in run.results.values():
        if result.dims[:2] == ("layer", "head") and result.component == "z":
            return len(result.coords["layer"]), len(result.coords["head"])
    layers = max((one["layer"] for one in record["minimality"]), default=0)
    heads = max((one["number"] for one in record["minimality"]), default=0)
    return layers + 1, heads + 1
