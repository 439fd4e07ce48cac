"""Checks that decoder rows and targets are numbers one can compute with."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from saesteer.utils.errors import DataError


def checked_rows(
    rows: Float[np.ndarray, "feature d_model"], indices: Int[np.ndarray, " feature"]
) -> Float[np.ndarray, "feature d_model"]:
    """Return the decoder rows as float64.

    Args:
        rows: `[feature, d_model]` decoder rows.
        indices: `[feature]` SAE index of each row, for the error.

    Returns:
        The rows as float64.

    Raises:
        DataError: There is no row, or a row is zero or not finite.
    """
    values = finite_matrix(rows, "decoder_rows", "feature")
    empty = np.flatnonzero(np.linalg.norm(values, axis=1) == 0)
    if empty.size:
        raise DataError(
            f"decoder_rows: the decoder row of feature {int(indices[empty[0]])} is zero, so it "
            "has no direction; leave that feature out or check the SAE's weights."
        )
    return values


def finite_matrix(
    values: Float[np.ndarray, "row column"], field: str, row_name: str
) -> Float[np.ndarray, "row column"]:
    """Return a matrix as float64.

    Args:
        values: The matrix.
        field: What it is, for the error.
        row_name: What a row of it is, for the error.

    Returns:
        The matrix as float64.

    Raises:
        DataError: It is not a matrix with at least one row and column of finite numbers.
    """
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{field}: this is not an array of numbers; give one row per {row_name}."
        ) from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(
            f"{field}: shape {matrix.shape} is not a matrix with at least one {row_name} and "
            f"one column; give one row per {row_name}."
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise DataError(
            f"{field}: row {bad[0]} (counted from 0) is not all finite numbers; find the "
            f"{row_name} whose activations overflowed, or use a wider dtype."
        )
    return matrix
