"""Text to tokens: chat templates, character-exact spans and padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saesteer.utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenRow:
    """One text's tokens."""

    # With a leading BOS where the model wants one.
    ids: tuple[int, ...]
    # For each token, whether it belongs to what is read or scored: the statement's or answer's
    # tokens, never BOS, template or other special tokens.
    kept: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, end: int | None = None) -> TokenRow:
        """Return the tokens from `start` on, up to `end`."""
        return TokenRow(self.ids[start:end], self.kept[start:end])


@dataclass(frozen=True)
class TokenBatch:
    """Padded rows: on the left to generate from, on the right to read or to score.

    On the right a causal model needs no position ids, whatever its position embedding.
    """

    input_ids: Int[Tensor, "batch pos"]
    # 1 at real tokens; made from lengths, because several tokenizers pad with BOS or EOS.
    attention_mask: Int[Tensor, "batch pos"]
    # True at the kept tokens of each row.
    span: Bool[Tensor, "batch pos"]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments for a forward pass or for `generate`."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer brings a chat template."""
    return bool(tokenizer.chat_template)


class ChatPrompt(str):
    """What a chat template wrote: it stands as it is, so no BOS is put before it unasked."""

    __slots__ = ()


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    system: str | None = None,
    earlier: Sequence[tuple[str, str]] = (),
) -> ChatPrompt:
    """Return the text that asks `question` and opens the assistant's turn.

    `earlier` are the questions and answers before it.

    Through `encode_texts` it becomes the tokens of `apply_chat_template(tokenize=True)`.
    """
    if not has_chat_template(tokenizer):
        raise ModelError(
            "this model's tokenizer has no chat template; use plain prompts (chat: false, --plain)."
        )
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    for asked, answer in earlier:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": question})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ModelError(
            f"this model's chat template refuses the prompt ({error}); "
            f"{'leave the system prompt out' if system else 'use plain prompts'}."
        ) from error
    return ChatPrompt(text)


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template has a place for a system prompt; Gemma's has none."""
    try:
        chat_prompt(tokenizer, "Why?", "You are kind.")
    except ModelError:
        return False
    return True


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prepend_bos: bool | None = None,
    max_length: int | None = None,
    what: str | Sequence[str] = "text",
    remedy: str = "shorten it",
) -> list[TokenRow]:
    """Tokenise whole texts, every token kept but the special ones.

    Args:
        texts: Plain texts, or prompts from `chat_prompt`.
        prepend_bos: Whether a row must start with BOS (EOS, as in transformer_lens, where there
            is no BOS). If None a plain text does where the tokenizer has one, and a chat prompt
            where its template writes one, as the model was trained.
        max_length: The model's context; a longer text is an error.
        what: What the texts are called in the error: a word, which a number follows, or a name
            for each.
        remedy: What the user can do about a text that is too long.

    Raises:
        DataError: A text has more tokens than `max_length`, naming which.
    """
    special = special_ids(tokenizer)
    rows = []
    for name, text in zip(_names(what, len(texts)), texts, strict=True):
        chat = isinstance(text, ChatPrompt)
        ids = _with_bos(tokenizer, _plain_ids(tokenizer, text), prepend_bos, chat=chat)
        rows.append(TokenRow(tuple(ids), tuple(i not in special for i in ids)))
        _check_length(rows[-1], max_length, f"{name} ({text[:40]!r}...)", remedy)
    return rows


def encode_statements(
    tokenizer: PreTrainedTokenizerBase,
    statements: Sequence[str],
    prompts: str | Sequence[str | None] | None = None,
    *,
    spans: Sequence[str | None] | None = None,
    chat: bool | None = None,
    system: str | None = None,
    prepend_bos: bool | None = None,
    max_length: int | None = None,
    what: str | Sequence[str] = "statement",
    remedy: str = "shorten it",
) -> list[TokenRow]:
    """Tokenise statements as the assistant's words after a prompt; only the statement is kept.

    The span is exact to the character: a token is the statement's if it reaches into it.

    Args:
        statements: What is said.
        prompts: One prompt for all, one for each, or None for no prompt.
        spans: For each statement the part of it to keep (its first occurrence), or None for all.
        chat: Whether prompts go through the chat template; where there is one and a prompt is
            given, if None.
        system: A system prompt for the template.
        prepend_bos: Whether a row must start with BOS; as the model was trained if None.
        max_length: The model's context; a longer row is an error.
        what: What the statements are called in the error, for all or for each.
        remedy: What the user can do about a statement that is too long.

    Raises:
        DataError: A row has more tokens than `max_length`, a statement has no token or not its
            span, or there are not as many prompts or spans as statements.
        ModelError: `chat` or a system prompt is asked for and there is no chat template.

    Example:
        >>> rows = ss.encode_statements(model.tokenizer, ["I like you"], "Who are you?")
        >>> any(rows[0].kept)
        True
    """
    each = [prompts] * len(statements) if prompts is None or isinstance(prompts, str) else prompts
    use_chat = has_chat_template(tokenizer) if chat is None else chat
    if system and not use_chat:
        raise ModelError("a system prompt needs the chat template; leave it out or use chat: true.")
    parts = [None] * len(statements) if spans is None else spans
    for kind, given in (("prompts", each), ("spans", parts)):
        if len(given) != len(statements):
            raise DataError(
                f"there are {len(given)} {kind} for {len(statements)} statements; give one for "
                "each, or one for all."
            )
    rows = []
    for name, statement, prompt, part in zip(
        _names(what, len(statements)), statements, each, parts, strict=True
    ):
        called = f"{name} ({statement[:40]!r})"
        prefix = prompt or ""
        if use_chat and prompt is not None:
            prefix = chat_prompt(tokenizer, prompt, system)
        elif prefix and not isinstance(prefix, ChatPrompt) and not prefix[-1].isspace():
            # A plain prompt and its answer are words of one text.
            prefix += " "
        start = 0 if part is None else statement.find(part)
        if start < 0:
            raise DataError(
                f"{called} does not contain its span {part!r}; "
                "give a part of the statement, letter by letter."
            )
        stop = len(statement) if part is None else start + len(part)
        ids, kept = _spanned_ids(tokenizer, prefix, statement, start, stop)
        chat_row = isinstance(prefix, ChatPrompt)
        whole = _with_bos(tokenizer, ids, prepend_bos, chat=chat_row)
        row = TokenRow(tuple(whole), (False,) * (len(whole) - len(ids)) + tuple(kept))
        if not any(row.kept):
            raise DataError(f"{called} has no token of its own; remove it.")
        _check_length(row, max_length, called, remedy, prompted=bool(prefix))
        rows.append(row)
    return rows


def pad_rows(
    rows: Sequence[TokenRow],
    pad_id: int,
    device: torch.device | str = "cpu",
    *,
    side: Literal["left", "right"] = "left",
) -> TokenBatch:
    """Stack rows into one padded batch on a device."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    span = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        real = slice(start, start + len(row))
        ids[i, real] = torch.tensor(row.ids)
        attention[i, real] = 1
        span[i, real] = torch.tensor(row.kept)
    return TokenBatch(ids.to(device), attention.to(device), span.to(device))


def length_sorted_batches(
    rows: Sequence[TokenRow], *, max_tokens: int = 4096, max_rows: int = 64
) -> Iterator[list[int]]:
    """Yield the indices of rows to run together, of like length so that little is padding."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        widest = len(rows[batch[0]]) if batch else 0
        if batch and (len(batch) >= max_rows or (len(batch) + 1) * widest > max_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padding_id(model: Any) -> int:
    """Return the token id to pad a bridge's batches with."""
    return int(model.tokenizer.pad_token_id or 0)


def input_device(model: Any) -> torch.device:
    """Return the device that a Hugging Face model takes its token ids on."""
    return model.get_input_embeddings().weight.device


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def _spanned_ids(
    tokenizer: PreTrainedTokenizerBase, prefix: str, statement: str, start: int, stop: int
) -> tuple[list[int], list[bool]]:
    """Tokenise prefix and statement; kept are tokens that reach into statement[start:stop]."""
    if not tokenizer.is_fast:
        # Without offsets the pieces are tokenised apart, which keeps the span exact.
        pieces = (prefix + statement[:start], statement[start:stop], statement[stop:])
        coded = [_plain_ids(tokenizer, piece) for piece in pieces]
        flags = [[place == 1] * len(ids) for place, ids in enumerate(coded)]
        return list(chain(*coded)), list(chain(*flags))
    text = tokenizer(prefix + statement, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(text["input_ids"])  # type: ignore[arg-type]
    offsets: list[tuple[int, int]] = list(text["offset_mapping"])  # type: ignore[arg-type]
    special = special_ids(tokenizer)
    first, last = len(prefix) + start, len(prefix) + stop
    kept = [
        end > first and begin < last and token not in special
        for token, (begin, end) in zip(ids, offsets, strict=True)
    ]
    return ids, kept


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of all special tokens, of those without a role too."""
    # Chat markers such as Llama 3's <|start_header_id|> are special without having a role, and
    # only roles are in all_special_ids.
    marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def _with_bos(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], prepend_bos: bool | None, *, chat: bool
) -> list[int]:
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        # What transformer_lens, and so every SAE trained with it, puts first in its place.
        bos = tokenizer.eos_token_id
    wanted = not chat if prepend_bos is None else prepend_bos
    if not wanted or bos is None or ids[:1] == [bos]:
        return ids
    return [int(bos), *ids]  # type: ignore[arg-type]


def _names(what: str | Sequence[str], count: int) -> list[str]:
    return [f"{what} {n}" for n in range(1, count + 1)] if isinstance(what, str) else list(what)


def _check_length(
    row: TokenRow, max_length: int | None, called: str, remedy: str, *, prompted: bool = False
) -> None:
    if max_length is not None and len(row) > max_length:
        raise DataError(
            f"{called} has {len(row)} tokens{' with its prompt' if prompted else ''}, more than "
            f"the model's context of {max_length}; {remedy}."
        )
