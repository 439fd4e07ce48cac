"""Running a model with some heads kept and all others at their means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saesteer.data.checks import shorten
from saesteer.models.loading import plain_model
from saesteer.patching.circuits.circuit import Node
from saesteer.patching.circuits.counterfactuals import MeanHeads
from saesteer.patching.metrics import Metric, MetricRows, metric_named
from saesteer.patching.prompts.batch import PairBatch, position_ids
from saesteer.patching.reading.attention_view import check_heads
from saesteer.patching.reading.residual_reads import required_place
from saesteer.utils.errors import DataError, SiteError


class Ablation:
    """A model's metric on the clean prompts when heads stand at their mean.

    Heads alone are ablated; embeddings and MLPs run as they are (Wang et al. 2022).

    Args:
        model: A bridge from `load_model`.
        batch: The pairs; their clean prompts are run.
        means: From `mean_heads` on the same batch.
        metric: What to measure, by default the logit difference.
        max_tokens: The most tokens in one pass, padding included.
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
        self._place = required_place(model, "z")
        self._clean: Tensor | None = None
        self._known: dict[bytes, Float[np.ndarray, " pair"]] = {}
        self.runs = 0

    @property
    def shape(self) -> tuple[int, int]:
        """How many layers and heads the model has."""
        return int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)

    def mask(self, nodes: Iterable[Node]) -> Bool[Tensor, "layer pair pos head"]:
        """Return where nodes are: True at their heads and positions.

        Raises:
            ConfigError: The model has no such head.
            DataError: A pair has no position of a node's role.
        """
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
        """Return the column of a pair's role; "end" is the last one of every pair.

        Raises:
            DataError: The pair has no such role.
        """
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
        batch = self.batch
        name = self.model.adapter.component_mapping["blocks"].name
        with ExitStack() as hooks:
            for layer in range(self.shape[0]):
                block = self._plain.get_submodule(f"{name}.{layer}")

                def function(z: Tensor, layer: int = layer) -> Tensor | None:
                    return at_heads(layer, z)

                hooks.callback(self._place.hook(block, layer, function).remove)
            logits = self._logits(rows)
        right, wrong = batch.right[rows], batch.wrong[rows]
        if self.metric.answers_only:
            both = logits.gather(1, torch.stack([right, wrong], dim=1))
            zeros = torch.zeros_like(right)
            return self.metric.score(both, MetricRows(zeros, zeros + 1))
        return self.metric.score(logits, MetricRows(right, wrong, self._clean_logits()[rows]))

    def _logits(self, rows: slice) -> Float[Tensor, "row vocab"]:
        batch = self.batch
        return self._plain(
            input_ids=batch.clean[rows],
            attention_mask=batch.clean_mask[rows].long(),
            position_ids=position_ids(batch.clean_mask[rows]),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]

    def _clean_logits(self) -> Float[Tensor, "pair vocab"]:
        if self._clean is None:
            with torch.no_grad():
                self._clean = torch.cat([self._logits(rows) for rows in self._parts()])
        return self._clean

    def _parts(self) -> list[slice]:
        step = max(1, self._max_tokens // self.batch.width)
        count = len(self.batch)
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]


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
