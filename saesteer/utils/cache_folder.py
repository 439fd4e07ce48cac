"""The earlier place of `saesteer.utils.cache`."""

from saesteer.utils.cache import build_once, cache_folder

__all__ = ["build_once", "cache_folder"]
