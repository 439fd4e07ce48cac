"""Integrated gradients: completeness where it must hold, and plain loops for the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.patching.attribution.first_order import attribution_patching_all
from saesteer.patching.attribution.integrated import integrated_gradients, integrated_gradients_all
from saesteer.patching.metrics import metric_named
from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError

EQUAL = (
    PromptPair("The cat sat on the mat", "The dog ran on the mat", "a", "b"),
    PromptPair("The cat sat on the mat", "The mat sat on the cat", "c", "b"),
)
UNEQUAL = (*EQUAL[:1], PromptPair("I like sunny weather", "I like helping", "c", "d"))
DIFFERENCE = metric_named("logit_difference")


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
        found = integrated_gradients(
            tiny_model(arch), batch, "resid_pre", DIFFERENCE, steps=steps, layers=[0], mode=mode
        )
        goal = found.clean if mode == "denoising" else found.corrupted
        gaps.append(_gap(found, goal))
    assert gaps[1] < 0.01 * float(np.abs(found.clean - found.corrupted).max())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("component", ["resid_mid", "resid_post", "attn_out", "z", "k", "pattern"])
def test_a_layers_effects_sum_to_patching_the_whole_layer(arch, component, tiny_model):
    model = tiny_model(arch)
    batch = encode_pairs(model, EQUAL)
    for layer in (0, 2):
        whole = _patched(model, batch, component, layer)
        gaps = [
            _gap(
                integrated_gradients(
                    model,
                    batch,
                    component,
                    DIFFERENCE,
                    steps=steps,
                    line="activations",
                    layers=[layer],
                ),
                whole,
            )
            for steps in (1, 32)
        ]
        assert gaps[1] < 0.01
        assert gaps[1] <= gaps[0] + 1e-5


def _patched(model, batch, component, layer) -> np.ndarray:
    """Return the logit differences of the corrupted prompts with all of a layer's clean."""
    short = {"z": "attn.hook_z", "k": "attn.hook_k", "pattern": "attn.hook_pattern"}
    name = f"blocks.{layer}.{short.get(component, f'hook_{component}')}"
    kept: list[torch.Tensor] = []
    point = model.hook_dict[name]
    with torch.no_grad():
        handle = point.register_forward_hook(lambda m, i, out: kept.append(out))
        model.original_model(input_ids=batch.clean)
        handle.remove()
        handles = []
        if component == "resid_mid":
            # What the MLP reads is patched; the stream beside it takes the same change.
            change: list[torch.Tensor] = []

            def mid(m, i, out):
                change.append(kept[0] - out)
                return kept[0]

            behind = model.hook_dict[f"blocks.{layer}.hook_resid_post"]
            handles.append(point.register_forward_hook(mid))
            handles.append(behind.register_forward_hook(lambda m, i, out: out + change[0]))
        else:
            handles.append(point.register_forward_hook(lambda m, i, out: kept[0]))
        logits = model.original_model(input_ids=batch.corrupted).logits[:, -1]
        for handle in handles:
            handle.remove()
    rows = torch.arange(len(batch))
    return (logits[rows, batch.right] - logits[rows, batch.wrong]).double().numpy()


def test_the_gradient_is_averaged_over_the_middles_of_the_steps(tiny_llama, hf_model):
    batch = encode_pairs(tiny_llama, EQUAL[:1])
    found = integrated_gradients(tiny_llama, batch, "z", DIFFERENCE, steps=3)
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
    options = {"mode": "noising", "layers": [0, 1]}
    flat = attribution_patching_all(tiny_llama, batch, ("z",), metric_named("kl"), **options)
    found = integrated_gradients_all(
        tiny_llama, batch, ("z",), metric_named("kl"), line=line, **options
    )
    assert np.abs(flat["z"].values).max() < 1e-5
    assert np.abs(found["z"].values).max() > 1e-3


@pytest.mark.parametrize("line", ["inputs", "activations"])
def test_positions_without_a_counterpart_are_nan_and_pairs_stand_alone(
    tiny_llama, mirror_sae, line
):
    sae = load_sae(mirror_sae())
    names = ("resid_pre", "pattern", "sae")
    options = {"steps": 2, "line": line, "by_position": True, "sae": sae, "features": [3, 40]}
    both = integrated_gradients_all(
        tiny_llama, encode_pairs(tiny_llama, UNEQUAL), names, DIFFERENCE, **options
    )
    alone = integrated_gradients_all(
        tiny_llama, encode_pairs(tiny_llama, UNEQUAL[1:]), names, DIFFERENCE, **options
    )
    width = alone["resid_pre"].values.shape[-1]
    for name in names:
        # Alone the prompts need less padding.
        ours = both[name].values[1][..., -width:]
        np.testing.assert_allclose(ours, alone[name].values[0], atol=1e-5)
        assert np.isnan(both[name].values[1][..., :-width]).all()
        assert np.isnan(alone[name].values).any()
        assert np.isfinite(alone[name].values).any()


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 2.5}, {"steps": True}, {"line": "curved"}]
)
def test_a_way_that_does_not_exist_is_refused(tiny_llama, options):
    batch = encode_pairs(tiny_llama, EQUAL)
    with pytest.raises(ConfigError, match=next(iter(options))):
        integrated_gradients(tiny_llama, batch, "z", DIFFERENCE, **options)
