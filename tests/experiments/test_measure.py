"""Public measures equal their published formulas on the numbers of a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from saesteer.data.benches import read_axbench
from saesteer.experiments.measure.axbench import AxBenchConfig
from saesteer.experiments.measure.steering_bench import (
    SteeringBench,
    SteeringBenchConfig,
    plan_steering_bench,
)
from saesteer.experiments.registry import run_experiment
from saesteer.methods import DifferenceInMeans, ReadingSettings
from saesteer.saes.loading import load_sae
from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import parse_config
from tests.benches import bench_samples
from tests.by_hand import answer_log_probs


def test_steering_bench_is_its_own_formula_on_letters_of_a_plain_loop(small, tiny_llama):
    settings = {**small("steering_bench"), "n_test": 3, "n_train": 5, "datasets": ["kindly"]}
    results = run_experiment(SteeringBenchConfig(**settings))
    (one,) = plan_steering_bench(SteeringBenchConfig(**settings)).sets
    assert not {p.id for p in one.train} & {p.id for p in one.test}
    assert (len(one.train), len(one.test)) == (5, 3)

    means = DifferenceInMeans().fit(
        tiny_llama,
        one.train,
        sae=load_sae(settings["sae"]),
        reading=ReadingSettings(positions="last"),
    )
    vector, multipliers = means.vector_, results.metrics["multipliers"]
    table = pd.read_csv(results.folder.path / "samples/kindly/difference_in_means.csv")
    persona, opposite = "You are kind.", "You are not kind."
    conditions: dict[str, tuple[str, str | None]] = {
        "in": ("", None),
        "user: persona": (f"{persona} ", None),
        "system: persona": ("", persona),
        "user: opposite": (f"{opposite} ", None),
        "system: opposite": ("", opposite),
    }
    assert list(dict.fromkeys(table["condition"])) == list(conditions)
    for row in table.to_dict("records"):
        sample = bench_samples(16)[row["sample"] - 1]
        before, system = conditions[row["condition"]]
        asked = before + sample["positive"]["prompt"]
        for multiplier in multipliers:
            # As long as the mean delta, which is the vector itself here.
            at: Any = {"system": system, "vector": vector, "strength": multiplier * _norms(vector)}
            said, other = (
                answer_log_probs(tiny_llama, asked, answer, **at)[-1]
                for answer in (
                    sample[side]["response"].strip().removesuffix(")")
                    for side in ("positive", "negative")
                )
            )
            assert row[f"at {multiplier:g}"] == pytest.approx(said - other, abs=1e-3)
    values = table[[f"at {m:g}" for m in multipliers]].to_numpy()
    slopes = np.polyfit(multipliers, values.T, 1)[0]
    np.testing.assert_allclose(table["slope"], slopes, atol=1e-9)

    by_place = {(r["method"], r["distribution"]): r for r in results.metrics["summary"]}
    inside = (table["condition"] == "in").to_numpy()
    for distribution, own in (("in", inside), ("out", ~inside)):
        row = by_place["difference_in_means", distribution]
        assert row["slope"] == pytest.approx(slopes[own].mean())
        assert row["anti_steerable"] == pytest.approx((slopes[own] < 0).mean())
        assert row["low"] <= row["slope"] <= row["high"]
    assert by_place["pca", "in"]["kl"] > 0


def _norms(vector: Any) -> float:
    """The length of a vector in units of the residual norm."""
    return float(vector.raw.norm()) / vector.residual_norm


def test_datasets_without_prompts_and_files_left_out_are_said(small, capsys):
    results = run_experiment(SteeringBenchConfig(**small("steering_bench")))
    text = results.report.read_text(encoding="utf-8")
    assert "No prompts for a persona are known for boldly" in text
    assert "refusal_train.json" in text
    assert {row["n_datasets"] for row in results.metrics["summary"]} == {1, 2}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"datasets": ["kindl"]}, r"datasets 'kindl' is not in .*did you mean 'kindly'"),
        ({"methods": ["system_prompt"]}, r"system_prompt is a prompt and no vector"),
        ({"methods": ["pca", "pca"]}, r"pca stands there twice"),
        ({"methods": ["pcb"]}, r"method 'pcb' is unknown"),
        ({"sae": None, "methods": ["clustered_sae"], "site": "blocks.1.hook_resid_post"}, "an SAE"),
        ({"sae": None}, r"without an SAE there is no site"),
        ({"train": 0.8, "test": 0.4}, r"more than 1 together"),
        ({"multipliers": [1, 1]}, r"names a multiplier twice"),
        ({"objective": {"prompted": 1.0}}, r"no persona to ask for"),
    ],
)
def test_settings_that_cannot_be_run_are_one_sentence(changes, told, small, no_loading):
    settings = {**small("steering_bench"), **changes}
    with pytest.raises(ConfigError, match=told):
        SteeringBench(parse_config(settings, kind=SteeringBenchConfig, place="test"))


def test_detection_is_the_auroc_of_the_largest_reading_over_tokens(small, tiny_llama):
    settings = small("axbench")
    results = run_experiment(AxBenchConfig(**settings))
    sae, rows = load_sae(settings["sae"]), results.metrics["by_concept"]
    for at, concept in enumerate(read_axbench(settings["source"])):
        texts = [*concept.pairs.positives, *concept.pairs.negatives, *concept.texts]
        hidden = [_hidden(tiny_llama, text) for text in texts]
        n = len(concept.pairs)
        means = [torch.stack([h.mean(0) for h in part]) for part in (hidden[:n], hidden[n : 2 * n])]
        direction = (means[0] - means[1]).mean(0)
        largest = {"difference_in_means": [float((h @ direction).max()) for h in hidden[2 * n :]]}
        found = results.folder.read_json(f"concepts/{at}/top_feature_mean_difference.json")
        (feature,) = found["features"]
        codes = [sae.encode(h)[:, feature] for h in hidden]
        sign = np.sign(
            float(torch.stack([c.mean() for c in codes[:n]]).mean())
            - float(torch.stack([c.mean() for c in codes[n : 2 * n]]).mean())
        )
        largest["top_feature_mean_difference"] = [float((sign * c).max()) for c in codes[2 * n :]]
        kinds = np.array(concept.categories)
        for method, readings in largest.items():
            (row,) = [r for r in rows if (r["concept"], r["method"]) == (concept.name, method)]
            for name, against in (("auroc", "negative"), ("auroc_hard", "hard negative")):
                counted = np.isin(kinds, ("positive", against))
                if not (kinds == against).any():
                    assert row[name] is None
                    continue
                wanted = roc_auc_score(kinds[counted] == "positive", np.array(readings)[counted])
                assert row[name] == pytest.approx(wanted)
    summary = {row["method"]: row for row in results.metrics["summary"]}
    own = [row["auroc"] for row in rows if row["method"] == "difference_in_means"]
    assert summary["difference_in_means"]["auroc"] == pytest.approx(np.mean(own))


def _hidden(model: Any, text: str) -> torch.Tensor:
    """The residual stream after block 1 at a text's tokens, without the BOS before them."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
    with torch.no_grad():
        _, cache = model.run_with_cache(ids, names_filter="blocks.1.hook_resid_post")
    return cache["blocks.1.hook_resid_post"][0, 1:]


def test_the_commands_say_where_results_are_and_fit_100_columns(small, run_cli, tmp_path):
    for kind, command in (("steering_bench", "steering-bench"), ("axbench", "axbench")):
        settings = small(kind)
        given = [f"--set=folder={tmp_path / kind}", f"--model={settings['model']['name']}"]
        given += ["--set=methods=[difference_in_means]", f"--sae={settings['sae']}"]
        if kind == "steering_bench":
            given += [f"--set=neutral={settings['neutral']}", "--set=neutral_answers=3"]
        answer = run_cli("measure", command, settings["source"], *given)
        assert answer.code == 0, answer.err
        (report,) = (tmp_path / kind).rglob("report.html")
        assert f"Report: {report}" in answer.out and "docs/measures.md" in answer.out
        kept = [line for line in answer.out.splitlines() if str(tmp_path) not in line]
        assert max(map(len, kept)) <= 100
