"""How few features keep the effect, and what each cluster adds, on personas already compared.

Run after `saesteer compare CONFIG`: python scripts/how_few_features.py CONFIG PERSONA...
Gradients and the Fisher metric come from the comparison's cache. Scores are on the first seed's
test pairs: an analysis of what was found, nothing is chosen by it.
"""

from __future__ import annotations

import argparse

from saesteer.experiments.compare.experiment import Compare
from saesteer.experiments.compare.persona import PersonaRun
from saesteer.experiments.registry import load_experiments
from saesteer.methods import AttributedSAE
from saesteer.steering import SteeringVector
from saesteer.utils.progress import terminal_progress

COUNTS = (1, 2, 4, 8, 16, 32, 64)
KL_TARGET = 0.3


def main() -> None:
    """Print E by feature count, and without each cluster, for every persona named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("personas", nargs="+")
    options = parser.parse_args()
    (config,) = load_experiments([options.config], kind="compare")
    bench = Compare(config, terminal_progress())
    bench.only(options.personas)
    for persona in bench.plan.personas:
        run = PersonaRun(bench, persona).first
        chosen = run.folder.read_json("chosen/attributed_sae.json")["settings"]
        print(f"\n{persona.name}: E at KL {KL_TARGET} by number of features")
        for count in COUNTS:
            vector = AttributedSAE(**{**chosen, "n_features": count}).fit_in(run.context).vector_
            print(f"  {count:>3}  {_effect(run, vector)}")
        whole = AttributedSAE(**chosen).fit_in(run.context).vector_
        print("  without one cluster (features left out, weight share):")
        clusters = sorted({f.cluster for f in whole.sae_features if f.cluster is not None})
        total = sum(abs(f.weight) for f in whole.sae_features)
        for cluster in clusters:
            left_out = [f for f in whole.sae_features if f.cluster == cluster]
            kept = {f.index: f.weight for f in whole.sae_features if f.cluster != cluster}
            if not kept or len(clusters) < 2:
                continue
            vector = run.context.decoded(kept, "without", name=f"without {cluster}")
            share = sum(abs(f.weight) for f in left_out) / total
            print(f"  {cluster:>3}  {_effect(run, vector)}  ({len(left_out)}, {share:.0%})")


def _effect(run, vector: SteeringVector) -> str:
    effect = run.test.measure(vector, KL_TARGET).effect
    return "KL target not reached" if effect is None else f"{effect.effect:.3f}"


if __name__ == "__main__":
    main()
