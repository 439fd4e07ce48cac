"""What steering should do, measured on training data, and what a small push at a site changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models import model_info
from saesteer.models.placement import by_rows
from saesteer.steering.divergence import DivergenceMeter, match_strength
from saesteer.steering.teacher_forced import Pass, TeacherForced
from saesteer.utils.cache import Cache, content_key
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress, Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models import Site
    from saesteer.models.tokens import TokenRow
    from saesteer.steering import SteeringVector, Unit

# Of hundreds of pairs without anything in common a few hundredths remain.
NO_DIFFERENCE = 1e-3
# Metrics that come with the package: that of the bundled model at the bundled SAE's site, on the
# bundled answers in float32, takes minutes on two cores (`scripts/bundle_metric.py`).
BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "metrics"
# How many tokens of neutral text the cost at a strength is measured on.
COST_TOKENS = 400

Arrays = dict[str, np.ndarray]
Keep = Callable[[np.ndarray, Callable[[], Arrays]], Arrays]
# Of several sites d_model numbers for each, side by side.
Vector = Float[np.ndarray, " d_model"]
MakeVector = Callable[[Vector], "SteeringVector"]

# Metrics of fits that name no folder to keep them in.
_IN_MEMORY = Cache()


@dataclass(frozen=True, eq=False)
class FisherMetric:
    """The second-order cost of a vector added at a site, KL(u) ~ u' F u / 2 per token.

    At several sites u is what is added at each, side by side, and d the width of all of them.
    """

    matrix: Float[np.ndarray, "d d"]  # F, nats per token and squared unit of residual
    n_samples: int  # sampled gradients that it was estimated from
    n_tokens: int  # of text that they were sampled on
    n_sites: int = 1

    @cached_property
    def mean_diagonals(self) -> list[float]:
        """Each site's mean of the diagonal: a random direction of length 1 costs half as much."""
        width = len(self.matrix) // self.n_sites
        starts = range(0, len(self.matrix), width)
        blocks = (self.matrix[i : i + width, i : i + width] for i in starts)
        return [float(np.trace(block) / width) for block in blocks]

    def damped(self, ridge: float = 1.0) -> Float[np.ndarray, "d d"]:
        """Return F plus, on each site's diagonal, `ridge` times the mean of that diagonal.

        Site by site, because lengths at different sites do not compare: the residual stream grows
        from block to block and a unit of it counts for less. With one mean for all, the site where
        a unit costs least would be damped most, in its own terms, and a fit would shun it; so a
        fit is the same in whatever unit each site is measured.
        """
        width = len(self.matrix) // self.n_sites
        return self.matrix + ridge * np.diag(np.repeat(self.mean_diagonals, width))

    def solve(self, gain: Float[np.ndarray, " d"], ridge: float = 1.0) -> Float[np.ndarray, " d"]:
        """Return the natural gradient: `gain` multiplied by the inverse of the damped F.

        Raises:
            ConfigError: F has no inverse, which a ridge would give it.
        """
        # With a ridge r the condition number is at most about d / r.
        full = ridge > 1e-9 or np.linalg.matrix_rank(self.matrix, hermitian=True) == len(gain)
        if not (all(mean > 0 for mean in self.mean_diagonals) and full):
            raise ConfigError(
                f"ridge: with {ridge:g} the Fisher metric of {self.n_samples} samples has no "
                "inverse; give a ridge above 0, such as 1, or more samples of neutral text."
            )
        return np.linalg.solve(self.damped(ridge), gain)


def fisher_metric(
    rows: TeacherForced,
    *,
    n_samples: int = 24,
    seed: int = 0,
    progress: Progress | None = None,
) -> FisherMetric:
    """Estimate the Fisher metric from answers that the model itself samples, token by token.

    At each position t of a text a token y_t is drawn from the model's own distribution; the
    gradient h of sum_t log p(y_t) with respect to a constant vector added at the site (of several
    sites: to the vectors of all, side by side) has E[h h'] = sum_t F_t, because the y_t are
    independent given the text and each score has mean zero. F is the mean of h h' over samples and
    texts, per token (Amari 1998, "Natural gradient works efficiently in learning").
    """
    generator = torch.Generator().manual_seed(seed)
    total = n_samples * rows.n_passes
    with (progress or Progress()).task("Fisher metric", total=total, unit="draws") as task:
        # By a map, so that no name holds one pass's logits while the next one runs.
        parts = map(partial(_squares, n_samples, generator, task), rows.open_passes())
        squares, counts = zip(*parts, strict=True)
    n_tokens = sum(counts)
    matrix = (torch.stack(squares).sum(dim=0) / (n_tokens * n_samples)).numpy()
    return FisherMetric(matrix, n_samples * rows.n_rows, n_tokens, rows.n_sites)


def _squares(
    n_samples: int, generator: torch.Generator, task: Task, opened: tuple[Pass, Tensor]
) -> tuple[Tensor, int]:
    """Return the sum of h h' over the draws for one batch, and its tokens."""
    (_, logits, *_), offset = opened
    total = torch.zeros(offset.shape[1], offset.shape[1], dtype=torch.float64)
    size = (n_samples, len(logits))
    uniform = torch.rand(size, dtype=torch.float64, generator=generator).T.contiguous()
    # The gradient of sum log p with respect to the logits is one-hot - p: one array for all draws.
    push, draws, chances = by_rows(_drawn, logits.detach(), uniform)
    draws, chances = draws.to(push.device), chances.to(push)
    for number in range(n_samples):
        at, chance = draws[:, number, None], chances[:, number, None]
        push.scatter_(1, at, 1 - chance)
        (gradient,) = torch.autograd.grad(logits, offset, push, retain_graph=number + 1 < n_samples)
        push.scatter_(1, at, -chance)
        rows_of_h = gradient.double().cpu()
        total += rows_of_h.T @ rows_of_h
        task.advance()
    return total, len(logits)


def _drawn(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return -p, the tokens that uniform numbers draw from p, and these tokens' p."""
    p = torch.softmax(logits.float(), dim=-1)
    # Drawn on the CPU, in double precision, so that a rare token has its place among 50,000.
    known = p.cpu()
    summed = known.double().cumsum(dim=-1)
    drawn = torch.searchsorted(summed, uniform * summed[:, -1:])
    return p.neg().to(logits.dtype), drawn, known.gather(1, drawn)


def row_gradients(
    rows: TeacherForced,
    vector: SteeringVector | None = None,
    strength: float = 0.0,
    unit: Unit = "norm",
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """Return each row's gradient of its mean log-probability, and that log-probability.

    For a row with answer s, l(s; u) is the mean log-probability of its tokens with u added to the
    residual stream from the last prompt token on; the gradient is taken at u = 0, or on top of
    `vector` at `strength`. Gradients are in nats per token and unit of residual stream, float32 on
    the CPU.
    """
    gradients: Tensor | None = None
    values = torch.zeros(rows.n_rows)
    # By a map, so that no name holds one pass's logits while the next one runs.
    for index, gradient, means in map(_of_pass, rows.open_passes(vector, strength, unit)):
        if gradients is None:
            gradients = torch.zeros((rows.n_rows, gradient.shape[1]))
        gradients[index] = gradient
        values[index] = means
    assert gradients is not None
    return gradients, values


def _of_pass(opened: tuple[Pass, Tensor]) -> tuple[list[int], Tensor, Tensor]:
    part, offset = opened
    counts = torch.bincount(part.row)
    with torch.no_grad():
        push, each = by_rows(_of_tokens, part.logits, part.after, 1 / counts[part.row])
    (gradient,) = torch.autograd.grad(part.logits, offset, push)
    means = torch.zeros(len(counts), device=each.device).index_add(0, part.row, each) / counts
    return part.index, gradient.float().cpu(), means.cpu()


def _of_tokens(logits: Tensor, said: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of sum w log p with respect to the logits, and each log p.

    It is w (one-hot - p): autograd would hold four more arrays of their size.
    """
    push = torch.log_softmax(logits.float(), dim=-1)
    said, weights = said[:, None], weights[:, None]
    each = push.gather(1, said)[:, 0]
    push.exp_().mul_(-weights).scatter_add_(1, said, weights)
    return push.to(logits.dtype), each


class Contrast(Protocol):
    """What steering should make likelier, against what less likely."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    @property
    def weight(self) -> float:
        """How much it counts; contrasts are brought to one scale first."""
        ...

    def margin(
        self, vector: SteeringVector | None = None, strength: float = 0.0
    ) -> tuple[Float[np.ndarray, " d_model"], float]:
        """Return the gradient of the margin in nats per token at a strength, and the margin."""
        ...


@dataclass(frozen=True)
class Statements:
    """The mean log-probability of texts, less that of others: m(u) of `SteeringObjective`."""

    rows: TeacherForced  # the texts to raise, then those to lower in the same order
    weight: float = 1.0
    name: str = "statements"

    def margin(
        self, vector: SteeringVector | None = None, strength: float = 0.0
    ) -> tuple[Float[np.ndarray, " d_model"], float]:
        """Return the gradient of the margin, and the margin."""
        gradients, values = row_gradients(self.rows, vector, strength)
        n = self.rows.n_rows // 2
        gain = (gradients[:n] - gradients[n:]).mean(dim=0).double().numpy()
        # The same texts on both sides leave rounding, which the scale would blow up to full size.
        if np.linalg.norm(gain) <= NO_DIFFERENCE * float(gradients.norm(dim=1).mean()):
            gain = np.zeros_like(gain)
        return gain, float((values[:n] - values[n:]).mean())


class Linearisation(NamedTuple):
    """The objective to first order around a vector."""

    gain: Float[np.ndarray, " d_model"]  # gradient with respect to a vector added both ways
    effects: dict[str, float]  # E of each contrast at the matched strengths, nats per token
    plus: float = 0.0  # the strengths that meet the KL target; 0 around nothing
    minus: float = 0.0


class SteeringObjective:
    """The effect E on training contrasts at a KL target, and its first derivatives.

    With l(s; u) the mean token log-probability of a text under an added vector u and v at its
    matched strengths a+ and -a-,

        E(v) = mean over pairs of [m(a+ v) - m(-a- v)] / 2,   m(u) = l(s+; u) - l(s-; u)

    and `gain` is the mean of the gradients of m at a+ v and at -a- v: what a small vector added to
    v (and taken away on the negative side) changes.

    The cost (`divergence`, and `metric` to second order at zero) is measured on neutral text that
    no evaluation uses, `make_vector` turns a raw vector into a SteeringVector at the site, and
    `keep` returns the arrays of a linearisation, computed by the function given or kept from
    earlier.
    """

    def __init__(
        self,
        contrasts: Sequence[Contrast],
        divergence: DivergenceMeter,
        metric: FisherMetric,
        make_vector: MakeVector,
        *,
        kl_target: float = 0.3,
        keep: Keep = lambda at, compute: compute(),
        progress: Progress | None = None,
    ) -> None:
        self.contrasts = tuple(contrasts)
        self.divergence = divergence
        self.metric = metric
        self.kl_target = kl_target
        self._make_vector = make_vector
        self._keep = keep
        self._progress = progress or Progress()

    @cached_property
    def at_zero(self) -> Linearisation:
        """The objective around no steering at all."""
        gains = self._zero_gains
        return Linearisation(self._weighed(gains), dict.fromkeys(gains, 0.0))

    def around(self, raw: Float[np.ndarray, " d_model"]) -> Linearisation:
        """Linearise around a raw vector, steered both ways at the strengths of the KL target."""
        found, names = self._keep(raw, lambda: self._around(raw)), [c.name for c in self.contrasts]
        gain = self._weighed({name: found[f"gain.{name}"] for name in names})
        effects = {name: float(found[f"effect.{name}"][0]) for name in names}
        return Linearisation(gain, effects, *map(float, found["strengths"]))

    @cached_property
    def _zero_gains(self) -> Arrays:
        return self._keep(np.zeros(0), lambda: {c.name: c.margin()[0] for c in self._each()})

    def _each(self) -> Iterator[Contrast]:
        """Yield the contrasts, and say how far it is."""
        total = len(self.contrasts)
        with self._progress.task("gradients", total=total, unit="contrasts") as task:
            for contrast in self.contrasts:
                yield contrast
                task.advance(1, contrast.name)

    def _weighed(self, gains: Arrays) -> Float[np.ndarray, " d_model"]:
        return np.sum([self._scales[name] * gain for name, gain in gains.items()], axis=0)

    @cached_property
    def _scales(self) -> dict[str, float]:
        # One unit of each contrast is what its best direction gains at unit cost.
        gains = self._zero_gains
        sizes = {name: float(np.sqrt(g @ self.metric.solve(g))) for name, g in gains.items()}
        return {
            c.name: c.weight / sizes[c.name] if sizes[c.name] > 0 else 0.0 for c in self.contrasts
        }

    def _around(self, raw: Float[np.ndarray, " d_model"]) -> Arrays:
        vector = self._make_vector(raw)
        plus = match_strength(self.divergence, vector, self.kl_target, sign=1, tolerance=0.1)
        minus = match_strength(
            self.divergence, vector, self.kl_target, sign=-1, start=plus.strength, tolerance=0.1
        )
        found: Arrays = {"strengths": np.array([plus.strength, minus.strength])}
        for contrast in self._each():
            up, high = contrast.margin(vector, plus.strength)
            down, low = contrast.margin(vector, minus.strength)
            found[f"gain.{contrast.name}"] = (up + down) / 2
            found[f"effect.{contrast.name}"] = np.array([(high - low) / 2])
        return found


def linearised(
    objective: SteeringObjective, rounds: int, fit: Callable[[Vector], Vector]
) -> tuple[Vector, list[Linearisation]]:
    """Fit to the gain at zero, then `rounds` times to the mean gain there and around each last fit.

    Returns:
        The last fit's raw vector, and every linearisation.
    """
    linear = [objective.at_zero]
    raw = fit(linear[0].gain)
    for _ in range(rounds):
        linear.append(objective.around(raw))
        raw = fit(np.mean([one.gain for one in linear], axis=0))
    return raw, linear


class TrainingCost:
    """What steering at a site, or at several, costs on neutral answers that no evaluation uses.

    Metric and linearisations are kept in `arrays` under `key`, which tells the model's weights and
    the sites from others.
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[TokenRow],
        *sites: Site,
        fisher_samples: int,
        arrays: Cache = _IN_MEMORY,
        key: tuple[str, ...] = (),
        progress: Progress | None = None,
    ) -> None:
        self.rows = rows
        self._model, self._sites = model, sites
        self._fisher_samples = fisher_samples
        self._arrays, self._key = arrays, key
        self._progress = progress

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """The KL at a strength, on the first answers alone."""
        tokens = np.cumsum([sum(row.kept) for row in self.rows])
        enough = 1 + int(np.searchsorted(tokens, COST_TOKENS))
        return DivergenceMeter(self._model, self.rows[:enough], site=self._sites)

    def beside(self, others: Sequence[Site]) -> TrainingCost:
        """Return what steering here and at other sites at once costs."""
        if not others:
            return self
        return TrainingCost(
            self._model,
            self.rows,
            *self._sites,
            *others,
            fisher_samples=self._fisher_samples,
            arrays=self._arrays,
            key=(*self._key, *map(str, others)),
            progress=self._progress,
        )

    @property
    def _said(self) -> list[Any]:
        return [(row.ids, row.kept) for row in self.rows]

    @property
    def bundled_metric(self) -> Path:
        """The file of this metric that comes with the package, if one does."""
        fingerprint = model_info(self._model).fingerprint
        sites = " ".join(map(str, self._sites))
        key = content_key(fingerprint, sites, self._fisher_samples, self._said)
        return BUNDLED / f"fisher-{key}.safetensors"

    @cached_property
    def metric(self) -> FisherMetric:
        """The Fisher metric of the site, computed once per model, site and text."""

        def compute() -> Arrays:
            from safetensors.numpy import load_file

            if self.bundled_metric.is_file():
                return load_file(self.bundled_metric)
            texts = TeacherForced(self._model, self.rows, site=self._sites, max_tokens=1024)
            how = {"n_samples": self._fisher_samples, "progress": self._progress}
            found = fisher_metric(texts, **how)
            return {"matrix": found.matrix, "counts": np.array([found.n_samples, found.n_tokens])}

        parts = (*self._key, self._fisher_samples, self._said)
        kept = self._arrays.keep(
            "fisher",
            content_key(*parts),
            lambda: self._arrays.once("fisher", *parts, compute=compute),
        )
        n_samples, n_tokens = map(int, kept["counts"])
        matrix = kept["matrix"].astype(np.float64)
        return FisherMetric(matrix, n_samples, n_tokens, len(self._sites))

    def keep(self, *parts: Any) -> Keep:
        """Return a function that keeps linearisations of one objective by content."""
        return lambda at, compute: self._arrays.once(
            "gradients", *self._key, *parts, at, compute=compute
        )
