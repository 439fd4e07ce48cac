"""Indirect object identification (IOI): "When Mary and John went ..., John gave the bag to".

The task, its roles and the ABC counterpart are those of Wang et al. 2022, "Interpretability in the
Wild: a Circuit for Indirect Object Identification in GPT-2 small" (arXiv:2211.00593); the frames
are the project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from saesteer.models.tokens import encode_texts
from saesteer.patching.pairs import PromptPair, load_prompt_pairs
from saesteer.utils.errors import DataError
from saesteer.utils.text import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Order = Literal["ABBA", "BABA"]

FRAMES = (
    "When {A} and {B} went to the {place}, {S} gave the {object} to",
    "After {A} and {B} met at the {place}, {S} handed the {object} to",
    "While {A} and {B} were waiting at the {place}, {S} passed the {object} to",
    "Yesterday {A} and {B} walked to the {place}, and {S} sold the {object} to",
    "Then {A} and {B} had a long talk at the {place}, and {S} lent the {object} to",
    "Once {A} and {B} had arrived at the {place}, {S} offered the {object} to",
)
# fmt: off
NAMES = (
    "John", "Mary", "Tom", "James", "Dan", "Martin", "Amy", "Michael", "David", "Robert",
    "William", "Richard", "Thomas", "Charles", "Daniel", "Matthew", "Anthony", "Mark", "Paul",
    "Steven", "Andrew", "Kevin", "Brian", "George", "Edward", "Jason", "Jeff", "Ryan", "Jacob",
    "Gary", "Eric", "Jonathan", "Stephen", "Larry", "Justin", "Scott", "Frank", "Jack", "Dennis",
    "Jerry", "Sarah", "Jennifer", "Linda", "Elizabeth", "Barbara", "Susan", "Jessica", "Karen",
    "Nancy", "Lisa", "Betty", "Margaret", "Sandra", "Ashley", "Kimberly", "Emily", "Donna",
    "Michelle", "Carol", "Amanda", "Melissa", "Laura", "Rebecca", "Anna", "Alice", "Kate",
    "Rachel", "Simon", "Peter", "Adam", "Henry", "Luke", "Jane", "Emma", "Victoria", "Sophie",
    "Julia", "Helen", "Ruth", "Maria",
)
PLACES = (
    "store", "park", "school", "hospital", "office", "house", "station", "garden", "restaurant",
    "library", "market", "beach", "church", "museum", "bank", "hotel", "airport", "theater",
    "farm",
)
OBJECTS = (
    "ring", "book", "ball", "drink", "computer", "letter", "phone", "watch", "ticket", "key",
    "bag", "bottle", "camera", "box", "hat", "knife", "map", "paper", "picture",
)
# fmt: on


@dataclass(frozen=True)
class IoiSet:
    """Prompts of indirect object identification."""

    # Clean and corrupted differ in the repeated name, S2, alone. Their roles are IO, S1, S1+1, S2
    # and end, token positions with BOS counted where it was asked for.
    pairs: tuple[PromptPair, ...]
    # The number of every pair's frame.
    frames: tuple[int, ...]
    # "ABBA" where the indirect object is named first, "BABA" where the subject is.
    orders: tuple[Order, ...]
    # Every prompt with three other names, all different: what is left when nothing says who did
    # what (the distribution that mean ablation averages over).
    counterfactuals: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pairs)


def generate_ioi(
    model: Any,
    n: int,
    *,
    seed: int = 0,
    prepend_bos: bool = True,
    names: Sequence[str] = NAMES,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
    frames: Sequence[str] = FRAMES,
) -> IoiSet:
    """Make IOI prompts for a tokenizer.

    Balanced: every frame in either order comes equally often (to within one), and so does every
    name as indirect object and as subject, every place and every object.

    Args:
        model: The model or its tokenizer; words that are more than one token for it are left out.
        n: How many pairs.
        seed: Seeds the choice of words.
        prepend_bos: Whether the roles count a BOS token in front, as in `encode_pairs`.
        names: Names to choose from, without space; at least five have to be one token.
        places: The same of places.
        objects: The same of objects.
        frames: Texts with {A}, {B}, {S}, {place} and {object}; every name behind a space.

    Raises:
        DataError: n is below 1, or too few of the words are one token for this tokenizer.
    """
    if n < 1:
        raise DataError(f"an IOI set of {n} pairs cannot be made; ask for at least one")
    tokenizer = getattr(model, "tokenizer", None) or model
    rng = np.random.default_rng(seed)
    known = _one_token_words(tokenizer, names, "names", 5)
    decks = {
        "place": _deck(_one_token_words(tokenizer, places, "places", 1), n, rng),
        "object": _deck(_one_token_words(tokenizer, objects, "objects", 1), n, rng),
    }
    kinds: list[tuple[int, Order]] = _deck(
        list(product(range(len(frames)), ("ABBA", "BABA"))), n, rng
    )
    people = _name_pairs(known, n, rng)
    pairs, counterfactuals = [], []
    for i, ((frame, order), (io, subject)) in enumerate(zip(kinds, people, strict=True)):
        words = {name: deck[i] for name, deck in decks.items()}
        first, second = (io, subject) if order == "ABBA" else (subject, io)
        frame_text = str(frames[frame])
        text = frame_text.format(A=first, B=second, S=subject, **words)
        other = frame_text.format(A=first, B=second, S=io, **words)
        pair = PromptPair(text, other, f" {io}", f" {subject}", f"{io}/{subject} {order} {i + 1}")
        pairs.append(_with_roles(tokenizer, pair, prepend_bos))
        rest = [name for name in known if name not in (io, subject)]
        a, b, c = rng.permutation(rest)[:3].tolist()
        counterfactuals.append(frame_text.format(A=a, B=b, S=c, **words))
    used, orders = zip(*kinds, strict=True)
    return IoiSet(tuple(pairs), used, orders, tuple(counterfactuals))


def eight_ioi_pairs(model: Any, *, prepend_bos: bool = True) -> tuple[PromptPair, ...]:
    """Return the eight prompts of the well-known lesson on GPT-2 small; see `generate_ioi`."""
    tokenizer = getattr(model, "tokenizer", None) or model
    pairs = load_prompt_pairs("ioi-eight")
    return tuple(_with_roles(tokenizer, pair, prepend_bos) for pair in pairs)


def _with_roles(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, prepend_bos: bool
) -> PromptPair:
    """Return an IOI pair with the token positions of IO, S1, S1+1, S2 and end.

    The indirect object is the pair's answer and the subject its wrong answer.
    """
    ids = encode_texts(tokenizer, [pair.clean], prepend_bos=prepend_bos)[0].ids
    places = []
    for name, times in ((pair.answer, 1), (pair.wrong, 2)):
        token = tokenizer(f" {name.strip()}", add_special_tokens=False)["input_ids"]
        found = [i for i, one in enumerate(ids) if [one] == list(token)]  # type: ignore[arg-type]
        if len(found) != times:
            raise DataError(
                f"the prompt {shorten(pair.clean)} holds the name {name.strip()!r} {len(found)} "
                f"times as one token, not {times}; an IOI prompt names the indirect object once "
                "and the subject twice, behind a space"
            )
        places += found
    io, first, second = places
    roles = {"IO": io, "S1": first, "S1+1": first + 1, "S2": second, "end": len(ids) - 1}
    return replace(pair, roles=roles)


def _one_token_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], what: str, at_least: int
) -> list[str]:
    """Return the words that are one token behind a space."""
    coded = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    known = [word for word, ids in zip(words, coded, strict=True) if len(ids) == 1]  # type: ignore[arg-type]
    if len(set(known)) < at_least:
        raise DataError(
            f"only {len(set(known))} of the {len(words)} {what} are one token for this tokenizer "
            f"and {at_least} are needed; give others with {what}="
        )
    return list(dict.fromkeys(known))


def _deck(items: Sequence[Any], n: int, rng: np.random.Generator) -> list[Any]:
    """Deal n items from shuffled decks, so that all come equally often to within one."""
    dealt: list[Any] = []
    while len(dealt) < n:
        dealt += [items[i] for i in rng.permutation(len(items))]
    return dealt[:n]


def _name_pairs(names: list[str], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Deal (indirect object, subject): a deck against itself turned, so never one name twice."""
    dealt: list[tuple[str, str]] = []
    while len(dealt) < n:
        order = rng.permutation(len(names))
        turned = np.roll(order, int(rng.integers(1, len(order))))
        for a, b in zip(order.tolist(), turned.tolist(), strict=True):
            dealt.append((names[a], names[b]))
    return dealt[:n]
