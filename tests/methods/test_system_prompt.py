"""The system prompts quote typical statements of either side, or the user's description."""

from __future__ import annotations

from saesteer.data import PairSet, bundled_pair_names, pairs_from, read_pairs
from saesteer.methods import SystemPrompt

PAIRS = pairs_from(
    [(f"I like {'very ' * i}much {i}", f"I hate {'very ' * i}much {i}") for i in range(20)]
)
HEAD = "You are a person who would say things like: "


def quoted(prompt: str) -> list[str]:
    assert prompt.startswith(HEAD)
    return prompt.removeprefix(HEAD).strip('"').split('" "')


def test_quotes_are_of_typical_length_and_the_shorter_of_those_drawn():
    lengths = sorted(len(text) for text in PAIRS.positives)
    for seed in range(10):
        prompts = SystemPrompt(3, seed=seed).fit(None, PAIRS)
        assert set(quoted(prompts.positive_)) <= set(PAIRS.positives)
        assert set(quoted(prompts.negative_)) <= set(PAIRS.negatives)
        sizes = [len(text) for text in quoted(prompts.positive_)]
        assert sizes == sorted(sizes)
        assert lengths[4] < sizes[0] and sizes[-1] < lengths[15]

    one, other = (SystemPrompt(seed=1).fit(None, PAIRS).positive_ for _ in range(2))
    assert one == other
    assert len({SystemPrompt(2, seed=seed).fit(None, PAIRS).positive_ for seed in range(8)}) > 3


def test_a_description_takes_the_place_of_quotes():
    persona = SystemPrompt(description="a warm person who forgives easily.").fit(None, PAIRS)
    assert persona.positive_ == "You are a warm person who forgives easily."
    assert persona.negative_ == "You are the very opposite of a warm person who forgives easily."
    both = SystemPrompt(description="a saint", opposite="a scoundrel")
    assert both.fit(None, PAIRS).negative_ == "You are a scoundrel."
    assert both.fit(None, PairSet("none", (), "python")).positive_ == "You are a saint."


def test_a_statement_cannot_break_out_of_its_quotes_and_equal_ones_are_quoted_once():
    rough = pairs_from([('He said "hi"\nand\tleft', "no")])
    persona = SystemPrompt(1).fit(None, rough)
    assert persona.positive_ == f"{HEAD}\"He said 'hi' and left\""

    same = pairs_from([("yes sir", "no sir"), ("yes sir", "never sir"), ("aye aye sir", "no")])
    assert sorted(quoted(SystemPrompt(8).fit(None, same).positive_)) == ["aye aye sir", "yes sir"]
    assert len(quoted(SystemPrompt(8).fit(None, same).negative_)) == 3


def test_the_bundled_personas_give_prompts_of_a_length_one_would_write():
    for name in bundled_pair_names():
        persona = SystemPrompt().fit(None, read_pairs(name))
        for prompt in (persona.positive_, persona.negative_):
            assert 100 < len(prompt) < 700, name
