"""Path patching against a plain loop of whole passes, one sender at a time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models import wrap_model
from saesteer.models.forward import position_ids
from saesteer.patching.batch import encode_pairs
from saesteer.patching.metrics import metric_named
from saesteer.patching.pairs import PromptPair
from saesteer.patching.paths import Senders, path_patching
from saesteer.utils.errors import ConfigError, SiteError
from tests.hybrids import hybrid, random_model

PAIRS = (
    PromptPair("The cat sat on the mat", "The dog ran on the mat", "a", "b"),
    PromptPair("I like sunny weather", "I like helping", "c", "d"),
)
DIFFERENCE = metric_named("logit_difference")
LAYERS, HEADS, D_HEAD = 3, 4, 8
HOOKS = ("hook_mlp_out", *(f"attn.hook_{x}" for x in "zqkv"))
SENDERS: tuple[tuple[Senders, int], ...] = (("z", HEADS), ("mlp_out", 1))
RECEIVERS = ["final", "2.1.q", ["1.0.k", "2.1.v", "2.3.q"]]


class Loop:
    """The three passes of the definition on the bridge, every one whole."""

    def __init__(self, model, batch, mode, mlps, hooks=HOOKS):
        self.model, self.batch, self.mlps, self.hooks = model, batch, mlps, hooks
        sides = [(batch.corrupted, batch.corrupted_mask), (batch.clean, batch.clean_mask)]
        to = batch.to_clean
        if mode == "noising":
            sides, to = sides[::-1], _inverse(to)
        (self.ids, self.mask), source = sides
        self.there = to >= 0
        rows = torch.arange(len(batch))[:, None]
        self.own, self.start = self.run(self.ids, self.mask)
        other, self.goal = self.run(*source)
        self.other = {name: value[rows, to.clamp(min=0)] for name, value in other.items()}

    def run(self, ids, mask, edits=None):
        """Return what passed every hook point, and the logits at the answer's position."""
        kept = {}
        edits = edits or {}

        def hook(name):
            def function(module, args, output):
                kept[name] = edits[name](output) if name in edits else output
                return kept[name]

            return function

        points = self.model.hook_dict
        with torch.no_grad(), ExitStack() as stack:
            for name in (f"blocks.{layer}.{x}" for layer in range(LAYERS) for x in self.hooks):
                stack.callback(points[name].register_forward_hook(hook(name)).remove)
            logits = self.model.original_model(
                input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask)
            ).logits[:, -1]
        return kept, logits

    def told(self, sender, layer, head, where):
        """Return the second pass: what everything reads when one sender alone has changed."""
        edits = {}
        for at in range(LAYERS):
            z, mlp = f"blocks.{at}.attn.hook_z", f"blocks.{at}.hook_mlp_out"
            edits[z] = lambda out, z=z: self.own[z]
            if self.mlps == "frozen":
                edits[mlp] = lambda out, mlp=mlp: self.own[mlp]
        name = f"blocks.{layer}.attn.hook_z" if sender == "z" else f"blocks.{layer}.hook_mlp_out"
        taken = (self.there & where)[:, :, None].repeat(1, 1, self.own[name].shape[-1])
        if sender == "z":
            taken[..., : head * D_HEAD] = False
            taken[..., (head + 1) * D_HEAD :] = False
        if sender == "mlp_out" and self.mlps == "recomputed":
            # What the sender sends besides is its own answer to what it reads: the same as ever.
            edits[name] = lambda out: torch.where(taken, self.other[name], out)
        else:
            edits[name] = lambda out: torch.where(taken, self.other[name], self.own[name])
        return self.run(self.ids, self.mask, edits)

    def value(self, sender, layer, head, receivers, at=None, to=None):
        """Return the logit differences of one sender's path."""
        every = torch.ones_like(self.there)
        at, to = (every if x is None else x for x in (at, to))
        read, logits = self.told(sender, layer, head, at if receivers == "final" else at & to)
        if receivers == "final":
            return self.difference(torch.where(to[:, -1:], logits, self.start))
        edits = {}
        for text in [receivers] if isinstance(receivers, str) else receivers:
            there, number, letter = text.split(".")
            name = f"blocks.{there}.attn.hook_{letter}"
            columns = slice(int(number) * D_HEAD, (int(number) + 1) * D_HEAD)

            before = edits.get(name)

            def change(out, before=before, name=name, columns=columns):
                out = out.clone() if before is None else before(out)
                new = torch.where(to[..., None], read[name], out)
                out[..., columns] = new[..., columns]
                return out

            edits[name] = change
        return self.difference(self.run(self.ids, self.mask, edits)[1])

    def difference(self, logits):
        rows = torch.arange(len(logits))
        right, wrong = logits[rows, self.batch.right], logits[rows, self.batch.wrong]
        return (right - wrong).double().numpy()


def _inverse(to):
    inverse = torch.full_like(to, -1)
    for pair, column in (to >= 0).nonzero().tolist():
        inverse[pair, to[pair, column]] = column
    return inverse


@pytest.fixture
def model_of(tiny_model, tiny_tokenizer):
    """Return a function from an architecture to a bridge of three layers."""

    def make(arch: str) -> Any:
        # In this one MLPs stand beside attention and do not read it.
        if arch == "gpt-neox":
            return wrap_model(random_model(arch, num_hidden_layers=LAYERS), tiny_tokenizer())
        return tiny_model(arch)

    return make


@pytest.mark.parametrize(
    ("arch", "receivers"),
    [(arch, receivers) for arch in ("gpt2", "gemma3") for receivers in RECEIVERS]
    + [("gpt-neox", "final")],
    ids=str,
)
@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
def test_every_sender_equals_the_three_passes(arch, mlps, receivers, model_of):
    model, mode = model_of(arch), "denoising" if mlps == "frozen" else "noising"
    batch = encode_pairs(model, PAIRS)
    loop = Loop(model, batch, mode, mlps, hooks=HOOKS[:2] if arch == "gpt-neox" else HOOKS)
    clean, corrupted = loop.difference(loop.goal), loop.difference(loop.start)
    if mode == "noising":
        clean, corrupted = corrupted, clean
    for sender, heads in SENDERS:
        found = path_patching(model, batch, sender, receivers, DIFFERENCE, mode=mode, mlps=mlps)
        values = found.values.reshape(len(batch), LAYERS, heads)
        np.testing.assert_allclose(found.clean, clean, atol=2e-5)
        np.testing.assert_allclose(found.corrupted, corrupted, atol=2e-5)
        for layer in range(LAYERS):
            for head in range(heads):
                wanted = loop.value(sender, layer, head, receivers)
                np.testing.assert_allclose(values[:, layer, head], wanted, atol=5e-5)
        start = loop.difference(loop.start)
        # Keys at this size move the logits little, but something must.
        assert np.abs(values - start[:, None, None]).max() > 1e-4


@pytest.mark.parametrize("receivers", RECEIVERS, ids=["final", "query", "several"])
def test_positions_of_senders_and_receivers_are_kept(tiny_llama, receivers):
    batch = encode_pairs(tiny_llama, PAIRS)
    loop = Loop(tiny_llama, batch, "denoising", "recomputed")
    every = torch.zeros_like(batch.corrupted_mask)
    for columns in ([-1], [-2], [-3, -1]):
        where = every.clone()
        where[:, columns] = True
        sender = path_patching(
            tiny_llama, batch, "z", receivers, DIFFERENCE, sender_positions=columns
        )
        receiver = path_patching(
            tiny_llama, batch, "z", receivers, DIFFERENCE, receiver_positions=where
        )
        for layer, head in ((0, 1), (1, 2)):
            wanted = loop.value("z", layer, head, receivers, at=where)
            np.testing.assert_allclose(sender.values[:, layer, head], wanted, atol=2e-5)
            wanted = loop.value("z", layer, head, receivers, to=where)
            np.testing.assert_allclose(receiver.values[:, layer, head], wanted, atol=2e-5)


@pytest.mark.parametrize("receivers", ["final", ["2.1.v", "1.1.q"]], ids=["final", "heads"])
def test_pairs_stand_alone_and_layers_and_memory_change_nothing(tiny_llama, receivers):
    both, second = (encode_pairs(tiny_llama, pairs) for pairs in (PAIRS, PAIRS[1:]))
    whole, alone = (
        path_patching(tiny_llama, batch, "z", receivers, DIFFERENCE) for batch in (both, second)
    )
    np.testing.assert_allclose(whole.values[1:], alone.values, atol=1e-5)
    few: dict[str, Any] = {"layers": [1, 0], "memory_gb": 1e-9}
    some = path_patching(tiny_llama, both, "z", receivers, DIFFERENCE, **few)
    assert some.coords["layer"] == (1, 0)
    np.testing.assert_allclose(some.values, whole.values[:, [1, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("receivers", "options", "says"),
    [
        ("3.0.q", {}, "layers 0 to 2"),
        ("1.2.k", {}, "heads 0 to 1"),
        (["final", "1.2.q"], {}, "beside heads"),
        ("final", {"sender_positions": [99]}, "not 99"),
        ("final", {"receiver_positions": torch.ones(1, 1)}, "one entry for each"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(tiny_llama, receivers, options, says):
    batch = encode_pairs(tiny_llama, PAIRS)
    with pytest.raises(ConfigError, match=says):
        path_patching(tiny_llama, batch, "z", receivers, DIFFERENCE, **options)


def test_blocks_put_together_otherwise_are_refused(tiny_tokenizer):
    model = hybrid("granite", tiny_tokenizer)
    with pytest.raises(SiteError, match="use activation patching"):
        path_patching(model, encode_pairs(model, PAIRS), "z", "final", DIFFERENCE)
