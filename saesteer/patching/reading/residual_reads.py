"""Reading the residual stream and what is written into it, and taking it to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saesteer.models.loading import plain_model
from saesteer.patching.components import Place, check_there, find_place
from saesteer.patching.prompts.batch import PairBatch, position_ids
from saesteer.utils.errors import HookError, SiteError

Side = Literal["clean", "corrupted"]


@dataclass(frozen=True)
class LinearNorm:
    """A norm with its scale held fixed: then it is linear, and each part of its input has a share.

    Attributes:
        gain: The weight that every dimension is multiplied with.
        bias: What is added after it; None for no bias.
        scale: What each row was divided by.
        centred: Whether the mean over the dimensions is taken off first (LayerNorm).
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    scale: Float[Tensor, "row 1"]
    centred: bool

    def share(
        self, part: Float[Tensor, "*parts row d_model"]
    ) -> Float[Tensor, "*parts row d_model"]:
        """Return what a part of the norm's input becomes, the bias left out."""
        if self.centred:
            part = part - part.mean(dim=-1, keepdim=True)
        return part / self.scale * self.gain


def linear_norm(norm: nn.Module, whole: Float[Tensor, "row d_model"]) -> LinearNorm:
    """Return a norm with the scale that it has on these rows.

    LayerNorm (Ba et al. 2016), RMSNorm (Zhang and Sennrich 2019) and Gemma's RMSNorm, whose weight
    counts from 1, are told apart by what the module itself gives.

    Raises:
        SiteError: The module is none of them.
    """
    with torch.no_grad():
        asked = norm(whole.to(next(norm.parameters()).dtype)).float()
    whole = whole.float()
    weight: Any = getattr(norm, "weight", None)
    found: Any = getattr(norm, "bias", None)
    bias = None if found is None else found.detach().float()
    eps = _epsilon(norm)
    ones = torch.ones(whole.shape[-1], device=whole.device)
    own = ones if weight is None else weight.detach().float()
    for centred in (False, True):
        base = whole - whole.mean(dim=-1, keepdim=True) if centred else whole
        scale = (base.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        for gain in (own, own + 1):
            fixed = LinearNorm(gain, bias, scale, centred)
            made = fixed.share(whole) + (0 if bias is None else bias)
            if _close(made, asked, norm):
                return fixed
    raise SiteError(
        f"{type(norm).__name__} is neither LayerNorm nor RMSNorm, so it does not split into the "
        "shares of its input; use the logit lens or patching on this model."
    )


def _epsilon(norm: nn.Module) -> float:
    for name in ("eps", "variance_epsilon", "epsilon"):
        found: Any = getattr(norm, name, None)
        if found is not None:
            return float(found)
    # torch's own RMSNorm takes the step of the dtype where none is given.
    return torch.finfo(next(norm.parameters()).dtype).eps


@dataclass(frozen=True)
class Unembedding:
    """From the last block's output to logits: the final norm, the matrix and the model's cap.

    Attributes:
        norm: The final norm.
        head: The unembedding.
        cap: The bound of the model's soft cap on logits (Gemma 2); None for none.
    """

    norm: nn.Module
    head: nn.Module
    cap: float | None = None

    def logits(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return the logits that a residual stream would give if the model ended there."""
        logits = self.head(self.norm(stream.to(self.dtype))).float()
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the unembedding computes in."""
        return next(self.head.parameters()).dtype

    def direction(
        self, right: Int[Tensor, " row"], wrong: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
        """Return what the normed stream is multiplied with to give logit differences, and a bias.

        The soft cap is left out.
        """
        weight: Any = self.head.weight
        bias: Any = getattr(self.head, "bias", None)
        apart = (weight[right].float() - weight[wrong].float()).detach()
        if bias is None:
            return apart, torch.zeros(len(right), device=apart.device)
        return apart, (bias[right].float() - bias[wrong].float()).detach()


def find_unembedding(model: Any) -> Unembedding:
    """Return a model's way from the last block's output to logits."""
    plain: Any = plain_model(model)
    mapping: Any = model.adapter.component_mapping
    cap = getattr(plain.config.get_text_config(), "final_logit_softcapping", None)
    return Unembedding(
        plain.get_submodule(mapping["ln_final"].name),
        plain.get_output_embeddings(),
        None if not cap else float(cap),
    )


@dataclass(frozen=True)
class Reads:
    """What one forward pass over some rows left behind.

    Attributes:
        rows: Which rows of the batch.
        parts: For every component and layer its values, [row, pos, width] in float32; the last
            position alone where that was asked for.
        logits: The model's own logits behind the last token.
    """

    rows: slice
    parts: dict[tuple[str, int], Float[Tensor, "row pos width"]]
    logits: Float[Tensor, "row vocab"]


def read_components(
    model: Any,
    batch: PairBatch,
    side: Side,
    wanted: Sequence[tuple[str, int]],
    *,
    last_only: bool = True,
    max_tokens: int = 4096,
) -> Iterator[Reads]:
    """Run one side's prompts and yield components, a few rows at a time.

    Args:
        model: A bridge from `load_model`.
        batch: The pairs.
        side: Which prompts.
        wanted: Components (see `required_place`) with their layers.
        last_only: Read at the answer's position alone.
        max_tokens: The most tokens in one pass, padding included.

    Raises:
        SiteError: The model has no such component.
    """
    places = {(name, layer): required_place(model, name, (layer,)) for name, layer in wanted}
    ids, mask = side_tokens(batch, side)
    plain: Any = plain_model(model)
    name = model.adapter.component_mapping["blocks"].name
    step = max(1, max_tokens // batch.width)
    for start in range(0, len(batch), step):
        rows = slice(start, min(start + step, len(batch)))
        parts: dict[tuple[str, int], Tensor] = {}
        with torch.no_grad(), ExitStack() as hooks:
            for component, layer in wanted:
                block = plain.get_submodule(f"{name}.{layer}")
                keep = _keeper(parts, (component, layer), last_only)
                hooks.callback(places[component, layer].hook(block, layer, keep).remove)
            logits = plain(
                input_ids=ids[rows],
                attention_mask=mask[rows].long(),
                position_ids=position_ids(mask[rows]),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        missing = [key for key in wanted if key not in parts]
        if missing:
            raise HookError(
                f"{missing[0][0]} of layer {missing[0][1]} was never computed by the model, so it "
                "cannot be read; choose another component."
            )
        yield Reads(rows, parts, logits.float())


def side_tokens(
    batch: PairBatch, side: Side
) -> tuple[Int[Tensor, "pair pos"], Bool[Tensor, "pair pos"]]:
    """Return the token ids and the mask of one side."""
    if side == "clean":
        return batch.clean, batch.clean_mask
    return batch.corrupted, batch.corrupted_mask


def required_place(model: Any, component: str, layers: Sequence[int] | None = None) -> Place:
    """Return where a component lives in the plain model's blocks.

    Args:
        model: A bridge from `load_model`.
        component: Which one.
        layers: The layers that must have it in the same module; all if None.

    Raises:
        SiteError: They do not.
    """
    chosen = range(int(model.cfg.n_layers)) if layers is None else layers
    check_there(model, component, chosen)
    places = {find_place(model, component, layer) for layer in chosen}
    place = places.pop()
    if place is None or places:
        raise SiteError(
            f"component {component!r} of {model.cfg.model_name} is no tensor of a module, so it "
            "cannot be read here; use activation patching on this model."
        )
    return place


def has_component(model: Any, component: str) -> bool:
    """Return whether all of the plain model's blocks have a component of their own."""
    try:
        required_place(model, component)
    except SiteError:
        return False
    return True


def check_unembedding(
    model: Any, unembedding: Unembedding, stream: Float[Tensor, "row d_model"], logits: Tensor
) -> None:
    """Check that the last block's output gives the model's own logits.

    Raises:
        SiteError: It does not, as where a model scales its logits in a way of its own.
    """
    # no_grad, so that a lens on a thousand rows keeps no graph.
    with torch.no_grad():
        made = unembedding.logits(stream)
    if not _close(made, logits.float(), unembedding.head):
        raise SiteError(
            f"{model.cfg.model_name} does more than a norm and an unembedding behind its last "
            "block, so intermediate layers cannot be read as logits; use patching on this model."
        )


def _keeper(
    parts: dict[tuple[str, int], Tensor], key: tuple[str, int], last_only: bool
) -> Callable[[Tensor], None]:
    def keep(own: Tensor) -> None:
        found = own[:, -1:] if last_only else own
        parts[key] = found.detach().float().flatten(2).clone()

    return keep


def _close(made: Tensor, asked: Tensor, module: nn.Module) -> bool:
    # Half precision rounds at 2^-8 of a value; both ways round at other steps.
    fine = next(module.parameters()).dtype == torch.float32
    bound = (1e-4 if fine else 3e-2) * float(asked.abs().max()) + 1e-5
    return bool((made - asked).abs().max() <= bound)
