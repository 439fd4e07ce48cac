"""The best linear guess of what a stretch of layers does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saesteer.corruption.program import LinearSpan
from saesteer.corruption.reference import kept_passes, read_tensors
from saesteer.models import Site, resolve_target
from saesteer.utils.errors import DataError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.tokens import TokenRow


@dataclass(frozen=True, eq=False)
class LinearMap:
    """y = x W + b, from the residual stream before a stretch of layers to that behind it.

    The first token is apart: models make it their attention sink, ten times as long as the others
    and nearly always the same, and one map for both would fit neither. It gets its mean.
    """

    span: LinearSpan
    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]
    # What the first token of a text becomes.
    first: Float[Tensor, " d_model"]
    # Share of the held-out variance that it explains, over tokens and dimensions together, the
    # first and special ones left out; NaN where nothing was held out.
    r2: float
    # The same of leaving the residual stream as it is, which is what skipping the layers does.
    r2_identity: float
    # Tokens that it was fitted on, and that it was scored on.
    n_train: int
    n_held_out: int

    def __call__(
        self,
        hidden: Float[Tensor, "row pos d_model"],
        positions: Int[Tensor, "#row pos"] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """Map a residual stream.

        Args:
            hidden: The stream.
            positions: Where in its text each token stands; counted from 0 if None.
        """
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        weight = self.weight.to(device=hidden.device, dtype=torch.float32)
        mapped = hidden.float() @ weight + self.bias.to(weight)
        at_first = (positions == 0)[..., None]
        return torch.where(at_first, self.first.to(weight), mapped).to(hidden.dtype)

    def scores(self) -> dict[str, Any]:
        """Return its fit as plain values."""
        names = ("r2", "r2_identity", "n_train", "n_held_out")
        span = f"{self.span.first}-{self.span.last}"
        return {"span": span, **{name: getattr(self, name) for name in names}}


def save_maps(maps: Mapping[LinearSpan, LinearMap], path: Path) -> None:
    """Write maps with their fits as safetensors."""
    from safetensors.torch import save_file

    tensors, fits = {}, {}
    for one in maps.values():
        fit = one.scores()
        name = fit.pop("span")
        for part in ("weight", "bias", "first"):
            tensors[f"{name}.{part}"] = getattr(one, part).contiguous()
        # As text: JSON has no word for the NaN of a map that was never scored.
        fits[name] = {key: str(value) for key, value in fit.items()}
    save_file(tensors, path, metadata={"fits": json.dumps(fits)})


def load_maps(path: Path) -> dict[LinearSpan, LinearMap]:
    """Read maps back.

    Raises:
        OutputError: The file is damaged.
    """
    tensors, metadata = read_tensors(path)
    maps = {}
    for name, fit in json.loads(metadata["fits"]).items():
        span = LinearSpan(*map(int, name.split("-")))
        parts = [tensors[f"{name}.{part}"] for part in ("weight", "bias", "first")]
        shares = float(fit["r2"]), float(fit["r2_identity"])
        counts = int(fit["n_train"]), int(fit["n_held_out"])
        maps[span] = LinearMap(span, *parts, *shares, *counts)
    return maps


class LeastSquares:
    """Affine least squares over batches that need not fit in memory.

    The normal equations are gathered in float64 about the mean; directions that the inputs do not
    fill get the least-norm answer, as in numpy's lstsq.
    """

    def __init__(self, width: int) -> None:
        self.n = 0
        self._xy = np.zeros((width, 2 * width))
        self._sum = np.zeros(2 * width)

    def add(self, x: Float[np.ndarray, "token d"], y: Float[np.ndarray, "token d"]) -> None:
        """Take in some tokens."""
        both = np.concatenate([x, y], axis=1).astype(np.float64)
        self.n += len(both)
        self._sum += both.sum(axis=0)
        self._xy += both[:, : x.shape[1]].T @ both

    def solve(self) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
        """Return W and b.

        Raises:
            DataError: No token was taken in.
        """
        from scipy.linalg import pinvh

        if not self.n:
            raise DataError("a linear map has no token to be fitted on; give more texts.")
        width = len(self._xy)
        mean = self._sum / self.n
        centred = self._xy - self.n * np.outer(mean[:width], mean)
        weight = np.asarray(pinvh(centred[:, :width])) @ centred[:, width:]
        return weight, mean[width:] - mean[:width] @ weight


def fit_linear_maps(
    model: TransformerBridge,
    spans: Sequence[LinearSpan],
    rows: Sequence[TokenRow],
    *,
    held_out: float = 0.2,
    seed: int = 0,
    max_tokens: int = 4096,
) -> dict[LinearSpan, LinearMap]:
    """Fit one map for each stretch of layers, all in one pass over the texts.

    Args:
        model: A model from `load_model`.
        spans: The stretches.
        rows: Tokenised texts.
        held_out: Share of the texts that are kept for scoring.
        seed: Seeds which.
        max_tokens: The most tokens in a batch.

    Raises:
        DataError: There are too few texts to fit on.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    n_held_out = round(held_out * len(rows))
    if len(rows) - n_held_out < 1:
        raise DataError(f"linear maps cannot be fitted on {len(rows)} texts; give more.")
    test, train = order[:n_held_out], order[n_held_out:]
    width = int(model.cfg.d_model)
    fits = {span: LeastSquares(width) for span in spans}
    firsts = {span: np.zeros(width) for span in spans}
    for found in _activations(model, spans, [rows[i] for i in train], max_tokens):
        for span, (x, y, first) in found.items():
            fits[span].add(x, y)
            firsts[span] += first.sum(axis=0, dtype=np.float64) / len(train)
    solved = {span: fit.solve() for span, fit in fits.items()}
    scored = {span: _Explained(*solved[span]) for span in spans}
    for found in _activations(model, spans, [rows[i] for i in test], max_tokens):
        for span, (x, y, _) in found.items():
            scored[span].add(x, y)
    maps = {}
    for span in spans:
        weight, bias, first = (torch.tensor(p).float() for p in (*solved[span], firsts[span]))
        r2, identity = scored[span].r2()
        n_train, n_test = fits[span].n, scored[span].n
        maps[span] = LinearMap(span, weight, bias, first, r2, identity, n_train, n_test)
    return maps


class _Explained:
    """Variance about the mean that a map leaves, and that leaving x as it is leaves."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self._weight, self._bias = weight, bias
        self.n = 0
        self._left = self._identity = self._squares = 0.0
        self._sum = np.zeros(len(bias))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.n += len(y)
        self._left += float(((x @ self._weight + self._bias - y) ** 2).sum())
        self._identity += float(((x - y) ** 2).sum())
        self._squares += float((y**2).sum())
        self._sum += y.sum(axis=0)

    def r2(self) -> tuple[float, float]:
        total = self._squares - float((self._sum**2).sum()) / max(self.n, 1)
        if self.n < 2 or total <= 0:
            return float("nan"), float("nan")
        return 1 - self._left / total, 1 - self._identity / total


def _activations(
    model: TransformerBridge,
    spans: Sequence[LinearSpan],
    rows: Sequence[TokenRow],
    max_tokens: int,
) -> Iterator[dict[LinearSpan, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Yield for each stretch what goes in and comes out, and what comes out at first tokens."""
    if not rows:
        return
    sites = {span: (Site(span.first, "hook_resid_pre"), Site(span.last)) for span in spans}
    seen: dict[Site, Tensor] = {}
    with ExitStack() as stack:
        for site in {site for ends in sites.values() for site in ends}:
            keep = partial(seen.__setitem__, site)
            stack.callback(resolve_target(model, site).hook(keep).remove)
        for kept, forward in kept_passes(model, rows, max_tokens=max_tokens):
            forward()
            mask = kept.clone()
            mask[:, 0] = False
            values = {site: hidden[mask].float().cpu().numpy() for site, hidden in seen.items()}
            first = {site: hidden[:, 0].float().cpu().numpy() for site, hidden in seen.items()}
            yield {
                span: (values[before], values[after], first[after])
                for span, (before, after) in sites.items()
            }
