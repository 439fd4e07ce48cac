"""What programs do to a task, answer token by answer token, and to completions of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.corruption.apply import check_programs, corrupted
from saesteer.corruption.family import family_states
from saesteer.corruption.program import LinearSpan, Program, intact_program
from saesteer.models import encode_texts, plain_model
from saesteer.models.forward import greedy_settings
from saesteer.models.placement import few_rows
from saesteer.models.tokens import (
    TokenRow,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.models.unembed import Unembedding
from saesteer.utils.errors import DataError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.corruption.fitted import LinearMap, Means
    from saesteer.corruption.tasks import TaskRows

HEAD_ROWS = 256
BLOCK = 256


class Change(NamedTuple):
    """A token of the vocabulary, and how its mean probability where an answer stands changed."""

    token: str
    change: float


@dataclass(frozen=True, eq=False)
class TaskScores:
    """A task under programs; the first program is the intact model."""

    task: str
    programs: tuple[str, ...]
    # Which question each answer token belongs to, and where it stands in its answer, from 0.
    question: Int[np.ndarray, " token"]
    place: Int[np.ndarray, " token"]
    # The answer tokens as text, their ids and the id of the token before each.
    tokens: tuple[str, ...]
    targets: Int[np.ndarray, " token"]
    previous: Int[np.ndarray, " token"]
    # Their log-probability, nats.
    log_probs: Float[np.ndarray, "program token"]
    # The id of the token that was the likeliest in their place, and its probability.
    likeliest: Int[np.ndarray, "program token"]
    confidence: Float[np.ndarray, "program token"]
    # For each program the tokens whose probability rose and fell most, mean over the places where
    # an answer token stands, against the intact model.
    gained: tuple[tuple[Change, ...], ...]
    lost: tuple[tuple[Change, ...], ...]

    @property
    def right(self) -> Float[np.ndarray, "program token"]:
        """1 where the answer token was the likeliest, else 0."""
        return (self.likeliest == self.targets).astype(float)

    def loss(self) -> Float[np.ndarray, " program"]:
        """Return the mean loss over every answer token, nats per token."""
        return -self.log_probs.mean(axis=1)

    def accuracy(self) -> Float[np.ndarray, " program"]:
        """Return the share of questions with every answer token the likeliest."""
        n_questions = int(self.question.max()) + 1
        wrong = np.zeros((len(self.programs), n_questions))
        for i, row in enumerate(self.right):
            np.add.at(wrong[i], self.question, 1 - row)
        return (wrong == 0).mean(axis=1)

    def token_accuracy(self) -> Float[np.ndarray, " program"]:
        """Return the share of answer tokens that were the likeliest."""
        return self.right.mean(axis=1)

    def repeated(self) -> Float[np.ndarray, " program"]:
        """Return the share of places where the likeliest token is the one just read."""
        return (self.likeliest == self.previous).mean(axis=1)

    def unmoved(self) -> Float[np.ndarray, " program"]:
        """Return the largest share of questions whose first answer token is given the same guess.

        1 means that the guess does not depend on the question at all.
        """
        first = self.likeliest[:, self.place == 0]
        return np.array([np.unique(row, return_counts=True)[1].max() / len(row) for row in first])

    def calibration_error(self, bins: int = 10) -> Float[np.ndarray, " program"]:
        """Return the expected calibration error over answer tokens (arXiv 1706.04599).

        The bins are of equal width of the likeliest token's probability.
        """
        found = []
        for confidence, right in zip(self.confidence, self.right, strict=True):
            which = np.minimum((confidence * bins).astype(int), bins - 1)
            gap = np.zeros(bins)
            np.add.at(gap, which, confidence - right)
            found.append(float(np.abs(gap).sum() / len(confidence)))
        return np.array(found)

    def records(self) -> pd.DataFrame:
        """Return one row per program and answer token, with the difference to the intact model."""
        import pandas as pd

        n = len(self.tokens)
        programs = len(self.programs)
        return pd.DataFrame(
            {
                "task": self.task,
                "program": np.repeat(self.programs, n),
                "question": np.tile(self.question, programs),
                "place": np.tile(self.place, programs),
                "token": np.tile(np.array(self.tokens, dtype=object), programs),
                "log_prob": self.log_probs.ravel(),
                "difference": (self.log_probs - self.log_probs[:1]).ravel(),
                "right": self.right.ravel().astype(bool),
                "confidence": self.confidence.ravel(),
            }
        )


def score_task(
    model: TransformerBridge,
    programs: Sequence[Program],
    rows: TaskRows,
    *,
    maps: Mapping[LinearSpan, LinearMap] | None = None,
    means: Means | None = None,
    top: int = 10,
    max_tokens: int = 4096,
) -> TaskScores:
    """Score a task's answers under every program.

    The intact model is put before the programs if it is not the first. What programs have in common
    is run once (see `family_states`), and only the positions before answer tokens are unembedded.

    Args:
        top: How many tokens of the vocabulary that gain and lose most; none if 0.
    """
    if not programs or not programs[0].is_intact:
        programs = [intact_program(int(model.cfg.n_layers)), *programs]
    check_programs(model, programs)
    device = input_device(plain_model(model))
    head = Unembedding(model)
    parts: list[_Part] = []
    # For each program the sum of the probabilities of every token of the vocabulary.
    totals: list[Tensor | float] = [0.0] * len(programs)
    for index in length_sorted_batches(rows.rows, max_tokens=max_tokens):
        batch = pad_rows([rows.rows[i] for i in index], padding_id(model), device, side="right")
        # A position's logits are about the token behind it.
        chosen = torch.roll(batch.span, -1, dims=1)
        chosen[:, -1] = False
        previous, targets = batch.input_ids[chosen], torch.roll(batch.input_ids, -1, dims=1)[chosen]
        question = torch.tensor(index, device=device)[chosen.nonzero()[:, 0]]
        states = family_states(model, programs, batch, chosen, maps=maps, means=means)
        found = [_read(head, own, targets, summed=top > 0) for own in states]
        *scores, sums = zip(*found, strict=True)
        totals = [total + own for total, own in zip(totals, sums, strict=True)]
        parts.append(_Part(question, previous, targets, *map(torch.stack, scores)))
    return _scores(model, rows.task, [str(p) for p in programs], parts, totals, top)


class _Part(NamedTuple):
    question: Tensor
    previous: Tensor
    targets: Tensor
    log_probs: Tensor
    confidence: Tensor
    likeliest: Tensor


@torch.inference_mode()
def _read(
    head: Unembedding, states: Tensor, targets: Tensor, *, summed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Return the targets' log-probability, the likeliest tokens' probability and these tokens.

    Last comes the sum of the probabilities over the states, where it is asked for.
    """
    found = []
    total: Tensor | float = 0.0
    for part, wanted in zip(states.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = head.logits(part)
        # Six times faster than all rows at once.
        for few, own in few_rows(logits, wanted):
            log_probs = torch.log_softmax(few, dim=-1, dtype=torch.float32)
            likeliest = largest_places(log_probs)
            pairs = torch.stack([own, likeliest], dim=1)
            found.append((*log_probs.gather(1, pairs).T, likeliest))
            if summed:
                total = total + log_probs.exp_().sum(dim=0)
    log_probs, largest, likeliest = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_probs, largest.exp(), likeliest, total


def largest_places(values: Float[Tensor, "row column"]) -> Int[Tensor, " row"]:
    """Return where each row is largest, as argmax does, ten times faster on a wide row.

    A maximum alone is quick to find; its place is then looked for in its own block.
    """
    n_blocks = values.shape[1] // BLOCK
    rows = torch.arange(len(values), device=values.device)
    if not n_blocks:
        return values.argmax(dim=1)
    blocks = values[:, : n_blocks * BLOCK].unflatten(1, (n_blocks, BLOCK))
    largest, block = blocks.amax(dim=2).max(dim=1)
    place = block * BLOCK + blocks[rows, block].argmax(dim=1)
    rest = values[:, n_blocks * BLOCK :]
    if not rest.shape[1]:
        return place
    beyond, behind = rest.max(dim=1)
    return torch.where(beyond > largest, n_blocks * BLOCK + behind, place)


def _scores(
    model: TransformerBridge,
    task: str,
    programs: list[str],
    parts: list[_Part],
    totals: list[Tensor | float],
    top: int,
) -> TaskScores:
    tokenizer: Any = model.tokenizer
    question = torch.cat([part.question for part in parts]).cpu().numpy()
    # Batches go by length; the questions' own order is the reader's.
    order = np.argsort(question, kind="stable")
    question = question[order]
    starts = np.searchsorted(question, question)

    def whole(name: str) -> np.ndarray:
        joined = torch.cat([getattr(part, name) for part in parts], dim=-1)
        return joined.cpu().numpy()[..., order]

    def changes(total: Tensor | float, sign: int) -> tuple[Change, ...]:
        if isinstance(total, float):
            return ()
        change: Any = (total - totals[0]) / len(question)
        ids = (sign * change).topk(min(top, len(change))).indices.tolist()
        found = (Change(tokenizer.decode([i]), float(change[i])) for i in ids)
        return tuple(one for one in found if sign * one.change > 1e-6)

    return TaskScores(
        task=task,
        programs=tuple(programs),
        question=question,
        place=np.arange(len(question)) - starts,
        tokens=tuple(tokenizer.decode([int(t)]) for t in whole("targets")),
        targets=whole("targets"),
        previous=whole("previous"),
        log_probs=whole("log_probs").astype(float),
        likeliest=whole("likeliest"),
        confidence=whole("confidence").astype(float),
        gained=tuple(changes(total, 1) for total in totals),
        lost=tuple(changes(total, -1) for total in totals),
    )


def complete_prompts(
    model: TransformerBridge,
    programs: Sequence[Program],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 10,
    maps: Mapping[LinearSpan, LinearMap] | None = None,
    means: Means | None = None,
    progress: Progress | None = None,
) -> list[dict[str, str]]:
    """Complete prompts under every program, likeliest token by likeliest token.

    Args:
        prompts: Plain prompts, all of them rows of one batch.

    Returns:
        Each prompt, program and text: program by program, the prompts in order.
    """
    rows = prompt_rows(model, prompts, max_new_tokens)
    tokenizer: Any = model.tokenizer
    plain: Any = plain_model(model)
    batch = pad_rows(rows, padding_id(model), input_device(plain))
    width = batch.input_ids.shape[1]
    found = []
    with (progress or Progress()).task("completions", len(programs), "programs") as task:
        for program in programs:
            with corrupted(model, program, maps=maps, means=means), torch.inference_mode():
                ends = plain.generation_config.eos_token_id
                config = greedy_settings(max_new_tokens, ends=ends, pad=padding_id(model))
                said = plain.generate(**batch.inputs, generation_config=config)[:, width:].tolist()
            for prompt, ids in zip(prompts, said, strict=True):
                text = _text(tokenizer, ids, config)
                found.append({"prompt": prompt, "program": str(program), "text": text})
            task.advance(1, str(program))
    return found


def prompt_rows(
    model: TransformerBridge, prompts: Sequence[str], max_new_tokens: int
) -> list[TokenRow]:
    """Tokenise prompts that are to be completed."""
    if not prompts or any(not prompt.strip() for prompt in prompts):
        raise DataError("a prompt is empty; give it at least one word.")
    context = int(model.cfg.n_ctx) - max_new_tokens
    if context < 1:
        raise DataError(
            f"{max_new_tokens} new tokens are more than the model's context of {model.cfg.n_ctx}; "
            "ask for fewer."
        )
    assert model.tokenizer is not None
    return encode_texts(model.tokenizer, prompts, max_length=context, what="prompt")


def _text(tokenizer: Any, ids: list[int], config: Any) -> str:
    ends = config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    # Marks that a broken model writes are part of what it says.
    return str(tokenizer.decode(ids[:stop]))
