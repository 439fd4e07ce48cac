"""Tasks made by rule: seeded, offline, the same every time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from saesteer.corruption.tasks import Example, Task
from saesteer.utils.errors import ConfigError

N_EXAMPLES, N_QUESTIONS = 12, 40
Maker = Callable[[random.Random], Iterator[tuple[str, str]]]
_TRIES = 50
# Written for the project.
WORDS = json.loads(Path(__file__).with_name("rule_words.json").read_text(encoding="utf-8"))


def make_tasks(names: Sequence[str] = (), *, seed: int = 0) -> tuple[Task, ...]:
    """Make the tasks that go by rule, some of them or all; seeded."""
    unknown = sorted(set(names) - set(RULES))
    if unknown:
        raise ConfigError(
            f"no rule makes {', '.join(unknown)}; leave the names out to make all of "
            f"{', '.join(RULES)}."
        )
    return tuple(_make(name, seed) for name in RULES if name in names or not names)


def _make(name: str, seed: int) -> Task:
    description, maker = RULES[name]
    rng = random.Random(f"{name} {seed}")
    wanted = N_EXAMPLES + N_QUESTIONS
    found: dict[str, str] = {}
    for drawn, (prompt, answer) in enumerate(maker(rng), start=1):
        found.setdefault(prompt, answer)
        # A rule that goes on for ever may yet have few different prompts.
        if len(found) >= wanted or drawn > _TRIES * wanted:
            break
    both = [Example(prompt=prompt, answer=answer) for prompt, answer in found.items()]
    rng.shuffle(both)
    n_shots = min(N_EXAMPLES, max(2, len(both) // 3))
    return Task(
        name=name,
        description=description,
        examples=tuple(both[:n_shots]),
        eval_questions=tuple(both[n_shots:wanted]),
    )


def _addition(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        a, b = rng.randint(2, 49), rng.randint(2, 49)
        yield f"{a} + {b} =", str(a + b)


def _addition_digits(rng: random.Random) -> Iterator[tuple[str, str]]:
    pairs = [(a, b) for a in range(10) for b in range(10)]
    rng.shuffle(pairs)
    for a, b in pairs:
        yield f"{a} + {b} =", str(a + b)


def _addition_steps(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        a, b, c = (rng.randint(1, 20) for _ in range(3))
        yield f"{a} + {b} + {c}:", f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}"


def _copying(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        line = " ".join(rng.sample(WORDS["nouns"], rng.randint(3, 5)))
        yield f"{line} |", line


def _json(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        name, city = rng.choice(WORDS["names"]), rng.choice(WORDS["cities"])
        age = rng.randint(18, 80)
        record = {"name": name, "age": age, "city": city}
        yield f"{name} is {age} and lives in {city}.\n", json.dumps(record)


def _pairs(form: str, pairs: Sequence[Sequence[str]], *, both: bool = False) -> Maker:
    def make(rng: random.Random) -> Iterator[tuple[str, str]]:
        turned = [(right, left) for left, right in pairs] if both else []
        sides = [*pairs, *turned]
        rng.shuffle(sides)
        for left, right in sides:
            yield form.format(left), right

    return make


def _months_and_days(rng: random.Random) -> Iterator[tuple[str, str]]:
    found = []
    for kind, names in (("month", WORDS["months"]), ("day", WORDS["days"])):
        for place, name in enumerate(names):
            found.append((f"The {kind} after {name} is", names[(place + 1) % len(names)]))
            found.append((f"The {kind} before {name} is", names[place - 1]))
    rng.shuffle(found)
    yield from found


def _agreement(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        (one, many), (near, nears) = rng.sample(WORDS["counted"], 2)
        plural = rng.random() < 0.5
        # The noun beside the verb has the other number, so counting back one word does not do.
        head, other = (many, near) if plural else (one, nears)
        place = rng.choice(("near", "behind", "beside", "next to"))
        yield f"The {head} {place} the {other}", "are" if plural else "is"


RULES: dict[str, tuple[str, Maker]] = {
    "addition": ("The sum of two numbers below 50.", _addition),
    "addition_digits": ("The sum of two digits.", _addition_digits),
    "addition_steps": ("The sum of three numbers, one step after the other.", _addition_steps),
    "agreement": ("Is or are, by the number of the sentence's subject.", _agreement),
    "capitals": ("A country's capital.", _pairs("The capital of {} is", WORDS["capitals"])),
    "copying": ("The same words once more.", _copying),
    "facts": ("Simple facts of everyday life.", _pairs("{}", WORDS["facts"])),
    "json_completion": ("A sentence's facts as JSON.", _json),
    "months_and_days": ("The month or day after or before another.", _months_and_days),
    "opposites": (
        "The opposite of a word.",
        _pairs("The opposite of {} is", WORDS["opposites"], both=True),
    ),
}
