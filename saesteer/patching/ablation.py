"""Running a model with some heads kept and all others at their means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.data.checks import shorten
from saesteer.models.forward import last_logits, last_logits_in_parts, slices
from saesteer.models.hooks import hooked
from saesteer.models.loading import plain_model
from saesteer.patching.batch import PairBatch
from saesteer.patching.circuits import Node
from saesteer.patching.counterfactuals import MeanHeads
from saesteer.patching.metrics import Metric, metric_named, scores
from saesteer.patching.target import check_heads, required_target
from saesteer.utils.errors import DataError, SiteError


class Ablation:
    """A model's metric on the clean prompts when heads stand at their mean.

    Heads alone are ablated; embeddings and MLPs run as they are (Wang et al. 2022).
    """

    def __init__(
        self,
        model: Any,
        batch: PairBatch,
        means: MeanHeads,
        *,
        metric: Metric | None = None,
        max_tokens: int = 4096,
    ) -> None:
        self.model = model
        self.batch = batch
        self.metric = metric or metric_named("logit_difference")
        self._means = means
        self._max_tokens = max_tokens
        self._plain: Any = plain_model(model)
        self._targets = [required_target(model, "z", i) for i in range(self.shape[0])]
        self._clean: Tensor | None = None
        self._known: dict[bytes, Float[np.ndarray, " pair"]] = {}
        self.runs = 0

    @property
    def shape(self) -> tuple[int, int]:
        """How many layers and heads the model has."""
        return int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)

    def mask(self, nodes: Iterable[Node]) -> Bool[Tensor, "layer pair pos head"]:
        """Return where nodes are: True at their heads and positions."""
        layers, heads = self.shape
        found = torch.zeros(layers, len(self.batch), self.batch.width, heads, dtype=torch.bool)
        for node in nodes:
            check_heads(self.model, [(node.layer, node.head)])
            if node.role is None:
                found[node.layer, :, :, node.head] = True
                continue
            columns = [self.column(i, node.role) for i in range(len(self.batch))]
            found[node.layer, torch.arange(len(columns)), columns, node.head] = True
        return found

    def column(self, pair: int, role: str) -> int:
        """Return the column of a pair's role; "end" is the last one of every pair."""
        return role_column(self.batch, pair, role)

    def keeping(self, nodes: Iterable[Node]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair with these nodes kept and all others ablated: F(C)."""
        return self.measure(self.mask(nodes))

    def without(self, nodes: Iterable[Node]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair with these nodes ablated in the whole model: F(M - K)."""
        return self.measure(~self.mask(nodes))

    def measure(self, kept: Bool[Tensor, "layer pair pos head"]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair, with what is not kept ablated."""
        real = self.batch.clean_mask.cpu()[None, :, :, None]
        key = np.packbits((kept & real).numpy()).tobytes()
        if key not in self._known:
            self._known[key] = self._run(kept)
        return self._known[key]

    def gradient_scores(
        self, roles: Iterable[str] | None = None
    ) -> tuple[tuple[Node, ...], Float[np.ndarray, " node"]]:
        """Estimate for every head how much the mean metric falls when it alone is ablated.

        Attribution patching (Nanda 2023) towards the mean: gradient times (z - mean), from one
        forward and one backward pass.

        Args:
            roles: Score every head at each of these positions; at all positions together if None.

        Returns:
            The nodes and their scores, in units of the metric.
        """
        names = None if roles is None else tuple(roles)
        layers, heads = self.shape
        total = np.zeros((layers, heads, 1 if names is None else len(names)))
        for rows in self._parts():
            shares = self._gradient_shares(rows)
            if names is None:
                total[..., 0] += shares.sum(axis=(1, 2))
                continue
            pairs = range(*rows.indices(len(self.batch)))
            for place, role in enumerate(names):
                columns = [self.column(i, role) for i in pairs]
                total[..., place] += shares[:, np.arange(len(columns)), columns].sum(axis=1)
        labels: tuple[str | None, ...] = (None,) if names is None else names
        nodes = tuple(
            Node(layer, head, role)
            for layer in range(layers)
            for head in range(heads)
            for role in labels
        )
        return nodes, total.ravel() / len(self.batch)

    def _gradient_shares(self, rows: slice) -> Float[np.ndarray, "layer row pos head"]:
        kept: dict[int, Tensor] = {}

        def keep(layer: int, z: Tensor) -> Tensor:
            leaf = z.detach().requires_grad_() if layer == 0 else z
            if layer > 0:
                leaf.retain_grad()
            kept[layer] = leaf
            return leaf

        with torch.enable_grad():
            self._forward(rows, keep).sum().backward()
        heads = self.shape[1]
        shares = []
        for layer in range(self.shape[0]):
            z, gradient = kept[layer].detach(), kept[layer].grad
            if gradient is None:
                raise SiteError(
                    f"the heads of layer {layer} of {self.model.cfg.model_name} get no gradient "
                    "to be scored by; give scores of your own."
                )
            part = (gradient.flatten(2) * (z.flatten(2) - self._mean(layer, rows, z))).float()
            shares.append(part.unflatten(2, (heads, -1)).sum(dim=-1))
        real = self.batch.clean_mask[rows][:, :, None]
        return torch.stack([share * real for share in shares]).cpu().numpy()

    def _run(self, kept: Bool[Tensor, "layer pair pos head"]) -> Float[np.ndarray, " pair"]:
        self.runs += 1
        scores = []
        for rows in self._parts():

            def ablate(layer: int, z: Tensor, rows: slice = rows) -> Tensor | None:
                stay = kept[layer, rows]
                if bool(stay.all()):
                    return None
                mean = self._mean(layer, rows, z)
                wide = stay.to(z.device).repeat_interleave(mean.shape[-1] // stay.shape[-1], dim=-1)
                return torch.where(wide, z.flatten(2), mean).reshape(z.shape)

            with torch.no_grad():
                scores.append(self._forward(rows, ablate).float().cpu())
        return torch.cat(scores).numpy()

    def _mean(self, layer: int, rows: slice, z: Tensor) -> Tensor:
        kinds = self._means.kinds[rows]
        return self._means.means[layer][kinds].to(device=z.device, dtype=z.dtype)

    def _forward(
        self, rows: slice, at_heads: Callable[[int, Tensor], Tensor | None]
    ) -> Float[Tensor, " row"]:
        batch, layers = self.batch, range(self.shape[0])
        answers = torch.stack([batch.right[rows], batch.wrong[rows]], dim=1)

        def at(layer: int) -> Callable[[Tensor], Tensor | None]:
            return lambda z: at_heads(layer, z)

        with hooked((self._targets[layer], at(layer)) for layer in layers):
            logits = last_logits(self._plain, batch.clean[rows], batch.clean_mask[rows])
        clean = None if self.metric.answers_only else self._clean_logits()[rows]
        return scores(self.metric, logits, answers, clean)

    def _clean_logits(self) -> Float[Tensor, "pair vocab"]:
        if self._clean is None:
            batch = self.batch
            self._clean = last_logits_in_parts(
                self._plain, batch.clean, batch.clean_mask, max_tokens=self._max_tokens
            )
        return self._clean

    def _parts(self) -> list[slice]:
        return list(slices(self.batch.clean, self._max_tokens))


def role_column(batch: PairBatch, pair: int, role: str) -> int:
    """Return the column of a pair's role in its clean prompt; see `Ablation.column`."""
    if role == "end":
        return batch.width - 1
    roles = batch.pairs[pair].roles
    if role not in roles:
        raise DataError(
            f"pair {pair + 1} has no position {shorten(role)}; give every pair that role, or use "
            "a circuit without it"
        )
    return batch.width - int(batch.clean_mask[pair].sum()) + roles[role]
