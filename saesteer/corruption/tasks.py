"""Tasks: what a model is asked, and what it ought to answer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from saesteer.data.bundled import datasets_folder
from saesteer.models.tokens import TokenRow, encode_statements
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.files import write_atomic
from saesteer.utils.limits import read_json
from saesteer.utils.settings import Settings, parse_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_BYTES = 4 * 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Example(Settings):
    """A prompt and its answer, joined by one space unless the prompt ends with a line."""

    model_config = ConfigDict(frozen=True)
    prompt: str = Field(min_length=1, max_length=4000)
    answer: str = Field(min_length=1, max_length=2000)

    @field_validator("prompt", "answer")
    @classmethod
    def _plain(cls, text: str, info: ValidationInfo) -> str:
        if _CONTROL.search(text):
            raise ValueError("holds control characters; write plain text")
        if not text.strip():
            raise ValueError("is blank; write something")
        # One space between them, wherever the file had it; a line's end is the prompt's own.
        return text.strip() if info.field_name == "answer" else re.sub(r"[ \t]+$", "", text)

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return f"{self.prompt}{'' if self.prompt[-1:].isspace() else ' '}{self.answer}"


class Task(Settings):
    """Questions of one kind, as a task's JSON file holds them."""

    model_config = ConfigDict(frozen=True)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]{0,59}$")
    # One sentence.
    description: str = Field(default="", max_length=1000)
    # What few-shot prompts are built from.
    examples: tuple[Example, ...] = Field(min_length=2, max_length=5000)
    # What is scored; the examples themselves if empty, each then left out of its own prompt.
    eval_questions: tuple[Example, ...] = Field(default=(), max_length=5000)

    @property
    def questions(self) -> tuple[Example, ...]:
        """What is scored."""
        return self.eval_questions or self.examples


def parse_task(record: Any, place: str) -> Task:
    """Check a task that is in memory already.

    Args:
        record: `{"name", "description", "examples": [{"prompt", "answer"}], "eval_questions": []}`;
            `eval_questions` are prompts with answers too.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place}: a task is an object with name, description and examples.")
    try:
        task = parse_config(record, kind=Task, place=place)
    except ConfigError as error:
        raise DataError(str(error)) from None
    answers: dict[str, str] = {}
    for example in (*task.examples, *task.eval_questions):
        known = answers.setdefault(example.prompt, example.answer)
        if known != example.answer:
            raise DataError(
                f"{place}: prompt {example.prompt[:40]!r} has two answers, {known[:20]!r} and "
                f"{example.answer[:20]!r}; keep one."
            )
    return task


def read_task(path: Path) -> Task:
    """Read a task's JSON file."""
    try:
        record = read_json(path, MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    except ValueError as error:
        reason = str(error).split(";")[0][:100]
        raise DataError(f"{path}: not valid JSON ({reason}); mend it.") from None
    return parse_task(record, str(path))


def write_task(task: Task, folder: Path) -> Path:
    """Write a task as `<name>.json`, with one example on a line."""

    def lines(examples: Sequence[Example]) -> str:
        rows = [json.dumps(e.model_dump(), ensure_ascii=False) for e in examples]
        return "[\n    " + ",\n    ".join(rows) + "\n  ]" if rows else "[]"

    text = (
        f'{{\n  "name": {json.dumps(task.name)},\n'
        f'  "description": {json.dumps(task.description, ensure_ascii=False)},\n'
        f'  "examples": {lines(task.examples)},\n'
        f'  "eval_questions": {lines(task.eval_questions)}\n}}\n'
    )
    return write_atomic(folder / f"{task.name}.json", text.encode())


def bundled_task_names() -> tuple[str, ...]:
    """Name the tasks that come with saesteer, in alphabetical order."""
    return tuple(path.stem for path in _bundled())


def _bundled() -> list[Path]:
    return sorted((datasets_folder() / "tasks").glob("*.json"))


def load_tasks(sources: Sequence[str]) -> tuple[Task, ...]:
    """Return tasks.

    Args:
        sources: "bundled" for all that come with saesteer, the name of one of them, a JSON file,
            or a folder of such files.

    Raises:
        DataError: There is no such task, or two have one name.
    """
    found: dict[str, str] = {}
    tasks: list[Task] = []
    for source in sources:
        for path in _files(source):
            task = read_task(path)
            if found.setdefault(task.name, str(path)) != str(path):
                raise DataError(
                    f"{path}: task {task.name!r} is in {found[task.name]} too; rename one of them."
                )
            if task not in tasks:
                tasks.append(task)
    if not tasks:
        raise DataError("there are no tasks; name some, or write tasks.source: [bundled].")
    return tuple(tasks)


def _files(source: str) -> list[Path]:
    if found := [path for path in _bundled() if source in ("bundled", path.stem)]:
        return found
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise DataError(f"{path}: the folder holds no task (.json); give another.")
        return files
    if path.suffix == ".json":
        return [path]
    raise DataError(
        f"task {source!r} is no bundled one ({', '.join(bundled_task_names())}) and no .json file "
        "or folder; give one of these."
    )


class TaskRows(NamedTuple):
    """A task's name, and its questions behind their examples; the answers' tokens are kept."""

    task: str
    rows: Sequence[TokenRow]


def task_rows(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    shots: int = 4,
    max_questions: int | None = None,
    seed: int = 0,
    max_length: int | None = None,
) -> TaskRows:
    """Tokenise a task's questions behind examples of their own.

    There is one BOS where the tokenizer has one, at the beginning, and none inside.

    Args:
        shots: Examples before each question, never its own, drawn for each anew; fewer where
            there are not as many.
        max_questions: The most questions; all if None.
    """
    questions = task.questions[:max_questions]
    prompts = []
    for question in questions:
        rng = random.Random(f"{seed} {question.prompt}")
        others = [example for example in task.examples if example.prompt != question.prompt]
        chosen = rng.sample(others, min(shots, len(others)))
        # Prompts of several lines are kept apart by an empty one.
        between = "\n\n" if any("\n" in e.prompt for e in (*chosen, question)) else "\n"
        prompts.append(between.join([*(example.text for example in chosen), question.prompt]))
    try:
        rows = encode_statements(
            tokenizer,
            [question.answer for question in questions],
            prompts,
            chat=False,
            max_length=max_length,
            what="question",
            remedy="lower tasks.shots, or shorten it and the examples",
        )
    except DataError as error:
        raise DataError(f"task {task.name}: {error}") from None
    special = set(tokenizer.all_special_ids)
    for number, row in enumerate(rows, start=1):
        if special & set(row.ids[1:]):
            raise DataError(
                f"task {task.name}: question {number} or an example before it holds one of the "
                "tokenizer's own marks, such as its BOS; write plain text."
            )
    return TaskRows(task.name, rows)
