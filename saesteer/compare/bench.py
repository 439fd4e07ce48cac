"""What all personas of a comparison share: model, SAE, metric, neutral texts, unsteered texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from saesteer.attribution import FisherMetric, fisher_metric
from saesteer.compare.plan import ComparePlan
from saesteer.evaluation import DivergenceMeter, TeacherForced
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.evaluation.written import BaseCompletions, WritingSettings, write_base
from saesteer.models import Site, model_info
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.progress import Progress
from saesteer.shelf import Shelf
from saesteer.tracking import ArrayCache, RunFolder, content_key
from saesteer.workbench import Bench

PROSE_START = 16


class CompareBench(Bench):
    """Loads or computes each shared thing once, on first use.

    Args:
        plan: The comparison.
        progress: Where to say what is going on.
        shelf: What other comparisons of this process have loaded already; nothing if None.
    """

    def __init__(self, plan: ComparePlan, progress: Progress, shelf: Shelf | None = None) -> None:
        super().__init__(plan, progress, shelf)
        self.plan: ComparePlan = plan
        self.arrays = ArrayCache(plan.cache)
        self._json = RunFolder(plan.cache)

    @property
    def site(self) -> Site:
        """Where vectors are read and written."""
        return self.sae.write_site

    @cached_property
    def weights_key(self) -> tuple[str, ...]:
        """What tells these weights, in this precision and at this site, from others."""
        info = model_info(self.model)
        return (info.fingerprint, str(self.model.cfg.dtype), str(self.site), self.sae.fingerprint)

    @cached_property
    def divergence(self) -> DivergenceMeter:
        """The cost that the evaluation measures."""
        return DivergenceMeter(self.model, self.neutral_rows, site=self.site)

    @cached_property
    def training_rows(self) -> list[TokenRow]:
        """Neutral answers that no evaluation uses."""
        return self.answer_rows(self.plan.training_answers)

    @cached_property
    def training_divergence(self) -> DivergenceMeter:
        """The cost that objectives are linearised at, on a part of the training answers."""
        rows: list[TokenRow] = []
        for row in self.training_rows:
            rows.append(row)
            if sum(sum(r.kept) for r in rows) >= 400:
                break
        return DivergenceMeter(self.model, rows, site=self.site)

    @cached_property
    def metric(self) -> FisherMetric:
        """The Fisher metric of the site, computed once per model, site and text."""
        samples = self.plan.config.objective.fisher_samples
        rows = self.training_rows

        def compute() -> dict[str, np.ndarray]:
            self.progress.say(f"Fisher metric of {self.site} from {len(rows)} neutral texts")
            texts = TeacherForced(self.model, rows, site=self.site, max_tokens=1024)
            found = fisher_metric(texts, n_samples=samples)
            return {"matrix": found.matrix, "counts": np.array([found.n_samples, found.n_tokens])}

        key = [(row.ids, row.kept) for row in rows]
        kept = self.arrays.once("fisher", *self.weights_key, samples, key, compute=compute)
        return FisherMetric(kept["matrix"], *map(int, kept["counts"]))

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

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    @property
    def context(self) -> int:
        """The longest row that the model takes, in tokens."""
        return int(self.model.cfg.n_ctx)

    @cached_property
    def embedder(self) -> SentenceEmbedder:
        """What embeds sentences for judges."""
        return SentenceEmbedder()

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

        record = self._json.once(f"unsteered-{key}.json", compute)
        return BaseCompletions.from_dict(record, embedder=self.embedder)

    def keeper(self, *parts: Any) -> Callable[[np.ndarray, Callable[[], Any]], Any]:
        """Return a function that keeps linearisations of one objective by content."""

        def keep(at: np.ndarray, compute: Callable[[], Any]) -> Any:
            return self.arrays.once("gradients", *self.weights_key, *parts, at, compute=compute)

        return keep
