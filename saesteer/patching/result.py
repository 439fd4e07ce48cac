"""What every patching method returns: one number per cell, with labels; and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from saesteer.patching.batch import Mode, PairBatch
from saesteer.utils.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["activation", "attribution", "integrated_gradients", "path"]
KEY = "patch_result"
ARRAYS = ("values", "clean", "corrupted")
LABELS = ("method", "component", "mode", "metric", "dims", "coords", "pairs", "tokens")


@dataclass(frozen=True)
class PatchResult:
    """A metric under a patch of every cell; a table in notebooks.

    Example:
        >>> pair = ss.PromptPair("I like the", "I hear the", answer=" a", wrong=" t")
        >>> found = ss.patch(model, [pair], "attn_out")
        >>> found.values.shape == (1, *map(len, found.coords.values()))
        True
    """

    # How the cells were found.
    method: Method
    # What was patched, such as "resid_pre", "attn_out", "z" or "sae".
    component: str
    # "denoising" patches clean activations into the corrupted run and asks what is sufficient;
    # "noising" patches corrupted ones into the clean run and asks what is necessary.
    mode: Mode
    metric: str
    # The labels, numbers or words, along the axes behind "pair": any of "layer", "position",
    # "head", "feature" and "cluster".
    coords: dict[str, tuple[int | str, ...]]
    # The metric itself after the patch, [pair, *coords]; NaN where a prompt has no such position.
    values: Float[np.ndarray, "pair ..."]
    # The metric on every pair's prompts, unpatched.
    clean: Float[np.ndarray, " pair"]
    corrupted: Float[np.ndarray, " pair"]
    # The pairs' names.
    pairs: tuple[str, ...]
    # Every pair's tokens along the axis "position" ("" where it has none), or empty.
    tokens: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(
        cls,
        batch: PairBatch,
        method: Method,
        component: str,
        metric: str,
        mode: Mode,
        coords: dict[str, tuple[int | str, ...]],
        values: Float[np.ndarray, "pair ..."],
        ends: tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]],
    ) -> PatchResult:
        """Return numbers of a batch's pairs; `ends` are those of patched run and source before."""
        corrupted, clean = ends if mode == "denoising" else ends[::-1]
        tokens: tuple[tuple[str, ...], ...] = ()
        if "position" in coords:
            words = batch.words("corrupted" if mode == "denoising" else "clean")
            tokens = tuple(tuple(row[int(i)] for i in coords["position"]) for row in words)
        values = values.reshape(len(batch), *(len(labels) for labels in coords.values()))
        names = batch.names
        return cls(method, component, mode, metric, coords, values, clean, corrupted, names, tokens)

    @property
    def dims(self) -> tuple[str, ...]:
        """The axes behind the first, which is always "pair"."""
        return tuple(self.coords)

    @property
    def origin(self) -> Float[np.ndarray, "pair ..."]:
        """The metric of the patched run before the patch, shaped to go with `values`."""
        start = self.corrupted if self.mode == "denoising" else self.clean
        return start.reshape(-1, *(1,) * (self.values.ndim - 1))

    @property
    def change(self) -> Float[np.ndarray, "pair ..."]:
        """What every patch does to the metric."""
        return self.values - self.origin

    def normalised(self) -> Float[np.ndarray, "pair ..."]:
        """Return the values on the scale on which 1 is what the patch could restore or destroy.

        Denoising: 0 as corrupted, 1 as clean. Noising: 0 unharmed, -1 as corrupted. A pair whose
        clean and corrupted metric are equal has no scale and gives NaN.
        """
        gap = np.where(self.clean == self.corrupted, np.nan, self.clean - self.corrupted)
        return self.change / gap.reshape(self.origin.shape)

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

    @property
    def table(self) -> pd.DataFrame:
        """The mean over the pairs, normalised: layers down, positions or heads across."""
        import pandas as pd

        mean = self.mean()
        rows = pd.Index(self.coords[self.dims[0]], name=self.dims[0])
        if mean.ndim == 1:
            return pd.DataFrame({"effect": mean}, index=rows)
        across = [self.coords[dim] for dim in self.dims[1:]]
        if len(across) == 1:
            columns = pd.Index(across[0], name=self.dims[1])
        else:
            columns = pd.MultiIndex.from_product(across, names=self.dims[1:])
        return pd.DataFrame(mean.reshape(len(rows), -1), index=rows, columns=columns)

    def _repr_html_(self) -> str:
        largest = float(np.nanmax(np.abs(self.table.to_numpy()), initial=1e-9))
        shown: Any = self.table.style.format("{:.2f}", na_rep="")
        shown = shown.background_gradient("RdBu", axis=None, vmin=-largest, vmax=largest)
        said = f"{self.method} patching of {self.component} ({self.mode}), {self.metric}"
        return shown.set_caption(said).to_html()

    def save(self, path: Path) -> None:
        """Write the numbers as safetensors, with their labels as JSON; its folder must be there."""
        from safetensors.numpy import save_file

        labels = {name: getattr(self, name) for name in LABELS}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        save_file(arrays, path, metadata={KEY: json.dumps(labels)})

    @classmethod
    def load(cls, path: Path) -> PatchResult:
        """Read a result back.

        Raises:
            OutputError: The file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                labels: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OutputError(
                f"{path} holds no patch result ({type(error).__name__}); delete it if it is there, "
                "and run the same command again."
            ) from error
        labels["coords"] = {dim: tuple(labels["coords"][dim]) for dim in labels.pop("dims")}
        labels["pairs"] = tuple(labels["pairs"])
        labels["tokens"] = tuple(map(tuple, labels["tokens"]))
        return cls(**labels, **arrays)
