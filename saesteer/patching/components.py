"""What can be patched, and in which module of a block each component lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.data.checks import did_you_mean, shorten, spoken_list
from saesteer.models.bridge import bridge_difference
from saesteer.models.loading import plain_model
from saesteer.models.sites import HookTarget, Removable, Site, check_site
from saesteer.utils.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RESIDUAL = ("resid_pre", "resid_post")
BY_COLUMN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
BY_HEAD = ("z", "q", "k", "v", "pattern")
COMPONENTS = (*BY_COLUMN, *BY_HEAD, "sae")

# The bridge's names, which are transformer_lens's own.
_HOOKS = {"z": "attn.hook_z", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v"}
_HOOKS |= {"pattern": "attn.hook_pattern"}


def check_component(component: str) -> None:
    """Check that a component can be patched.

    Raises:
        ConfigError: It cannot; the sentence lists those that can.
    """
    if component not in COMPONENTS:
        raise ConfigError(
            f"component is {shorten(component)}{did_you_mean(str(component), COMPONENTS)}; choose "
            f"one of {spoken_list(COMPONENTS)}."
        )


def hook_name(component: str, layer: int) -> str:
    """Return a component's hook point on the bridge, such as "blocks.3.attn.hook_z"."""
    return f"blocks.{layer}.{_HOOKS.get(component, f'hook_{component}')}"


def check_per_token(whole: Tensor, what: str) -> None:
    """Check that an activation is laid out by prompt and token.

    Raises:
        SiteError: It is not: some architectures (OPT) lay the tokens of all prompts end to end.
    """
    if whole.ndim < 3:
        raise SiteError(f"{what} holds no vector for each token; choose another component.")


def component_of(site: Site) -> str:
    """Return the component that a site of an SAE is.

    Raises:
        SiteError: Nothing at that site can be patched.
    """
    for component in (*BY_COLUMN, "z", "q", "k", "v"):
        if str(site) == hook_name(component, site.layer):
            return component
    raise SiteError(
        f"site {site}: SAE features are patched in the residual stream, in attention and MLP "
        "outputs and in heads (hook_z, hook_q, hook_k, hook_v); choose an SAE trained there."
    )


@dataclass(frozen=True)
class Place:
    """Where a component lives in a block of the plain Hugging Face model.

    Attributes:
        path: The module's name inside the block; "" for the block itself.
        side: Whether the component is the module's input or output.
        start: Its first column in the last dimension.
        heads: Its number of heads; None for a component without.
        width: How many columns it has; None for all.
    """

    path: str
    side: Literal["input", "output"]
    start: int = 0
    width: int | None = None
    heads: int | None = None

    def read(self, whole: Float[Tensor, "row pos columns"]) -> Float[Tensor, "row pos width"]:
        """Return the component's own columns."""
        stop = whole.shape[-1] if self.width is None else self.start + self.width
        return whole[..., self.start : stop]

    def written(
        self,
        whole: Float[Tensor, "row pos columns"],
        own: Float[Tensor, "row pos width"],
    ) -> Float[Tensor, "row pos columns"]:
        """Return the module's tensor with the component's columns replaced."""
        if own.shape == whole.shape:
            return own
        stop = self.start + own.shape[-1]
        return torch.cat([whole[..., : self.start], own, whole[..., stop:]], dim=-1)

    def hook(
        self, block: nn.Module, layer: int, function: Callable[[Tensor], Tensor | None]
    ) -> Removable:
        """Call `function` with the component in a block; what it returns takes its place."""

        def on_whole(whole: Tensor) -> Tensor | None:
            check_per_token(whole, f"{self.path} of block {layer}")
            own = function(self.read(whole))
            return None if own is None else self.written(whole, own)

        module = block.get_submodule(self.path)
        return HookTarget(block, module, self.side, Site(layer)).hook(on_whole)


def check_there(model: TransformerBridge, component: str, layers: Sequence[int]) -> None:
    """Check that a component is in all of these layers, and is what its name says.

    Args:
        model: A model from `load_model`.
        component: One of `COMPONENTS` but "sae".
        layers: The layers, which need not all be of one kind.

    Raises:
        SiteError: It is not.
    """
    if component in RESIDUAL:
        return
    count = int(model.cfg.n_layers)
    having = [i for i in range(count) if hook_name(component, i) in model.hook_dict]
    if component not in (*RESIDUAL, "pattern"):
        having = [i for i in having if _is_there(model, component, i)]
    lacking = [layer for layer in layers if layer not in having]
    if lacking and having:
        raise SiteError(
            f"component {component!r}: layer {lacking[0]} of {model.cfg.model_name} has none, as "
            f"its layers differ; give layers out of {', '.join(map(str, having))}."
        )
    if lacking:
        raise SiteError(
            f"component {component!r}: the blocks of {model.cfg.model_name} have no such part; "
            "choose resid_pre, resid_post or another one that they have."
        )
    if component == "resid_mid":
        for layer in layers:
            check_site(model, Site(layer, "hook_resid_mid"))


def check_bridge_alike(model: TransformerBridge, what: str) -> None:
    """Refuse what runs in the bridge alone where the bridge computes another model.

    Args:
        model: A model from `load_model`.
        what: What was asked for, such as "attribution".

    Raises:
        SiteError: It does, with the difference.
    """
    difference = bridge_difference(model)
    if difference is None:
        return
    how = (
        "cannot run it"
        if difference == float("inf")
        else (f"computes another model (its logits differ by {difference:.2g} of their spread)")
    )
    raise SiteError(
        f"{what} of {model.cfg.model_name} needs transformer_lens's bridge, which {how}; use "
        "activation patching of resid_pre or resid_post, or the logit lens."
    )


def _is_there(model: TransformerBridge, component: str, layer: int) -> bool:
    block = plain_blocks(model)[layer]
    place = find_place(model, component, layer)
    return place is None or place.path in dict(block.named_modules())


def plain_blocks(model: TransformerBridge) -> nn.ModuleList:
    """Return the plain model's blocks."""
    mapping: Any = model.adapter.component_mapping
    found: Any = plain_model(model).get_submodule(mapping["blocks"].name)
    return found


def find_place(model: TransformerBridge, component: str, layer: int = 0) -> Place | None:
    """Return where a component lives in one of the plain model's blocks, from the bridge's hooks.

    Args:
        model: A model from `load_model`.
        component: One of `COMPONENTS` but "pattern" and "sae", which are no module's tensor.
        layer: The block's number.

    Returns:
        The place; None where the plain model has no module that holds it, so that only the bridge
        can patch it.

    Raises:
        SiteError: The architecture's blocks have no such component.
    """
    if component in RESIDUAL:
        return Place("", "input" if component == "resid_pre" else "output")
    name = hook_name(component, layer)
    if name not in model.hook_dict:
        raise SiteError(
            f"component {component!r}: layer {layer} of {model.cfg.model_name} has no such part; "
            "choose resid_pre, resid_post or another one that it has."
        )
    heads = heads_of(model, component) if component in BY_HEAD else None
    # A hook point goes by its module's name, such as blocks.0.ln1_post.hook_out.
    *path, end = str(model.hook_dict[name].name).split(".")[2:]
    found = _module_path(model, path, layer)
    if found is None or end not in ("hook_in", "hook_out"):
        return _joint_place(model, component, heads, layer)
    return Place(found, "input" if end == "hook_in" else "output", heads=heads)


def heads_of(model: TransformerBridge, component: str) -> int:
    """Return how many heads a component has; keys and values may be shared by several queries."""
    shared = getattr(model.cfg, "n_key_value_heads", None)
    return int(shared or model.cfg.n_heads) if component in ("k", "v") else int(model.cfg.n_heads)


def _module_path(model: TransformerBridge, path: list[str], layer: int) -> str | None:
    """Return the plain model's name, inside a block, of a module that the bridge calls `path`."""
    mapping: Any = model.adapter.component_mapping
    part, names = mapping["blocks"], []
    for step in path:
        part = (getattr(part, "submodules", None) or {}).get(step)
        if part is None or not part.name:
            return None
        names.append(part.name)
    block = plain_blocks(model)[layer]
    found = ".".join(names)
    return found if found and found in dict(block.named_modules()) else None


def _joint_place(
    model: TransformerBridge, component: str, heads: int | None, layer: int
) -> Place | None:
    # GPT-2 keeps queries, keys and values side by side; others interleave them head by head.
    joint = _module_path(model, ["attn", "qkv"], layer)
    if component not in ("q", "k", "v") or joint is None or not joint.endswith(".c_attn"):
        return None
    width = int(model.cfg.d_model)
    start = ("q", "k", "v").index(component) * width
    return Place(joint, "output", start, width, heads)
