"""Where Neuronpedia is and how patient to be with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from saesteer.utils.errors import ConfigError
from saesteer.utils.http import is_plain_address, is_variable_name

BASE_URL = "https://www.neuronpedia.org/api"
BUCKET_URL = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
KEY_VARIABLE = "NEURONPEDIA_API_KEY"
_OFFLINE_VARIABLES = ("SAESTEER_OFFLINE", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Service:
    """The service, its bucket of bulk files, and how long to wait for them.

    Attributes:
        base_url: What the API's paths are put behind.
        bucket_url: What the bulk files' paths are put behind.
        key_variable: Name of the environment variable that holds the key; without a value no key
            is sent, which reading and steering do not need. The key itself is never a setting.
        timeout: The longest that one reply may take, seconds.
        slow_timeout: The same where the service runs a model: steering and searching by a text.
        attempts: How often something is asked while the service is busy.
        first_wait: Seconds before the second attempt where the service names none; doubled each
            time, with up to half as much again by chance.
        longest_wait: The longest wait, seconds; a service that asks for more gets an error.
        offline: Ask nothing; the cache alone answers.
    """

    base_url: str = BASE_URL
    bucket_url: str = BUCKET_URL
    key_variable: str = KEY_VARIABLE
    timeout: float = 30.0
    slow_timeout: float = 180.0
    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 120.0
    offline: bool = False

    def __post_init__(self) -> None:
        # No message repeats a value that may hold a key put in the wrong place.
        if not is_variable_name(self.key_variable):
            raise ConfigError(
                "Neuronpedia's key_variable is no name of an environment variable; give a name "
                f"such as {KEY_VARIABLE}, never the key itself."
            )
        for name in ("base_url", "bucket_url"):
            if not is_plain_address(getattr(self, name)):
                raise ConfigError(
                    f"Neuronpedia's {name} is no plain http or https address; give one such as "
                    f"{BASE_URL}, without user, password or query."
                )
            object.__setattr__(self, name, getattr(self, name).rstrip("/"))
        times = (self.timeout, self.slow_timeout, self.first_wait, self.longest_wait)
        if self.attempts < 1 or not (all(t >= 0 for t in times) and times[0] * times[1] > 0):
            raise ConfigError(
                f"Neuronpedia's attempts ({self.attempts}) must be 1 or more, its timeouts above 0 "
                "and its waits 0 or more; correct them."
            )

    @property
    def site(self) -> str:
        """Where its pages are: the base URL without "/api"."""
        return self.base_url.removesuffix("/api")


def is_offline() -> bool:
    """Return whether the environment asks to leave the network alone."""
    return any(
        os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")
        for name in _OFFLINE_VARIABLES
    )


def service_here(**settings: Any) -> Service:
    """Return the service as the environment says.

    NEURONPEDIA_BASE_URL and NEURONPEDIA_BUCKET_URL name another address, SAESTEER_OFFLINE or
    HF_HUB_OFFLINE switch the network off.

    Args:
        **settings: Fields of `Service` that win over the environment.

    Raises:
        ConfigError: A setting cannot work.
    """
    found: dict[str, Any] = {"offline": is_offline()}
    for field, variable in (
        ("base_url", "NEURONPEDIA_BASE_URL"),
        ("bucket_url", "NEURONPEDIA_BUCKET_URL"),
    ):
        if os.environ.get(variable, "").strip():
            found[field] = os.environ[variable].strip()
    return Service(**{**found, **settings})
