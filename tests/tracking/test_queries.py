"""Runs are found by nested fields, and added up as numpy adds them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.tracking import Run
from saesteer.tracking.queries import (
    MISSING,
    aggregate,
    filter_runs,
    markdown_table,
    side_by_side,
    sort_runs,
)
from saesteer.utils.errors import ConfigError


def run(number: int, effect: Any = 0.0, **more: Any) -> Run:
    config = {"model": {"name": "smollm2" if number % 2 else "gpt2"}, "seed": number, "site": None}
    facts: dict[str, Any] = {
        "id": f"{number:08x}",
        "kind": "run",
        "name": f"n{number}",
        "status": "finished",
        "folder": Path(f"runs/n{number}"),
        "config": config,
        "metrics": {"effect": effect, "fit": {"r2": number / 10}},
        "started": f"2026-11-{number + 10}T10:00:00+0000",
        "tags": ("persona", f"t{number}"),
    }
    return Run(**{**facts, **more})


RUNS = [
    run(1, 0.1),
    run(2, 0.3),
    run(3, None),
    run(4, 1e-4, metrics={}),
    run(5, -0.5, status="failed", error="no such site", notes=({"text": "look again"},)),
]


# Conditions, and the numbers of the runs that meet them.
KEPT: dict[str, list[int]] = {
    "config.model.name=smollm2": [1, 3, 5],
    "config.model.name!=smollm2": [2, 4],
    "metrics.effect>0.1": [2],
    "metrics.effect=null": [3],
    "metrics.effect exists": [1, 2, 3, 5],
    "metrics.effect missing": [4],
    "metrics.effect in 0.1, 0.3": [1, 2],
    "metrics.effect not in (0.1,0.3)": [3, 4, 5],
    "status in failed,killed": [5],
    "tags~T3": [3],
    "tags!~t3": [1, 2, 4, 5],
    "started>=2026-11-14": [4, 5],
    "config.site=null": [1, 2, 3, 4, 5],
    'config.site="null"': [],
    "metrics.effect>high": [],
    "status=failed or config.seed>1 and config.seed<4": [2, 3, 5],
    "(status=failed or config.seed>1) and config.seed<4": [2, 3],
    "((config.seed in (1,2)) and (tags~t1 or tags~t2))and status=finished": [1, 2],
    "not (config.seed in (1,2) or status=failed)": [3, 4],
    "notes~'again' or error~\"this and that\"": [5],
}


def test_a_condition_keeps_the_runs_that_meet_it():
    for text, numbers in KEPT.items():
        kept = filter_runs(RUNS, [text])
        assert [int(r.id, 16) for r in kept] == numbers, text
        # Conditions are met together.
        assert filter_runs(RUNS, [text, "config.seed<3"]) == [r for r in kept if r in RUNS[:2]]
    assert filter_runs([], list(KEPT)) == []
    # Keys may hold dots themselves.
    dotted = [run(1, config={"a": {"b": None, "c.d": 3}})]
    assert filter_runs(dotted, ["config.a.c.d=3", "config.a.b=null", "config.a.z missing"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("status", "has no operator"),
        ("=finished", "names no field"),
        ("status in", "names no value"),
        ("status exists now", "nothing may stand behind exists"),
        (
            "model.name=gpt2",
            r"no run has a field 'model.name' \(did you mean 'config.model.name'\?",
        ),
        ("status=failed or (kind=run and efect>1)", "no run has a field 'efect'"),
        ("notes~salt and pepper", "'pepper' has no operator.*quote a value"),
        ("()", "has no operator"),
    ],
)
def test_a_condition_that_cannot_be_read_is_one_sentence(text, told):
    with pytest.raises(ConfigError, match=told):
        filter_runs(RUNS, [text])


def test_aggregates_are_those_of_numpy_by_group():
    rng = np.random.default_rng(0)
    runs = [run(n, float(rng.normal())) for n in range(11)]
    kinds = ("count", "mean", "median", "std", "min", "max")
    rows = aggregate(runs, ["metrics.effect"], by=["config.model.name"], kinds=kinds)
    assert [row["config.model.name"] for row in rows] == ["gpt2", "smollm2"]
    for row, odd in zip(rows, (0, 1), strict=True):
        values = np.array([r.metrics["effect"] for r in runs if int(r.id, 16) % 2 == odd])
        assert row["runs"] == row["count metrics.effect"] == len(values)
        expected = {"mean": values.mean(), "median": np.median(values), "std": values.std(ddof=1)}
        expected |= {"min": values.min(), "max": values.max()}
        for kind, value in expected.items():
            assert row[f"{kind} metrics.effect"] == pytest.approx(value, abs=1e-12), kind
    # What is no number is left out and counted.
    (row,) = aggregate(RUNS, ["metrics.effect"], kinds=("count", "mean", "std"))
    assert (row["runs"], row["count metrics.effect"]) == (5, 3)
    assert row["mean metrics.effect"] == pytest.approx((0.1 + 0.3 - 0.5) / 3)
    (row,) = aggregate(RUNS[2:4], ["metrics.effect"], kinds=("count", "mean", "std", "min"))
    assert list(row.values()) == [2, 0, None, None, None]
    (row,) = aggregate(RUNS[:1], ["metrics.effect"], kinds=("mean", "std"))
    assert row["std metrics.effect"] is None
    assert aggregate([], ["metrics.effect"]) == []


def test_the_table_is_markdown_that_any_reader_takes():
    rows = [{"name": "a|b", "e": 0.123456, "n": 3}, {"name": None, "e": None, "more": True}]
    assert markdown_table(rows).splitlines() == [
        "| name | e | n | more |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 0.1235 | 3 |  |",
        "| null | null |  | true |",
    ]
    assert markdown_table([]) == ""


def test_runs_are_sorted_and_their_settings_stand_side_by_side():
    # Those that lack the field are last.
    assert [r.name for r in sort_runs(RUNS, "metrics.effect")] == ["n5", "n1", "n2", "n3", "n4"]
    down = sort_runs(RUNS, "metrics.effect", descending=True)
    assert [r.name for r in down] == ["n2", "n1", "n5", "n3", "n4"]
    one, other = run(1, 0.5).config, {"seed": 1}
    assert side_by_side([one, run(3).config], differing=True) == {"seed": [1, 3]}
    differing = {"model.name": ["smollm2", MISSING], "site": [None, MISSING]}
    assert side_by_side([one, other], differing=True) == differing
    assert side_by_side([one, other])["seed"] == [1, 1]
