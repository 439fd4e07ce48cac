"""Families of programs: one kind of corruption at every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saesteer.corruption.program import Program, parse_program
from saesteer.utils.errors import ConfigError

FamilyKind = Literal["keep", "skip", "repeat", "swap", "linear", "zero_mlp", "mean_mlp", "permute"]


@dataclass(frozen=True)
class Family:
    """Programs of one kind, in order.

    Attributes:
        name: Such as "keep" or "skip".
        axis: What changes from one program to the next.
        programs: The programs.
    """

    name: str
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
    if kind == "keep":
        texts = [f"keep {k}" for k in range(n_layers + 1)]
        return _family(kind, "layers kept", texts, n_layers)
    if kind == "permute":
        texts = [f"permute seed={seed}" for seed in range(count)]
        return _family(kind, "permutation", texts, n_layers)
    if kind == "swap":
        texts = [f"swap {i} {i + width}" for i in range(n_layers - width)]
        return _family(kind, "layer", texts, n_layers)
    starts = range(n_layers - width + 1)
    spans = [str(i) if width == 1 else f"{i}-{i + width - 1}" for i in starts]
    words = {"zero_mlp": "zero mlp {}", "mean_mlp": "mean mlp {}", "repeat": "repeat {} x2"}
    texts = [words.get(kind, f"{kind} {{}}").format(span) for span in spans]
    name = kind if width == 1 else f"{kind} {width}"
    return _family(name, "layer" if width == 1 else "first layer", texts, n_layers)


def _family(name: str, axis: str, texts: list[str], n_layers: int) -> Family:
    return Family(name, axis, tuple(parse_program(text, n_layers) for text in texts))
