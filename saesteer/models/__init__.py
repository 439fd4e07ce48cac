"""Language models: loading, sites and tokens."""

from saesteer.models.bridge import bridge_difference, check_bridge
from saesteer.models.loading import load_model, model_info, plain_model, wrap_model
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.models.sites import HookTarget, Site, check_site, resolve_target
from saesteer.models.tokens import TokenBatch, chat_prompt, encode_statements, encode_texts

__all__ = [
    "HookTarget",
    "ModelSource",
    "Site",
    "TokenBatch",
    "bridge_difference",
    "chat_prompt",
    "check_bridge",
    "check_site",
    "encode_statements",
    "encode_texts",
    "load_model",
    "model_info",
    "plain_model",
    "resolve_model",
    "resolve_target",
    "wrap_model",
]
