"""Asking over HTTP: one connection, patience with a busy service, no word of the key."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from saesteer.saes.neuronpedia.service import Service
from saesteer.utils import http as web_requests
from saesteer.utils.errors import NetworkError, OutputError

if TYPE_CHECKING:
    from requests import Response, Session

LARGEST_REPLY = 64_000_000
HEADER = "x-api-key"
# A service that never answers at all is most likely not there.
ATTEMPTS_UNANSWERED = 3


@dataclass(frozen=True)
class _Again:
    """A failure that may pass.

    Attributes:
        failure: What happened.
        wait: The seconds that the service asks to wait, if it says so.
        answered: Whether it answered at all.
    """

    failure: str
    wait: float | None = None
    answered: bool = True


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Any
    body: bytes


class Transport:
    """Sends requests over connections that are kept open.

    Args:
        service: Where and how.
        sleep: What waits.
        chance: Gives numbers from 0 to 1, so that many clients do not come back at once.
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
        web_requests.key_in(self.service.key_variable)
        url = f"{self.service.base_url}{path}"
        limit = self.service.slow_timeout if slow else self.service.timeout

        def once() -> Any:
            reply = self._sent(method, url, payload, limit, key=True)
            return reply if isinstance(reply, _Again) else self._answer(reply, path)

        return self._patiently(once, self.service.base_url)

    def text(self, url: str, params: dict[str, str]) -> bytes:
        """Get a listing of the bucket, without a key.

        Raises:
            NetworkError: It is offline, away, or refuses.
        """

        def once() -> Any:
            reply = self._sent("GET", url, None, self.service.timeout, key=False, params=params)
            return reply if isinstance(reply, _Again) else self._plain(reply, url)

        return self._patiently(once, self.service.bucket_url)

    def fetch(self, url: str, file: BinaryIO) -> int:
        """Get a bulk file, without a key, into an open file; return its size in bytes.

        Raises:
            NetworkError: It is offline, away, or refuses.
        """

        def once() -> Any:
            file.seek(0)
            file.truncate()
            return self._streamed(url, file)

        return self._patiently(once, self.service.bucket_url)

    def _patiently(self, once: Callable[[], Any], where: str) -> Any:
        if self.service.offline:
            raise NetworkError(
                f"{where} is not asked, because SAESTEER_OFFLINE, HF_HUB_OFFLINE or a setting "
                "switches the network off; unset it, or import what is needed while online."
            )
        attempt = 0
        while True:
            outcome = once()
            if not isinstance(outcome, _Again):
                return outcome
            attempt += 1
            most = self.service.attempts
            most = most if outcome.answered else min(most, ATTEMPTS_UNANSWERED)
            if attempt >= most:
                raise NetworkError(
                    f"{where} gave no usable answer in {attempt} attempts ({outcome.failure}); "
                    "check the network and try again later, what is cached needs no network."
                )
            self._sleep(self._pause(outcome, attempt - 1, where))

    def _pause(self, outcome: _Again, attempt: int, where: str) -> float:
        longest = self.service.longest_wait
        if outcome.wait is None:
            wait = web_requests.doubled_wait(attempt, self.service.first_wait, longest)
            return min(wait * (1 + 0.5 * self._chance()), longest)
        if outcome.wait > longest:
            raise NetworkError(
                f"{where} asks to wait {outcome.wait:.0f} s ({outcome.failure}); try again then, "
                "what was answered is cached."
            )
        return outcome.wait

    def _sent(
        self,
        method: str,
        url: str,
        payload: Any,
        limit: float,
        *,
        key: bool,
        params: dict[str, str] | None = None,
    ) -> _Reply | _Again:
        failure, body, response = None, None, None
        try:
            with self._request(method, url, payload, limit, key=key, params=params) as response:
                body = web_requests.read_body(response, time.monotonic() + limit, LARGEST_REPLY)
        except _broken() as error:
            # Only the kind: messages can hold headers. Outside the except block, so that nothing
            # raised later carries the request along.
            failure = type(error).__name__
        if failure is not None or response is None:
            answered = response is not None
            kind = "a broken answer" if answered else "no answer"
            return _Again(f"{kind}, {failure}", answered=answered)
        if body is None:
            return _Again(f"no complete answer in {limit:g} s")
        return _Reply(response.status_code, response.headers, self._without_key(body))

    def _streamed(self, url: str, file: BinaryIO) -> int | _Again:
        failure, response, size = None, None, 0
        # A large file may take long, as long as it keeps coming.
        limit = self.service.timeout
        try:
            with self._request("GET", url, None, limit, key=False) as response:
                if response.status_code == 200:
                    for piece in web_requests.pieces(response):
                        _write(file, piece)
                        size += len(piece)
                    response.raw.release_conn()
        except _broken() as error:
            failure = type(error).__name__
        if failure is not None or response is None:
            failure = f"broken off after {size} bytes, {failure}"
            return _Again(failure, answered=response is not None)
        reply = _Reply(response.status_code, response.headers, b"")
        found = self._plain(reply, url)
        return found if isinstance(found, _Again) else size

    def _request(
        self,
        method: str,
        url: str,
        payload: Any,
        limit: float,
        *,
        key: bool,
        params: dict[str, str] | None = None,
    ) -> Response:
        variable = self.service.key_variable if key else None
        return self._opened().request(
            method,
            url,
            json=payload,
            params=params,
            auth=web_requests.signed(variable, HEADER, ""),
            timeout=limit,
            # A redirect could carry the key to another host.
            allow_redirects=False,
            stream=True,
        )

    def _opened(self) -> Session:
        if self._session is None:
            from http.cookiejar import DefaultCookiePolicy

            import requests

            self._session = requests.Session()
            self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            self._session.headers["User-Agent"] = "saesteer"
        return self._session

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _answer(self, reply: _Reply, path: str) -> Any:
        left = reply.headers.get("x-limit-remaining", "").strip()
        self.remaining = int(left) if left.isdigit() and len(left) < 9 else self.remaining
        parsed = web_requests.parsed_json(reply.body)
        is_page = reply.body.lstrip()[:1] == b"<"
        if 200 <= reply.status < 300:
            if parsed is not None or reply.body.strip() == b"null":
                return parsed
            if not is_page:
                return _Again("an answer that is cut off or no JSON")
            raise NetworkError(
                f"{self.service.base_url} answers with a web page instead of JSON; check the "
                "address (NEURONPEDIA_BASE_URL), which ends in /api at the service itself, and "
                "any proxy."
            )
        if reply.status == 404 and not is_page:
            return None
        return self._failure(reply, self.service.base_url, path, left == "0")

    def _plain(self, reply: _Reply, url: str) -> Any:
        if reply.status == 200:
            return reply.body
        return self._failure(reply, self.service.bucket_url, urlsplit(url).path, False)

    def _failure(self, reply: _Reply, where: str, path: str, used_up: bool) -> _Again:
        said = web_requests.said_by_server(reply.body, self.service.key_variable)
        wait = web_requests.retry_after(reply.headers.get("Retry-After"))
        if reply.status == 429 and wait is None and used_up:
            raise NetworkError(
                f"{where} has no more requests left for now (status 429{said}); limits are per "
                "hour, so go on later, what was answered is cached."
            )
        if reply.status in web_requests.RETRIED or reply.status >= 500:
            return _Again(f"status {reply.status}{said}", wait)
        if reply.status in web_requests.REFUSED:
            variable = self.service.key_variable
            raise NetworkError(
                f"{where} refuses {path} (status {reply.status}{said}); set the environment "
                f"variable {variable} to a key that is valid there."
            )
        if 300 <= reply.status < 400:
            target = urljoin(where, reply.headers.get("Location", ""))
            host = urlsplit(target).hostname or "another address"
            raise NetworkError(
                f"{where} sends on to {host[:80]}, where neither key nor question are sent; if "
                "that is right, name its address in NEURONPEDIA_BASE_URL or NEURONPEDIA_BUCKET_URL."
            )
        raise NetworkError(
            f"{where} refuses {path} (status {reply.status}{said}); check the address, and the "
            "names of model and source."
        )

    def _without_key(self, body: bytes) -> bytes:
        # A server that echoes the key must not bring it into results or the cache.
        key = web_requests.key_in(self.service.key_variable)
        return body.replace(key.encode("ascii"), b"***") if key else body


def _write(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise OutputError(
            f"{file.name}: a bulk file cannot be written ({error.strerror or error}); free some "
            "space or set SAESTEER_CACHE to another folder."
        ) from error


def _broken() -> tuple[type[BaseException], ...]:
    import requests
    from urllib3.exceptions import HTTPError

    return (requests.RequestException, HTTPError, OSError, UnicodeError)
