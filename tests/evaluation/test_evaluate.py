"""Vectors measured from Python have the numbers of the command."""

from __future__ import annotations

import numpy as np
import pytest

from saesteer.evaluation import evaluate
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.utils.errors import DataError

COLUMNS = ["method", "strength", "kl", "effect", "low", "high"]


@pytest.fixture(scope="module")
def run(tiny_settings, roomy_folder):
    settings = tiny_settings("llama")
    settings["model"]["name"] = str(roomy_folder)
    config = RunConfig(**settings)
    return config, run_experiment(config)


def test_it_gives_the_numbers_of_the_command(run, roomy_model):
    config, results = run
    table = evaluate(
        roomy_model,
        plan_run(config).held_out,
        results.vector,
        kl_target=config.evaluation.kl_target,
        neutral=config.evaluation.neutral,
    )
    assert list(table.columns) == COLUMNS
    (row,) = table.to_dict("records")
    wanted = results.metrics["vector"]
    assert row["method"] == wanted["method"]
    assert row["strength"] == pytest.approx(wanted["plus"]["strength"], rel=1e-6)
    assert row["kl"] == pytest.approx(wanted["plus"]["kl"], rel=1e-6)
    for name in ("effect", "low", "high"):
        assert row[name] == pytest.approx(wanted["effect"][name], rel=1e-5)


def test_vectors_keep_their_order_and_a_target_out_of_reach_has_no_effect(run, roomy_model):
    config, results = run
    vector, held_out = results.vector, plan_run(config).held_out
    both = evaluate(roomy_model, held_out, [vector, -vector], kl_target=0.05)
    assert both["effect"][0] == pytest.approx(-both["effect"][1], rel=0.1)
    far = evaluate(roomy_model, held_out, [vector], kl_target=1e3)
    assert np.isnan(far["effect"]).all() and far["effect"].dtype == float
    with pytest.raises(DataError, match="KL needs at least"):
        evaluate(roomy_model, held_out, [vector], neutral_answers=1)
