"""Tasks made up by a language model over any OpenAI-compatible endpoint: data, never trusted."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saesteer.corruption.tasks import Task, parse_task
from saesteer.evaluation.llm_client import ChatClient, Endpoint, Reply
from saesteer.utils.errors import ConfigError, DataError, NetworkError
from saesteer.utils.progress import Progress

# Two tasks are one if they share so much of their questions.
SAME_SHARE = 0.3
FEWEST_EXAMPLES = 8
GIVE_UP_AFTER = 4
_SYSTEM = (
    "You write small tasks that test a language model. A task is a kind of question whose answer "
    "is short, certain and the same for everybody. Answer with one JSON object and nothing else: "
    '{"name": "small_letters_and_underscores", "description": "one sentence", "examples": '
    '[{"prompt": "The opposite of hot is", "answer": "cold"}], "eval_questions": []}. Write 24 '
    "examples, no prompt twice. A prompt ends where its answer begins; all are of one form."
)


@dataclass(frozen=True)
class Caps:
    """The most tasks, questions to the endpoint (three for each task if None) and cost."""

    tasks: int = 5
    requests: int | None = None
    # In the currency of the prices, of a million tokens each; no limit if None.
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if self.tasks < 1 or (self.requests is not None and self.requests < 1):
            raise ConfigError("the most tasks and requests must be 1 or more; raise them.")
        if self.cost is not None and not (self.price_in > 0 and self.price_out > 0):
            raise ConfigError(
                "a limit of cost needs the prices of a million prompt and answer tokens; give both."
            )

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """Return what so many tokens cost."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass
class Generated:
    """What came of it."""

    # The tasks that were accepted.
    tasks: list[Task] = field(default_factory=list)
    # How often the endpoint was asked, and what that cost at most.
    requests: int = 0
    cost: float = 0.0
    # Why answers were refused, and how many for each reason.
    refused: Counter[str] = field(default_factory=Counter)
    # Why no more was asked.
    stopped: str = ""

    def account(self) -> str:
        """Return one line."""
        reasons = ", ".join(f"{n} {why}" for why, n in self.refused.items()) or "none"
        return (
            f"{len(self.tasks)} tasks from {self.requests} answers (refused: {reasons}), cost at "
            f"most {self.cost:.4f}; stopped: {self.stopped}."
        )


def generate_tasks(
    endpoint: Endpoint,
    caps: Caps,
    *,
    topics: Sequence[str] = (),
    known: Sequence[Task] = (),
    keep: Callable[[Task], object] | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Generated:
    """Have a language model make up tasks, one at a time.

    Every answer is checked as a task's file is. A task with a name that is there already, or that
    shares three tenths of its questions with another, is refused, and the next question says so.

    Args:
        endpoint: Where to ask; its `max_tokens` bounds each answer's cost.
        caps: What may be asked for and spent; checked before each question, at its highest price.
        topics: What tasks are to be about, in turn.
        known: Tasks that are there already.
        keep: Called with each task as it comes.
        sleep: What waits between attempts.
    """
    if caps.cost is not None and endpoint.max_tokens is None:
        raise ConfigError("a limit of cost needs max_tokens; set it for the endpoint.")
    client = ChatClient(endpoint, sleep=sleep)
    taken, found, lost, failure = list(known), Generated(), 0, ""
    with (progress or Progress()).task("tasks", caps.tasks, "tasks") as task:
        while not (stopped := _reached(caps, found, taken, endpoint)):
            topic = topics[len(found.tasks) % len(topics)] if topics else ""
            messages = _messages(topic, taken, found.requests)
            reply = client.ask(client.payload(messages))
            found.requests += 1
            found.cost += caps.price(*_tokens(messages, reply, endpoint))
            if reply.text is None:
                # What the server never answered is what may be gone.
                lost = 0 if reply.answered else lost + 1
                failure = reply.failure or "no answer"
                found.refused[failure] += 1
                if lost < GIVE_UP_AFTER:
                    continue
                stopped = f"no answer {GIVE_UP_AFTER} times in a row"
                break
            lost = 0
            try:
                made = _read(reply.text)
                _check_new(made, taken)
            except _Refused as error:
                found.refused[str(error)] += 1
                continue
            found.tasks.append(made)
            taken.append(made)
            if keep is not None:
                keep(made)
            task.advance(1, made.name)
    if not found.tasks and lost >= GIVE_UP_AFTER:
        raise NetworkError(
            f"the endpoint at {endpoint.base_url} gave no answer ({failure}); check base_url and "
            "try again."
        )
    found.stopped = stopped
    return found


def _reached(caps: Caps, found: Generated, taken: Sequence[Task], endpoint: Endpoint) -> str:
    """Return which limit is reached; nothing for none."""
    if len(found.tasks) >= caps.tasks:
        return "all tasks are there"
    most = caps.requests or 3 * caps.tasks
    if found.requests >= most:
        return f"{most} questions were asked"
    longest = _bytes(_messages("x" * 200, taken, found.requests)), endpoint.max_tokens or 0
    if caps.cost is not None and found.cost + caps.price(*longest) > caps.cost:
        return f"the next question could cost more than is left of {caps.cost:g}"
    return ""


def _messages(topic: str, taken: Sequence[Task], number: int) -> list[dict[str, str]]:
    names = ", ".join(task.name for task in taken[-60:])
    wanted = f"about {topic[:200]}" if topic else "of a kind of your own choice"
    # The number keeps answers apart at temperature 0.
    said = f"Task {number + 1}: write one {wanted}. Taken: {names or 'none'}."
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": said}]


def _tokens(messages: list[dict[str, str]], reply: Reply, endpoint: Endpoint) -> tuple[int, int]:
    """Return how many tokens were read and written, at the most."""
    usage: Any = (reply.body or {}).get("usage")
    usage = usage if isinstance(usage, dict) else {}
    # Without a count of the server's own, a token is taken for each byte: never too few.
    most = endpoint.max_tokens or len((reply.text or "").encode())
    read = _count(usage.get("prompt_tokens"), _bytes(messages))
    return read, _count(usage.get("completion_tokens"), most)


class _Refused(Exception):
    """An answer that is no new task."""


def _read(text: str) -> Task:
    # Many models put their JSON between fences.
    fenced = re.search(r"```(?:json)?\s*(\{.*\})\s*```", text, flags=re.DOTALL)
    try:
        record = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        raise _Refused("no JSON") from None
    if isinstance(record, dict) and isinstance(record.get("name"), str):
        record["name"] = re.sub(r"[^a-z0-9]+", "_", record["name"].lower()).strip("_")[:60]
    try:
        task = parse_task(record, "an answer")
    except DataError:
        raise _Refused("no valid task") from None
    if len({e.prompt for e in task.questions}) < FEWEST_EXAMPLES:
        raise _Refused("too few examples")
    return task


def _check_new(task: Task, known: Sequence[Task]) -> None:
    own = {_plain(e.prompt) for e in (*task.examples, *task.eval_questions)}
    for other in known:
        if other.name == task.name:
            raise _Refused("a name that is taken")
        theirs = {_plain(e.prompt) for e in (*other.examples, *other.eval_questions)}
        if len(own & theirs) > SAME_SHARE * min(len(own), len(theirs)):
            raise _Refused("questions that are there already")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def _bytes(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(message["content"].encode()) + 16 for message in messages)


def _count(value: Any, otherwise: int) -> int:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9
    return value if usable else otherwise
