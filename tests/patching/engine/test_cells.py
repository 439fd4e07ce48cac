"""Every cell of activation patching against transformer_lens and against a loop of whole passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.patching.activation import activation_patching, unpatched
from saesteer.patching.components import BY_COLUMN, BY_HEAD
from saesteer.patching.metrics import metric_named
from tests.patching.engine_prompts import (
    EQUAL,
    UNEQUAL,
    filled,
    made_up_batch,
    one_by_one,
    some_pairs,
)

LOGITS = metric_named("logit_difference")
LENS = {
    "resid_pre": "get_act_patch_resid_pre",
    "resid_mid": "get_act_patch_resid_mid",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
    "z": "get_act_patch_attn_head_out_all_pos",
    "q": "get_act_patch_attn_head_q_all_pos",
    "k": "get_act_patch_attn_head_k_all_pos",
    "v": "get_act_patch_attn_head_v_all_pos",
    "pattern": "get_act_patch_attn_head_pattern_all_pos",
}
LENS_BY_POSITION = {
    "z": "get_act_patch_attn_head_out_by_pos",
    "k": "get_act_patch_attn_head_k_by_pos",
    "pattern": "get_act_patch_attn_head_pattern_by_pos",
}


def from_lens(model, batch, function: str) -> np.ndarray:
    """What transformer_lens says, [layer, position or head[, position]]: means over the pairs."""
    from transformer_lens import patching

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, batch.right[:, None]) - last.gather(1, batch.wrong[:, None])).mean()

    with torch.no_grad():
        _, cache = model.run_with_cache(batch.clean)
        got = getattr(patching, function)(model, batch.corrupted, cache, metric).numpy()
    # It has positions before heads.
    return np.moveaxis(got, 1, 2) if "out_by_pos" in function or "k_by_pos" in function else got


@pytest.mark.parametrize("component", LENS)
def test_every_cell_is_transformer_lenss(arch, component, tiny_model):
    model, batch = tiny_model(arch), made_up_batch(EQUAL)
    wanted = from_lens(model, batch, LENS[component])
    got = activation_patching(model, batch, component, LOGITS).values.mean(axis=0)
    assert got.shape == wanted.shape
    assert np.ptp(wanted) > 0.05
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("component", LENS_BY_POSITION)
def test_every_cell_by_position_is_transformer_lenss(arch, component, tiny_model):
    model, batch = tiny_model(arch), made_up_batch(((6, 6),))
    wanted = from_lens(model, batch, LENS_BY_POSITION[component])
    got = activation_patching(model, batch, component, LOGITS, by_position=True)
    assert got.dims == ("layer", "head", "position")
    if wanted.shape != got.values.shape[1:]:
        wanted = np.moveaxis(wanted, 1, 2)
    np.testing.assert_allclose(got.values.mean(axis=0), wanted, atol=1e-4)


@pytest.mark.parametrize("component", [*BY_COLUMN, *BY_HEAD])
def test_unequal_lengths_are_as_in_a_loop_without_padding(arch, component, tiny_model):
    model, batch = tiny_model(arch), made_up_batch(UNEQUAL)
    got = activation_patching(model, batch, component, LOGITS)
    cells = one_by_one(model, batch, component, "denoising", by_position=False)
    np.testing.assert_allclose(got.values, filled(cells, got.values.shape), atol=1e-4)


@pytest.mark.parametrize("component", [*BY_COLUMN, *BY_HEAD])
def test_noising_writes_the_corrupted_run_into_the_clean_one(component, tiny_model):
    model, batch = tiny_model("gemma3"), made_up_batch(UNEQUAL)
    got = activation_patching(model, batch, component, LOGITS, mode="noising")
    cells = one_by_one(model, batch, component, "noising", by_position=False)
    np.testing.assert_allclose(got.values, filled(cells, got.values.shape), atol=1e-4)


@pytest.mark.parametrize("component", BY_HEAD)
def test_unequal_lengths_by_position_are_as_in_a_loop(component, tiny_llama):
    batch = made_up_batch(((6, 5),))
    got = activation_patching(tiny_llama, batch, component, LOGITS, by_position=True)
    cells = one_by_one(tiny_llama, batch, component, "denoising", by_position=True)
    np.testing.assert_allclose(got.values, filled(cells, got.values.shape), atol=1e-4)


def test_padding_is_in_no_result(tiny_llama):
    batch = made_up_batch(UNEQUAL)
    result = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    missing = np.isnan(result.values[:, 0])
    assert (missing == (batch.to_clean < 0).numpy()).all()
    assert missing[~batch.corrupted_mask.numpy()].all()
    assert set(result.frame()["token"]) <= {w for row in batch.corrupted_words for w in row if w}


@pytest.mark.parametrize("name", ["answer_log_probability", "kl"])
def test_metrics_over_the_vocabulary_see_the_whole_of_it(name, tiny_model):
    model, metric = tiny_model("gemma3"), metric_named(name)
    batch = made_up_batch(EQUAL)
    with torch.no_grad():
        clean, corrupted = (
            model(ids)[:, -1].log_softmax(-1) for ids in (batch.clean, batch.corrupted)
        )
    got = unpatched(model, batch, metric)
    if name == "kl":
        wanted = torch.zeros(2), (clean.exp() * (clean - corrupted)).sum(-1)
    else:
        wanted = tuple(side.gather(1, batch.right[:, None])[:, 0] for side in (clean, corrupted))
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    # The last block's whole output at the answer's position makes the run clean.
    result = activation_patching(model, batch, "resid_post", metric, layers=[2], positions=[7])
    np.testing.assert_allclose(result.values[:, 0, 0], wanted[0], atol=1e-4)


def test_unpatched_numbers_are_the_models_own(arch, tiny_model, hf_model):
    model, batch = tiny_model(arch), made_up_batch(UNEQUAL)
    clean, corrupted = unpatched(model, batch, LOGITS)
    for i in range(len(batch)):
        for got, ids, mask in (
            (clean, batch.clean, batch.clean_mask),
            (corrupted, batch.corrupted, batch.corrupted_mask),
        ):
            with torch.no_grad():
                logits = hf_model(arch)(ids[i][mask[i]][None]).logits[0, -1]
            assert got[i] == pytest.approx(
                float(logits[batch.right[i]] - logits[batch.wrong[i]]), abs=1e-4
            )


def test_asking_for_some_cells_gives_those_of_all(tiny_llama):
    batch = made_up_batch(UNEQUAL)
    whole = activation_patching(tiny_llama, batch, "z", LOGITS, by_position=True)
    some = activation_patching(
        tiny_llama,
        batch,
        "z",
        LOGITS,
        by_position=True,
        layers=[2, 0],
        heads=[3, 1],
        positions=[7, 4],
    )
    assert some.coords == {"layer": (2, 0), "head": (3, 1), "position": (7, 4)}
    wanted = whole.values[:, [2, 0]][:, :, [3, 1]][..., [7, 4]]
    np.testing.assert_allclose(some.values, wanted, atol=1e-5)
    assert some.tokens[1] == (batch.corrupted_words[1][7], batch.corrupted_words[1][4])


def test_a_rows_number_does_not_depend_on_its_neighbours(arch, tiny_model):
    model, batch = tiny_model(arch), made_up_batch(UNEQUAL)
    together = activation_patching(model, batch, "v", LOGITS)
    for i in range(len(batch)):
        alone = some_pairs(batch, slice(i, i + 1))
        for layer in range(3):
            got = activation_patching(model, alone, "v", LOGITS, layers=[layer], heads=[1])
            assert got.values[0, 0, 0] == pytest.approx(together.values[i, layer, 1], abs=1e-5)
