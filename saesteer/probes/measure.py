"""What an intervention costs: divergence from the untouched model, and how it finds the text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models import plain_model
from saesteer.models.tokens import TokenRow, chat_prompt, encode_texts, input_device, padding_id
from saesteer.probes.intervene import Policy, intervene
from saesteer.probes.interventions import Intervention
from saesteer.utils.errors import SteeringError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH_ROWS = 8


@dataclass(frozen=True)
class Doing:
    """Interventions together with how they are carried out.

    Attributes:
        interventions: What is done.
        policy: See `intervene`.
        positions: See `intervene`.
    """

    interventions: tuple[Intervention, ...]
    policy: Policy = "once"
    positions: str | None = None

    def context(self, model: TransformerBridge, prompt_length: int | None = None) -> Any:
        """Return the `with` block that does it."""
        return intervene(
            model,
            self.interventions,
            policy=self.policy,
            positions=self.positions,
            prompt_length=prompt_length,
        )


class ContinuationMeter:
    """Prompts with continuations, prepared for passes with and without interventions.

    Prompts are padded on the left and continuations on the right, so that all continuations begin
    in one column.

    Args:
        model: A model from `load_model`.
        prompts: The prompts.
        continuations: One text for each, as generated.
        chat: Whether prompts go through the chat template.

    Raises:
        SteeringError: No continuation has a token.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompts: Sequence[str],
        continuations: Sequence[str],
        *,
        chat: bool = False,
    ) -> None:
        tokenizer: Any = model.tokenizer
        texts = [chat_prompt(tokenizer, p) for p in prompts] if chat else list(prompts)
        self._model = model
        self._prompts = encode_texts(tokenizer, texts)
        self._words = [
            list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in continuations
        ]
        if not any(self._words):
            raise SteeringError(
                "no continuation has a token, so there is nothing to measure on; generate longer "
                "ones."
            )

    def log_probs(self, doing: Doing | None = None):
        """Yield, row by row, (row, log-probabilities [token, vocab], token ids)."""
        rows = [row for row, words in enumerate(self._words) if words]
        rows.sort(key=lambda row: len(self._prompts[row]) + len(self._words[row]))
        plain: Any = plain_model(self._model)
        for first in range(0, len(rows), BATCH_ROWS):
            batch = rows[first : first + BATCH_ROWS]
            inputs, width = self._padded(batch, input_device(plain))
            context: Any = nullcontext()
            if doing is not None:
                context = doing.context(self._model, prompt_length=width)
            with torch.inference_mode(), context:
                logits = plain(**inputs, use_cache=False).logits
            for place, row in enumerate(batch):
                stop = width - 1 + len(self._words[row])
                own = logits[place, width - 1 : stop].to(torch.float32)
                yield row, torch.log_softmax(own, dim=-1), torch.tensor(self._words[row])

    def _padded(self, batch: Sequence[int], device: torch.device) -> tuple[dict[str, Tensor], int]:
        prompts: list[TokenRow] = [self._prompts[row] for row in batch]
        width = max(map(len, prompts))
        total = width + max(len(self._words[row]) for row in batch)
        ids = torch.full((len(batch), total), padding_id(self._model), dtype=torch.long)
        attention = torch.zeros((len(batch), total), dtype=torch.long)
        for place, (row, prompt) in enumerate(zip(batch, prompts, strict=True)):
            whole = torch.tensor([*prompt.ids, *self._words[row]])
            own = slice(width - len(prompt), width - len(prompt) + len(whole))
            ids[place, own] = whole
            attention[place, own] = 1
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": attention.to(device),
            # Padding on the left would shift learnt positions.
            "position_ids": (attention.cumsum(dim=1) - 1).clamp(min=0).to(device),
        }
        return inputs, width

    def loss(self) -> Float[np.ndarray, " row"]:
        """Return each continuation's mean loss under the untouched model, nats per token.

        exp of it is the perplexity. NaN where a continuation has no token.
        """
        out = np.full(len(self._words), np.nan)
        for row, log_probs, ids in self.log_probs():
            out[row] = -float(log_probs.gather(1, ids[:, None].to(log_probs.device)).mean())
        return out

    def divergence(self, doing: Doing) -> Float[np.ndarray, " row"]:
        """Return KL(intervened || untouched) along each continuation, nats per token.

        NaN where a continuation has no token.
        """
        out = np.full(len(self._words), np.nan)
        untouched = self.log_probs()
        for (row, base, _), (_, changed, _) in zip(untouched, self.log_probs(doing), strict=True):
            kl = (changed.exp() * (changed - base)).sum(dim=-1)
            out[row] = float(kl.mean())
        return out

    def mean_divergence(self, doing: Doing) -> float:
        """Return the divergence per token over all continuations together."""
        lengths = np.array([len(words) for words in self._words], dtype=float)
        values = self.divergence(doing)
        kept = np.isfinite(values)
        if not kept.any():
            return float("nan")
        return float((values[kept] * lengths[kept]).sum() / lengths[kept].sum())
