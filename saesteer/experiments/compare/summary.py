"""From the personas' records to `metrics.json`: every number of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saesteer.evaluation.llm_client import Endpoint
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
from saesteer.experiments.compare.persona import NULLS, PersonaRun
from saesteer.experiments.compare.plan import DONE, ComparePlan
from saesteer.methods.registry import method_entry

if TYPE_CHECKING:
    from saesteer.experiments.compare.experiment import Compare

Row = dict[str, Any]
Moved = list[np.ndarray] | None


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
        "judges": [row for run in runs if run.to_write() for row in run.judges()],
        "choices_margins": [row for run in runs for row in run.choices()],
        "side_effects": {
            "prose": [row for run in runs for row in run.prose()],
            "matrix": _shifts(config, by_name),
        },
        "features": {name: found["features"] for name, found in named.items()},
        "linkage": {name: found["tree"] for name, found in named.items()},
        "completions": {name: _shown(grid, name, experiment.plan.questions) for name in by_name},
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


@dataclass(frozen=True)
class Grid:
    """The records of all personas, read once."""

    config: CompareConfig
    names: list[str]  # the personas'
    effects: dict[tuple[str, str, int], Row]  # by persona, method and seed
    nulls: dict[tuple[str, str], list[float]]  # by persona and kind, where the target was reached
    written: dict[str, list[Row]]  # by persona, one for each method and KL target, sorted

    @classmethod
    def of(cls, config: CompareConfig, by_name: Mapping[str, PersonaRun]) -> Grid:
        """What the personas' folders hold."""
        effects = {
            (name, method.name, seed): run.seeds[seed].effects(method)
            for name, run in by_name.items()
            for seed in config.seeds
            for method in config.methods_under(seed)
        }
        nulls = {
            (name, kind): [draw["effect"]["effect"] for draw in run.null(kind) if draw["effect"]]
            for name, run in by_name.items()
            for kind in NULLS
        }
        written = {
            name: sorted(
                (run.written(*wanted) for wanted in run.to_write()),
                key=lambda record: (record["method"], f"{record['kl_target'] or 0:g}"),
            )
            for name, run in by_name.items()
        }
        return cls(config, list(by_name), effects, nulls, written)

    @property
    def headline(self) -> float:
        """The headline KL target."""
        return self.config.evaluation.headline_kl_target

    def moved(self, method: str, kl_target: float, seeds: Sequence[int]) -> list[Moved]:
        """Each persona's moved margins, a row for each seed.

        A persona where the KL target was missed under any of the seeds counts as not measured.
        """
        found: list[Moved] = []
        for name in self.names:
            effects = [
                record["effect"]
                for seed in seeds
                for record in self.effects[name, method, seed]["kl_targets"]
                if record["kl_target"] in (kl_target, None)
            ]
            known = len(effects) == len(seeds) and None not in effects
            rows = [(np.array(e["up"]) - e["down"]) / 2 for e in effects] if known else None
            found.append(rows)
        return found

    def first_effects(self, method: str) -> list[float | None]:
        """Each persona's effect at the headline KL target under the first seed.

        Random draws are measured under that seed alone. A mean over seeds spreads less than they
        do, so it is not what they are held against.
        """
        return _means(self.moved(method, self.headline, self.config.seeds[:1]))

    def record(self, persona: str, method: str, kl_target: float | None) -> Row | None:
        """What was written with a method at a KL target."""
        found = (r for r in self.written[persona] if r["method"] == method)
        return next((r for r in found if r["kl_target"] == kl_target), None)

    def seeds_at(self, method: str, kl_target: float) -> list[int]:
        """The seeds under which a method was measured at a KL target."""
        seeds = self.config.seeds_of(method)
        return seeds if kl_target == self.headline else seeds[:1]


def _means(moved: Sequence[Moved]) -> list[float | None]:
    return [None if v is None else float(np.mean([row.mean() for row in v])) for v in moved]


def summary_rows(grid: Grid) -> list[Row]:
    """Every method at every KL target: macro-mean, ratio to the baseline, test, null."""
    rows = []
    for kl_target in grid.config.evaluation.kl_targets:
        at_target = [_summary_row(grid, m.name, kl_target) for m in grid.config.methods]
        corrected = holm({row["method"]: row["p"] for row in at_target})
        rows += [{**row, "p_holm": corrected[row["method"]]} for row in at_target]
    return rows


def _summary_row(grid: Grid, method: str, kl_target: float) -> Row:
    baseline, seeds = grid.config.baseline, grid.seeds_at(method, kl_target)
    own = grid.moved(method, kl_target, seeds)
    effect, ratio, p, beyond = hierarchical_bootstrap(own), Estimate(1.0, 1.0, 1.0, 0), None, None
    if method != baseline:
        both = [seed for seed in seeds if seed in grid.seeds_at(baseline, kl_target)]
        sides = [grid.moved(name, kl_target, both) for name in (method, baseline)]
        ratio = paired_ratio(*sides)
        p = wilcoxon_over_personas(*map(_means, sides))
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
        **_named(effect, "effect"),
        **_named(ratio, "ratio", "ratio_"),
        "p": p,
        "beyond_null": beyond,
    }


def _named(found: Estimate, name: str, prefix: str = "") -> Row:
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}


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
            row = {"method": method.name, **_named(found, "area"), "n_personas": found.n_personas}
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


def generation(grid: Grid) -> dict[str, list[Row]]:
    """`generation` and `generation_summary`."""
    lines: list[Row] = []
    found: dict[tuple[str, float | None], dict[str, Row]] = {}
    for name, records in grid.written.items():
        for record in records:
            at = {key: record[key] for key in ("method", "kl_target")}
            found.setdefault((at["method"], at["kl_target"]), {})[name] = record
            lines += [{"persona": name, **at, **s} for s in record["summary"]["signs"]]
    read = {
        at: [_by_question(by_name.get(name)) for name in grid.names]
        for at, by_name in found.items()
    }
    summary = []
    for (method, kl_target), by_name in found.items():
        own = read[method, kl_target]
        nothing = [_by_question(None)] * len(own)
        against = read.get((grid.config.baseline, kl_target), nothing)
        estimate = hierarchical_bootstrap([_values(changes) for changes in own])
        ratio = _paired(own, against)
        known = {
            name: [s for one in by_name.values() if (s := one["summary"][name]) is not None]
            for name in ("right_direction", "composite")
        }
        right, quality = known.values()
        summary.append(
            {
                "method": method,
                "kl_target": kl_target,
                **_named(estimate, "judge_range"),
                **_named(ratio, "ratio", "ratio_"),
                "right_direction": sum(right) if right else None,
                "n_personas": estimate.n_personas,
                "composite": float(np.mean(quality)) if quality else None,
            }
        )
    return {"generation": lines, "generation_summary": summary}


def judge_rows(grid: Grid) -> list[Row]:
    """Each judge by itself: range and ratio to the baseline, over the personas that have it."""
    records = [record for own in grid.written.values() for record in own]
    names = dict.fromkeys(j for r in records for entry in r["records"] for j in entry["readings"])
    rows = []
    for method, kl_target in dict.fromkeys((r["method"], r["kl_target"]) for r in records):
        for judge in names:
            own, against = (
                [_by_question(grid.record(name, one, kl_target), judge) for name in grid.names]
                for one in (method, grid.config.baseline)
            )
            rows.append(
                {
                    "method": method,
                    "kl_target": kl_target,
                    "judge": judge,
                    **_named(hierarchical_bootstrap(list(map(_values, own))), "judge_range"),
                    **_named(_paired(own, against), "ratio", "ratio_"),
                }
            )
    return rows


def _paired(own: Sequence[pd.Series], against: Sequence[pd.Series]) -> Estimate:
    """The ratio of two methods' ranges over the questions that both have readings of."""
    # A question whose answer is empty under one of the two has no partner under the other.
    both = [
        pd.concat(two, axis=1, join="inner", keys=[0, 1]) for two in zip(own, against, strict=True)
    ]
    return paired_ratio(*([_values(two[side]) for two in both] for side in (0, 1)))


def _by_question(record: Row | None, judge: str | None = None) -> pd.Series:
    """Each question's mean reading, positive minus negative, where there are both.

    Of one judge; of the mean of those that claims rest on if None.
    """
    rows = [
        (
            entry["question"],
            entry["sign"],
            entry["readings"].get(judge) if judge else entry["judge"],
        )
        for entry in (record["records"] if record else ())
    ]
    read = pd.DataFrame(rows, columns=["question", "sign", "judge"]).astype({"judge": float})
    means = read.pivot_table("judge", "question", "sign").reindex(columns=[1, -1])
    change: Any = means[1] - means[-1]
    return change.dropna()


def _values(by_question: Any) -> np.ndarray | None:
    return by_question.to_numpy() if len(by_question) else None


def _at_headline(grid: Grid, persona: str) -> list[Row]:
    return [r for r in grid.written[persona] if r["kl_target"] in (grid.headline, None)]


def _shown(grid: Grid, persona: str, questions: Sequence[str]) -> list[Row]:
    """The texts that the page shows: the first sample of questions drawn by chance."""
    drawn = np.random.default_rng(0).permutation(len(questions))[: grid.config.writing.shown]
    return [
        {
            "question": questions[entry["question"]],
            "method": record["method"],
            "strength": record["strengths"].get(str(entry["sign"])) or 0.0,
            "sign": entry["sign"],
            "text": entry["text"],
            "judge": entry["judge"],
        }
        for record in _at_headline(grid, persona)
        for entry in record["records"]
        if not entry["sample"] and entry["question"] in drawn
    ]


def _llm_rows(grid: Grid, plan: ComparePlan) -> list[Row]:
    """Rate the completions at the headline KL target; nothing is asked where no judge is set."""
    settings = grid.config.llm_judge
    if settings is None:
        return []
    judge = LlmJudge(
        Endpoint(**settings.model_dump(exclude={"workers"})),
        cache=plan.cache / "llm-ratings.jsonl",
        workers=settings.workers,
    )
    rows = []
    for persona in plan.personas:
        behaviour = persona.settings.description or persona.name.replace("-", " ")
        for record in _at_headline(grid, persona.name):
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
