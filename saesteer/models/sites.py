"""Sites: named places in the residual stream, and the modules that hold them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from saesteer.models.bridge import check_bridge, check_inside, holds_tokens
from saesteer.models.hooks import HookTarget, Site
from saesteer.models.loading import block_name, plain_model
from saesteer.utils.errors import SiteError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "HookTarget",
    "Site",
    "all_targets",
    "bridge_target",
    "check_site",
    "resolve_target",
]

# Laid out [head, query, key] or rotated: no vector for each token.
_NOT_PER_TOKEN = re.compile(r".*hook_(pattern|attn_scores|rot_q|rot_k|cos|sin)")


def check_site(model: TransformerBridge, site: Site) -> None:
    """Check that the model has the site, and that transformer_lens gets it right."""
    layers = model.cfg.n_layers
    if not 0 <= site.layer < layers:
        raise SiteError(
            f"site {site}: the model {model.cfg.model_name} has blocks 0 to {layers - 1}; "
            "choose one of them."
        )
    if site.between_blocks:
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
    full speed; every other site from the bridge's own hook points, and all of them if `bridged`,
    for a pass that reads several.
    """
    check_site(model, site)
    if not site.between_blocks and (
        _NOT_PER_TOKEN.fullmatch(site.hook) or not holds_tokens(model, site)
    ):
        raise SiteError(
            f"site {site} holds no vector for each token; use hook_resid_post, hook_mlp_out or "
            "attn.hook_z."
        )
    plain, name = plain_model(model), block_name(model, site.layer)
    if not bridged and site.between_blocks:
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
    if not site.between_blocks:
        return [target]
    inside = HookTarget(model.original_model, model.hook_dict[str(site)], "output", site)
    return [target, inside]
