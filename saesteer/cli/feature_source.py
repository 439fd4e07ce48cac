"""Who answers for an SAE's features: Neuronpedia with its cache, or the SAE's own table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saesteer.utils.errors import SaeError, SaesteerError

if TYPE_CHECKING:
    from saesteer.saes.neuronpedia import Neuronpedia, SourceId
    from saesteer.saes.table import FeatureTable
    from saesteer.utils.progress import Progress

WORTH_SAYING = 5.0
FEW_LEFT = 20


@dataclass(frozen=True)
class FeatureSource:
    """Who answers for an SAE."""

    sae: str  # How the user called it.
    source: SourceId | None  # Its place on Neuronpedia; None where it is not there.

    def table(self) -> FeatureTable:
        """Return the SAE's own feature table, or raise where it has none."""
        from saesteer.saes.labels import FEATURE_TABLE, own_table
        from saesteer.saes.loading import resolve_sae

        found = own_table(resolve_sae(self.sae))
        if found is not None:
            return found
        raise SaeError(
            f"SAE {self.sae} names no place on Neuronpedia and has no {FEATURE_TABLE} of its own; "
            "name its place with --source MODEL/SOURCE, or train it with saesteer sae train, which "
            "makes the table."
        )


def feature_source(sae: str, source: str | None) -> FeatureSource:
    """Return who answers for an SAE; `source` is its place on Neuronpedia if the user says it."""
    from saesteer.saes.loading import neuronpedia_id_of
    from saesteer.saes.neuronpedia import SourceId

    found = source or neuronpedia_id_of(sae)
    return FeatureSource(sae, None if found is None else SourceId.parse(found))


def known_source(
    sae: str | None, source: str | None = None, noted: SourceId | None = None
) -> SourceId | None:
    """Return an SAE's place on Neuronpedia, None where that cannot be told any more.

    What the user names (`source`) comes before what a run or a vector noted.
    """
    if source is not None or noted is not None:
        return noted if source is None else feature_source("", source).source
    try:
        return None if sae is None else feature_source(sae, None).source
    except SaesteerError:
        # A run outlives its SAE's folder, and its features can still be shown.
        return None


def neuronpedia_client(progress: Progress) -> Neuronpedia:
    """Return a client with the shared cache, which says so when it has to wait."""
    from saesteer.saes.labels import label_cache
    from saesteer.saes.neuronpedia import Cache, Neuronpedia, Transport, service_here

    def wait(seconds: float) -> None:
        if seconds >= WORTH_SAYING:
            progress.say(f"Neuronpedia is busy; asking again in {seconds:.0f} s ...")
        time.sleep(seconds)

    return Neuronpedia(cache=Cache(label_cache()), transport=Transport(service_here(), sleep=wait))


def say_what_is_left(client: Neuronpedia, progress: Progress) -> None:
    """Say how many requests are left in this hour, where they are few."""
    if client.remaining is not None and client.remaining <= FEW_LEFT:
        progress.say(f"Neuronpedia takes {client.remaining} more requests of this kind this hour.")
