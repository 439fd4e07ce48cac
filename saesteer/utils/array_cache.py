"""The earlier place of `saesteer.utils.cache`."""

from saesteer.utils.cache import Cache as ArrayCache
from saesteer.utils.cache import content_key

__all__ = ["ArrayCache", "content_key"]
