from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from saesteer.saes.lens import TokenTexts, extreme_tokens, norm_gain
from saesteer.saes.loading import load_sae


@pytest.fixture
def gain():
    return torch.rand(32, generator=torch.Generator().manual_seed(0)) * 2 - 0.5


def with_weight(norm: Any, weight: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        norm.weight.copy_(weight)
    return norm


def test_gain_of_every_kind_of_norm(gain):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    layer_norm = with_weight(nn.LayerNorm(32), gain)
    nn.init.normal_(layer_norm.bias)  # type: ignore[arg-type]
    for norm, centres in (
        (with_weight(LlamaRMSNorm(32), gain), False),
        # Gemma stores its gain less one.
        (with_weight(Gemma3RMSNorm(32), gain - 1), False),
        (layer_norm, True),
        (with_weight(LlamaRMSNorm(32), gain).to(torch.bfloat16), False),
    ):
        found, centred = norm_gain(norm, 32)
        torch.testing.assert_close(found, gain, atol=5e-3, rtol=5e-3)
        assert found.dtype == torch.float32
        assert centred is centres


def test_promoted_tokens_equal_the_lens_by_hand(model, plain, make_sae, tokenizer):
    sae = load_sae(make_sae())
    top, bottom = extreme_tokens(model, sae, TokenTexts(tokenizer), n_top=8, n_bottom=5)
    rows = sae.decoder * plain.model.norm.weight
    logits = rows @ plain.lm_head.weight.T
    order = logits.argsort(dim=1, descending=True)
    for feature in range(64):
        wanted = [tokenizer.decode([token]) for token in order[feature].tolist()]
        assert [text.strip() for text in top[feature]] == wanted[:8]
        assert [text.strip() for text in bottom[feature]] == wanted[::-1][:5]


def test_a_site_beside_the_residual_stream_promotes_nothing(model, make_sae, tokenizer):
    sae = load_sae(make_sae(metadata={"hook_name": "blocks.1.attn.hook_z"}))
    top, bottom = extreme_tokens(model, sae, TokenTexts(tokenizer), n_top=8, n_bottom=5)
    assert top == bottom == [[]] * 64


def test_ids_that_are_no_tokens_are_left_out(model, plain, make_sae, tokenizer, monkeypatch):
    sae = load_sae(make_sae())
    texts = TokenTexts(tokenizer)
    monkeypatch.setattr(TokenTexts, "n_ids", 6)
    top, bottom = extreme_tokens(model, sae, texts, n_top=8, n_bottom=5)
    assert {len(tokens) for tokens in top} == {6}
    assert {len(tokens) for tokens in bottom} == {5}


def byte_level_tokenizer(prefix_space: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if prefix_space:
        vocab = {"<unk>": 0, "▁a": 1, "▁thank": 2, "you": 3}
        core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
        core.decoder = decoders.Metaspace()  # type: ignore[assignment]
    else:
        vocab = {"a": 0, "Ġthank": 1, "you": 2, "<unk>": 3}
        core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.mark.parametrize("prefix_space", [True, False])
def test_a_tokens_leading_space_is_shown_whatever_the_tokenizer(prefix_space):
    tokenizer = byte_level_tokenizer(prefix_space)
    texts = TokenTexts(tokenizer)
    thank, you = (2, 3) if prefix_space else (1, 2)
    assert texts.one(thank) == " thank"
    assert texts.one(you) == "you"
