"""What a run's folder holds, read back."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

from saesteer.evaluation import VectorResult, against_null, is_monotone
from saesteer.experiments.results import Results
from saesteer.experiments.steer.config import RunConfig
from saesteer.steering import SteeringVector
from saesteer.utils.errors import OutputError, SteeringError
from saesteer.utils.run_folder import RunFolder

VECTOR = "vector.safetensors"
BASELINE = "difference_in_means"
STAGES = ("activations", "features", "evaluation", "completions")


class SteerResults(Results):
    """What a run found."""

    def check(self) -> None:
        """Read what a caller may ask for."""
        super().check()
        _ = self.vector, self.features, self.completions

    @cached_property
    def vector(self) -> SteeringVector:
        """The steering vector."""
        return read_vector(self.folder)

    @cached_property
    def features(self) -> list[dict[str, Any]]:
        """The rows of `features.parquet`, strongest weight first."""
        return self.folder.read_json("features.json")

    @cached_property
    def completions(self) -> list[dict[str, Any]]:
        """Completions by question and strength."""
        return self.folder.read_json("completions.json")


def read_vector(folder: RunFolder) -> SteeringVector:
    """Return the run's vector.

    Raises:
        OutputError: Its file is damaged or missing.
    """
    try:
        return SteeringVector.load(folder.path / VECTOR)
    except SteeringError as error:
        raise OutputError(
            f"the run's vector is damaged or missing ({str(error).rstrip('.')}); delete it if it "
            "is there, and run the same command again."
        ) from error


def result_names(config: RunConfig) -> list[str]:
    """Return the files of the vectors' results: the run's own, its baseline, the random ones."""
    null = ["random_direction"] * config.evaluation.random_directions
    methods = [config.method.name, BASELINE, *null]
    return [f"evaluation/{number:02d}-{method}.json" for number, method in enumerate(methods)]


def curve_names(config: RunConfig) -> list[str]:
    """Return the files of the curves of the run's own vector and of its baseline."""
    return [f"evaluation/curve-{method}.json" for method in (config.method.name, BASELINE)]


def read_result(folder: RunFolder, name: str) -> VectorResult:
    """Return the result of one vector.

    Raises:
        OutputError: The file is damaged, missing or holds something else.
    """
    record = folder.read_json(name)
    try:
        return VectorResult.from_dict(record)
    except (KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.path / name} holds no result of a vector ({error!r}); delete it and run the "
            "same command again."
        ) from error


def metrics_of(folder: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Return `metrics.json` from the files of the stages."""
    main, means, *null = [read_result(folder, name) for name in result_names(config)]
    curve, baseline = (folder.read_json(name) for name in curve_names(config))
    against = against_null(main, null)
    return {
        "fit": folder.read_json("fit.json"),
        "unsteered_margin": folder.read_json("evaluation/unsteered.json")["margin"],
        "vector": main.as_dict(),
        "difference_in_means": means.as_dict(),
        "random_directions": [result.as_dict() for result in null],
        "null": None if against is None else asdict(against),
        "curve": curve,
        "curve_difference_in_means": baseline,
        "monotone": all(row["margin"] is not None for row in curve) and is_monotone(curve),
        "seconds": {stage: folder.read_json(f"stages/{stage}.json")["seconds"] for stage in STAGES},
    }
