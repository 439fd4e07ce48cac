"""The earlier place of `saesteer.utils.cache`."""

from saesteer.utils.cache import BLOCK, BLOCKS, content_digest

__all__ = ["BLOCK", "BLOCKS", "content_digest"]
