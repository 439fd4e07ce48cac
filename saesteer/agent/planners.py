"""Planners: whoever says what to do next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from saesteer.agent.briefing import messages
from saesteer.agent.budget import Budget
from saesteer.agent.experiments import Workshop
from saesteer.agent.state import State
from saesteer.agent.tools import tool_schemas
from saesteer.errors import NetworkError
from saesteer.evaluation.llm_client import ChatClient, Endpoint, Reply


@dataclass(frozen=True)
class Answer:
    """What a planner says.

    Attributes:
        tool: The tool it names; None where it cannot be read.
        arguments: What it gives the tool.
        problem: Why it cannot be read.
        tokens_in: Prompt tokens spent.
        tokens_out: Answer tokens spent.
    """

    tool: Any
    arguments: Any
    problem: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class Planner(Protocol):
    """Says what to do next."""

    def next(self, state: State) -> Answer | None:
        """Return the next answer; None where the budget does not allow one more."""


class LlmPlanner:
    """Asks an OpenAI-compatible endpoint, with tool calling or for JSON answers.

    Args:
        workshop: The experiments there are.
        budget: What may be spent; no answer is asked for that could overrun it.
        client: Who asks; made from the settings if None.
    """

    def __init__(
        self, workshop: Workshop, budget: Budget, client: ChatClient | None = None
    ) -> None:
        settings = workshop.config.planner
        self.workshop, self.budget = workshop, budget
        self.client = client or ChatClient(
            Endpoint(
                model=settings.model or "",
                base_url=settings.base_url,
                key_variable=settings.key_variable,
                timeout=settings.timeout,
                attempts=settings.attempts,
                first_wait=settings.first_wait,
                max_tokens=settings.max_tokens,
            )
        )
        self.calls_tools = settings.tools is not False
        self._may_fall_back = settings.tools == "auto"

    def next(self, state: State) -> Answer | None:
        """Ask for the next step.

        Raises:
            NetworkError: The endpoint refuses the key or the question.
        """
        payload = self._payload(state)
        if not self.budget.affords(state, _tokens(payload)):
            return None
        try:
            reply = self.client.ask(payload)
        except NetworkError:
            if not (self.calls_tools and self._may_fall_back):
                raise
            # Endpoints without tool calling refuse a question that names tools.
            self.calls_tools = False
            payload = self._payload(state)
            reply = self.client.ask(payload)
        self._may_fall_back = False
        return _answer(reply, payload)

    def _payload(self, state: State) -> dict[str, Any]:
        said = messages(self.workshop, self.budget, state, as_json=not self.calls_tools)
        payload = self.client.payload(said)
        if self.calls_tools:
            payload |= {"tools": tool_schemas(), "tool_choice": "auto"}
        return payload


def _answer(reply: Reply, payload: dict[str, Any]) -> Answer:
    body = reply.body or {}
    message = _message(body)
    spent = _usage(body, payload, message)
    if reply.body is None:
        return Answer(None, None, f"no answer to read ({reply.failure})", *spent)
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        call = calls[0].get("function") if isinstance(calls[0], dict) else None
        if not isinstance(call, dict):
            return Answer(None, None, "a tool call without a function", *spent)
        return _read_call(call.get("name"), call.get("arguments"), spent)
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return Answer(None, None, "neither a tool call nor words", *spent)
    found = _object_in(content)
    if found is None:
        return Answer(None, None, 'no JSON object {"tool": ..., "arguments": ...}', *spent)
    return _read_call(found.get("tool"), found.get("arguments", {}), spent)


def _read_call(tool: Any, arguments: Any, spent: tuple[int, int]) -> Answer:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return Answer(None, None, f"the arguments of {str(tool)[:60]!r} are no JSON", *spent)
    return Answer(tool, arguments, None, *spent)


def _object_in(words: str) -> dict[str, Any] | None:
    """Return the first JSON object in words, which models like to wrap in a fence."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    start = words.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(words, start)
        except (ValueError, RecursionError):
            start = words.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _message(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return message if isinstance(message, dict) else {}


def _usage(
    body: dict[str, Any], payload: dict[str, Any], message: dict[str, Any]
) -> tuple[int, int]:
    """Return the tokens spent: as the endpoint counts, or more than they can have been."""
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    found = []
    for name, fallback in (("prompt_tokens", payload), ("completion_tokens", message)):
        count = usage.get(name)
        usable = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        found.append(count if usable else _tokens(fallback))
    return found[0], found[1]


def _tokens(value: Any) -> int:
    # English has about four characters a token, JSON about three.
    return len(json.dumps(value, ensure_ascii=False)) // 3 + 1
