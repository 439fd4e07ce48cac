"""One way to look a name up, with the closest known name in the error."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from saesteer.utils.errors import ConfigError

Entry = TypeVar("Entry")


def choose(registry: Mapping[str, Entry], name: str, *, field: str) -> Entry:
    """Look `name` up in `registry`.

    Args:
        registry: Known names and what they stand for.
        name: The name asked for.
        field: What the name is, for the error ("criterion", "method").

    Returns:
        The entry of that name.

    Raises:
        ConfigError: The name is not known; the sentence holds the closest known one.
    """
    if name in registry:
        return registry[name]
    known = ", ".join(registry)
    close = get_close_matches(str(name).lower(), list(registry), n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}' (known: {known})" if close else f"choose one of {known}"
    raise ConfigError(f"{field}: '{name}' is not known; {hint}.")
