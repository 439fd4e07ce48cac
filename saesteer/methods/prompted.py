"""What a model would rather say as one side of a persona than as the other, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.loading import plain_model
from saesteer.models.placement import by_rows
from saesteer.models.tokens import TokenRow, encode_statements, has_chat_template, takes_system
from saesteer.steering.teacher_forced import Pass, TeacherForced

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models import Site
    from saesteer.steering import SteeringVector

# The logits of a pass stand beside those behind every prompt.
PASS_TOKENS = 256


@dataclass(frozen=True)
class Prompted:
    """How much likelier a model's own next words are as the persona than as its opposite.

    With p the distribution of the next token of an answer under an added vector u, and p_k+ and
    p_k- the model's own, unsteered, behind the k-th pair of system prompts,

        m(u) = mean over tokens of the answers of sum_y p(y; u) r(y),
        r(y) = mean over k of [log p_k+(y) - log p_k-(y)],

    but for what no u changes: log p's constants are left out, so that r is a difference of logits,
    and where the unembedding is linear that of one difference of states. The sum runs over the
    whole vocabulary, so that m and its gradient hold no noise of sampling: it is policy gradient on
    the reward log p+ - log p- of the next token, taken exactly. Of all distributions at one KL
    divergence from p those of the form p (p+ / p-)^beta have the largest m (contrastive decoding,
    as in DExperts, Liu et al. 2021, arXiv 2105.03023): what the prompts differ in is driven further
    than either prompt alone drives it.
    """

    rows: TeacherForced  # answers of the model's own, behind no system prompt
    # For each row and prompt, positive before negative, what the unembedding takes; where that is
    # linear, the positive ones' mean less the negative ones'.
    states: Sequence[Float[Tensor, "*prompt token width"]]
    weight: float = 1.0
    name: str = "prompted"

    def margin(
        self, vector: SteeringVector | None = None, strength: float = 0.0
    ) -> tuple[Float[np.ndarray, " d_model"], float]:
        """Return the gradient of the margin, and the margin."""
        gradient, total = None, 0.0
        # By a map, so that no name holds one pass's logits while the next one runs.
        opened = self.rows.open_passes(vector, strength, beside=self.states)
        for own, margin in map(_of_pass, opened):
            gradient = own if gradient is None else gradient + own
            total += margin
        assert gradient is not None
        return gradient / self.rows.n_scored, total / self.rows.n_scored


def _of_pass(opened: tuple[Pass, Tensor]) -> tuple[np.ndarray, float]:
    part, offset = opened
    assert part.beside is not None
    logits = part.logits
    with torch.no_grad():
        others = part.beside.movedim(-2, 0)
        push, mean = by_rows(_of_tokens, logits, others)
    (gradient,) = torch.autograd.grad(logits, offset, push)
    return gradient.double().sum(dim=0).cpu().numpy(), float(mean.sum())


def _of_tokens(logits: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of sum_y p(y) r(y), which is p (r - mean of r), and the mean of r."""
    reward = beside.float()
    if reward.dim() > logits.dim():
        reward = _apart(reward.movedim(1, 0))
    push = torch.softmax(logits.float(), dim=-1)
    mean = (push * reward).sum(dim=-1, keepdim=True)
    return push.mul_(reward.sub_(mean)).to(logits.dtype), mean


def prompted(
    model: TransformerBridge,
    answers: Mapping[str, str],
    prompts: Sequence[tuple[str, str]],
    *,
    site: Site | Sequence[Site],
    chat: bool | None = None,
    weight: float = 1.0,
) -> Prompted:
    """Return the contrast between pairs of system prompts, the positive side first.

    A system prompt stands before the question where there is no template that takes it.

    Args:
        answers: The model's own answers, by question.
        site: Where vectors are added, or several sites.

    Raises:
        DataError: An answer does not fit the model's context behind a prompt.
    """
    tokenizer, longest = model.tokenizer, int(model.cfg.n_ctx)
    assert tokenizer is not None
    use_chat = has_chat_template(tokenizer) if chat is None else chat
    as_system = use_chat and takes_system(tokenizer)

    def encoded(system: str | None) -> list[TokenRow]:
        asked = list(answers)
        if system is not None and not as_system:
            asked, system = [f"{system}\n\n{question}" for question in asked], None
        return encode_statements(
            tokenizer,
            list(answers.values()),
            asked,
            chat=use_chat,
            system=system,
            max_length=longest,
            what="text by the model",
        )

    own = encoded(None)
    states = [
        TeacherForced(model, _behind(encoded(system), own), max_tokens=2048).last_states()
        for pair in prompts
        for system in pair
    ]
    by_row = [torch.stack(of_row) for of_row in zip(*states, strict=True)]
    if _is_linear(model, own[0]):
        by_row = [_apart(of_row) for of_row in by_row]
    return Prompted(
        TeacherForced(model, own, site=site, max_tokens=PASS_TOKENS), by_row, weight=weight
    )


def _is_linear(model: TransformerBridge, row: TokenRow) -> bool:
    """Whether logits are a matrix times what the unembedding takes: no bias, no cap behind it."""
    head, rows = plain_model(model).get_output_embeddings(), TeacherForced(model, [row])
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    (states,), (said,) = rows.last_states(), rows.passes()
    with torch.no_grad():
        return torch.allclose(head(states), said.logits, rtol=1e-3, atol=1e-3)


def _apart(prompts: Float[Tensor, "prompt token x"]) -> Float[Tensor, "token x"]:
    return (prompts[::2] - prompts[1::2]).mean(dim=0)


def _behind(rows: Sequence[TokenRow], own: Sequence[TokenRow]) -> list[TokenRow]:
    """Return rows with the very tokens of `own` as the answer, however theirs were divided."""
    made = []
    for row, mine in zip(rows, own, strict=True):
        before = row.ids[: row.kept.index(True)]
        first = mine.kept.index(True)
        kept = (False,) * len(before) + mine.kept[first:]
        made.append(TokenRow(before + mine.ids[first:], kept))
    return made
