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
    resolve_model,
    resolve_target,
)
from saesteer.models import gguf_files as gguf_module
from saesteer.models.gguf_files import converted_gguf
from saesteer.models.tokens import pad_rows, padding_id
from saesteer.saes.adapter import check_compatible
from saesteer.saes.loading import load_sae
from saesteer.utils.errors import ModelError

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


def test_the_bridge_agrees_with_the_plain_model(smollm2):
    rows = encode_texts(smollm2.tokenizer, ["I like helping people, and I always listen."])
    batch = pad_rows(rows, padding_id(smollm2))
    with torch.no_grad():
        plain = plain_model(smollm2)(**batch.inputs).logits.float()
        bridge = smollm2(batch.input_ids, attention_mask=batch.attention_mask).float()
    # In bfloat16 the two attention kernels round apart; the distribution stays the same.
    gap = (plain.log_softmax(-1) - bridge.log_softmax(-1)).exp().sub(1).abs()
    assert (gap * plain.softmax(-1)).sum(-1).max() < 0.2
    assert (plain.argmax(-1) == bridge.argmax(-1)).float().mean() > 0.8


def test_its_weights_are_in_memory_once(smollm2):
    plain = plain_model(smollm2)
    tensors = [*plain.parameters(), *smollm2.original_model.parameters()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    once = 134_515_008 * plain.dtype.itemsize
    assert once <= sum(held.values()) < 1.01 * once


@pytest.mark.parametrize(
    "statement", ["I like helping people.", " leading space", "🙂 naïve\nnewline", "7 of 2024"]
)
@pytest.mark.parametrize("chat", [True, False])
def test_the_statement_alone_is_kept(smollm2, statement, chat):
    tokenizer = smollm2.tokenizer
    (row,) = encode_statements(tokenizer, [statement], "Say something.", chat=chat)
    ids = [i for i, kept in zip(row.ids, row.kept, strict=True) if kept]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert text.endswith(statement)
    assert text.removesuffix(statement).strip() == ""
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.ids.count(tokenizer.bos_token_id) == (3 if chat else 1)


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


def test_the_converted_folder_is_found_again(smollm2, bundled_gguf, monkeypatch):
    def never(*args):
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf_module, "_convert", never)
    source = resolve_model("smollm2")
    folder = converted_gguf(bundled_gguf, source.sha256)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert model_info(smollm2).source == source


def test_a_wheel_with_other_weights_is_refused(bundled_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"has SHA-256 b179c9523d0e6a0f\.\.\. where ffff"):
        converted_gguf(bundled_gguf, "f" * 64)
    assert not (tmp_path / "cache").exists()
