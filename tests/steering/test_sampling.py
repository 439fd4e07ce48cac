from __future__ import annotations

import torch

from saesteer.steering.generate import sampling_processors


def test_choices_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([2.0, 1.0, 0.0, -3.0])
    keys = [(0, i) for i in range(400)]
    processors = sampling_processors(keys, 0.7, 1.0, seed=1)
    ids = torch.zeros(400, 1, dtype=torch.long)
    counts = torch.zeros(4)
    for _ in range(50):
        chosen = processors(ids, logits.expand(400, 4).clone()).argmax(-1)  # type: ignore[arg-type]
        counts += torch.bincount(chosen, minlength=4)
    expected = torch.softmax(logits / 0.7, -1)
    # 20,000 draws: three standard errors are at most 0.011.
    torch.testing.assert_close(counts / 20_000, expected, atol=0.011, rtol=0)


def test_the_nucleus_is_cut_before_the_noise():
    processors = sampling_processors([(0, 0)], 1.0, 0.6, seed=0)
    ids = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(100):
        scores = processors(ids, torch.tensor([[2.0, 1.0, 0.0]]))  # type: ignore[arg-type]
        assert int(scores.argmax()) == 0


def test_noise_is_keyed_by_seed_prompt_sample_and_step():
    def noise(keys, seed, steps=2):
        processors = sampling_processors(keys, 1.0, 1.0, seed)
        ids = torch.zeros(len(keys), 1, dtype=torch.long)
        zeros = torch.zeros(len(keys), 5)
        return [processors(ids, zeros.clone()) for _ in range(steps)]  # type: ignore[arg-type]

    first, second = noise([(0, 0), (0, 1), (0, 0)], 0)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], second[0])
    alone = noise([(0, 1)], 0)
    assert torch.equal(alone[1][0], second[1])
    assert not torch.equal(noise([(0, 0)], 1)[0][0], first[0])
    assert not torch.equal(noise([(1, 0)], 0)[0][0], first[1])


def test_temperature_zero_adds_nothing():
    assert len(sampling_processors([(0, 0)], 0.0, 0.5, seed=0)) == 0
