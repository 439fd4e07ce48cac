"""What a patching run will do, worked out and checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.steer.plan import check_writable, source_digest
from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.models.shape import check_shape
from saesteer.patching.prompts.pair_files import read_prompt_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.saes.loading import check_planned, resolve_sae
from saesteer.utils.content import content_digest


@dataclass(frozen=True)
class PatchPlan:
    """A checked patching run.

    Attributes:
        config: Its settings.
        pairs: The prompt pairs; None where they are made for the model's tokenizer.
        model: Where the model comes from.
        sae: The SAE's folder, or its release and id; None where none is named.
        folder: The run's folder; the same settings and pairs give the same one.
    """

    config: PatchConfig
    pairs: tuple[PromptPair, ...] | None
    model: ModelSource
    sae: Path | tuple[str, str] | None
    folder: Path


def plan_patch(config: PatchConfig) -> PatchPlan:
    """Read the pairs and check every name in the settings; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    from saesteer.steering import SteeringVector

    pairs = _pairs(config)
    model = resolve_model(config.model.name)
    sae = None if config.sae is None else resolve_sae(config.sae)
    inputs = {"pairs": str(pairs)}
    if sae is not None and config.sae is not None:
        check_planned(model, sae, config.sae)
        inputs |= source_digest(model, sae, config.sae)
    else:
        hub = model.kind == "hub"
        inputs["model"] = model.sha256 or ("" if hub else content_digest(Path(model.location)))
    if config.features.vector is not None:
        vector = Path(config.features.vector)
        read = SteeringVector.load(vector)
        check_shape(model, read.site, read.d_model, f"vector {read.name!r}")
        inputs["vector"] = content_digest(vector)
    folder = Path(config.folder) / f"{config.name}-{config.digest(**inputs)}"
    check_writable(folder)
    return PatchPlan(config, pairs, model, sae, folder)


def _pairs(config: PatchConfig) -> tuple[PromptPair, ...] | None:
    settings = config.pairs
    if settings.source is None:
        return None
    pairs = read_prompt_pairs(settings.source)
    if settings.max_pairs is None or len(pairs) <= settings.max_pairs:
        return pairs
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(pairs), settings.max_pairs, replace=False)
    return tuple(pairs[i] for i in sorted(chosen.tolist()))
