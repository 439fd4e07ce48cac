"""Output scores are those of one hooked pass per feature with Hugging Face alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saesteer.methods.features import output_scores
from saesteer.saes import load_sae
from saesteer.utils.errors import ConfigError, SaeError
from tests.by_hand import changed

PROMPT = "I like the dog"


@pytest.fixture(scope="module")
def sae(mirror_sae):
    return load_sae(mirror_sae(gain=0.5))


def parts(model: Any) -> tuple[Any, Any, Any]:
    """The blocks, the final norm and the unembedding."""
    body = model.transformer if hasattr(model, "transformer") else model.model
    if hasattr(body, "h"):
        return body.h, body.ln_f, model.lm_head
    return body.layers, body.norm, model.lm_head


def by_hand(model: Any, tokenizer: Any, sae: Any, feature: int, n: int, factor: float) -> float:
    """(1 - rank / |V|) * probability, the feature added at the last token in a hook."""
    blocks, norm, head = parts(model)
    ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    if tokenizer.bos_token_id is not None:
        ids = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], dim=1)
    row = sae.decoder[feature]
    with torch.no_grad():
        # Zero goes to the norm's bias, where there is one, and is not the feature's doing.
        lens = head(norm(1e4 * row[None])[0]) - head(norm(torch.zeros(1, 32))[0])
        promoted = lens.topk(n).indices.tolist()

        def amplify(hidden: torch.Tensor) -> torch.Tensor:
            largest = float(hidden[0, -1].abs().max())
            return torch.cat([hidden[:, :-1], hidden[:, -1:] + factor * largest * row], dim=1)

        with changed(blocks[1], amplify):
            probabilities = model(ids).logits[0, -1].softmax(dim=0)
    order = probabilities.argsort(descending=True).tolist()
    rank = min(order.index(token) for token in promoted)
    return (1 - rank / len(order)) * max(float(probabilities[token]) for token in promoted)


@pytest.mark.parametrize(("arch", "factor"), [("llama", 1.0), ("gpt2", 10.0)])
def test_scores_equal_a_loop_with_hugging_face_alone(arch, factor, tiny_model, hf_model, sae):
    model = tiny_model(arch)
    features = [0, 5, 33, 60]
    scores = output_scores(model, sae, features, prompt=PROMPT, factor=factor, n_tokens=8)
    wanted = [
        by_hand(hf_model(arch), model.tokenizer, sae, feature, 8, factor) for feature in features
    ]
    np.testing.assert_allclose(scores[features], wanted, rtol=2e-3, atol=1e-5)
    assert np.ptp(wanted) > 1e-3


def test_only_the_features_asked_for_have_a_score_however_many_run_together(tiny_model, sae):
    scores = output_scores(tiny_model("llama"), sae, np.array([3, 40, 3]))
    assert scores.shape == (64,)
    assert np.flatnonzero(np.isfinite(scores)).tolist() == [3, 40]
    assert ((scores[[3, 40]] >= 0) & (scores[[3, 40]] <= 1)).all()

    model = tiny_model("llama")
    together = output_scores(model, sae, range(64))
    apart = output_scores(model, sae, range(64), batch_size=7)
    np.testing.assert_allclose(apart, together, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_scored_is_a_sentence(tiny_model, sae, mirror_sae, monkeypatch):
    model = tiny_model("llama")
    with pytest.raises(SaeError, match=r"features: SAE .* has features 0 to 63"):
        output_scores(model, sae, [1, -1])
    beside = load_sae(mirror_sae(site="blocks.1.attn.hook_z"))
    with pytest.raises(SaeError, match=r"attn.hook_z, where the logit lens says nothing"):
        output_scores(model, beside, [1])
    silent = type(sae).encode
    monkeypatch.setattr(type(sae), "encode", lambda self, x: 0 * silent(self, x))
    with pytest.raises(ConfigError, match=r"prompt: no feature of SAE .* fires at the end of 'so'"):
        output_scores(model, sae, [1], prompt="so")
