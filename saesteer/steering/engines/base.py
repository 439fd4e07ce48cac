"""What writes text for `generate`: rows of tokens go in, completions come out, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from saesteer.models.tokens import TokenRow
from saesteer.steering.strength import Addition, Unit, per_site
from saesteer.steering.vector import SteeringVector
from saesteer.utils.errors import SteeringError

# Every position there is, BOS and a template's tokens too, as in a baked model. "all" leaves the
# special tokens before a prompt's last one out.
EVERYWHERE = "everywhere"


class Request(NamedTuple):
    """One completion that is wanted."""

    row: TokenRow  # the prompt, at least one token
    strength: float = 0.0
    # The prompt's and the sample's number; requests with one key are to meet the same noise.
    key: tuple[int, int] = (0, 0)
    # Which of the vectors it is steered with; all of them if None.
    vector: int | None = None


@dataclass(frozen=True)
class Requests:
    """Completions that are wanted, and what is the same for all of them."""

    rows: Sequence[Request]
    vectors: tuple[SteeringVector, ...] = ()
    unit: Unit = "norm"
    positions: str | None = None  # where to write; each vector's own positions if None
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    # Called with a request's number and each new piece of its text, or all of it at once.
    on_piece: Callable[[int, str], None] | None = None

    def lengths(self, strength: float) -> list[Addition]:
        """Return the vectors site by site, each with its signed L2 length; none at 0."""
        if not strength:
            return []
        return [one for vector in self.vectors for one in per_site(vector, strength, self.unit)]

    @property
    def pieces(self) -> list[SteeringVector]:
        """The vectors site by site."""
        return [piece for vector in self.vectors for piece in vector.pieces]

    def where(self, vector: SteeringVector) -> str:
        """Return where a vector is written."""
        return vector.positions if self.positions is None else self.positions

    def check_positions(self, engine: str, able: Sequence[str]) -> None:
        """Refuse positions that an engine cannot write to.

        Raises:
            SteeringError: A vector that is added is to be written elsewhere.
        """
        if not any(request.strength for request in self.rows):
            return
        for vector in self.vectors:
            if (where := self.where(vector)) not in able:
                raise SteeringError(
                    f"{engine} cannot write to positions {where!r} (vector {vector.name!r}); use "
                    f"positions {' or '.join(able)}, or the engine transformers."
                )


class Completion(NamedTuple):
    """What was written; see `GenerationRecord`."""

    text: str
    n_tokens: int
    finished: bool


class Engine(Protocol):
    """Writes completions; the same whatever is behind it, but for rounding and sampling's noise.

    At temperature 0 every engine writes the likeliest tokens; at strength 0 what the unsteered
    model writes.
    """

    def generate(self, requests: Requests) -> list[Completion]:
        """Return one completion for each request, in their order; none for none.

        Raises:
            SteeringError: The engine cannot steer as it is asked to; before anything is written.
        """
        ...


def end_ids(runner: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text."""
    found: set[int] = set()
    for ids in (runner.generation_config.eos_token_id, tokenizer.eos_token_id):
        if ids is not None:
            found.update([int(i) for i in ([ids] if isinstance(ids, int) else ids)])
    return found


def pad_id(tokenizer: Any, ends: set[int]) -> int:
    """Return the token that fills rows up behind their ends."""
    pad = tokenizer.pad_token_id
    return pad if pad is not None else min(ends, default=0)


def completed(tokenizer: Any, tokens: Sequence[int], ends: set[int]) -> Completion:
    """Return what generated tokens say up to the first that ends a text."""
    # Cut at the first end token, not at padding, which may be a token that is generated.
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    text = tokenizer.decode(tokens[:stop], skip_special_tokens=True)
    return Completion(text, stop, stop < len(tokens))
