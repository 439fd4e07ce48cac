"""Programs on the bundled real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saesteer.corruption import corrupted, load_tasks, make_family, parse_program
from saesteer.corruption.measure import complete_prompts, score_task
from saesteer.corruption.tasks import task_rows
from saesteer.models import plain_model


@pytest.mark.real
def test_identity_is_identical_and_keeping_nothing_repeats_the_last_word(smollm2):
    plain: Any = plain_model(smollm2)
    ids = torch.tensor([smollm2.tokenizer("The opposite of hot is")["input_ids"]])
    with torch.no_grad():
        before = plain(ids).logits
        with corrupted(smollm2, parse_program("0-29", 30)):
            assert torch.equal(plain(ids).logits, before)
    said = complete_prompts(
        smollm2, [parse_program("[]", 30)], ["The opposite of hot is"], max_new_tokens=3
    )
    assert said[0]["text"].split() == ["is", "is", "is"]


@pytest.mark.real
def test_opposites_need_the_first_layer_more_than_one_in_the_middle(smollm2):
    (task,) = load_tasks(["opposites"])
    rows = task_rows(smollm2.tokenizer, task, max_questions=12)
    programs = [parse_program(text, 30) for text in ("skip 0", "skip 15")]
    losses = score_task(smollm2, [*programs, *make_family("keep", 30).programs], rows).loss()
    assert losses[0] < 1.5 and losses[1] > losses[2] + 3
    # Half of the layers are not enough for any of it.
    assert losses[3 + 15] > 10 and losses[3 + 30] == pytest.approx(losses[0], abs=0.02)
