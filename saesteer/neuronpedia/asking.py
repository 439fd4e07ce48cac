"""Asking with a cache in front: an answer that is there touches no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saesteer.errors import NetworkError
from saesteer.neuronpedia.cache import Cache, content_key
from saesteer.neuronpedia.links import SourceId
from saesteer.neuronpedia.transport import Transport


@dataclass(frozen=True)
class CachedAsking:
    """Asks the cache, then the service.

    Attributes:
        transport: Sends requests.
        cache: Where answers are kept; nothing is kept if None.
        max_age: The oldest cached answer to take, seconds. Offline, or where the service cannot be
            reached, an older one is taken as well.
    """

    transport: Transport
    cache: Cache | None
    max_age: float

    def look_up(self, method: str, path: str, body: Any = None, *, slow: bool = False) -> Any:
        """Return an answer's JSON; None, which is cached as well, where there is no such thing.

        Raises:
            NetworkError: Nothing is cached and the service cannot be asked.
        """
        key = self.key(method, path, body)
        kept = self.kept([key])
        if key in kept:
            return kept[key]
        try:
            answer = self.transport.json(method, path, body, slow=slow)
        except NetworkError:
            stale = self.cache.get(key) if self.cache is not None else None
            if stale is None:
                raise
            return stale.value
        if self.cache is not None:
            self.cache.put(key, answer)
        return answer

    def need(self, path: str, body: Any, what: str, *, slow: bool = False) -> Any:
        """Return an answer's JSON.

        Raises:
            NetworkError: There is no such thing, or the service cannot be asked.
        """
        answer = self.look_up("POST", path, body, slow=slow)
        if answer is None:
            raise NetworkError(
                f"Neuronpedia knows nothing of {what}, or of one of its features (status 404); "
                "check model, source and numbers."
            )
        return answer

    def kept(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the answers that are cached and not too old."""
        if self.cache is None:
            return {}
        limit = None if self.transport.service.offline else self.max_age
        return {key: kept.value for key, kept in self.cache.get_many(keys, limit).items()}

    def key(self, method: str, path: str, body: Any) -> str:
        """Return what an answer is kept under."""
        return content_key(self.transport.service.base_url, method, path, body)

    def imported(self, of: SourceId, index: int) -> Any:
        """Return what imported bulk files say of a feature; None if nothing."""
        return None if self.cache is None else self.cache.feature(str(of), index)
