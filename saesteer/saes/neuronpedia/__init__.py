"""Neuronpedia: the client and its offline cache."""

from saesteer.saes.neuronpedia.bulk import Imported, import_from_bucket, import_from_files
from saesteer.saes.neuronpedia.cache import Cache
from saesteer.saes.neuronpedia.client import Neuronpedia
from saesteer.saes.neuronpedia.links import (
    QuickList,
    SourceId,
    dashboard_url,
    embed_url,
    quick_list,
)
from saesteer.saes.neuronpedia.service import Service
from saesteer.saes.neuronpedia.steering import SteerSettings, feature_strengths

__all__ = [
    "Cache",
    "Imported",
    "Neuronpedia",
    "QuickList",
    "Service",
    "SourceId",
    "SteerSettings",
    "dashboard_url",
    "embed_url",
    "feature_strengths",
    "import_from_bucket",
    "import_from_files",
    "quick_list",
]
