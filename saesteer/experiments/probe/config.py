"""The settings of a probe run (`configs/probes/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from saesteer.experiments.config import ExperimentConfig
from saesteer.probes.settings import FitSettings, ReadSettings, SparseSettings, TextSettings
from saesteer.utils.settings import Source, short_hash


class ProbeConfig(ExperimentConfig):
    """Everything a probe run depends on.

    Attributes:
        name: What the run is called; part of its folder's name.
        checks: A labelled set of plain cases that every layer is scored on; none if null.
        seed: Seeds the split, the folds, the shuffled labels and the resamples.
        folder: Where runs are kept; activations are kept in its `activations`.
        tracking: Where the run is recorded besides.
    """

    kind: ClassVar[str] = "probe-train"

    data: TextSettings = TextSettings()
    reading: ReadSettings = ReadSettings()
    fit: FitSettings = FitSettings()
    sparse: SparseSettings = SparseSettings()
    checks: Source | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)

    def reading_digest(self, **inputs: str) -> str:
        """Return a short hash of what the activations alone depend on."""
        model = self.model.model_dump(mode="json", exclude={"threads"})
        return short_hash([model, self.reading.model_dump(mode="json"), inputs])
