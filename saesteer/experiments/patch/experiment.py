"""Where a behaviour lives: `saesteer patch run`, from prompt pairs to a site to steer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.base import Experiment, Stage, write_png
from saesteer.experiments.config import Plan, run_folder, sources, weights_digest
from saesteer.experiments.patch import stages
from saesteer.experiments.patch.figures import all_figures
from saesteer.experiments.patch.results import (
    ANSWERS,
    ATTENTION,
    LEFT_OUT,
    PatchResults,
    metrics_of,
)
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.results import Results
from saesteer.patching.answers import task_answers
from saesteer.patching.batch import PairBatch, encode_pairs
from saesteer.patching.circuits import Circuit, Node, published_ioi_circuit
from saesteer.patching.ioi import IoiSet, eight_ioi_pairs, generate_ioi
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.pairs import PromptPair, load_prompt_pairs
from saesteer.patching.paths import chosen_receivers
from saesteer.patching.target import check_features, check_heads
from saesteer.report import Report
from saesteer.report.patch import patch_report
from saesteer.saes.labels import PLACE_KEY, known_descriptions, own_table
from saesteer.steering import SteeringVector
from saesteer.steering.apply import check_shape_of
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import (
    ConfigError,
    DataError,
    HookError,
    MismatchError,
    ModelError,
    SaesteerError,
    SiteError,
)
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae

# Pairs of which a circuit can be searched on one half and tested on the other.
FEWEST = 4
# The stages whose results are parts.
SHARED = ("attribution", "activation", "paths")


@dataclass(frozen=True, kw_only=True)
class PatchPlan(Plan):
    """A checked patching run."""

    # None where they are made for the model's tokenizer.
    pairs: tuple[PromptPair, ...] | None


def plan_patch(config: PatchConfig) -> PatchPlan:
    """Read the pairs and check every name in the settings; nothing is loaded or written."""
    pairs = None
    if config.pairs.source is not None:
        pairs = load_prompt_pairs(config.pairs.source)
        most = config.pairs.max_pairs
        if most is not None and len(pairs) > most:
            chosen = np.random.default_rng(config.seed).choice(len(pairs), most, replace=False)
            pairs = tuple(pairs[i] for i in sorted(chosen.tolist()))
    model, sae = sources(config, config.sae)
    inputs = {"pairs": str(pairs), **weights_digest(model, sae)}
    if config.features.vector is not None:
        read = SteeringVector.load(Path(config.features.vector))
        check_shape_of(read, model)
        inputs["vector"] = content_digest(Path(config.features.vector))
    folder = run_folder(config, **inputs)
    return PatchPlan(config=config, pairs=pairs, model=model, sae=sae, folder=folder)


class Patch(Experiment[Results]):
    """Runs the task, reads and patches every component asked for, and names a site."""

    Config = PatchConfig
    Results = PatchResults
    about = "activation and attribution patching: where it lives"
    plan: PatchPlan
    make_plan = staticmethod(plan_patch)

    @cached_property
    def metric(self) -> Metric:
        """What is measured."""
        return metric_named(self.config.metric)

    @cached_property
    def ioi(self) -> IoiSet | None:
        """The generated prompts; None where the pairs come from elsewhere."""
        settings = self.config.pairs
        if settings.ioi is None or settings.ioi.eight:
            return None
        seed = self.config.seed if settings.ioi.seed is None else settings.ioi.seed
        return generate_ioi(self.model, settings.ioi.n, seed=seed, prepend_bos=settings.prepend_bos)

    @cached_property
    def batch(self) -> PairBatch:
        """The prompts as tokens."""
        settings = self.config.pairs
        bos = settings.prepend_bos
        if self.ioi is not None:
            pairs = self.ioi.pairs
        elif self.plan.pairs is None:
            pairs = eight_ioi_pairs(self.model, prepend_bos=bos)
        else:
            pairs = _named(self.plan.pairs)
        batch = encode_pairs(self.model, pairs, prepend_bos=bos, both_ways=settings.both_ways)
        if not settings.solved_only:
            return batch
        kept = np.flatnonzero(task_answers(self.model, batch, top_k=1).solved)
        if not len(kept):
            raise DataError(
                f"the model solves none of the {len(batch)} pairs, so pairs.solved_only leaves "
                "nothing; give others, another model, or leave solved_only out."
            )
        return encode_pairs(self.model, [batch.pairs[i] for i in kept], prepend_bos=bos)

    @cached_property
    def patched_sae(self) -> LensSae | None:
        """The SAE whose features are patched, checked against the model; None without one."""
        return self.loaded_sae(self.config.sae)

    @cached_property
    def vector_clusters(self) -> dict[int | str, list[int]] | None:
        """The features of the steering vector that the settings name, by cluster."""
        name, sae = self.config.features.vector, self.patched_sae
        if name is None or sae is None:
            return None
        vector = SteeringVector.load(Path(name))
        clusters: dict[int | str, list[int]] = {}
        for feature in vector.sae_features:
            if feature.weight:
                cluster = "alone" if feature.cluster is None else feature.cluster
                clusters.setdefault(cluster, []).append(feature.index)
        if not clusters:
            raise ConfigError(
                f"features.vector {name} is made of no SAE features; give one that saesteer run "
                "or compare made from an SAE."
            )
        if vector.sae_fingerprint not in (None, sae.fingerprint):
            raise MismatchError(
                f"features.vector {name} is made of features of SAE {vector.sae}, and sae is "
                f"{self.config.sae}; name the vector's own SAE."
            )
        for features in clusters.values():
            check_features(sae, features, "features.vector")
        return clusters

    def sae_record(self, features: Sequence[int]) -> dict[str, Any]:
        """What a report says of the SAE: its name and site, and what features stand for."""
        sae = self.patched_sae
        assert sae is not None
        table = None if self.plan.sae is None else own_table(self.plan.sae)
        known = known_descriptions(sae, table, self.progress)
        return {
            "name": sae.name,
            "site": str(sae.write_site),
            PLACE_KEY: sae.neuronpedia_id,
            "descriptions": {str(i): known[i] for i in features if known.get(i)},
        }

    @property
    def given_circuit(self) -> Circuit | None:
        """The circuit that the settings name; None where one is to be found."""
        settings = self.config.circuit
        if settings is None or settings.heads is None:
            return None
        if settings.heads == "published":
            return published_ioi_circuit()
        return Circuit.of(map(Node.parse, settings.heads))

    @contextmanager
    def leaving_out(self, what: str, *besides: type[SaesteerError]) -> Iterator[None]:
        """Go on without a part of the run that the model's architecture cannot give."""
        try:
            yield
        except (HookError, SiteError, *besides) as error:
            said = f"{what} left out: {error}"
            before = self.folder.read_json(LEFT_OUT) if self.folder.has(LEFT_OUT) else []
            # A run that goes on comes here again.
            self.folder.write_json(LEFT_OUT, list(dict.fromkeys([*before, said])))
            self.progress.say(f"  {said}")

    def check(self) -> None:
        config = self.config
        if config.attention is not None and config.attention.heads is not None:
            check_heads(self.model, config.attention.chosen)
        for group in [] if config.path is None else config.path.groups:
            chosen_receivers(self.model, group)
        assert len(self.batch) > 0
        _ = self.patched_sae, self.vector_clusters
        if config.circuit is not None:
            self._check_circuit(set(config.circuit.roles or ()))

    def _check_circuit(self, roles: set[str]) -> None:
        circuit = self.given_circuit
        if circuit is not None:
            check_heads(self.model, [(node.layer, node.head) for node in circuit.nodes])
            roles = {node.role for node in circuit.nodes if node.role is not None}
        elif len(self.batch) < FEWEST:
            raise DataError(
                "a circuit is searched on one half of the pairs and tested on the other, and there "
                f"are {len(self.batch)}; give at least {FEWEST}."
            )
        for role in sorted(roles):
            for pair in range(len(self.batch)):
                self.batch.role_column(pair, role)

    def stages(self) -> list[Stage]:
        steps = {
            "pairs": stages.run_pairs,
            "answers": stages.run_answers,
            "reading": stages.run_reading,
            "attribution": stages.run_attribution,
            "activation": stages.run_activation,
            "features": stages.run_features,
            "paths": stages.run_paths,
            "attention": stages.run_attention,
            "circuit": stages.run_circuit,
        }
        found = [Stage(name, partial(step, self)) for name, step in steps.items()]
        if self.elsewhere is not None:
            # What cannot be had stays a part for ever; the stages that leave it out are then done.
            done = all(self._is_done(stage) for stage in found if stage.name in SHARED)
            found.insert(list(steps).index(SHARED[0]), Stage("elsewhere", self.share_out, done))
        return found

    def parts(self) -> dict[str, Callable[[], object]]:
        return {name: partial(self._try, make) for name, make in stages.parts(self).items()}

    def _try(self, make: Callable[[], object]) -> None:
        try:
            make()
        except (HookError, SiteError, ModelError) as error:
            # The run itself comes here again, and says what it leaves out.
            self.progress.say(f"  left to the run itself: {error}")

    def finish(self) -> dict[str, Any]:
        return finite(metrics_of(PatchResults(self.folder)))

    def report(self, results: PatchResults) -> Report:
        return report_of(results)

    def write_report(self) -> None:
        self.progress.say("Writing figures and report")
        write_figures(PatchResults(self.folder))

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        best = (metrics.get("suggestion") or {}).get("best") or {}
        circuit = metrics.get("circuit") or {}
        names = ("accuracy", "logit_difference_clean", "logit_difference_corrupted")
        return {
            **{name: metrics["task"][name] for name in names},
            "site": best.get("site"),
            "effect": best.get("effect"),
            "circuit": {k: v for k, v in circuit.items() if isinstance(v, int | float)},
        }


def _named(pairs: tuple[PromptPair, ...]) -> tuple[PromptPair, ...]:
    """The pairs with a name each of its own: with their number where it is needed."""
    counts = Counter(pair.name for pair in pairs)
    return tuple(
        pair
        if pair.name and counts[pair.name] == 1
        else replace(pair, name=f"{pair.name or 'pair'} {number}")
        for number, pair in enumerate(pairs, start=1)
    )


def report_of(results: PatchResults) -> Report:
    """The report of a finished run."""
    attention = ATTENTION if results.folder.has(ATTENTION) else None
    answers, sae = results.table(ANSWERS), results.sae_record
    return patch_report(results.metrics, all_figures(results), answers, sae, attention=attention)


def write_figures(results: PatchResults) -> None:
    """Write the page, and every figure as PNG."""
    report = report_of(results)
    for name, figure in report.figures.items():
        write_png(results.folder, f"figures/{name}.png", [figure])
    report.write(results.report)
