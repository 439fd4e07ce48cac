"""SAE features patched one by one and by cluster, against passes with the change made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.patching.metrics import metric_named
from saesteer.patching.patcher import activation_patching
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, MismatchError, SiteError
from tests.patching.engine_prompts import EQUAL, UNEQUAL, made_up_batch, unpadded

LOGITS = metric_named("logit_difference")


@pytest.fixture(scope="module")
def sae_at(mirror_sae):
    return lambda site, gain=1.0, **shape: load_sae(str(mirror_sae(site=site, gain=gain, **shape)))


def by_hand(model, batch, sae, features: list[int], columns: list[int] | None) -> np.ndarray:
    """Every pair's number, from one unpadded pass each on the bridge."""
    values = []
    for i in range(len(batch)):
        clean, corrupted, steps, start = unpadded(batch, i)
        with torch.no_grad():
            theirs, mine = (
                sae.encode(model.run_with_cache(row[None])[1][str(sae.site)][0].flatten(1))
                for row in (clean, corrupted)
            )

        def add(now, hook, steps=steps, start=start, theirs=theirs, mine=mine):
            out = now.clone()
            for b, a in steps.items():
                if columns is None or start + b in columns:
                    change = (theirs[a] - mine[b])[features] @ sae.decoder[features]
                    out[0, b] += change.reshape(out[0, b].shape)
            return out

        with torch.no_grad():
            logits = model.run_with_hooks(corrupted[None], fwd_hooks=[(str(sae.write_site), add)])
        values.append(float(logits[0, -1, batch.right[i]] - logits[0, -1, batch.wrong[i]]))
    return np.array(values)


@pytest.mark.parametrize("hook", ["hook_resid_post", "attn.hook_z"])
def test_single_features_are_as_written_by_hand(hook, tiny_llama, sae_at):
    sae, batch = sae_at(f"blocks.1.{hook}", gain=0.7), made_up_batch(UNEQUAL)
    chosen = [3, 40, 17]
    result = activation_patching(tiny_llama, batch, "sae", LOGITS, sae=sae, features=chosen)
    assert result.dims == ("feature",) and result.coords == {"feature": (3, 40, 17)}
    for place, feature in enumerate(chosen):
        wanted = by_hand(tiny_llama, batch, sae, [feature], None)
        np.testing.assert_allclose(result.values[:, place], wanted, atol=1e-4)


def test_one_position_at_a_time_is_as_written_by_hand(tiny_model, sae_at):
    model, batch = tiny_model("gemma3"), made_up_batch(UNEQUAL)
    sae = sae_at("blocks.1.hook_resid_post")
    clusters = {"some": [1, 5, 33], "one": [20]}
    result = activation_patching(
        model, batch, "sae", LOGITS, sae=sae, clusters=clusters, by_position=True
    )
    assert result.dims == ("cluster", "position")
    for place, features in enumerate(clusters.values()):
        for column in range(batch.width):
            got = result.values[:, place, column]
            wanted = by_hand(model, batch, sae, features, [column])
            missing = (batch.to_clean[:, column] < 0).numpy()
            assert (np.isnan(got) == missing).all()
            np.testing.assert_allclose(got[~missing], wanted[~missing], atol=1e-4)


def test_all_features_of_a_perfect_sae_are_the_residual_stream(tiny_model, sae_at):
    model, batch = tiny_model("gpt2"), made_up_batch(UNEQUAL)
    sae = sae_at("blocks.2.hook_resid_post")
    features = activation_patching(
        model, batch, "sae", LOGITS, sae=sae, clusters={"all": range(64)}, by_position=True
    )
    stream = activation_patching(model, batch, "resid_post", LOGITS, layers=[2])
    np.testing.assert_allclose(features.values[:, 0], stream.values[:, 0], atol=1e-4)
    np.testing.assert_allclose(features.normalised()[:, 0, -1], 1, atol=1e-4)


def test_without_a_choice_all_differing_features_are_patched(tiny_llama, sae_at):
    batch, sae = made_up_batch(EQUAL), sae_at("blocks.1.hook_resid_post")
    every = activation_patching(tiny_llama, batch, "sae", LOGITS, sae=sae)
    assert len(every.coords["feature"]) > 32
    # Small memory splits the pairs; what differs is then looked for in all of them first.
    split = activation_patching(tiny_llama, batch, "sae", LOGITS, sae=sae, memory_gb=1e-5)
    assert split.coords == every.coords
    np.testing.assert_allclose(split.values, every.values, atol=1e-5)


def test_unusable_arguments_are_said_in_a_sentence(tiny_llama, sae_at):
    batch, sae = made_up_batch(EQUAL), sae_at("blocks.1.hook_resid_post")

    arguments: dict[str, Any]
    for arguments, kind, says in (
        ({}, ConfigError, "needs an SAE"),
        ({"sae": sae, "features": [64]}, ConfigError, "features 0 to 63"),
        ({"sae": sae, "features": [1], "clusters": {"a": [1]}}, ConfigError, "exclude each other"),
        ({"sae": sae, "layers": [0]}, ConfigError, "layer 1 alone"),
        ({"sae": sae_at("blocks.1.hook_resid_post", d_in=16)}, MismatchError, "16 dimensions"),
        ({"sae": sae_at("blocks.1.mlp.hook_out")}, SiteError, "hook_z"),
    ):
        component = arguments.pop("component", "sae")
        with pytest.raises(kind, match=says):
            activation_patching(tiny_llama, batch, component, LOGITS, **arguments)
