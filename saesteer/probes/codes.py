"""SAE codes of texts: one sparse row per text, with the residual stream they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_matrix, vstack

from saesteer.models.pooling import mean_norm
from saesteer.models.reading import Activations, read_rows
from saesteer.models.tokens import TokenRow
from saesteer.probes.reading import length_chunks, pooled
from saesteer.probes.settings import ReadPosition
from saesteer.utils.errors import OutputError
from saesteer.utils.files import write_atomic
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.adapter import Sae


@dataclass(frozen=True, eq=False)
class TextCodes:
    """Codes and residual stream of texts at one SAE's site, pooled alike.

    Attributes:
        codes: Feature activations, pooled over each text's read tokens.
        residual: The residual stream, pooled over the same tokens.
        residual_norm: Mean L2 norm of the residual stream over tokens.
        model_fingerprint: Of the model that was read.
        sae_fingerprint: Of the SAE that encoded.
    """

    codes: csr_matrix
    residual: Float[np.ndarray, "text d_model"]
    residual_norm: float
    model_fingerprint: str = ""
    sae_fingerprint: str = ""

    def save(self, path: Path) -> None:
        """Write the codes as safetensors, whole or not at all."""
        from safetensors.numpy import save

        tensors = {
            "data": self.codes.data.astype(np.float32),
            "indices": self.codes.indices.astype(np.int32),
            "indptr": self.codes.indptr.astype(np.int64),
            "residual": np.ascontiguousarray(self.residual, np.float32),
        }
        metadata = {
            "width": str(self.codes.shape[1]),  # type: ignore[index]
            "residual_norm": repr(self.residual_norm),
            "model_fingerprint": self.model_fingerprint,
            "sae_fingerprint": self.sae_fingerprint,
        }
        write_atomic(path, save(tensors, metadata=metadata))


def load_codes(path: Path) -> TextCodes:
    """Read what `TextCodes.save` wrote.

    Raises:
        OutputError: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            parts = [file.get_tensor(name) for name in ("data", "indices", "indptr")]
            residual = file.get_tensor("residual")
        shape = (len(residual), int(metadata["width"]))
        return TextCodes(
            csr_matrix(tuple(parts), shape=shape),
            residual,
            float(metadata["residual_norm"]),
            metadata["model_fingerprint"],
            metadata["sae_fingerprint"],
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise OutputError(
            f"{path} holds no codes ({error}); delete it and run the same command again."
        ) from error


def read_codes(
    model: TransformerBridge,
    rows: Sequence[TokenRow],
    sae: Sae,
    *,
    positions: ReadPosition = "mean",
    progress: Progress | None = None,
) -> TextCodes:
    """Read the SAE's site and encode every read token, pooling as it goes.

    Tokens are encoded one by one and then pooled, as an SAE was trained on tokens.

    Args:
        model: A model from `load_model`.
        rows: Tokenised texts from `encode_labelled`.
        sae: The SAE.
        positions: How a text's tokens become one row: the last one, or else their mean.
        progress: Where to show progress.
    """
    from saesteer.models import model_info

    pieces: list[csr_matrix] = []
    order: list[np.ndarray] = []
    residual = np.zeros((len(rows), 0), dtype=np.float32)
    total, tokens = 0.0, 0
    with (progress or Progress()).task("texts", len(rows), "texts") as task:
        for chunk in length_chunks(rows, sae.d_in):
            read = read_rows(model, [rows[i] for i in chunk], [sae.site])[sae.site]
            vectors = pooled(read, positions).numpy()
            if not residual.size:
                residual = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
            residual[chunk] = vectors
            pieces += [_encode(sae, read, i, positions) for i in range(read.n_texts)]
            order.append(chunk)
            total += mean_norm(read) * len(read.values)
            tokens += len(read.values)
            task.advance(len(chunk))
    back = np.argsort(np.concatenate(order))
    return TextCodes(
        csr_matrix(csr_matrix(vstack(pieces))[back]),
        residual,
        total / tokens,
        model_info(model).fingerprint,
        sae.fingerprint,
    )


def _encode(sae: Sae, read: Activations, index: int, positions: ReadPosition) -> csr_matrix:
    codes = sae.encode(read.text(index)).cpu().numpy()
    row = codes[-1:] if positions == "last" else codes.mean(axis=0, keepdims=True)
    return csr_matrix(row)
