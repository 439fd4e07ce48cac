"""Pair activations as one safetensors file."""

from __future__ import annotations

from pathlib import Path

from saesteer.models.pair_activations import PairActivations
from saesteer.models.reading import Activations
from saesteer.models.sites import Site
from saesteer.utils.errors import OutputError
from saesteer.utils.files import write_atomic


def save_pair_activations(activations: PairActivations, path: Path) -> None:
    """Write both sides with their site and pooling; a write that is cut off leaves no file."""
    from safetensors.torch import save_file

    tensors = {}
    for name, side in (("positive", activations.positive), ("negative", activations.negative)):
        # Slices share memory, which safetensors refuses.
        tensors[f"{name}.values"] = side.values.clone()
        tensors[f"{name}.offsets"] = side.offsets.clone()
    metadata = {"site": str(activations.site), "pooling": activations.pooling}
    write_atomic(path, lambda draft: save_file(tensors, draft, metadata=metadata))


def load_pair_activations(path: Path) -> PairActivations:
    """Read what `save_pair_activations` wrote.

    Raises:
        OutputError: The file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            site = Site.parse(metadata["site"])
            pooling = metadata["pooling"]
            sides = [
                Activations(
                    file.get_tensor(f"{name}.values"), file.get_tensor(f"{name}.offsets"), site
                )
                for name in ("positive", "negative")
            ]
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} cannot be read ({error}); delete it and run the same command again."
        ) from error
    return PairActivations(sides[0], sides[1], "last" if pooling == "last" else "mean")
