"""What a patching run works with: model, prompts and SAE, each loaded once and only if needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.errors import ConfigError, DataError
from saesteer.patching.experiment.plan import PatchPlan
from saesteer.patching.experiment.summary import place_names
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.prompts.batch import PairBatch, encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.progress import Progress
from saesteer.saes.adapter import check_compatible
from saesteer.saes.loading import load_sae
from saesteer.saes.table import load_feature_table
from saesteer.tracking import RunFolder
from saesteer.workbench import FEATURE_TABLE, ModelBench

if TYPE_CHECKING:
    from saesteer.patching.prompts.ioi import IoiSet
    from saesteer.saes.adapter import LensSae

PAIRS = "pairs.json"


class PatchBench(ModelBench):
    """The bench of a patching run.

    Args:
        plan: The run.
        folder: Its folder.
        progress: Where to say what is being done.
    """

    def __init__(self, plan: PatchPlan, folder: RunFolder, progress: Progress) -> None:
        super().__init__(plan, progress)
        self.plan: PatchPlan = plan
        self.folder = folder

    @cached_property
    def metric(self) -> Metric:
        """What is measured."""
        return metric_named(self.plan.config.metric)

    @cached_property
    def ioi(self) -> IoiSet | None:
        """The generated prompts; None where the pairs come from elsewhere."""
        from saesteer.patching.prompts.ioi import generate_ioi

        settings = self.plan.config.pairs
        if settings.ioi is None or settings.ioi.eight:
            return None
        seed = self.plan.config.seed if settings.ioi.seed is None else settings.ioi.seed
        return generate_ioi(self.model, settings.ioi.n, seed=seed, prepend_bos=settings.prepend_bos)

    @cached_property
    def batch(self) -> PairBatch:
        """The prompts as tokens.

        Raises:
            DataError: They do not fit the model, or none is left that it solves.
        """
        from saesteer.patching.reading.answers import task_answers

        settings = self.plan.config.pairs
        batch = encode_pairs(
            self.model,
            self._pairs(),
            prepend_bos=settings.prepend_bos,
            both_ways=settings.both_ways,
        )
        if not settings.solved_only:
            return batch
        kept = np.flatnonzero(task_answers(self.model, batch, top_k=1).solved)
        if not len(kept):
            raise DataError(
                f"the model solves none of the {len(batch)} pairs, so pairs.solved_only leaves "
                "nothing; give others, another model, or leave solved_only out."
            )
        pairs = [batch.pairs[i] for i in kept]
        return encode_pairs(self.model, pairs, prepend_bos=settings.prepend_bos)

    def _pairs(self) -> tuple[PromptPair, ...]:
        from saesteer.patching.prompts.ioi import eight_ioi_pairs

        if self.ioi is not None:
            return self.ioi.pairs
        if self.plan.pairs is None:
            return eight_ioi_pairs(self.model, prepend_bos=self.plan.config.pairs.prepend_bos)
        return _named(self.plan.pairs)

    @cached_property
    def sae(self) -> LensSae | None:
        """The SAE whose features are patched, checked against the model.

        Raises:
            MismatchError: It does not belong to the model.
        """
        name = self.plan.config.sae
        if name is None:
            return None
        self.progress.say(f"Loading SAE {name} ...")
        sae = load_sae(name)
        check_compatible(self.model, sae)
        return sae

    def sae_record(self, features: Sequence[int]) -> dict[str, Any]:
        """Return what a report says of the SAE: name, site and descriptions of some features."""
        assert self.sae is not None
        where = self.plan.sae
        texts: dict[str, str] = {}
        if isinstance(where, Path) and (where / FEATURE_TABLE).is_file():
            table = load_feature_table(where / FEATURE_TABLE)
            texts = {str(i): table.describe(i) for i in features if i < len(table)}
        return {"name": self.sae.name, "site": str(self.sae.write_site), "descriptions": texts}

    def check(self) -> None:
        """Check against the model, before anything is patched, what the settings name.

        Raises:
            SaesteerError: The model has no such head, or the prompts or the SAE do not fit it.
        """
        config = self.plan.config
        named = [] if config.attention is None else [*(config.attention.heads or ())]
        if config.path is not None:
            chosen = [name for group in config.path.groups for name in group]
            named += [name for name in chosen if name != "final"]
        layers, heads = int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)
        for name in named:
            layer, head = map(int, name.split(".")[:2])
            if layer >= layers or head >= heads:
                raise ConfigError(
                    f"head {name}: the model has layers 0 to {layers - 1} with heads 0 to "
                    f"{heads - 1}; choose among them."
                )
        assert len(self.batch) > 0
        _ = self.sae

    def write_pairs(self) -> None:
        """Write the prompts with their tokens, so that nothing else is needed to read results."""
        if self.folder.has(PAIRS):
            return
        batch = self.batch
        places = {mode: place_names(batch, mode) for mode in ("denoising", "noising")}
        rows: list[dict[str, Any]] = []
        for row, pair in enumerate(batch.pairs):
            rows.append(
                {
                    "name": pair.name,
                    "clean": pair.clean,
                    "corrupted": pair.corrupted,
                    "answer": batch.answers[row][0] if batch.answers else pair.answer,
                    "wrong": batch.answers[row][1] if batch.answers else pair.wrong,
                    "roles": pair.roles,
                    "clean_tokens": batch.clean_words[row],
                    "corrupted_tokens": batch.corrupted_words[row],
                    "places": {mode: named[row] for mode, named in places.items()},
                }
            )
        self.folder.write_json(PAIRS, rows)


def _named(pairs: tuple[PromptPair, ...]) -> tuple[PromptPair, ...]:
    """Return the pairs with a name each of its own: with their number where it is needed."""
    counts = Counter(pair.name for pair in pairs)
    return tuple(
        pair
        if pair.name and counts[pair.name] == 1
        else replace(pair, name=f"{pair.name or 'pair'} {number}")
        for number, pair in enumerate(pairs, start=1)
    )
