"""The readings of the model as it would be without edits, pass by pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.models.compat import find_cache, named_arguments
from saesteer.models.sites import Site
from saesteer.steering.positions import SteeringMask
from saesteer.utils.errors import SteeringError


class _Stop(Exception):
    """Ends a clean pass without a cache once the deepest site has been read."""


class CleanReadings:
    """Runs the model once more before each pass, hooks silent, and keeps alpha at every site.

    The clean model reads the same tokens, generated ones included, through a cache of its own
    beside each cache of the model's, so that no trace of an edit is left in what it says. The
    mask, which watches the model already, knows how many columns went before a pass.
    """

    def __init__(self, directions: Mapping[Site, Mapping[Any, Tensor]], mask: SteeringMask) -> None:
        self._directions, self._mask = directions, mask
        # Beside each of the model's caches the clean one, and how many tokens are in both.
        self._beside: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()
        self._last: tuple[Any, int] | None = None
        self._makes_cache = self._reorders = self._cut = False
        self.running = False
        self._readings: dict[Site, dict[Any, Tensor]] = {}

    def begin(self, prompt_length: int, num_beams: int) -> None:
        """Note whether the `generate` that begins reorders the rows of its cache."""
        self._reorders = num_beams > 1

    def end(self, new_tokens: int) -> None:
        """Note that `generate` has ended."""
        self._reorders = False

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the clean pass before the pass that is about to run."""
        past = self._mask.past
        inputs = dict(named_arguments(model, args, kwargs))
        tokens = inputs.get("input_ids")
        tokens = inputs["inputs_embeds"] if tokens is None else tokens
        cache, clean = find_cache(inputs), None
        if cache is not None:
            if self._reorders:
                raise SteeringError(
                    "beam search reorders its cache between passes, which the clean readings of "
                    "several layers do not follow; generate with use_cache=False, or intervene "
                    "with policy='compound'."
                )
            clean = self._clean_cache(cache, past)
            inputs.update({name: clean for name, value in inputs.items() if value is cache})
        self._makes_cache = cache is None and inputs.get("use_cache") is not False
        # A cache is to be filled in every layer, and one that the model makes comes at the end.
        self._cut = cache is None and not self._makes_cache
        self._readings.clear()
        self.running = True
        try:
            with torch.no_grad(), suppress(_Stop):
                output = model.forward(**inputs)
                clean = find_cache(output) if self._makes_cache else clean
        finally:
            self.running = False
        self._last = None if clean is None else (clean, past + tokens.shape[1])
        if cache is not None and self._last is not None:
            self._beside[cache] = self._last

    def conclude(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Keep the clean cache beside the one that the model has made."""
        made = find_cache(output) if self._makes_cache else None
        if made is not None and self._last is not None:
            self._beside[made] = self._last

    def _clean_cache(self, cache: Any, past: int) -> Any:
        known = self._beside.get(cache)
        clean, columns = known or self._last or (cache, 0)
        if past and columns == past:
            return clean
        if known and 0 < past < columns:
            # Candidates that were not accepted were taken back.
            clean.crop(past - columns)
            return clean
        # What was put into a cache before the interventions began counts as clean.
        return copy.deepcopy(cache)

    def note(self, site: Site, hidden: Float[Tensor, "batch pos d_model"]) -> None:
        """Keep the readings at a site; called by the hook there while the clean pass runs."""
        x = hidden.to(torch.float32)
        directions = self._directions[site].items()
        self._readings[site] = {name: x @ v.to(x.device) for name, v in directions}
        if len(self._readings) == len(self._directions) and self._cut:
            raise _Stop

    def readings(self, site: Site) -> Mapping[Any, Float[Tensor, "batch pos"]]:
        """Return the clean readings of this pass along each of the site's directions."""
        return self._readings[site]
