"""What is known offline of an SAE's features: what they stand for, and their pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.utils.errors import OutputError, SaeError

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae, Sae
    from saesteer.saes.table import FeatureCard, FeatureTable
    from saesteer.utils.progress import Progress

CACHE_FILE = "neuronpedia.sqlite"
FEATURE_TABLE = "features.parquet"
# What a run's record and a vector's provenance call an SAE's place on Neuronpedia.
PLACE_KEY = "neuronpedia_id"


def label_cache() -> Path:
    """Return the file where Neuronpedia's answers and imported labels are kept."""
    from saesteer.utils.cache import cache_folder

    return cache_folder() / CACHE_FILE


def own_table(where: Path | tuple[str, str]) -> FeatureTable | None:
    """Return the feature table of an SAE that `resolve_sae` found; None where there is none."""
    from saesteer.saes.table import load_feature_table

    if not isinstance(where, Path) or not (where / FEATURE_TABLE).is_file():
        return None
    return load_feature_table(where / FEATURE_TABLE)


def known_descriptions(
    sae: Sae, table: FeatureTable | None, progress: Progress | None = None
) -> Mapping[int, str]:
    """Return what an SAE's features stand for by number, without asking the network.

    Imported labels of Neuronpedia, else the own table's descriptions; empty where neither is there.
    That the labels cannot be read is said to `progress`, since it costs no result; raised if None.
    """
    from saesteer.saes.neuronpedia import Cache, SourceId

    known = {} if table is None else {i: table.describe(i) for i in range(len(table))}
    place = SourceId.known(sae.neuronpedia_id)
    if place is None:
        return known
    try:
        return {**known, **Cache(label_cache()).labels(str(place))}
    except OutputError as error:
        if progress is None:
            raise
        progress.say(f"warning: no imported labels: {error}")
        return known


def feature_card_of(sae: LensSae, index: int) -> FeatureCard:
    """Return what is known offline of one feature: the SAE's own table, and imported labels.

    Raises:
        SaeError: The SAE has no such feature.
        OutputError: The imported labels cannot be read.
    """
    from saesteer.saes.neuronpedia import Cache, SourceId, dashboard_url, feature_card
    from saesteer.saes.neuronpedia.replies import Feature, read_reply
    from saesteer.saes.table import FeatureCard

    if not 0 <= index < sae.d_sae:
        raise SaeError(f"SAE {sae.name} has features 0 to {sae.d_sae - 1}; {index} is none.")
    table = None if sae.folder is None else own_table(sae.folder)
    card = FeatureCard(int(index)) if table is None else table.row(index)
    place = SourceId.known(sae.neuronpedia_id)
    if place is None:
        return card
    imported = Cache(label_cache()).feature(str(place), index)
    if imported is not None:
        told = feature_card(read_reply(Feature, imported, str(place)))
        known = {name: value for name, value in vars(told).items() if value not in (None, (), "")}
        card = replace(card, **known)
    return replace(card, url=dashboard_url(place, index))


def feature_url(neuronpedia_id: str | None, feature: int) -> str | None:
    """Return the address of a feature's dashboard; None where Neuronpedia does not have its SAE."""
    from saesteer.saes.neuronpedia import SourceId, dashboard_url

    place = SourceId.known(neuronpedia_id)
    return None if place is None else dashboard_url(place, feature)


def noted_place(provenance: Mapping[str, Any]) -> str | None:
    """Return the place on Neuronpedia of a vector's SAE; a sum's is that of its parts."""
    own = provenance.get(PLACE_KEY)
    if isinstance(own, str):
        return own
    # Vectors of different SAEs cannot be summed, so any part tells.
    parts = provenance.get("sum_of")
    for part in parts if isinstance(parts, list) else ():
        inner = part.get("provenance") if isinstance(part, Mapping) else None
        found = noted_place(inner) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None
