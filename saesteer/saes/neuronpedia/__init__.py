"""Neuronpedia: the client and its offline cache."""

from saesteer.saes.neuronpedia.bulk import Imported, import_from_bucket, import_from_files
from saesteer.saes.neuronpedia.cache import Cache
from saesteer.saes.neuronpedia.cards import FeatureHit, feature_card, search_labels, search_table
from saesteer.saes.neuronpedia.client import Neuronpedia
from saesteer.saes.neuronpedia.links import (
    QuickList,
    SourceId,
    dashboard_url,
    embed_url,
    quick_list,
)
from saesteer.saes.neuronpedia.service import Service, Transport, is_offline, service_here
from saesteer.saes.neuronpedia.steering import SteerSettings, feature_strengths

__all__ = [
    "Cache",
    "FeatureHit",
    "Imported",
    "Neuronpedia",
    "QuickList",
    "Service",
    "SourceId",
    "SteerSettings",
    "Transport",
    "dashboard_url",
    "embed_url",
    "feature_card",
    "feature_strengths",
    "import_from_bucket",
    "import_from_files",
    "is_offline",
    "quick_list",
    "search_labels",
    "search_table",
    "service_here",
]
