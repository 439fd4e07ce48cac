"""Layer programs: which blocks a model runs, in which order, and what is done to their parts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from saesteer.utils.errors import ConfigError

MOST_STEPS = 1000
How = Literal["zero", "mean"]
FamilyKind = Literal["keep", "skip", "repeat", "swap", "linear", "zero_mlp", "mean_mlp", "permute"]
GRAMMAR = (
    "layers (0-11), [], all, keep 8, skip 4-6, repeat 3 x2, permute seed=7, reverse 3-8, swap 3 4, "
    "linear 4-6, zero heads 3.1, mean mlp 5, noise 0.1 at 3"
)


@dataclass(frozen=True, order=True)
class LinearSpan:
    """A learned linear map in place of the layers `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"linear {self.first}-{self.last}"


Step = int | LinearSpan


@dataclass(frozen=True)
class PartEdit:
    """One attention head's output, or the MLP's, put to zero or to its mean over texts."""

    layer: int
    how: How
    # None for the MLP.
    head: int | None = None


@dataclass(frozen=True)
class NoiseEdit:
    """Noise added to the residual stream before a layer.

    It goes by the token's position alone: the same for every row of a batch, with a KV cache and
    without.
    """

    layer: int
    # The noise's L2 norm, as a multiple of each token's own residual norm.
    scale: float
    seed: int = 0


Edit = PartEdit | NoiseEdit


@dataclass(frozen=True)
class Program:
    """What a model runs instead of its blocks in order."""

    # Layers, by number, and linear maps in the order in which they run; empty for the embedding
    # straight to the unembedding.
    steps: tuple[Step, ...]
    # How many layers the model has.
    n_layers: int
    # What is done to parts of the layers, wherever they run.
    edits: tuple[Edit, ...] = ()
    # The expression that it was read from.
    text: str = ""

    @property
    def is_intact(self) -> bool:
        """Whether this is the model as it was trained."""
        return self.steps == tuple(range(self.n_layers)) and not self.edits

    @property
    def needs_means(self) -> bool:
        """Whether an edit puts something to its mean."""
        return any(isinstance(e, PartEdit) and e.how == "mean" for e in self.edits)

    @property
    def spans(self) -> tuple[LinearSpan, ...]:
        """The linear maps that it needs, each once."""
        return tuple(dict.fromkeys(s for s in self.steps if isinstance(s, LinearSpan)))

    def __str__(self) -> str:
        return self.text or ", ".join(map(str, self.steps)) or "[]"


def intact_program(n_layers: int) -> Program:
    """Return the program that runs every layer once, in order."""
    return Program(tuple(range(n_layers)), n_layers, text="intact")


def parse_program(source: str | Sequence[int], n_layers: int, *, n_heads: int = 0) -> Program:
    """Read a program from a list of layers or from an expression.

    Terms are joined by commas or the word "then" and applied one after the other. `0-5` and
    `[0, 1, 5]` add layers to the order; the other terms change the order as it then stands, which
    is the model's own where none has been given before. `repeat 3-4 x2` runs 3 4 3 4.

    Args:
        source: Such as "skip 4-6, repeat 8 x2", "0-3 then 8-11", "[]" or [0, 1, 1, 2].
        n_layers: How many layers the model has.
        n_heads: How many attention heads a layer has; heads are not checked if 0.

    Raises:
        ConfigError: A term is unknown, or names a layer or head that is not there.

    Example:
        >>> parse_program("skip 1-2 then repeat 0 x2", 4).steps
        (0, 0, 3)
    """
    text = source if isinstance(source, str) else "[" + ", ".join(map(str, source)) + "]"
    return _Reader(text, n_layers, n_heads).program()


def check_program(text: str) -> None:
    """Check an expression's words without knowing the model; layer numbers are not looked at."""
    for term in _terms(text):
        _match(text, term)


_RANGE = r"\d+(?:\s*-\s*\d+)?"
_RANGES = rf"(?P<ranges>{_RANGE}(?:\s+{_RANGE})*)"
_SEED = r"(?:seed\s*=\s*(?P<seed>\d{1,9}))"
_PATTERNS = {
    name: re.compile(pattern)
    for name, pattern in {
        "layers": rf"{_RANGES}|\[\s*(?:{_RANGE}(?:[\s,]+{_RANGE})*)?\s*\]",
        "all": r"all|intact",
        "keep": r"keep\s+(?P<count>\d+)",
        "skip": rf"skip\s+{_RANGES}",
        "repeat": rf"repeat\s+{_RANGES}\s*x\s*(?P<times>\d+)",
        "permute": rf"permute(?:\s+{_RANGES})?(?:\s+{_SEED})?",
        "reverse": rf"reverse(?:\s+{_RANGES})?",
        "swap": r"swap\s+(?P<left>\d+)\s+(?P<right>\d+)",
        "linear": rf"linear\s+{_RANGES}",
        "heads": r"(?P<how>zero|mean)\s+heads?\s+(?P<heads>\d+\.(?:\d+|\*)(?:\s+\d+\.(?:\d+|\*))*)",
        "mlp": rf"(?P<how>zero|mean)\s+mlps?\s+{_RANGES}",
        "noise": rf"noise\s+(?P<scale>\d*\.?\d+)\s+at\s+(?P<layer>\d+)(?:\s+{_SEED})?",
    }.items()
}


class _Reader:
    """Works one expression out, term by term."""

    def __init__(self, text: str, n_layers: int, n_heads: int) -> None:
        self._text, self._n, self._n_heads = text, n_layers, n_heads
        self._steps: list[Step] | None = None
        self._edits: list[Edit] = []

    def program(self) -> Program:
        for term in _terms(self._text):
            name, match = _match(self._text, term)
            act: Callable[[re.Match[str]], None] = getattr(self, f"_{name}")
            act(match)
            if self._steps is not None and len(self._steps) > MOST_STEPS:
                raise self._error(f"runs more than {MOST_STEPS} layers; repeat fewer")
        steps = range(self._n) if self._steps is None else self._steps
        return Program(tuple(steps), self._n, tuple(self._edits), " ".join(self._text.split()))

    def _current(self) -> list[Step]:
        if self._steps is None:
            self._steps = list(range(self._n))
        return self._steps

    def _ranges(self, text: str | None) -> list[int]:
        found: list[int] = []
        for first, last in re.findall(r"(\d+)(?:\s*-\s*(\d+))?", text or ""):
            start, stop = self._layer(first), self._layer(last or first)
            step = 1 if stop >= start else -1
            found += range(start, stop + step, step)
        return found

    def _layer(self, text: str) -> int:
        # Compared as text first: a number of a thousand digits is slow to read.
        layer = int(text) if len(text) < 6 else self._n
        if layer >= self._n:
            raise self._error(
                f"names layer {text[:8]} and the model has layers 0 to {self._n - 1}; choose among "
                "them"
            )
        return layer

    def _layers(self, match: re.Match[str]) -> None:
        self._add(self._ranges(match[0]))

    def _all(self, match: re.Match[str]) -> None:
        self._add(range(self._n))

    def _add(self, layers: Sequence[int]) -> None:
        self._steps = [*(self._steps or []), *layers]

    def _keep(self, match: re.Match[str]) -> None:
        current = self._current()
        count = int(match["count"]) if len(match["count"]) < 6 else MOST_STEPS + 1
        if count > len(current):
            raise self._error(
                f"keeps {match['count'][:8]} layers where {len(current)} run; keep fewer"
            )
        self._steps = current[:count]

    def _skip(self, match: re.Match[str]) -> None:
        gone = self._running(self._ranges(match["ranges"]))
        self._steps = [step for step in self._current() if step not in gone]

    def _repeat(self, match: re.Match[str]) -> None:
        start, stop = self._stretch(match["ranges"])
        times = int(match["times"]) if len(match["times"]) < 5 else MOST_STEPS + 1
        if times < 1 or times > MOST_STEPS:
            raise self._error(f"repeats {match['times'][:8]} times; give 1 to {MOST_STEPS}")
        current = self._current()
        self._steps = current[:start] + current[start:stop] * times + current[stop:]

    def _permute(self, match: re.Match[str]) -> None:
        self._reorder(match, random.Random(int(match["seed"] or 0)).shuffle)

    def _reverse(self, match: re.Match[str]) -> None:
        self._reorder(match, list.reverse)

    def _reorder(self, match: re.Match[str], reorder: Callable[[list[Step]], None]) -> None:
        places, current = self._places(match["ranges"]), self._current()
        chosen = [current[place] for place in places]
        reorder(chosen)
        for place, step in zip(places, chosen, strict=True):
            current[place] = step

    def _swap(self, match: re.Match[str]) -> None:
        left, right = self._layer(match["left"]), self._layer(match["right"])
        self._running([left, right])
        other = {left: right, right: left}
        self._steps = [
            other.get(step, step) if isinstance(step, int) else step for step in self._current()
        ]

    def _linear(self, match: re.Match[str]) -> None:
        start, stop = self._stretch(match["ranges"])
        current = self._current()
        span = LinearSpan(int(str(current[start])), int(str(current[stop - 1])))
        if current[start:stop] != list(range(span.first, span.last + 1)):
            raise self._error("has a linear map for layers that do not rise one by one")
        self._steps = [*current[:start], span, *current[stop:]]

    def _heads(self, match: re.Match[str]) -> None:
        for pair in match["heads"].split():
            first, second = pair.split(".")
            layer = self._layer(first)
            if second == "*" and not self._n_heads:
                raise self._error("names all heads and the model's number of heads is not known")
            heads = range(self._n_heads) if second == "*" else [int(second[:6])]
            for head in heads:
                if self._n_heads and head >= self._n_heads:
                    raise self._error(
                        f"names head {pair} and a layer has heads 0 to {self._n_heads - 1}; choose "
                        "among them"
                    )
                self._edits.append(PartEdit(layer, _how(match), head))

    def _mlp(self, match: re.Match[str]) -> None:
        for layer in self._ranges(match["ranges"]):
            self._edits.append(PartEdit(layer, _how(match)))

    def _noise(self, match: re.Match[str]) -> None:
        layer = self._layer(match["layer"])
        self._edits.append(NoiseEdit(layer, float(match["scale"][:12]), int(match["seed"] or 0)))

    def _running(self, layers: list[int]) -> set[Step]:
        for layer in layers:
            if layer not in self._current():
                raise self._error(f"changes layer {layer}, which does not run; leave it out")
        return set(layers)

    def _places(self, ranges: str | None) -> list[int]:
        current = self._current()
        if ranges is None:
            return list(range(len(current)))
        chosen = self._running(self._ranges(ranges))
        return [place for place, step in enumerate(current) if step in chosen]

    def _stretch(self, ranges: str) -> tuple[int, int]:
        """Find the place where a range of layers first runs in one piece."""
        current, wanted = self._current(), self._ranges(ranges)
        for start in range(len(current) - len(wanted) + 1):
            if current[start : start + len(wanted)] == wanted:
                return start, start + len(wanted)
        raise self._error(f"has no layers {ranges} that run one after the other; name such")

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(f"program {self._text[:80]!r} {problem}.")


def _how(match: re.Match[str]) -> How:
    return "zero" if match["how"] == "zero" else "mean"


def _terms(text: str) -> list[str]:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"a program is empty; write [] for no layer, or one of {GRAMMAR}.")
    if len(text) > 10_000:
        raise ConfigError(f"program {text[:40]!r}... has {len(text)} characters; write less.")
    parts = re.split(r",(?![^\[]*\])|\bthen\b", text)
    return [" ".join(part.split()) for part in parts]


def _match(text: str, term: str) -> tuple[str, re.Match[str]]:
    for name, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(term):
            return name, match
    raise ConfigError(
        f"program {text[:80]!r}: {term[:40]!r} is not understood; write terms such as {GRAMMAR}."
    )


@dataclass(frozen=True)
class Family:
    """Programs of one kind, in order."""

    # Such as "keep" or "skip".
    name: str
    # What changes from one program to the next.
    axis: str
    programs: tuple[Program, ...]


def make_family(kind: FamilyKind, n_layers: int, *, width: int = 1, count: int = 5) -> Family:
    """Return a family of programs.

    Args:
        kind: "keep" the first 0 to n layers; "skip", "repeat" (twice), replace by a "linear" map,
            or "swap" with what follows, `width` layers from each layer on; put each MLP to zero or
            to its mean ("zero_mlp", "mean_mlp"); "permute" all layers, `count` times.
        n_layers: How many layers the model has.
        width: Layers that are changed at once.
        count: How many permutations.

    Raises:
        ConfigError: The model has not as many layers as `width`.
    """
    if width > n_layers:
        raise ConfigError(
            f"family {kind}: width {width} is more than the model's {n_layers} layers; lower it."
        )
    starts = range(n_layers - width + 1)
    spans = [str(i) if width == 1 else f"{i}-{i + width - 1}" for i in starts]
    words = {"zero_mlp": "zero mlp {}", "mean_mlp": "mean mlp {}", "repeat": "repeat {} x2"}
    name, axis = kind, "layer"
    if kind == "keep":
        axis, texts = "layers kept", [f"keep {k}" for k in range(n_layers + 1)]
    elif kind == "permute":
        axis, texts = "permutation", [f"permute seed={seed}" for seed in range(count)]
    elif kind == "swap":
        texts = [f"swap {i} {i + width}" for i in range(n_layers - width)]
    else:
        texts = [words.get(kind, f"{kind} {{}}").format(span) for span in spans]
        if width > 1:
            name, axis = f"{kind} {width}", "first layer"
    return Family(name, axis, tuple(parse_program(text, n_layers) for text in texts))


def every_nth(family: Family, every: int) -> tuple[Program, ...]:
    """Return every n-th program of a family, and always the last."""
    return (*family.programs[:-1:every], *family.programs[-1:])
