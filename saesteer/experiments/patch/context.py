"""What a patching run works with: model, prompts and SAE, each loaded once and only if needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.base import Experiment
from saesteer.experiments.patch.plan import PatchPlan
from saesteer.experiments.results import Results
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.prompts.batch import PairBatch, encode_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.summary import place_names
from saesteer.saes.adapter import check_compatible
from saesteer.saes.labels import PLACE_KEY, known_descriptions, own_table
from saesteer.saes.loading import load_sae
from saesteer.utils.errors import DataError, HookError, SaesteerError, SiteError

if TYPE_CHECKING:
    from saesteer.patching.prompts.ioi import IoiSet
    from saesteer.saes.adapter import LensSae

PAIRS, LEFT_OUT = "pairs.json", "left_out.json"


class PatchContext(Experiment[Results]):
    """What the steps of a patching run work with."""

    plan: PatchPlan

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
        """Return what a report says of the SAE: its name and site, and what features stand for."""
        assert self.sae is not None
        table = None if self.plan.sae is None else own_table(self.plan.sae)
        known = known_descriptions(self.sae, table, self.progress)
        return {
            "name": self.sae.name,
            "site": str(self.sae.write_site),
            PLACE_KEY: self.sae.neuronpedia_id,
            "descriptions": {str(i): known[i] for i in features if known.get(i)},
        }

    def check(self) -> None:
        """Check against the model, before anything is patched, what the settings name.

        Raises:
            SaesteerError: The model has no such head, or the prompts or the SAE do not fit it.
        """
        from saesteer.patching.paths.receivers import chosen_receivers
        from saesteer.patching.reading.attention_view import check_heads

        config = self.plan.config
        if config.attention is not None and config.attention.heads is not None:
            check_heads(self.model, config.attention.chosen)
        for group in [] if config.path is None else config.path.groups:
            chosen_receivers(self.model, group)
        assert len(self.batch) > 0
        _ = self.sae

    @contextmanager
    def leaving_out(self, what: str, *besides: type[SaesteerError]) -> Iterator[None]:
        """Go on without a part of the run that the model's architecture cannot give.

        Args:
            what: The part, for the line that says so here and in the report.
            *besides: How the part says so, besides by a missing site.
        """
        try:
            yield
        except (HookError, SiteError, *besides) as error:
            said = f"{what} left out: {error}"
            self.folder.write_json(LEFT_OUT, [*self.left_out, said])
            self.progress.say(f"  {said}")

    @property
    def left_out(self) -> list[str]:
        """What the architecture cannot give, with the reason."""
        return self.folder.read_json(LEFT_OUT) if self.folder.has(LEFT_OUT) else []

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
