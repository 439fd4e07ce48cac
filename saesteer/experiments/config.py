"""The settings that every experiment has."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saesteer.utils.settings import Settings, Source, TrackingSettings, short_hash


class ModelSettings(Settings):
    """The language model; see `saesteer.load_model`."""

    name: Source = "smollm2"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: str | dict[str, str | int] | None = None
    trust_remote_code: bool = False
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; torch's choice if null"
    )


class ExperimentConfig(Settings):
    """Everything an experiment depends on.

    Attributes:
        name: What the run is called; part of its folder's name.
        folder: Where runs are kept.
        tracking: Where the run is recorded besides.
    """

    kind: ClassVar[str]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    model: ModelSettings = ModelSettings()
    folder: Source = "runs"
    tracking: TrackingSettings = TrackingSettings()

    def uncounted(self) -> dict[str, Any]:
        """Return what changes no number, and so counts in no digest."""
        return {"folder": True, "tracking": True, "model": {"threads"}}

    def digest(self, **inputs: str) -> str:
        """Return a short hash of the settings, and of what else the results depend on."""
        return short_hash([self.model_dump(mode="json", exclude=self.uncounted()), inputs])
