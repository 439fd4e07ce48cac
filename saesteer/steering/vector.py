"""The product of the house: a direction at a site, with the features it is made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from saesteer.models.sites import Site
from saesteer.steering.positions import DEFAULT_POSITIONS, check_saved_positions
from saesteer.steering.strength import Unit, check_strength
from saesteer.utils.errors import SaesteerError, SteeringError
from saesteer.utils.files import write_atomic
from saesteer.utils.limits import check_header
from saesteer.utils.text import spoken_list

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering.apply import Steering

FORMAT = "saesteer.steering_vector"
VERSION = 1
FILE_NAME = "vector.safetensors"
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SteeredFeature:
    """One SAE feature of a vector."""

    # Its number in its SAE.
    index: int
    # How much of its decoder direction the natural (not normalised) vector holds.
    weight: float
    # The cluster it was kept with, if any.
    cluster: int | None = None
    # What it stands for, if known.
    description: str | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A unit direction at a site, how long it naturally is, and where it came from.

    Adding and scaling work on the natural vector, `norm * direction`, and on its parts alike.

    Example:
        >>> raw = np.arange(32.0)
        >>> vector = ss.SteeringVector.from_raw(raw, site=ss.Site(1), model="tiny")
        >>> (2 * vector).norm == 2 * vector.norm
        True
    """

    # Unit L2 norm, float32.
    direction: Float[Tensor, " d_model"]
    # Where activations were read and where the vector is added.
    site: Site
    # L2 length of the natural vector, before it was normalised.
    norm: float
    model: str
    # Mean L2 norm of the activations at the site over text tokens, BOS and other special tokens
    # left out; None if nobody measured it.
    residual_norm: float | None = None
    # L2 length of the vector with every feature at its measured maximum activation.
    max_act: float | None = None
    # Vectors at other sites that are always added with this one, at the same multiple of their own
    # `norm`: units of strength are this vector's. They are written to the positions of this one.
    parts: tuple[SteeringVector, ...] = ()
    # What the vector is made of at its own site; `features` shows it as a table.
    sae_features: tuple[SteeredFeature, ...] = ()
    # Which positions are written to: "from_last_prompt_token", "all" or "generated"; and which the
    # activations were read at.
    positions: str = DEFAULT_POSITIONS
    read_positions: str = "unknown"
    model_fingerprint: str | None = None
    sae: str | None = None
    sae_fingerprint: str | None = None
    method: str = "unknown"
    name: str = "vector"
    provenance: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        direction = _as_vector(self.direction)
        length = float(direction.detach().norm())
        if abs(length - 1.0) > _UNIT_TOLERANCE:
            raise SteeringError(
                f"direction of vector {self.name!r} has L2 norm {length:.4g}, not 1; use "
                "SteeringVector.from_raw, which normalises."
            )
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "site", Site.parse(self.site))
        object.__setattr__(self, "sae_features", tuple(self.sae_features))
        check_saved_positions(self.positions)
        object.__setattr__(self, "parts", _checked_parts(self))
        for name in ("norm", "residual_norm", "max_act"):
            length = getattr(self, name)
            if (name == "norm" or length is not None) and check_strength(length, name) <= 0.0:
                raise SteeringError(
                    f"{name} is {float(length)}; it is a length, so give a positive number."
                )
        for feature in self.sae_features:
            if not math.isfinite(feature.weight):
                raise SteeringError(
                    f"feature {feature.index} of vector {self.name!r} has weight "
                    f"{feature.weight}; drop it or fit the weights again."
                )

    @classmethod
    def from_raw(
        cls,
        raw_vector: Tensor | Sequence[float] | Any,
        *,
        site: Site | str,
        model: str,
        features: Sequence[SteeredFeature] = (),
        **rest: Any,
    ) -> SteeringVector:
        """Normalise a vector, keeping its length as `norm`.

        Args:
            raw_vector: The natural vector, [d_model]: tensor, array or list. Gradients flow from
                `direction` back to a tensor.
            site: Where it was read and is to be added.
            model: The model's name.
            features: Its `sae_features`.
            **rest: The other fields of SteeringVector.

        Raises:
            SteeringError: The vector is zero, not finite, or has not one dimension.
        """
        raw = _as_vector(raw_vector, torch.float64)
        length = raw.norm()
        norm = float(length.detach())
        if norm == 0.0:
            raise SteeringError(
                f"vector {rest.get('name', 'vector')!r} is zero, so it has no direction; use pairs "
                "whose sides differ, or keep at least one feature."
            )
        return cls(
            (raw / length).float(),
            site=Site.parse(site),
            norm=norm,
            model=model,
            sae_features=tuple(features),
            **rest,
        )

    @property
    def raw(self) -> Float[Tensor, " d_model"]:
        """The natural vector, `norm * direction`."""
        return self.direction * self.norm

    @property
    def pieces(self) -> tuple[SteeringVector, ...]:
        """The vector of each site by itself: its own first, then its parts."""
        return (replace(self, parts=()), *self.parts) if self.parts else (self,)

    @property
    def place(self) -> str:
        """Its site in words, and its parts'."""
        others = [str(part.site) for part in self.parts]
        return f"{self.site} with parts at {spoken_list(others)}" if others else str(self.site)

    @property
    def d_model(self) -> int:
        """The vector's width."""
        return self.direction.shape[0]

    @property
    def features(self) -> pd.DataFrame:
        """SAE features at its own site: index, weight, cluster, label, url; no row without one."""
        import pandas as pd

        from saesteer.saes.labels import feature_url, noted_place

        place = noted_place(self.provenance) if self.sae_features else None
        rows = [
            (f.index, f.weight, f.cluster, f.description, feature_url(place, f.index))
            for f in self.sae_features
        ]
        columns = ["index", "weight", "cluster", "label", "url"]
        table = pd.DataFrame(rows, columns=columns, dtype=object)
        return table.astype({"index": int, "weight": float, "cluster": "Int64"})

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.name!r}, site={self.place}, method={self.method!r}, "
            f"norm={self.norm:.4g}, features={len(self.sae_features)}, model={self.model!r})"
        )

    def scaled(self, factor: float) -> SteeringVector:
        """Return the natural vector times a factor; weights and max_act go along."""
        number = check_strength(factor)
        if number == 0.0:
            raise SteeringError(
                "a vector times 0 has no direction; to switch steering off use strength 0."
            )
        return replace(
            self,
            direction=self.direction if number > 0 else -self.direction,
            norm=self.norm * abs(number),
            max_act=None if self.max_act is None else self.max_act * abs(number),
            sae_features=tuple(replace(f, weight=f.weight * number) for f in self.sae_features),
            parts=tuple(part.scaled(number) for part in self.parts),
        )

    def __mul__(self, factor: float) -> SteeringVector:
        return self.scaled(factor)

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVector:
        return self.scaled(-1.0)

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """Add two natural vectors of one site and model; the features' weights are summed.

        So are parts of one site; the others stay as they are. The sum's `max_act` is unknown: the
        two maxima need not be reached together.
        """
        if not isinstance(other, SteeringVector):
            return NotImplemented
        _check_addable(self, other)
        known = [v.residual_norm for v in (self, other) if v.residual_norm is not None]
        return SteeringVector.from_raw(
            self.raw + other.raw.to(self.direction.device),
            site=self.site,
            model=self.model,
            residual_norm=sum(known) / len(known) if known else None,
            parts=_sum_parts(self.parts, other.parts),
            features=_sum_features(self.sae_features, other.sae_features),
            positions=self.positions,
            read_positions=_joined(self.read_positions, other.read_positions),
            model_fingerprint=self.model_fingerprint or other.model_fingerprint,
            sae=self.sae or other.sae,
            sae_fingerprint=self.sae_fingerprint or other.sae_fingerprint,
            method=_joined(self.method, other.method),
            name=f"{self.name} + {other.name}",
            provenance={"sum_of": [_parent(self), _parent(other)]},
        )

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return self + (-other)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the vector as safetensors with JSON metadata and return the file's path.

        A path that does not end in ".safetensors" is a folder, which gets "vector.safetensors".

        Raises:
            OutputError: The file cannot be written.
            SteeringError: The provenance is not JSON.
        """
        from safetensors.torch import save

        target = Path(path)
        if target.is_dir() or target.suffix != ".safetensors":
            target = target / FILE_NAME
        metadata = {"format": FORMAT, "version": str(VERSION), "vector": self._header()}
        tensors = {
            _tensor_name(number): piece.direction.detach().cpu().contiguous()
            for number, piece in enumerate(self.pieces)
        }
        return write_atomic(target, save(tensors, metadata=metadata))

    def _header(self) -> str:
        try:
            return json.dumps(self._facts(), allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise SteeringError(
                f"vector {self.name!r} cannot be written as JSON ({error}); keep only text, finite "
                "numbers, lists and dicts with text keys in its provenance."
            ) from error

    def _facts(self) -> dict[str, Any]:
        """Return what a file says of it beside its direction."""
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "direction"}
        facts["features"] = [asdict(feature) for feature in facts.pop("sae_features")]
        parts = [part._facts() for part in facts.pop("parts")]
        facts |= {"site": str(self.site), "provenance": dict(self.provenance)}
        # A vector of one site is the file that it always was.
        return facts | ({"parts": parts} if parts else {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVector:
        """Read a vector from a file or folder; see `saesteer.load_vector`."""
        return load_vector(path)

    def steer(
        self,
        model: TransformerBridge,
        strength: float | Sequence[float],
        unit: Unit = "norm",
        **where: Any,
    ) -> AbstractContextManager[Steering]:
        """Steer every forward pass inside a `with` block; see `saesteer.steer`.

        Example:
            >>> with vector.steer(model, strength=0.2):  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        from saesteer.steering.apply import steer

        return steer(model, self, strength, unit, **where)

    # What it was called before 0.1.0; goes with the release after that.
    apply = steer


def load_vector(path: str | os.PathLike[str]) -> SteeringVector:
    """Read a vector from a file, or from "vector.safetensors" in a run's folder.

    Raises:
        SteeringError: There is no such file, or it is not a whole saesteer vector.

    Example:
        >>> path = vector.save(folder / "kind.safetensors")
        >>> ss.load_vector(path).method
        'difference_in_means'
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if source.is_dir():
        source = source / FILE_NAME
    if not source.is_file():
        raise SteeringError(
            f"{source}: there is no such steering vector; give a .safetensors file or a run's "
            "folder that holds one."
        )
    try:
        check_header(source)
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys())
            ours = metadata.get("format") == FORMAT and _tensor_name(0) in names
            directions = {name: file.get_tensor(name) for name in names} if ours else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise SteeringError(
            f"{source}: cannot be read as safetensors ({error}); the file is cut off or of another "
            "kind, so copy or make it again."
        ) from error
    if not directions:
        raise SteeringError(
            f"{source}: this safetensors file is not a saesteer steering vector; give the "
            f"{FILE_NAME} of a run, or make one with saesteer run."
        )
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise SteeringError(
            f"{source}: the vector's format version is {version!r} and this saesteer reads "
            f"{VERSION}; use the saesteer that wrote it, or a newer one."
        )
    try:
        header = _Header.model_validate_json(metadata.get("vector", ""))
        if len(directions) != 1 + len(header.parts):
            raise SteeringError(
                f"it names {len(header.parts)} parts and holds {len(directions)} directions; copy "
                "or make the file again."
            )
        parts = [
            part.vector(directions[_tensor_name(number)])
            for number, part in enumerate(header.parts, start=1)
        ]
        return header.vector(directions[_tensor_name(0)], tuple(parts))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise SteeringError(
            f"{source}: field {place} of the vector's metadata is wrong ({first['msg']}); copy or "
            "make the file again."
        ) from error
    except SaesteerError as error:
        raise SteeringError(f"{source}: {error}") from error


class _Header(BaseModel):
    """What a file says of a vector beside its direction."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    site: str
    norm: float
    residual_norm: float | None
    max_act: float | None
    features: tuple[SteeredFeature, ...]
    positions: str
    read_positions: str
    model: str
    model_fingerprint: str | None
    sae: str | None
    sae_fingerprint: str | None
    method: str
    name: str
    provenance: dict[str, JsonValue]
    parts: tuple[_Header, ...] = ()

    def vector(self, direction: Tensor, parts: tuple[SteeringVector, ...] = ()) -> SteeringVector:
        """Return the vector that is said so much of."""
        apart = ("features", "parts")
        own = {name: getattr(self, name) for name in _Header.model_fields if name not in apart}
        return SteeringVector(direction, sae_features=self.features, parts=parts, **own)


def _tensor_name(piece: int) -> str:
    return f"direction.{piece}" if piece else "direction"


def _checked_parts(vector: SteeringVector) -> tuple[SteeringVector, ...]:
    sites = {vector.site}
    for part in vector.parts:
        what = f"part {part.name!r} of vector {vector.name!r}"
        if part.parts:
            raise SteeringError(f"{what} has parts of its own; give them all to the vector.")
        if part.site in sites:
            raise SteeringError(
                f"{what} is at {part.site}, where there is another; add the two up first."
            )
        if not _same(vector, part, "model"):
            raise SteeringError(
                f"{what} belongs to model {part.model} and not to {vector.model}; give parts of "
                "one model."
            )
        sites.add(part.site)
    where = vector.positions
    return tuple(p if p.positions == where else replace(p, positions=where) for p in vector.parts)


def _as_vector(value: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    try:
        tensor = torch.as_tensor(value).to(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SteeringError(
            f"vector of type {type(value).__name__} cannot be read as numbers; give a tensor, an "
            "array or a list of [d_model] numbers."
        ) from error
    if tensor.ndim != 1 or tensor.numel() == 0:
        raise SteeringError(
            f"vector has shape {tuple(tensor.shape)}; give one dimension, [d_model]."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise SteeringError("vector holds NaN or infinite numbers; make it again.")
    return tensor


def _check_addable(a: SteeringVector, b: SteeringVector) -> None:
    both = f"vectors {a.name!r} and {b.name!r}"
    instead = "steer with both at once instead: steer(model, [a, b], strength)"
    if not _same(a, b, "model") or a.d_model != b.d_model:
        raise SteeringError(
            f"{both} belong to different models ({a.model}, {a.d_model} wide, and {b.model}, "
            f"{b.d_model} wide); add only vectors of one model."
        )
    if a.site != b.site:
        raise SteeringError(f"{both} have different sites ({a.site} and {b.site}); {instead}.")
    if a.positions != b.positions:
        raise SteeringError(
            f"{both} have different writing positions ({a.positions} and {b.positions}); {instead}."
        )
    if a.sae_features and b.sae_features and not _same(a, b, "sae"):
        raise SteeringError(
            f"{both} name features of different SAEs ({a.sae} and {b.sae}); {instead}."
        )


def _same(a: SteeringVector, b: SteeringVector, what: str) -> bool:
    """Whether both name one model or one SAE: by fingerprint where both know it."""
    marks = [getattr(vector, f"{what}_fingerprint") for vector in (a, b)]
    names = [getattr(vector, what) for vector in (a, b)]
    return marks[0] == marks[1] if all(marks) else names[0] == names[1]


def _sum_features(
    left: tuple[SteeredFeature, ...], right: tuple[SteeredFeature, ...]
) -> tuple[SteeredFeature, ...]:
    merged = {f.index: f for f in left}
    for feature in right:
        first = merged.get(feature.index)
        if first is None:
            # Cluster numbers mean nothing outside the run that made them.
            merged[feature.index] = replace(feature, cluster=None if left else feature.cluster)
            continue
        merged[feature.index] = replace(
            first,
            weight=first.weight + feature.weight,
            description=first.description or feature.description,
        )
    return tuple(f for f in merged.values() if f.weight != 0.0)


def _sum_parts(
    left: tuple[SteeringVector, ...], right: tuple[SteeringVector, ...]
) -> tuple[SteeringVector, ...]:
    sums: dict[Site, SteeringVector | None] = {part.site: part for part in left}
    for part in right:
        first = sums.get(part.site)
        if first is None:
            sums[part.site] = part
        else:
            # What cancels out is no part any more.
            cancels = torch.equal(first.raw, -part.raw)
            sums[part.site] = None if cancels else first + part
    return tuple(part for part in sums.values() if part is not None)


def _joined(left: str, right: str) -> str:
    return left if left == right else f"{left} + {right}"


def _parent(vector: SteeringVector) -> dict[str, Any]:
    return {
        "name": vector.name,
        "method": vector.method,
        "norm": vector.norm,
        "provenance": dict(vector.provenance),
    }
