"""From the personas' records to `metrics.json`: every number of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from saesteer.evaluation.llm_judge import LlmJudge, mean_ratings
from saesteer.evaluation.statistics import (
    Estimate,
    area_values,
    hierarchical_bootstrap,
    holm,
    paired_ratio,
    permutation_p,
    wilcoxon_over_personas,
)
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.grid import Grid, Row, fields_of, means
from saesteer.experiments.compare.persona import NULLS, PersonaRun
from saesteer.experiments.compare.plan import DONE, ComparePlan
from saesteer.experiments.compare.texts import (
    at_headline,
    generation,
    judge_rows,
    masked_rows,
    prompt_rows,
    shown,
)
from saesteer.methods.registry import method_entry

if TYPE_CHECKING:
    from saesteer.experiments.compare.experiment import Compare


def metrics_of(experiment: Compare) -> Row:
    """`metrics.json` from the personas' folders."""
    config = experiment.config
    runs = [PersonaRun(experiment, persona) for persona in experiment.plan.personas]
    by_name = {run.persona.name: run for run in runs}
    grid = Grid.of(config, by_name)
    named = {name: run.features(config.headline) for name, run in by_name.items()}
    entries = [method_entry(method.name) for method in config.methods]
    searched = [method for method in config.methods if method.grid]
    file = f"vectors/{config.headline}.safetensors"
    fitted = {name: run.first.folder for name, run in by_name.items() if run.first.folder.has(file)}
    return {
        "name": config.name,
        "model": config.model.name,
        "sae": config.sae,
        "site": str(experiment.site),
        "seeds": config.seeds,
        "kl_targets": config.evaluation.kl_targets,
        "headline_kl_target": config.evaluation.headline_kl_target,
        "headline_method": config.headline,
        "baseline": config.baseline,
        "methods": [{"name": m.name, "label": m.label, "kind": m.kind} for m in entries],
        "personas": [_persona_row(run) for run in runs],
        "effects": effect_rows(grid),
        "curves": curve_rows(grid),
        "summary": summary_rows(grid),
        "areas": area_rows(grid),
        "null": null_rows(grid),
        **generation(grid),
        "generation_judges": judge_rows(grid),
        "masked": masked_rows(grid),
        "at_prompt": prompt_rows(grid),
        "judges": [row for run in runs if run.to_write() for row in run.judges()],
        "choices_margins": [row for run in runs for row in run.choices()],
        "side_effects": {
            "prose": [row for run in runs for row in run.prose()],
            "matrix": _shifts(config, by_name),
        },
        "features": {name: found["features"] for name, found in named.items()},
        "linkage": {name: found["tree"] for name, found in named.items()},
        "completions": {name: shown(grid, name, experiment.plan.questions) for name in by_name},
        "vectors": {name: str(folder.path / file) for name, folder in fitted.items()},
        # What validation pairs chose.
        "chosen": {
            name: {method.name: run.first.chosen(method)["settings"] for method in searched}
            for name, run in by_name.items()
        },
        "config": config.model_dump(mode="json"),
        "llm_judge": _llm_rows(grid, experiment.plan),
        "seconds": _seconds(runs),
    }


def summary_rows(grid: Grid) -> list[Row]:
    """Every method at every KL target: macro-mean, ratio to the baseline, test, null."""
    rows = []
    for kl_target in grid.config.evaluation.kl_targets:
        at_target = [_summary_row(grid, m.name, kl_target) for m in grid.config.methods]
        corrected = holm({row["method"]: row["p"] for row in at_target})
        rows += [{**row, "p_holm": corrected[row["method"]]} for row in at_target]
    return rows


def _summary_row(grid: Grid, method: str, kl_target: float) -> Row:
    baseline, seeds = grid.config.baseline, grid.config.seeds_at(method, kl_target)
    own = grid.moved(method, kl_target, seeds)
    effect, ratio, p, beyond = hierarchical_bootstrap(own), Estimate(1.0, 1.0, 1.0, 0), None, None
    if method != baseline:
        both = [seed for seed in seeds if seed in grid.config.seeds_at(baseline, kl_target)]
        sides = [grid.moved(name, kl_target, both) for name in (method, baseline)]
        ratio = paired_ratio(*sides)
        p = wilcoxon_over_personas(*map(means, sides))
    if kl_target == grid.headline and any(grid.nulls.values()):
        beyond = sum(
            first > max((abs(e) for kind in NULLS for e in grid.nulls[name, kind]), default=np.inf)
            for name, first, values in zip(grid.names, grid.first_effects(method), own, strict=True)
            if first is not None and values is not None
        )
    return {
        "method": method,
        "kl_target": kl_target,
        "n_personas": effect.n_personas,
        **fields_of(effect, "effect"),
        **fields_of(ratio, "ratio", "ratio_"),
        "p": p,
        "beyond_null": beyond,
    }


def effect_rows(grid: Grid) -> list[Row]:
    """Every measured effect, without the pairs' own values."""
    rows = []
    for (persona, method, seed), found in grid.effects.items():
        for record in found["kl_targets"]:
            effect = record["effect"] or {}
            curve = (found["curve"] or {}) if record["kl_target"] == grid.headline else {}
            figures = ("effect", "low", "high", "moved_share", "common_shift")
            row: Row = {name: effect.get(name) for name in figures}
            for side in ("plus", "minus"):
                row[side] = {key: record[side][key] for key in ("strength", "kl", "reached")}
            if "error" in record:
                row["error"] = record["error"]
            row |= {
                "kl_target": record["kl_target"],
                "persona": persona,
                "method": method,
                "seed": seed,
                "n_pairs": len(effect["up"]) if effect else None,
                "slope": curve.get("slope"),
                "anti_steerable": curve.get("anti_steerable"),
            }
            rows.append(row)
    return rows


def curve_rows(grid: Grid) -> list[Row]:
    """The mean margin at multiples of the matched strengths."""
    return [
        {"persona": persona, "method": method, "seed": seed, **point}
        for (persona, method, seed), found in grid.effects.items()
        if found["curve"]
        for point in found["curve"]["points"]
    ]


def area_rows(grid: Grid) -> list[Row]:
    """Each method's area under E against log KL, where every KL target was reached."""
    kl_targets, first = grid.config.evaluation.kl_targets, grid.config.seeds[:1]
    rows = []
    for method in grid.config.methods if len(kl_targets) > 1 else ():
        if method_entry(method.name).kind != "prompt":
            areas = area_values({kl: grid.moved(method.name, kl, first) for kl in kl_targets})
            found = hierarchical_bootstrap(areas)
            row = {
                "method": method.name,
                **fields_of(found, "area"),
                "n_personas": found.n_personas,
            }
            rows.append(row)
    return rows


def null_rows(grid: Grid) -> list[Row]:
    """The null of each persona, with the headline method's permutation p against it."""
    own = dict(zip(grid.names, grid.first_effects(grid.config.headline), strict=True))
    return [
        {
            "persona": persona,
            "kind": kind,
            "effects": effects,
            "largest": max(map(abs, effects), default=None),
            "p": permutation_p(first, effects)
            if (first := own[persona]) is not None and effects
            else None,
        }
        for (persona, kind), effects in grid.nulls.items()
    ]


def _llm_rows(grid: Grid, plan: ComparePlan) -> list[Row]:
    """Rate the completions at the headline KL target; nothing is asked where no judge is set."""
    settings = grid.config.llm_judge
    if settings is None:
        return []
    judge = LlmJudge(
        settings.endpoint,
        cache=plan.cache / "llm-ratings.jsonl",
        workers=settings.workers,
    )
    rows = []
    for persona in plan.personas:
        behaviour = persona.settings.description or persona.name.replace("-", " ")
        for record in at_headline(grid, persona.name):
            for sign in (1, 0, -1):
                chosen = [entry for entry in record["records"] if entry["sign"] == sign]
                questions = [plan.questions[entry["question"]] for entry in chosen]
                found = judge.rate(behaviour, questions, [entry["text"] for entry in chosen])
                fields = {"persona": persona.name, "method": record["method"], "sign": sign}
                rows.append({**fields, **mean_ratings(found)})
    return rows


def _shifts(config: CompareConfig, by_name: Mapping[str, PersonaRun]) -> list[Row]:
    """What each persona's vector does to the others, for each method looked at."""
    runs, matrix = list(by_name.values()), []
    if config.side_effects.pairs and len(runs) > 1:
        for method in runs[0].looked_at():
            values = [[run.shift_on(other, method) for other in runs] for run in runs]
            matrix.append({"method": method, "personas": list(by_name), "values": values})
    return matrix


def _persona_row(run: PersonaRun) -> Row:
    (positive, negative), sizes = run.first.unsteered(), vars(run.first.split)
    return {
        "name": run.persona.name,
        "source": run.persona.pairs.source,
        "own": run.persona.own,
        **{f"n_{part}": len(pairs) for part, pairs in sizes.items()},
        "unsteered_margin": float((positive - negative).mean()),
    }


def _seconds(runs: Sequence[PersonaRun]) -> dict[str, float]:
    """What each stage took over all personas; a resumed one counts its last stretch."""
    total: dict[str, float] = {}
    for run in runs:
        for stage, seconds in run.folder.read_json(DONE)["seconds"].items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 1)
    return total
