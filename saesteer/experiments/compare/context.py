"""What all personas of a comparison share: model, SAE, metric, neutral texts, unsteered texts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from saesteer.evaluation.written import BaseCompletions, WritingSettings, write_base
from saesteer.experiments.base import Experiment
from saesteer.experiments.compare.plan import ComparePlan
from saesteer.experiments.results import Results
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.steering.divergence import DivergenceMeter
from saesteer.utils.array_cache import content_key
from saesteer.utils.run_folder import RunFolder

PROSE_START = 16


class CompareContext(Experiment[Results]):
    """What the steps of a comparison work with; each is computed once, on first use."""

    plan: ComparePlan

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """The cost that the evaluation measures."""
        return DivergenceMeter(self.model, self.neutral_rows, site=self.site)

    @cached_property
    def prose_rows(self) -> list[TokenRow]:
        """Plain texts for the loss, read on from their first tokens; short ones are left out."""
        source = self.plan.config.side_effects.prose
        file = "the bundled prose.jsonl" if source == "prose" else source
        rows = encode_texts(
            self.tokenizer,
            self.plan.prose,
            max_length=self.context,
            what=[f"prose text {n} of {file}" for n in range(1, len(self.plan.prose) + 1)],
            remedy="give shorter ones with side_effects.prose, or use a model of longer context",
        )
        return [
            TokenRow(row.ids, (False,) * PROSE_START + row.kept[PROSE_START:])
            for row in rows
            if any(row.kept[PROSE_START:])
        ]

    @cached_property
    def base_completions(self) -> BaseCompletions:
        """What the unsteered model writes."""
        config = self.plan.config.writing
        settings = WritingSettings(
            n_samples=config.n_samples,
            max_new_tokens=config.max_new_tokens,
            chat=self.plan.config.reading.chat,
        )
        key = content_key(*self.weights_key[:2], self.plan.questions, repr(settings))

        def compute() -> dict[str, Any]:
            self.progress.say(f"Unsteered answers to {len(self.plan.questions)} questions")
            return write_base(
                self.model, self.plan.questions, settings, embedder=self.embedder
            ).as_dict()

        record = RunFolder(self.plan.cache).once(f"unsteered-{key}.json", compute)
        return BaseCompletions.from_dict(record, embedder=self.embedder)
