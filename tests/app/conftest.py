"""A tiny model with an SAE that gives back what it gets, and the page's server on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.app.workbench import Workbench
from saesteer.data.texts import Answer
from saesteer.methods.features import vector_of_features
from saesteer.models import model_info
from saesteer.probes import ProbeSet
from saesteer.probes.probe import LinearProbe
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

    def make(*, dense: bool = False, sae: Any = tiny_sae, **more: Any) -> Workbench:
        model, shared = tiny_model("llama"), {"model": "tiny", "residual_norm": 10.0}
        if dense:
            raw = torch.randn(32, generator=torch.Generator().manual_seed(1))
            vector = SteeringVector.from_raw(raw, site=tiny_sae.site, name="dense", **shared)
        else:
            peaks = dict.fromkeys(WEIGHTS, 2.0)
            vector = vector_of_features(
                tiny_sae, WEIGHTS, name="mixed", max_activation=peaks, **shared
            )
        return Workbench(model, vector, sae, **more)

    return make


class FakeJudge:
    """Reads how often a text holds the letter e; stands for the one that takes seconds to make."""

    def read(self, question: str, texts: list[str]) -> dict[str, Any]:
        readings = [None if not text else text.count("e") / len(text) for text in texts]
        return {"judge": {"judge": "letters", "verdict": "admitted", "auc": 0.9}} | {
            "readings": readings
        }


@pytest.fixture(scope="session")
def probes(tiny_model, tiny_sae) -> ProbeSet:
    """A probe at the SAE's site that tells by the first coordinate."""
    weight = np.zeros((1, 32), dtype=np.float32)
    weight[0, 0] = 1.0
    fit = {"weight": weight, "bias": np.zeros(1, dtype=np.float32), "c": 1.0}
    means = np.zeros((2, 32), dtype=np.float32)
    one = LinearProbe(
        **fit, site=tiny_sae.site, classes=("sad", "glad"), means=means, residual_norm=10.0
    )
    fingerprint = model_info(tiny_model("llama")).fingerprint
    return ProbeSet((one,), "tiny", fingerprint, "mean", tiny_sae.site.layer, name="mood")


@pytest.fixture(scope="session")
def others(tiny_sae) -> dict[str, SteeringVector]:
    """Two dense vectors to compare with."""
    names = ("difference in means", "random direction")
    return {
        name: SteeringVector.from_raw(
            torch.randn(32, generator=torch.Generator().manual_seed(seed)),
            site=tiny_sae.site,
            model="tiny",
            residual_norm=10.0,
            name=name,
        )
        for seed, name in enumerate(names, start=5)
    }


@pytest.fixture(scope="session")
def bench(make_bench, others, probes, tmp_path_factory) -> Workbench:
    """A workbench of a vector of two features, with all that a page can have."""
    report = tmp_path_factory.mktemp("run") / "report.html"
    report.write_text("<h1>What was found</h1>")
    evidence: Any = FakeJudge()
    evidence.report, evidence.judged = report, True
    return make_bench(others=others, probes=probes, evidence=evidence)
