"""The page's server: what may be asked, and text as it is written."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import uvicorn
from anyio import from_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from saesteer.app.guard import ADDRESS, Guard, refusal
from saesteer.report.page import TEMPLATE
from saesteer.utils.errors import ConfigError, SaesteerError
from saesteer.utils.terminal import say

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from saesteer.app.workbench import Workbench

MOST_BYTES = 256 * 1024
# Answers side by side: the plain one, and one for each vector that the page was opened with.
MOST_COLUMNS = 32
# A generation that is told to stop does so at its next token; for so long another waits for it.
PATIENCE = 2.0
BUSY = "the model is busy with another page's answer; wait until it ends, or stop it there."
PAGE = Path(__file__).parent / "page"
FILES = {
    "/": (PAGE / "app.html", "text/html"),
    "/report.css": (TEMPLATE / "style.css", "text/css"),
    "/app.css": (PAGE / "app.css", "text/css"),
    **{f"/{script.name}": (script, "text/javascript") for script in sorted(PAGE.glob("*.js"))},
}
# A run's report has scripts and styles inside it, and may be somebody else's: it is shown as a page
# of no origin, which can ask the app for nothing.
REPORT_POLICY = "sandbox allow-scripts allow-popups; frame-ancestors 'none'"


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Mix(_Asked):
    rest: float = 1.0
    features: dict[int, float] = Field(default_factory=dict, max_length=4096)


class _Mixed(_Asked):
    mix: _Mix | None = None

    @property
    def chosen(self) -> dict[str, Any] | None:
        return None if self.mix is None else self.mix.model_dump()


class _Strength(_Mixed):
    unit: Literal["norm", "raw", "max_act"] = "norm"


class _Prompt(_Asked):
    prompt: str
    chat: bool = True
    earlier: list[tuple[str, str]] = Field(default_factory=list, max_length=64)
    system: str | None = None


# The number of a vector: 0 is the mix, others follow.
_Number = Annotated[int, Field(ge=0)]


class _Write(_Strength, _Prompt):
    columns: list[tuple[_Number, float]] = Field(min_length=1, max_length=MOST_COLUMNS)
    temperature: float = Field(default=0.0, ge=0, le=10)
    max_new_tokens: int = Field(default=64, ge=1, le=2048)
    seed: int = Field(default=0, ge=0, lt=2**63)


class _Fluency(_Prompt):
    texts: list[str] = Field(min_length=1, max_length=MOST_COLUMNS)


class _Judge(_Asked):
    question: str
    texts: list[str] = Field(min_length=1, max_length=MOST_COLUMNS)


class _Cost(_Strength):
    strength: float
    vector: _Number = 0


class _StrengthAt(_Strength):
    kl: float = Field(ge=-20, le=20)
    vector: _Number = 0


class _Search(_Asked):
    words: str = Field(min_length=1, max_length=200)


class _Read(_Asked):
    text: str = Field(min_length=1)
    feature: int | None = Field(default=None, ge=0)
    probe: bool = False


class _Save(_Mixed):
    pass


class _Stopped(Exception):
    """Nobody listens any more."""


class _Stream(StreamingResponse):
    """Server-sent events; says when they are over, or whoever asked has gone away."""

    def __init__(self, events: AsyncIterator[str], over: threading.Event) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over.set()


def make_server(
    bench: Workbench, port: int, host: str = ADDRESS, token: str | None = None
) -> Guard:
    """Return the page's server as an ASGI application that answers at this address alone."""
    return Guard(Starlette(routes=_Handlers(bench).routes()), host, port, token)


def listen(port: int, host: str = ADDRESS) -> socket.socket:
    """Return a socket that listens at an address; port 0 is any free one.

    Raises:
        ConfigError: The port is taken or none of this user's, or the address another machine's.
    """
    found = None
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        # From now on a browser waits until the page is served, instead of being refused.
        found.listen()
    except (OSError, OverflowError, UnicodeError) as error:
        if found is not None:
            found.close()
        raise ConfigError(
            f"port {port} of {host} cannot be listened at ({error}); give another, such as --port "
            "8123, or --port 0 for any that is free."
        ) from error
    return found


def serve(
    bench: Workbench, listening: socket.socket, host: str = ADDRESS, token: str | None = None
) -> None:
    """Serve the page until Ctrl-C."""
    made = make_server(bench, listening.getsockname()[1], host, token)
    # What streams when the server is stopped is cut off.
    config = uvicorn.Config(made, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


class _Handlers:
    """What may be asked of a workbench; its model does one thing at a time."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._model = threading.Lock()
        self._writing = False

    def routes(self) -> list[Route]:
        files = [Route(path, _file(*found)) for path, found in FILES.items()]
        asked: dict[str, Callable[[Request], Any]] = {
            "write": self.write,
            "cost": self._answering(
                _Cost, lambda bench, a: bench.cost(a.chosen, a.strength, a.unit, a.vector)
            ),
            "strength": self._answering(
                _StrengthAt, lambda bench, a: bench.strength_at(a.chosen, a.kl, a.unit, a.vector)
            ),
            "search": self._answering(_Search, lambda bench, a: bench.search(a.words), model=False),
            "read": self._answering(
                _Read, lambda bench, a: bench.read(a.text, a.feature, probe=a.probe)
            ),
            "fluency": self._answering(
                _Fluency, lambda bench, a: {"answers": bench.fluency(**a.model_dump())}
            ),
            "judge": self._answering(
                _Judge, lambda bench, a: bench.evidence.read(a.question, a.texts), model=False
            ),
            "save": self._answering(_Save, _saved, model=False),
        }
        posts = [Route(f"/api/{name}", call, methods=["POST"]) for name, call in asked.items()]
        # Browsers ask for a picture of their own accord.
        picture = Route("/favicon.ico", lambda _: Response(status_code=204))
        report = Route("/report", self.report)
        return [*files, picture, report, Route("/api/about", self.about), *posts]

    def _turn(self) -> bool:
        """Wait for the model; False where an answer is being written, which can take long."""
        while not self._model.acquire(timeout=PATIENCE):
            if self._writing:
                return False
        return True

    async def about(self, _: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._bench.about))

    async def report(self, _: Request) -> Response:
        file = self._bench.evidence.report
        if file is None or not file.is_file():
            return refusal("there is no run whose report to show; start the app with a run.", 404)
        policy = {"Content-Security-Policy": REPORT_POLICY}
        return Response(file.read_bytes(), media_type="text/html", headers=policy)

    def _answering(
        self,
        form: type[_Asked],
        answer: Callable[[Workbench, Any], Any],
        model: bool = True,
    ) -> Callable[[Request], Any]:
        """Return a handler that answers a form at once, after its turn where it needs the model."""

        async def handler(request: Request) -> Response:
            asked = await _form(request, form)
            if isinstance(asked, Response):
                return asked

            def answered() -> Response:
                # Waited for where it is used: a thread that waits must not keep the one whose
                # turn it is from getting a thread.
                if model and not self._turn():
                    return refusal(BUSY, 409)
                try:
                    if from_thread.run(request.is_disconnected):
                        # The slider has moved on, say.
                        return Response(status_code=204)
                    found = answer(self._bench, asked)
                    return found if isinstance(found, Response) else JSONResponse(found)
                except Exception as error:
                    return refusal(_told(error), 400 if isinstance(error, SaesteerError) else 500)
                finally:
                    if model:
                        self._model.release()

            return await run_in_threadpool(answered)

        return handler

    async def write(self, request: Request) -> Response:
        asked = await _form(request, _Write)
        if isinstance(asked, Response):
            return asked
        if not await run_in_threadpool(self._turn):
            return refusal(BUSY, 409)
        self._writing = True
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def tell(event: dict[str, Any]) -> None:
            if gone.is_set():
                raise _Stopped
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            last: dict[str, Any] = {}
            try:
                given = asked.model_dump(exclude={"mix"})
                write = self._bench.write
                answers = write(
                    mix=asked.chosen,
                    on_piece=lambda row, text: tell({"row": row, "text": text}),
                    **given,
                )
                last = {"answers": answers}
            except _Stopped:
                pass
            except Exception as error:
                last = {"error": _told(error)}
            finally:
                self._writing = False
                self._model.release()
            if last and not gone.is_set():
                tell(last)

        async def stream() -> AsyncIterator[str]:
            event: dict[str, Any] = {"row": 0}
            while "row" in event:
                event = await events.get()
                lines = [event]
                # What the columns got at one step goes out together.
                while not events.empty():
                    event = events.get_nowait()
                    lines.append(event)
                yield "".join(f"data: {json.dumps(line)}\n\n" for line in lines)

        threading.Thread(target=work, daemon=True).start()
        return _Stream(stream(), gone)


def _told(error: Exception) -> str:
    """Return what the page says of an error; which fault of ours it was says the terminal."""
    if isinstance(error, SaesteerError):
        return str(error)
    say(traceback.format_exc(), err=True, end="")
    return "the app failed at this; the terminal says how."


def _file(path: Path, kind: str) -> Callable[[Request], Any]:
    async def handler(_: Request) -> Response:
        return Response(path.read_bytes(), media_type=kind)

    return handler


def _saved(bench: Workbench, asked: _Save) -> Response:
    with tempfile.TemporaryDirectory() as folder:
        content = bench.mixed(asked.chosen).save(Path(folder)).read_bytes()
    return Response(content, media_type="application/octet-stream")


async def _form(request: Request, form: type[_Asked]) -> Any:
    """Return what a request asks, or the refusal of it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return refusal("the app takes JSON alone (Content-Type: application/json).", 415)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return refusal(f"that is more than {MOST_BYTES // 1024} KiB; shorten it.", 413)
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the request"
        return refusal(f"{place}: {first['msg']}; change it and ask again.", 422)
