"""Links that can be opened, cards of one form, strengths in the service's units."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from saesteer.saes.labels import search_labels, search_table
from saesteer.saes.neuronpedia import (
    SourceId,
    SteerSettings,
    dashboard_url,
    embed_url,
    feature_strengths,
    quick_list,
)
from saesteer.saes.neuronpedia.links import SITE
from saesteer.saes.neuronpedia.replies import Feature
from saesteer.saes.neuronpedia.steering import steer_payload
from saesteer.saes.table import FeatureTable
from saesteer.utils.errors import SteeringError
from tests.saes.player import PLACE, feature


def test_a_source_has_its_addresses_and_its_set():
    url = dashboard_url(PLACE, 650)
    assert url == "https://www.neuronpedia.org/gpt2-small/6-res-jb/650"
    assert embed_url(url) == f"{url}?embed=true"
    assert dashboard_url(SourceId("a", "b"), 1, site="http://localhost:3000").startswith("http://l")
    assert SourceId.parse("gemma-2-2b/20-gemmascope-res-16k").source_set == "gemmascope-res-16k"
    assert SourceId.parse("pythia-70m/3").source_set == "3"


def test_a_quick_list_takes_150_and_says_what_is_cut():
    made = quick_list(PLACE, [7, *range(200), 7], "kind & calm")
    assert (made.n_shown, made.n_left_out) == (150, 50)
    parts = urlsplit(made.url)
    assert (parts.netloc, parts.path) == ("www.neuronpedia.org", "/quick-list/")
    query = parse_qs(parts.query)
    assert query["name"] == ["kind & calm"]
    entries = json.loads(query["features"][0])
    assert len(entries) == 150
    assert entries[:2] == [
        {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "7"},
        {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "0"},
    ]
    assert quick_list(PLACE, [3], "a").n_left_out == 0


def test_every_id_of_sae_lens_can_be_read():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    ids = {
        found
        for release in get_pretrained_saes_directory().values()
        for found in release.neuronpedia_id.values()
        if found
    }
    assert len(ids) > 1000
    assert {str(SourceId.parse(found)) for found in ids} == ids


def test_a_card_of_the_service_shows_tokens_as_text():
    there = Feature.model_validate(feature(3)).card(n_contexts=2)
    assert (there.by, there.url) == ("gpt-4o-mini", dashboard_url(PLACE, 3))
    # Tokens are shown as text, not as the tokenizer spells them.
    assert [c.token for c in there.contexts] == [" kind", " kind"]
    assert there.contexts[0].text == " the kind no3\n"
    assert json.loads(json.dumps(there.as_dict()))["contexts"][0]["activation"] == 9.0
    # Without words, and with a peak out of range.
    bare = {**feature(3), "explanations": [{"description": " "}]}
    bare["activations"] = [
        {"tokens": ["a", "b"], "values": [1.0, 5.0], "maxValue": None, "maxValueTokenIndex": 9},
        {"tokens": [], "values": []},
    ]
    card = Feature.model_validate(bare).card()
    assert (card.description, card.by) == ("", "Neuronpedia")
    assert [(c.text, c.token, c.activation) for c in card.contexts] == [("ab", "b", 5.0)]


def test_words_find_the_features_that_fire_on_them_or_near_them_and_imported_labels():
    frame = pd.DataFrame(
        {
            "contexts": [
                [{"token": token, "text": text}]
                for token, text in (
                    ("kind", "she is kind to all"),
                    (" angry", "he shouts in anger"),
                    ("the", "the kindness of strangers"),
                )
            ],
            "top_tokens": [np.array([top]) for top in (" gentle", " rage", " of")],
            "description": ["fires on kind", "fires on angry", "fires on the"],
        }
    )
    table = FeatureTable(frame, "made")
    hits = search_table(table, "kindness", 5)
    assert [hit.feature for hit in hits] == [0, 2]
    assert all(0 < (hit.similarity or 0) <= 1 and hit.url is None for hit in hits)
    assert [hit.feature for hit in search_table(table, "the angry", 1)] == [1]
    assert search_table(table, "qqqq", 5) == search_table(table, "...", 5) == []
    labels = {7: "kind words", 9: "numbers", 11: "kindness and warmth"}
    place: Any = PLACE
    hits = search_labels(labels, "kindness", 2, place=place, site=SITE)
    assert [hit.feature for hit in hits] == [11, 7]
    assert hits[0].url == dashboard_url(PLACE, 11)


def test_strengths_there_add_the_same_vector_as_here():
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=(3, 8)) * [[1.0], [2.0], [0.5]], np.array([0.5, -2.0, 3.0])
    natural = weights @ rows
    norms = dict(enumerate(np.linalg.norm(rows, axis=1)))
    raw = -4.25
    found = feature_strengths(
        dict(enumerate(weights)), norms, norm=float(np.linalg.norm(natural)), raw=raw
    )
    # What the service does: strength times the row folded to unit norm, summed over features.
    there = sum(found[i] * rows[i] / norms[i] for i in range(3))
    assert there == pytest.approx(raw * natural / np.linalg.norm(natural))


def test_strengths_beyond_the_services_range_go_into_its_multiplier_or_are_refused():
    body = steer_payload(SourceId.parse(PLACE), {3: 650.0, 4: -1.0}, SteerSettings())
    assert body["strength_multiplier"] == 3.0
    added = [one["strength"] * body["strength_multiplier"] for one in body["features"]]
    assert added == pytest.approx([650.0, -1.0])
    assert max(abs(one["strength"]) for one in body["features"]) <= 300
    for strengths in ({}, {3: 3001.0}, {3: math.nan}, {3: math.inf}):
        with pytest.raises(SteeringError):
            steer_payload(SourceId.parse(PLACE), strengths, SteerSettings())
    wrong = {"n_tokens": 257, "temperature": math.nan, "frequency_penalty": -3, "method": "P"}
    for name, value in wrong.items():
        with pytest.raises(ValidationError):
            SteerSettings(**{name: value})
