"""Linear probes of a model's layers: reading with them, and their directions as vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.loading import check_weights, model_info
from saesteer.models.sites import Site
from saesteer.probes.fitting import FittedProbe, Parts
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError, MismatchError, SiteError
from saesteer.utils.files import write_atomic
from saesteer.utils.limits import check_header, parse_json
from saesteer.utils.text import did_you_mean, one_line, spoken_list

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = "saesteer.probes"
VERSION = 1
FILE_NAME = "probes.safetensors"
DirectionKind = Literal["probe", "means"]
_TENSORS = ("weight", "bias", "means")
_SHARED = ("model", "model_fingerprint", "positions", "best", "before", "after", "sae", "name")


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearProbe(FittedProbe):
    """A linear probe at one site; its probabilities go by `classes`."""

    site: Site
    classes: tuple[str, ...]
    # Mean activation of each class's training texts.
    means: Float[np.ndarray, "class d_model"]
    # Mean L2 norm over tokens at the site.
    residual_norm: float

    @classmethod
    def fit(
        cls,
        site: Site,
        classes: Sequence[str],
        x: Float[np.ndarray, "text d_model"],
        parts: Parts,
        residual_norm: float,
    ) -> LinearProbe:
        """Fit a probe to the training texts among all texts' activations."""
        fitted = vars(parts.fit(x))
        own, labels = x[parts.train], parts.labels[parts.train]
        means = np.stack([own[labels == c].mean(axis=0) for c in range(len(classes))])
        where: Any = {"site": site, "classes": tuple(classes), "residual_norm": residual_norm}
        return cls(**fitted, **where, means=means.astype(np.float32))

    def direction(
        self, towards: str, away: str, kind: DirectionKind = "probe"
    ) -> Float[np.ndarray, " d_model"]:
        """Return the raw direction from one class to another.

        It is the gradient of the two classes' log odds ("probe"), or the difference of their mean
        activations ("means").
        """
        for name in (towards, away):
            if name not in self.classes:
                raise DataError(
                    f"class {name!r}{did_you_mean(name, self.classes)} is unknown to this probe; "
                    f"its classes are {spoken_list(self.classes)}."
                )
        to, fro = self.classes.index(towards), self.classes.index(away)
        if to == fro:
            raise DataError(f"a direction needs two classes, and both are {towards!r}.")
        if kind == "means":
            return self.means[to] - self.means[fro]
        rows = self.weight
        if len(rows) == 1:
            rows = np.concatenate([np.zeros_like(rows), rows])
        return rows[to] - rows[fro]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """The probes of one run, in order of depth."""

    probes: tuple[LinearProbe, ...]
    model: str
    model_fingerprint: str
    # How a text became one vector, and the words around it; see `ReadSettings`.
    positions: str
    # The layer that cross-validation on the training texts likes best.
    best: int
    before: str = ""
    after: str = ""
    # The SAE whose codes are read, if they are.
    sae: str | None = None
    name: str = "probes"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes."""
        return self.probes[0].classes

    def layer(self, layer: int | None = None) -> LinearProbe:
        """Return a layer's probe; the best one's if None."""
        wanted = self.best if layer is None else layer
        probes = {probe.site.layer: probe for probe in self.probes}
        if wanted not in probes:
            have = ", ".join(map(str, sorted(probes)))
            raise SiteError(f"layer {wanted} has no probe; these have one: {have}.")
        return probes[wanted]

    def vector(
        self,
        layer: int | None = None,
        *,
        towards: str | None = None,
        away: str | None = None,
        kind: DirectionKind = "probe",
        positions: str = "from_last_prompt_token",
    ) -> SteeringVector:
        """Return a probe's direction as a steering vector.

        It is the best layer's and points from the first class to the last, unless told otherwise.
        Its provenance holds every class's mean reading along it (`class_alphas`), which the
        intervention `set` can be told by name.

        Raises:
            SaesteerError: There is no such layer or class, or the probes read SAE codes.
        """
        if self.sae is not None:
            raise MismatchError(
                f"these probes read codes of SAE {self.sae}, whose weights are no direction of the "
                "residual stream; use the vectors in the run's sparse folder."
            )
        probe = self.layer(layer)
        towards, away = towards or self.classes[-1], away or self.classes[0]
        raw = probe.direction(towards, away, kind).astype(np.float64)
        unit = raw / max(float(np.linalg.norm(raw)), 1e-30)
        alphas = probe.means.astype(np.float64) @ unit
        return SteeringVector.from_raw(
            torch.from_numpy(raw),
            site=probe.site,
            model=self.model,
            model_fingerprint=self.model_fingerprint,
            residual_norm=probe.residual_norm,
            positions=positions,
            read_positions=self.positions,
            method=f"probe_{kind}",
            name=f"{self.name} {away} to {towards}, layer {probe.site.layer}",
            provenance={
                "towards": towards,
                "away": away,
                "class_alphas": dict(zip(self.classes, alphas.tolist(), strict=True)),
            },
        )

    def check_belongs(self, model: TransformerBridge) -> None:
        """Refuse a model of another width or other weights than the probes were trained on."""
        width = int(model.cfg.d_model)
        residual = self.sae is None and self.probes[0].site.hook.startswith("hook_resid")
        reads = self.probes[0].weight.shape[1]
        if residual and reads != width:
            raise MismatchError(
                f"the probes read activations {reads} wide and the residual stream of "
                f"{model_info(model).source.name} is {width} wide; load {self.model}, on which "
                "they were trained."
            )
        made, otherwise = "the probes were trained", "train probes on this one"
        check_weights(model, made, self.model, self.model_fingerprint, otherwise)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the probes as safetensors with JSON metadata, whole or not at all."""
        from safetensors.numpy import save

        tensors = {
            f"{probe.site}.{part}": np.ascontiguousarray(getattr(probe, part))
            for probe in self.probes
            for part in _TENSORS
        }
        header = {name: getattr(self, name) for name in _SHARED}
        header["classes"] = self.classes
        header["sites"] = {
            str(probe.site): {"residual_norm": probe.residual_norm, "c": probe.c}
            for probe in self.probes
        }
        metadata = {"format": FORMAT, "version": str(VERSION), "probes": json.dumps(header)}
        return write_atomic(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ProbeSet:
        """Read probes from a file, or from "probes.safetensors" in a run's folder."""
        from safetensors import SafetensorError, safe_open

        source = Path(path)
        if source.is_dir():
            source = source / FILE_NAME
        if not source.is_file():
            raise DataError(
                f"{source}: there are no probes; give the folder of a finished saesteer probe "
                "train."
            )
        try:
            check_header(source)
            with safe_open(source, framework="numpy") as file:
                metadata = dict(file.metadata() or {})
                if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
                    raise ValueError(f"it is no {FORMAT} file of version {VERSION}")
                header = parse_json(metadata["probes"])
                classes = tuple(header.pop("classes"))
                probes = [
                    LinearProbe(
                        **{part: file.get_tensor(f"{name}.{part}") for part in _TENSORS},
                        site=Site.parse(name),
                        classes=classes,
                        **fit,
                    )
                    for name, fit in header.pop("sites").items()
                ]
                return cls(tuple(probes), **header)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{source}: cannot be read as probes ({one_line(error, 160)}); train them again."
            ) from error
