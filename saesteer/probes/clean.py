"""The readings of the model as it would be without interventions, pass by pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saesteer.models.compat import cache_argument, cached_length, find_cache, named_arguments
from saesteer.models.sites import Site


class _Stop(Exception):
    """Ends the clean pass once the deepest site has been read."""


class CleanReadings:
    """Runs the model once more before each pass, hooks silent, and keeps alpha at every site.

    The clean model reads the same tokens, generated ones included, through a key-value cache of
    its own, so that no trace of an intervention is left in what it says. Beams, which reorder the
    cache between passes, are not followed.

    Args:
        directions: For each site its unit directions.
    """

    def __init__(self, directions: Mapping[Site, list[Tensor]]) -> None:
        self._directions = dict(directions)
        self._cache: Any = None
        self.running = False
        self._alphas: dict[Site, list[Tensor]] = {}

    def observe(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the clean pass (a forward pre-hook on the whole model)."""
        from transformers import DynamicCache

        inputs = dict(named_arguments(model, args, kwargs))
        cache = find_cache(inputs)
        if cache is not None:
            past = cached_length(cache)
            if past == 0 or self._cache is None or cached_length(self._cache) != past:
                # What was put into a cache before the interventions began counts as clean.
                self._cache = copy.deepcopy(cache)
            inputs.update({name: self._cache for name, value in inputs.items() if value is cache})
        elif inputs.get("use_cache") is not False:
            # The model is about to make a cache, which later passes will bring.
            config: Any = model.config
            self._cache = DynamicCache(config=config)
            inputs.update(cache_argument(model, self._cache) or {})
        self._alphas.clear()
        self.running = True
        try:
            with torch.no_grad(), suppress(_Stop):
                model.forward(**inputs)
        finally:
            self.running = False

    def note(self, site: Site, hidden: Float[Tensor, "batch pos d_model"]) -> None:
        """Keep the readings at a site; called by the hook there while the clean pass runs."""
        self._alphas[site] = [alpha_of(hidden, v) for v in self._directions[site]]
        if len(self._alphas) == len(self._directions):
            raise _Stop

    def alphas(self, site: Site) -> list[Float[Tensor, "batch pos"]]:
        """Return the clean readings of this pass along each of the site's directions."""
        return self._alphas[site]


def alpha_of(
    hidden: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "batch pos"]:
    """Return x . v in float32."""
    return hidden.to(torch.float32) @ direction.to(hidden.device)
