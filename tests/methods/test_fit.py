"""`fit` on a real model: the vector that the command makes, and what it says of bad calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.data import load_pairs, split_pairs
from saesteer.experiments.registry import run_experiment
from saesteer.experiments.steer.config import RunConfig
from saesteer.methods import FitContext, ObjectiveSettings, RandomDirection, ReadingSettings
from saesteer.methods.registry import build_method, method_entry
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, MismatchError

LOOSE = {"max_firing": 1.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "attributed_sae": {"n_features": 6, "selection": LOOSE},
    "clustered_sae": {"selection": LOOSE, "regression": {"method": "omp"}},
    "caa_answers": {},
    "top_feature_output_score": {},
}
OBJECTIVE = {"kl_target": 0.05, "fisher_samples": 2, "prompted": 0.0, "neutral_answers": 8}


@pytest.fixture(scope="module")
def settings(tiny_settings, roomy_folder) -> dict[str, Any]:
    """Of a run with the bundled neutral answers, which `fit` trains with too."""
    given = tiny_settings("llama")
    del given["evaluation"]["neutral"], given["selection"]
    given["model"]["name"] = str(roomy_folder)
    return {**given, "objective": OBJECTIVE}


@pytest.fixture(scope="module")
def parts(settings):
    return split_pairs(load_pairs(settings["pairs"]["source"]), validation=0.2, test=0.3, seed=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_gives_the_vector_that_the_command_saves(name, settings, parts, roomy_model):
    own = SETTINGS[name]
    chosen = {"method": {"name": name, "settings": own}}
    if name == "clustered_sae":
        clustering = {"min_separation": 0.5}
        chosen = {**own, "clustering": clustering}
        own = {**own, "clustering": clustering}
    saved = run_experiment(RunConfig(**{**settings, **chosen})).vector
    method: Any = build_method(name, own)
    fitted = method.fit(
        roomy_model,
        parts.train,
        sae=load_sae(settings["sae"]),
        validation=parts.validation,
        objective=ObjectiveSettings(**OBJECTIVE),
    )
    vector = fitted.vector_
    assert vector.method == saved.method == name
    torch.testing.assert_close(vector.raw, saved.raw, rtol=1e-6, atol=1e-6)
    assert vector.residual_norm == pytest.approx(saved.residual_norm, rel=1e-6)
    assert vector.model_fingerprint == saved.model_fingerprint
    assert (vector.site, vector.read_positions) == (saved.site, saved.read_positions)


def test_without_an_sae_a_site_is_enough_and_the_sae_s_own_gives_the_same(
    settings, parts, roomy_model
):
    sae = load_sae(settings["sae"])
    method: Any = build_method("difference_in_means", {})
    by_site = method.fit(roomy_model, parts.train, site=str(sae.write_site)).vector_
    by_sae = method.fit(roomy_model, parts.train, sae=sae, site=sae.write_site).vector_
    assert torch.equal(by_site.raw, by_sae.raw)
    assert by_site.name == parts.train.name
    last = ReadingSettings(positions="last")
    other = method.fit(roomy_model, parts.train, sae=sae, reading=last).vector_
    assert not torch.allclose(other.raw, by_sae.raw, atol=1e-3)


def test_two_fits_share_what_they_were_fitted_to(settings, parts, roomy_model, monkeypatch):
    given = FitContext(roomy_model, parts.train, sae=load_sae(settings["sae"]), seed=4)
    first = RandomDirection(1).fit_in(given).vector_
    monkeypatch.setattr("saesteer.methods.fit_context.read_pair_activations", None)
    again = RandomDirection(1).fit_in(given).vector_
    assert torch.equal(first.raw, again.raw)
    assert method_entry("attributed_sae").needs == {"objective"}


def test_what_does_not_belong_together_is_a_sentence(settings, parts, roomy_model):
    sae = load_sae(settings["sae"])
    method: Any = build_method("difference_in_means", {})
    with pytest.raises(ConfigError, match=r"no site to read .* sae=, or a site such as"):
        method.fit(roomy_model, parts.train)
    with pytest.raises(ConfigError, match=r"works on SAE features; give it an SAE"):
        build_method("clustered_sae", {}).fit(roomy_model, parts.train, site=sae.site)
    with pytest.raises(MismatchError, match=r"site blocks.0.* is not where SAE .* writes"):
        method.fit(roomy_model, parts.train, sae=sae, site="blocks.0.hook_resid_post")
