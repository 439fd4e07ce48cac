"""A comparison of numbers of features: what they share, and the curve that it ends in."""

from __future__ import annotations

from typing import Any

import pytest

import saesteer as ss
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.registry import run_experiment
from saesteer.methods.objective import Statements
from saesteer.methods.registry import build_method
from saesteer.utils.errors import ConfigError
from tests.experiments.conftest import LOOSE


def test_numbers_of_features_share_the_first_gradients_and_make_a_curve(few, monkeypatch):
    asked, margin = [], Statements.margin

    def counted(self: Any, *steering: Any) -> Any:
        asked.append(bool(steering))
        return margin(self, *steering)

    monkeypatch.setattr(Statements, "margin", counted)
    names = [f"attributed_sae_{n}" for n in (1, 2, 4)]
    methods = [{"name": name, "settings": {"selection": LOOSE}} for name in names]
    settings = few(
        methods=[*methods, "natural_gradient"], headline=names[-1], baseline="natural_gradient"
    )
    settings["personas"] = settings["personas"][:1]
    results = run_experiment(CompareConfig(**settings))
    # Once around no steering for all, then both ways around each method's own first fit.
    assert (asked.count(False), asked.count(True)) == (1, 2 * 4)
    assert "How many features" in results.report.read_text(encoding="utf-8")
    (vector,) = results.metrics["vectors"].values()
    assert len(ss.load_vector(vector).sae_features) == 4


def test_a_number_behind_the_method_is_its_features():
    assert build_method("attributed_sae_8", {"rounds": 0}).get_params()["n_features"] == 8
    for name, settings in (("attributed_sae_0", {}), ("attributed_sae_8", {"n_features": 4})):
        with pytest.raises(ConfigError, match=r"'attributed_sae_0' is unknown|n_features is not a"):
            build_method(name, settings)
