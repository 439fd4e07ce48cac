"""What is known offline of what features stand for: an SAE's own table, or imported labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saesteer.saes.adapter import Sae
    from saesteer.saes.table import FeatureTable

CACHE_FILE = "neuronpedia.sqlite"


def label_cache() -> Path:
    """Return the file where Neuronpedia's answers and imported labels are kept."""
    from saesteer.models.cache import cache_folder

    return cache_folder() / CACHE_FILE


def known_descriptions(sae: Sae, table: FeatureTable | None) -> Mapping[int, str]:
    """Return what an SAE's features stand for, without asking the network.

    Args:
        sae: The SAE.
        table: Its own feature table, if it has one.

    Returns:
        Descriptions by feature: imported labels of Neuronpedia, else the table's own; empty where
        neither is there.
    """
    from saesteer.neuronpedia import Cache

    known = {} if table is None else {i: table.describe(i) for i in range(sae.d_sae)}
    imported = Cache(label_cache()).labels(sae.neuronpedia_id) if sae.neuronpedia_id else {}
    return {**known, **imported}
