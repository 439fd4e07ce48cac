"""saesteer: steer language models with sparse-autoencoder features, with evidence that it works.

The names of `__init__.pyi` are loaded on first use, so `import saesteer` is quick.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"


def _public_names() -> dict[str, tuple[str, str]]:
    """Return where each public name lives and what it is called there, from the stub beside."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return {
        alias.asname: (str(node.module), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }


_NAMES = _public_names()
__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _NAMES:
        module, attribute = _NAMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'saesteer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_NAMES]
