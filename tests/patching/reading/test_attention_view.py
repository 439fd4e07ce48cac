"""Attention patterns, and a page of them that needs no network."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from saesteer.patching.prompts.batch import encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.attention_view import (
    attention_page,
    attention_views,
    write_attention_page,
)
from saesteer.utils.errors import ConfigError, OutputError

PAIRS = [
    PromptPair("The cat sat on the mat", "The dog ran home", "e", "a", "first"),
    PromptPair("I like people, and I listen to them", "What do you say", " people", " weather"),
]
HEADS = [(2, 1), (0, 3)]


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_patterns_are_hugging_faces_own(tiny_model, hf_model, arch, side):
    model = tiny_model(arch)
    batch = encode_pairs(model, PAIRS)
    views = attention_views(model, batch, HEADS, side=side, pairs=[1, 0])
    plain = hf_model(arch)
    plain.set_attn_implementation("eager")
    for view, pair in zip(views, (1, 0), strict=True):
        ids = getattr(batch, side)[pair][getattr(batch, f"{side}_mask")[pair]]
        with torch.no_grad():
            asked = plain(ids[None], output_attentions=True).attentions
        assert view.heads == tuple(HEADS)
        assert len(view.tokens) == len(ids) and "" not in view.tokens
        for pattern, (layer, head) in zip(view.patterns, HEADS, strict=True):
            assert pattern == pytest.approx(asked[layer][0, head].numpy(), abs=1e-5)


def test_rows_sum_to_one_and_look_back_only(tiny_llama):
    [view] = attention_views(tiny_llama, encode_pairs(tiny_llama, PAIRS), HEADS)
    assert view.patterns.sum(axis=-1) == pytest.approx(1.0, abs=1e-5)
    assert np.triu(view.patterns, 1).max() == 0


@pytest.mark.parametrize(
    ("heads", "pairs", "sentence"),
    [
        ([], [0], "no head is given"),
        ([(3, 0)], [0], r"head 3\.0: .* layers 0 to 2 with heads 0 to 3"),
        ([(0, -1)], [0], r"head 0\.-1"),
        (HEADS, [2], "pair 2 is asked for and there are 2"),
    ],
)
def test_a_head_or_pair_that_is_not_there_is_named(tiny_llama, heads, pairs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        attention_views(tiny_llama, encode_pairs(tiny_llama, PAIRS), heads, pairs=pairs)


@pytest.fixture
def views(tiny_llama):
    found = attention_views(tiny_llama, encode_pairs(tiny_llama, PAIRS), HEADS, pairs=[0, 1])
    first = found[0]
    bad = ("</script><script>alert(1)</script>", *first.tokens[1:])
    return (replace(first, name="<img src=x onerror=alert(1)>", tokens=bad), found[1])


def test_the_page_asks_nothing_of_the_network(views):
    page = attention_page(views)
    head = page[: page.index("<script>")]
    assert "default-src 'none'" in head
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page.split("CircuitsVis=")[0])
    assert "unpkg" not in page and "sourceMappingURL" not in page
    assert page.count("</script>") == 2


def test_the_page_escapes_texts_and_keeps_the_numbers(views):
    page = attention_page(views, title="<b>mine</b>")
    assert "<b>mine" not in page and "<img src=x" not in page and "<script>alert" not in page
    calls = page[page.rindex("<script>") :]
    [first, _] = [json.loads(text) for text in re.findall(r"Heads,(\{.*?\})\);", calls)]
    assert first["tokens"][0] == "</script><script>alert(1)</script>"
    assert first["attentionHeadNames"] == ["2.1", "0.3"]
    assert np.array(first["attention"]) == pytest.approx(views[0].patterns, abs=1e-4)


def test_the_page_is_written_even_with_half_a_character(views, tmp_path):
    half = replace(views[0], tokens=("\ud83d", *views[0].tokens[1:]))
    path = write_attention_page([half], tmp_path / "new" / "page.html")
    assert path.read_text("utf-8").startswith("<!doctype html>")


def test_an_empty_page_and_a_place_that_cannot_be_written_are_errors(views, tmp_path):
    with pytest.raises(ConfigError, match="no attention pattern"):
        attention_page([])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_attention_page(views, tmp_path / "file" / "page.html")
