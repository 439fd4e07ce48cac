"""What every patching method returns: one number per cell, with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["denoising", "noising"]
Method = Literal["activation", "attribution", "integrated_gradients", "path"]


def check_mode(mode: str) -> None:
    """Check that a mode exists.

    Raises:
        ConfigError: It does not.
    """
    if mode not in ("denoising", "noising"):
        raise ConfigError(f"mode: {mode!r} is neither 'denoising' nor 'noising'; choose one.")


@dataclass(frozen=True)
class PatchResult:
    """A metric under a patch of every cell.

    Attributes:
        method: How the cells were found.
        component: What was patched, such as "resid_pre", "attn_out", "z" or "sae".
        mode: "denoising" patches clean activations into the corrupted run and asks what is
            sufficient; "noising" patches corrupted ones into the clean run and asks what is
            necessary.
        metric: The metric's name, such as "logit_difference".
        dims: The axes behind the first, which is always "pair": any of "layer", "position",
            "head", "feature", "cluster" and "receiver".
        coords: The labels along every axis of `dims`; numbers or words.
        values: The metric itself after the patch, [pair, *dims]; NaN where a prompt has no such
            position.
        clean: The metric on every pair's clean prompt, unpatched, [pair].
        corrupted: The metric on every pair's corrupted prompt, unpatched, [pair].
        pairs: The pairs' names.
        tokens: Every pair's tokens along the axis "position" ("" where it has none), or empty.
    """

    method: Method
    component: str
    mode: Mode
    metric: str
    dims: tuple[str, ...]
    coords: dict[str, tuple[int | str, ...]]
    values: Float[np.ndarray, "pair ..."]
    clean: Float[np.ndarray, " pair"]
    corrupted: Float[np.ndarray, " pair"]
    pairs: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...] = ()

    def normalised(self) -> Float[np.ndarray, "pair ..."]:
        """Return the values on the scale on which 1 is what the patch could restore or destroy.

        Denoising: 0 as corrupted, 1 as clean. Noising: 0 unharmed, -1 as corrupted. A pair whose
        clean and corrupted metric are equal has no scale and gives NaN.
        """
        shape = (-1,) + (1,) * (self.values.ndim - 1)
        origin = self.corrupted if self.mode == "denoising" else self.clean
        gap = np.where(self.clean == self.corrupted, np.nan, self.clean - self.corrupted)
        return (self.values - origin.reshape(shape)) / gap.reshape(shape)

    def mean(self, *, normalised: bool = True) -> Float[np.ndarray, " *cells"]:
        """Return the mean over the pairs that have the cell; NaN where none has."""
        values = self.normalised() if normalised else self.values
        there = ~np.isnan(values)
        total = np.where(there, values, 0.0).sum(axis=0)
        return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)

    def frame(self) -> pd.DataFrame:
        """Return one row per pair and cell: pair, dims, token, value, normalised."""
        import pandas as pd

        axes: list[tuple[int | str, ...]] = [self.pairs, *(self.coords[dim] for dim in self.dims)]
        index = pd.MultiIndex.from_product(axes, names=["pair", *self.dims])
        table = pd.DataFrame(
            {"value": self.values.ravel(), "normalised": self.normalised().ravel()}, index=index
        ).reset_index()
        if self.tokens and "position" in self.dims:
            places = np.indices(self.values.shape)
            position = places[1 + self.dims.index("position")].ravel()
            pair = places[0].ravel()
            table["token"] = [self.tokens[i][j] for i, j in zip(pair, position, strict=True)]
        return table.dropna(subset=["value"]).reset_index(drop=True)
