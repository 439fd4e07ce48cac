"""Who may ask: the app's own page alone, by its address and, beyond this machine, by its token."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESS = "127.0.0.1"
# What stands for every address of this machine.
EVERYWHERE = ("0.0.0.0", "::")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Answers nobody but the app's own page, and puts the page's policy on every answer.

    A page of another origin, or one whose name was made to point here, is refused with 403; where
    there is a token, whoever does not have it with 401. The page's address carries it, and the
    page keeps it as a cookie.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None = None) -> None:
        self._app, self._port, self._token = app, port, token
        self._cookie = f"saesteer-{port}"
        self._names = {host.lower()}
        # Whatever a name points to, an address cannot be made to point here from elsewhere.
        self._any_address = host in EVERYWHERE
        if self._any_address:
            self._names |= {socket.gethostname().lower(), "localhost"}
        elif is_loopback(host):
            self._names |= {ADDRESS, "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope)
        added = dict(HEADERS)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                policy = [(name.lower().encode(), value.encode()) for name, value in added.items()]
                policy = [(name, value) for name, value in policy if name not in own]
                message = {**message, "headers": [*message["headers"], *policy]}
            await send(message)

        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        answer: ASGIApp = self._app
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            answer = refusal("the app answers at its own address alone.", 403)
        elif any(origin != f"http://{hosts[0]}" for origin in origins):
            answer = refusal("another page may not use the app; open it at its own address.", 403)
        elif self._token is not None and not self._is_known(request, self._token):
            answer = refusal("the app is opened by the address that its terminal showed.", 401)
        elif self._token is not None and request.url.path == "/":
            added["Set-Cookie"] = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        await answer(scope, receive, send_with_policy)

    def _is_own(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if port != str(self._port):
            return False
        name = name.strip("[]").lower()
        return name in self._names or (self._any_address and _is_address(name))

    def _is_known(self, request: Request, token: str) -> bool:
        shown = [request.cookies.get(self._cookie, "")]
        if request.url.path == "/":
            shown.append(request.query_params.get("token", ""))
        # In as much time however much of it is right.
        found = [secrets.compare_digest(one.encode(), token.encode()) for one in shown]
        return any(found)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address, or what a name stands for here."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(one[4][0])).is_loopback for one in found)


def address_of(host: str, port: int, token: str | None = None) -> str:
    """Return the page's address, with its token."""
    name = socket.gethostname() if host in EVERYWHERE else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + ("" if token is None else f"?token={token}")


def refusal(sentence: str, status: int) -> JSONResponse:
    """Return an error that the page shows."""
    return JSONResponse({"error": sentence}, status_code=status)
