"""The settings that every experiment has, and what every plan checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from saesteer.models.resolve import ModelSource
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import ConfigError, SaeError
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
        """What changes no number, and so counts in no digest."""
        return {"folder": True, "tracking": True, "model": {"threads"}}

    def digest(self, **inputs: str) -> str:
        """A short hash of the settings, and of what else the results depend on."""
        return short_hash([self.model_dump(mode="json", exclude=self.uncounted()), inputs])


def source_digest(
    model: ModelSource, sae: Path | tuple[str, str] | None = None, name: str = ""
) -> dict[str, str]:
    """What tells a model's and an SAE's weights from others under the same name or path."""
    if isinstance(sae, Path) and not (sae / "cfg.json").is_file():
        raise SaeError(f"SAE {name!r} is not at {sae}; install saesteer again, whole.")
    found = {
        "model": model.sha256
        or ("" if model.kind == "hub" else content_digest(Path(model.location)))
    }
    if sae is not None:
        found["sae"] = content_digest(sae) if isinstance(sae, Path) else ":".join(sae)
    return found


def check_writable(folder: Path) -> None:
    """Check, writing nothing, that a folder can be made and written."""
    place = below = folder
    # os.path, because a name that can be no path is then only not there.
    while not os.path.exists(place) and place != place.parent:
        place, below = place.parent, place
    reason = ""
    try:
        os.stat(below)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = f"{str(folder)[:100]!r} cannot be used ({getattr(error, 'strerror', '') or error})"
    if not reason and not place.is_dir():
        reason = f"{folder}: {place} is a file"
    if not reason and not os.access(place, os.W_OK):
        reason = f"{folder} cannot be written"
    if reason:
        raise ConfigError(f"folder {reason}; choose another with --set folder=...")
