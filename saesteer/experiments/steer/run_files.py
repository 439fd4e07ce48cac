"""What a run's folder holds: written by its stages, and read back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saesteer.data.splits import split_record
from saesteer.evaluation import VectorResult, against_null, is_monotone
from saesteer.experiments.steer.plan import Plan
from saesteer.report import propensity_data, propensity_figure
from saesteer.steering import SteeringVector
from saesteer.utils.errors import OutputError, SteeringError
from saesteer.utils.run_folder import RunFolder, environment_record, write_record
from saesteer.utils.settings import RunConfig

VECTOR = "vector.safetensors"
BASELINE = "difference_in_means"
STAGES = ("activations", "features", "evaluation", "completions")


@dataclass(frozen=True)
class RunResult:
    """What a run found; all of it is in its folder too.

    Attributes:
        folder: The run's folder.
        vector: The steering vector.
        metrics: `metrics.json`.
        features: The rows of `features.parquet`, strongest weight first.
        completions: Completions by question and strength.
    """

    folder: RunFolder
    vector: SteeringVector
    metrics: dict[str, Any]
    features: list[dict[str, Any]]
    completions: list[dict[str, Any]]


def write_inputs(folder: RunFolder, plan: Plan) -> None:
    """Write the settings, the split and what the numbers depend on besides."""
    folder.write_json("config.json", plan.config.model_dump(mode="json"))
    parts = {name: getattr(plan.split, name) for name in ("train", "validation", "test")}
    folder.write_json("split.json", split_record(plan.pairs, parts))
    write_record(folder, {**environment_record(), "pairs_sha256": plan.pairs.digest})


def pending_stages(folder: RunFolder) -> list[str]:
    """Return the stages that a run's folder does not hold yet, or not with all their files."""
    return [stage for stage in STAGES if not _is_done(folder, stage)]


def _is_done(folder: RunFolder, stage: str) -> bool:
    marker = f"stages/{stage}.json"
    record = folder.read_json(marker) if folder.has(marker) else None
    files = record.get("files") if isinstance(record, dict) else None
    return files is not None and all(map(folder.has, files))


def load_result(folder: RunFolder) -> RunResult:
    """Read a finished run back from its folder."""
    return RunResult(
        folder=folder,
        vector=read_vector(folder),
        metrics=folder.read_json("metrics.json"),
        features=folder.read_json("features.json"),
        completions=folder.read_json("completions.json"),
    )


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


def write_figure(folder: RunFolder, plan: Plan) -> None:
    """Write `figure.html`, which opens offline."""
    budget = plan.config.evaluation.budget
    title = f"{plan.config.name}: {len(plan.held_out)} held-out pairs, KL {budget} per token"
    figure = propensity_figure(propensity_data(folder.read_json("metrics.json")), title)
    # The script is embedded.
    folder.write(
        "figure.html",
        lambda draft: figure.write_html(
            draft, include_plotlyjs=True, config={"displaylogo": False}
        ),
    )


def write_metrics(folder: RunFolder, plan: Plan) -> None:
    """Write `metrics.json` from the files of the stages."""
    main, means, *null = [read_result(folder, name) for name in result_names(plan.config)]
    curve, baseline = (folder.read_json(name) for name in curve_names(plan.config))
    against = against_null(main, null)
    folder.write_json(
        "metrics.json",
        {
            "fit": folder.read_json("fit.json"),
            "unsteered_margin": folder.read_json("evaluation/unsteered.json")["margin"],
            "vector": main.as_dict(),
            "difference_in_means": means.as_dict(),
            "random_directions": [result.as_dict() for result in null],
            "null": None if against is None else asdict(against),
            "curve": curve,
            "curve_difference_in_means": baseline,
            "monotone": all(row["margin"] is not None for row in curve) and is_monotone(curve),
            "seconds": {
                stage: folder.read_json(f"stages/{stage}.json")["seconds"] for stage in STAGES
            },
        },
    )
