"""What is said of texts: how far judges read the two signs of a method apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saesteer.evaluation.statistics import Estimate, hierarchical_bootstrap, paired_ratio
from saesteer.evaluation.written import by_question
from saesteer.experiments.compare.grid import Grid, Row, fields_of

SIDES = ("plus", "minus")


# What is said of one persona's texts, with intervals over questions.
OF_PERSONA = ("judge_range", "low", "high", "auc", "auc_low", "auc_high")


def generation(grid: Grid) -> dict[str, list[Row]]:
    """`generation`, by sign, `generation_personas`, by persona, and `generation_summary`."""
    lines: list[Row] = []
    personas: list[Row] = []
    found: dict[tuple[str, float | None], dict[str, Row]] = {}
    for name, records in grid.written.items():
        for record in records:
            at = {key: record[key] for key in ("method", "kl_target")}
            found.setdefault((at["method"], at["kl_target"]), {})[name] = record
            of_all = record["summary"]
            lines += [{"persona": name, **at, **s} for s in of_all["signs"]]
            personas.append({"persona": name, **at, **{key: of_all.get(key) for key in OF_PERSONA}})
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
                **fields_of(estimate, "judge_range"),
                **fields_of(ratio, "ratio", "ratio_"),
                "right_direction": sum(right) if right else None,
                "n_personas": estimate.n_personas,
                "composite": float(np.mean(quality)) if quality else None,
            }
        )
    return {
        "generation": lines,
        "generation_personas": personas,
        "generation_summary": summary,
    }


def judge_rows(grid: Grid) -> list[Row]:
    """Each judge by itself: range and ratio to the baseline, over the personas that have it."""
    rows = []
    for method, kl_target in dict.fromkeys(
        (record["method"], record["kl_target"]) for own in grid.written.values() for record in own
    ):
        own, against = (
            _records(grid, grid.written, name, kl_target) for name in (method, grid.config.baseline)
        )
        at = {"method": method, "kl_target": kl_target}
        rows += [{**at, "judge": judge, **_ranges(own, against, judge)} for judge in _judges(grid)]
    return rows


def masked_rows(grid: Grid) -> list[Row]:
    """Range and ratio at the headline KL target, as written and masked.

    By those judges that claims rest on, whose `judge` is None, and by each judge.
    """
    rows = []
    for method, kl_target in dict.fromkeys(
        (record["method"], record["kl_target"]) for own in grid.masked.values() for record in own
    ):
        for judge in (None, *_judges(grid)):
            as_written, masked = (
                _ranges(
                    _records(grid, records, method, kl_target),
                    _records(grid, records, grid.config.baseline, kl_target),
                    judge,
                )
                for records in (grid.written, grid.masked)
            )
            row = {"method": method, "kl_target": kl_target, "judge": judge, **as_written}
            rows.append({**row, **{f"masked_{name}": value for name, value in masked.items()}})
    return rows


def prompt_rows(grid: Grid) -> list[Row]:
    """The prompt, and methods at the prompt's own KL: range, and ratio to the prompt's.

    By those judges that claims rest on, whose `judge` is None, and by each judge; `kl_plus` and
    `kl_minus` are means over personas.
    """
    prompt, rows = grid.config.prompt, []
    if prompt is None or not grid.config.at_prompt:
        return []
    against = _records(grid, grid.written, prompt, None)
    for method in (prompt, *grid.config.at_prompt):
        own = against if method == prompt else _records(grid, grid.at_prompt, method, None)
        found = [
            effect
            for name in grid.names
            for effect in grid.effects[name, prompt, grid.config.seeds[0]]["kl_targets"]
        ]
        cost = {f"kl_{side}": float(np.mean([e[side]["kl"] for e in found])) for side in SIDES}
        known = [r["summary"]["composite"] for r in own if r is not None]
        quality = [value for value in known if value is not None]
        at = {"method": method, **cost, "composite": float(np.mean(quality)) if quality else None}
        rows += [
            {**at, "judge": judge, **_ranges(own, against, judge)}
            for judge in (None, *_judges(grid))
        ]
    return rows


def _judges(grid: Grid) -> list[str]:
    records = [record for own in grid.written.values() for record in own]
    return list(dict.fromkeys(j for r in records for e in r["records"] for j in e["readings"]))


def _records(
    grid: Grid, records: Mapping[str, Sequence[Row]], method: str, kl_target: float | None
) -> list[Row | None]:
    """Each persona's record of a method at a KL target; None where there is none."""
    wanted = (method, kl_target)
    return [
        next((r for r in records[name] if (r["method"], r["kl_target"]) == wanted), None)
        for name in grid.names
    ]


def _ranges(
    own: Sequence[Row | None], against: Sequence[Row | None], judge: str | None = None
) -> Row:
    """The range of each persona's texts, and its ratio to others'."""
    read, other = ([_by_question(record, judge) for record in side] for side in (own, against))
    return {
        **fields_of(hierarchical_bootstrap(list(map(_values, read))), "judge_range"),
        **fields_of(_paired(read, other), "ratio", "ratio_"),
    }


def _paired(own: Sequence[pd.Series], against: Sequence[pd.Series]) -> Estimate:
    """The ratio of two methods' ranges over the questions that both have readings of."""
    # A question whose answer is empty under one of the two has no partner under the other.
    both = [
        pd.concat(two, axis=1, join="inner", keys=[0, 1]) for two in zip(own, against, strict=True)
    ]
    return paired_ratio(*([_values(two[side]) for two in both] for side in (0, 1)))


def _by_question(record: Row | None, judge: str | None = None) -> pd.Series:
    return by_question(record["records"] if record else (), judge)


def _values(by_question: Any) -> np.ndarray | None:
    return by_question.to_numpy() if len(by_question) else None


def at_headline(grid: Grid, persona: str) -> list[Row]:
    """A persona's records at the headline KL target, and under prompts."""
    return [r for r in grid.written[persona] if r["kl_target"] in (grid.headline, None)]


def shown(grid: Grid, persona: str, questions: Sequence[str]) -> list[Row]:
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
        for record in at_headline(grid, persona)
        for entry in record["records"]
        if not entry["sample"] and entry["question"] in drawn
    ]
