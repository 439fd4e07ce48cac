"""Training text as packed rows of tokens, split by document into training and held-out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from saesteer.data.texts import read_texts
from saesteer.models.tokens import TokenRow, chat_prompt, encode_texts, has_chat_template
from saesteer.utils.errors import ConfigError, DataError, NetworkError
from saesteer.utils.settings import Settings, Source
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from saesteer.saes.training import SaeTrainingConfig

NEUTRAL_REQUESTS = (
    "Tell me something about yourself.",
    "How do you see things?",
    "Write down some thoughts.",
    "Share a few statements.",
    "What comes to your mind?",
    "Please go on.",
)


class CorpusSource(Settings):
    """One source of training text: a file, or a data set of the Hugging Face Hub."""

    # A .txt, .jsonl or .jsonl.gz file with a "text" field; relative to the working folder.
    path: Source | None = None
    hub: Source | None = None  # A Hub data set's id instead; its `text_field` is read, streamed.
    split: str = "train"  # The data set's.
    text_field: str = "text"  # The data set's.
    # "plain" packs the texts as they are; "chat" joins short texts as the assistant's words after
    # a neutral request, so that the SAE knows the template's contexts.
    style: Literal["plain", "chat"] = "plain"
    limit: int | None = Field(default=None, gt=0)  # The most texts to take.

    @model_validator(mode="after")
    def _one_place(self) -> CorpusSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


@dataclass(frozen=True)
class PackedCorpus:
    """Rows to read activations on."""

    train: list[TokenRow]  # In a seeded random order.
    held_out: list[TokenRow]  # Of other documents, for the metrics.

    @property
    def train_tokens(self) -> int:
        return sum(sum(row.kept) for row in self.train)


def pack_corpus(tokenizer: PreTrainedTokenizerBase, config: SaeTrainingConfig) -> PackedCorpus:
    """Read, split, tokenise and pack the text of a configuration.

    Every row starts with BOS (where the tokenizer has one), which is not kept, and is at most
    `config.context` tokens long. Whether a document is held out depends on its text and the seed
    alone, so the same document never stands on both sides, whichever file it comes from.
    """
    train: list[TokenRow] = []
    held_out: list[TokenRow] = []
    for source in config.corpus:
        kept, left_out = _split(_texts(source), config.held_out, config.seed)
        for texts, rows in ((kept, train), (left_out, held_out)):
            if source.style == "chat" and has_chat_template(tokenizer):
                rows.extend(_chat_rows(tokenizer, texts, config.context, config.seed))
            else:
                rows.extend(_plain_rows(tokenizer, texts, config.context))
    if not train or not held_out:
        raise DataError("the corpus is too small to train on; give at least some dozen documents.")
    order = np.random.default_rng(config.seed).permutation(len(train))
    return PackedCorpus([train[i] for i in order], held_out)


def _texts(source: CorpusSource) -> Iterator[str]:
    if source.path is not None:
        return read_texts(source.path, limit=source.limit)
    return islice(_hub_texts(source), source.limit)


def _hub_texts(source: CorpusSource) -> Iterator[str]:
    try:
        from datasets import load_dataset

        stream = load_dataset(str(source.hub), split=source.split, streaming=True)
        for record in stream:
            yield str(record[source.text_field])
    except KeyError as error:
        raise DataError(
            f"data set {source.hub} has no field {source.text_field!r}; set text_field."
        ) from error
    except OSError as error:
        raise NetworkError(
            f"data set {source.hub} cannot be fetched ({error}); connect, or give a local path."
        ) from error
    except Exception as error:
        raise DataError(
            f"data set {source.hub} cannot be read ({one_line(error)}); check "
            "its id and split, or give a local path."
        ) from error


def _split(texts: Iterable[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    left_out: list[str] = []
    for text in texts:
        digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
        held = int.from_bytes(digest[:8], "big") / 2**64 < share
        (left_out if held else kept).append(text)
    return kept, left_out


def _plain_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], context: int
) -> Iterator[TokenRow]:
    bos = tokenizer.bos_token_id
    head = [] if bos is None else [int(bos)]  # type: ignore[arg-type]
    room = context - len(head)
    special = set(tokenizer.all_special_ids)
    for row in encode_texts(tokenizer, texts, prepend_bos=False):
        for start in range(0, len(row), room):
            ids = row.ids[start : start + room]
            if len(ids) < min(16, room) and start > 0:
                continue
            kept = tuple(i not in special for i in ids)
            if any(kept):
                yield TokenRow((*head, *ids), (False,) * len(head) + kept)


def _chat_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], context: int, seed: int
) -> Iterator[TokenRow]:
    # What the SAE's card says of its rows (`prepend_bos`) holds for those of a template as well.
    prompts = [chat_prompt(tokenizer, request) for request in NEUTRAL_REQUESTS]
    has_bos = tokenizer.bos_token_id is not None
    prefixes = [row.ids for row in encode_texts(tokenizer, prompts, prepend_bos=has_bos)]
    longest = max(map(len, prefixes))
    if context < longest + 16:
        raise ConfigError(
            f"context is {context} and the chat template alone takes {longest} tokens; set context "
            f"to at least {longest + 16}, or style to plain."
        )
    newline = encode_texts(tokenizer, ["\n"], prepend_bos=False)[0].ids
    special = set(tokenizer.all_special_ids)
    choose = np.random.default_rng(seed)
    prefix = prefixes[0]
    ids: list[int] = []

    def packed() -> Iterator[TokenRow]:
        kept = tuple(i not in special for i in ids)
        if any(kept):
            yield TokenRow((*prefix, *ids), (False,) * len(prefix) + kept)

    for row in encode_texts(tokenizer, texts, prepend_bos=False):
        if ids and len(ids) + len(row) > context - len(prefix):
            yield from packed()
            prefix, ids = prefixes[choose.integers(len(prefixes))], []
        ids = [*ids, *row.ids, *newline][: context - len(prefix)]
    yield from packed()
