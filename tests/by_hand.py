"""What saesteer does, done with torch's own hooks on plain modules: the reference of many tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def changed(
    module: nn.Module, change: Callable[[Tensor], Tensor], side: str = "output"
) -> Iterator[None]:
    """Let a function change the hidden state that enters or leaves a module."""

    def leaving(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def entering(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    if side == "output":
        handle = module.register_forward_hook(leaving)
    else:
        handle = module.register_forward_pre_hook(entering, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def added(
    module: nn.Module, vector: Tensor, where: slice = slice(None), side: str = "output"
) -> Any:
    """Add a vector, or a tensor [batch, pos, d_model], at some columns."""

    def change(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        new[:, where] += vector
        return new

    return changed(module, change, side)


def count_hooks(model: Any) -> int:
    """Return how many hooks a bridge and its plain model have."""
    from saesteer.models import plain_model

    roots = (plain_model(model), model, model.original_model)
    modules = [module for root in roots for module in root.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def answer_log_probs(
    model: Any,
    question: str,
    answer: str,
    *,
    chat: bool = True,
    system: str | None = None,
    vector: Any = None,
    strength: float = 0.0,
) -> list[float]:
    """Return the log-probability of each token of an answer: one row and no cache.

    Where a vector is given the model is steered from the last prompt token on.
    """
    from saesteer.models import chat_prompt, encode_texts, plain_model
    from saesteer.steering import steer

    prompt = chat_prompt(model.tokenizer, question, system) if chat else question
    whole = encode_texts(model.tokenizer, [prompt + ("" if chat else " ") + answer])[0].ids
    n = len(encode_texts(model.tokenizer, [prompt])[0].ids)
    where = torch.arange(len(whole))[None] >= n - 1
    steered = nullcontext() if vector is None else steer(model, vector, strength, positions=where)
    with torch.no_grad(), steered:
        logits = plain_model(model)(torch.tensor([whole])).logits[0].float()
    log_probs = torch.log_softmax(logits, -1)
    return [float(log_probs[i - 1, whole[i]]) for i in range(n, len(whole))]
