"""Memory, resuming, exceptions and models that the fast engine cannot run."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from saesteer.models import plain_model, wrap_model
from saesteer.patching import activation
from saesteer.patching.activation import activation_patching, unpatched
from saesteer.patching.components import BY_HEAD
from saesteer.patching.engine.climb import Climber
from saesteer.patching.engine.limits import Budget
from saesteer.patching.metrics import metric_named
from saesteer.utils.errors import ConfigError, ModelError, SiteError
from saesteer.utils.progress import Progress
from tests.patching.engine_prompts import EQUAL, UNEQUAL, made_up_batch, some_pairs

LOGITS = metric_named("logit_difference")


@pytest.fixture
def climbs(monkeypatch):
    """The sizes of all climbs, and a function that makes the n-th from now fail."""
    sizes, fails = [], {}
    climb = Climber.climb

    def counted(self, rows):
        sizes.append(len(rows))
        if len(sizes) in fails:
            raise fails.pop(len(sizes))
        return climb(self, rows)

    monkeypatch.setattr(Climber, "climb", counted)
    return sizes, lambda number, error: fails.update({len(sizes) + number: error})


def hooks_on(model) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
        for m in plain_model(model).modules()
    )


def test_small_memory_makes_small_batches_and_the_same_numbers(tiny_llama, climbs):
    sizes, _ = climbs
    batch = made_up_batch(UNEQUAL * 3)
    roomy = activation_patching(tiny_llama, batch, "z", LOGITS)
    most = max(sizes)
    sizes.clear()
    tight = activation_patching(tiny_llama, batch, "z", LOGITS, memory_gb=2e-4)
    assert max(sizes) < most
    assert sum(sizes) == 3 * 4 * len(batch)
    np.testing.assert_allclose(tight.values, roomy.values, atol=1e-5)


def test_a_budget_counts_what_a_batch_takes(tiny_llama):
    budget = Budget.of(tiny_llama, 100, 1.0)
    assert Budget.of(tiny_llama, 100, 1e-4).rows(0) < budget.rows(0)
    assert budget.rows(99) > budget.rows(0)
    assert Budget.of(tiny_llama, 100, 1e-9).rows(0) == 1
    assert Budget.of(tiny_llama, 100, 1e-9).pairs(None) == 1


def test_running_out_of_memory_halves_the_batch(tiny_llama, climbs):
    sizes, fail = climbs
    batch = made_up_batch(UNEQUAL)
    wanted = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    sizes.clear()
    fail(1, torch.OutOfMemoryError("CUDA out of memory"))
    got = activation_patching(tiny_llama, batch, "resid_pre", LOGITS)
    assert sizes[1] <= (sizes[0] + 1) // 2
    np.testing.assert_allclose(got.values, wanted.values, atol=1e-5)


def test_no_memory_for_one_row_is_said(tiny_llama, climbs):
    _, fail = climbs
    for number in range(1, 20):
        fail(number, MemoryError())
    with pytest.raises(ModelError, match="not even one patched prompt"):
        activation_patching(tiny_llama, made_up_batch(EQUAL), "z", LOGITS)


def test_a_cut_off_run_goes_on_where_it_stopped(tiny_llama, climbs, tmp_path):
    sizes, fail = climbs
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


def test_a_spoiled_chunk_is_made_again(tiny_llama, climbs, tmp_path):
    sizes, _ = climbs
    batch = made_up_batch(EQUAL)
    wanted = activation_patching(tiny_llama, batch, "z", LOGITS, store=tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"spoiled")
    sizes.clear()
    got = activation_patching(tiny_llama, batch, "z", LOGITS, store=tmp_path)
    assert sizes
    np.testing.assert_array_equal(got.values, wanted.values)


@pytest.mark.parametrize("component", ["resid_pre", "resid_mid", "v", "pattern"])
def test_nothing_stays_on_the_model_after_an_exception(arch, component, tiny_model, climbs):
    model = tiny_model(arch)
    plain = plain_model(model)
    before = hooks_on(model), plain.config._attn_implementation
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
    assert (hooks_on(model), plain.config._attn_implementation) == before


@pytest.mark.parametrize("component", ["resid_pre", "resid_mid", "mlp_out", *BY_HEAD])
def test_a_model_that_windows_do_not_fit_is_patched_plainly(component, tiny_model, monkeypatch):
    model, batch = tiny_model("qwen3"), made_up_batch(UNEQUAL)
    fast = activation_patching(model, batch, component, LOGITS)
    monkeypatch.setattr(activation, "windows_stand", lambda *_: False)
    told = io.StringIO()
    plain = activation_patching(
        model, batch, component, LOGITS, progress=Progress(Console(file=told, width=200))
    )
    assert "slower" in told.getvalue()
    np.testing.assert_allclose(plain.values, fast.values, atol=1e-4)


def test_parallel_blocks_have_no_middle_and_interleaved_heads_work(tiny_tokenizer):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = tiny_tokenizer()
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        architectures=["GPTNeoXForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = wrap_model(GPTNeoXForCausalLM(config), tokenizer)
    batch = made_up_batch(EQUAL)
    with pytest.raises(SiteError, match="no such part"):
        activation_patching(model, batch, "resid_mid", LOGITS)
    # Keys and values of all heads are all that one position can read of another.
    result = activation_patching(model, batch, "v", LOGITS)
    assert result.values.shape == (2, 2, 4)
    assert np.abs(result.normalised()).max() > 1e-3


def test_half_precision_is_run_as_it_is(make_model_folder):
    from saesteer.models import load_model

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
        ({"layers": []}, "layers: there is none"),
        ({"layers": [1, 1]}, "twice"),
        ({"positions": [8]}, "choose from 0 to 7"),
        ({"heads": [0]}, "heads: component 'resid_pre' has none"),
        ({"component": "k", "heads": [2]}, "heads: 2 is not there; choose from 0 to 1"),
        ({"component": "z", "positions": [1]}, "add by_position=True"),
        ({"memory_gb": 0.0}, "memory_gb is 0.0"),
        ({"memory_gb": float("nan")}, "memory_gb is nan"),
        ({"memory_gb": float("inf")}, "memory_gb is inf"),
        ({"mode": "noise"}, "'noise' is neither 'denoising' nor 'noising'"),
    ],
)
def test_unusable_arguments_are_said_in_a_sentence(tiny_llama, arguments, sentence):
    component = arguments.pop("component", "resid_pre")
    with pytest.raises(ConfigError, match=sentence):
        activation_patching(tiny_llama, made_up_batch(EQUAL), component, LOGITS, **arguments)


def test_no_pair_at_all_is_said(tiny_llama):
    with pytest.raises(Exception, match="no pair of prompts"):
        activation_patching(tiny_llama, some_pairs(made_up_batch(EQUAL), slice(0)), "z", LOGITS)


@pytest.mark.real
@pytest.mark.parametrize("component", ["resid_pre", "z"])
def test_the_real_models_cells_are_transformer_lenss(component, smollm2):
    from transformer_lens import patching

    batch = made_up_batch(((5, 5), (5, 5)))
    setter = {
        "resid_pre": patching.layer_pos_patch_setter,
        "z": patching.layer_head_vector_patch_setter,
    }[component]
    cells = pd.DataFrame([(i, j) for i in (3, 29) for j in (2, 4)], columns=["layer", "at"])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, batch.right[:, None]) - last.gather(1, batch.wrong[:, None])).mean()

    with torch.no_grad():
        _, cache = smollm2.run_with_cache(batch.clean)
        wanted = patching.generic_activation_patch(
            smollm2, batch.corrupted, cache, metric, setter, component, index_df=cells
        )
    result = activation_patching(smollm2, batch, component, LOGITS, layers=[3, 29])
    exact = plain_model(smollm2).dtype == torch.float32
    got = result.values.mean(axis=0)[:, [2, 4]].ravel()
    np.testing.assert_allclose(got, wanted.float(), atol=1e-4 if exact else 0.2)


@pytest.mark.real
def test_the_real_models_ends_are_none_and_one(smollm2):
    batch = made_up_batch(((6, 4), (5, 6)))
    result = activation_patching(smollm2, batch, "resid_post", LOGITS, layers=[29])
    loose = 1e-4 if plain_model(smollm2).dtype == torch.float32 else 0.2
    values = result.values[:, 0]
    np.testing.assert_allclose(values[:, -1], result.clean, atol=loose)
    there = ~np.isnan(values[:, :-1])
    wanted = np.broadcast_to(result.corrupted[:, None], there.shape)
    np.testing.assert_allclose(values[:, :-1][there], wanted[there], atol=loose)
