"""Planners: whoever says what to do next."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from saesteer.agent.briefing import messages
from saesteer.agent.budget import Budget
from saesteer.agent.experiments import Workshop
from saesteer.agent.state import State
from saesteer.agent.tools import tool_schemas
from saesteer.evaluation.llm_client import ChatClient, Reply
from saesteer.utils.errors import NetworkError

NO_CALL = 'no JSON object {"tool": ..., "arguments": ...}'
_LARGEST_COUNT = 10**12
_MOST_TRIES = 200


@dataclass(frozen=True)
class Answer:
    """What a planner says.

    Attributes:
        tool: The tool it names; None where it cannot be read.
        arguments: What it gives the tool.
        problem: Why it cannot be read.
        tokens_in: Prompt tokens spent.
        tokens_out: Answer tokens spent.
        dropped: Tool calls after the first, which are not acted on.
    """

    tool: Any
    arguments: Any
    problem: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    dropped: int = 0


class Planner(Protocol):
    """Says what to do next."""

    def next(self, state: State) -> Answer | None:
        """Return the next answer; None where the budget does not allow one more."""


class LlmPlanner:
    """Asks an OpenAI-compatible endpoint, with tool calling or for JSON answers.

    Args:
        workshop: The experiments there are.
        budget: What may be spent; no answer is asked for that could overrun it.
        tell: Writes the events "asking", with what the answer can take at most, and "unasked"
            into the journal, so that a kill while waiting loses no count.
    """

    def __init__(self, workshop: Workshop, budget: Budget, tell: Callable[..., None]) -> None:
        settings = workshop.config.planner
        self.workshop, self.budget, self._tell = workshop, budget, tell
        self.client = ChatClient(settings.endpoint())
        self.calls_tools = settings.tools is not False
        self._may_fall_back = settings.tools == "auto"

    def next(self, state: State) -> Answer | None:
        """Ask for the next step.

        Raises:
            NetworkError: The endpoint refuses the key or the question.
        """
        try:
            answer = self._ask(state)
        except NetworkError:
            if not (self.calls_tools and self._may_fall_back):
                raise
            # Endpoints without tool calling refuse a question that names tools.
            self.calls_tools = False
            answer = self._ask(state)
        if self._may_fall_back and answer is not None and answer.problem == NO_CALL:
            # Others leave the tools unread.
            self.calls_tools = False
        self._may_fall_back = self._may_fall_back and answer is not None and answer.tool is None
        return answer

    def _ask(self, state: State) -> Answer | None:
        payload = self._payload(state)
        longest = (_tokens(payload), self.budget.planner.max_tokens)
        attempts = min(self.budget.planner.attempts, self.budget.affords(state, longest[0]))
        if attempts == 0:
            return None
        self.client.endpoint = replace(self.client.endpoint, attempts=attempts)
        self._tell("asking", tokens_in=attempts * longest[0], tokens_out=attempts * longest[1])
        try:
            reply = self.client.ask(payload)
        except NetworkError:
            self._tell("unasked")
            raise
        return _answer(reply, longest)

    def _payload(self, state: State) -> dict[str, Any]:
        said = messages(self.workshop, self.budget, state, as_json=not self.calls_tools)
        payload = self.client.payload(said)
        if self.calls_tools:
            payload |= {"tools": tool_schemas(), "tool_choice": "auto"}
        return payload


def _answer(reply: Reply, longest: tuple[int, int]) -> Answer:
    """Return what a reply says, and what it has cost with the attempts before it."""
    message = _message(reply.body or {})
    spent = _spent(reply, longest)
    if reply.body is None:
        return Answer(None, None, f"no answer to read ({reply.failure})", *spent)
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        call = calls[0].get("function") if isinstance(calls[0], dict) else None
        if not isinstance(call, dict):
            return Answer(None, None, "a tool call without a function", *spent)
        answer = _read_call(call.get("name"), call.get("arguments"), spent)
        return replace(answer, dropped=len(calls) - 1)
    words = _words(message.get("content"))
    if not words.strip():
        return Answer(None, None, "neither a tool call nor words", *spent)
    found = _object_in(words)
    if found is None:
        return Answer(None, None, NO_CALL, *spent)
    return _read_call(found.get("tool"), found.get("arguments", {}), spent)


def _words(content: Any) -> str:
    """Return a message's words, which some endpoints send in parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _read_call(tool: Any, arguments: Any, spent: tuple[int, int]) -> Answer:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return Answer(None, None, f"the arguments of {str(tool)[:60]!r} are no JSON", *spent)
    return Answer(tool, arguments, None, *spent)


def _object_in(words: str) -> dict[str, Any] | None:
    """Return the first JSON object in words that names a tool; models like to wrap it."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    start, tries = words.find("{"), 0
    while start >= 0 and tries < _MOST_TRIES:
        tries += 1
        try:
            found, end = decoder.raw_decode(words, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if "tool" in found:
                return found
        start = words.find("{", end)
    return None


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no JSON number")


def _message(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    return message if isinstance(message, dict) else {}


def _spent(reply: Reply, longest: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens spent: as the endpoint counts, or more than they can have been."""
    usage = (reply.body or {}).get("usage")
    usage = usage if isinstance(usage, dict) else {}
    found = []
    for name, most in zip(("prompt_tokens", "completion_tokens"), longest, strict=True):
        count = usage.get(name)
        counted = most
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            # No bill is as large as that; a float must be able to hold it.
            counted = min(count, _LARGEST_COUNT)
        found.append(reply.unread * most + (counted if reply.answered else 0))
    return found[0], found[1]


def _tokens(payload: dict[str, Any]) -> int:
    # English has about four characters a token, JSON three, other scripts one of three bytes.
    return len(json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")) // 2 + 1
