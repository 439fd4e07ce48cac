"""The tools a planner has, typed: what it may ask for, and in which form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from saesteer.utils.errors import SaesteerError

LONGEST_TEXT = 2000

# Words by which text tries to be taken for more than text. What they could ask for is out of
# reach anyway, since only typed tools act; they are refused so that no note carries them on.
_INSTRUCTIONS = re.compile(
    r"<\|[^|]{0,40}\|>|\[/?INST\]|</?(?:system|assistant|user|tool|tool_call|function)\b"
    r"|^\s*(?:system|assistant|developer)\s*:"
    r"|\b(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+|every\s+|the\s+|your\s+|these\s+)*"
    r"(?:previous|prior|earlier|above|other|given|system)?\s*"
    r"(?:instructions?|rules?|prompts?|limits?|budgets?)\b"
    r"|\byou\s+(?:must|are)\s+now\b",
    re.IGNORECASE | re.MULTILINE,
)


class Refused(SaesteerError):
    """An answer that is not acted on; its sentence goes back to the planner."""


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RunExperiment(_Arguments):
    """Check a configuration as its file would be, and run it."""

    kind: str = Field(description="The kind of experiment.")
    settings: dict[str, JsonValue] = Field(
        default={}, description="What differs from the base settings, by dotted name."
    )
    reason: str = Field(default="", max_length=LONGEST_TEXT, description="Why, in a sentence.")


class ReadResults(_Arguments):
    """Read a part of an experiment's metrics."""

    experiment: str = Field(description="Its name, such as E3.")
    path: list[str] = Field(
        default=[],
        max_length=12,
        description="Keys from outside in; in a list a place, or field=word for a record.",
    )


class Aggregate(_Arguments):
    """Mean, least and largest of one number over finished experiments."""

    path: list[str] = Field(min_length=1, max_length=12, description="As in read_results.")
    by: str | None = Field(default=None, description="A setting to group by.")
    kind: str | None = Field(default=None, description="Only experiments of this kind.")


class WriteNote(_Arguments):
    """Keep an observation and what it suggests; notes are shown at every later turn."""

    observation: str = Field(min_length=1, max_length=LONGEST_TEXT)
    hypothesis: str = Field(min_length=1, max_length=LONGEST_TEXT)
    evidence: list[str] = Field(default=[], description="Experiments it rests on, such as E3.")


class Claim(_Arguments):
    """One claim of the conclusion."""

    claim: str = Field(min_length=1, max_length=LONGEST_TEXT)
    experiments: list[str] = Field(default=[], description="The experiments that support it.")
    path: list[str] = Field(default=[], description="Where its number stands, as in read_results.")
    value: float | None = Field(default=None, description="That number.")


class Finish(_Arguments):
    """Conclude; every claim is checked against the experiments it names."""

    answer: str = Field(min_length=1, max_length=2 * LONGEST_TEXT)
    claims: list[Claim] = Field(default=[], max_length=40)
    would_refute: str = Field(
        min_length=1, max_length=LONGEST_TEXT, description="What finding would refute the answer."
    )


TOOLS: dict[str, type[_Arguments]] = {
    "run_experiment": RunExperiment,
    "read_results": ReadResults,
    "aggregate": Aggregate,
    "write_note": WriteNote,
    "finish": Finish,
}


def tool_schemas() -> list[dict[str, Any]]:
    """Return the tools as an OpenAI-compatible endpoint takes them."""
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": " ".join((kind.__doc__ or "").split()),
                "parameters": kind.model_json_schema(),
            },
        }
        for name, kind in TOOLS.items()
    ]


def read_arguments(tool: object, arguments: object) -> _Arguments:
    """Check a planner's answer: the tool it names, and what it gives the tool."""
    if not isinstance(tool, str) or tool not in TOOLS:
        raise Refused(f"there is no tool {str(tool)[:60]!r}; use one of {', '.join(TOOLS)}.")
    if not isinstance(arguments, dict):
        raise Refused(f"the arguments of {tool} are no JSON object; give one.")
    try:
        found = TOOLS[tool].model_validate(arguments)
    except (ValidationError, RecursionError) as error:
        raise Refused(f"{tool}: {_first(error)}; correct it.") from None
    for words in _texts(arguments):
        match = _INSTRUCTIONS.search(words)
        if match:
            raise Refused(
                f"{tool}: a text holds {match[0].strip()[:60]!r}, which reads as an instruction; "
                "write observations only, in your own words."
            )
    return found


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deep"
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or "arguments"
    return f"{field[:80]}: {problem['msg'][:160]}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
