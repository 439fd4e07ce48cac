"""Sites: named places in the residual stream, and the modules that hold them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saesteer.models.bridge import check_bridge, check_inside, holds_tokens
from saesteer.models.hooks import Hidden, HookTarget, Removable, SiteFunction
from saesteer.utils.errors import SiteError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "Hidden",
    "HookTarget",
    "Removable",
    "Site",
    "SiteFunction",
    "all_targets",
    "bridge_target",
    "check_site",
    "resolve_target",
]

# Laid out [head, query, key] or rotated: no vector for each token.
_NOT_PER_TOKEN = re.compile(r".*hook_(pattern|attn_scores|rot_q|rot_k|cos|sin)")
_BLOCK = re.compile(r"blocks\.(\d+)\.([\w.]+)")


@dataclass(frozen=True, order=True)
class Site:
    """One place in a model, in transformer_lens's names.

    Attributes:
        layer: The block's number, from 0.
        hook: The hook's name inside the block, such as "hook_resid_post".

    Example:
        >>> str(ss.Site(15))
        'blocks.15.hook_resid_post'
    """

    layer: int
    hook: str = "hook_resid_post"

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.hook}"

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Return the site named by text such as "blocks.10.hook_resid_post".

        Raises:
            SiteError: The text does not have that form.
        """
        if isinstance(text, Site):
            return text
        match = _BLOCK.fullmatch(str(text).strip())
        if match is None:
            raise SiteError(
                f"site {text!r} is not of the form 'blocks.10.hook_resid_post'; "
                "give the block's number and the hook's name."
            )
        return cls(int(match[1]), match[2])


def check_site(model: TransformerBridge, site: Site) -> None:
    """Check that the model has the site.

    Raises:
        SiteError: The layer is past the last one, the block has no such hook, or transformer_lens
            reads and writes it wrongly or never in this model.
    """
    layers = model.cfg.n_layers
    if not 0 <= site.layer < layers:
        raise SiteError(
            f"site {site}: the model {model.cfg.model_name} has blocks 0 to {layers - 1}; "
            "choose one of them."
        )
    if site.hook in ("hook_resid_pre", "hook_resid_post"):
        return
    if str(site) not in model.hook_dict:
        prefix = f"blocks.{site.layer}."
        near = sorted(n.removeprefix(prefix) for n in model.hook_dict if n.startswith(prefix))
        raise SiteError(
            f"site {site}: the block has no hook {site.hook!r}; use hook_resid_post or one of "
            f"{', '.join(near[:12])}, ..."
        )
    check_inside(model, site)


def resolve_target(model: TransformerBridge, site: Site, *, bridged: bool = False) -> HookTarget:
    """Return the module to hook for a site.

    The residual stream before and after a block is read from the plain Hugging Face model, at its
    full speed; every other site from the bridge's own hook points.

    Args:
        model: A model from `load_model`.
        site: Where to read or write.
        bridged: Use the bridge's hook point for every site, for a pass that reads several.

    Raises:
        SiteError: The model has no such site, it holds no vector for each token, or the bridge
            that it is read from computes another model.
    """
    from saesteer.models.loading import plain_model

    check_site(model, site)
    residual = site.hook in ("hook_resid_pre", "hook_resid_post")
    if _NOT_PER_TOKEN.fullmatch(site.hook) or not (residual or holds_tokens(model, site)):
        raise SiteError(
            f"site {site} holds no vector for each token; use hook_resid_post, hook_mlp_out or "
            "attn.hook_z."
        )
    plain = plain_model(model)
    # A mapping from the bridge: "blocks" -> "model.layers" (Llama), "transformer.h" (GPT-2), ...
    mapping: Any = model.adapter.component_mapping
    name = f"{mapping['blocks'].name}.{site.layer}"
    if not bridged and residual:
        side = "input" if site.hook == "hook_resid_pre" else "output"
        return HookTarget(plain, plain.get_submodule(name), side, site)
    block: Any = None
    if site.hook == "hook_resid_mid":
        block = model.original_model.get_submodule(name).original_component
    if bridged:
        check_bridge(model)
    return HookTarget(model.original_model, model.hook_dict[str(site)], "output", site, block)


def bridge_target(model: TransformerBridge, site: Site) -> HookTarget:
    """Return the bridge's own hook point, whose tensor is handed on as it is, heads apart.

    What is written in the middle of a block (`hook_resid_mid`) reaches the MLP alone.
    """
    if str(site) not in model.hook_dict:
        check_site(model, site)
    return HookTarget(model.original_model, model.hook_dict[str(site)], "output", site, raw=True)


def all_targets(model: TransformerBridge, site: Site) -> list[HookTarget]:
    """Return a site's modules, whichever of the plain model and the bridge is called."""
    target = resolve_target(model, site)
    if site.hook not in ("hook_resid_pre", "hook_resid_post"):
        return [target]
    inside = HookTarget(model.original_model, model.hook_dict[str(site)], "output", site)
    return [target, inside]
