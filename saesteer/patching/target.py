"""What can be patched, where it lives in the model, and the checks of what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import nn

from saesteer.models.bridge import bridge_difference
from saesteer.models.hooks import HookTarget
from saesteer.models.loading import plain_model
from saesteer.models.sites import Site, check_site
from saesteer.patching.batch import PairBatch
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.utils.errors import ConfigError, SiteError
from saesteer.utils.text import did_you_mean, shorten, spoken_list

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RESIDUAL = ("resid_pre", "resid_post")
BY_COLUMN = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
BY_HEAD = ("z", "q", "k", "v", "pattern")
COMPONENTS = (*BY_COLUMN, *BY_HEAD, "sae")

# The bridge's names, which are transformer_lens's own.
_IN_ATTENTION = {"z": "hook_z", "q": "hook_q", "k": "hook_k", "v": "hook_v"}
_IN_ATTENTION |= {"pattern": "hook_pattern"}

Clusters = Mapping[Any, Sequence[int]]


@dataclass(frozen=True)
class Target:
    """What is patched: a component at some layers, of it some heads, or an SAE's features."""

    component: str
    layers: tuple[int, ...]
    # Which heads; all if None.
    heads: tuple[int, ...] | None = None
    sae: Sae | None = None
    # The SAE's features to patch one by one; those that differ anywhere if None.
    features: tuple[int, ...] | None = None
    # Features to patch together, by name, in place of single ones.
    clusters: Clusters | None = None

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        component: str,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        sae: Sae | None = None,
        features: Sequence[int] | None = None,
        clusters: Clusters | None = None,
    ) -> Target:
        """Return what is asked for, checked against the model."""
        if component not in COMPONENTS:
            raise ConfigError(
                f"component is {shorten(component)}{did_you_mean(str(component), COMPONENTS)}; "
                f"choose one of {spoken_list(COMPONENTS)}."
            )
        for name, value in {"sae": sae, "features": features, "clusters": clusters}.items():
            if component != "sae" and value is not None:
                raise ConfigError(
                    f"{name}: component {component!r} has no features; leave {name} out or use "
                    "component 'sae'."
                )
        if heads is not None and component not in BY_HEAD:
            raise ConfigError(
                f"heads: component {component!r} has none; leave heads out or use one of z, q, k, "
                "v and pattern."
            )
        if component == "sae":
            return cls._of_sae(model, layers, sae, features, clusters)
        chosen = None if heads is None else _in_range("heads", heads, heads_of(model, component))
        count = int(model.cfg.n_layers)
        at = _in_range("layers", range(count) if layers is None else layers, count)
        check_there(model, component, at)
        return cls(component, at, chosen)

    @classmethod
    def _of_sae(
        cls,
        model: TransformerBridge,
        layers: Sequence[int] | None,
        sae: Sae | None,
        features: Sequence[int] | None,
        clusters: Clusters | None,
    ) -> Target:
        if sae is None:
            raise ConfigError("sae: component 'sae' needs an SAE; give one.")
        if features is not None and clusters is not None:
            raise ConfigError("features and clusters exclude each other; give one of the two.")
        if clusters is not None and not clusters:
            raise ConfigError("clusters: there is no cluster; name at least one.")
        check_compatible(model, sae)
        own = (sae.write_site.layer,)
        if layers is not None and tuple(layers) != own:
            raise ConfigError(
                f"layers: SAE {sae.name} writes at layer {own[0]} alone; leave layers out."
            )
        for site in (sae.site, sae.write_site):
            check_there(model, component_of(site), (site.layer,))
        for name, members in (clusters or {}).items():
            check_features(sae, members, f"cluster {shorten(str(name))}")
        chosen = None
        if features is not None:
            chosen = tuple(dict.fromkeys(int(f) for f in features))
            check_features(sae, chosen, "features")
        return cls("sae", own, None, sae, chosen, clusters)

    @property
    def has_heads(self) -> bool:
        """Whether heads are patched one by one."""
        return self.component in BY_HEAD

    @property
    def read_site(self) -> tuple[str, tuple[int, ...]]:
        """Which component of the unpatched runs the patch is made from, at which layers."""
        if self.sae is None:
            return self.component, self.layers
        return component_of(self.sae.site), (self.sae.site.layer,)

    @property
    def written(self) -> str:
        """Which component is written."""
        return self.component if self.sae is None else component_of(self.sae.write_site)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it is written."""
        return tuple(site_of(self.written, layer) for layer in self.layers)

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Every component that is read or written, with its layer."""
        component, layers = self.read_site
        read = [(component, layer) for layer in layers]
        return tuple(dict.fromkeys((*read, *((self.written, layer) for layer in self.layers))))

    @property
    def axis(self) -> str:
        """What cells of a layer are called."""
        if self.has_heads:
            return "head"
        return "feature" if self.clusters is None else "cluster"


def chosen_columns(
    batch: PairBatch, component: str, positions: Sequence[int] | None, by_position: bool
) -> Int[np.ndarray, " position"] | None:
    """Return the columns to patch one at a time; None to patch all of them together."""
    if component not in BY_COLUMN and not by_position:
        if positions is not None:
            raise ConfigError(
                f"positions: component {component!r} is patched at all of them; add "
                "by_position=True to patch one at a time."
            )
        return None
    numbers = range(batch.width) if positions is None else positions
    return np.asarray(_in_range("positions", numbers, batch.width), dtype=np.int64)


def _in_range(name: str, numbers: Sequence[int], count: int) -> tuple[int, ...]:
    if not len(numbers):
        raise ConfigError(f"{name}: there is none; name at least one of 0 to {count - 1}.")
    chosen = tuple(int(number) for number in numbers)
    for number in chosen:
        if not 0 <= number < count:
            raise ConfigError(f"{name}: {number} is not there; choose from 0 to {count - 1}.")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"{name}: a number stands there twice; name each once.")
    return chosen


def check_features(sae: Sae, features: Sequence[int], what: str) -> None:
    """Refuse features that are not in an SAE; `what` is what they are called in the error."""
    if not features:
        raise ConfigError(f"{what}: there is no feature to patch; name at least one.")
    for feature in features:
        if not 0 <= int(feature) < sae.d_sae:
            raise ConfigError(
                f"{what}: {feature} is not in SAE {sae.name}, which has features 0 to "
                f"{sae.d_sae - 1}; choose one of them."
            )


def check_heads(model: TransformerBridge, heads: Sequence[tuple[int, int]]) -> None:
    """Refuse heads, as (layer, head), that the model has not."""
    if not heads:
        raise ConfigError("no head is given; name at least one, as (layer, head)")
    layers, count = int(model.cfg.n_layers), int(model.cfg.n_heads)
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise ConfigError(
                f"head {layer}.{head}: the model {model.cfg.model_name} has layers 0 to "
                f"{layers - 1} with heads 0 to {count - 1}; choose one of them"
            )


def site_of(component: str, layer: int) -> Site:
    """Return a component's site, such as blocks.3.attn.hook_z."""
    if component in _IN_ATTENTION:
        return Site(layer, f"attn.{_IN_ATTENTION[component]}")
    return Site(layer, f"hook_{component}")


def component_of(site: Site) -> str:
    """Return the component that a site of an SAE is."""
    for component in (*BY_COLUMN, "z", "q", "k", "v"):
        if site == site_of(component, site.layer):
            return component
    raise SiteError(
        f"site {site}: SAE features are patched in the residual stream, in attention and MLP "
        "outputs and in heads (hook_z, hook_q, hook_k, hook_v); choose an SAE trained there."
    )


def check_there(model: TransformerBridge, component: str, layers: Sequence[int]) -> None:
    """Refuse a component that is not in all of these layers, or not what its name says."""
    if component in RESIDUAL:
        return
    # The bridge gathers its hooks anew each time it is asked for them.
    hooks, blocks = model.hook_dict, plain_blocks(model)
    having = [i for i in range(len(blocks)) if str(site_of(component, i)) in hooks]
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
            check_site(model, site_of(component, layer))


def check_bridge_alike(model: TransformerBridge, what: str) -> None:
    """Refuse what runs in the bridge alone, such as "attribution", where the bridge computes
    another model.
    """
    difference = bridge_difference(model)
    if difference is None:
        return
    how = (
        "cannot run it"
        if difference == float("inf")
        else f"computes another model (its logits differ by {difference:.2g} of their spread)"
    )
    raise SiteError(
        f"{what} of {model.cfg.model_name} needs transformer_lens's bridge, which {how}; use "
        "activation patching of resid_pre or resid_post, or the logit lens."
    )


def plain_blocks(model: TransformerBridge) -> nn.ModuleList:
    """Return the plain model's blocks."""
    mapping: Any = model.adapter.component_mapping
    found: Any = plain_model(model).get_submodule(mapping["blocks"].name)
    return found


def heads_of(model: TransformerBridge, component: str) -> int:
    """Return how many heads a component has; keys and values may be shared by several queries."""
    shared = getattr(model.cfg, "n_key_value_heads", None)
    return int(shared or model.cfg.n_heads) if component in ("k", "v") else int(model.cfg.n_heads)


def find_target(model: TransformerBridge, component: str, layer: int) -> HookTarget | None:
    """Return where a component lives in one of the plain model's blocks, from the bridge's hooks.

    None where no module of the plain model holds it (attention patterns), so that only the bridge
    can patch it.
    """
    plain, block = plain_model(model), plain_blocks(model)[layer]
    site = site_of(component, layer)
    if component in RESIDUAL:
        return HookTarget(plain, block, "input" if component == "resid_pre" else "output", site)
    if component == "pattern":
        return None
    hook = model.hook_dict.get(str(site))
    if hook is None:
        raise SiteError(
            f"component {component!r}: layer {layer} of {model.cfg.model_name} has no such part; "
            "choose resid_pre, resid_post or another one that it has."
        )
    # A hook point goes by its module's name, such as blocks.0.ln1_post.hook_out.
    *names, end = str(hook.name).split(".")[2:]
    path = _plain_path(model, names, layer)
    if path and end in ("hook_in", "hook_out"):
        side = "input" if end == "hook_in" else "output"
        return HookTarget(plain, block.get_submodule(path), side, site)
    # GPT-2 keeps queries, keys and values side by side; others interleave them head by head.
    joint = _plain_path(model, ["attn", "qkv"], layer)
    if component not in ("q", "k", "v") or joint is None or not joint.endswith(".c_attn"):
        return None
    width = int(model.cfg.d_model)
    start = ("q", "k", "v").index(component) * width
    return HookTarget(plain, block.get_submodule(joint), "output", site, start=start, width=width)


def required_target(model: TransformerBridge, component: str, layer: int) -> HookTarget:
    """Return where a component lives in the plain model's blocks."""
    found = find_target(model, component, layer)
    if found is None:
        raise SiteError(
            f"component {component!r} of {model.cfg.model_name} is no tensor of a module, so it "
            "cannot be read here; use activation patching on this model."
        )
    return found


def has_component(model: TransformerBridge, component: str) -> bool:
    """Return whether all of the plain model's blocks have a component of their own."""
    layers = range(model.cfg.n_layers)
    try:
        check_there(model, component, layers)
        return all(find_target(model, component, layer) is not None for layer in layers)
    except SiteError:
        return False


def _plain_path(model: TransformerBridge, names: list[str], layer: int) -> str | None:
    """Return the plain model's name, inside a block, of what the bridge calls by these names."""
    mapping: Any = model.adapter.component_mapping
    part, found = mapping["blocks"], []
    for name in names:
        part = (getattr(part, "submodules", None) or {}).get(name)
        if part is None or not part.name:
            return None
        found.append(part.name)
    path = ".".join(found)
    return path if path and path in dict(plain_blocks(model)[layer].named_modules()) else None
