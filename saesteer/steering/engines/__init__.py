"""Engines: what writes completions for `saesteer.generate`, one call for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saesteer.steering.engines.base import Engine
from saesteer.steering.engines.local import TransformersEngine
from saesteer.steering.engines.settings import EngineSettings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def make_engine(
    settings: EngineSettings | None, model: TransformerBridge, max_batch_rows: int = 32
) -> Engine:
    """Return the engine that settings name; transformers if None.

    Args:
        model: The model that is steered, which checks what a server says.
        max_batch_rows: The most completions that this machine writes at once.
    """
    if settings is None or settings.name == "transformers":
        return TransformersEngine(model, max_batch_rows)
    if settings.name == "paged":
        from saesteer.steering.engines.paged import PagedEngine

        return PagedEngine(model, max_batch_rows)
    from saesteer.steering.engines.openai import OpenAIEngine

    return OpenAIEngine(model, settings)
