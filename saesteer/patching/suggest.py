"""Which site to steer, from what patching found: a rank of sites with the evidence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saesteer.models.sites import Site
from saesteer.patching.result import PatchResult
from saesteer.patching.summary import ANSWER, PLACES, Effects, effects

SUGGESTED = ("resid_pre", "resid_post", "resid_mid")
MOST = 8
LEAST_SHARE = 0.1
LEAST_PAIRS = 0.5


@dataclass(frozen=True)
class SiteEvidence:
    """What speaks for steering at one site."""

    # Such as "blocks.12.hook_resid_pre".
    site: str
    layer: int
    # The tokens patched there, by name.
    place: str
    # Share of the behaviour that the patch carries (positive in both modes), with its 95% interval
    # over prompts.
    effect: float
    low: float | None
    high: float | None
    # Pairs that have the tokens in both prompts.
    n: int
    # Share of the blocks that would still work on what is written there: those above the answer
    # position, those below the prompt's words.
    headroom: float
    # effect x headroom, by which sites are ranked.
    score: float
    # The share that attribution patching gives the same cell, if it was run, and whether it has the
    # same sign and at least half of the effect.
    attribution: float | None = None
    agrees: bool | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        return self.place if self.place in PLACES else f"token {self.place}"

    @property
    def share(self) -> str:
        """The effect in words."""
        if self.low is None or self.high is None:
            return f"{self.effect:.2f}"
        return f"{self.effect:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Suggestion:
    """The site to steer, or why none can be named."""

    # The first of the rank; None where nothing speaks for any site.
    best: SiteEvidence | None
    # Where to write there, as steering vectors name it.
    positions: str | None
    # The best sites, best first, the best of each place among them.
    ranked: tuple[SiteEvidence, ...]
    # The first layer at which the answer position carries more than the prompt's words; None where
    # it never does.
    handover: int | None
    # The SAE's own site with its evidence at its best place, if an SAE was named, and where that
    # stands among all layers of its place, from 1.
    sae: SiteEvidence | None
    sae_rank: int | None
    # What to say about it, one fact each.
    sentences: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def suggest_site(
    activation: PatchResult,
    attribution: PatchResult | None = None,
    *,
    sae_site: Site | None = None,
    seed: int = 0,
) -> Suggestion:
    """Name the layer and positions to steer.

    At the bottom the words that differ carry everything and at the top the answer position does:
    both are true of any model and say nothing of where to steer. So a site's effect counts times
    its headroom, the share of blocks above it at the answer position, or below it at the prompt's
    words; what wins lies where the behaviour is settled and blocks are left to act on it.

    Args:
        activation: Residual-stream patching by layer and place (see `by_place`), on prompts that
            the model tells apart.
        attribution: The same cells by attribution patching.
        sae_site: The site of an SAE to steer with.
        seed: Seeds the bootstrap over pairs.
    """
    found = effects(activation, "share", seed=seed)
    other = None
    if attribution is not None and attribution.coords == activation.coords:
        other = effects(attribution, "share", resamples=0)
    every = _evidence(activation, found, other)
    pairs = len(activation.pairs)
    cells = tuple(cell for cell in every if cell.n >= LEAST_PAIRS * pairs)
    useful = [
        cell for cell in cells if cell.effect >= LEAST_SHARE and (cell.low is None or cell.low > 0)
    ]
    ranked = _ranked(useful)
    best = ranked[0] if ranked else None
    sae, rank = _of_sae(cells, sae_site, activation)
    handover = _handover(cells)
    positions = None
    if best is not None:
        positions = "from_last_prompt_token" if best.place == ANSWER else "all"
    method = "" if attribution is None else attribution.method
    sentences = _sentences(ranked, method, handover, sae, rank, sae_site)
    rare = {cell.where: cell.n for cell in every if cell not in cells}
    for where, n in rare.items():
        sentences += (
            f"Only {n} of {pairs} pairs have counterparts on the {where}, so nothing is said of "
            "it.",
        )
    return Suggestion(best, positions, ranked, handover, sae, rank, sentences)


def _ranked(cells: Sequence[SiteEvidence]) -> tuple[SiteEvidence, ...]:
    """Return the best sites, best first, the best of each place among them."""
    order = sorted(cells, key=lambda cell: -cell.score)
    first = {cell.place: cell for cell in reversed(order)}
    others = [cell for cell in order if cell is not first[cell.place]]
    kept = [*first.values(), *others[: max(0, MOST - len(first))]]
    return tuple(sorted(kept, key=lambda cell: -cell.score))


def _evidence(
    activation: PatchResult, found: Effects, other: Effects | None
) -> tuple[SiteEvidence, ...]:
    sign = 1.0 if activation.mode == "denoising" else -1.0
    layers = [int(layer) for layer in activation.coords["layer"]]
    depth = max(layers) + 1
    after = activation.component == "resid_post"
    cells = []
    for i, layer in enumerate(layers):
        below = (layer + after) / depth
        for j, place in enumerate(map(str, activation.coords["place"])):
            effect = sign * float(found.value[i, j])
            if not np.isfinite(effect):
                continue
            ends = sorted(sign * float(end[i, j]) for end in (found.low, found.high))
            low, high = ends if np.isfinite(ends).all() else (None, None)
            headroom = 1 - below if place == ANSWER else below
            theirs = None if other is None else sign * float(other.value[i, j])
            cells.append(
                SiteEvidence(
                    site=str(Site(layer, f"hook_{activation.component}")),
                    layer=layer,
                    place=place,
                    effect=effect,
                    low=low,
                    high=high,
                    n=int(found.n[i, j]),
                    headroom=headroom,
                    score=effect * headroom,
                    attribution=theirs,
                    agrees=None if theirs is None else theirs >= effect / 2,
                )
            )
    return tuple(cells)


def _handover(cells: Sequence[SiteEvidence]) -> int | None:
    """Return the first layer from which the answer position keeps the most."""
    layers = sorted({cell.layer for cell in cells})
    found = None
    for layer in reversed(layers):
        own = [cell for cell in cells if cell.layer == layer]
        at_answer = sum(cell.effect for cell in own if cell.place == ANSWER)
        elsewhere = max((cell.effect for cell in own if cell.place != ANSWER), default=0.0)
        if at_answer <= elsewhere:
            break
        found = layer
    return None if found == min(layers, default=None) else found


def _of_sae(
    cells: Sequence[SiteEvidence], site: Site | None, activation: PatchResult
) -> tuple[SiteEvidence | None, int | None]:
    if site is None:
        return None, None
    layer = _same_stream(site, activation.component)
    own = [cell for cell in cells if cell.layer == layer]
    if layer is None or not own:
        return None, None
    best = max(own, key=lambda cell: cell.score)
    rivals = [cell.score for cell in cells if cell.place == best.place]
    return best, 1 + sum(score > best.score for score in rivals)


def _same_stream(site: Site, component: str) -> int | None:
    """Return the layer at which a component's cells are this site; None where none are."""
    if site.hook == f"hook_{component}":
        return site.layer
    # What leaves one block enters the next.
    if (site.hook, component) == ("hook_resid_post", "resid_pre"):
        return site.layer + 1
    if (site.hook, component) == ("hook_resid_pre", "resid_post"):
        return site.layer - 1
    return None


def _sentences(
    ranked: Sequence[SiteEvidence],
    method: str,
    handover: int | None,
    sae: SiteEvidence | None,
    rank: int | None,
    sae_site: Site | None,
) -> tuple[str, ...]:
    if not ranked:
        return (
            "No site is named: no cell of the residual stream restores a tenth of the gap with an "
            "interval above 0; give more prompts, or prompts that the model tells apart.",
        )
    best = ranked[0]
    said = [
        f"Steer at {best.site}, on the {best.where}: patching it carries {best.share} of the gap "
        "between clean and corrupted prompts."
    ]
    if best.agrees is not None and best.attribution is not None:
        verdict = "at least" if best.agrees else "less than"
        exact = method == "integrated_gradients"
        name = "Attribution by integrated gradients" if exact else "Attribution patching"
        said.append(f"{name} gives the same cell {best.attribution:.2f}, {verdict} half of that.")
    rival = next((cell for cell in ranked if cell.place != best.place), None)
    if rival is not None:
        said.append(
            f"Elsewhere, on the {rival.where}, the best is {rival.site}, which carries "
            f"{rival.share}."
        )
    if handover is not None:
        said.append(
            f"From layer {handover} on the answer position carries more than any of the prompt's "
            "words: below it steer the words, above it the answer position."
        )
    if sae_site is not None and sae is None:
        said.append(
            f"The SAE's site {sae_site} is no residual-stream cell that was patched, so nothing is "
            "said of it."
        )
    elif sae is not None:
        said.append(
            f"The SAE's site {sae_site} is rank {rank} of the layers at the {sae.where}: it "
            f"carries {sae.share}."
        )
    return tuple(said)
