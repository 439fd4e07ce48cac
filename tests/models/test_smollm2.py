"""The bundled model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models import (
    Site,
    chat_prompt,
    encode_statements,
    encode_texts,
    load_model,
    model_info,
    plain_model,
    resolve_target,
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


def test_the_bundled_sae_was_trained_on_it(smollm2, bundled_gguf):
    sae = load_sae("smollm2")
    assert sae.model_fingerprint == model_info(smollm2).fingerprint
    check_compatible(smollm2, sae)
    # By its path, in another dtype: the same weights.
    for dtype in ("float32", "bfloat16", "float16"):
        check_compatible(load_model(bundled_gguf, dtype=dtype), sae)


def test_it_answers_a_simple_question(smollm2):
    prompt = chat_prompt(smollm2.tokenizer, "What is the capital of France?")
    # In bfloat16 its likeliest first words are a tie, which torch's releases round apart.
    rows = encode_texts(smollm2.tokenizer, [prompt + "The capital of France is"])
    batch = pad_rows(rows, padding_id(smollm2))
    plain: Any = plain_model(smollm2)
    out = plain.generate(
        **batch.inputs, max_new_tokens=12, do_sample=False, pad_token_id=padding_id(smollm2)
    )
    answer = smollm2.tokenizer.decode(out[0, batch.input_ids.shape[1] :])
    assert "Paris" in answer


def test_bos_is_the_attention_sink_that_no_span_holds(smollm2):
    rows = encode_statements(smollm2.tokenizer, ["I like helping people."])
    batch = pad_rows(rows, padding_id(smollm2))
    target = resolve_target(smollm2, Site(20))
    caught = []
    handle = target.hook(lambda hidden: caught.append(hidden[0].float().norm(dim=-1)))
    with torch.no_grad():
        target.model(**batch.inputs)
    handle.remove()
    sink, kept = caught[0][0], caught[0][batch.span[0]]
    assert not batch.span[0, 0]
    assert sink > 10 * kept.mean()
