"""Where Neuronpedia is, how patient to be with it, and what carries questions there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from saesteer.utils.errors import ConfigError, NetworkError
from saesteer.utils.http import (
    REFUSED,
    HttpReply,
    Key,
    Patience,
    is_plain_address,
    open_session,
    request,
    said_by_server,
)

BASE_URL = "https://www.neuronpedia.org/api"
BUCKET_URL = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
KEY_VARIABLE = "NEURONPEDIA_API_KEY"
# A service that never answers at all is most likely not there.
PATIENCE = Patience(timeout=30.0, attempts_unanswered=3, jitter=0.5)
_OFFLINE_VARIABLES = ("SAESTEER_OFFLINE", "HF_HUB_OFFLINE")


def is_offline() -> bool:
    """Return whether the environment asks to leave the network alone."""
    said = (os.environ.get(name, "").strip().lower() for name in _OFFLINE_VARIABLES)
    return any(word in ("1", "true", "yes", "on") for word in said)


class Service:
    """Neuronpedia's API and its bucket of bulk files, over connections that are kept open.

    The key is the value of NEURONPEDIA_API_KEY; without one none is sent, which reading and
    steering do not need.

    Args:
        base_url: What the API's paths are put behind; NEURONPEDIA_BASE_URL, or the service itself,
            if None.
        bucket_url: What the bulk files' paths are put behind; NEURONPEDIA_BUCKET_URL, or the public
            bucket, if None.
        offline: Ask nothing; as SAESTEER_OFFLINE or HF_HUB_OFFLINE say if None.
        patience: How long to wait for a reply, and how often to ask.
        slow_timeout: The longest that a reply may take where the service runs a model, seconds.
        sleep: What waits.
        chance: Gives numbers from 0 to 1, so that many clients do not come back at once.

    Raises:
        ConfigError: An address cannot be one.
    """

    def __init__(
        self,
        base_url: str | None = None,
        bucket_url: str | None = None,
        *,
        offline: bool | None = None,
        patience: Patience = PATIENCE,
        slow_timeout: float = 180.0,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.base_url = _address(base_url, "NEURONPEDIA_BASE_URL", BASE_URL)
        self.bucket_url = _address(bucket_url, "NEURONPEDIA_BUCKET_URL", BUCKET_URL)
        self.offline = is_offline() if offline is None else offline
        self.slow_timeout = slow_timeout
        self.remaining: int | None = None  # Requests left in this hour, as it said last.
        self._rest: dict[str, Any] = {"patience": patience, "sleep": sleep, "chance": chance}

    @property
    def site(self) -> str:
        """Where its pages are: the base URL without "/api"."""
        return self.base_url.removesuffix("/api")

    def json(self, method: str, path: str, payload: Any = None, *, slow: bool = False) -> Any:
        """Ask the API; `slow` says that the service runs a model for it.

        Returns:
            The JSON; None where there is no such thing (status 404, or null).

        Raises:
            NetworkError: It is offline, away, busy for too long, or refuses.
            ConfigError: The key cannot be sent.
        """
        patience = self._rest["patience"]
        reply = self._sent(
            method,
            self.base_url,
            path,
            patience=replace(patience, timeout=self.slow_timeout) if slow else patience,
            key=Key(KEY_VARIABLE, "x-api-key", ""),
            payload=payload,
            check=self._unusable,
            missing=True,
        )
        return None if reply.status == 404 else reply.json

    def listing(self, params: Mapping[str, str]) -> bytes:
        """Get a listing of the bucket, without a key; raises `NetworkError` as `json` does."""
        return self._sent("GET", self.bucket_url, "/", params=params).body

    def fetch(self, path: str, file: BinaryIO) -> None:
        """Get a file of the bucket, without a key, into an open file.

        Raises:
            NetworkError: It is offline, away, or refuses.
            OutputError: The file cannot be written.
        """
        self._sent("GET", self.bucket_url, f"/{path}", into=file)

    def _sent(
        self, method: str, where: str, path: str, *, missing: bool = False, **rest: Any
    ) -> HttpReply:
        """Return a reply that is no refusal; with `missing`, status 404 is an answer as well."""
        if self.offline:
            raise NetworkError(
                f"{where} is not asked, because SAESTEER_OFFLINE, HF_HUB_OFFLINE or a setting "
                "switches the network off; unset it, or import what is needed while online."
            )
        if "session" not in self._rest:
            self._rest["session"] = open_session()
        reply = request(method, f"{where}{path}", called=where, **{**self._rest, **rest})
        if reply.status < 300 or (missing and reply.status == 404 and not _is_page(reply)):
            return reply
        way_out = "check the address, and the names of model and source"
        if reply.status in REFUSED:
            way_out = f"set the environment variable {KEY_VARIABLE} to a key that is valid there"
        said = f"status {reply.status}{said_by_server(reply.body)}"
        raise NetworkError(f"{where} refuses {path} ({said}); {way_out}.")

    def _unusable(self, reply: HttpReply) -> str | None:
        """Note how many requests are left; return why an answer is to be asked for again."""
        left = reply.headers.get("x-limit-remaining", "").strip()
        self.remaining = int(left) if left.isdigit() and len(left) < 9 else self.remaining
        if reply.status == 429 and left == "0" and not reply.headers.get("Retry-After"):
            raise NetworkError(
                f"{self.base_url} has no more requests left for now (status "
                f"429{said_by_server(reply.body)}); limits are per hour, so go on later, what was "
                "answered is cached."
            )
        if reply.status >= 300 or reply.json is not None or reply.body.strip() == b"null":
            return None
        if not _is_page(reply):
            return "an answer that is cut off or no JSON"
        raise NetworkError(
            f"{self.base_url} answers with a web page instead of JSON; check the address "
            "(NEURONPEDIA_BASE_URL), which ends in /api at the service itself, and any proxy."
        )


def _address(given: str | None, variable: str, usual: str) -> str:
    found = (given or os.environ.get(variable, "").strip() or usual).rstrip("/")
    if not is_plain_address(found):
        # The message does not repeat what may hold a password or a key.
        raise ConfigError(
            f"Neuronpedia's address ({variable}) is no plain http or https address; give one such "
            f"as {usual}, without user, password or query."
        )
    return found


def _is_page(reply: HttpReply) -> bool:
    return reply.body.lstrip()[:1] == b"<"
