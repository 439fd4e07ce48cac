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


@pytest.mark.parametrize("asked", ["cpu", torch.device("cpu")])
def test_a_device_asked_for_is_taken(asked):
    assert choose_device(asked) == torch.device("cpu")


@pytest.mark.parametrize("asked", ["banana", "", "cuda:99", "meta", "xla", "cpu:x"])
def test_a_device_that_is_not_here_is_a_sentence(asked, tiny_model_folder):
    with pytest.raises(ModelError) as caught:
        load_model(tiny_model_folder("llama"), device=asked)
    text = str(caught.value)
    assert text.startswith(f"device '{asked}' is not available here (")
    assert text.endswith("use device 'auto' or 'cpu'.")
    assert "\n" not in text
    assert len(text) < 330


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_asked_for_is_taken_by_name_or_itself(name):
    assert choose_dtype(name) == choose_dtype(getattr(torch, name)) == getattr(torch, name)


@pytest.mark.parametrize("asked", ["int8", "float64", "half", "", torch.int8, 16])
def test_another_dtype_is_a_sentence(asked, tiny_model_folder):
    with pytest.raises(ModelError, match=r"is not one of auto, float32, bfloat16, float16\.$"):
        load_model(tiny_model_folder("llama"), device="cpu", dtype=asked)


@pytest.mark.parametrize(
    ("half_seconds", "wanted"), [(0.2, torch.bfloat16), (1.0, torch.float32), (5.0, torch.float32)]
)
@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_cpu_takes_bfloat16_only_if_it_is_measured_faster(
    monkeypatch, half_seconds, wanted, asked
):
    times = {torch.float32: 1.0, torch.bfloat16: half_seconds}
    monkeypatch.setattr(placement, "_matmul_seconds", lambda dtype: times[dtype])
    assert choose_dtype(asked, torch.device("cpu")) == wanted


def test_the_measurement_is_quick():
    assert 0 < placement._matmul_seconds(torch.float32) < 0.1


@pytest.mark.parametrize(("supported", "wanted"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_takes_the_half_precision_it_supports(monkeypatch, supported, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_dtype(None, torch.device("cuda")) == getattr(torch, wanted)
    assert choose_dtype(None, torch.device("mps")) == torch.float16
