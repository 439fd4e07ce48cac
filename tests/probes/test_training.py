"""A probe run from texts to figures, on a tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from saesteer.data.labelled import read_labelled
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.probe.plan import plan_probes
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.results import Results
from saesteer.probes import ProbeSet
from saesteer.probes.store import open_store
from saesteer.report.probe import confusion_figure, short_names
from saesteer.steering import SteeringVector
from saesteer.utils.errors import ConfigError, DataError, SaesteerError
from saesteer.utils.settings import parse_config


def config_of(settings) -> ProbeConfig:
    return parse_config(settings, kind=ProbeConfig, place="test.yaml")


def test_a_run_leaves_probes_metrics_and_figures_in_its_folder(finished_run):
    path = finished_run.folder.path
    for name in ("config.json", "run.json", "split.json", "metrics.json", "probes.safetensors"):
        assert (path / name).is_file(), name
    assert (path / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    page = (path / "report.html").read_text(encoding="utf-8")
    # The script is embedded, so the page opens offline; what it says itself is its own affair.
    assert re.search(r'<(script|link|img)[^>]*(src|href)="http', page) is None
    assert "layer 2" in page
    assert list(pd.read_csv(path / "layers.csv")["layer"]) == [0, 1, 2]
    assert not list(path.rglob("*.pkl")) and not list(path.rglob("*.npy"))


def test_confusion_counts_add_up_to_the_test_set_in_metrics_and_figure(finished_run):
    metrics = finished_run.metrics
    figure: Any = confusion_figure(metrics)
    assert len(figure.data) == 3
    for drawn, record in zip(figure.data, metrics["layers"], strict=True):
        counts, shares = np.array(record["confusion"]), np.array(drawn.z)
        assert counts.sum(axis=1).tolist() == metrics["test_counts"]
        assert np.array_equal(drawn.text, counts)
        assert shares.sum(axis=1) == pytest.approx(1.0)
        right = np.trace(counts) / metrics["n_test"]
        assert record["accuracy"]["value"] == pytest.approx(right)


def test_short_names_still_tell_the_classes_apart():
    assert short_names(["negative", "neutral", "positive"]) == ["neg", "neu", "pos"]
    assert short_names(["not spam", "not ham"]) == ["not s", "not h"]
    assert short_names(["a", "ab"]) == ["a", "ab"]


def test_figures_are_those_of_scikit_learn_on_the_stored_activations(finished_run):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder = finished_run.folder
    texts = read_labelled(finished_run.metrics["source"])
    store = open_store(next(folder.path.parent.glob("activations/texts-*")))
    place = {text.id: number for number, text in enumerate(texts.texts)}
    split = {k: [place[i] for i in v] for k, v in folder.read_json("split.json").items()}
    for record in finished_run.metrics["layers"]:
        x = store.site(finished_run.probes.layer(record["layer"]).site)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=record["c"], max_iter=5000))
        model.fit(x[split["train"]], texts.labels[split["train"]])
        found = f1_score(
            texts.labels[split["test"]], model.predict(x[split["test"]]), average="macro"
        )
        assert record["macro_f1"]["value"] == pytest.approx(found, abs=0.04)


def test_the_control_is_near_chance_and_the_probe_above_it(finished_run):
    records = finished_run.metrics["layers"]
    assert np.mean([r["control"]["auroc"]["value"] for r in records]) == pytest.approx(
        0.5, abs=0.15
    )
    assert max(r["selectivity"] for r in records) > 0.2
    best = next(r for r in records if r["layer"] == finished_run.metrics["best"])
    assert best["macro_f1"]["value"] > 0.6


def test_the_best_layer_is_chosen_without_the_test_texts(finished_run):
    losses = {r["layer"]: min(r["cv_loss"].values()) for r in finished_run.metrics["layers"]}
    assert finished_run.metrics["best"] == min(losses, key=lambda n: losses[n])
    assert finished_run.probes.best == finished_run.metrics["best"]


def test_the_same_config_again_does_nothing_and_says_the_same(finished_run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr("saesteer.experiments.context.load_model", refuse)
    config = config_of(finished_run.folder.read_json("config.json"))
    again = run_experiment(config)
    assert again.metrics == finished_run.metrics


def test_a_cut_off_run_goes_on_and_gives_the_same_numbers(
    probe_settings, finished_run, monkeypatch
):
    from saesteer.experiments.probe import training

    config = config_of(probe_settings())
    real, calls = training._fit_layer, []

    def failing(*args):
        calls.append(args[-1].layer)
        if len(calls) == 3:
            raise RuntimeError("cut off")
        return real(*args)

    monkeypatch.setattr(training, "_fit_layer", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        run_experiment(config)
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    run = run_experiment(config)
    assert calls == [0, 1, 2, 2]
    keys = ("accuracy", "macro_f1", "auroc", "confusion", "control", "cv_loss", "checks")
    for one, two in zip(run.metrics["layers"], finished_run.metrics["layers"], strict=True):
        assert {k: one[k] for k in keys} == {k: two[k] for k in keys}


BESIDE = """
import json, sys, time
from pathlib import Path
from saesteer.utils.settings import parse_config
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.registry import run_experiment
from saesteer.probes import reading
from saesteer.probes.store import StoreWriter

settings, gate, name, other = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
reading.CHUNK_ROWS = 16
written, write = [], StoreWriter.write

def wait(file):
    while not (gate / file).exists():
        time.sleep(0.02)

def gated(self, *args):
    write(self, *args)
    written.append(1)
    if len(written) == 2:
        (gate / f"{name}-begun").touch()
        wait(f"{other}-begun" if name == "first" else "first-done")

StoreWriter.write = gated
if name == "second":
    wait("first-begun")
run = run_experiment(parse_config(settings, kind=ProbeConfig, place="test"))
(gate / f"{name}-done").touch()
print(json.dumps(run.metrics["layers"]))
"""


def test_two_runs_that_read_alike_at_once_both_end_right(probe_settings, tmp_path):
    import json
    import subprocess
    import sys

    settings = probe_settings(checks=None)
    alone = run_experiment(config_of({**settings, "folder": str(tmp_path / "alone")}))
    asked = [settings, {**settings, "fit": {**settings["fit"], "resamples": 60}}]
    names = ("first", "second")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BESIDE, json.dumps(one), str(tmp_path), *order],
            stdout=subprocess.PIPE,
        )
        for one, order in zip(asked, (names, names[::-1]), strict=True)
    ]
    for process in running:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        layers = json.loads(out.splitlines()[-1])
        for found, wanted in zip(layers, alone.metrics["layers"], strict=True):
            assert found["confusion"] == wanted["confusion"]
            assert list(found["cv_loss"].values()) == pytest.approx(
                list(wanted["cv_loss"].values()), rel=1e-3
            )
    stores = list((Path(settings["folder"]) / "activations").iterdir())
    assert len(stores) == 1


def test_the_store_of_bundled_texts_has_a_name_that_every_system_takes(tmp_path):
    from saesteer.experiments.probe.plan import plan_probes

    plan = plan_probes(ProbeConfig(name="s", folder=str(tmp_path)))
    assert plan.store.name.startswith("bundled-sentiment-")
    assert ":" not in plan.store.name + plan.checks_store.name


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    probe_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is a file; choose another with --set folder="):
        run_experiment(config_of(probe_settings(folder=str(tmp_path / "file" / "runs"))))


def other_weights(folder: Path) -> None:
    """Train the mirror again, as it were: the same shapes, another decoder and encoder."""
    from safetensors.torch import load_file, save_file

    path = next(folder.glob("*.safetensors"))
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    order = np.random.default_rng(3).permutation(weights["W_dec"].shape[0])
    weights["W_dec"], weights["W_enc"] = weights["W_dec"][order], weights["W_enc"][:, order]
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


@pytest.mark.parametrize("name", ["tiny", "another"])
def test_an_sae_trained_again_in_its_folder_is_another_one(
    name, probe_settings, mirror_sae, tmp_path
):
    import shutil

    sae = shutil.copytree(mirror_sae(), tmp_path / "sae")
    settings = probe_settings(reading={"sae": str(sae)}, checks=None)
    settings["sparse"] = {"k": [4], "l1_c": [0.1]}
    first = run_experiment(config_of(settings))
    other_weights(sae)
    again = run_experiment(config_of({**settings, "name": name}))
    assert again.folder.path != first.folder.path
    # What it would be where no earlier SAE had ever been.
    fresh = run_experiment(config_of({**settings, "name": name, "folder": str(tmp_path / "fresh")}))
    for key in ("sparse", "features", "residual"):
        assert again.metrics[key] == fresh.metrics[key]
    assert again.metrics["features"] != first.metrics["features"]
    vectors = [
        SteeringVector.load(r.folder.path / "sparse/k-4.safetensors") for r in (again, fresh)
    ]
    assert torch.equal(vectors[0].raw, vectors[1].raw)


def test_codes_of_an_sae_of_the_same_name_and_other_weights_are_not_used(
    probe_settings, mirror_sae, monkeypatch
):
    from saesteer.experiments.probe import sparse_run
    from saesteer.probes.codes import load_codes

    settings = probe_settings(reading={"sae": str(mirror_sae())}, checks=None)
    settings["sparse"] = {"k": [4], "l1_c": [0.1]}
    first = run_experiment(config_of(settings))
    # As an SAE on the Hub that was replaced: its name says nothing of its weights.
    stale = lambda path: replace(load_codes(path), sae_fingerprint="other", codes=None)  # noqa: E731
    monkeypatch.setattr(sparse_run, "load_codes", stale)
    again = run_experiment(config_of({**settings, "name": "again"}))
    assert again.metrics["sparse"] == first.metrics["sparse"]


def test_two_classes_of_three_share_the_activations(finished_run, monkeypatch):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    settings = finished_run.folder.read_json("config.json")
    settings["fit"]["classes"] = ["negative", "positive"]
    # The plain cases are fewer, so they would have to be read.
    settings["checks"] = None
    run = run_experiment(config_of(settings))
    assert run.metrics["classes"] == ["negative", "positive"]
    assert np.array(run.metrics["layers"][0]["confusion"]).shape == (2, 2)
    assert run.probes.probes[0].weight.shape == (1, 32)


def test_a_run_on_sae_codes_counts_features_and_saves_vectors(probe_settings, mirror_sae):
    settings = probe_settings(reading={"sae": str(mirror_sae())}, checks=None)
    settings["sparse"] = {"k": [1, 4, 16], "l1_c": [0.1, 1.0]}
    run = run_experiment(config_of(settings))
    kinds = [(r["kind"], r["n_features"]) for r in run.metrics["sparse"]]
    assert kinds[:3] == [("k_sparse", 1), ("k_sparse", 4), ("k_sparse", 16)]
    assert [kind for kind, _ in kinds[3:]] == ["l1", "l1", "all"]
    assert len(run.metrics["features"]) == 16
    vector = SteeringVector.load(run.folder.path / "sparse/k-4.safetensors")
    assert len(vector.features) == 4 and vector.site.layer == 1
    # The mirror's decoder rows are plus and minus the unit vectors.
    raw = np.zeros(32)
    for feature in vector.features:
        raw[feature.index % 32] += feature.weight * (1 if feature.index < 32 else -1)
    assert vector.raw.numpy() == pytest.approx(raw, rel=1e-3, abs=1e-5)
    assert ProbeSet.load(run.folder.path).sae == settings["reading"]["sae"]
    assert run_experiment(config_of(settings)).metrics == run.metrics


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fit": {"classes": ["negative", "happy"]}}, ConfigError, "fit.classes names 'happy'"),
        ({"data": {"classes": ["negative", "neutral"]}}, DataError, r"texts\.jsonl:3: label"),
        ({"data": {"test": 500}}, ConfigError, "leave nothing"),
        ({"data": {"source": "nowhere.csv"}}, DataError, "there is no such file"),
        ({"fit": {"folds": 80}}, DataError, "needs at least 82"),
        ({"reading": {"positions": "span"}}, DataError, r"texts\.jsonl:1: the text has no span"),
        ({"reading": {"sae": "no/such"}}, SaesteerError, "no/such"),
        ({"model": {"name": "./nothing"}}, SaesteerError, "nothing"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(
    probe_settings, monkeypatch, change, error, message
):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    settings = probe_settings(**change)
    with pytest.raises(error, match=message):
        run_experiment(config_of(settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": {"c": [0.1, -1]}}, r"fit\.c: .*above 0"),
        ({"fit": {"fold": 3}}, r"fit\.fold is not a known setting \(did you mean 'folds'\?\)"),
        ({"reading": {"layers": [1, 1]}}, "names a layer twice"),
        ({"reading": {"positions": "first"}}, r"reading\.positions"),
        ({"sparse": {"k": [0]}}, "numbers from 1 on"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_a_bad_setting_is_named(probe_settings, change, message):
    settings = probe_settings()
    for key, value in change.items():
        settings[key] = {**settings.get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        config_of(settings)


def test_layers_past_the_last_are_refused_before_reading(probe_settings):
    with pytest.raises(SaesteerError, match="names block 9 and the model has blocks 0 to 2"):
        run_experiment(config_of(probe_settings(reading={"layers": [9]})))


def test_a_text_too_long_for_the_model_is_named(probe_settings, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"text": f"word {n}", "label": "ab"[n % 2]} for n in range(30)]
    rows[7]["text"] = "far too long " * 200
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = probe_settings(data={"source": str(path)}, checks=None)
    with pytest.raises(
        DataError, match=r"long\.jsonl:8: the text .* more than the model's context"
    ):
        run_experiment(config_of(settings))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(SaesteerError, match="holds no finished experiment"):
        Results.open(tmp_path)


def test_other_settings_are_another_run_but_share_the_reading(probe_settings):
    settings = probe_settings()
    plans = [plan_probes(config_of({**settings, "seed": seed})) for seed in (0, 1)]
    assert plans[0].folder != plans[1].folder
    assert plans[0].store == plans[1].store
    last = plan_probes(config_of({**settings, "reading": {"positions": "last"}}))
    assert last.store != plans[0].store
