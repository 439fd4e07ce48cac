"""Patches of SAE features: a feature's difference times its decoder row, the SAE's error kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saesteer.data.checks import shorten
from saesteer.patching.engine.patches import Own, at_columns
from saesteer.patching.engine.rows import Touched
from saesteer.saes.adapter import Sae
from saesteer.utils.errors import ConfigError

Clusters = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class SaePatch:
    """Adds what features differ by between source and destination.

    Attributes:
        component: The component that the SAE writes to.
        difference: Source less destination code at the destination's columns; 0 where it has no
            counterpart.
        decoder: Every feature's direction.
        members: For every label the features that are patched together; None where every feature
            is a label of its own.
    """

    component: str
    difference: Float[Tensor, "pair pos feature"]
    decoder: Float[Tensor, "feature width"]
    members: tuple[Int[Tensor, " member"], ...] | None = None

    def edited(self, now: Own, rows: Touched, layer: int, first: int) -> Own:
        """Return the component's values after the patch; see `Patch`."""
        width = now.shape[1]
        everywhere = torch.ones_like(self.difference[..., 0], dtype=torch.bool)
        taken = rows.taken(everywhere, first, width)
        window = self.difference[:, first : first + width]
        if self.members is None:
            codes = window[rows.pair, :, rows.label] * taken
            return (now + codes[..., None] * self.decoder[rows.label][:, None]).to(now.dtype)
        change = torch.zeros(now.shape, dtype=torch.float32, device=now.device)
        for label in rows.label.unique().tolist():
            own, which = rows.label == label, self.members[label]
            change[own] = window[rows.pair[own]][..., which] @ self.decoder[which]
        return (now + change * taken[..., None]).to(now.dtype)

    def alive(self) -> Bool[Tensor, "pair pos label"]:
        """Return where a label changes anything."""
        differs = self.difference != 0
        if self.members is None:
            return differs
        return torch.stack([differs[..., which].any(dim=-1) for which in self.members], dim=-1)


def code_difference(
    sae: Sae,
    source: Float[Tensor, "pair pos d_in"],
    destination: Float[Tensor, "pair pos d_in"],
    source_mask: Bool[Tensor, "pair pos"],
    destination_mask: Bool[Tensor, "pair pos"],
    to_source: Int[Tensor, "pair pos"],
    allowed: Bool[Tensor, "pair pos"],
) -> Float[Tensor, "pair pos d_sae"]:
    """Return what every feature's code differs by, source less destination.

    Args:
        sae: The SAE.
        source: Activations at its site in the source run.
        destination: The same in the destination run.
        source_mask: True at real tokens.
        destination_mask: The same of the destination.
        to_source: The source's column for every column of the destination, -1 for none.
        allowed: The destination's columns that may differ; the others give exactly 0.
    """
    theirs = at_columns(_codes(sae, source, source_mask), to_source)
    return (theirs - _codes(sae, destination, destination_mask)) * allowed[..., None]


def chosen_labels(
    sae: Sae,
    difference: Float[Tensor, "pair pos d_sae"],
    features: Sequence[int] | None,
    clusters: Clusters | None,
) -> tuple[tuple[int | str, ...], list[int], tuple[Int[Tensor, " member"], ...] | None]:
    """Return what is patched: labels, the features they need, and each label's places in these.

    Args:
        sae: The SAE.
        difference: As from `code_difference`.
        features: Features to patch one by one; those that differ anywhere if None.
        clusters: Features to patch together, by name; goes before `features`.

    Raises:
        ConfigError: A feature is not in the SAE, or there is none to patch.
    """
    if clusters is None:
        differing = (difference != 0).flatten(0, 1).any(dim=0).nonzero()[:, 0].tolist()
        chosen = list(dict.fromkeys(differing if features is None else map(int, features)))
        check_features(sae, chosen, "features")
        return tuple(chosen), chosen, None
    for name, members in clusters.items():
        check_features(sae, members, f"cluster {shorten(name)}")
    used = sorted({int(f) for members in clusters.values() for f in members})
    at = {feature: place for place, feature in enumerate(used)}
    members = tuple(
        torch.tensor([at[f] for f in dict.fromkeys(map(int, group))], device=difference.device)
        for group in clusters.values()
    )
    return tuple(clusters), used, members


def check_features(sae: Sae, features: Sequence[int], what: str) -> None:
    """Check that features can be patched.

    Args:
        sae: The SAE.
        features: Its features.
        what: What they are called in an error.

    Raises:
        ConfigError: There is none, or one is not in the SAE.
    """
    if not features:
        raise ConfigError(f"{what}: there is no feature to patch; name at least one.")
    for feature in features:
        if not 0 <= int(feature) < sae.d_sae:
            raise ConfigError(
                f"{what}: {feature} is not in SAE {sae.name}, which has features 0 to "
                f"{sae.d_sae - 1}; choose one of them."
            )


def _codes(sae: Sae, activations: Tensor, mask: Tensor) -> Float[Tensor, "pair pos d_sae"]:
    codes = torch.zeros((*mask.shape, sae.d_sae), device=activations.device)
    for pair, real in enumerate(mask):
        codes[pair, real] = sae.encode(activations[pair, real]).to(codes)
    return codes
