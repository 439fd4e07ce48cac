"""Values as records hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saesteer.utils.run_folder import finite


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers of numpy and torch as Python's, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if not isinstance(value, str | int | float | bool | type(None)):
        if hasattr(value, "tolist"):
            return plain(value.tolist())
        return str(value)
    return finite(value)


def scalars(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is one number or word in nested mappings; lists and empty mappings are out."""
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            inner = scalars(inner)
            if not inner:
                continue
        elif isinstance(inner, list | tuple) or (isinstance(inner, str) and len(inner) > 200):
            continue
        kept[str(key)] = inner
    return kept


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with those of the same name replaced by newer values."""
    both = dict(old)
    for key, value in new.items():
        inner = both.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            both[key] = merged(inner, value)
        else:
            both[key] = value
    return both


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names; an empty one stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat
