"""Reading without patching: the task's answers, the logit lens, direct logit attribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saesteer.evaluation.statistics import item_interval
from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.results import TASK, PatchResults
from saesteer.patching.summary import draws_of, sample_means
from saesteer.report.patching_figures import Chart, Exhibit, Heatmap, Series, shown_token
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

ANSWERS, LENS, DIRECT = "answers", "lens", "direct"
RESAMPLES = 2000
LOGITS = "logit difference, right less wrong"


def run_answers(bench: PatchContext) -> None:
    """Ask the model every prompt, and keep what it answers and how often that is right."""
    from saesteer.patching.reading.answers import task_answers

    if bench.folder.has(TASK):
        return
    bench.progress.say(f"Asking the model {2 * len(bench.batch)} prompts")
    found = task_answers(bench.model, bench.batch)
    write_table(bench.folder, ANSWERS, found.frame())
    seed = bench.plan.config.seed
    record: dict[str, Any] = dict(found.summary())
    names = [pair.name for pair in bench.batch.pairs]
    samples = len(set(draws_of(names).tolist()))
    record |= {
        "pairs": len(bench.batch),
        "solved": int(found.solved.sum()),
        "accuracy_interval": wilson(found.accuracy, samples),
        "clean_interval": _interval(found.clean.logit_difference, names, seed),
        "corrupted_interval": _interval(-found.corrupted.logit_difference, names, seed),
    }
    bench.folder.write_json(TASK, record)


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """Return the score interval of a share (Wilson 1927), which holds at 0 and at 1 too.

    Args:
        share: The share of successes.
        n: The sample: pairs, for their two prompts are answered alike.
        z: Quantile of the normal distribution; 1.96 for 95%.
    """
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def _interval(
    values: Float[np.ndarray, " pair"], names: Sequence[str], seed: int
) -> list[float] | None:
    samples = sample_means(values.astype(float), names)
    if len(samples) < 2:
        return None
    found = item_interval(samples, resamples=RESAMPLES, seed=seed)
    return [found.low, found.high]


def run_reading(bench: PatchContext) -> None:
    """Read every layer by the logit lens, and what every component writes into the answer."""
    from saesteer.patching.reading.direct_attribution import direct_attribution
    from saesteer.patching.reading.lens import logit_lens

    settings = bench.plan.config.lens
    if settings is None:
        return
    if not has_table(bench.folder, LENS):
        bench.progress.say("Logit lens")
        with bench.leaving_out("logit lens"):
            found = logit_lens(
                bench.model,
                bench.batch,
                side=settings.side,
                every_position=settings.every_position,
                top_k=settings.top,
            )
            write_table(bench.folder, LENS, found.frame())
    if not has_table(bench.folder, DIRECT):
        bench.progress.say("Direct logit attribution")
        with bench.leaving_out("direct logit attribution"):
            shares = direct_attribution(bench.model, bench.batch, side=settings.side)
            write_table(bench.folder, DIRECT, shares.frame())


def has_table(folder: RunFolder, name: str) -> bool:
    """Return whether a table is there."""
    return folder.has(f"tables/{name}.parquet")


def write_table(folder: RunFolder, name: str, frame: pd.DataFrame) -> None:
    """Write a labelled table as Parquet."""
    folder.write(f"tables/{name}.parquet", lambda draft: frame.to_parquet(draft, index=False))


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


def strongest_rows(table: pd.DataFrame, most: int) -> Sequence[dict[str, Any]]:
    """Return the heads that write most into the logit difference: layer, head, share."""
    rows: Any = table[table["component"] == "head"]
    heads = rows.groupby(["layer", "head"])["share"].mean()
    order = np.argsort(-np.abs(heads.to_numpy()), kind="stable")[:most]
    return [
        {"layer": int(layer), "head": int(head), "share": float(share)}
        for (layer, head), share in heads.iloc[order].items()
    ]
