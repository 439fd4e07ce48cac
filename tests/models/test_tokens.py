"""Text to tokens: spans to the character, BOS, chat templates, padding."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from saesteer.models import chat_prompt, encode_statements, encode_texts
from saesteer.models.tokens import TokenRow, length_sorted_batches, pad_rows
from saesteer.utils.errors import DataError, ModelError

STATEMENTS = [
    "I like helping people.",
    " leading space",
    "\n\nnewlines first",
    "naïve café, Grüße, 你好",
    "🙂 I smile 👩‍👩‍👧 a lot",
    "tab\tand  double  spaces   ",
]
BOS, EOS, UNK = 1, 2, 0


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def read(tokenizer, row, kept):
    """Return the text of the kept tokens, or of the others."""
    ids = [i for i, k in zip(row.ids, row.kept, strict=True) if k is kept]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def whole(tokenizer, row):
    return tokenizer.decode(list(row.ids), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_after_a_prompt_the_statement_alone_is_kept(tokenizer, statement):
    bos, asked = tokenizer.bos_token, "Say something."
    how: Any
    for prompt, how, before in (
        (asked, {"system": "Be brief."}, chat_prompt(tokenizer, asked, "Be brief.")),
        ("What do you say?", {"chat": False}, f"{bos}What do you say? "),
        ("Ends in newline\n", {"chat": False}, f"{bos}Ends in newline\n"),
        ("", {"chat": False}, bos),
    ):
        (row,) = encode_statements(tokenizer, [statement], prompt, **how)
        assert whole(tokenizer, row) == before + statement
        assert row.ids[0] == BOS and row.kept == tuple(sorted(row.kept)) and not row.kept[0]
        # A token that crosses the border belongs to the statement: whitespace before it at most.
        kept = read(tokenizer, row, True)
        assert kept.endswith(statement)
        assert kept.removesuffix(statement).strip() == ""


@pytest.mark.parametrize(
    ("statement", "span"),
    [
        ("I like helping people.", "helping"),
        ("I like helping people.", "people."),
        ("a 🙂 b 🙂 c", "🙂"),
        ("I think Grüße are kind", "Grüße are"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_a_marked_span_alone_is_kept(tokenizer, statement, span, chat):
    (row,) = encode_statements(tokenizer, [statement], "Say it.", spans=[span], chat=chat)
    kept = read(tokenizer, row, True)
    assert span in kept
    # Tokens are not cut: those at the borders may carry letters of a neighbour word.
    assert len(kept) <= len(span) + 8
    assert kept.strip() in statement
    first = row.kept.index(True)
    before = tokenizer.decode(list(row.ids[:first]), clean_up_tokenization_spaces=False)
    assert span not in before.removeprefix(chat_prompt(tokenizer, "Say it.") if chat else "")

    with pytest.raises(DataError, match=r"statement 2 .* does not contain its span 'dogs'"):
        encode_statements(tokenizer, ["I like cats", "I like birds"], spans=[None, "dogs"])


def test_a_tokenizer_that_knows_no_offsets_keeps_the_statement_exactly():
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    assert not slow.is_fast
    (row,) = encode_statements(slow, ["naïve 🙂"], "Say it.", chat=False)
    assert read(slow, row, True) == "naïve 🙂"
    assert read(slow, row, False) == "Say it. "
    (row,) = encode_statements(slow, ["I like cats"], spans=["like"])
    assert read(slow, row, True) == "like"


def test_where_bos_is_asked_for_and_missing_eos_stands_in_as_in_transformer_lens(tiny_tokenizer):
    tokenizer = tiny_tokenizer(roles={"eos_token": "<|im_end|>"})
    (row,) = encode_texts(tokenizer, ["I like cats"], prepend_bos=True)
    assert row.ids[0] == EOS
    assert row.kept[0] is False
    bare = tiny_tokenizer(roles={})
    (row,) = encode_texts(bare, ["I like cats"], prepend_bos=True)
    assert whole(bare, row) == "I like cats"


# Phi-4-mini, gpt-oss and Granite write no BOS, Llama 3 and Gemma do; Mistral has no header.
TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {
    "no BOS": TURNS,
    "BOS": "{{ bos_token }}" + TURNS,
    "no header": "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}",
}


@pytest.fixture(params=TEMPLATES)
def templated(request, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[request.param]
    return tokenizer


def as_the_template_says(tokenizer, question, system=None) -> tuple[int, ...]:
    """The reference: what Hugging Face itself makes of the messages."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return tuple(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    )


def test_a_chat_prompt_has_the_templates_tokens_and_where_asked_exactly_one_bos(templated):
    for system in (None, "Be brief."):
        own = as_the_template_says(templated, "What do you think?", system)
        (row,) = encode_texts(templated, [chat_prompt(templated, "What do you think?", system)])
        assert row.ids == own
        (said,) = encode_statements(templated, ["\nI like it"], "What do you think?", system=system)
        assert said.ids[: len(own)] == own
        assert read(templated, said, True) == "\nI like it"
    own = as_the_template_says(templated, "Hello?")
    with_bos = own if own[0] == BOS else (BOS, *own)
    (row,) = encode_texts(templated, [chat_prompt(templated, "Hello?")], prepend_bos=True)
    assert row.ids == with_bos
    (said,) = encode_statements(templated, ["\nYes"], "Hello?", prepend_bos=True)
    assert said.ids[: len(with_bos)] == with_bos
    assert said.ids.count(BOS) == 1
    assert read(templated, said, True) == "\nYes"


def test_markers_that_are_special_without_a_role_are_not_kept(tiny_tokenizer):
    # As Llama 3's <|start_header_id|>: special, and neither BOS nor EOS nor padding.
    tokenizer = tiny_tokenizer(roles={"eos_token": "<|endoftext|>"})
    assert BOS not in tokenizer.all_special_ids
    (row,) = encode_texts(tokenizer, ["<|im_start|>user\nI like cats<|im_end|>"])
    assert read(tokenizer, row, True) == "user\nI like cats"
    assert read(tokenizer, row, False) == "<|im_start|><|im_end|>"


def test_a_chat_or_system_prompt_without_a_template_for_it_is_a_sentence(tiny_tokenizer):
    plain = tiny_tokenizer(chat=False)
    with pytest.raises(ModelError, match=r"no chat template; use plain prompts"):
        chat_prompt(plain, "Hello?")
    with pytest.raises(ModelError, match=r"no chat template; use plain prompts"):
        encode_statements(plain, ["I like cats"], "Hello?", chat=True)
    (row,) = encode_statements(plain, ["I like cats"], "Hello?")
    assert whole(plain, row) == f"{plain.bos_token}Hello? I like cats"

    # A template may refuse system prompts, as Gemma's.
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0]['content'] }}"
    )
    assert chat_prompt(tokenizer, "Hello?") == "Hello?"
    with pytest.raises(
        ModelError, match=r"System role not supported\); leave the system prompt out"
    ):
        chat_prompt(tokenizer, "Hello?", "Be brief.")

    # A system prompt is never silently dropped.
    for chosen, chat in ((tiny_tokenizer(), False), (tiny_tokenizer(chat=False), None)):
        with pytest.raises(ModelError, match=r"a system prompt needs the chat template"):
            encode_statements(chosen, ["I like cats"], "Hello?", system="Be brief.", chat=chat)


def test_what_does_not_fit_the_context_is_refused_by_number(tokenizer):
    long = "word " * 50
    with pytest.raises(DataError, match=r"^text 2 \('word .*has \d+ tokens.*context of 20; short"):
        encode_texts(tokenizer, ["I like cats", long], max_length=20)
    with pytest.raises(DataError, match=r"^question 1 "):
        encode_texts(tokenizer, [long], max_length=20, what="question")
    with pytest.raises(DataError, match=r"^statement 2 "):
        encode_statements(tokenizer, ["I", long], max_length=20)


def test_rows_are_padded_on_the_side_asked_for_with_any_token():
    # Whatever the padding token is, a row may hold it.
    rows = [TokenRow((9, 6, 7), (False, True, True)), TokenRow((8,), (True,))]
    sides: tuple[Any, ...] = (
        ("left", [9, 9, 8], [0, 0, 1], [0, 0, 1]),
        ("right", [8, 9, 9], [1, 0, 0], [1, 0, 0]),
    )
    for side, ids, attention, span in sides:
        batch = pad_rows(rows, 9, side=side)
        assert batch.input_ids.tolist() == [[9, 6, 7], ids]
        assert batch.attention_mask.tolist() == [[1, 1, 1], attention]
        assert batch.span.int().tolist() == [[0, 1, 1], span]
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.long


def test_batches_hold_every_row_once_and_keep_their_limits():
    chosen = random.Random(0)
    rows = [TokenRow((3,) * n, (True,) * n) for n in chosen.choices(range(1, 40), k=200)]
    batches = list(length_sorted_batches(rows, max_tokens=100, max_rows=7))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        widest = max(len(rows[i]) for i in batch)
        assert len(batch) <= 7
        assert len(batch) * widest <= 100
    real = sum(len(row) for row in rows)
    padded = sum(len(b) * max(len(rows[i]) for i in b) for b in batches)
    assert padded < 1.1 * real
