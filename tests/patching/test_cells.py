"""Every cell of activation patching against transformer_lens and a loop of whole passes.

And memory, resuming, exceptions, and models that cannot be run block by block.
"""

from __future__ import annotations

import io
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import load_model, plain_model
from saesteer.patching import PatchResult, encode_pairs, load_prompt_pairs, patch, patcher
from saesteer.patching.engine.engines import FastEngine
from saesteer.patching.metrics import metric_named
from saesteer.patching.patcher import activation_patching, unpatched
from saesteer.patching.target import BY_COLUMN, BY_HEAD
from saesteer.utils.errors import ConfigError, ModelError, SiteError
from saesteer.utils.progress import Progress
from saesteer.utils.terminal import Console
from tests.by_hand import count_hooks
from tests.hybrids import hybrid
from tests.patching.engine_prompts import (
    EQUAL,
    UNEQUAL,
    filled,
    made_up_batch,
    one_by_one,
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


def mean_gap(batch):
    """The mean logit difference as a function of the logits, as transformer_lens wants it."""

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, batch.right[:, None]) - last.gather(1, batch.wrong[:, None])).mean()

    return metric


def from_lens(model, batch, function: str) -> np.ndarray:
    """What transformer_lens says, [layer, position or head[, position]]: means over the pairs."""
    from transformer_lens import patching

    with torch.no_grad():
        _, cache = model.run_with_cache(batch.clean)
        got = getattr(patching, function)(model, batch.corrupted, cache, mean_gap(batch)).numpy()
    # It has positions before heads.
    return np.moveaxis(got, 1, 2) if "out_by_pos" in function or "k_by_pos" in function else got


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_every_cell_is_transformer_lenss(arch, tiny_model):
    model, batch = tiny_model(arch), made_up_batch(EQUAL)
    for component, function in LENS.items():
        wanted = from_lens(model, batch, function)
        got = activation_patching(model, batch, component, LOGITS).values.mean(axis=0)
        assert got.shape == wanted.shape
        assert np.ptp(wanted) > 0.05
        np.testing.assert_allclose(got, wanted, atol=1e-4, err_msg=component)
    batch = made_up_batch(((6, 6),))
    for component, function in LENS_BY_POSITION.items():
        wanted = from_lens(model, batch, function)
        got = activation_patching(model, batch, component, LOGITS, by_position=True)
        assert got.dims == ("layer", "head", "position")
        if wanted.shape != got.values.shape[1:]:
            wanted = np.moveaxis(wanted, 1, 2)
        np.testing.assert_allclose(got.values[0], wanted, atol=1e-4, err_msg=component)


@pytest.mark.parametrize(
    ("arch", "mode", "by_position"),
    [
        ("gpt2", "denoising", False),
        ("gemma3", "denoising", False),
        ("gemma3", "noising", False),
        ("llama", "denoising", True),
    ],
)
def test_unequal_lengths_are_as_in_a_loop_without_padding(arch, mode, by_position, tiny_model):
    model = tiny_model(arch)
    batch = made_up_batch(((6, 5),) if by_position else UNEQUAL)
    for component in BY_HEAD if by_position else (*BY_COLUMN, *BY_HEAD):
        got = activation_patching(
            model, batch, component, LOGITS, mode=mode, by_position=by_position
        )
        cells = one_by_one(model, batch, component, mode, by_position=by_position)
        wanted = filled(cells, got.values.shape)
        np.testing.assert_allclose(got.values, wanted, atol=1e-4, err_msg=component)


@pytest.mark.parametrize("name", ["answer_log_probability", "kl"])
def test_metrics_over_the_vocabulary_see_the_whole_of_it(name, tiny_model):
    model, metric, batch = tiny_model("gemma3"), metric_named(name), made_up_batch(EQUAL)
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


def test_asking_for_some_cells_gives_those_of_all(tiny_llama):
    batch = made_up_batch(UNEQUAL)
    whole = activation_patching(tiny_llama, batch, "z", LOGITS, by_position=True)
    chosen: dict[str, Any] = {"layers": [2, 0], "heads": [3, 1], "positions": [7, 4]}
    some = activation_patching(tiny_llama, batch, "z", LOGITS, by_position=True, **chosen)
    assert some.coords == {"layer": (2, 0), "head": (3, 1), "position": (7, 4)}
    wanted = whole.values[:, [2, 0]][:, :, [3, 1]][..., [7, 4]]
    np.testing.assert_allclose(some.values, wanted, atol=1e-5)
    assert some.tokens[1] == (batch.corrupted_words[1][7], batch.corrupted_words[1][4])
    # Padding is in no result.
    assert set(whole.frame()["token"]) <= {w for row in batch.corrupted_words for w in row if w}


def test_parallel_blocks_have_no_middle_and_interleaved_heads_work(tiny_tokenizer):
    model, batch = hybrid("gpt-neox", tiny_tokenizer), made_up_batch(EQUAL)
    with pytest.raises(SiteError, match="no such part"):
        activation_patching(model, batch, "resid_mid", LOGITS)
    # Keys and values of all heads are all that one position can read of another.
    result = activation_patching(model, batch, "v", LOGITS)
    assert result.values.shape == (2, 4, 4)
    assert np.abs(result.normalised()).max() > 1e-3


def test_half_precision_is_run_as_it_is(make_model_folder):
    model = load_model(make_model_folder("llama"), device="cpu", dtype="bfloat16")
    batch = made_up_batch(EQUAL)
    result = activation_patching(model, batch, "resid_post", LOGITS, layers=[2])
    clean, _ = unpatched(model, batch, LOGITS)
    np.testing.assert_allclose(result.values[:, 0, -1], clean, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"component": "resid_per"}, "did you mean 'resid_pre'"),
        ({"layers": [3]}, "layers: 3 is not there; choose from 0 to 2"),
        ({"heads": [0]}, "heads: component 'resid_pre' has none"),
        ({"component": "k", "heads": [2]}, "heads: 2 is not there; choose from 0 to 1"),
        ({"component": "z", "positions": [1]}, "add by_position=True"),
        ({"memory_gb": float("nan")}, "memory_gb is nan"),
        ({"mode": "noise"}, "'noise' is neither 'denoising' nor 'noising'"),
    ],
)
def test_unusable_arguments_are_said_in_a_sentence(tiny_llama, arguments, sentence):
    component = arguments.pop("component", "resid_pre")
    with pytest.raises(ConfigError, match=sentence):
        activation_patching(tiny_llama, made_up_batch(EQUAL), component, LOGITS, **arguments)


def test_one_call_patches_by_any_method_and_shows_a_table(tiny_llama):
    batch = made_up_batch(EQUAL)
    found = patch(tiny_llama, batch, "resid_pre", metric="logit_difference")
    assert isinstance(found, PatchResult)
    np.testing.assert_allclose(found.table.to_numpy(), found.mean())
    assert list(found.table.columns) == list(range(batch.width))
    assert found.table.index.name == "layer"
    assert "<table" in found._repr_html_() and "resid_pre" in found._repr_html_()
    for method in ("attribution", "integrated_gradients", "path"):
        other = patch(tiny_llama, batch, "z", method=method)
        assert other.method == method and other.table.shape == (3, 4)
    with pytest.raises(ConfigError, match="method: 'guess' is unknown"):
        patch(tiny_llama, batch, "z", method="guess")  # type: ignore[arg-type]


@pytest.mark.real
def test_bundled_pairs_go_in_by_name(smollm2):
    pairs = load_prompt_pairs("capitals")[:2]
    found = patch(smollm2, pairs, "resid_post", layers=[29])
    batch = encode_pairs(smollm2, pairs)
    assert found.table.shape == (1, batch.width)
    assert found.table.iloc[0, -1] == pytest.approx(1, abs=0.05)


@pytest.fixture
def chunks(monkeypatch):
    """The sizes of all chunks, and a function that makes the n-th from now fail."""
    sizes, fails = [], {}
    run = FastEngine.__call__

    def counted(self, rows):
        sizes.append(len(rows))
        if len(sizes) in fails:
            raise fails.pop(len(sizes))
        return run(self, rows)

    monkeypatch.setattr(FastEngine, "__call__", counted)
    return sizes, lambda number, error: fails.update({len(sizes) + number: error})


def test_small_memory_makes_small_batches_and_the_same_numbers(tiny_llama, chunks):
    sizes, _ = chunks
    batch = made_up_batch(UNEQUAL * 3)
    roomy = activation_patching(tiny_llama, batch, "z", LOGITS)
    most = max(sizes)
    sizes.clear()
    tight = activation_patching(tiny_llama, batch, "z", LOGITS, memory_gb=2e-4)
    assert max(sizes) < most
    assert sum(sizes) == 3 * 4 * len(batch)
    np.testing.assert_allclose(tight.values, roomy.values, atol=1e-5)


def test_running_out_of_memory_halves_the_batch(tiny_llama, chunks):
    sizes, fail = chunks
    batch = made_up_batch(UNEQUAL)
    wanted = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    sizes.clear()
    fail(1, torch.OutOfMemoryError("CUDA out of memory"))
    got = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    assert sizes[1] <= (sizes[0] + 1) // 2
    np.testing.assert_allclose(got.values, wanted.values, atol=1e-5)
    for number in range(1, 20):
        fail(number, MemoryError())
    with pytest.raises(ModelError, match="not even one patched prompt"):
        activation_patching(tiny_llama, made_up_batch(EQUAL), "z", LOGITS)


def test_a_cut_off_run_goes_on_where_it_stopped(tiny_llama, chunks, tmp_path):
    sizes, fail = chunks
    batch = made_up_batch(UNEQUAL)
    wanted = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    every = len(sizes)
    assert every > 3
    sizes.clear()
    fail(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        activation_patching(tiny_llama, batch, "resid_pre", LOGITS, store=tmp_path)
    sizes.clear()
    resumed = activation_patching(tiny_llama, batch, "resid_pre", LOGITS, store=tmp_path)
    assert len(sizes) == every - 2
    np.testing.assert_allclose(resumed.values, wanted.values, atol=1e-6)
    sizes.clear()
    again = activation_patching(tiny_llama, batch, "resid_pre", LOGITS, store=tmp_path)
    assert not sizes
    np.testing.assert_array_equal(again.values, resumed.values)
    # Nothing of it stands in for another question.
    activation_patching(tiny_llama, batch, "resid_pre", LOGITS, store=tmp_path, mode="noising")
    assert sizes
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors"}


@pytest.mark.parametrize("component", ["resid_mid", "pattern"])
def test_nothing_stays_on_the_model_after_an_exception(component, tiny_model):
    model = tiny_model("gemma3")
    plain = plain_model(model)
    before = count_hooks(model), plain.config._attn_implementation
    calls = []
    norm = plain.get_submodule(model.adapter.component_mapping["ln_final"].name)

    def break_down(*_):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("broken")

    handle = norm.register_forward_hook(break_down)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            activation_patching(model, made_up_batch(UNEQUAL), component, LOGITS, by_position=True)
    finally:
        handle.remove()
    assert (count_hooks(model), plain.config._attn_implementation) == before


@pytest.mark.parametrize("component", ["resid_mid", "pattern"])
def test_a_model_that_windows_do_not_fit_is_patched_plainly(component, tiny_model, monkeypatch):
    model, batch = tiny_model("qwen3"), made_up_batch(UNEQUAL)
    fast = activation_patching(model, batch, component, LOGITS)
    monkeypatch.setattr(patcher, "block_runner", lambda *_: nullcontext())
    told = io.StringIO()
    plain = activation_patching(
        model, batch, component, LOGITS, progress=Progress(Console(file=told, width=200))
    )
    assert "slower" in told.getvalue()
    np.testing.assert_allclose(plain.values, fast.values, atol=1e-4)
