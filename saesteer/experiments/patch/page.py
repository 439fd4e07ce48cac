"""The page of a patching run: the task first, then where, which heads, and which site to steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from saesteer.experiments.patch.results import ANSWERS, ATTENTION, PatchResults
from saesteer.report.patching_drawing import drawn
from saesteer.report.patching_figures import Exhibit, shown_token
from saesteer.report.reading import show
from saesteer.report.sheet import Drawing, Part, Remark, Sheet, Table
from saesteer.saes.labels import PLACE_KEY, feature_url

Metrics = Mapping[str, Any]
PROMPTS, CELLS = 24, 10
VERDICTS: dict[str, Literal["good", "open", "bad"]] = {
    "solved": "good",
    "partly": "open",
    "unclear": "open",
    "not": "bad",
}
AGREEMENT = {
    "cells": "cells",
    "rank_correlation": "rank correlation",
    "correlation": "correlation",
    "overlap": "strongest in common",
    "same_sign": "same sign",
}
FAITHFUL = {
    "recovered": "share recovered",
    "whole": "whole model",
    "circuit": "circuit alone",
    "nothing": "no head",
}
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


def patching_sheet(metrics: Metrics, exhibits: Sequence[Exhibit], run: PatchResults) -> Sheet:
    """Return a run's page.

    Args:
        metrics: Its `metrics.json`.
        exhibits: Its figures.
        run: Its results, for the tables of prompts.
    """
    parts = [_task_part(run), *_site_part(metrics)]
    for name, (title, about) in ABOUT.items():
        own = [one for one in exhibits if one.part == name]
        items: list[Any] = [
            Drawing(drawn(one.figure, one.limit), one.figure.title, one.note) for one in own
        ]
        items += _named_features(metrics, run) if name == "features" else _tables(name, metrics)
        if items:
            parts.append(Part(title, about, items, _note(name, run)))
    parts += _circuit_part(metrics, exhibits)
    return Sheet(
        kind="patching",
        title=str(metrics["name"]),
        lead=lead(metrics),
        facts=_facts(metrics),
        remarks=remarks(metrics),
        tiles=_tiles(metrics),
        parts=parts,
    )


def lead(metrics: Metrics) -> str:
    """Return the first sentences: does the model solve the task, and where does it live."""
    task = metrics["task"]
    said = (
        f"{metrics['model']} prefers the right answer on {task['accuracy']:.0%}"
        f"{_ends(task.get('accuracy_interval'), '.0%')} of {2 * metrics['pairs']} prompts"
    )
    said = {
        "solved": f"{said}: it solves the task.",
        "partly": f"{said}: it solves a part of the task.",
        "unclear": f"{said}: so few prompts cannot tell that from chance.",
        "not": f"{said}: it does not solve the task{unsolved(metrics)}.",
    }[metrics["verdict"]]
    best = (metrics.get("suggestion") or {}).get("best")
    if best and metrics["verdict"] != "not":
        said += f" Steer at {best['site']}, {best['place']}."
    return said


def unsolved(metrics: Metrics) -> str:
    """Return what the results are about where the model does not solve the task."""
    if metrics["scale"] == "share":
        return ", but its answer moves with the prompt, and the rest is about that movement"
    return ", so nothing below says how it would"


def remarks(metrics: Metrics) -> list[Remark]:
    """Return what speaks for the results and against them."""
    task = metrics["task"]
    said = [
        Remark(
            f"Logit difference on clean prompts {show(task['logit_difference_clean'], '+.2f')}"
            f"{_ends(task.get('clean_interval'), '+.2f')}, on corrupted ones "
            f"{show(task['logit_difference_corrupted'], '+.2f')}"
            f"{_ends(task.get('corrupted_interval'), '+.2f')}; the right answer is the most "
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
    for part in metrics.get("left_out", ()):
        said.append(Remark(f"{part[:1].upper()}{part[1:]}", "open"))
    suggestion = metrics.get("suggestion") or {}
    for sentence in suggestion.get("sentences", ()):
        sure = suggestion.get("best") is not None and metrics["verdict"] == "solved"
        said.append(Remark(sentence, "good" if sure else "open"))
    return said


def _ends(interval: Sequence[float] | None, form: str) -> str:
    if not interval:
        return ""
    return f" ({show(interval[0], form)} to {show(interval[1], form)})"


def _facts(metrics: Metrics) -> dict[str, object]:
    facts = {
        "model": metrics["model"],
        "prompts": f"{metrics['pairs']} pairs of {metrics['source']}",
        "metric": str(metrics["metric"]).replace("_", " "),
        "modes": ", ".join(metrics["modes"]),
    }
    return facts | ({"SAE": metrics["sae"]} if metrics.get("sae") else {})


def _tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    task, best = metrics["task"], (metrics.get("suggestion") or {}).get("best")
    tiles = [
        (
            "Accuracy",
            f"{task['accuracy']:.0%}",
            f"{task['solved']} of {task['pairs']} pairs right both ways",
        ),
        (
            "Clean logit difference",
            show(task["logit_difference_clean"], "+.2f"),
            _ends(task.get("clean_interval"), "+.2f").strip(" ()"),
        ),
        (
            "Corrupted",
            show(task["logit_difference_corrupted"], "+.2f"),
            _ends(task.get("corrupted_interval"), "+.2f").strip(" ()"),
        ),
    ]
    if best:
        effect = show(best["effect"], ".2f")
        tiles.append(("Layer to steer", str(best["layer"]), f"{best['place']}, effect {effect}"))
    return tiles


def _task_part(run: PatchResults) -> Part:
    frame = run.table(ANSWERS)
    rows: list[list[object]] = []
    for record in [] if frame is None else frame.head(2 * PROMPTS).to_dict("records"):
        tops = [
            f"{shown_token(str(record[f'top{place}']))} {record[f'top{place}_probability']:.0%}"
            for place in (1, 2, 3)
            if f"top{place}" in record
        ]
        rows.append(
            [
                record["prompt"],
                shown_token(str(record["answer"])),
                f"{record['logit_difference']:+.2f}",
                int(record["rank"]),
                f"{record['probability']:.1%}",
                ", ".join(tops),
            ]
        )
    columns = ["prompt", "answer", "logit difference", "rank", "probability", "most likely"]
    return Part(
        "The task",
        "Clean and corrupted prompts in turn, each with its own right answer; the logit difference "
        "is over the other prompt's answer, and rank 0 is the most likely token.",
        [Table(columns, rows, f"The first {len(rows)} prompts", folded=len(rows) > 8)],
        "All of them are in tables/answers.parquet.",
    )


def _site_part(metrics: Metrics) -> list[Part]:
    suggestion = metrics.get("suggestion")
    if not suggestion:
        return []
    columns = ["site", "where", "effect", "95% interval", "pairs", "headroom", "score"]
    columns += ["attribution"]
    cells = [*suggestion["ranked"]]
    if suggestion.get("sae") and suggestion["sae"] not in cells:
        cells.append(suggestion["sae"])
    rows = [
        [
            cell["site"],
            cell["place"],
            float(cell["effect"]),
            _ends([cell["low"], cell["high"]], ".2f").strip(" ()")
            if cell["low"] is not None
            else None,
            int(cell["n"]),
            float(cell["headroom"]),
            float(cell["score"]),
            None if cell["attribution"] is None else float(cell["attribution"]),
        ]
        for cell in cells
    ]
    return [
        Part(
            "Where to steer",
            "At the bottom the prompt's words carry everything and at the top the answer position "
            "does, in any model. Sites are ranked by effect times headroom: the share of blocks "
            "above the answer position, or below the prompt's words.",
            [Table(columns, rows)] if rows else [],
        )
    ]


def _tables(part: str, metrics: Metrics) -> list[Table]:
    if part == "agreement":
        rows = [
            [name, *(values[key] for key in AGREEMENT)]
            for name, values in metrics["agreement"].items()
        ]
        return [Table(["result", *AGREEMENT.values()], rows)] if rows else []
    if part == "reading" and metrics.get("direct_heads"):
        rows = [[f"{r['layer']}.{r['head']}", r["share"]] for r in metrics["direct_heads"]]
        return [Table(["head", "logits"], rows, "Heads that write most", folded=True)]
    wanted = {"heads": "activation-", "paths": "path-"}.get(part)
    if wanted is None:
        return []
    tables = []
    for name, cells in metrics["strongest"].items():
        if not name.startswith(wanted) or not cells:
            continue
        if part == "heads" and "head" not in cells[0]:
            continue
        labels = [key for key in cells[0] if key not in ("effect", "low", "high")]
        rows = [
            [
                ".".join(str(cell[key]) for key in labels if key in ("layer", "head")),
                *(str(cell[key]) for key in labels if key not in ("layer", "head")),
                cell["effect"],
                None
                if cell["low"] is None
                else _ends([cell["low"], cell["high"]], "+.2f").strip(" ()"),
            ]
            for cell in cells[:CELLS]
        ]
        others = [key for key in labels if key not in ("layer", "head")]
        columns = ["cell", *others, "effect", "95% interval"]
        tables.append(Table(columns, rows, f"Strongest of {name}", folded=True))
    return tables


def _named_features(metrics: Metrics, run: PatchResults) -> list[Table]:
    words, place = run.sae_record.get("descriptions", {}), run.sae_record.get(PLACE_KEY)
    columns = ["feature", "effect", "what it stands for"]
    return [
        Table(
            columns,
            [
                [str(cell["feature"]), cell["effect"], words.get(str(cell["feature"]))]
                for cell in cells[:CELLS]
            ],
            f"Strongest of {name}",
            links=[feature_url(place, cell["feature"]) or "" for cell in cells[:CELLS]],
        )
        for name, cells in metrics["strongest"].items()
        if cells and "feature" in cells[0]
    ]


def _note(part: str, run: PatchResults) -> str:
    if part == "heads" and run.folder.has(ATTENTION):
        return f"The attention patterns of the strongest heads are in {ATTENTION} beside this page."
    if part == "agreement":
        return (
            "Most cells do next to nothing and their order is noise, which lowers the rank "
            "correlation; the overlap and the signs are of the ten strongest cells."
        )
    if part == "where":
        return "Hover a cell for its exact value, its 95% interval over prompts and their number."
    return ""


def _circuit_part(metrics: Metrics, exhibits: Sequence[Exhibit]) -> list[Part]:
    circuit = metrics.get("circuit")
    if not circuit:
        return []
    found = circuit["origin"] == "found"
    rows: list[list[object]] = [
        ["heads", circuit["size"]],
        ["chosen among", circuit.get("candidates")],
        ["seconds", float(circuit["seconds"])],
    ]
    for name, key in (("half searched", "searched"), ("held-out half", "held_out")):
        said = name if found else "all prompts"
        for what, label in FAITHFUL.items():
            if key in circuit:
                rows.append([f"{label}, {said}", float(circuit[key][what])])
    gaps = [
        [one["name"], one["circuit"], one["whole"], one["gap"]] for one in circuit["completeness"]
    ]
    needed = [[one["head"], one["change"], one["share"]] for one in circuit["minimality"]]
    items: list[Any] = [
        Drawing(drawn(one.figure, one.limit), one.figure.title)
        for one in exhibits
        if one.part == "circuit"
    ]
    items += [
        Table(["", "value"], rows, "Faithfulness"),
        Table(["taken away", "circuit", "model", "gap"], gaps, "Completeness", folded=True),
        Table(["head", "change without it", "share"], needed, "Minimality", folded=True),
    ]
    about = (
        "The fewest heads that keep the task on one half of the prompts, tested on the other; "
        if found
        else "The circuit given, tested on all prompts; "
    )
    return [
        Part(
            "Circuit",
            f"{about}every other head stands at its mean over counterfactual prompts.",
            items,
            "Share recovered is 0 for no head and 1 for the whole model. Complete means that the "
            "model and the circuit lose alike when the same heads are taken away.",
        )
    ]
