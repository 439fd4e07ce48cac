"""The errors a user can meet: each message is one sentence with the place and the way out."""

from __future__ import annotations


class SaesteerError(Exception):
    """Base of every error saesteer raises on purpose; the command line exits with code 2.

    Example:
        >>> try:
        ...     ss.load_pairs("agreeablness")
        ... except ss.SaesteerError as error:
        ...     print("did you mean" in str(error))
        True
    """


class DataError(SaesteerError):
    """A file of pairs, texts or questions cannot be used."""


class ConfigError(SaesteerError):
    """A setting is unknown, missing or out of range."""


class ModelError(SaesteerError):
    """A model or tokenizer cannot be found or loaded."""


class SaeError(SaesteerError):
    """A sparse autoencoder cannot be found, loaded or trained."""


class SiteError(SaesteerError):
    """The model has no such place to read from or write to."""


class MismatchError(SaesteerError):
    """Two parts do not belong together: model and SAE, or vector and model."""


class SteeringError(SaesteerError):
    """A strength, unit or vector cannot be applied as asked."""


class OutputError(SaesteerError):
    """A result cannot be written or a run folder cannot be used."""


class UnwritableError(OutputError):
    """The disk is full, read-only or forbidden, which no other settings would change."""


class NetworkError(SaesteerError):
    """Something has to be fetched and the network, or the service, is not there."""


class HookError(SaesteerError):
    """A hook did not fire, so what was asked for did not happen."""
