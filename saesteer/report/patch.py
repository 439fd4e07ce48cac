"""The report of a patching run: the task, where it lives, and which site to steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saesteer.report.layout import (
    Column,
    Figure,
    Remark,
    Section,
    Table,
    Tile,
    Verdict,
    estimate,
)
from saesteer.report.patch_figures import shown_token
from saesteer.report.report import Report
from saesteer.report.wording import bracketed, show
from saesteer.saes.labels import PLACE_KEY, feature_url

if TYPE_CHECKING:
    import pandas as pd

Metrics = Mapping[str, Any]
PROMPTS, CELLS, BRIEF = 24, 10, 6
VERDICTS: dict[str, Verdict] = {
    "solved": "good",
    "partly": "open",
    "unclear": "open",
    "not": "bad",
}
SAID = {
    "solved": "it solves the task",
    "partly": "it solves a part of the task",
    "unclear": "so few prompts cannot tell that from chance",
    "not": "it does not solve the task",
}
AGREEMENT = (
    *("cells", "rank correlation=rank_correlation", "correlation"),
    *("strongest in common=overlap", "same sign=same_sign"),
)
GAPS = ("taken away=name", "circuit", "model=whole", "gap")
NEEDED = ("head", "change without it=change", "share")
FAITHFUL = {
    "recovered": "share recovered",
    "whole": "whole model",
    "circuit": "circuit alone",
    "nothing": "no head",
}
EFFECT = estimate("effect")
CELL = Column("cell", lambda one: ".".join(str(one[k]) for k in ("layer", "head") if k in one))
ABOUT = {
    "where": (
        "Where it lives",
        "Each cell patches one component at one layer and place and measures the answer. Places "
        "sum the tokens that play one part in the prompt, so prompts of other lengths compare.",
    ),
    "heads": ("Heads", "Each cell patches one head's output, query, key, value or pattern."),
    "agreement": (
        "Attribution against patching",
        "Attribution estimates every patch from one backward pass. Cells on the dotted line are "
        "estimated exactly; trust the estimate where the cloud follows the line.",
    ),
    "reading": (
        "What each layer says",
        "The logit lens reads every sub-layer as if the model ended there; direct attribution "
        "splits the final logit difference into what each part writes.",
    ),
    "paths": (
        "Paths",
        "Each cell sends one sender's patched output to the receivers alone, past everything else.",
    ),
    "features": ("SAE features", "Each bar patches one feature, or cluster, at the SAE's site."),
}
NOTES = {
    "where": "Hover a cell for its exact value, its 95% interval over prompts and their number.",
    "agreement": "Most cells do next to nothing and their order is noise, which lowers the rank "
    "correlation; the overlap and the signs are of the ten strongest cells.",
}


def patch_report(
    metrics: Metrics,
    figures: Mapping[str, Sequence[Figure]],
    answers: pd.DataFrame | None,
    sae: Mapping[str, Any],
    *,
    attention: str | None = None,
) -> Report:
    """Return a run's report.

    Args:
        metrics: Its `metrics.json`.
        figures: Its figures, by the parts that they belong to.
        answers: The table of the model's answers.
        sae: The SAE's site and its features' descriptions; empty without one.
        attention: The page of attention patterns beside the report, if there is one.
    """
    sections = [_task(answers), _strongest(metrics), *_site(metrics)]
    for name, (title, about) in ABOUT.items():
        items = [*figures.get(name, ()), *_tables(name, metrics, sae)]
        note = NOTES.get(name, "")
        if name == "heads" and attention is not None:
            note = f"The strongest heads' attention patterns are in {attention} beside this page."
        if items:
            sections.append(Section(title, about, items, note))
    return Report(
        kind="patching",
        title=str(metrics["name"]),
        lead=_lead(metrics),
        facts=_facts(metrics),
        remarks=_remarks(metrics),
        tiles=_tiles(metrics),
        sections=[*sections, *_circuit(metrics, figures.get("circuit", ()))],
        beside=("tables", "figures"),
        commands=("saesteer patch show {folder} --suggest-site",),
    )


def _lead(metrics: Metrics) -> str:
    """Return the first sentences: does the model solve the task, and where does it live."""
    task = metrics["task"]
    said = (
        f"{metrics['model']} prefers the right answer on {task['accuracy']:.0%}"
        f"{bracketed(task['accuracy_interval'], '.0%')} of {2 * metrics['pairs']} prompts: "
        f"{SAID[metrics['verdict']]}"
    )
    if metrics["verdict"] == "not":
        if metrics["scale"] == "share":
            moves = "its answer moves with the prompt, and the rest is about that movement"
            return f"{said}, but {moves}."
        return f"{said}, so nothing below says how it would."
    best = (metrics.get("suggestion") or {}).get("best")
    return f"{said}. Steer at {best['site']}, {best['place']}." if best else f"{said}."


def _remarks(metrics: Metrics) -> list[Remark]:
    """Return what speaks for the results and against them."""
    task = metrics["task"]
    said = [
        Remark(
            f"Logit difference on clean prompts {show(task['logit_difference_clean'], '+.2f')}"
            f"{bracketed(task['clean_interval'], '+.2f')}, on corrupted ones "
            f"{show(task['logit_difference_corrupted'], '+.2f')}"
            f"{bracketed(task['corrupted_interval'], '+.2f')}; the right answer is the most "
            f"likely token on {task['top1_clean']:.0%} of the clean prompts.",
            VERDICTS[metrics["verdict"]],
        )
    ]
    if metrics["scale"] == "change":
        said.append(
            Remark(
                "Clean and corrupted prompts do not differ beyond chance, so effects are shown in "
                "the metric's own units and not as shares of a gap.",
                "bad",
            )
        )
    for part in metrics["left_out"]:
        said.append(Remark(f"{part[:1].upper()}{part[1:]}", "open"))
    suggestion = metrics.get("suggestion") or {}
    sure = suggestion.get("best") is not None and metrics["verdict"] == "solved"
    said += [Remark(text, "good" if sure else "open") for text in suggestion.get("sentences", ())]
    circuit = metrics.get("circuit")
    if circuit:
        held_out = "held-out pairs" if circuit["origin"] == "found" else "pairs"
        text = (
            f"Circuit: {circuit['size']} heads recover {show(circuit['held_out']['recovered'])} of "
            f"what all heads do, on {circuit['pairs']} {held_out}."
        )
        said.append(Remark(text, "open"))
    return said


def _facts(metrics: Metrics) -> dict[str, object]:
    facts = {
        "model": metrics["model"],
        "prompts": f"{metrics['pairs']} pairs of {metrics['source']}",
        "metric": str(metrics["metric"]).replace("_", " "),
        "modes": ", ".join(metrics["modes"]),
    }
    return facts | ({"SAE": metrics["sae"]} if metrics["sae"] else {})


def _tiles(metrics: Metrics) -> list[Tile]:
    task, best = metrics["task"], (metrics.get("suggestion") or {}).get("best")
    tiles = [
        Tile(
            "Accuracy",
            f"{task['accuracy']:.0%}",
            f"{task['solved']} of {task['pairs']} pairs right both ways",
        )
    ]
    for name, key in (("Clean logit difference", "clean"), ("Corrupted", "corrupted")):
        value = show(task[f"logit_difference_{key}"], "+.2f")
        tiles.append(Tile(name, value, bracketed(task[f"{key}_interval"], "+.2f").strip(" ()")))
    if best:
        about = f"{best['place']}, effect {show(best['effect'])}"
        tiles.append(Tile("Layer to steer", str(best["layer"]), about))
    return tiles


def _task(answers: pd.DataFrame | None) -> Section:
    records = [] if answers is None else answers.head(2 * PROMPTS).to_dict("records")
    columns = (
        "prompt",
        Column("answer", lambda one: shown_token(str(one["answer"]))),
        *("logit difference=logit_difference:+.2f", "rank", "probability:.1%"),
        Column("most likely", _most_likely),
    )
    caption = f"The first {len(records)} prompts"
    return Section(
        "The task",
        "Clean and corrupted prompts in turn, each with its own right answer; the logit difference "
        "is over the other prompt's answer, and rank 0 is the most likely token.",
        [Table.of(records, columns, caption, folded=len(records) > 8)],
        "All of them are in tables/answers.parquet.",
    )


def _most_likely(record: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{shown_token(str(record[f'top{place}']))} {record[f'top{place}_probability']:.0%}"
        for place in (1, 2, 3)
        if f"top{place}" in record
    )


def _strongest(metrics: Metrics) -> Section:
    rows = []
    for name, cells in metrics["strongest"].items():
        method, _, rest = name.partition("-")
        component, _, mode = rest.rpartition("-")
        said = [
            f"{_cell(cell)} {show(cell['effect'], '+.2f')}"
            for cell in cells[:BRIEF]
            if cell["effect"]
        ]
        rows.append(
            {
                "component": component if method == "activation" else f"path {component}",
                "mode": mode,
                "strongest cells": ", ".join(said),
                "rank": metrics["agreement"].get(f"attribution-{rest}", {}).get("rank_correlation"),
            }
        )
    unit = "shares of the gap between corrupted and clean"
    if metrics["scale"] == "change":
        unit = "in the metric's own units: there is no gap beyond chance"
    hint = "of attribution with patching, over all cells"
    told = ("component", "mode", "strongest cells")
    columns = (*told, Column("rank correlation", "rank", ".2f", hint))
    table = Table.of(rows, columns, printed=told, most=len(rows))
    return Section("The strongest cells", f"Effects are {unit}.", [table])


def _cell(cell: Mapping[str, Any]) -> str:
    """Return a cell's name, such as "9.6" or "12 at the answer position"."""
    where = ".".join(str(cell[key]) for key in ("layer", "head") if key in cell)
    where = where or str(cell.get("feature", cell.get("cluster", "")))
    place = {"words that differ": "differing", "answer position": "answer"}
    found = cell.get("place")
    return where if found is None else f"{where} {place.get(str(found), found)}"


def _site(metrics: Metrics) -> list[Section]:
    suggestion = metrics.get("suggestion")
    if not suggestion:
        return []
    cells = [*suggestion["ranked"]]
    if suggestion["sae"] and suggestion["sae"] not in cells:
        cells.append(suggestion["sae"])
    return [
        Section(
            "Where to steer",
            "At the bottom the prompt's words carry everything and at the top the answer position "
            "does, in any model. Sites are ranked by effect times headroom: the share of blocks "
            "above the answer position, or below the prompt's words.",
            [site_table(cells)] if cells else [],
        )
    ]


def site_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Return sites to steer with the evidence for each, as a suggestion's record ranks them."""
    columns = (
        *("site", "where=place", Column("effect (95%)", EFFECT, ".2f"), "pairs=n"),
        *("headroom:.2f", "score:.2f", "attribution:.2f"),
    )
    return Table.of(cells, columns)


def _tables(part: str, metrics: Metrics, sae: Mapping[str, Any]) -> list[Table]:
    if part == "agreement":
        found = [{"result": name, **values} for name, values in metrics["agreement"].items()]
        return [Table.of(found, ("result", *AGREEMENT))] if found else []
    if part == "reading" and metrics.get("direct_heads"):
        columns = (CELL._replace(name="head"), "logits=share")
        return [Table.of(metrics["direct_heads"], columns, "Heads that write most", folded=True)]
    return [
        _cell_table(name, cells[:CELLS], sae)
        for name, cells in metrics["strongest"].items()
        if cells and _part_of(name, cells[0]) == part
    ]


def _part_of(name: str, cell: Mapping[str, Any]) -> str:
    if name.startswith("path-"):
        return "paths"
    if "feature" in cell or "cluster" in cell:
        return "features"
    return "heads" if "head" in cell else "where"


def _cell_table(name: str, cells: Sequence[Mapping[str, Any]], sae: Mapping[str, Any]) -> Table:
    labels = [key for key in cells[0] if key not in ("effect", "low", "high", "layer", "head")]
    columns = [Column(key, lambda cell, key=key: str(cell[key])) for key in labels]
    columns.append(Column("effect (95%)", EFFECT, "+.3f"))
    caption = f"Strongest of {name}"
    if "cluster" in labels:
        return Table.of(cells, columns, caption)
    if "feature" in labels:
        words, place = sae.get("descriptions", {}), sae.get(PLACE_KEY)
        known = Column("what it stands for", lambda cell: words.get(str(cell["feature"])))
        links = [feature_url(place, cell["feature"]) or "" for cell in cells]
        return Table.of(cells, [*columns, known], caption, links=links)
    return Table.of(cells, [CELL, *columns], caption, folded=True)


def _circuit(metrics: Metrics, figures: Sequence[Figure]) -> list[Section]:
    circuit = metrics.get("circuit")
    if not circuit:
        return []
    found = circuit["origin"] == "found"
    numbers: dict[str, Any] = {
        "heads": circuit["size"],
        "chosen among": circuit.get("candidates"),
        "seconds": float(circuit["seconds"]),
    }
    for name, key in (("half searched", "searched"), ("held-out half", "held_out")):
        said = name if found else "all prompts"
        if key in circuit:
            numbers |= {f"{word}, {said}": float(circuit[key][k]) for k, word in FAITHFUL.items()}
    about = (
        "The fewest heads that keep the task on one half of the prompts, tested on the other; "
        if found
        else "The circuit given, tested on all prompts; "
    )
    items = [
        *figures,
        Table(["", "value"], list(numbers.items()), "Faithfulness"),
        Table.of(circuit["completeness"], GAPS, "Completeness", folded=True),
        Table.of(circuit["minimality"], NEEDED, "Minimality", folded=True),
    ]
    return [
        Section(
            "Circuit",
            f"{about}every other head stands at its mean over counterfactual prompts.",
            items,
            "Share recovered is 0 for no head and 1 for the whole model. Complete means that the "
            "model and the circuit lose alike when the same heads are taken away.",
        )
    ]
