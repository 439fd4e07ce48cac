"""Pairs' activations as SAE features: every token encoded, then pooled over the side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

from saesteer.methods.features.codes import PairCodes

if TYPE_CHECKING:
    from saesteer.models.pair_activations import PairActivations
    from saesteer.models.reading import Activations
    from saesteer.saes.adapter import Sae


def encode_pairs(sae: Sae, activations: PairActivations) -> PairCodes:
    """Encode both sides of every pair.

    Each token is encoded on its own (an SAE was trained on tokens, not on averages) and the codes
    are then pooled as the activations are: the mean over the side's tokens, or the last token.

    Args:
        sae: The SAE of the site that the activations were read at.
        activations: The pairs.

    Raises:
        MismatchError: The activations have another width than the SAE.
    """
    last = activations.pooling == "last"
    positive, positive_frequency = _encode(sae, activations.positive, last)
    negative, negative_frequency = _encode(sae, activations.negative, last)
    return PairCodes(positive, negative, positive_frequency, negative_frequency)


def _encode(sae: Sae, texts: Activations, last: bool) -> tuple[csr_matrix, csr_matrix]:
    means, frequencies = [], []
    for index in range(texts.n_texts):
        codes = sae.encode(texts.text(index)).cpu().numpy()
        codes = codes[-1:] if last else codes
        means.append(csr_matrix(codes.mean(axis=0, keepdims=True)))
        frequencies.append(csr_matrix((codes != 0).mean(axis=0, keepdims=True, dtype=np.float64)))
    return csr_matrix(vstack(means)), csr_matrix(vstack(frequencies))
