"""Addresses of pages on Neuronpedia: dashboards, embedded ones, and lists of features."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, urlencode

from saesteer.utils.errors import ConfigError

SITE = "https://www.neuronpedia.org"
MOST_IN_QUICK_LIST = 150
_ID = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class SourceId:
    model: str  # Neuronpedia's name of the model, such as "gpt2-small".
    source: str  # Its name of the SAE, such as "6-res-jb".

    @classmethod
    def parse(cls, text: str | SourceId) -> SourceId:
        """Read an SAE's `neuronpedia_id`, such as "gpt2-small/6-res-jb".

        Raises:
            ConfigError: It is not of that form.
        """
        parts = str(text).strip().split("/")
        if len(parts) != 2 or not all(_ID.fullmatch(p) and p.strip(".") for p in parts):
            raise ConfigError(
                f"{str(text)[:80]!r} is no model and source of Neuronpedia; write them as in "
                "gpt2-small/6-res-jb, which is what the SAE's neuronpedia_id says."
            )
        return cls(*parts)

    @classmethod
    def known(cls, noted: object) -> SourceId | None:
        """Return what a file notes as an SAE's place; None where that is none."""
        try:
            return cls.parse(noted) if isinstance(noted, str) else None
        except ConfigError:
            return None

    @property
    def source_set(self) -> str:
        """The set of SAEs that the source belongs to: its name without the layer."""
        return self.source.partition("-")[2] or self.source

    @property
    def place(self) -> dict[str, str]:
        """Model and SAE as the service calls them in what it is asked."""
        return {"modelId": self.model, "layer": self.source}

    def __str__(self) -> str:
        return f"{self.model}/{self.source}"


def dashboard_url(neuronpedia_id: str | SourceId, feature: int, *, site: str = SITE) -> str:
    """Return the address of a feature's dashboard.

    Example:
        >>> dashboard_url("gpt2-small/6-res-jb", 650)
        'https://www.neuronpedia.org/gpt2-small/6-res-jb/650'
    """
    return f"{site}/{quote(str(neuronpedia_id), safe='/')}/{int(feature)}"


def embed_url(url: str) -> str:
    """Return the address of a dashboard without the page around it, for an iframe."""
    return f"{url}?embed=true"


class QuickList(NamedTuple):
    """A page with many features."""

    url: str
    n_shown: int
    n_left_out: int  # A page shows 150 at most.


def quick_list(
    neuronpedia_id: str | SourceId, features: Sequence[int], name: str, *, site: str = SITE
) -> QuickList:
    """Return the page that shows many features at once: the first 150, so most important first."""
    where = SourceId.parse(neuronpedia_id)
    shown = list(dict.fromkeys(int(feature) for feature in features))
    kept = shown[:MOST_IN_QUICK_LIST]
    # The page wants indices as text. What a query may hold unquoted is left so, for servers take
    # addresses of limited length.
    entries = [{**where.place, "index": str(i)} for i in kept]
    listed = json.dumps(entries, separators=(",", ":"))
    query = urlencode({"name": name, "features": listed}, quote_via=quote, safe=",:")
    return QuickList(f"{site}/quick-list/?{query}", len(kept), len(shown) - len(kept))
