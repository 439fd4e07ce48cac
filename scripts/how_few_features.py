"""How few features keep the effect, and what each cluster adds, on personas already compared.

Run after `saesteer compare CONFIG`: python scripts/how_few_features.py CONFIG PERSONA...
Gradients and the Fisher metric come from the comparison's cache. Scores are on the first seed's
test pairs: an analysis of what was found, nothing is chosen by it.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.experiment import Compare
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.methods import AttributedSae
from saesteer.steering import SteeringVector
from saesteer.utils.progress import terminal_progress
from saesteer.utils.settings import load_config

COUNTS = (1, 2, 4, 8, 16, 32, 64)
KL_TARGET = 0.3


def main() -> None:
    """Print E by feature count, and without each cluster, for every persona named."""
    config = load_config(sys.argv[1], kind=CompareConfig)
    bench = Compare(config, terminal_progress())
    bench.only(sys.argv[2:])
    for persona in bench.plan.personas:
        run = PersonaRun(bench, persona).first
        inputs = run.context.inputs_for("attributed_sae")
        chosen = run.folder.read_json("chosen/attributed_sae.json")["settings"]
        print(f"\n{persona.name}: E at KL {KL_TARGET} by number of features")
        for count in COUNTS:
            vector = AttributedSae(**{**chosen, "n_features": count})(inputs)
            print(f"  {count:>3}  {_effect(run, vector)}")
        whole = AttributedSae(**chosen)(inputs)
        print("  without one cluster (features left out, weight share):")
        clusters = sorted({f.cluster for f in whole.features if f.cluster is not None})
        total = sum(abs(f.weight) for f in whole.features)
        for cluster in clusters:
            left_out = [f for f in whole.features if f.cluster == cluster]
            kept = {f.index: f.weight for f in whole.features if f.cluster != cluster}
            if not kept or len(clusters) < 2:
                continue
            vector = replace(inputs.decoded(kept, "without", {}), name=f"without {cluster}")
            share = sum(abs(f.weight) for f in left_out) / total
            print(f"  {cluster:>3}  {_effect(run, vector)}  ({len(left_out)}, {share:.0%})")


def _effect(run, vector: SteeringVector) -> str:
    effect = run.test.measure(vector, KL_TARGET).effect
    return "KL target not reached" if effect is None else f"{effect.effect:.3f}"


if __name__ == "__main__":
    main()
