"""Who answers for an SAE's features: Neuronpedia with its cache, or the SAE's own table."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from saesteer.saes.labels import (
    FEATURE_TABLE,
    label_cache,
    own_table,
    search_labels,
    search_table,
)
from saesteer.saes.loading import neuronpedia_id_of, resolve_sae
from saesteer.saes.neuronpedia import Cache, Neuronpedia, Service, SourceId
from saesteer.saes.neuronpedia.links import SITE
from saesteer.saes.neuronpedia.service import KEY_VARIABLE
from saesteer.utils.errors import ConfigError, NetworkError, SaeError, SaesteerError
from saesteer.utils.progress import terminal_progress

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae
    from saesteer.saes.table import FeatureCard, FeatureHit, FeatureTable

WORTH_SAYING = 5.0
FEW_LEFT = 20


def patient_client() -> Neuronpedia:
    """Return a client with the shared cache, which says so when it has to wait."""

    def wait(seconds: float) -> None:
        if seconds >= WORTH_SAYING:
            said = f"Neuronpedia is busy; asking again in {seconds:.0f} s ..."
            terminal_progress().say(said)
        time.sleep(seconds)

    return Neuronpedia(Service(sleep=wait), cache=Cache(label_cache()))


class FeatureSource:
    """Who answers for an SAE.

    Args:
        sae: How the user called it.
        place: Its place on Neuronpedia if the user says it; what the SAE says if None.
    """

    def __init__(self, sae: str, place: str | None = None) -> None:
        self.sae = sae
        found = place or neuronpedia_id_of(sae)
        self.place = None if found is None else SourceId.parse(found)

    @property
    def there(self) -> SourceId:
        """Its place on Neuronpedia, or a sentence where it is not there."""
        if self.place is None:
            raise ConfigError(
                f"SAE {self.sae or '(none)'} is not on Neuronpedia, which this needs; name its "
                "place with --source MODEL/SOURCE if it is there, or use the commands feature and "
                "search."
            )
        return self.place

    @cached_property
    def client(self) -> Neuronpedia:
        """A client with the shared cache."""
        return patient_client()

    @cached_property
    def table(self) -> FeatureTable:
        """The SAE's own feature table, or a sentence where it has none."""
        found = own_table(resolve_sae(self.sae))
        if found is None:
            raise SaeError(
                f"SAE {self.sae} names no place on Neuronpedia and has no {FEATURE_TABLE} of its "
                "own; name its place with --source MODEL/SOURCE, or train it with saesteer sae "
                "train, which makes the table."
            )
        return found

    def cards(self, features: list[int], texts: int) -> list[FeatureCard]:
        """Return what is known of features, each with so many texts at most."""
        if self.place is None:
            return [self.table.row(index, n_contexts=texts) for index in features]
        cards = []
        for index in features:
            found = self.client.feature(self.place, index)
            if found is None:
                raise ConfigError(
                    f"Neuronpedia has no feature {index} of {self.place}; check the number, model "
                    "and source."
                )
            cards.append(found.card(n_contexts=texts, site=self.client.service.site))
        self.say_what_is_left()
        return cards

    def search(self, words: str, limit: int) -> tuple[list[FeatureHit], str]:
        """Return the features found for some words, and what is to be said of the search."""
        if self.place is None:
            note = "by the tokens and texts of the SAE's own table, not by meaning"
            return search_table(self.table, words, limit), note
        try:
            hits = self.client.search(self.place, words, limit=limit)
        except NetworkError:
            labels = Cache(label_cache()).labels(str(self.place))
            if not labels:
                raise
            note = f"Neuronpedia was not asked; by the words of {len(labels):,} labels"
            site = self.client.service.site
            return search_labels(labels, words, limit, place=self.place, site=site), note
        self.say_what_is_left()
        return hits, "by meaning, on Neuronpedia"

    def say_what_is_left(self) -> None:
        """Say how many requests are left in this hour, where they are few."""
        left = self.client.service.remaining
        if left is not None and left <= FEW_LEFT:
            said = f"Neuronpedia takes {left} more requests of this kind this hour."
            terminal_progress().say(said)


def search_features(
    sae: LensSae, table: FeatureTable | None, words: str, limit: int
) -> tuple[list[FeatureHit], str]:
    """Return the features of a loaded SAE found for some words, and what is to be said of that.

    Neuronpedia is asked where it has the SAE and there is a key; else its imported labels answer
    where there are some, else the SAE's own table.

    Raises:
        SaeError: There is none of them.
    """
    place = SourceId.known(sae.neuronpedia_id)
    labels = {} if place is None else Cache(label_cache()).labels(str(place))
    if place is not None and os.environ.get(KEY_VARIABLE, "").strip():
        with suppress(NetworkError):
            return FeatureSource(sae.name, str(place)).search(words, limit)
    if place is not None and labels:
        note = f"by the words of {len(labels):,} labels of Neuronpedia"
        return search_labels(labels, words, limit, place=place, site=SITE), note
    if table is None:
        raise SaeError(
            f"SAE {sae.name} has no feature table to search; import its labels with saesteer "
            f"neuronpedia import, or set {KEY_VARIABLE}."
        )
    return search_table(table, words, limit), "by the tokens and texts of the SAE's own table"


def known_source(
    sae: str | None, place: str | None = None, noted: str | None = None
) -> FeatureSource | None:
    """Return who answers where the SAE is on Neuronpedia; None where that cannot be told any more.

    What the user names (`place`) comes before what a run or a vector noted.
    """
    known = SourceId.known(noted)
    place = place or (None if known is None else str(known))
    try:
        found = FeatureSource(sae or "", place) if sae or place else None
    except SaesteerError:
        if place is not None:
            raise
        # A run outlives its SAE's folder, and its features can still be shown.
        return None
    return None if found is None or found.place is None else found
