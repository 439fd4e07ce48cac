"""How likely a model finds statements as its own words, with and without steering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from saesteer.steering.teacher_forced import TeacherForced

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector, Unit

__all__ = ["TeacherForced", "statement_log_likelihoods"]


def statement_log_likelihoods(
    rows: TeacherForced,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
    unit: Unit = "norm",
) -> Float[np.ndarray, " row"]:
    """Return each row's mean log-probability per kept token, in nats.

    Args:
        rows: The prepared rows.
        vector: What to steer with; nothing if None.
        strength: How strongly.
        unit: The strength's unit.
    """
    out = np.zeros(rows.n_rows)
    for part in rows.passes(vector, strength, unit):
        log_probs = torch.log_softmax(part.logits.float(), dim=-1)
        said = log_probs.gather(1, part.after[:, None])[:, 0]
        counts = torch.bincount(part.row).tolist()
        for place, own in zip(part.index, said.split(counts), strict=True):
            out[place] = float(own.mean())
    return out
