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
    for index, logits, after, scored in rows.passes(vector, strength, unit):
        for place, row_logits, ids, kept in zip(index, logits, after, scored, strict=True):
            log_probs = torch.log_softmax(row_logits[kept].float(), dim=-1)
            out[place] = float(log_probs.gather(1, ids[kept][:, None]).mean())
    return out
