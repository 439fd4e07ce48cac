"""Clean and corrupted prompts with their answers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PromptPair:
    """Two prompts whose answers differ.

    Attributes:
        clean: The prompt whose behaviour is to be explained.
        corrupted: The prompt that differs from it in what matters alone.
        answer: The clean prompt's right answer, with its leading space where it has one.
        wrong: The corrupted prompt's right answer, which is wrong for the clean one.
        name: What to call the pair in tables and figures.
        alignment: Explicit pairs of (clean, corrupted) token positions, counted from 0 at the
            first token that the prompt's tokenisation gives (BOS included); None for equal
            beginning and equal end.
        roles: Names of token positions of the clean prompt, such as {"S2": 10, "end": 14}.
    """

    clean: str
    corrupted: str
    answer: str
    wrong: str
    name: str = ""
    alignment: tuple[tuple[int, int], ...] | None = None
    roles: dict[str, int] = field(default_factory=dict)
