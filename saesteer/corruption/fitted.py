"""What programs are fitted on texts: linear maps in the place of layers, and means of parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.corruption.edits import part_target
from saesteer.corruption.program import LinearSpan
from saesteer.data import read_pairs
from saesteer.data.bundled import bundled_pair_names, datasets_folder
from saesteer.data.texts import read_texts
from saesteer.models import Site, plain_model
from saesteer.models.hooks import HookTarget, keeping
from saesteer.models.reading import read_rows
from saesteer.models.tokens import (
    TokenRow,
    encode_texts,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.utils.errors import ConfigError, DataError, ModelError, OutputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LONGEST = 128


def reference_texts(source: str, *, limit: int | None = None) -> list[str]:
    """Return texts to fit on.

    Args:
        source: "bundled" for the prose and the statements of the persona pairs that come with
            saesteer, or a file as `read_texts` takes it.
        limit: The most texts.
    """
    if source != "bundled":
        return list(read_texts(Path(source), limit=limit))
    texts = list(read_texts(datasets_folder() / "prose.jsonl"))
    for name in bundled_pair_names():
        pairs = read_pairs(name)
        texts += [*pairs.positives, *pairs.negatives]
    # Every k-th, so that a smaller choice still has some of each set.
    step = 1 if limit is None else max(1, len(texts) // limit)
    return texts[::step][:limit]


def text_rows(model: TransformerBridge, texts: Sequence[str]) -> list[TokenRow]:
    """Tokenise texts, cut after 128 tokens."""
    assert model.tokenizer is not None
    rows = encode_texts(model.tokenizer, texts)
    return [row.part(0, LONGEST) for row in rows if row.ids]


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
    """Read maps back."""
    tensors, metadata = _read_tensors(path)
    maps = {}
    for name, fit in json.loads(metadata["fits"]).items():
        span = LinearSpan(*map(int, name.split("-")))
        fields: dict[str, Any] = {
            **{part: tensors[f"{name}.{part}"] for part in ("weight", "bias", "first")},
            **{key: float(fit[key]) for key in ("r2", "r2_identity")},
            **{key: int(fit[key]) for key in ("n_train", "n_held_out")},
        }
        maps[span] = LinearMap(span, **fields)
    return maps


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
        held_out: Share of the texts that are kept for scoring.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    n_held_out = round(held_out * len(rows))
    if len(rows) - n_held_out < 1:
        raise DataError(f"linear maps cannot be fitted on {len(rows)} texts; give more.")
    test, train = ([rows[i] for i in part] for part in np.split(order, [n_held_out]))
    width = int(model.cfg.d_model)
    fits, scored = ({span: Moments(width) for span in spans} for _ in range(2))
    firsts = {span: np.zeros(width) for span in spans}
    for span, x, y, first in _activations(model, spans, train, max_tokens):
        fits[span].add(x, y)
        firsts[span] += first.sum(axis=0, dtype=np.float64) / len(train)
    for span, x, y, _ in _activations(model, spans, test, max_tokens):
        scored[span].add(x, y)
    maps = {}
    for span in spans:
        weight, bias = fits[span].solve()
        r2, r2_identity = scored[span].explained(weight, bias)
        maps[span] = LinearMap(
            span=span,
            weight=torch.tensor(weight).float(),
            bias=torch.tensor(bias).float(),
            first=torch.tensor(firsts[span]).float(),
            r2=r2,
            r2_identity=r2_identity,
            n_train=fits[span].n,
            n_held_out=scored[span].n,
        )
    return maps


class Moments:
    """First and second moments, in float64, of pairs (x, y) that need not fit in memory."""

    def __init__(self, width: int) -> None:
        self.n = 0
        # Sums of x'x beside x'y, of x beside y, and of y's squares.
        self._xy = np.zeros((width, 2 * width))
        self._sum = np.zeros(2 * width)
        self._yy = 0.0

    def add(self, x: Float[np.ndarray, "token d"], y: Float[np.ndarray, "token d"]) -> None:
        """Take in some tokens."""
        both = np.concatenate([x, y], axis=1).astype(np.float64)
        self.n += len(both)
        self._sum += both.sum(axis=0)
        self._xy += both[:, : x.shape[1]].T @ both
        self._yy += float((both[:, x.shape[1] :] ** 2).sum())

    def solve(self) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
        """Return W and b of least squares.

        Directions that x does not fill get the least-norm answer, as in numpy's lstsq.
        """
        from scipy.linalg import pinvh

        if not self.n:
            raise DataError("a linear map has no token to be fitted on; give more texts.")
        width = len(self._xy)
        mean = self._sum / self.n
        centred = self._xy - self.n * np.outer(mean[:width], mean)
        weight = np.asarray(pinvh(centred[:, :width])) @ centred[:, width:]
        return weight, mean[width:] - mean[:width] @ weight

    def explained(self, weight: np.ndarray, bias: np.ndarray) -> tuple[float, float]:
        """Return the R2 of x W + b for y, and that of x itself; NaN of fewer than two tokens."""
        width = len(bias)
        xx, xy = self._xy[:, :width], self._xy[:, width:]
        sum_x, sum_y = self._sum[:width], self._sum[width:]
        total = self._yy - float(sum_y @ sum_y) / max(self.n, 1)
        if self.n < 2 or total <= 0:
            return float("nan"), float("nan")
        mapped = ((xx @ weight) * weight).sum() + 2 * (sum_x @ weight) @ bias
        mapped += self.n * (bias @ bias)
        left = self._yy - 2 * ((weight * xy).sum() + bias @ sum_y) + mapped
        unmoved = self._yy - 2 * np.trace(xy) + np.trace(xx)
        return 1 - float(left) / total, 1 - float(unmoved) / total


def _activations(
    model: TransformerBridge,
    spans: Sequence[LinearSpan],
    rows: Sequence[TokenRow],
    max_tokens: int,
) -> Iterator[tuple[LinearSpan, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, batch by batch, what enters and leaves a stretch, and what leaves at first tokens."""
    ends = {span: (Site(span.first, "hook_resid_pre"), Site(span.last)) for span in spans}
    sites = sorted({site for pair in ends.values() for site in pair})
    for index in length_sorted_batches(rows, max_tokens=max_tokens):
        # The first token is read as well, though it is special.
        batch = [TokenRow(rows[i].ids, (True, *rows[i].kept[1:])) for i in index]
        found = read_rows(model, batch, sites, max_tokens=max_tokens)
        values = {site: one.values.float().numpy() for site, one in found.items()}
        offsets = found[sites[0]].offsets.numpy()
        inside = np.ones(offsets[-1], dtype=bool)
        inside[offsets[:-1]] = False
        for span, (before, after) in ends.items():
            y = values[after]
            yield span, values[before][inside], y[inside], y[~inside]


@dataclass(frozen=True)
class Means:
    """Mean outputs over the tokens of some texts, special tokens and padding left out."""

    # For each layer what its heads write, side by side, before the output projection.
    heads: dict[int, Float[Tensor, " head_width"]]
    # For each layer what its MLP writes.
    mlps: dict[int, Float[Tensor, " d_model"]]
    # Over how many tokens.
    n_tokens: int

    def save(self, path: Path) -> None:
        """Write the means as safetensors."""
        from safetensors.torch import save_file

        tensors = {
            f"{part}.{layer}": value.contiguous()
            for part in ("heads", "mlps")
            for layer, value in getattr(self, part).items()
        }
        save_file(tensors, path, metadata={"n_tokens": str(self.n_tokens)})

    @classmethod
    def load(cls, path: Path) -> Means:
        """Read what `save` wrote."""
        tensors, metadata = _read_tensors(path)
        parts: dict[str, dict[int, Tensor]] = {"heads": {}, "mlps": {}}
        for name, value in tensors.items():
            part, layer = name.split(".")
            parts[part][int(layer)] = value
        return cls(**parts, n_tokens=int(metadata["n_tokens"]))


def measure_means(
    model: TransformerBridge, rows: Sequence[TokenRow], *, max_tokens: int = 4096
) -> Means:
    """Measure every head's and MLP's mean output over texts, in one pass over them.

    The texts' kept tokens count. Layers without heads, or without an MLP of their own, are left
    out.
    """
    n_tokens = sum(sum(row.kept) for row in rows)
    if not n_tokens:
        raise ConfigError("means: the texts have no token to average over; give some text.")
    plain: Any = plain_model(model)
    targets: dict[tuple[str, int], HookTarget] = {}
    for layer in range(int(model.cfg.n_layers)):
        for part in ("heads", "mlps"):
            with suppress(ModelError):
                targets[part, layer] = part_target(model, plain, layer, part)
    sums: dict[tuple[str, int], Tensor] = {}
    for index in length_sorted_batches(rows, max_tokens=max_tokens):
        some = [rows[i] for i in index]
        batch = pad_rows(some, padding_id(model), input_device(plain), side="right")
        total = partial(_sum_over, batch.span)
        with torch.inference_mode(), keeping(targets, keep=total) as found:
            plain.base_model(**batch.inputs, use_cache=False)
        for key, value in found.items():
            sums[key] = sums[key] + value if key in sums else value
    means = {key: (total / n_tokens).float() for key, total in sums.items()}
    heads, mlps = (
        {layer: mean for (part, layer), mean in means.items() if part == wanted}
        for wanted in ("heads", "mlps")
    )
    return Means(heads, mlps, n_tokens)


def _sum_over(span: Bool[Tensor, "row pos"], hidden: Tensor) -> Tensor:
    return hidden[span].double().sum(dim=0)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise OutputError(
            f"{path} is damaged ({str(error)[:100]}); delete it and run the same command again."
        ) from error
