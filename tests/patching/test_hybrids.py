"""Patching on models whose layers differ or that the bridge computes otherwise: the plain model's.

Every cell of the residual stream is compared with a loop over Hugging Face's own passes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import plain_model
from saesteer.patching.attention import attention_views
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.lens import logit_lens
from saesteer.patching.metrics import metric_named
from saesteer.patching.patcher import activation_patching, unpatched
from saesteer.patching.target import plain_blocks
from saesteer.utils.errors import SiteError
from tests.by_hand import changed
from tests.hybrids import HYBRIDS, hybrid
from tests.patching.engine_prompts import UNEQUAL, made_up_batch, unpadded

LOGITS = metric_named("logit_difference")


@pytest.fixture
def tiny(tiny_tokenizer):
    """Return a function from a name to a tiny model."""
    return lambda name: hybrid(name, tiny_tokenizer)


def _score(plain, ids, answers, block=None, change: Any = None):
    with torch.no_grad(), changed(block, change) if block is not None else nullcontext():
        logits = plain(input_ids=ids[None], use_cache=False).logits[0, -1]
    return float(logits[answers[0]] - logits[answers[1]])


@pytest.mark.parametrize("name", [*HYBRIDS, "falcon-alibi", "cohere"])
def test_cells_of_the_residual_stream_are_those_of_the_plain_model(name, tiny):
    model = tiny(name)
    plain, blocks = plain_model(model), plain_blocks(model)
    batch = made_up_batch(UNEQUAL)
    own = unpatched(model, batch, LOGITS)
    found = activation_patching(model, batch, "resid_post", LOGITS, layers=[0, 2])
    for i in range(len(batch)):
        clean, corrupted, steps, start = unpadded(batch, i)
        answers = int(batch.right[i]), int(batch.wrong[i])
        wanted = [_score(plain, ids, answers) for ids in (clean, corrupted)]
        np.testing.assert_allclose([side[i] for side in own], wanted, atol=1e-4)
        for at, layer in enumerate([0, 2]):
            kept = []
            _score(plain, clean, answers, blocks[layer], lambda h, kept=kept: kept.append(h) or h)
            cells = np.full(batch.width, np.nan)
            for b, a in steps.items():

                def write(hidden, b=b, new=kept[0][:, a]):
                    return hidden.index_copy(1, torch.tensor([b]), new[:, None])

                cells[start + b] = _score(plain, corrupted, answers, blocks[layer], write)
            np.testing.assert_allclose(found.values[i, at], cells, atol=1e-4)


@pytest.mark.parametrize("name", ["falcon-alibi", "qwen35"])
def test_what_the_bridge_alone_holds_is_refused_where_it_computes_another_model(name, tiny):
    model, batch = tiny(name), made_up_batch(UNEQUAL)
    layers = [3]
    with pytest.raises(SiteError, match="transformer_lens's bridge c"):
        activation_patching(model, batch, "pattern", LOGITS, layers=layers)
    with pytest.raises(SiteError, match=r"attribution of .* needs transformer_lens's bridge"):
        attribution_patching(model, batch, ["resid_pre"], LOGITS)
    with pytest.raises(SiteError, match=r"attention of .* needs transformer_lens's bridge"):
        attention_views(model, batch, [(3, 0)])
    assert logit_lens(model, batch).logit_difference.shape[1] >= 5


def test_a_component_of_some_layers_alone_names_them(tiny):
    model, batch = tiny("qwen35"), made_up_batch(UNEQUAL)
    with pytest.raises(SiteError, match=r"layer 0 of .* as its layers differ; give layers out of"):
        activation_patching(model, batch, "attn_out", LOGITS)
    assert activation_patching(model, batch, "attn_out", LOGITS, layers=[3]).values.shape[1] == 1
