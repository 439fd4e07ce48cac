"""Where a behaviour lives: `saesteer patch run`, from prompt pairs to a site to steer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.base import Experiment, Stage
from saesteer.experiments.config import check_writable, source_digest
from saesteer.experiments.patch import stages
from saesteer.experiments.patch.circuit import check_circuit, run_circuit
from saesteer.experiments.patch.figures import all_figures
from saesteer.experiments.patch.results import (
    ANSWERS,
    ATTENTION,
    LEFT_OUT,
    PAIRS,
    PatchResults,
    metrics_of,
)
from saesteer.experiments.patch.settings import PatchConfig
from saesteer.experiments.results import Results
from saesteer.models.resolve import ModelSource, check_shape, resolve_model
from saesteer.patching.answers import task_answers
from saesteer.patching.batch import PairBatch, encode_pairs
from saesteer.patching.ioi import IoiSet, eight_ioi_pairs, generate_ioi
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.pairs import PromptPair, load_prompt_pairs
from saesteer.patching.paths import chosen_receivers
from saesteer.patching.summary import token_groups
from saesteer.patching.target import check_heads
from saesteer.report import Report
from saesteer.report.patch import patch_report
from saesteer.saes.adapter import check_compatible
from saesteer.saes.labels import PLACE_KEY, known_descriptions, own_table
from saesteer.saes.loading import check_planned, load_sae, resolve_sae
from saesteer.steering import SteeringVector
from saesteer.utils.cache import content_digest
from saesteer.utils.errors import DataError, HookError, SaesteerError, SiteError
from saesteer.utils.run_folder import finite

if TYPE_CHECKING:
    from saesteer.saes.adapter import LensSae


@dataclass(frozen=True)
class PatchPlan:
    """A checked patching run."""

    config: PatchConfig
    # None where they are made for the model's tokenizer.
    pairs: tuple[PromptPair, ...] | None
    model: ModelSource
    # The SAE's folder, or its release and id.
    sae: Path | tuple[str, str] | None
    # The same settings and pairs give the same one.
    folder: Path


def plan_patch(config: PatchConfig) -> PatchPlan:
    """Read the pairs and check every name in the settings; nothing is loaded or written.

    Raises:
        SaesteerError: Something does not fit, said in one sentence.
    """
    pairs = None
    if config.pairs.source is not None:
        pairs = load_prompt_pairs(config.pairs.source)
        most = config.pairs.max_pairs
        if most is not None and len(pairs) > most:
            chosen = np.random.default_rng(config.seed).choice(len(pairs), most, replace=False)
            pairs = tuple(pairs[i] for i in sorted(chosen.tolist()))
    model = resolve_model(config.model.name)
    sae = None if config.sae is None else resolve_sae(config.sae)
    if sae is not None and config.sae is not None:
        check_planned(model, sae, config.sae)
    inputs = {"pairs": str(pairs), **source_digest(model, sae, config.sae or "")}
    if config.features.vector is not None:
        vector = Path(config.features.vector)
        read = SteeringVector.load(vector)
        check_shape(model, read.site, read.d_model, f"vector {read.name!r}")
        inputs["vector"] = content_digest(vector)
    folder = Path(config.folder) / f"{config.name}-{config.digest(**inputs)}"
    check_writable(folder)
    return PatchPlan(config, pairs, model, sae, folder)


def _named(pairs: tuple[PromptPair, ...]) -> tuple[PromptPair, ...]:
    """Return the pairs with a name each of its own: with their number where it is needed."""
    counts = Counter(pair.name for pair in pairs)
    return tuple(
        pair
        if pair.name and counts[pair.name] == 1
        else replace(pair, name=f"{pair.name or 'pair'} {number}")
        for number, pair in enumerate(pairs, start=1)
    )


class Patch(Experiment[Results]):
    """Runs the task, reads and patches every component asked for, and names a site."""

    Config = PatchConfig
    Results = PatchResults
    about = "activation and attribution patching: where it lives"

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
        name = self.config.sae
        if name is None:
            return None
        self.progress.say(f"Loading SAE {name} ...")
        sae = load_sae(name)
        check_compatible(self.model, sae)
        return sae

    def sae_record(self, features: Sequence[int]) -> dict[str, Any]:
        """Return what a report says of the SAE: its name and site, and what features stand for."""
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

    @contextmanager
    def leaving_out(self, what: str, *besides: type[SaesteerError]) -> Iterator[None]:
        """Go on without a part of the run that the model's architecture cannot give."""
        try:
            yield
        except (HookError, SiteError, *besides) as error:
            said = f"{what} left out: {error}"
            before = self.folder.read_json(LEFT_OUT) if self.folder.has(LEFT_OUT) else []
            self.folder.write_json(LEFT_OUT, [*before, said])
            self.progress.say(f"  {said}")

    def write_pairs(self) -> None:
        """Write the prompts with their tokens, so that nothing else is needed to read results."""
        if self.folder.has(PAIRS):
            return
        batch = self.batch
        places = {mode: token_groups(batch, mode) for mode in ("denoising", "noising")}
        rows = [
            {
                "name": pair.name,
                "clean": pair.clean,
                "corrupted": pair.corrupted,
                "answer": batch.answers[row][0],
                "wrong": batch.answers[row][1],
                "roles": pair.roles,
                "clean_tokens": batch.clean_words[row],
                "corrupted_tokens": batch.corrupted_words[row],
                "places": {mode: named[row] for mode, named in places.items()},
            }
            for row, pair in enumerate(batch.pairs)
        ]
        self.folder.write_json(PAIRS, rows)

    def check(self) -> None:
        """Check against the model, before anything is patched, what the settings name."""
        config = self.config
        if config.attention is not None and config.attention.heads is not None:
            check_heads(self.model, config.attention.chosen)
        for group in [] if config.path is None else config.path.groups:
            chosen_receivers(self.model, group)
        assert len(self.batch) > 0
        _ = self.patched_sae
        stages.check_vector(self)
        check_circuit(self)

    def stages(self) -> list[Stage]:
        """Return the steps, from the prompts to the circuit."""
        steps = {
            "answers": stages.run_answers,
            "reading": stages.run_reading,
            "attribution": stages.run_attribution,
            "activation": stages.run_activation,
            "features": stages.run_features,
            "paths": stages.run_paths,
            "attention": stages.run_attention,
            "circuit": run_circuit,
        }
        rest = [Stage(name, partial(step, self)) for name, step in steps.items()]
        return [Stage("pairs", self.write_pairs), *rest]

    def finish(self) -> dict[str, Any]:
        """Return the metrics."""
        return finite(metrics_of(PatchResults(self.folder)))

    def report(self, results: PatchResults) -> Report:
        """Return the report."""
        return report_of(results)

    def write_report(self) -> None:
        """Write the page, and every figure as PNG."""
        self.progress.say("Writing figures and report")
        write_figures(PatchResults(self.folder))

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the model does on the task, the site and the circuit."""
        best = (metrics.get("suggestion") or {}).get("best") or {}
        circuit = metrics.get("circuit") or {}
        names = ("accuracy", "logit_difference_clean", "logit_difference_corrupted")
        return {
            **{name: metrics["task"][name] for name in names},
            "site": best.get("site"),
            "effect": best.get("effect"),
            "circuit": {k: v for k, v in circuit.items() if isinstance(v, int | float)},
        }


def report_of(results: PatchResults) -> Report:
    """Return the report of a finished run."""
    attention = ATTENTION if results.folder.has(ATTENTION) else None
    answers, sae = results.table(ANSWERS), results.sae_record
    return patch_report(results.metrics, all_figures(results), answers, sae, attention=attention)


def write_figures(results: PatchResults) -> None:
    """Write the page, and every figure as PNG."""
    from saesteer.report.pictures import save_png

    report = report_of(results)
    for name, figure in report.figures.items():
        results.folder.write(
            f"figures/{name}.png", lambda draft, figure=figure: save_png([figure], draft)
        )
    report.write(results.report)
