"""Models whose layers keep states beside keys and values, or instead of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.models import Site, wrap_model
from saesteer.models.loading import plain_model
from saesteer.models.tokens import TokenRow
from saesteer.steering import SteeringVector
from saesteer.steering.teacher_forced import TeacherForced
from tests.by_hand import added
from tests.hybrids import random_model

NAMES = ("mamba", "mamba2", "lfm2", "qwen35", "falconh1", "jamba")


@pytest.fixture(scope="module", params=NAMES)
def hybrid(request, tokenizer):
    made = random_model(request.param)
    made.generation_config.eos_token_id = None
    return wrap_model(made, tokenizer)


def rows() -> list[TokenRow]:
    """Return texts with a common beginning of twenty tokens."""
    generator = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return torch.randint(8, 64, (n,), generator=generator).tolist()

    beginning, made = some(20), []
    for own, answer in ((0, 5), (3, 4), (1, 9), (6, 2)):
        ids = [*beginning, *some(own), *some(answer)]
        made.append(TokenRow(tuple(ids), (False,) * (20 + own) + (True,) * answer))
    return made


def test_scoring_equals_single_passes(hybrid):
    raw = torch.randn(32, generator=torch.Generator().manual_seed(4))
    plain: Any = plain_model(hybrid)
    blocks: Any = plain.get_submodule(hybrid.adapter.component_mapping["blocks"].name)
    for site in (Site(0), Site(2), Site(1, "hook_resid_pre"), Site(3)):
        vector = SteeringVector.from_raw(raw, site=site, model="tiny", residual_norm=1.0)
        passes = TeacherForced(hybrid, rows(), site=site, max_tokens=60)
        side = "input" if site.hook == "hook_resid_pre" else "output"
        for strength in (0.0, 2.0):
            said, change = {}, strength * raw / raw.norm()
            for one in passes.passes(vector, strength, "raw"):
                for place, index in enumerate(one.index):
                    said[index] = one.logits[one.row == place]
            for index, row in enumerate(rows()):
                first = row.kept.index(True) - 1
                with torch.no_grad(), added(blocks[site.layer], change, slice(first, None), side):
                    alone = plain(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0]
                torch.testing.assert_close(said[index], alone[first:-1], rtol=1e-3, atol=1e-3)


def test_steered_generation_is_the_same_with_the_cache_and_without(hybrid, random_ids):
    raw = torch.randn(32, generator=torch.Generator().manual_seed(4))
    vector = SteeringVector.from_raw(raw, site="blocks.1.hook_resid_post", model="tiny")
    plain: Any = plain_model(hybrid)
    ids = random_ids(3, 7, seed=1)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    for positions in ("all", "from_last_prompt_token", "generated"):
        results = []
        for cached in (True, False):
            with vector.steer(hybrid, [2.0, -2.0, 0.0], "raw", positions=positions):
                out = plain.generate(
                    ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=1,
                    use_cache=cached, output_scores=True, return_dict_in_generate=True,
                )  # fmt: skip
            results.append(torch.stack(out.scores))
        torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
    # The bridge's own generate takes its cache up again.
    ids = random_ids(1, 7, seed=2)
    expected = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=1
    )
    for cached in (True, False):
        got = hybrid.generate(
            ids, max_new_tokens=6, do_sample=False, stop_at_eos=False, use_past_kv_cache=cached,
            return_type="tokens", verbose=False,
        )  # fmt: skip
        assert torch.equal(got, expected)
