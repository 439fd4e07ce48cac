"""Write the Fisher metric that the package brings for the bundled model and SAE."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

import saesteer as ss
from saesteer.methods.objective import BUNDLED


def main() -> None:
    """Compute the metric as a fit does, in float32, and keep it under its key."""
    model = ss.load_model("smollm2", dtype="float32")
    given = ss.FitContext(model, ss.load_pairs("agreeableness"), sae=ss.load_sae("smollm2"))
    for old in BUNDLED.glob("*.safetensors"):
        old.unlink()
    metric = given.cost.metric
    BUNDLED.mkdir(exist_ok=True)
    counts = np.array([metric.n_samples, metric.n_tokens])
    save_file(
        {"matrix": metric.matrix.astype(np.float32), "counts": counts},
        given.cost.bundled_metric,
    )
    print(f"wrote {given.cost.bundled_metric}")


if __name__ == "__main__":
    main()
