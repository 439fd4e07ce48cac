"""A model with some heads kept and all others at their means.

A head is ablated by its mean over prompts that say nothing about the task's answer (Wang et al.
2022, section 2: "knockouts" by the mean over the ABC distribution, taken for each template and
position by itself). Embeddings and MLPs run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.models.forward import last_logits, last_logits_in_parts, slices
from saesteer.models.hooks import hooked
from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_texts, input_device, pad_rows, padding_id
from saesteer.patching.batch import PairBatch
from saesteer.patching.circuits import Node
from saesteer.patching.metrics import Metric, metric_named, scores
from saesteer.patching.target import check_heads, required_target
from saesteer.utils.errors import DataError, SiteError

if TYPE_CHECKING:
    from saesteer.patching.ioi import IoiSet

# A group of prompts and the name of a position in them, which have a mean of their own.
Kind = tuple[int, str]


class Counterfactuals(NamedTuple):
    """Prompts to average heads over.

    Within a group in which all prompts, the pairs' clean ones too, have the same number of tokens,
    the means are taken for each position by itself; in any other for each role, for the first
    token and for all the rest together.
    """

    ids: Int[Tensor, "prompt pos"]  # Padded on the left.
    mask: Bool[Tensor, "prompt pos"]
    groups: Sequence[int]
    roles: Sequence[Mapping[str, int]]  # Every prompt's token positions by role.

    @classmethod
    def of_texts(
        cls,
        model: Any,
        texts: Sequence[str],
        *,
        groups: Sequence[int] | None = None,
        roles: Sequence[Mapping[str, int]] | None = None,
        prepend_bos: bool = True,
    ) -> Counterfactuals:
        """Tokenise counterfactual prompts, all of one group and without roles if not said."""
        rows = encode_texts(
            model.tokenizer,
            texts,
            prepend_bos=prepend_bos,
            max_length=model.cfg.n_ctx,
            what="counterfactual prompt",
        )
        batch = pad_rows(rows, padding_id(model), input_device(plain_model(model)))
        mask = batch.attention_mask.bool()
        return cls(batch.input_ids, mask, groups or [0] * len(rows), roles or [{}] * len(rows))

    @classmethod
    def of_ioi(cls, model: Any, made: IoiSet, *, prepend_bos: bool = True) -> Counterfactuals:
        """Return an IOI set's prompts with three other names, grouped by frame."""
        roles = [pair.roles for pair in made.pairs]
        return cls.of_texts(
            model, made.counterfactuals, groups=made.frames, roles=roles, prepend_bos=prepend_bos
        )

    @classmethod
    def of_corrupted(cls, batch: PairBatch) -> Counterfactuals:
        """Return a batch's corrupted prompts, for tasks without prompts to average over.

        Their roles are those of the clean prompts at the positions that stand for each other.
        """
        roles: list[dict[str, int]] = []
        for i, pair in enumerate(batch.pairs):
            first = batch.width - int(batch.corrupted_mask[i].sum())
            back = {int(a): b - first for b, a in enumerate(batch.to_clean[i].tolist()) if a >= 0}
            found = {role: back.get(batch.role_column(i, role)) for role in pair.roles}
            roles.append({role: at for role, at in found.items() if at is not None})
        return cls(batch.corrupted, batch.corrupted_mask, [0] * len(batch), roles)


class Ablation:
    """A model's metric on the clean prompts when heads stand at their mean.

    Args:
        model: A model from `load_model`.
        batch: The pairs.
        others: The prompts to average over.
        groups: Every pair's group among them; all of the first if None.
        metric: What is measured; the logit difference if None.
        max_tokens: The most tokens in one pass, padding included.

    Raises:
        DataError: A pair's group has no counterfactual prompt.
        SiteError: The model's heads cannot be told apart.
    """

    def __init__(
        self,
        model: Any,
        batch: PairBatch,
        others: Counterfactuals,
        groups: Sequence[int] | None = None,
        *,
        metric: Metric | None = None,
        max_tokens: int = 4096,
    ) -> None:
        self.model, self.batch = model, batch
        self.metric = metric or metric_named("logit_difference")
        self._max_tokens = max_tokens
        self._plain: Any = plain_model(model)
        self.shape = int(model.cfg.n_layers), int(model.cfg.n_heads)
        self._targets = [required_target(model, "z", layer) for layer in range(self.shape[0])]
        self._means, self._kinds = self._averaged(others, groups or [0] * len(batch))
        self._clean: Tensor | None = None
        self._known: dict[bytes, Float[np.ndarray, " pair"]] = {}

    def keeping(self, nodes: Iterable[Node]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair with these nodes kept and all others ablated: F(C)."""
        return self.measure(self._mask(nodes))

    def without(self, nodes: Iterable[Node]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair with these nodes ablated in the whole model: F(M - K)."""
        return self.measure(~self._mask(nodes))

    def measure(self, kept: Bool[Tensor, "layer pair pos head"]) -> Float[np.ndarray, " pair"]:
        """Return the metric of every pair, with what is not kept ablated."""
        real = self.batch.clean_mask.cpu()[None, :, :, None]
        key = np.packbits((kept & real).numpy()).tobytes()
        if key not in self._known:
            self._known[key] = self._run(kept)
        return self._known[key]

    def gradient_scores(
        self, roles: Sequence[str] | None = None
    ) -> tuple[list[Node], Float[np.ndarray, " node"]]:
        """Estimate for every head how much the mean metric falls when it alone is ablated.

        Attribution patching (Nanda 2023) towards the mean: gradient times (z - mean), from one
        forward and one backward pass. With roles every head is scored at each of them, else at all
        positions together.
        """
        shares = np.concatenate([self._shares(rows) for rows in self._parts()], axis=1)
        names: Sequence[str | None] = [None] if roles is None else roles
        scores = []
        for role in names:
            if role is None:
                scores.append(shares.sum(axis=(1, 2)))
            else:
                columns = [self.batch.role_column(i, role) for i in range(len(self.batch))]
                scores.append(shares[:, np.arange(len(columns)), columns].sum(axis=1))
        layers, heads = map(range, self.shape)
        nodes = [Node(layer, head, role) for layer in layers for head in heads for role in names]
        return nodes, np.stack(scores, axis=-1).ravel() / len(self.batch)

    def _mask(self, nodes: Iterable[Node]) -> Bool[Tensor, "layer pair pos head"]:
        layers, heads = self.shape
        found = torch.zeros(layers, len(self.batch), self.batch.width, heads, dtype=torch.bool)
        for node in nodes:
            check_heads(self.model, [(node.layer, node.head)])
            if node.role is None:
                found[node.layer, :, :, node.head] = True
                continue
            columns = [self.batch.role_column(i, node.role) for i in range(len(self.batch))]
            found[node.layer, torch.arange(len(columns)), columns, node.head] = True
        return found

    def _shares(self, rows: slice) -> Float[np.ndarray, "layer row pos head"]:
        """Return gradient times (z - mean) of every head and position; 0 at padding."""
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
        for layer, leaf in kept.items():
            z, gradient = leaf.detach(), leaf.grad
            if gradient is None:
                raise SiteError(
                    f"the heads of layer {layer} of {self.model.cfg.model_name} get no gradient "
                    "to be ranked by; name circuit.heads to test a circuit of your own."
                )
            part = (gradient.flatten(2) * (z.flatten(2) - self._mean(layer, rows, z))).float()
            shares.append(part.unflatten(2, (heads, -1)).sum(dim=-1))
        real = self.batch.clean_mask[rows][:, :, None]
        return torch.stack([share * real for share in shares]).cpu().numpy()

    def _run(self, kept: Bool[Tensor, "layer pair pos head"]) -> Float[np.ndarray, " pair"]:
        found = []
        for rows in self._parts():

            def ablate(layer: int, z: Tensor, rows: slice = rows) -> Tensor | None:
                stay = kept[layer, rows]
                if bool(stay.all()):
                    return None
                mean = self._mean(layer, rows, z)
                wide = stay.to(z.device).repeat_interleave(mean.shape[-1] // stay.shape[-1], dim=-1)
                return torch.where(wide, z.flatten(2), mean).reshape(z.shape)

            with torch.no_grad():
                found.append(self._forward(rows, ablate).float().cpu())
        return torch.cat(found).numpy()

    def _mean(self, layer: int, rows: slice, z: Tensor) -> Tensor:
        return self._means[layer][self._kinds[rows]].to(device=z.device, dtype=z.dtype)

    def _forward(
        self, rows: slice, at_heads: Callable[[int, Tensor], Tensor | None]
    ) -> Float[Tensor, " row"]:
        batch = self.batch

        def at(layer: int) -> Callable[[Tensor], Tensor | None]:
            return lambda z: at_heads(layer, z)

        with hooked((target, at(layer)) for layer, target in enumerate(self._targets)):
            logits = last_logits(self._plain, batch.clean[rows], batch.clean_mask[rows])
        if self._clean is None and not self.metric.answers_only:
            self._clean = last_logits_in_parts(
                self._plain, batch.clean, batch.clean_mask, max_tokens=self._max_tokens
            )
        clean = None if self._clean is None else self._clean[rows]
        answers = torch.stack([batch.right[rows], batch.wrong[rows]], dim=1)
        return scores(self.metric, logits, answers, clean)

    def _parts(self) -> list[slice]:
        return list(slices(self.batch.clean, self._max_tokens))

    def _averaged(
        self, others: Counterfactuals, groups: Sequence[int]
    ) -> tuple[Float[Tensor, "layer kind columns"], Int[Tensor, "pair pos"]]:
        """Return every kind's mean output of all heads, and which kind each column is."""
        absent = sorted(set(groups) - set(others.groups))
        if absent:
            raise DataError(
                f"group {absent[0]} of the pairs has no counterfactual prompt; give at least one "
                "of every group"
            )
        batch, lengths = self.batch, {}
        for own, mask in ((groups, batch.clean_mask), (others.groups, others.mask)):
            for group, length in zip(own, mask.sum(1).tolist(), strict=True):
                lengths.setdefault(group, set()).add(length)
        uniform = {group for group, found in lengths.items() if len(found) == 1}
        there = _kinds(others.mask, others.groups, others.roles, uniform)
        numbers = {kind: i for i, kind in enumerate(sorted({k for row in there for k in row if k}))}
        places = torch.tensor([[numbers[k] if k else -1 for k in row] for row in there])
        wanted = _kinds(batch.clean_mask, groups, [pair.roles for pair in batch.pairs], uniform)
        kinds = torch.tensor([[_number(kind, numbers) for kind in row] for row in wanted])
        means = self._kind_means(others, places.to(others.ids.device), len(numbers))
        return means, kinds.to(means.device)

    def _kind_means(
        self, others: Counterfactuals, places: Int[Tensor, "prompt pos"], count: int
    ) -> Float[Tensor, "layer kind columns"]:
        sums: dict[int, Tensor] = {}

        def adder(layer: int, real: Tensor, index: Tensor) -> Callable[[Tensor], None]:
            def add(z: Tensor) -> None:
                z = z.float()
                total = sums.setdefault(layer, z.new_zeros(count, z.shape[-1]))
                total.index_add_(0, index.to(z.device), z[real.to(z.device)])

            return add

        for rows in slices(places, self._max_tokens):
            real = others.mask[rows]
            targets = enumerate(self._targets)
            adders = [(target, adder(at, real, places[rows][real])) for at, target in targets]
            with torch.no_grad(), hooked(adders):
                last_logits(self._plain, others.ids[rows], real)
        seen = places[places >= 0].bincount(minlength=count).clamp(min=1)
        stacked = torch.stack([sums[layer].to(places.device) for layer in range(self.shape[0])])
        return stacked / seen[None, :, None]


def _kinds(
    mask: Bool[Tensor, "row pos"],
    groups: Sequence[int],
    roles: Sequence[Mapping[str, int]],
    uniform: set[int],
) -> list[list[Kind | None]]:
    """Return the kind of every column; None at padding."""
    width = mask.shape[1]
    table: list[list[Kind | None]] = []
    for real, group, named in zip(mask.sum(1).tolist(), groups, roles, strict=True):
        if group in uniform:
            own = [(group, str(at)) for at in range(real)]
        else:
            own = [(group, "first"), *((group, "rest") for _ in range(real - 1))]
            for role, at in named.items():
                own[at] = (group, f"role {role}")
            own[-1] = (group, "role end")
        table.append([None] * (width - real) + own)
    return table


def _number(kind: Kind | None, numbers: Mapping[Kind, int]) -> int:
    if kind is None:
        return 0
    # A role that no counterfactual prompt has is one position among the rest.
    for name in (kind[1], "rest", "first", "role end"):
        if (kind[0], name) in numbers:
            return numbers[kind[0], name]
    raise DataError(
        f"the counterfactual prompts of group {kind[0]} have no position {kind[1]}; give prompts "
        "of the same length"
    )
