"""Which parts of a run other runs may share: what each part depends on, and nothing else."""

from __future__ import annotations

from typing import Any

from saesteer.evaluation import EffectMeter, VectorResult
from saesteer.experiments.context import Context
from saesteer.models import model_info
from saesteer.steering import SteeringVector
from saesteer.utils.run_folder import finite


def weights_key(bench: Context) -> tuple[str, ...]:
    """Return what tells the model's weights, in this precision, from others."""
    return (model_info(bench.model).fingerprint, str(bench.model.cfg.dtype))


def measured_with(bench: Context, vector: SteeringVector) -> tuple[Any, ...]:
    """Return all that a vector's result depends on besides the vector and the KL target."""
    config = bench.plan.config
    rows = tuple((tuple(row.ids), tuple(row.kept)) for row in bench.neutral_rows)
    settings = (config.evaluation.request, config.reading.chat)
    return (*weights_key(bench), str(vector.site), rows, bench.plan.held_out.digest, *settings)


def measured(
    bench: Context, meter: EffectMeter, vector: SteeringVector, start: float
) -> dict[str, Any]:
    """Return a vector's result at the KL target, from the cache where it was measured before."""
    kl_target = bench.plan.config.evaluation.kl_target
    # Baselines and random directions are the same for all settings of features and weights.
    return bench.cache.record(
        "result",
        *(measured_with(bench, vector), *_identity(vector), kl_target, start),
        compute=lambda: finite(meter.measure(vector, kl_target, start=start).as_dict()),
    )


def measured_curve(
    bench: Context,
    meter: EffectMeter,
    vector: SteeringVector,
    result: VectorResult,
) -> list[dict[str, Any]]:
    """Return a vector's margins over strengths, from the cache where they were measured before."""
    multiples = bench.plan.config.evaluation.multiples
    strengths = (result.plus.strength, result.minus.strength)
    return bench.cache.record(
        "curve",
        *(measured_with(bench, vector), *_identity(vector), strengths, multiples),
        compute=lambda: finite(meter.curve(vector, result, multiples)["points"]),
    )


def _identity(vector: SteeringVector) -> tuple[Any, ...]:
    norm = vector.residual_norm
    return (vector.name, vector.method, vector.positions, norm, vector.raw.float().cpu().numpy())
