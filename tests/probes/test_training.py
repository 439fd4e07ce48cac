"""A probe run from texts to figures, on a tiny model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saesteer.data.labelled import read_labelled
from saesteer.experiments.probe.config import ProbeConfig, plan_probes
from saesteer.experiments.registry import run_experiment
from saesteer.probes import LinearProbe, ProbeSet
from saesteer.probes.reading import LayerStore
from saesteer.report.probe import confusion_figure
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


def test_figures_are_those_of_scikit_learn_on_the_stored_activations(finished_run):
    folder = finished_run.folder
    texts = read_labelled(finished_run.metrics["source"])
    store = LayerStore(next(folder.path.parent.glob("activations/texts-*")))
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
    assert best["macro_f1"]["value"] > 0.5

    # The best layer is chosen without the test texts.
    losses = {r["layer"]: min(r["cv_loss"].values()) for r in finished_run.metrics["layers"]}
    assert finished_run.metrics["best"] == min(losses, key=lambda n: losses[n])
    assert finished_run.probes.best == finished_run.metrics["best"]


def test_a_cut_off_run_goes_on_and_gives_the_same_numbers(
    probe_settings, finished_run, monkeypatch
):
    config = config_of(probe_settings())
    real, calls = LinearProbe.fit, []

    def failing(site, *args, **kwargs):
        calls.append(site.layer)
        if len(calls) == 3:
            raise RuntimeError("cut off")
        return real(site, *args, **kwargs)

    monkeypatch.setattr(LinearProbe, "fit", failing)
    with pytest.raises(RuntimeError, match="cut off"):
        run_experiment(config)
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    run = run_experiment(config)
    assert calls == [0, 1, 2, 2]
    keys = ("accuracy", "macro_f1", "auroc", "confusion", "control", "cv_loss", "checks")
    for one, two in zip(run.metrics["layers"], finished_run.metrics["layers"], strict=True):
        assert {k: one[k] for k in keys} == {k: two[k] for k in keys}


def other_weights(folder: Path) -> None:
    """Train the mirror again, as it were: the same shapes, another decoder and encoder."""
    from safetensors.torch import load_file, save_file

    path = next(folder.glob("*.safetensors"))
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    order = np.random.default_rng(3).permutation(weights["W_dec"].shape[0])
    weights["W_dec"], weights["W_enc"] = weights["W_dec"][order], weights["W_enc"][:, order]
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def test_an_sae_trained_again_in_its_folder_is_another_one(probe_settings, mirror_sae, tmp_path):
    sae = shutil.copytree(mirror_sae(), tmp_path / "sae")
    settings = probe_settings(reading={"sae": str(sae)}, checks=None)
    settings["sparse"] = {"k": [4], "l1_c": [0.1]}
    first = run_experiment(config_of(settings))
    other_weights(sae)
    # What it would be where no earlier SAE had ever been.
    fresh = run_experiment(config_of({**settings, "folder": str(tmp_path / "fresh")}))
    again = run_experiment(config_of(settings))
    assert again.folder.path != first.folder.path
    for key in ("sparse", "features", "residual"):
        assert again.metrics[key] == fresh.metrics[key]
    assert again.metrics["features"] != first.metrics["features"]
    vectors = [
        SteeringVector.load(run.folder.path / "sparse/k-4.safetensors") for run in (again, fresh)
    ]
    assert torch.equal(vectors[0].raw, vectors[1].raw)


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
    for feature in vector.sae_features:
        raw[feature.index % 32] += feature.weight * (1 if feature.index < 32 else -1)
    assert vector.raw.numpy() == pytest.approx(raw, rel=1e-3, abs=1e-5)
    assert ProbeSet.load(run.folder.path).sae == settings["reading"]["sae"]
    assert run_experiment(config_of(settings)).metrics == run.metrics


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fit": {"classes": ["negative", "happy"]}}, ConfigError, "fit.classes names 'happy'"),
        ({"data": {"test": 500}}, ConfigError, "leave nothing"),
        ({"fit": {"folds": 80}}, DataError, "needs at least 82"),
        ({"reading": {"positions": "span"}}, DataError, r"texts\.jsonl:1: the text has no span"),
        ({"reading": {"sae": "no/such"}}, SaesteerError, "no/such"),
        ({"fit": {"c": [0.1, -1]}}, ConfigError, r"fit\.c: .*above 0"),
        ({"sparse": {"k": [0]}}, ConfigError, "numbers from 1 on"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(
    probe_settings, monkeypatch, change, error, message
):
    monkeypatch.setattr("saesteer.experiments.context.load_model", None)
    settings = {"sparse": {}, **probe_settings()}
    settings |= {key: {**settings.get(key, {}), **value} for key, value in change.items()}
    with pytest.raises(error, match=message):
        run_experiment(config_of(settings))


def test_other_settings_are_another_run_but_share_the_reading(probe_settings):
    settings = probe_settings()
    plans = [plan_probes(config_of({**settings, "seed": seed})) for seed in (0, 1)]
    assert plans[0].folder != plans[1].folder
    assert plans[0].store == plans[1].store
    last = plan_probes(config_of({**settings, "reading": {"positions": "last"}}))
    assert last.store != plans[0].store
    # A name that every system takes.
    bundled = plan_probes(ProbeConfig(name="s", folder=settings["folder"]))
    assert bundled.store.name.startswith("bundled-sentiment-")
