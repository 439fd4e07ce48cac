"""The site that a result suggests, and what it says where it can suggest none."""

from __future__ import annotations

import json

import numpy as np
import pytest

from saesteer.experiments.patch.suggest import suggest_site
from saesteer.models.sites import Site
from saesteer.utils.errors import DataError
from tests.patching.made_up_results import handover, result


def test_the_site_lies_where_the_words_hand_over_to_the_answer():
    found = suggest_site(handover())
    assert found.best is not None and found.handover == 6
    # Neither the bottom nor the top, which carry everything in any model.
    assert 4 <= found.best.layer <= 7
    assert found.best.site == f"blocks.{found.best.layer}.hook_resid_pre"
    assert "Steer at blocks." in found.sentences[0]
    assert any("From layer 6 on" in said for said in found.sentences)


def test_the_rank_goes_by_effect_times_headroom():
    found = suggest_site(handover())
    scores = [site.score for site in found.ranked]
    assert scores == sorted(scores, reverse=True)
    for site in found.ranked:
        headroom = 1 - site.layer / 10 if site.place == "answer position" else site.layer / 10
        assert site.score == pytest.approx(site.effect * headroom)
        assert site.low is not None and site.high is not None
        assert 0 < site.low <= site.effect <= site.high


def test_positions_to_write_at_follow_the_place():
    early, late = suggest_site(handover(at=2)), suggest_site(handover(at=9))
    assert early.best is not None and early.best.place == "answer position"
    assert early.positions == "from_last_prompt_token"
    assert late.best is not None and late.best.place == "words that differ"
    assert late.positions == "all"


def test_noising_names_the_same_site_as_denoising():
    there = handover()
    mirrored = result(
        1 - there.values, there.dims, mode="noising", coords={"place": there.coords["place"]}
    )
    first, second = suggest_site(there), suggest_site(mirrored)
    assert first.best is not None and second.best is not None
    assert first.best.site == second.best.site
    assert first.best.effect == pytest.approx(second.best.effect)


def test_attribution_that_sees_it_agrees_and_one_that_does_not_is_said_to_disagree():
    there = handover()
    same = suggest_site(there, handover(method="attribution", noise=0.05))
    assert same.best is not None and same.best.agrees is True
    blind = suggest_site(there, result(
        np.zeros_like(there.values), there.dims, coords={"place": there.coords["place"]},
        method="attribution",
    ))  # fmt: skip
    assert blind.best is not None and blind.best.agrees is False
    assert any("less than half of that" in said for said in blind.sentences)


def test_an_sae_is_placed_among_the_layers():
    after = suggest_site(handover(), sae_site=Site(5, "hook_resid_post"))
    before = suggest_site(handover(), sae_site=Site(6, "hook_resid_pre"))
    assert after.sae is not None and after.sae == before.sae and after.sae.layer == 6
    assert after.sae_rank is not None and after.sae_rank >= 1
    assert any("The SAE's site blocks.5.hook_resid_post is rank" in s for s in after.sentences)
    elsewhere = suggest_site(handover(), sae_site=Site(5, "hook_mlp_out"))
    assert elsewhere.sae is None and elsewhere.sae_rank is None
    assert any("nothing is said of it" in said for said in elsewhere.sentences)


def test_noise_suggests_nothing_and_says_so():
    rng = np.random.default_rng(4)
    noise = result(
        rng.normal(size=(10, 4, 2)), ("layer", "place"),
        coords={"place": ("words that differ", "answer position")},
        clean=np.full(10, 100.0),
    )  # fmt: skip
    found = suggest_site(noise)
    assert found.best is None and found.ranked == () and found.positions is None
    assert "No site is named" in found.sentences[0]


def test_places_that_most_pairs_lack_are_left_out_and_said_to_be():
    there = handover()
    values = there.values.copy()
    values[4:, :, 1] = np.nan
    found = suggest_site(result(values, there.dims, coords={"place": there.coords["place"]}))
    assert {site.place for site in found.ranked} == {"answer position"}
    assert any("Only 4 of 12 pairs" in said for said in found.sentences)


def test_one_prompt_has_no_interval_and_still_a_site():
    found = suggest_site(handover(pairs=1))
    assert found.best is not None and found.best.low is None and found.best.high is None


def test_a_suggestion_is_json():
    record = suggest_site(handover(), sae_site=Site(5)).record()
    assert json.loads(json.dumps(record, allow_nan=False))["best"]["site"].startswith("blocks.")


def test_other_results_are_refused():
    with pytest.raises(DataError, match="patch resid_pre"):
        suggest_site(result(np.zeros((2, 3, 4)), ("layer", "head"), component="z"))
