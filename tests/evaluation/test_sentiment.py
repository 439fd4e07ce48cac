"""Sentiment has the right sign, and a text that says nothing has none."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from saesteer.evaluation import sentiment
from saesteer.evaluation.sentiment import vader_compound
from saesteer.utils.errors import ModelError


def test_scores_are_those_that_vaders_authors_publish():
    # From the package's own README.
    published = {
        "VADER is smart, handsome, and funny.": 0.8316,
        "VADER is VERY SMART, handsome, and FUNNY!!!": 0.9342,
        "The book was good.": 0.4404,
        "Today SUX!": -0.5461,
        "Not bad at all": 0.431,
    }
    np.testing.assert_allclose(vader_compound(list(published)), list(published.values()), atol=1e-4)


def test_a_blank_text_is_missing_and_not_neutral():
    scores = vader_compound(["", " \n\t", "The table stands there."])
    assert np.isnan(scores[:2]).all()
    assert scores[2] == 0.0


def test_a_missing_package_is_named_with_the_command_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    sentiment._analyzer.cache_clear()
    with pytest.raises(ModelError, match="pip install vaderSentiment"):
        vader_compound(["a"])
