from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from saesteer.saes.corpus import CorpusSource
from saesteer.saes.training import SaeTrainingConfig

SITE = "blocks.10.hook_resid_post"


def config(**fields: Any) -> SaeTrainingConfig:
    return SaeTrainingConfig.model_validate(
        {"site": SITE, "corpus": [{"path": "texts.jsonl"}]} | fields
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"learning_rat": 1e-3}, "learning_rat"),
        ({"corpus": []}, "corpus"),
        ({"corpus": [{"path": "a.jsonl", "pth": "b"}]}, "pth"),
        ({"corpus": [{"path": "a.jsonl", "style": "poem"}]}, "style"),
        ({"corpus": [{"path": "a.jsonl", "limit": 0}]}, "limit"),
        ({"held_out": 0}, "held_out"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"site": None}, "site"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields, field):
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    assert any(field in error["loc"] for error in caught.value.errors())


@pytest.mark.parametrize(("k", "d_sae"), [(64, 64)])
def test_k_has_to_be_smaller_than_d_sae(k, d_sae):
    with pytest.raises(ValidationError, match=rf"k \({k}\) must be smaller than d_sae \({d_sae}\)"):
        config(k=k, d_sae=d_sae)
    assert config(k=d_sae - 1, d_sae=d_sae).k == d_sae - 1


@pytest.mark.parametrize("place", [{}, {"path": "a.jsonl", "hub": "her/texts"}])
def test_a_source_is_in_exactly_one_place(place):
    with pytest.raises(ValidationError, match="exactly one of path and hub"):
        CorpusSource(**place)


def test_the_training_site_is_always_among_those_read():
    other = "blocks.8.hook_resid_post"
    assert config().all_sites == [SITE]
    assert config(harvest_sites=[other, SITE, other]).all_sites == sorted([SITE, other])
