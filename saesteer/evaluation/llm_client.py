"""Asking an OpenAI-compatible endpoint: patient with the server, silent about the key."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from saesteer.utils.errors import ConfigError, NetworkError
from saesteer.utils.http import (
    HttpReply,
    Key,
    Patience,
    UnansweredError,
    is_plain_address,
    is_variable_name,
    request,
    said_by_server,
)

LARGEST_REPLY = 200_000


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask; `Patience` says what timeout, attempts and waits mean."""

    model: str  # its name at the endpoint
    base_url: str = "https://api.openai.com/v1"  # what "/chat/completions" is put behind
    # Name of the environment variable that holds the key; without a value no key is sent, as local
    # servers want it. The key itself is never a setting.
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    attempts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 120.0
    max_tokens: int | None = 256  # of a reply; left to the server if None
    called: str = "the LLM judge"  # in error messages

    def __post_init__(self) -> None:
        # No message repeats a value that may hold a key put in the wrong place.
        if not self.model.strip():
            raise ConfigError(f"{self.called}'s model is empty; name one that the endpoint serves.")
        if not is_variable_name(self.key_variable):
            raise ConfigError(
                f"{self.called}'s key_variable is no name of an environment variable; give a name "
                "such as OPENAI_API_KEY, never the key itself."
            )
        if not is_plain_address(self.base_url):
            raise ConfigError(
                f"{self.called}'s base_url is no plain http or https address; give one such as "
                "http://localhost:8000/v1, without user, password or query."
            )


class Reply(NamedTuple):
    """What came of one question."""

    text: str | None  # the model's words; None where there are none
    failure: str | None = None  # why there are none
    answered: bool = True  # whether the server answered at all, if only with something unreadable
    body: dict[str, Any] | None = None  # the whole answer; None where it is no JSON object
    # Attempts whose answer did not arrive, though the server may have worked at it and charge for
    # it.
    unread: int = 0


class ChatClient:
    """Asks for chat completions at temperature 0, where the model has one; `sleep` waits."""

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._sleep = sleep
        self._refused: set[str] = set()

    def payload(self, messages: Sequence[dict[str, str]]) -> dict[str, Any]:
        """Return what is posted; it decides the answer, so it is what a cache goes by."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(messages),
            "temperature": 0,
        }
        if self.endpoint.max_tokens is not None:
            body["max_tokens"] = self.endpoint.max_tokens
        return body

    def ask(self, payload: dict[str, Any]) -> Reply:
        """Post a payload, again and again while the server is busy or away.

        Returns:
            The reply; a failed one where the server stayed away or sent something unreadable.

        Raises:
            NetworkError: The server refuses the question, whose asking again would not help, or
                asks to wait longer than `longest_wait`.
            ConfigError: The key cannot be sent.
        """
        unread = 0
        try:
            while True:
                sent = self._fitted(payload)
                reply = self._posted(sent)
                unread += reply.unread
                if reply.status < 300:
                    break
                said = f"status {reply.status}{said_by_server(reply.body)}"
                misfit = _misfit(said, sent) if reply.status == 400 else None
                if misfit is None:
                    raise NetworkError(
                        f"{self._where} refuses the question ({said}); check base_url and model "
                        f"({self.endpoint.model!r})."
                    )
                self._refused.add(misfit)
        except UnansweredError as error:
            return Reply(None, error.failure, answered=False, unread=unread + error.unread)
        parsed = reply.json if isinstance(reply.json, dict) else None
        text = _words(parsed)
        failure = "unreadable answer" if text is None else None
        return Reply(text, failure, body=parsed, unread=unread)

    @property
    def _where(self) -> str:
        return f"{self.endpoint.called} at {self.endpoint.base_url}"

    def _posted(self, payload: dict[str, Any]) -> HttpReply:
        endpoint = self.endpoint
        return request(
            "POST",
            f"{endpoint.base_url.rstrip('/')}/chat/completions",
            payload=payload,
            key=Key(endpoint.key_variable),
            patience=Patience(
                timeout=endpoint.timeout,
                attempts=endpoint.attempts,
                attempts_unanswered=endpoint.attempts,
                first_wait=endpoint.first_wait,
                longest_wait=endpoint.longest_wait,
                largest=LARGEST_REPLY,
            ),
            called=self._where,
            sleep=self._sleep,
        )

    def _fitted(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return a payload without the parameters that the server has been found to refuse."""
        body = dict(payload)
        if "temperature" in self._refused:
            body.pop("temperature", None)
        if "max_tokens" in self._refused and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if "logprobs" in self._refused:
            body.pop("logprobs", None)
            body.pop("top_logprobs", None)
        return body


def data_block(fields: Mapping[str, Any]) -> str:
    """Return what a question is about as JSON between marker lines, which it cannot close itself.

    The markers hang on the content's own hash.
    """
    data = json.dumps(fields, ensure_ascii=False)
    marker = hashlib.sha256(json.dumps(fields).encode("ascii")).hexdigest()[:16]
    return f"<data {marker}>\n{data}\n</data {marker}>"


def _misfit(said: str, payload: dict[str, Any]) -> str | None:
    """Return the parameter that is refused, of those that not every model takes."""
    words = {
        "max_tokens": "max_completion_tokens",
        "temperature": "temperature",
        "logprobs": "logprobs",
    }
    return next((name for name, word in words.items() if name in payload and word in said), None)


def _words(parsed: Any) -> str | None:
    choices = parsed.get("choices") if isinstance(parsed, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None
