"""The bundled model itself."""

from __future__ import annotations

import pytest
import torch

from saesteer.models import (
    encode_texts,
    load_model,
    model_info,
    plain_model,
)
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.saes.adapter import check_compatible
from saesteer.saes.loading import load_sae

pytestmark = pytest.mark.real


def test_its_shape_and_its_logits(smollm2):
    assert (smollm2.cfg.n_layers, smollm2.cfg.d_model, smollm2.cfg.n_ctx) == (30, 576, 8192)
    rows = encode_texts(smollm2.tokenizer, ["The capital of France is"])
    batch = pad_rows(rows, padding_id(smollm2))
    with torch.no_grad():
        logits = plain_model(smollm2)(**batch.inputs).logits
    assert torch.isfinite(logits).all()
    assert smollm2.tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"


@pytest.mark.slow
def test_the_bundled_sae_was_trained_on_it(smollm2, smollm2_float32, bundled_gguf):
    sae = load_sae("smollm2")
    assert sae.model_fingerprint == model_info(smollm2).fingerprint
    check_compatible(smollm2, sae)
    check_compatible(smollm2_float32, sae)
    # By its path, in another dtype: the same weights.
    own = str(smollm2.cfg.dtype).removeprefix("torch.")
    for dtype in {"bfloat16", "float16"} - {own}:
        check_compatible(load_model(bundled_gguf, dtype=dtype), sae)
