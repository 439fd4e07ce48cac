"""Texts at several strengths as rows of one batch, each as if it ran alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import TopPLogitsWarper

from saesteer.models import chat_prompt
from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_texts, pad_rows, padding_id
from saesteer.steering import GenerationResult, generate
from saesteer.steering.engines.local import sampling_processors
from saesteer.utils.errors import ModelError, SteeringError

PROMPTS = ["The cat sat on the mat", "I like"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 8, "chat": False}
STRENGTHS = (-6.0, 0.0, 6.0)


def ids_by_hugging_face(model, text, tokens=8):
    """The reference: one prompt, alone, through Hugging Face's generate."""
    pad = padding_id(model)
    batch = pad_rows(encode_texts(model.tokenizer, [text]), pad)
    plain: Any = plain_model(model)
    out = plain.generate(**batch.inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=pad)
    return out[0, batch.input_ids.shape[1] :].tolist()


def by_hugging_face(model, text, tokens=8):
    new = ids_by_hugging_face(model, text, tokens)
    return model.tokenizer.decode(new, skip_special_tokens=True)


def said(result):
    return [record.text for record in result.records]


def test_all_prompts_and_strengths_are_as_if_each_ran_alone(llama, make_vector):
    vector = make_vector()
    arguments = (llama, PROMPTS, vector, STRENGTHS)
    result = generate(*arguments, **SETTINGS)
    assert [(r.prompt, r.strength) for r in result.records] == [
        (p, s) for p in PROMPTS for s in STRENGTHS
    ]
    for record in result.records:
        with vector.steer(llama, record.strength):
            assert record.text == by_hugging_face(llama, record.prompt)
    assert len(set(said(result))) > 3
    assert len(result) == 6
    assert result.texts(6.0) == (result.records[2].text, result.records[5].text)

    # Small batches give the same texts, sampled ones too.
    sampled = {**SETTINGS, "temperature": 0.8, "n_samples": 2}
    whole = generate(*arguments, **sampled)
    for rows in (1, 5):
        assert generate(*arguments, **sampled, max_batch_rows=rows) == whole


def test_side_by_side_each_vector_writes_its_own_text_with_the_same_noise(llama, make_vector):
    vectors = [make_vector(), make_vector(1), -make_vector()]
    sampled = {**SETTINGS, "temperature": 0.8, "n_samples": 2}
    strengths = [0.0, 6.0, 4.0]
    result = generate(llama, PROMPTS, vectors, strengths, side_by_side=True, **sampled)
    for number, (vector, strength) in enumerate(zip(vectors, strengths, strict=True)):
        alone = generate(llama, PROMPTS, vector, strength, **sampled)
        assert said(result)[number::3] == said(alone)
    split = {"side_by_side": True, "max_batch_rows": 2, **sampled}
    assert generate(llama, PROMPTS, vectors, strengths, **split) == result
    with pytest.raises(SteeringError, match="3 vectors and 2 strengths"):
        generate(llama, PROMPTS, vectors, [1.0, 2.0], side_by_side=True, **SETTINGS)


def test_half_precision_and_a_site_inside_a_block_generate(bf16_llama, llama, make_vector):
    inside = make_vector(site="blocks.1.hook_mlp_out")
    for model, vector, strength in ((bf16_llama, make_vector(), 6.0), (llama, inside, 2.0)):
        result = generate(model, PROMPTS, vector, (0.0, strength), **SETTINGS)
        assert result.texts(0.0) != result.texts(strength)
        assert list(result.texts(0.0)) == said(generate(model, PROMPTS, **SETTINGS))


def test_a_prompt_that_ends_in_a_special_token_is_steered_from_there(
    llama, make_vector, monkeypatch
):
    end = llama.tokenizer.eos_token
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    monkeypatch.setattr(llama.tokenizer, "chat_template", "{{ bos_token }}" + template + end)
    vector = make_vector()
    found = generate(llama, PROMPTS, vector, 6.0, max_new_tokens=8, chat=True)
    for record in found.records:
        with vector.steer(llama, 6.0):
            assert record.text == by_hugging_face(llama, record.prompt + end)


def test_all_leaves_the_templates_special_tokens_alone(llama, make_vector):
    vector = make_vector(positions="all")
    result = generate(llama, PROMPTS[0], vector, 6.0, **SETTINGS)
    batch = pad_rows(encode_texts(llama.tokenizer, [PROMPTS[0]]), 1)
    with vector.steer(llama, 6.0, special_mask=~batch.span):
        assert said(result) == [by_hugging_face(llama, PROMPTS[0])]


def test_the_unembedding_sees_contiguous_rows(llama):
    # Of others torch's bfloat16 linear copies the weights once a row: gigabytes for a real model.
    seen: list[bool] = []
    head: Any = plain_model(llama).get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, out: seen.append(args[0].is_contiguous()))
    generate(llama, PROMPTS, **SETTINGS)
    handle.remove()
    assert len(seen) == 8 and all(seen)


def test_the_models_own_generation_settings_do_not_slip_in(llama, monkeypatch):
    plain = generate(llama, PROMPTS, **SETTINGS)
    monkeypatch.setattr(plain_model(llama).generation_config, "repetition_penalty", 5.0)
    monkeypatch.setattr(plain_model(llama).generation_config, "do_sample", True)
    assert generate(llama, PROMPTS, **SETTINGS) == plain


def test_the_chat_template_is_used_as_it_is_when_there_is_one(llama, tiny_model, monkeypatch):
    bare, prompt = tiny_model("gpt2", False), PROMPTS[0]

    def answer(model, **how):
        return generate(model, prompt, max_new_tokens=6, **how).records[0]

    assert answer(llama).prompt == prompt
    assert answer(llama).text == by_hugging_face(llama, chat_prompt(llama.tokenizer, prompt), 6)
    told = chat_prompt(llama.tokenizer, prompt, "Be kind.")
    assert answer(llama, system="Be kind.").text == by_hugging_face(llama, told, 6)
    assert answer(bare).text == by_hugging_face(bare, prompt, 6)
    with pytest.raises(ModelError, match="no chat template"):
        answer(bare, chat=True)
    with pytest.raises(SteeringError, match="system prompt needs the chat template"):
        answer(bare, system="Be kind.")

    # No BOS is put before what the template wrote.
    template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}bot"
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    own = llama.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=True, return_tensors="pt", return_dict=True
    )
    plain: Any = plain_model(llama)
    out = plain.generate(**own, max_new_tokens=6, do_sample=False, pad_token_id=1)
    new = llama.tokenizer.decode(out[0, own["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer(llama).text == new != by_hugging_face(llama, f"user {prompt} bot", 6)


def test_rows_end_each_at_their_own_end_token(llama, make_vector, monkeypatch):
    vector = make_vector()
    arguments = (llama, PROMPTS, vector, STRENGTHS)
    free = generate(*arguments, **SETTINGS)
    ids = []
    for record in free.records:
        with vector.steer(llama, record.strength):
            ids.append(ids_by_hugging_face(llama, record.prompt))
    token = ids[1][3]
    monkeypatch.setattr(plain_model(llama).generation_config, "eos_token_id", [2, token])
    ended = generate(*arguments, **SETTINGS)
    for before, after, own in zip(free.records, ended.records, ids, strict=True):
        if token not in own:
            assert after == before
            continue
        assert after.finished
        assert after.n_tokens == own.index(token) < before.n_tokens == 8
        assert after.text == llama.tokenizer.decode(own[: own.index(token)])
    assert {r.finished for r in ended.records} == {True, False}


def test_sampling_meets_the_same_noise_at_every_strength(llama, make_vector):
    sampling: dict[str, Any] = {**SETTINGS, "temperature": 1.3, "seed": 3, "n_samples": 3}
    arguments = (llama, PROMPTS, make_vector())
    result = generate(*arguments, (0.0, 1e-9, 6.0), **sampling)
    still, nudged, moved = (result.texts(s) for s in (0.0, 1e-9, 6.0))
    assert still == nudged != moved
    # Six but for chance: torch's releases draw other numbers from one seed.
    assert len(set(still)) > 3
    assert generate(*arguments, (0.0, 1e-9, 6.0), **sampling) == result
    assert generate(*arguments, 6.0, **sampling).texts(6.0) == moved
    sampling["seed"] = 4
    assert generate(*arguments, 0.0, **sampling).texts(0.0) != still
    # A tiny nucleus is the likeliest token.
    nucleus = generate(llama, PROMPTS, **SETTINGS, temperature=1.0, top_p=1e-6)
    assert said(nucleus) == said(generate(llama, PROMPTS, **SETTINGS))


def test_choices_follow_the_softmax_at_the_temperature():
    logits: Any = torch.tensor([2.0, 1.0, 0.0, -3.0])
    processors = sampling_processors([(0, i) for i in range(400)], 0.7, 1.0, seed=1)
    ids: Any = torch.zeros(400, 1, dtype=torch.long)
    counts = torch.zeros(4)
    for _ in range(50):
        chosen = processors(ids, logits.expand(400, 4).clone()).argmax(-1)
        counts += torch.bincount(chosen, minlength=4)
    expected = torch.softmax(logits / 0.7, -1)
    # 20,000 draws: three standard errors are at most 0.011.
    torch.testing.assert_close(counts / 20_000, expected, atol=0.011, rtol=0)

    # The nucleus is transformers' own, many tokens or few, whose end is far or near.
    rows = torch.randn(8, 3000, generator=torch.Generator().manual_seed(0))
    rows *= torch.tensor([0.1, 0.5, 1, 2, 4, 8, 16, 0.0])[:, None]
    processors = sampling_processors([(i, 0) for i in range(8)], 1.0, 0.9, seed=0)
    warper: Any = TopPLogitsWarper(0.9)
    assert processors[1](ids[:8], rows).equal(warper(ids[:8], rows))

    # The nucleus is cut before the noise.
    processors = sampling_processors([(0, 0)], 1.0, 0.6, seed=0)
    for _ in range(100):
        assert int(processors(ids[:1], logits[None, :3].clone()).argmax()) == 0


def test_one_row_streams_its_text_as_it_comes(llama, make_vector):
    pieces: list[str] = []
    result = generate(llama, PROMPTS[0], make_vector(), 0.0, **SETTINGS, on_token=pieces.append)
    assert "".join(pieces).strip() == result.records[0].text.strip()
    assert len(pieces) > 1
    with pytest.raises(SteeringError, match="2 were asked for"):
        generate(llama, PROMPTS, on_token=pieces.append)


def test_the_result_is_a_table_and_json(llama, make_vector):
    result = generate(llama, PROMPTS, make_vector(), strength=[-6.0, 6.0], **SETTINGS)
    assert list(result.table.columns) == ["prompt", "strength", "text"]
    assert result.table["text"].tolist() == said(result)
    rows = result.to_dicts()
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows[0]) >= {"prompt", "strength", "unit", "sample", "text", "n_tokens"}
    assert repr(result).split("\n")[0].split() == ["prompt", "strength", "text"]
    assert len(repr(result).split("\n")) == 1 + len(result)
    shown = GenerationResult((replace(result.records[0], text="<b>" + "long " * 40),))._repr_html_()
    assert "&lt;b&gt;" in shown and shown.count("long") == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["cat", "  "]}, "prompt 2 is empty"),
        ({"prompts": "cat " * 400}, "tokens.*context of 192; shorten it"),
        ({"max_new_tokens": 190}, "generate fewer tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"n_samples": 2}, "temperature"),
        ({"max_batch_rows": 0}, "max_batch_rows"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-300}, "give 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"strength": (0.0, 0.2)}, "no vector"),
        ({"unit": "metres"}, "unit"),
    ],
)
def test_bad_settings_are_said_before_anything_is_generated(llama, arguments, message):
    def refuse(*_):
        raise AssertionError("the model ran")

    handle = plain_model(llama).register_forward_pre_hook(refuse)
    try:
        with pytest.raises(SteeringError, match=message):
            generate(llama, **({"prompts": "The cat", "chat": False} | arguments))
    finally:
        handle.remove()
