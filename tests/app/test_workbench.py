"""What the page works with, against the same thing done by the package's own functions."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from saesteer.models import Site, chat_prompt, plain_model
from saesteer.models.reading import read_rows
from saesteer.models.tokens import encode_texts
from saesteer.saes.neuronpedia import Cache
from saesteer.saes.neuronpedia.cache import BulkLine, label_cache
from saesteer.saes.table import FeatureHit
from saesteer.steering import generate
from saesteer.utils.errors import MismatchError, SaeError, SteeringError


def mix(features, rest=1.0):
    return {"rest": rest, "features": features}


def test_a_mix_is_the_weighted_sum_of_decoder_rows(bench, tiny_sae):
    rows = tiny_sae.decoder
    assert bench.rest is None
    as_it_came = bench.mixed(mix({3: 6.0, 40: 4.0}))
    torch.testing.assert_close(as_it_came.raw, 6 * rows[3] + 4 * rows[40])
    off = bench.mixed(mix({3: 0.0, 40: 4.0, 7: -1.5}))
    torch.testing.assert_close(off.raw, 4 * rows[40] - 1.5 * rows[7])
    assert {f.index: f.weight for f in off.sae_features} == {40: 4.0, 7: -1.5}
    assert off.residual_norm == 10.0 and off.max_act is not None
    with pytest.raises(SteeringError, match="switched off"):
        bench.mixed(mix({3: 0.0}))
    with pytest.raises(SaeError, match="feature 64"):
        bench.mixed(mix({64: 1.0}))


def test_features_are_added_to_a_dense_vector(make_bench, tiny_sae):
    bench = make_bench(dense=True)
    whole = bench.vector.raw
    torch.testing.assert_close(bench.mixed(mix({})).raw, whole)
    both = bench.mixed(mix({5: 2.0}, rest=0.5))
    torch.testing.assert_close(both.raw, 0.5 * whole + 2 * tiny_sae.decoder[5])
    with pytest.raises(SaeError, match="--sae"):
        make_bench(dense=True, sae=None).mixed(mix({5: 2.0}))


def test_a_vector_with_parts_steers_whole_and_is_not_mixed(make_bench):
    bench = make_bench()
    part = replace(bench.vector, site=Site(2))
    bench.vector = replace(bench.vector, parts=(part,))
    assert bench.about()["vector"]["site"] == bench.vector.place
    assert bench.mixed(mix({3: 6.0, 40: 4.0})) is bench.vector
    with pytest.raises(SteeringError, match="a mix is of one site"):
        bench.mixed(mix({3: 0.0, 40: 4.0}))


def test_answers_stream_as_generate_gives_them(bench):
    pieces = ["", ""]

    def on_piece(row, text):
        pieces[row] += text

    sampling = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3}
    answers = bench.write(
        "Hello there", [(0, 0.0), (0, 2.0)], "norm", mix({7: 3.0}), on_piece, chat=False, **sampling
    )
    vector = bench.mixed(mix({7: 3.0}))
    expected = generate(
        bench.model, "Hello there", vector, [0.0, 2.0], chat=False, top_p=0.9, **sampling
    )
    assert [answer["text"] for answer in answers] == [r.text for r in expected.records]
    assert pieces == [r.text for r in expected.records]


def test_a_chat_goes_on_from_its_earlier_turns(bench, monkeypatch):
    prompts = []

    def keep(model, prompt, *args, **kwargs):
        prompts.append(prompt)
        return generate(model, prompt, *args, **kwargs)

    monkeypatch.setattr("saesteer.app.workbench.generate", keep)
    bench.write(
        "And you?",
        *([(0, 0.0)], "norm", None, print),
        chat=True,
        earlier=[("Hi", "Yo")],
        max_new_tokens=2,
    )
    turns = [("user", "Hi"), ("assistant", "Yo"), ("user", "And you?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    tokenizer = bench.model.tokenizer
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompts == [expected]


def test_the_strength_of_a_kl_costs_that_kl(bench):
    found = bench.strength_at(mix({3: 1.0}), -0.05, "max_act")
    assert found["strength"] < 0
    assert found["kl"] == pytest.approx(0.05, rel=0.04)
    again = bench.cost(mix({3: 1.0}), found["strength"], "max_act")
    assert again["kl"] == pytest.approx(found["kl"])
    assert bench.cost(None, 0.0, "norm")["kl"] == 0.0


def test_vectors_are_compared_at_one_kl_in_one_batch(bench, others):
    found = [bench.strength_at(None, 0.05, "norm", number) for number in (0, 1, 2)]
    assert [one["kl"] for one in found] == pytest.approx([0.05] * 3, rel=0.04)
    strengths = [one["strength"] for one in found]
    columns = [(0, 0.0), *enumerate(strengths)]
    how = {"chat": False, "max_new_tokens": 8, "temperature": 0.7, "seed": 3}
    answers = bench.write("Hello there", columns, "norm", None, lambda *_: None, **how)
    vectors = [bench.vector, bench.vector, *others.values()]
    for answer, vector, strength in zip(answers, vectors, [0.0, *strengths], strict=True):
        alone = generate(bench.model, "Hello there", vector, strength, top_p=0.9, **how)
        assert answer["text"] == alone.records[0].text
    with pytest.raises(SteeringError, match="no vector 3"):
        bench.cost(None, 1.0, "norm", 3)


def test_fluency_is_the_perplexity_after_the_whole_conversation(bench):
    text, earlier = "I like helping people", [("Hi", "Yo")]
    (found, empty) = bench.fluency("And you?", [text, ""], chat=True, earlier=earlier)
    tokenizer = bench.model.tokenizer
    prompt = chat_prompt(tokenizer, "And you?", None, earlier)
    start, ids = (tokenizer(t, add_special_tokens=False).input_ids for t in (prompt, prompt + text))
    with torch.no_grad():
        logp = plain_model(bench.model)(torch.tensor([ids])).logits[0].log_softmax(-1)
    said = range(len(start), len(ids))
    nll = -sum(float(logp[at - 1, ids[at]]) for at in said) / len(said)
    assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-3)
    assert found["repeated"] == 0.0
    assert empty == {"perplexity": None, "repeated": None}


def test_every_token_is_read_with_the_features_that_fire(bench, tiny_sae):
    text = "The cat sat on the mat"
    read = bench.read(text, 7)
    row = encode_texts(bench.model.tokenizer, [text])[0]
    values = read_rows(bench.model, [row], [tiny_sae.site])[tiny_sae.site].values
    codes = values[:, 7].clamp_min(0)
    assert [token["value"] for token in read["tokens"]] == pytest.approx(codes.tolist(), abs=1e-5)
    assert "".join(token["text"] for token in read["tokens"]) == text
    first, size = read["tokens"][0]["features"][0]
    both = torch.cat([values[0], -values[0]])
    assert (first, size) == (int(both.argmax()), pytest.approx(float(both.max()), rel=1e-4))
    assert read["labels"][str(first)]
    along = [token["value"] for token in bench.read(text, None)["tokens"]]
    assert along == pytest.approx((values @ bench.vector.direction).tolist(), abs=1e-4)


def test_tokens_are_coloured_by_a_probe(bench, tiny_sae, make_bench):
    text = "The cat sat on the mat"
    read = bench.read(text, None, probe=True)
    row = encode_texts(bench.model.tokenizer, [text])[0]
    values = read_rows(bench.model, [row], [tiny_sae.site])[tiny_sae.site].values
    glad = torch.sigmoid(values[:, 0].double())
    assert [t["value"] for t in read["tokens"]] == pytest.approx((2 * glad - 1).tolist(), abs=1e-4)
    assert [t["features"] for t in read["tokens"]] == [
        t["features"] for t in bench.read(text, None)["tokens"]
    ]
    with pytest.raises(MismatchError, match="--probe"):
        make_bench().read(text, None, probe=True)


def test_words_are_looked_up_where_something_is_known(bench, make_bench, monkeypatch, tmp_path):
    by_table = bench.search("rain")
    assert by_table["features"][0]["index"] == 7 and "own table" in by_table["how"]
    # An SAE that Neuronpedia has: its imported labels, and with a key the service itself.
    monkeypatch.setenv("SAESTEER_CACHE", str(tmp_path))
    known = copy.copy(bench.sae)
    monkeypatch.setattr(type(known), "neuronpedia_id", "gpt2-small/6-res-jb")
    line = BulkLine(1, 21, ("about rain", "gpt", None))
    Cache(label_cache()).store_file("gpt2-small/6-res-jb", "labels", "", [line])
    by_labels = bench.search("rain")
    assert [one["index"] for one in by_labels["features"]] == [21]
    assert by_labels["features"][0]["url"].endswith("/gpt2-small/6-res-jb/21")
    asked = []

    def search(self, source, query, *, limit):
        asked.append((str(source), query))
        return [FeatureHit(5, "drizzle", 0.9, "")]

    monkeypatch.setenv("NEURONPEDIA_API_KEY", "a-key-for-this-test")
    monkeypatch.setattr("saesteer.saes.neuronpedia.Neuronpedia.search", search)
    assert bench.search("rain")["features"][0]["label"] == "drizzle"
    assert asked == [("gpt2-small/6-res-jb", "rain")]
    with pytest.raises(SaeError, match="--sae"):
        make_bench(dense=True, sae=None).search("rain")


def test_an_sae_of_another_site_is_refused(make_bench, mirror_sae):
    from saesteer.saes import load_sae

    with pytest.raises(MismatchError, match=r"blocks\.2"):
        make_bench(dense=True, sae=load_sae(mirror_sae(site="blocks.2.hook_resid_post")))
