"""The settings that every experiment has, and the plan that they become."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from saesteer.models.resolve import ModelSource, resolve_model
from saesteer.saes.loading import check_planned, resolve_sae
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import ConfigError, SaeError
from saesteer.utils.redaction import check_no_secret
from saesteer.utils.settings import Settings, Source, TrackingSettings, short_hash

# An SAE's folder, or its release and id.
SaePlace = Path | tuple[str, str]


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


class PreciseModelSettings(ModelSettings):
    """The language model; float32 unless said otherwise.

    A patch, or a vector, may change a logit difference by hundredths, which is below the step
    between two neighbouring logits of a half-precision model.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"


class ExperimentConfig(Settings):
    """Everything an experiment depends on."""

    kind: ClassVar[str]
    # What the run is called; part of its folder's name.
    name: Annotated[str, AfterValidator(check_no_secret)] = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80
    )
    model: ModelSettings = ModelSettings()
    # Where runs are kept.
    folder: Source = "runs"
    # Where the run is recorded besides.
    tracking: TrackingSettings = TrackingSettings()

    def uncounted(self) -> dict[str, Any]:
        """What changes no number, and so counts in no digest."""
        return {"folder": True, "tracking": True, "model": {"threads"}}

    def digest(self, **inputs: str) -> str:
        """A short hash of the settings, and of what else the results depend on."""
        return short_hash([self.model_dump(mode="json", exclude=self.uncounted()), inputs])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked experiment; the same settings and inputs give the same folder."""

    config: Any
    model: ModelSource
    sae: SaePlace | None = None
    folder: Path


def sources(config: ExperimentConfig, sae: str | None = None) -> tuple[ModelSource, Any]:
    """Where model and SAE are; those of which files tell that they do not fit are refused."""
    model = resolve_model(config.model.name)
    if sae is None:
        return model, None
    place = resolve_sae(sae)
    check_planned(model, place, sae)
    if isinstance(place, Path) and not (place / "cfg.json").is_file():
        raise SaeError(f"SAE {sae!r} is not at {place}; install saesteer again, whole.")
    return model, place


def weights_digest(model: ModelSource, sae: SaePlace | None = None) -> dict[str, str]:
    """What tells a model's and an SAE's weights from others under the same name or path."""
    known = model.sha256 or model.kind == "hub"
    found = {"model": (model.sha256 or "") if known else content_digest(Path(model.location))}
    if sae is not None:
        found["sae"] = content_digest(sae) if isinstance(sae, Path) else ":".join(sae)
    return found


def run_folder(config: ExperimentConfig, **inputs: str) -> Path:
    """The folder of a run that depends on its settings and on these; it can be written."""
    folder = Path(config.folder) / f"{config.name}-{config.digest(**inputs)}"
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Check, leaving nothing behind, that a folder can be made and written."""
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
    if not reason:
        try:
            # Without a name where the system can; permissions alone tell nothing of /proc.
            with TemporaryFile(dir=place):
                pass
        except OSError as error:
            reason = f"{folder} cannot be written ({error.strerror})"
    if reason:
        raise ConfigError(f"folder {reason}; choose another with --set folder=...")
