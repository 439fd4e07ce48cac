"""Vectors for vLLM, which two packages add to requests of an unmodified vLLM.

`vllm-lens` (1.3.0 was read): a request brings the vector itself, as JSON; it runs vLLM eagerly.
`hotwire-vllm` (0.1.2 was read): the server loads vectors from a folder of `.pt` files when it
starts, and a request names one; it runs inside vLLM's compiled graphs.

Both add at the output of a block, so what `hook_resid_pre` takes is the block before's. Here a
vector is handed over at unit length, and the scale of a request is the signed L2 length. Neither
keeps vLLM's cache of prefixes apart by steering: a request has to bring a `cache_salt`, or another
that begins alike reads keys and values that were steered otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.resolve import known_outside
from saesteer.steering.bake import check_free
from saesteer.steering.strength import Addition, Unit, check_strengths, per_site
from saesteer.steering.vector import SteeringVector
from saesteer.utils.errors import SteeringError
from saesteer.utils.files import build_folder, portable_name, unwritable

LiveFormat = Literal["vllm-lens", "hotwire"]
LIVE_FORMATS: tuple[LiveFormat, ...] = get_args(LiveFormat)
REQUESTS = "requests.json"
_ASKED = "How was your day?"


def hotwire_names(vectors: Sequence[SteeringVector]) -> list[str]:
    """Return what vectors are called in hotwire's folder; of one name, by their block too."""
    names: list[str] = []
    for vector in vectors:
        name = portable_name(vector.name)
        names.append(f"{name}-block-{_block(vector)}" if name in names else name)
    return names


def lens_fields(additions: Sequence[Addition], positions: range | None = None) -> dict[str, Any]:
    """Return what a request to vLLM with vllm-lens holds beside the prompt.

    Args:
        positions: Of the tokens to write to, the prompt's counted from 0; None for all.
    """
    return _fields(
        "apply_steering_vectors",
        [
            {
                "activations": _tensor(_repeated(vector, positions)),
                "layer_indices": [_block(vector)],
                "scale": length,
                "norm_match": False,
                "position_indices": None if positions is None else list(positions),
            }
            for vector, length in additions
        ],
    )


def hotwire_fields(additions: Sequence[Addition], *, decode_only: bool = False) -> dict[str, Any]:
    """Return what a request to vLLM with hotwire holds beside the prompt.

    Args:
        decode_only: Whether only generated tokens are written to.

    Raises:
        SteeringError: Two vectors are at one block, of which hotwire adds the last alone.
    """
    names = hotwire_names([vector for vector, _ in additions])
    entries = [
        {"id": name, "layer": _block(vector), "scale": length}
        | ({"decode_only": True} if decode_only else {})
        for name, (vector, length) in zip(names, additions, strict=True)
    ]
    if len({entry["layer"] for entry in entries}) < len(entries):
        raise SteeringError(
            "hotwire adds one vector at a block and there are two; add them up first (saesteer "
            "vector combine), or use vllm-lens."
        )
    return _fields("hotwire", entries)


def export_live(
    vector: SteeringVector,
    folder: str | Path,
    kind: LiveFormat,
    strengths: float | Sequence[float],
    unit: Unit = "norm",
) -> Path:
    """Write a new folder with a vector for vLLM and with requests at several strengths.

    `requests.json` lists for each strength the body to post to `/v1/chat/completions`. Beside it
    lies for hotwire `NAME.pt`, a plain tensor as `torch.save` writes it, which is what hotwire
    loads; for vllm-lens `NAME.vector.json`, what its `SteeringVector.model_validate` takes.
    Requests write to every position, except that hotwire's leave the prompt alone unless the vector
    is for all.

    Raises:
        SteeringError: A strength cannot be used, or the vector is not at a block's output; before
            anything is written.
        OutputError: The folder is there already or cannot be written.
    """
    target = check_free(folder)
    chosen = [(x, per_site(vector, x, unit)) for x in check_strengths(strengths)]

    def fields(additions: Sequence[Addition]) -> dict[str, Any]:
        if kind == "vllm-lens":
            return lens_fields(additions)
        return hotwire_fields(additions, decode_only=vector.positions != "all")

    asked = {
        "model": known_outside(vector.model),
        "messages": [{"role": "user", "content": _ASKED}],
        "temperature": 0,
        "max_tokens": 64,
    }
    bodies = [
        {"strength": x, "unit": unit, "body": asked | (fields(additions) if x else {})}
        for x, additions in chosen
    ]
    names = hotwire_names(vector.pieces)
    blocks = [_block(piece) for piece in vector.pieces]

    def build(draft: Path) -> None:
        if kind == "hotwire":
            for name, piece in zip(names, vector.pieces, strict=True):
                torch.save(_unit(piece).clone(), draft / f"{name}.pt")
        else:
            layers = [length * _unit(piece) for piece, length in per_site(vector, 1.0, "raw")]
            own = {"activations": _tensor(torch.stack(layers)), "layer_indices": blocks}
            (draft / f"{names[0]}.vector.json").write_text(json.dumps(own), encoding="utf-8")
        text = json.dumps(bodies, indent=2, ensure_ascii=False)
        (draft / REQUESTS).write_text(text + "\n", encoding="utf-8")

    try:
        return build_folder(target, build)
    except OSError as error:
        raise unwritable(target, error) from error


def _fields(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    text = json.dumps(entries)
    salt = hashlib.sha256(text.encode()).hexdigest()[:32]
    return {"vllm_xargs": {name: text}, "cache_salt": salt}


def _block(vector: SteeringVector) -> int:
    block = vector.site.block_behind
    if block is None:
        raise SteeringError(
            f"vector {vector.name!r} is at {vector.site}, which is no block's output, and vLLM is "
            "steered there alone; use the engine transformers."
        )
    return block


def _unit(vector: SteeringVector) -> Float[Tensor, " d_model"]:
    exact = vector.direction.detach().cpu().to(torch.float64)
    return (exact / exact.norm()).to(torch.float32)


def _repeated(vector: SteeringVector, positions: range | None) -> Float[Tensor, "layer ..."]:
    unit = _unit(vector)[None]
    return unit if positions is None else unit[None].expand(1, len(positions), -1)


def _tensor(values: Tensor) -> Mapping[str, Any]:
    """Return a tensor as vllm-lens reads it from JSON, float32 and not compressed."""
    data = base64.b64encode(values.contiguous().numpy().tobytes()).decode("ascii")
    kind = {"dtype": "float32", "original_dtype": "torch.float32"}
    return {"data": data, **kind, "shape": list(values.shape)}
