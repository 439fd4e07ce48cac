"""Asking with a cache in front: an answer that is there touches no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from saesteer.saes.neuronpedia.cache import Cache, content_key
from saesteer.saes.neuronpedia.links import SourceId
from saesteer.saes.neuronpedia.replies import Model, read_reply
from saesteer.saes.neuronpedia.transport import Transport
from saesteer.utils.errors import NetworkError, OutputError


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

    def look_up(
        self, kind: type[Model], method: str, path: str, body: Any = None, *, slow: bool = False
    ) -> Model | None:
        """Return an answer; None, which is cached as well, where there is no such thing.

        Raises:
            NetworkError: Nothing is cached and the service cannot be asked, or its answer cannot be
                read, which is not cached.
        """
        key = self.key(method, path, body)
        kept = self.kept([key])
        if key in kept:
            return _read(kind, kept[key], path)
        try:
            answer = self.transport.json(method, path, body, slow=slow)
        except NetworkError:
            stale = self.cache.get(key) if self.cache is not None else None
            if stale is None:
                raise
            return _read(kind, stale.value, path)
        found = _read(kind, answer, path)
        self.keep({key: answer})
        return found

    def need(
        self, kind: type[Model], path: str, body: Any, what: str, *, slow: bool = False
    ) -> Model:
        """Return an answer.

        Raises:
            NetworkError: There is no such thing, or the service cannot be asked.
        """
        answer = self.look_up(kind, "POST", path, body, slow=slow)
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

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Cache answers where that can be done: an answer is worth more than its copy."""
        if self.cache is not None:
            with suppress(OutputError):
                self.cache.put_many(answers)

    def key(self, method: str, path: str, body: Any) -> str:
        """Return what an answer is kept under."""
        return content_key(self.transport.service.base_url, method, path, body)

    def imported(self, of: SourceId, index: int) -> Any:
        """Return what imported bulk files say of a feature; None if nothing."""
        return None if self.cache is None else self.cache.feature(str(of), index)


def _read(kind: type[Model], answer: Any, path: str) -> Model | None:
    return None if answer is None else read_reply(kind, answer, path)
