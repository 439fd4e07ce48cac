"""What the page works with, against the same thing done by the package's own functions."""

from __future__ import annotations

import pytest
import torch

from saesteer.models.reading import read_rows
from saesteer.models.tokens import encode_texts
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


def test_answers_stream_as_generate_gives_them(bench):
    pieces = ["", ""]

    def on_piece(row, text):
        pieces[row] += text

    sampling = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3}
    answers = bench.write(
        "Hello there", [0.0, 2.0], "norm", mix({7: 3.0}), on_piece, chat=False, **sampling
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
        "And you?", [0.0], "norm", None, print, chat=True, earlier=[("Hi", "Yo")], max_new_tokens=2
    )
    turns = [("user", "Hi"), ("assistant", "Yo"), ("user", "And you?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    tokenizer = bench.model.tokenizer
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompts == [expected]


def test_the_strength_of_a_kl_costs_that_kl(bench):
    found = bench.strength_at(mix({3: 1.0}), 0.05, -1, "max_act")
    assert found["strength"] < 0
    assert found["kl"] == pytest.approx(0.05, rel=0.04)
    again = bench.cost(mix({3: 1.0}), found["strength"], "max_act")
    assert again["kl"] == pytest.approx(found["kl"])
    assert bench.cost(None, 0.0, "norm")["kl"] == 0.0


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


def test_an_sae_of_another_site_is_refused(make_bench, mirror_sae):
    from saesteer.saes import load_sae

    with pytest.raises(MismatchError, match=r"blocks\.2"):
        make_bench(dense=True, sae=load_sae(mirror_sae(site="blocks.2.hook_resid_post")))
