"""Asking web services: patient with a busy one, within bounds of time and size, silent of keys."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from saesteer.utils.errors import ConfigError, NetworkError, OutputError
from saesteer.utils.text import one_line

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

RETRIED = (408, 425, 429)
REFUSED = (401, 403)
_PIECE = 65_536


@dataclass(frozen=True)
class Patience:
    """How long to wait for a service, and how often to ask it."""

    # The longest that one whole exchange may take, seconds; where the body goes to a file, the
    # longest that nothing may come.
    timeout: float = 60.0
    # How often something is asked while the service is busy.
    attempts: int = 5
    # The same where it does not answer at all, and so is likely not there.
    attempts_unanswered: int = 5
    # Seconds before the second attempt where the service names none; doubled each time.
    first_wait: float = 1.0
    # The longest wait, seconds; a service that asks for more gets an error.
    longest_wait: float = 120.0
    # By how much a wait that the service does not name may be longer, by chance.
    jitter: float = 0.0
    # The most bytes of a reply.
    largest: int = 64_000_000

    def pause(self, failure: _Failure, attempt: int, where: str, chance: float) -> float:
        """Return the seconds to wait after a failed attempt, counted from 1."""
        longest = self.longest_wait
        if failure.wait is None:
            # The exponent is bounded, so that no power overflows.
            wait = min(self.first_wait * 2.0 ** min(attempt - 1, 30), longest)
            return min(wait * (1 + self.jitter * chance), longest)
        if failure.wait > longest:
            raise NetworkError(
                f"{where} asks to wait {failure.wait:.0f} s ({failure}); try again then, what is "
                "there is kept."
            )
        return failure.wait


@dataclass(frozen=True)
class Key:
    """Which environment variable holds the key, and how it is sent; without a value none is."""

    variable: str
    header: str = "Authorization"
    scheme: str = "Bearer "


@dataclass(frozen=True)
class HttpReply:
    """A reply with a status below 300, or one of 400 and more that asking again would not change.

    The key, where a server echoes it, is not in the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    unread: int = 0  # Earlier attempts whose answer did not arrive, though it may have been made.

    @property
    def json(self) -> Any:
        """What the body says as JSON; None where it is none."""
        return parsed_json(self.body)


class UnansweredError(NetworkError):
    """A service gave no usable answer in any attempt."""

    def __init__(self, message: str, failure: str, unread: int) -> None:
        super().__init__(message)
        self.failure = failure  # What happened last.
        self.unread = unread  # Attempts whose answer did not arrive, though it may have been made.


class _Failure(Exception):
    """What may pass; `wait` has the seconds that the service asks to wait, if it says so."""

    def __init__(
        self, said: str, wait: float | None = None, *, answered: bool = True, unread: bool = False
    ) -> None:
        super().__init__(said)
        self.wait, self.answered, self.unread = wait, answered, unread


def request(
    method: str,
    url: str,
    *,
    payload: Any = None,
    params: Mapping[str, str] | None = None,
    key: Key | None = None,
    patience: Patience = Patience(),
    called: str | None = None,
    check: Callable[[HttpReply], str | None] = lambda reply: None,
    into: BinaryIO | None = None,
    session: Session | None = None,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> HttpReply:
    """Ask a web service, again and again while it is busy or away.

    Asked again are replies of status 408, 425, 429 or 500 and more, broken and late ones, and those
    that `check` wants again; after the wait that the service names, else a doubled one.
    Redirects are not followed, since they could carry the key to another host.

    Args:
        payload: What is posted as JSON.
        params: The query.
        called: What error messages call the service; its address without the path if None.
        check: Looks at every reply first: it returns why one is to be asked for again, and may
            raise.
        into: Where the body of a reply of status 200 goes, from its start; then `body` is empty.
        session: Connections that are kept open (`open_session`).
        chance: Gives numbers from 0 to 1.

    Returns:
        The reply; statuses from 400 on that asking again would not change are the caller's to say.

    Raises:
        UnansweredError: No attempt gave a usable answer.
        NetworkError: The service refuses the key, sends on to another address, or asks to wait
            longer than `longest_wait`.
        ConfigError: The variable holds something that is no key.
        OutputError: `into` cannot be written.
    """
    where = called or f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
    secret = key_in(key.variable) if key else ""
    asked = {"method": method, "url": url, "json": payload, "params": params}
    asked["auth"] = _signed(key, secret)
    unread = attempt = 0
    with nullcontext(session) if session is not None else open_session() as opened:
        while True:
            attempt += 1
            try:
                reply = _once(opened, asked, patience, into)
                body = reply.body.replace(secret.encode(), b"***") if secret else reply.body
                reply = replace(reply, body=body, unread=unread)
                if reason := check(reply):
                    raise _Failure(reason)
                return _final(reply, url, where, key)
            except _Failure as error:
                failure = error
            # Outside the except block, so that what is raised here carries nothing along.
            unread += failure.unread
            most = patience.attempts
            most = most if failure.answered else min(most, patience.attempts_unanswered)
            if attempt >= most:
                raise UnansweredError(
                    f"{where} gave no usable answer in {attempt} attempts ({failure}); check the "
                    "network and try again later, what is there is kept.",
                    str(failure),
                    unread,
                )
            sleep(patience.pause(failure, attempt, where, chance()))


def open_session() -> Session:
    """Return connections that are kept open, without cookies; close them when done."""
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    session = requests.Session()
    pools = {
        "http": _watched(HTTPConnectionPool, HTTPConnection),
        "https": _watched(HTTPSConnectionPool, HTTPSConnection),
    }

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
            super().init_poolmanager(*arguments, **named)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, proxy: str, **named: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **named)
            if not proxy.lower().startswith("socks"):
                manager.pool_classes_by_scheme = pools
            return manager

    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["User-Agent"] = "saesteer"
    return session


def _once(
    session: Session, asked: Mapping[str, Any], patience: Patience, into: BinaryIO | None
) -> HttpReply:
    import requests
    from urllib3.exceptions import HTTPError

    response, limit = None, patience.timeout
    with _deadline(limit) as deadline:
        try:
            # `with` closes a reply half read.
            with session.request(
                **asked, timeout=limit, allow_redirects=False, stream=True
            ) as response:
                file = into if response.status_code == 200 else None
                if file is not None:
                    deadline.cancel()
                    file.seek(0)
                    file.truncate()
                body = bytearray()
                for piece in _pieces(response):
                    if file is not None:
                        _write(file, piece)
                        continue
                    body += piece
                    if len(body) > patience.largest:
                        most = f"an answer of more than {patience.largest:,} bytes"
                        raise _Failure(most, unread=True)
                if deadline.passed:
                    raise _Failure(deadline.said, unread=True)
                # Read to its end, so that the connection serves the next request.
                response.raw.release_conn()
            return HttpReply(response.status_code, response.headers, bytes(body))
        except (requests.RequestException, HTTPError, OSError, UnicodeError) as error:
            # Only the kind: messages can hold headers.
            failure = type(error).__name__
            connected = not isinstance(error, requests.ConnectionError)
    answered = response is not None
    if deadline.passed:
        raise _Failure(deadline.said, answered=answered, unread=True)
    kind = "a broken answer" if answered else "no answer"
    raise _Failure(f"{kind} ({failure})", answered=answered, unread=answered or connected)


class _Deadline:
    """Ends an exchange of this thread by closing its connection, whatever it is waiting for.

    A socket's own timeout starts anew with every byte, so a server that drips its headers, or a
    TLS handshake, would not be bounded by it.
    """

    under_way = threading.local()

    def __init__(self, seconds: float) -> None:
        self.passed, self.said = False, f"no complete answer in {seconds:g} s"
        self._twins: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def watch(self, twin: socket.socket) -> None:
        """Close this connection too; one that comes too late is closed at once."""
        with self._lock:
            self._twins.append(twin)
        if self.passed:
            self._cut()

    def end(self) -> None:
        """Let go of what was watched."""
        self.cancel()
        with self._lock:
            for twin in self._twins:
                twin.close()
            self._twins.clear()

    def cancel(self) -> None:
        """Let what is under way take its time."""
        self._timer.cancel()

    def _cut(self) -> None:
        self.passed = True
        with self._lock:
            for twin in self._twins:
                with suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)


@contextmanager
def _deadline(seconds: float) -> Iterator[_Deadline]:
    found = _Deadline(seconds)
    _Deadline.under_way.one = found
    found._timer.start()
    try:
        yield found
    finally:
        found.end()
        _Deadline.under_way.one = None


def _watched(pool: Any, connection: Any) -> Any:
    """Return one of urllib3's pools with connections that the deadline under way knows of."""

    class Watched(connection):
        def _new_conn(self) -> socket.socket:
            opened = super()._new_conn()
            _watch(opened)
            return opened

        def request(self, *arguments: Any, **named: Any) -> None:
            # One that is kept open from an earlier exchange.
            if self.sock is not None:
                _watch(self.sock)
            super().request(*arguments, **named)

    return type("Pool", (pool,), {"ConnectionCls": Watched})


def _watch(opened: socket.socket) -> None:
    deadline = getattr(_Deadline.under_way, "one", None)
    if deadline is not None:
        # A twin, since TLS takes the socket itself over and a reply may outlive its connection.
        deadline.watch(socket.socket(fileno=os.dup(opened.fileno())))


def _final(reply: HttpReply, url: str, where: str, key: Key | None) -> HttpReply:
    """Return a reply that asking again would not change."""
    said = f"status {reply.status}{said_by_server(reply.body)}"
    if reply.status in RETRIED or reply.status >= 500:
        raise _Failure(said, retry_after(reply.headers.get("Retry-After")))
    if reply.status in REFUSED and key is not None:
        raise NetworkError(
            f"{where} refuses the key ({said}); set the environment variable {key.variable} to one "
            "that is valid there."
        )
    if 300 <= reply.status < 400:
        host = urlsplit(urljoin(url, reply.headers.get("Location", ""))).hostname or "elsewhere"
        raise NetworkError(
            f"{where} sends on to {host[:80]} (status {reply.status}), where neither key nor "
            "question are sent; if that is right, name its address in the settings."
        )
    return reply


def is_plain_address(url: str) -> bool:
    """Return whether a URL is http or https without user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return usable and not ("@" in parts.netloc or parts.query or parts.fragment)


def is_variable_name(name: str) -> bool:
    """Return whether a text can be an environment variable's name, rather than a key itself."""
    return name.isidentifier() and name.isascii()


def key_in(variable: str) -> str:
    """Return the key that an environment variable holds, "" if none.

    Raises:
        ConfigError: It holds characters that no key has.
    """
    key = os.environ.get(variable, "").strip()
    if re.fullmatch(r"[\x21-\x7e]*", key) is None:
        raise ConfigError(
            f"the environment variable {variable} holds spaces or characters that no key has; set "
            "it to the key alone."
        )
    return key


def _signed(key: Key | None, secret: str) -> Callable[[PreparedRequest], PreparedRequest]:
    """Return a requests `auth` that sends the key.

    An auth of our own also keeps requests from sending a password out of ~/.netrc.
    """

    def sign(request: PreparedRequest) -> PreparedRequest:
        if key is not None and secret:
            request.headers[key.header] = f"{key.scheme}{secret}"
        return request

    return sign


def _pieces(response: Response) -> Iterator[bytes]:
    """Yield a streamed reply as it comes in.

    A read of many bytes waits until it is full, and the socket's own timeout starts anew with every
    byte that drips in; so only what is there is read.
    """
    read_some = getattr(response.raw, "read1", None)
    if read_some is None:
        yield from response.iter_content(chunk_size=1)
        return
    while piece := read_some(_PIECE, decode_content=True):
        yield piece


def _write(file: BinaryIO, piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise OutputError(
            f"{file.name}: what was fetched cannot be written ({error.strerror or error}); "
            "free some space or set SAESTEER_CACHE to another folder."
        ) from error


def parsed_json(body: bytes) -> Any:
    """Return what a body says as JSON; None where it is none.

    Halves of a character that was cut in two, which can be neither printed nor kept, become "?".
    """
    try:
        found = json.loads(body)
        if b"\\ud" not in body.lower():
            return found
        return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3).

    None where there is no header, or no sense in it.
    """
    text = (header or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def said_by_server(body: bytes) -> str:
    """Return the message in an error's JSON, short and on one line, after a colon; else ""."""
    parsed = parsed_json(body)
    if not isinstance(parsed, dict):
        return ""
    error = parsed.get("error", parsed.get("message"))
    message = error.get("message") if isinstance(error, dict) else error
    return f": {one_line(message)}" if isinstance(message, str) and message.strip() else ""
