"""`saesteer steer` on tiny models: from pairs to a steered model, with the evidence in the folder.

What does not fit is refused before it is computed; a run that was cut off, damaged or finished
before is gone on with, and ends the same.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from saesteer.evaluation.statistics import item_interval
from saesteer.evaluation.written import Writer
from saesteer.experiments import context, pairs_run, steering
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import Compare
from saesteer.experiments.pairs_run import PairsRun
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.experiments.steer.experiment import STAGES, Steer, plan_run
from saesteer.methods.features import encode_pairs
from saesteer.models.reading import PairActivations
from saesteer.report.terminal import console
from saesteer.saes import load_sae
from saesteer.saes.table import save_feature_table
from saesteer.steering import SteeringVector
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    MismatchError,
    OutputError,
    SaeError,
    SaesteerError,
    SiteError,
    SteeringError,
)
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder
from tests.experiments.conftest import merged

LOOSE = {"max_firing": 1.0}
METHODS = {
    "attributed_sae": {"n_features": 6, "selection": LOOSE},
    "natural_gradient": {},
    "top_feature_output_score": {},
}


@pytest.fixture
def settings(tiny_settings) -> dict[str, Any]:
    return tiny_settings("llama")


@pytest.fixture(scope="module")
def whole(tiny_settings):
    """A run that nobody cut off."""
    return run_experiment(RunConfig(**tiny_settings("llama")))


@pytest.fixture
def copy_of_whole(whole, settings) -> tuple[RunConfig, Path]:
    """The settings and folder of a finished run of one's own, to be damaged."""
    config = RunConfig(**settings)
    return config, shutil.copytree(whole.folder.path, plan_run(config).folder)


def with_method(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of a run with another method, whose objective takes seconds."""
    changed = {**settings, "method": {"name": name, "settings": METHODS[name]}}
    del changed["selection"]
    changed["objective"] = {"kl_target": 0.05, "fisher_samples": 2, "prompted": 0.0}
    return merged(changed, {"evaluation": {"neutral_answers": 3}})


def strict_json(path: Path) -> Any:
    """Read JSON as a strict reader does, to whom NaN and Infinity are no words."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def numbers(folder: Path) -> dict[str, Any]:
    """What must be the same in every run of the same settings."""
    names = ("split", "features", "fit", "completions", "metrics")
    kept = {name: strict_json(folder / f"{name}.json") for name in names}
    assert set(kept["metrics"].pop("seconds")) == set(STAGES)
    raw = SteeringVector.load(folder).raw.numpy().tobytes()
    return {**kept, "vector": raw, "files": sorted(f.name for f in folder.rglob("*.json"))}


def printed(config: RunConfig, result: Any, capsys: Any) -> str:
    capsys.readouterr()
    Steer(config).report(result).print(console(), result.folder.path)
    return capsys.readouterr().out


def test_a_finished_run_holds_all_that_the_readme_names(whole):
    folder = whole.folder.path
    for name in ("config", "split", "run", "fit", "metrics", "completions", "features"):
        assert strict_json(folder / f"{name}.json")
    assert strict_json(folder / "metrics.json") == whole.metrics
    assert (folder / "report.html").stat().st_size > 1000
    table = pd.read_parquet(folder / "features.parquet")
    assert list(table["feature"]) == [row["feature"] for row in whole.features]
    record = strict_json(folder / "run.json")
    assert record["model_fingerprint"] == whole.vector.model_fingerprint
    assert record["versions"]["torch"] == torch.__version__
    assert not list(folder.rglob(".*"))
    # What was stored is what the features were computed from: a mirror's features are the
    # residual stream's coordinates and their opposites.
    site = "blocks.1.hook_resid_post"
    stored = PairActivations.load(folder / f"activations/train.{site}.safetensors")
    codes = encode_pairs(load_sae(whole.vector.sae), stored)
    assert codes.n_pairs == len(strict_json(folder / "split.json")["train"])
    delta = torch.tensor(codes.delta.toarray())
    torch.testing.assert_close(
        (delta[:, :32] - delta[:, 32:]).float(), stored.deltas, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_run_works_for_any_method(name, settings, capsys):
    from saesteer.cli.features import features_command
    from saesteer.cli.show import show_steer_plan

    config = RunConfig(**with_method(settings, name))
    assert RunConfig(**config.model_dump(mode="json")).digest() == config.digest()
    result = run_experiment(config)
    metrics, features = strict_json(result.folder.path / "metrics.json"), result.vector.sae_features
    assert metrics["vector"]["method"] == result.vector.method == name
    assert [row["feature"] for row in result.features] == [f.index for f in features]
    assert [row["weight"] for row in result.features] == pytest.approx([f.weight for f in features])
    assert {record["strength"] for record in result.completions} >= {0.0}
    assert (result.folder.path / "report.html").stat().st_size > 10_000
    effect = metrics["vector"]["effect"]
    moved = (np.array(effect["up"]) - np.array(effect["down"])) / 2
    assert (effect["effect"], effect["low"], effect["high"]) == item_interval(moved)
    show_steer_plan(Steer(config))
    assert printed(config, result, capsys)
    features_command(result.folder.path)
    assert ("made of no SAE features" in capsys.readouterr().out) == (not features)
    assert run_experiment(config).metrics == result.metrics


@pytest.mark.usefixtures("needs_embeddings")
def test_the_default_is_judged_beside_its_baseline_and_a_cut_costs_what_is_missing(
    settings, compare_data, monkeypatch, capsys
):
    for own in ("method", "selection"):
        del settings[own]
    changes = {
        "pairs": {"source": compare_data["kindly"], "answers": compare_data["kindly_answers"]},
        "method": {"settings": METHODS["attributed_sae"]},
        "objective": {"kl_target": 0.05, "fisher_samples": 2, "prompted": 0.0},
        "evaluation": {"neutral_answers": 3, "random_directions": 0},
        "completions": {"n_questions": 2, "shown": 1},
    }
    config = RunConfig(**merged(settings, changes))
    result, names = run_experiment(config), ("attributed_sae", "difference_in_means")
    metrics, folder = result.metrics, result.folder.path
    files = [folder / f"written/{name}.json" for name in names]
    assert result.vector.method == names[0]
    # By hand: readings of the positive sign less those of the negative one, question by question.
    read = [{(r["question"], r["sign"]): r for r in strict_json(file)["records"]} for file in files]
    apart = np.array([[own[q, 1]["judge"] - own[q, -1]["judge"] for q in (0, 1)] for own in read])
    texts = metrics["texts"]
    found = [texts[name]["judge_range"] for name in ("vector", "difference_in_means")]
    assert found == pytest.approx(list(apart.mean(axis=1)))
    assert texts["gain"]["mean"] == pytest.approx((apart[0] - apart[1]).mean())
    assert [(judge["n"], judge["verdict"]) for judge in texts["judges"]] == [(12, "admitted")]
    # Shown is what was read, at the strengths of the KL target and plain.
    main = metrics["vector"]
    steps = [main["minus"]["strength"], 0.0, main["plus"]["strength"]]
    assert [row["strength"] for row in result.completions] == steps
    assert [row["text"] for row in result.completions] == [
        read[0][0, sign]["text"] for sign in (-1, 0, 1)
    ]
    towards = metrics["strengths"][0]
    assert towards["raw"] == pytest.approx(steps[2] * result.vector.residual_norm)
    said = printed(config, result, capsys)
    for text in ("Judged text: 2 questions", "The strength for KL 0.05", "AUC"):
        assert text in said
    # The same again once one file is lost, which alone is made anew.
    files[1].unlink()
    calls, write = [], Writer.write_steered
    monkeypatch.setattr(
        Writer, "write_steered", lambda *given: calls.append(given) or write(*given)
    )
    again = dict(run_experiment(config).metrics)
    assert len(calls) == 1
    again["seconds"] = metrics["seconds"]
    assert again == metrics


def test_it_is_the_vector_that_a_comparison_fits_to_the_same_pairs(settings, few, tmp_path):
    config = RunConfig(**with_method(settings, "attributed_sae"))
    result, plan = run_experiment(config), plan_run(config)
    evaluation = {**settings["evaluation"], "neutral_answers": 3, "multiples": [-1, 1]}
    for own in ("kl_target", "random_directions"):
        del evaluation[own]
    comparison = CompareConfig(
        **few(
            model=settings["model"],
            sae=settings["sae"],
            evaluation=evaluation,
            writing={"questions": settings["completions"]["questions"]},
        )
    )
    own = RunFolder(tmp_path / "same")
    run = PairsRun(Compare(comparison), **plan.parts, name="same", seed=0, folder=own)
    vector = run.context.fit("attributed_sae", METHODS["attributed_sae"]).vector_
    torch.testing.assert_close(vector.raw, result.vector.raw, rtol=1e-6, atol=1e-6)
    assert [f.index for f in vector.sae_features] == [f.index for f in result.vector.sae_features]


def test_a_model_without_chat_template_or_bos_and_the_last_token_alone(tiny_settings, capsys):
    settings = merged(
        tiny_settings("qwen3", chat=False),
        {
            "reading": {"positions": "last"},
            "evaluation": {"random_directions": 0},
            "completions": {"n_questions": 0},
        },
    )
    config = RunConfig(**settings)
    result = run_experiment(config)
    assert result.vector.read_positions == "statement tokens, last"
    assert math.isfinite(result.metrics["unsteered_margin"])
    # Random directions and questions may be left out.
    assert result.metrics["null"] is None
    assert result.metrics["random_directions"] == result.completions == []
    assert "random" not in printed(config, result, capsys)


@pytest.mark.parametrize("kl", [math.inf, 0.0])
def test_a_target_that_is_never_reached_is_a_result_in_plain_json(
    kl, settings, monkeypatch, capsys
):
    monkeypatch.setattr(steering.DivergenceMeter, "__call__", lambda *args: kl)
    config = RunConfig(**settings)
    result = run_experiment(config)
    metrics = strict_json(result.folder.path / "metrics.json")
    assert metrics["vector"]["effect"] is metrics["null"] is None
    assert metrics["vector"]["plus"]["reached"] is False
    assert metrics["vector"]["plus"]["kl"] == (0.0 if kl == 0 else None)
    for file in result.folder.path.rglob("*.json"):
        strict_json(file)
    assert "KL not reached" in printed(config, result, capsys)


def test_likelihoods_that_overflow_leave_no_half_results(settings, monkeypatch, capsys):
    def overflowed(self, vector=None, strength=0.0, unit="norm"):
        return np.full((2, self.n_pairs), math.nan if strength > 0 else -1.0)

    monkeypatch.setattr(steering.PropensityMeter, "log_likelihoods", overflowed)
    config = RunConfig(**settings)
    result = run_experiment(config)
    metrics = strict_json(result.folder.path / "metrics.json")
    assert metrics["vector"]["effect"] is metrics["curve"][2]["margin"] is None
    assert metrics["monotone"] is False
    assert "KL not reached" in printed(config, result, capsys)


@pytest.mark.parametrize(
    ("sae", "kind", "text"),
    [
        ({"site": "blocks.1.hook_nowhere"}, SiteError, r"no hook 'hook_nowhere'"),
        ({"gain": 0.05}, MismatchError, r"explains -?0\.\d+ of the variance .*not trained on"),
        ({"model_fingerprint": "f" * 64}, MismatchError, r"on other weights .*load that model"),
    ],
    ids=["hook", "misfit", "model"],
)
def test_an_sae_that_does_not_belong_is_refused_and_nothing_is_written(
    sae, kind, text, tiny_settings, mirror_sae
):
    config = RunConfig(**tiny_settings("llama", sae=mirror_sae(**sae)))
    with pytest.raises(kind, match=text):
        run_experiment(config)
    assert list(Path(config.folder).iterdir()) == []


def test_a_doubtful_fit_is_said_before_the_run(tiny_settings, mirror_sae):
    said = []
    progress: Any = Progress()
    progress.say = said.append
    config = RunConfig(**tiny_settings("llama", sae=mirror_sae(gain=0.2)))
    assert Steer(config, progress).sae.d_in == 32
    assert any("was not trained on this model or site" in line for line in said)


def test_a_feature_table_of_another_sae_is_refused(tiny_settings, mirror_sae):
    sae = mirror_sae()
    row = {"density": 0.1, "max_activation": 1.0, "mean_activation": 0.5, "description": "a word"}
    row |= {"top_tokens": [], "bottom_tokens": [], "contexts": [], "words": []}
    table = pd.DataFrame([{"feature": index, **row} for index in range(5)])
    save_feature_table(table, sae / "features.parquet")
    with pytest.raises(MismatchError, match=r"lists 5 features and the SAE beside it has 64"):
        run_experiment(RunConfig(**tiny_settings("llama", sae=sae)))


def test_texts_that_do_not_fit_the_context_are_told_before_anything_is_written(settings, tmp_path):
    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    short = file("short.jsonl", '{"question": "Why?", "answer": "Because of the cat."}')
    long = file("long.jsonl", json.dumps({"question": "Why?", "answer": "word " * 200}))
    asked = file("long.txt", "Why?\n" + "word " * 200)
    many = r"question 2 \('word .*\.max_new_tokens 4 is more than .* context of 192; lower"
    fewer = r"short\.jsonl: its first 1 answers have \d+ tokens and KL needs at least 200"
    beyond = r"neutral answer of .*long\.jsonl .* with its prompt, .* context of 192; give shorter"
    bundled = r"^a neutral answer of the bundled neutral_answers\.jsonl \('.* evaluation\.neutral, "
    cases: list[tuple[type[SaesteerError], str, dict[str, Any]]] = [
        (SteeringError, many, {"completions": {"questions": asked}}),
        (
            SteeringError,
            r"question 1 .*\.max_new_tokens 5",
            {"completions": {"max_new_tokens": 500}},
        ),
        (DataError, r"context of 192; shorten it", {"evaluation": {"request": "word " * 200}}),
        (DataError, fewer, {"evaluation": {"neutral": short}}),
        (DataError, beyond, {"evaluation": {"neutral": long}}),
        (DataError, bundled, {"evaluation": {"neutral": "neutral_answers"}}),
    ]
    for kind, text, changes in cases:
        with pytest.raises(kind, match=text):
            run_experiment(RunConfig(**merged(settings, changes)))
    assert list(Path(settings["folder"]).iterdir()) == []


def test_what_does_not_fit_is_said_before_anything_is_loaded(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(context, "load_model", None)

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises((ConfigError, SaeError, ValueError), match=words):
            run_experiment(RunConfig(**{**settings, **changes}))

    site = "blocks.2.hook_resid_post"
    refused(r"blocks\.2\.hook_resid_post is not where SAE .* lives", site=site)
    refused("selection belongs to method clustered_sae", method="pca")
    refused("selection belongs to method", method="pca", selection={"n_features": 64})
    own = {"name": "clustered_sae", "settings": {"selection": LOOSE}}
    refused(r"method\.settings: those of clustered_sae stand beside it", method=own)
    del settings["selection"]
    refused("did you mean 'attributed_sae'", method="attributed_sea")
    refused("has no strength to match", method="system_prompt")
    pca = {"name": "pca", "settings": {"n": 3}}
    refused("method pca: n is not a known setting", method=pca)
    monkeypatch.setattr(
        "saesteer.saes.loading.BUNDLED_SAES", {"blocks.10.hook_resid_post": tmp_path / "assets"}
    )
    refused(r"SAE 'smollm2' is not at .*assets; install saesteer again", sae="smollm2")
    assert list(Path(settings["folder"]).iterdir()) == []


def test_a_plan_keeps_limits_and_other_data_have_another_folder(settings, no_loading, tmp_path):
    limits = {
        "evaluation": {"max_pairs": 3, "neutral_answers": 4},
        "completions": {"n_questions": 1},
    }
    plan = plan_run(RunConfig(**merged(settings, limits)))
    assert [pair.id for pair in plan.held_out] == [pair.id for pair in plan.split.test][:3]
    assert (len(plan.answers), len(plan.questions)) == (4, 1)
    first = plan_run(RunConfig(**settings)).folder
    # A method's name alone is the method without settings of its own.
    named = {"name": "clustered_sae", "settings": {}}
    assert plan_run(RunConfig(**{**settings, "method": named})).folder == first
    lines = Path(settings["pairs"]["source"]).read_text(encoding="utf-8")
    source = tmp_path / "pairs.jsonl"
    source.write_text(lines.replace("glad", "kind", 1), encoding="utf-8")
    assert plan_run(RunConfig(**{**settings, "pairs": {"source": str(source)}})).folder != first


def test_vectors_that_were_scored_before_the_cut_are_not_scored_again(settings, whole, monkeypatch):
    config = RunConfig(**settings)
    measure = pairs_run.EffectMeter.measure
    calls: Counter[str] = Counter()

    def counted(self, vector, *args, **rest):
        calls[f"{vector.method} {vector.name}"] += 1
        if sum(calls.values()) == 3:
            raise KeyboardInterrupt
        return measure(self, vector, *args, **rest)

    monkeypatch.setattr(pairs_run.EffectMeter, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config)
    resumed = run_experiment(config)
    assert sorted(calls.values()) == [1, 1, 1, 2]
    assert numbers(resumed.folder.path) == numbers(whole.folder.path)


def test_the_effect_is_told_before_the_null_is_measured(settings, whole):
    experiment, heard = Steer(RunConfig(**settings)), []

    class Enough(Exception):
        pass

    def watch(metrics):
        heard.append(experiment.headline(metrics)["effect"])
        raise Enough

    experiment.watch = watch
    with pytest.raises(Enough):
        experiment.run()
    assert heard == [whole.metrics["vector"]["effect"]["effect"]]
    files = [file.name for file in experiment.folder.path.glob("evaluation/*")]
    assert files == ["00-clustered_sae.json"]


def test_a_damaged_file_is_named_and_made_again_once_it_is_deleted(copy_of_whole, whole):
    config, folder = copy_of_whole
    for name, damage, undone in (
        ("vector.safetensors", 0, None),
        # What a later stage needs, when that stage is to be done again.
        ("evaluation/00-clustered_sae.json", 0.5, "evaluation"),
        ("activations/train.blocks.1.hook_resid_post.safetensors", 0.5, "features"),
        ("run.json", 0.5, "completions"),
    ):
        if undone is not None:
            (folder / "stages" / f"{undone}.json").unlink()
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * damage)])
        with pytest.raises(SaesteerError, match=rf"{path.name}.*delete it") as told:
            run_experiment(config)
        assert "\n" not in str(told.value)
        path.unlink()
        assert numbers(run_experiment(config).folder.path) == numbers(whole.folder.path), name
    (folder / "metrics.json").unlink()
    for content in ("[]", '{"effect": {}}'):
        (folder / "evaluation/01-difference_in_means.json").write_text(content)
        with pytest.raises(OutputError, match=r"01-difference_in_means\.json holds no result"):
            run_experiment(config)


def test_weights_that_changed_in_the_middle_of_a_run_are_told(copy_of_whole):
    config, folder = copy_of_whole
    (folder / "stages/features.json").unlink()
    record = strict_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps(record | {"sae_fingerprint": "other"}))
    with pytest.raises(MismatchError, match=r"begun with other weights of the sae; delete"):
        run_experiment(config)
