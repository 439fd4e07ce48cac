"""The last residual stream to logits: by the model's own code, or taken apart into shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saesteer.models.blocks import block_lists, stood_in
from saesteer.models.hooks import standing_in
from saesteer.utils.errors import SiteError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Unembedding:
    """A model's way from the last block's output to logits, in Hugging Face's own code.

    What the model does to its logits (caps, scales) is done too.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self._place, _ = block_lists(model)
        root: Any = self._place.root
        mapping: Any = model.adapter.component_mapping
        self._name = model.cfg.model_name
        # The final norm, the unembedding and the bound of a soft cap on logits (Gemma 2).
        self.norm: nn.Module = root.get_submodule(mapping["ln_final"].name)
        self.head: Any = root.get_output_embeddings()
        self.cap: float | None = getattr(
            root.config.get_text_config(), "final_logit_softcapping", None
        )

    def logits(
        self,
        hidden: Float[Tensor, "row d_model"],
        answers: Int[Tensor, "row answer"] | None = None,
    ) -> Float[Tensor, "row column"]:
        """Return the logits that a residual stream would give if the model ended there.

        Those of the answers' token ids alone are computed, if there are any.
        """

        def of_answers(x: Tensor) -> Tensor:
            out = (x[:, :, None] * self.head.weight[answers][:, None]).sum(dim=-1)
            bias = getattr(self.head, "bias", None)
            return out if bias is None else out + bias[answers][:, None]

        root: Any = self._place.root
        # Rows of one token each: then no position is past the model's context.
        ids = torch.zeros((len(hidden), 1), dtype=torch.long, device=hidden.device)
        own = {} if answers is None else {self.head: of_answers}
        with stood_in(self._place, lambda *_: hidden[:, None].to(root.dtype)), standing_in(own):
            return root(input_ids=ids, use_cache=False).logits[:, 0].float()

    def uncapped(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Return norm and unembedding alone: what is linear once the norm's scale is held fixed."""
        made = self.head(self.norm(hidden.to(self.head.weight.dtype))).float()
        capped = self.cap * torch.tanh(made / self.cap) if self.cap else made
        if not close(capped, self.logits(hidden), self.head):
            raise SiteError(
                f"{self._name} does more than a norm and an unembedding behind its last block, so "
                "its logits do not split into shares; use the logit lens or patching on this model."
            )
        return made

    def direction(
        self, right: Int[Tensor, " row"], wrong: Int[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
        """Return what the normed stream is multiplied with to give logit differences, and a bias.

        The soft cap is left out.
        """
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        apart = (weight[right].float() - weight[wrong].float()).detach()
        if bias is None:
            return apart, torch.zeros(len(right), device=apart.device)
        return apart, (bias[right].float() - bias[wrong].float()).detach()


@dataclass(frozen=True)
class LinearNorm:
    """A norm with its scale held fixed: linear, so that each part of its input has a share."""

    # What every dimension is multiplied with, and what is added after that.
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    # What each row was divided by.
    scale: Float[Tensor, "row 1"]
    # Whether the mean over the dimensions is taken off first (LayerNorm).
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
    counts from 1, have many classes of their own: they are told apart by what the module gives, so
    that one of yet another kind is refused and not split wrongly.
    """
    weight: Any = getattr(norm, "weight", None)
    found: Any = getattr(norm, "bias", None)
    dtype = next(norm.parameters()).dtype
    with torch.no_grad():
        asked = norm(whole.to(dtype)).float()
    whole = whole.float()
    bias = None if found is None else found.detach().float()
    # torch's own RMSNorm takes the step of the dtype where none is given.
    eps = [getattr(norm, name, None) for name in ("eps", "variance_epsilon", "epsilon")]
    step = next((float(one) for one in eps if one is not None), torch.finfo(dtype).eps)
    ones = torch.ones(whole.shape[-1], device=whole.device)
    own = ones if weight is None else weight.detach().float()
    for centred in (False, True):
        base = whole - whole.mean(dim=-1, keepdim=True) if centred else whole
        scale = (base.square().mean(dim=-1, keepdim=True) + step).sqrt()
        for gain in (own, own + 1):
            fixed = LinearNorm(gain, bias, scale, centred)
            if close(fixed.share(whole) + (0 if bias is None else bias), asked, norm):
                return fixed
    raise SiteError(
        f"{type(norm).__name__} is neither LayerNorm nor RMSNorm, so it does not split into the "
        "shares of its input; use the logit lens or patching on this model."
    )


def close(made: Tensor, asked: Tensor, module: nn.Module) -> bool:
    """Return whether two ways to compute the same agree up to the rounding of a module's dtype."""
    # Half precision rounds at 2^-8 of a value; both ways round at other steps.
    fine = next(module.parameters()).dtype == torch.float32
    bound = (1e-4 if fine else 3e-2) * float(asked.abs().max()) + 1e-5
    return bool((made - asked).abs().max() <= bound)
