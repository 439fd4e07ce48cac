"""What every client of a web service here does alike: waits, reads within bounds, hides its key."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

RETRIED = (408, 425, 429)
REFUSED = (401, 403)
_PIECE = 65_536
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
    return _NAME.fullmatch(name) is not None


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


def signed(
    variable: str | None, header: str = "Authorization", scheme: str = "Bearer "
) -> Callable[[PreparedRequest], PreparedRequest]:
    """Return a requests `auth` that sends the key of an environment variable, if it holds one.

    An auth of our own also keeps requests from sending a password out of ~/.netrc. The key is read
    when a request goes out and kept nowhere.

    Args:
        variable: The environment variable; None sends no key.
        header: The header that carries it.
        scheme: What stands before the key.
    """

    def sign(request: PreparedRequest) -> PreparedRequest:
        key = os.environ.get(variable, "").strip() if variable else ""
        if key:
            request.headers[header] = f"{scheme}{key}"
        return request

    return sign


def pieces(response: Response) -> Iterator[bytes]:
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


def read_body(response: Response, deadline: float, largest: int) -> bytes | None:
    """Return a streamed reply's body; None where it is too long or not there in time.

    Args:
        response: A reply that was asked for with `stream=True`.
        deadline: The latest end, by `time.monotonic()`.
        largest: The most bytes.

    Raises:
        requests.RequestException: The connection broke.
        urllib3.exceptions.HTTPError: The same, or the reply is shorter than it says.
    """
    body = bytearray()
    for piece in pieces(response):
        body += piece
        if len(body) > largest or time.monotonic() > deadline:
            return None
    # Read to its end, so that the connection serves the next request.
    response.raw.release_conn()
    return bytes(body)


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

    Returns:
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


def doubled_wait(attempt: int, first: float, longest: float) -> float:
    """Return how long to wait after the attempt of this number, from 0: doubled each time."""
    # The exponent is bounded, so that no power overflows.
    return min(first * 2.0 ** min(attempt, 30), longest)


def said_by_server(body: bytes, variable: str | None) -> str:
    """Return the message in an error's JSON, short and without the key, after a colon; else ""."""
    parsed = parsed_json(body)
    if not isinstance(parsed, dict):
        return ""
    error = parsed.get("error", parsed.get("message"))
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not message.strip():
        return ""
    key = os.environ.get(variable, "").strip() if variable else ""
    clean = message.replace(key, "***") if key else message
    return f": {' '.join(clean.split())[:200]}"
