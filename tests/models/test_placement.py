"""Device and dtype: chosen, overridden, refused."""

from __future__ import annotations

import pytest
import torch

from saesteer.models import load_model, placement
from saesteer.models.placement import choose_device, choose_dtype
from saesteer.utils.errors import ModelError


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_device_is_the_fastest_there_is(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(asked) == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(asked) == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device(asked) == torch.device("cpu")


@pytest.mark.parametrize("asked", ["banana", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_a_sentence(asked, tiny_model_folder):
    with pytest.raises(ModelError) as caught:
        load_model(tiny_model_folder("llama"), device=asked)
    text = str(caught.value)
    assert text.startswith(f"device '{asked}' is not available here (")
    assert text.endswith("use device 'auto' or 'cpu'.")
    assert "\n" not in text
    assert len(text) < 330


@pytest.mark.parametrize("asked", ["int8", torch.int8])
def test_another_dtype_is_a_sentence(asked, tiny_model_folder):
    with pytest.raises(ModelError, match=r"is not one of auto, float32, bfloat16, float16\.$"):
        load_model(tiny_model_folder("llama"), device="cpu", dtype=asked)


@pytest.mark.parametrize(("half_seconds", "wanted"), [(0.2, torch.bfloat16), (5.0, torch.float32)])
def test_a_cpu_takes_bfloat16_only_if_it_is_measured_faster(monkeypatch, half_seconds, wanted):
    times = {torch.float32: 1.0, torch.bfloat16: half_seconds}
    monkeypatch.setattr(placement, "_matmul_seconds", lambda dtype: times[dtype])
    assert choose_dtype("auto", torch.device("cpu")) == wanted
