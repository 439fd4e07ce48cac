"""A tiny model with an SAE that gives back what it gets, and the page's server on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saesteer.app.workbench import Workbench
from saesteer.data.texts import Answer
from saesteer.methods.features import vector_of_features
from saesteer.saes import load_sae
from saesteer.saes.table import save_feature_table
from saesteer.steering import SteeringVector

WEIGHTS = {3: 6.0, 40: 4.0}


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    # The bundled neutral answers do not fit the tiny model's context.
    answers = [Answer(f"What {i}?", "I like helping people. " * 8) for i in range(6)]
    monkeypatch.setattr("saesteer.steering.divergence.read_answers", lambda _: answers)


@pytest.fixture(scope="session")
def tiny_sae(mirror_sae):
    """The SAE with a feature table in which feature 7 fires on rain."""
    import pandas as pd

    folder = mirror_sae()
    rows: list[dict[str, Any]] = [
        {"feature": i, "density": 0.1, "max_activation": 2.0, "mean_activation": 1.0}
        | {"top_tokens": [f"up{i}"], "bottom_tokens": [], "words": [f"on{i}"]}
        | {"contexts": [], "description": f"feature number {i}"}
        for i in range(64)
    ]
    place = {"text": "it will rain today", "token": "rain", "activation": 2.0, "at": 8}
    rows[7] |= {"contexts": [place], "description": "rain <b>and</b> weather", "words": ["rain"]}
    save_feature_table(pd.DataFrame(rows), folder / "features.parquet")
    return load_sae(folder)


@pytest.fixture(scope="session")
def make_bench(tiny_model, tiny_sae) -> Callable[..., Workbench]:
    """Return a function that makes a workbench: of a vector of features, or a dense one."""

    def make(*, dense: bool = False, sae: Any = tiny_sae) -> Workbench:
        model, shared = tiny_model("llama"), {"model": "tiny", "residual_norm": 10.0}
        if dense:
            raw = torch.randn(32, generator=torch.Generator().manual_seed(1))
            vector = SteeringVector.from_raw(raw, site=tiny_sae.site, name="dense", **shared)
        else:
            peaks = dict.fromkeys(WEIGHTS, 2.0)
            vector = vector_of_features(
                tiny_sae, WEIGHTS, name="mixed", max_activation=peaks, **shared
            )
        return Workbench(model, vector, sae)

    return make


@pytest.fixture(scope="session")
def bench(make_bench) -> Workbench:
    """A workbench of a vector of two features."""
    return make_bench()
