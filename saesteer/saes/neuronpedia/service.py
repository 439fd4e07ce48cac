"""Where Neuronpedia is, how patient to be with it, and what carries questions there."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from saesteer.utils.errors import ConfigError, NetworkError
from saesteer.utils.http import (
    REFUSED,
    HttpReply,
    Key,
    Patience,
    is_plain_address,
    is_variable_name,
    open_session,
    request,
    said_by_server,
)

if TYPE_CHECKING:
    from requests import Session

BASE_URL = "https://www.neuronpedia.org/api"
BUCKET_URL = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
KEY_VARIABLE = "NEURONPEDIA_API_KEY"
LARGEST_REPLY = 64_000_000
KEY_HEADER = "x-api-key"
# A service that never answers at all is most likely not there.
ATTEMPTS_UNANSWERED = 3
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


class Transport:
    """Sends requests over connections that are kept open.

    Args:
        service: Where and how.
        sleep: What waits.
        chance: Gives numbers from 0 to 1, so that many clients do not come back at once.

    Attributes:
        remaining: Requests left in this hour, as the service said last.
    """

    def __init__(
        self,
        service: Service,
        *,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.service = service
        self.remaining: int | None = None
        self._sleep = sleep
        self._chance = chance
        self._session: Session | None = None

    def json(
        self, method: str, path: str, payload: Any = None, *, slow: bool = False
    ) -> Any | None:
        """Ask the API.

        Args:
            method: "GET" or "POST".
            path: What follows the base URL, with a leading slash.
            payload: What is posted.
            slow: Whether the service runs a model for it.

        Returns:
            The JSON; None where there is no such thing (status 404, or null).

        Raises:
            NetworkError: It is offline, away, busy for too long, or refuses.
            ConfigError: The key cannot be sent.
        """
        where, limit = self.service.base_url, self.service.timeout
        reply = self._sent(
            method,
            f"{where}{path}",
            where,
            timeout=self.service.slow_timeout if slow else limit,
            key=Key(self.service.key_variable, KEY_HEADER, ""),
            payload=payload,
            check=self._unusable,
        )
        if reply.status == 404 and not _is_page(reply):
            return None
        self._refuse(reply, where, path)
        return reply.json

    def text(self, url: str, params: Mapping[str, str]) -> bytes:
        """Get a listing of the bucket, without a key.

        Raises:
            NetworkError: It is offline, away, or refuses.
        """
        where = self.service.bucket_url
        reply = self._sent("GET", url, where, timeout=self.service.timeout, params=params)
        self._refuse(reply, where, urlsplit(url).path)
        return reply.body

    def fetch(self, url: str, file: BinaryIO) -> None:
        """Get a bulk file, without a key, into an open file.

        Raises:
            NetworkError: It is offline, away, or refuses.
            OutputError: The file cannot be written.
        """
        where = self.service.bucket_url
        reply = self._sent("GET", url, where, timeout=self.service.timeout, into=file)
        self._refuse(reply, where, urlsplit(url).path)

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _sent(self, method: str, url: str, where: str, *, timeout: float, **rest: Any) -> HttpReply:
        service = self.service
        if service.offline:
            raise NetworkError(
                f"{where} is not asked, because SAESTEER_OFFLINE, HF_HUB_OFFLINE or a setting "
                "switches the network off; unset it, or import what is needed while online."
            )
        if self._session is None:
            self._session = open_session()
        return request(
            method,
            url,
            patience=Patience(
                timeout=timeout,
                attempts=service.attempts,
                attempts_unanswered=ATTEMPTS_UNANSWERED,
                first_wait=service.first_wait,
                longest_wait=service.longest_wait,
                jitter=0.5,
                largest=LARGEST_REPLY,
            ),
            called=where,
            session=self._session,
            sleep=self._sleep,
            chance=self._chance,
            **rest,
        )

    def _unusable(self, reply: HttpReply) -> str | None:
        """Note how many requests are left; return why an answer is to be asked for again."""
        left = reply.headers.get("x-limit-remaining", "").strip()
        self.remaining = int(left) if left.isdigit() and len(left) < 9 else self.remaining
        if reply.status == 429 and left == "0" and not reply.headers.get("Retry-After"):
            raise NetworkError(
                f"{self.service.base_url} has no more requests left for now (status "
                f"429{said_by_server(reply.body)}); limits are per hour, so go on later, what was "
                "answered is cached."
            )
        if reply.status >= 300 or reply.json is not None or reply.body.strip() == b"null":
            return None
        if not _is_page(reply):
            return "an answer that is cut off or no JSON"
        raise NetworkError(
            f"{self.service.base_url} answers with a web page instead of JSON; check the address "
            "(NEURONPEDIA_BASE_URL), which ends in /api at the service itself, and any proxy."
        )

    def _refuse(self, reply: HttpReply, where: str, path: str) -> None:
        if reply.status < 300:
            return
        way_out = "check the address, and the names of model and source"
        if reply.status in REFUSED:
            way_out = (
                f"set the environment variable {self.service.key_variable} to a key that is valid "
                "there"
            )
        said = f"status {reply.status}{said_by_server(reply.body)}"
        raise NetworkError(f"{where} refuses {path} ({said}); {way_out}.")


def _is_page(reply: HttpReply) -> bool:
    return reply.body.lstrip()[:1] == b"<"
