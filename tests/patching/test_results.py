"""Results over prompts: their file, effects and intervals, positions by name, the site to steer."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from saesteer.models.sites import Site
from saesteer.patching import PatchResult
from saesteer.patching.suggest import suggest_site
from saesteer.patching.summary import (
    ANSWER,
    BEFORE,
    DIFFERS,
    FIRST,
    by_place,
    effects,
    has_gap,
    sample_means,
    token_groups,
)
from saesteer.utils.errors import OutputError
from tests.patching.made_up_results import batch, handover, result


def test_a_result_comes_back_whole(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 3, 2))
    values[0, 1, 1] = np.nan
    made = result(
        values, ("layer", "position"), mode="noising", metric="kl",
        coords={"position": (4, 7)}, tokens=((" a", "\n"), ("", "<b>")),
    )  # fmt: skip
    made.save(tmp_path / "r.safetensors")
    back = PatchResult.load(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(back.values, made.values)
    for name in ("method", "component", "mode", "metric", "dims", "coords", "pairs", "tokens"):
        assert getattr(back, name) == getattr(made, name), name
    np.testing.assert_array_equal(back.clean, made.clean)

    # A missing or damaged one is one sentence.
    path = tmp_path / "other.safetensors"
    for content in (None, b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(OutputError, match="holds no patch result"):
            PatchResult.load(path)


def test_a_share_is_the_summed_change_over_the_summed_gap():
    rng = np.random.default_rng(1)
    clean, corrupted = rng.normal(3, 1, 20), rng.normal(-1, 1, 20)
    values = rng.normal(size=(20, 3, 4))
    found = effects(result(values, ("layer", "head"), clean=clean, corrupted=corrupted), "share")
    expected = (values - corrupted[:, None, None]).sum(0) / (clean - corrupted).sum()
    np.testing.assert_allclose(found.value, expected, atol=1e-12)
    assert (found.low < found.value).all() and (found.value < found.high).all()

    # One prompt without a gap does not drown the others.
    clean, corrupted = np.array([1.0, 1.0, 1e-9]), np.zeros(3)
    values = np.full((3, 1, 1), 0.5)
    one = result(values, ("layer", "head"), clean=clean, corrupted=corrupted)
    assert effects(one, "share").value.item() == pytest.approx(0.75)
    assert abs(one.mean().item()) > 1e6


def test_the_interval_is_that_of_a_plain_bootstrap():
    rng = np.random.default_rng(2)
    values = rng.normal(0.4, 0.3, (40, 1, 1))
    found = effects(result(values, ("layer", "head")), "share", resamples=20_000)
    drawn = values.ravel()[rng.integers(40, size=(20_000, 40))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low.item() == pytest.approx(low, abs=0.01)
    assert found.high.item() == pytest.approx(high, abs=0.01)


def test_cells_that_a_prompt_lacks_are_left_out_of_sum_and_gap():
    values = np.array([[[0.5, np.nan]], [[0.5, np.nan]], [[0.5, 1.0]]])
    found = effects(result(values, ("layer", "position")), "share")
    np.testing.assert_allclose(found.value, [[0.5, 1.0]])
    np.testing.assert_array_equal(found.n, [[3, 1]])
    assert np.isnan(found.low[0, 1])


def test_a_gap_is_one_that_chance_would_not_make():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=30)
    names = [f"pair {i}" for i in range(30)]
    assert not has_gap(noise - noise.mean(), np.zeros(30), names)
    assert has_gap(noise + 2, np.zeros(30), names)
    assert not has_gap(np.zeros(30), noise + 2, names)
    assert not has_gap(np.array([]), np.array([]), [])
    assert not has_gap(np.array([np.nan]), np.array([0.0]), ["a"])


def test_a_pair_and_its_reverse_are_one_sample():
    rng = np.random.default_rng(5)
    values = rng.normal(0.4, 0.3, (10, 1, 1))
    names = tuple(f"pair {i}" for i in range(10))
    once = effects(result(values, ("layer", "head"), pairs=names), "share")
    both = tuple(n for name in names for n in (name, f"{name} reversed"))
    twice = effects(result(values.repeat(2, axis=0), ("layer", "head"), pairs=both), "share")
    # The same numbers given a second time make nothing surer.
    assert (twice.low, twice.high) == (once.low, once.high)
    np.testing.assert_allclose(sample_means(values.repeat(2, axis=0), both), values)
    alone = result(values[:2], ("layer", "head"), pairs=("a", "a reversed"))
    assert np.isnan(effects(alone, "share").low).all()


def test_positions_are_named_by_what_the_two_prompts_share():
    assert token_groups(batch(), "denoising") == (
        (FIRST, BEFORE, DIFFERS, DIFFERS, ANSWER),
        (FIRST, BEFORE, DIFFERS, "same end", ANSWER),
    )
    assert token_groups(batch(), "noising")[0] == ("", FIRST, BEFORE, DIFFERS, ANSWER)

    # Roles of a pair name its positions, and padding stays nameless.
    made = batch()
    pairs = tuple(replace(p, roles={"noun": 2, "end": 3}) for p in made.pairs)
    named = token_groups(replace(made, pairs=pairs), "noising")
    assert named[0] == ("", FIRST, "other words", "noun", ANSWER)
    # The clean noun has no counterpart in the longer corrupted prompt.
    assert token_groups(replace(made, pairs=pairs), "denoising")[0] == (
        FIRST, "other words", "other words", "other words", ANSWER,
    )  # fmt: skip


def test_places_sum_the_changes_of_their_positions():
    names = token_groups(batch(), "denoising")
    values = np.array([[[0.1, 0.2, 0.3, 0.4, 0.5]], [[0.1, 0.2, 0.3, 0.4, 0.5]]]) + 2
    moved = by_place(
        result(values, ("layer", "position"), clean=np.full(2, 4.0), corrupted=np.full(2, 2.0)),
        names,
    )
    assert moved.dims == ("layer", "place") and moved.coords["place"][-1] == ANSWER
    at = dict(zip(moved.coords["place"], np.moveaxis(moved.values, 2, 0), strict=True))
    np.testing.assert_allclose(at[DIFFERS].ravel(), [2.7, 2.3])
    np.testing.assert_allclose(at["same end"].ravel(), [np.nan, 2.4])
    np.testing.assert_allclose(at[ANSWER].ravel(), [2.5, 2.5])


def test_the_site_lies_where_the_words_hand_over_to_the_answer():
    found = suggest_site(handover())
    assert found.best is not None and found.handover == 6
    # Neither the bottom nor the top, which carry everything in any model.
    assert 4 <= found.best.layer <= 7
    assert found.best.site == f"blocks.{found.best.layer}.hook_resid_pre"
    assert "Steer at blocks." in found.sentences[0]
    assert any("From layer 6 on" in said for said in found.sentences)

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

    record = suggest_site(handover(), sae_site=Site(5)).record()
    assert json.loads(json.dumps(record, allow_nan=False))["best"]["site"].startswith("blocks.")
