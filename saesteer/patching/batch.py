"""Pairs of prompts as token tensors, with a map between the positions of the two.

A patch goes in one direction: from the run that activations come from to the run that is patched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saesteer.models.forward import position_ids
from saesteer.models.loading import plain_model
from saesteer.models.tokens import TokenRow, encode_texts, input_device, pad_rows
from saesteer.patching.pairs import PromptPair, check_pair
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.text import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Mode = Literal["denoising", "noising"]
Side = Literal["clean", "corrupted"]
# What the name of a pair used the other way round ends in.
REVERSED = " reversed"


@dataclass(frozen=True)
class PairBatch:
    """Clean and corrupted prompts, both left-padded to one common width.

    The last column is the last token of every prompt, where the answer is read.
    """

    pairs: tuple[PromptPair, ...]
    # Token ids, and True at real tokens.
    clean: Int[Tensor, "pair pos"]
    corrupted: Int[Tensor, "pair pos"]
    clean_mask: Bool[Tensor, "pair pos"]
    corrupted_mask: Bool[Tensor, "pair pos"]
    # For every column of the corrupted prompt the column of the clean prompt that stands for it,
    # -1 where none does (padding, or words that only one prompt has).
    to_clean: Int[Tensor, "pair pos"]
    # The token ids of each clean prompt's answer and of each corrupted prompt's.
    right: Int[Tensor, " pair"]
    wrong: Int[Tensor, " pair"]
    # The tokens as text, "" at padding.
    clean_words: tuple[tuple[str, ...], ...]
    corrupted_words: tuple[tuple[str, ...], ...]
    # The right and the wrong answer of every pair as they were tokenised: as given, or with a
    # leading space put before them or taken away.
    answers: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def width(self) -> int:
        """How many columns every prompt has, padding included."""
        return int(self.clean.shape[1])

    @property
    def names(self) -> tuple[str, ...]:
        """The pairs' names."""
        return tuple(pair.name or f"pair {i}" for i, pair in enumerate(self.pairs, start=1))

    def side(self, side: Side) -> tuple[Int[Tensor, "pair pos"], Bool[Tensor, "pair pos"]]:
        """Return the token ids and the mask of one side."""
        if side == "clean":
            return self.clean, self.clean_mask
        return self.corrupted, self.corrupted_mask

    def words(self, side: Side) -> tuple[tuple[str, ...], ...]:
        """Return the tokens of one side as text."""
        return self.clean_words if side == "clean" else self.corrupted_words

    def role_column(self, pair: int, role: str) -> int:
        """Return the column of a role in a pair's clean prompt; "end" is the last of every pair.

        Raises:
            DataError: The pair has no such role.
        """
        if role == "end":
            return self.width - 1
        roles = self.pairs[pair].roles
        if role not in roles:
            raise DataError(
                f"pair {pair + 1} has no position {shorten(role)}; give every pair that role, or "
                "use a circuit without it"
            )
        return self.width - int(self.clean_mask[pair].sum()) + roles[role]


def encode_pairs(
    model: Any, pairs: Iterable[PromptPair], *, prepend_bos: bool = True, both_ways: bool = False
) -> PairBatch:
    """Tokenise pairs, pad them on the left to one width and map the positions of the two prompts.

    Positions stand for each other where the two prompts begin with the same tokens, where they
    end with the same tokens, one to one in between if that is equally long, and where the pair's
    explicit alignment says so, which goes before the rest.

    An answer is taken as it is given if that is one token after the prompt; else with a leading
    space put before it or taken away. `PairBatch.answers` says which it became.

    Args:
        model: The model (its device and context count) or a tokenizer.
        pairs: The pairs.
        prepend_bos: Whether every prompt starts with BOS (EOS, as in transformer_lens, where there
            is no BOS).
        both_ways: Put every pair's reverse right behind it, its roles mapped to its own positions.

    Raises:
        DataError: There is no pair, a pair is not usable (see `check_pair`), an answer is not one
            token, both answers are the same token, a prompt is longer than the model's context, or
            an alignment or a role points past a prompt's end.
    """
    given = list(pairs)
    if not given:
        raise DataError("there is no pair of prompts; give at least one")
    numbered = enumerate(given, start=1)
    places = [f"pair {n} ({pair.name!r})" if pair.name else f"pair {n}" for n, pair in numbered]
    for pair, place in zip(given, places, strict=True):
        check_pair(pair, place)
    tokenizer = getattr(model, "tokenizer", None) or model
    bridge = None if tokenizer is model else model
    context = None if bridge is None else bridge.cfg.n_ctx
    clean, corrupted = (
        encode_texts(
            tokenizer,
            [getattr(pair, side) for pair in given],
            prepend_bos=prepend_bos,
            max_length=context,
            what=f"{side} prompt",
        )
        for side in ("clean", "corrupted")
    )
    entries = []
    for made in zip(given, clean, corrupted, places, strict=True):
        entry = _entry(tokenizer, *made)
        entries += [entry, entry.reversed()] if both_ways else [entry]
    device = torch.device("cpu") if bridge is None else input_device(plain_model(bridge))
    return _stack(tokenizer, entries, device)


class _Entry(NamedTuple):
    """One pair, tokenised; `steps` maps corrupted positions to clean ones."""

    pair: PromptPair
    clean: TokenRow
    corrupted: TokenRow
    steps: dict[int, int]
    ids: tuple[int, int]
    texts: tuple[str, str]

    def reversed(self) -> _Entry:
        steps = {a: b for b, a in self.steps.items()}
        flipped = self.pair.alignment and tuple((b, a) for a, b in self.pair.alignment)
        pair = PromptPair(
            self.pair.corrupted,
            self.pair.clean,
            self.pair.wrong,
            self.pair.answer,
            f"{self.pair.name}{REVERSED}" if self.pair.name else "",
            flipped,
            {role: steps[at] for role, at in self.pair.roles.items() if at in steps},
        )
        (right, wrong), (answer, other) = self.ids, self.texts
        return _Entry(pair, self.corrupted, self.clean, steps, (wrong, right), (other, answer))


def _entry(
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    clean: TokenRow,
    corrupted: TokenRow,
    place: str,
) -> _Entry:
    if clean.ids == corrupted.ids:
        raise DataError(
            f"{place}: both prompts have the same tokens, so nothing could be patched; change "
            "what the answer depends on in one of them"
        )
    for role, position in pair.roles.items():
        if position >= len(clean):
            raise DataError(
                f"{place}: role {shorten(role)} is position {position}, and the clean prompt has "
                f"{len(clean)} tokens; count them from 0, BOS included"
            )
    ids, texts = _answer_tokens(tokenizer, pair, place)
    steps = _position_map(clean.ids, corrupted.ids, pair, place)
    return _Entry(pair, clean, corrupted, steps, ids, texts)


def _position_map(
    clean: Sequence[int], corrupted: Sequence[int], pair: PromptPair, place: str
) -> dict[int, int]:
    shortest = min(len(clean), len(corrupted))
    start = 0
    while start < shortest and clean[start] == corrupted[start]:
        start += 1
    tail = 0
    while tail < shortest - start and clean[-1 - tail] == corrupted[-1 - tail]:
        tail += 1
    if pair.alignment is None and len(clean) == len(corrupted):
        tail = shortest - start
    shift = len(clean) - len(corrupted)
    steps = {at: at for at in range(start)}
    steps |= {at: at + shift for at in range(len(corrupted) - tail, len(corrupted))}
    for a, b in pair.alignment or ():
        for what, at, row in (("clean", a, clean), ("corrupted", b, corrupted)):
            if at >= len(row):
                raise DataError(
                    f"{place}: the alignment names {what} position {at}, and that prompt has "
                    f"{len(row)} tokens; count them from 0, BOS included"
                )
    explicit = {b: a for a, b in pair.alignment or ()}
    taken = set(explicit.values())
    return {b: a for b, a in steps.items() if a not in taken} | explicit


def _answer_tokens(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, place: str
) -> tuple[tuple[int, int], tuple[str, str]]:
    """Return the ids of a pair's right and wrong answer, and the texts they stand for.

    Both answers are tried after their own prompt, as given and then both with the leading space
    put before or taken away.
    """
    asked = ((pair.clean, pair.answer), (pair.corrupted, pair.wrong))
    found: list[list[list[int]]] = []
    for change in (str, lambda text: text[1:] if text.startswith(" ") else f" {text}"):
        texts = [change(answer) for _, answer in asked]
        ids = [
            _continuation(tokenizer, prompt, text)
            for (prompt, _), text in zip(asked, texts, strict=True)
        ]
        if all(len(each) == 1 for each in ids):
            if ids[0] == ids[1]:
                raise DataError(
                    f"{place}: the answers {shorten(texts[0])} and {shorten(texts[1])} are the "
                    f"same token ({ids[0][0]}) for this tokenizer; choose answers that it knows"
                )
            return (ids[0][0], ids[1][0]), (texts[0], texts[1])
        found.append(ids)
    hopeless = [i for i in (0, 1) if all(len(ids[i]) != 1 for ids in found)]
    which = hopeless[0] if hopeless else int(len(found[0][0]) == 1)
    shown = " or, with the leading space the other way, ".join(
        " + ".join(repr(tokenizer.decode([i])) for i in ids[which]) for ids in found
    )
    raise DataError(
        f"{place}: the {('answer', 'wrong answer')[which]} {shorten(asked[which][1])} is not one "
        f"token but {shown}; choose an answer that is one token for this tokenizer"
    )


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> list[int]:
    # In context first: some tokenizers put a space of their own before a text that stands alone.
    head, whole, alone = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
        for text in (prompt, prompt + answer, answer)
    )
    if len(whole) == len(head) + 1 and whole[:-1] == head:
        return whole[-1:]  # type: ignore[return-value]
    return alone  # type: ignore[return-value]


def _stack(
    tokenizer: PreTrainedTokenizerBase, entries: Sequence[_Entry], device: torch.device
) -> PairBatch:
    width = max(len(row) for entry in entries for row in (entry.clean, entry.corrupted))
    to_clean = torch.full((len(entries), width), -1, dtype=torch.long)
    for i, entry in enumerate(entries):
        for b, a in entry.steps.items():
            to_clean[i, width - len(entry.corrupted) + b] = width - len(entry.clean) + a
    # Both sides in one batch, so that they are padded to one width.
    rows = [entry.clean for entry in entries] + [entry.corrupted for entry in entries]
    padded = pad_rows(rows, int(tokenizer.pad_token_id or 0), device)  # type: ignore[arg-type]
    clean, corrupted = padded.input_ids.chunk(2)
    clean_mask, corrupted_mask = padded.attention_mask.bool().chunk(2)
    ids = torch.tensor([entry.ids for entry in entries], device=device)
    return PairBatch(
        pairs=tuple(entry.pair for entry in entries),
        clean=clean,
        corrupted=corrupted,
        clean_mask=clean_mask,
        corrupted_mask=corrupted_mask,
        to_clean=to_clean.to(device),
        right=ids[:, 0],
        wrong=ids[:, 1],
        clean_words=tuple(_words(tokenizer, entry.clean, width) for entry in entries),
        corrupted_words=tuple(_words(tokenizer, entry.corrupted, width) for entry in entries),
        answers=tuple(entry.texts for entry in entries),
    )


def _words(tokenizer: PreTrainedTokenizerBase, row: TokenRow, width: int) -> tuple[str, ...]:
    return ("",) * (width - len(row)) + tuple(token_text(tokenizer, i) for i in row.ids)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text, with its leading space."""
    text = str(tokenizer.decode([token]))
    # SentencePiece drops the space of a text's first word.
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


@dataclass(frozen=True)
class Direction:
    """Pairs of a batch as a patch sees them: the run that is patched, and the source."""

    mode: Mode
    ids: Int[Tensor, "pair pos"]
    mask: Bool[Tensor, "pair pos"]
    source_ids: Int[Tensor, "pair pos"]
    source_mask: Bool[Tensor, "pair pos"]
    # For every column of the patched prompt the source's column, -1 for none.
    to_source: Int[Tensor, "pair pos"]
    # Every pair's right and wrong answer.
    answers: Int[Tensor, "pair 2"]
    # The columns that have a counterpart, and those of them where the two runs can differ: both
    # prompts begin alike up to there otherwise, so that a patch changes nothing.
    allowed: Bool[Tensor, "pair pos"]
    fresh: Bool[Tensor, "pair pos"]

    def __len__(self) -> int:
        return len(self.ids)


def direction_of(
    batch: PairBatch,
    mode: Mode,
    pairs: slice | Int[Tensor, " pair"] = slice(None),
    device: torch.device | str = "cpu",
) -> Direction:
    """Return pairs of a batch as a patch sees them."""
    if mode not in ("denoising", "noising"):
        raise ConfigError(f"mode: {mode!r} is neither 'denoising' nor 'noising'; choose one.")
    if not len(batch):
        raise DataError("there is no pair of prompts to patch; give at least one.")
    clean, corrupted, clean_mask, corrupted_mask, to_source, right, wrong = (
        part[pairs].to(device)
        for part in (
            batch.clean,
            batch.corrupted,
            batch.clean_mask.bool(),
            batch.corrupted_mask.bool(),
            batch.to_clean,
            batch.right,
            batch.wrong,
        )
    )
    source, own = (clean, clean_mask), (corrupted, corrupted_mask)
    if mode == "noising":
        source, own = own, source
        to_clean, to_source = to_source, torch.full_like(to_source, -1)
        # Where several columns stand for one, the last of them counts.
        for pair, column in (to_clean >= 0).nonzero().tolist():
            to_source[pair, to_clean[pair, column]] = column
    allowed = (to_source >= 0) & own[1]
    fresh = allowed & ~begin_alike(*own, *source, to_source)
    answers = torch.stack([right, wrong], dim=1)
    return Direction(mode, *own, *source, to_source, answers, allowed, fresh)


def begin_alike(
    ids: Tensor, mask: Tensor, source_ids: Tensor, source_mask: Tensor, to_source: Tensor
) -> Bool[Tensor, "pair pos"]:
    """Return the columns up to which a prompt and its source have the same tokens, one to one."""
    place, theirs = position_ids(mask), position_ids(source_mask)
    counterpart = to_source.clamp(min=0)
    same = (source_ids.gather(1, counterpart) == ids) & (theirs.gather(1, counterpart) == place)
    same = same & (to_source >= 0)
    # Pads stand before every real token and do not break the beginning.
    return ((same | ~mask).long().cumprod(dim=1) > 0) & mask
