"""Attribution against autograd by hand, whose parts add up to what patching does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from saesteer.patching import patch
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.batch import encode_pairs
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.pairs import PromptPair
from saesteer.patching.result import Method, PatchResult
from saesteer.patching.summary import agreement
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError
from tests.by_hand import count_hooks
from tests.patching.conftest import UNLIKE
from tests.patching.engine_prompts import HOOKS, unpadded
from tests.patching.made_up_results import result

EQUAL = (
    PromptPair("The cat sat on the mat", "The dog ran on the mat", "a", "b", name="same length"),
    PromptPair("The cat sat on the mat", "The mat sat on the cat", "c", "b"),
)
UNEQUAL = (
    *EQUAL[:1],
    PromptPair("I like sunny weather", "I like helping", "c", "d"),
    PromptPair("The weather today is warm.", "The warm weather is today.", "s", "d"),
)
COLUMNS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "q", "k", "v")
DIFFERENCE = metric_named("logit_difference")
integrated = partial(patch, method="integrated_gradients")


# Where the parts of a block stand in the Hugging Face models.
PARTS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "blocks": "model.layers",
        "resid_mid": ("pre_feedforward_layernorm", "input"),
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
        "z": ("self_attn.o_proj", "input"),
        "q": ("self_attn.q_proj", "output"),
        "k": ("self_attn.k_proj", "output"),
        "v": ("self_attn.v_proj", "output"),
    },
    "gpt2": {
        "blocks": "transformer.h",
        "resid_mid": ("ln_2", "input"),
        "attn_out": ("attn", "output"),
        "mlp_out": ("mlp", "output"),
        "z": ("attn.c_proj", "input"),
    },
}


@UNLIKE
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_every_cell_is_the_gradient_times_the_difference(arch, mode, tiny_model, hf_model):
    batch = encode_pairs(tiny_model(arch), UNEQUAL)
    names = [name for name in (*COLUMNS, *HEADS) if name in PARTS[arch] or "resid" in name]
    found = attribution_patching(
        tiny_model(arch), batch, (*names, "pattern"), DIFFERENCE, mode=mode, by_position=True
    )
    reference = hf_model(arch)
    reference.set_attn_implementation("eager")
    for pair in range(len(batch)):
        wanted, clean, corrupted = _by_hand(reference, arch, batch, pair, mode, names)
        for name in (*names, "pattern"):
            ours = found[name]
            np.testing.assert_allclose(ours.clean[pair], clean, atol=2e-5)
            np.testing.assert_allclose(ours.corrupted[pair], corrupted, atol=2e-5)
            np.testing.assert_allclose(ours.values[pair], wanted[name], atol=5e-5, rtol=1e-4)
    # Over all positions at once a head's effects are summed.
    whole = attribution_patching(tiny_model(arch), batch, ("z", "pattern"), DIFFERENCE, mode=mode)
    for name, together in whole.items():
        start = together.corrupted if mode == "denoising" else together.clean
        summed = np.nansum(found[name].values - start[:, None, None, None], axis=-1)
        np.testing.assert_allclose(together.values, start[:, None, None] + summed, atol=5e-5)


def _by_hand(model, arch, batch, pair, mode, names):
    """Return every component's cells of one pair, from unpadded prompts and plain autograd."""
    source_ids, ids, steps, pads = unpadded(batch, pair, mode)
    answers = batch.right[pair], batch.wrong[pair]
    goal, source = _run(model, arch, source_ids, answers, names)
    start, own = _run(model, arch, ids, answers, names)
    cells = {}
    for name, layers in own.items():
        gradients = torch.autograd.grad(start, layers, retain_graph=True)
        found = [
            _effects(name, steps, [x[0].detach() for x in each], pads)
            for each in zip(source[name], layers, gradients, strict=True)
        ]
        cells[name] = start.item() + torch.stack(found).numpy()
    clean, corrupted = (goal, start) if mode == "denoising" else (start, goal)
    return cells, clean.item(), corrupted.item()


def _effects(name, steps, parts, pads):
    source, own, gradient = parts
    heads = own.shape[0] if name == "pattern" else {"k": 2, "v": 2, "z": 4, "q": 4}.get(name, 1)
    cells = torch.full((heads, pads + own.shape[-2]), float("nan"))
    for mine, theirs in steps.items():
        if name == "pattern":
            row = torch.zeros_like(own[:, mine])
            for key, other in steps.items():
                row[:, key] = source[:, theirs, other]
            effect = (gradient[:, mine] * (row - own[:, mine])).sum(-1)
        else:
            effect = gradient[mine] * (source[theirs] - own[mine])
            effect = effect.reshape(heads, -1).sum(-1)
        cells[:, pads + mine] = effect
    return cells if name in (*HEADS, "pattern") else cells[0]


def _run(model, arch, ids, answers, names):
    """Return the logit difference and every component's tensors, [1, ...] for each layer."""
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = []
    for block in model.get_submodule(PARTS[arch]["blocks"]):
        for name in names:
            path, side = PARTS[arch].get(name) or ("", "input" if name[-3:] == "pre" else "output")
            module = block.get_submodule(path)

            def hook(module, args, kwargs, output=None, name=name):
                whole = output if output is not None else [*args, *kwargs.values()][0]
                kept[name].append(whole[0] if isinstance(whole, tuple) else whole)

            put = {
                "input": module.register_forward_pre_hook,
                "output": module.register_forward_hook,
            }
            handles.append(put[side](hook, with_kwargs=True))
    out = model(input_ids=ids[None], output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    last = out.logits[0, -1]
    return last[answers[0]] - last[answers[1]], {**kept, "pattern": list(out.attentions)}


def test_features_and_clusters_add_up(tiny_llama, mirror_sae):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    sae = load_sae(mirror_sae())
    groups: Any = {"low": range(20), "high": [40, 41, 41]}
    chosen: list[dict[str, Any]] = [{"features": range(64)}, {}, {"clusters": groups}]
    every, alive, clusters = (
        patch(tiny_llama, batch, "sae", DIFFERENCE, method="attribution", sae=sae, **how)
        for how in chosen
    )
    layer = patch(tiny_llama, batch, "resid_post", DIFFERENCE, method="attribution", layers=[1])
    effect = every.values - every.corrupted[:, None]
    # The mirror SAE gives back what it gets, so that all its features make up the activation.
    whole = np.nansum(layer.values[:, 0] - layer.corrupted[:, None], axis=1)
    np.testing.assert_allclose(effect.sum(axis=1), whole, atol=1e-4)
    assert clusters.dims == ("cluster",) and clusters.coords["cluster"] == ("low", "high")
    np.testing.assert_allclose(
        clusters.values - clusters.corrupted[:, None],
        np.stack([effect[:, :20].sum(axis=1), effect[:, 40:42].sum(axis=1)], axis=1),
        atol=1e-4,
    )
    assert 0 < len(alive.coords["feature"]) <= 64
    places = [every.coords["feature"].index(feature) for feature in alive.coords["feature"]]
    np.testing.assert_allclose(alive.values, every.values[:, places], atol=1e-6)


def test_it_works_inside_inference_mode_and_leaves_no_hook(tiny_llama):
    batch = encode_pairs(tiny_llama, EQUAL)
    before = patch(tiny_llama, batch, "resid_mid", DIFFERENCE, method="attribution")
    hooks = count_hooks(tiny_llama)
    with torch.inference_mode():
        inside = patch(tiny_llama, batch, "resid_mid", DIFFERENCE, method="attribution")
    np.testing.assert_array_equal(inside.values, before.values)

    def fails(logits, rows):
        raise RuntimeError("no score")

    with pytest.raises(RuntimeError, match="no score"):
        patch(tiny_llama, batch, "z", Metric("broken", fails), method="attribution")
    assert count_hooks(tiny_llama) == hooks


def _gap(result, whole: np.ndarray) -> float:
    """Return how far the cells' summed effects are from the effect of patching them all."""
    start = result.corrupted if result.mode == "denoising" else result.clean
    effects = result.values.reshape(len(start), -1) - start[:, None]
    return float(np.abs(np.nansum(effects, axis=1) - (whole - start)).max())


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_the_inputs_effects_sum_to_the_whole_gap(arch, mode, tiny_model):
    batch = encode_pairs(tiny_model(arch), EQUAL)
    gaps = []
    for steps in (1, 32):
        how: dict[str, Any] = {"steps": steps, "layers": [0], "mode": mode}
        found = integrated(tiny_model(arch), batch, "resid_pre", DIFFERENCE, **how)
        goal = found.clean if mode == "denoising" else found.corrupted
        gaps.append(_gap(found, goal))
    assert gaps[1] < 0.01 * float(np.abs(found.clean - found.corrupted).max())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("component", ["attn_out", "z", "k", "pattern"])
def test_a_layers_effects_sum_to_patching_the_whole_layer(component, tiny_model):
    model = tiny_model("gemma3")
    batch = encode_pairs(model, EQUAL)
    for layer in (0, 2):
        name = f"blocks.{layer}.{HOOKS[component]}"
        with torch.no_grad():
            kept = model.run_with_cache(batch.clean)[1][name]
            hooks = [(name, lambda now, hook, kept=kept: kept)]
            logits = model.run_with_hooks(batch.corrupted, fwd_hooks=hooks)[:, -1].double()
        at = torch.arange(len(batch))
        whole = (logits[at, batch.right] - logits[at, batch.wrong]).numpy()
        how: dict[str, Any] = {"line": "activations", "layers": [layer]}
        gaps = [
            _gap(integrated(model, batch, component, DIFFERENCE, steps=steps, **how), whole)
            for steps in (1, 32)
        ]
        assert gaps[1] < 0.01
        assert gaps[1] <= gaps[0] + 1e-5


def test_the_gradient_is_averaged_over_the_middles_of_the_steps(tiny_llama, hf_model):
    batch = encode_pairs(tiny_llama, EQUAL[:1])
    found = integrated(tiny_llama, batch, "z", DIFFERENCE, steps=3)
    model = hf_model("llama")
    embed = model.get_input_embeddings()
    near, far = embed(batch.corrupted), embed(batch.clean)

    def run(inputs):
        kept = []
        handles = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
            for layer in model.model.layers
        ]
        last = model(inputs_embeds=inputs).logits[0, -1]
        for handle in handles:
            handle.remove()
        return last[batch.right[0]] - last[batch.wrong[0]], kept

    slopes = []
    for point in (1 / 6, 3 / 6, 5 / 6):
        score, kept = run(near + point * (far - near))
        slopes.append(torch.stack(torch.autograd.grad(score, kept)))
    (start, own), (_, other) = run(near), run(far)
    effect = torch.stack(slopes).mean(0) * (torch.stack(other) - torch.stack(own))
    wanted = start + effect.reshape(3, -1, 4, 8).sum((1, 3))
    np.testing.assert_allclose(found.values[0], wanted.detach(), atol=2e-5)


@pytest.mark.parametrize("line", ["inputs", "activations"])
def test_it_sees_what_a_flat_metric_hides_from_attribution(tiny_llama, line):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    options: dict[str, Any] = {"mode": "noising", "layers": [0, 1]}
    flat = patch(tiny_llama, batch, "z", metric_named("kl"), method="attribution", **options)
    found = integrated(tiny_llama, batch, "z", metric_named("kl"), line=line, **options)
    assert np.abs(flat.values).max() < 1e-5
    assert np.abs(found.values).max() > 1e-3


FLAT = Metric("accuracy", lambda logits, rows: (logits[:, 0] > logits[:, 1]).float(), True)


@pytest.mark.parametrize(
    ("metric", "options", "says"),
    [
        (DIFFERENCE, {"steps": 0}, "steps"),
        (DIFFERENCE, {"line": "curved"}, "line"),
        (FLAT, {}, "no gradient"),
    ],
)
def test_what_cannot_be_attributed_is_refused(tiny_llama, metric, options, says):
    with pytest.raises(ConfigError, match=says):
        integrated(tiny_llama, encode_pairs(tiny_llama, EQUAL), "z", metric, **options)


CLEAN, CORRUPTED = np.array([3.0, 2.0]), np.array([-1.0, 1.0])


def _result(values: np.ndarray, method: Method = "activation") -> PatchResult:
    known: dict[str, Any] = {"clean": CLEAN, "corrupted": CORRUPTED, "pairs": ("one", "two")}
    return result(values, ("layer", "head"), method=method, component="z", **known)


def test_agreement_is_whole_for_the_same_numbers_and_else_what_it_is_called():
    values = np.random.default_rng(0).normal(size=(2, 3, 2))
    effects = values - CORRUPTED[:, None, None]
    shares = effects / (CLEAN - CORRUPTED)[:, None, None]
    for normalised, wanted in ((True, shares), (False, effects)):
        found = agreement(_result(values, "attribution"), _result(values), normalised=normalised)
        assert (found.overlap, found.same_sign, found.top_k) == (1, 1, 6)
        np.testing.assert_allclose(found.actual, wanted.mean(axis=0).ravel())
    other = values + np.random.default_rng(1).normal(size=values.shape)
    found = agreement(_result(other, "attribution"), _result(values), top_k=3)
    ours, theirs = found.approximate, found.actual
    rank: Any = spearmanr(ours, theirs)
    assert found.rank_correlation == pytest.approx(rank.statistic)
    assert found.correlation == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    top = [set(np.argsort(-np.abs(x))[:3]) for x in (ours, theirs)]
    assert found.overlap == pytest.approx(len(top[0] & top[1]) / 3)
    strongest = np.argsort(-np.abs(theirs))[:3]
    assert found.same_sign == np.mean(ours[strongest] * theirs[strongest] > 0)
    for change, says in (
        ({"component": "q"}, "component"),
        ({"pairs": ("one", "three")}, "pairs"),
        ({"values": np.full((2, 3, 2), np.nan)}, "share no cell"),
    ):
        with pytest.raises(ConfigError, match=says):
            agreement(replace(_result(values, "attribution"), **change), _result(values))


def test_pairs_that_do_not_fit_at_once_give_the_same(tiny_llama, mirror_sae):
    batch = encode_pairs(tiny_llama, UNEQUAL)
    sae = load_sae(mirror_sae())
    names = ("resid_mid", "k", "pattern", "sae")
    whole = attribution_patching(tiny_llama, batch, names, DIFFERENCE, sae=sae)
    parts = attribution_patching(tiny_llama, batch, names, DIFFERENCE, sae=sae, memory_gb=1e-9)
    for name in names:
        assert parts[name].coords == whole[name].coords
        np.testing.assert_allclose(parts[name].values, whole[name].values, atol=1e-5)
        np.testing.assert_allclose(parts[name].clean, whole[name].clean, atol=1e-5)
