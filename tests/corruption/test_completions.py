"""Completions of a whole family against the model run by hand."""

from __future__ import annotations

import pytest
import torch

from saesteer.corruption.completions import complete_prompts
from saesteer.corruption.program import make_family
from saesteer.utils.errors import DataError


def test_each_program_completes_as_its_blocks_run_by_hand(arch, tiny_model, hf_model, block_loop):
    model, reference = tiny_model(arch), hf_model(arch)
    prompts = ["the cat sat on", "I like helping people and"]
    programs = make_family("keep", 3).programs
    found = complete_prompts(model, programs, prompts, max_new_tokens=5)
    assert [(one["program"], one["prompt"]) for one in found] == [
        (str(program), prompt) for program in programs for prompt in prompts
    ]
    ends = reference.generation_config.eos_token_id
    for one in found:
        bos = model.tokenizer.bos_token_id
        start = model.tokenizer(one["prompt"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([([] if bos is None else [bos]) + start])
        width = ids.shape[1]
        for _ in range(5):
            order = range(int(one["program"].split()[1]))
            after = block_loop(reference, ids, order)[:, -1].argmax(dim=-1)
            if int(after) == ends:
                break
            ids = torch.cat([ids, after[:, None]], dim=1)
        assert one["text"] == model.tokenizer.decode(ids[0, width:])


@pytest.mark.parametrize(
    ("prompts", "tokens", "message"),
    [
        ([], 3, "a prompt is empty"),
        ([" "], 3, "a prompt is empty"),
        (["the cat " * 100], 3, "prompt 1 .* more than the model's context"),
        (["the cat"], 500, "500 new tokens are more"),
    ],
)
def test_what_cannot_be_completed_is_one_sentence(tiny_llama, prompts, tokens, message):
    with pytest.raises(DataError, match=message):
        complete_prompts(
            tiny_llama, make_family("keep", 3).programs, prompts, max_new_tokens=tokens
        )
