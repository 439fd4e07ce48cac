"""The planner that needs no language model finds what is planted, and nothing else."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from saesteer.agent import run_agent
from saesteer.agent.seeded import SeededPlanner, halving_cost
from saesteer.utils.errors import DataError


def single(**changes):
    search = {
        "kind": "corrupt",
        "parameters": {"effort": [3, 9, 2, 40, 1]},
        "metric": ["effort"],
        "question": "the largest effort",
    }
    return {**search, **changes}


def test_the_planted_layer_is_found_with_two_experiments(plant, settings, runs):
    result = run_agent(settings())
    assert [config.effort for config in runs] == [1, 4]
    assert runs[0].layers == list(range(12))
    # The best third of twelve goes on.
    assert set(runs[1].layers) == {5, 6, 7, 8, 9}
    assert result.metrics["answer"].startswith("Of 12 of 12 settings measured, the layer that")
    assert "costs most is 7 " in result.metrics["answer"]
    first, second = result.metrics["claims"]
    assert first["verdict"] == "supported" and first["experiments"] == ["E2"]
    assert "5.004" in first["remark"]
    assert second["verdict"] == "supported"
    assert [note["evidence"] for note in result.metrics["notes"]] == [["E1"], ["E2"]]
    assert result.ended_by == "it has concluded"


def test_single_settings_are_halved_one_experiment_each(plant, settings, runs):
    result = run_agent(settings(search=single()))
    assert sorted(config.effort for config in runs) == [1, 2, 3, 9, 40]
    assert "effort is 40 " in result.metrics["answer"]


def test_the_smallest_is_found_where_the_smallest_is_sought(plant, settings):
    result = run_agent(settings(search=single(goal="minimize")))
    assert "effort is 1 " in result.metrics["answer"]


def test_a_space_larger_than_the_budget_is_drawn_from_and_said(plant, settings, runs):
    config = settings(search=single(parameters={"effort": list(range(100))}), seed=3)
    config.budget.experiments = 8
    result = run_agent(config)
    assert len(runs) == 8
    assert "Of 8 of 100 settings measured" in result.metrics["answer"]
    drawn = {config.effort for config in runs}

    def first() -> set[Any]:
        candidates: list[Any] = SeededPlanner(config).first
        return {candidate["effort"] for candidate in candidates}

    assert first() == drawn
    config.seed = 4
    assert first() != drawn


def test_a_setting_that_fails_is_left_behind(plant, settings, runs):
    search = single(
        parameters={"layers": [[13], [7], [2]]}, metric=["rows", "0", "loss"], question="the layer"
    )
    result = run_agent(settings(search=search))
    assert len(runs) == 3
    assert "layer is [7] " in result.metrics["answer"]
    failed = [e for e in result.metrics["experiments"] if e["status"] == "failed"]
    assert failed[0]["error"] == "layer 13 brings bad luck; leave it out."


def test_nothing_measured_is_no_answer(plant, settings):
    search = single(parameters={"layers": [[13]]}, metric=["rows", "0", "loss"])
    result = run_agent(settings(search=search))
    assert result.metrics["answer"].startswith("Nothing was measured")
    assert result.metrics["claims"] == []


def test_a_metric_that_is_not_there_names_what_is(plant, settings):
    from saesteer.agent.results import look_up

    run_agent(settings(search=single(metric=["nothing"])))
    with pytest.raises(DataError, match=r"holds no 'nothing' \(there is: rows, effort\)"):
        look_up({"rows": [], "effort": 1}, ["nothing"])


@pytest.mark.parametrize(("keep", "rungs"), itertools.product((0.2, 0.34, 0.5), (1, 3)))
def test_the_first_rung_is_as_large_as_the_budget_allows(keep, rungs, settings):
    more = {"fidelity": "layers", "rungs": [[n] for n in range(rungs)]}
    search = single(parameters={"effort": list(range(50))}, keep=keep, **more)
    first = len(SeededPlanner(settings(search=search)).first)
    assert halving_cost(first, rungs, keep) <= 20 < halving_cost(first + 1, rungs, keep)


def test_the_same_seed_writes_the_same_journal(plant, settings, tmp_path):
    events = []
    for place in ("a", "b"):
        result = run_agent(settings(folder=str(tmp_path / place)))
        lines = (result.folder.path / "journal.jsonl").read_text().splitlines()
        kept = [{**json.loads(line), "seconds": 0, "folder": 0} for line in lines]
        events.append(kept)
    assert events[0] == events[1]


def test_a_space_over_layers_follows_the_model(settings):
    search = single(parameters={"programs": "skip {layer}"}, batch="programs")
    planner = SeededPlanner(settings(search=search), 3)
    assert [c["programs"] for c in planner.first] == ["skip 0", "skip 1", "skip 2"]
    with pytest.raises(ValueError, match=r"parameters.programs is one value"):
        settings(search=single(parameters={"programs": "skip 3"}))
