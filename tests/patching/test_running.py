"""Memory, resuming, exceptions and models that cannot be run block by block."""

from __future__ import annotations

import io
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from rich.console import Console

from saesteer.models import plain_model
from saesteer.patching import patcher
from saesteer.patching.engine.engines import FastEngine
from saesteer.patching.metrics import metric_named
from saesteer.patching.patcher import activation_patching
from saesteer.utils.errors import ModelError
from saesteer.utils.progress import Progress
from tests.patching.engine_prompts import EQUAL, UNEQUAL, made_up_batch

LOGITS = metric_named("logit_difference")


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


def hooks_on(model) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m))
        for m in plain_model(model).modules()
    )


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
def test_nothing_stays_on_the_model_after_an_exception(arch, component, tiny_model, chunks):
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
