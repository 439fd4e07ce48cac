"""Every method at equal cost over personas: `saesteer compare`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from saesteer.evaluation.embeddings import SentenceEmbedder, sentence_embedder
from saesteer.evaluation.written import WritingSettings
from saesteer.experiments.base import Stage, write_table
from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.persona import PersonaRun
from saesteer.experiments.compare.plan import DONE, ComparePlan, PersonaPlan, plan_compare
from saesteer.experiments.compare.summary import metrics_of
from saesteer.experiments.results import RECORD, Results, number_at
from saesteer.experiments.steering import SteeringExperiment
from saesteer.methods.registry import method_entry
from saesteer.models import load_model
from saesteer.models.tokens import TokenRow, encode_texts
from saesteer.report import Report
from saesteer.tracking import RecordedRun, recorded_run, run_id
from saesteer.tracking.liveness import present_status, process_record
from saesteer.utils.errors import MismatchError, SaesteerError
from saesteer.utils.progress import Task
from saesteer.utils.run_folder import RunFolder, finite, write_record
from saesteer.utils.settings import TrackingSettings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

POLL_SECONDS = 2.0
TABLES = ("summary", "effects", "generation", "generation_summary", "null", "areas")
PROSE_START = 16
# The numbers of the headline, and what rows of the summary call them.
HEADLINE = {
    "effect": "effect",
    "effect_low": "low",
    "effect_high": "high",
    "ratio": "ratio",
    "beyond_null": "beyond_null",
}
# Those of the same method's texts, and what rows of the summary of texts call them.
TEXT = {"text": "judge_range", "text_low": "low", "text_high": "high", "text_ratio": "ratio"}


class Compare(SteeringExperiment[Results]):
    """Holds every method against the others at equal cost, over personas."""

    Config = CompareConfig
    about = "steering methods compared at equal cost"
    numbers = (*HEADLINE, *TEXT, "kl_target", "kl")
    writing_group = "writing"
    plan: ComparePlan
    make_plan = staticmethod(plan_compare)

    def only(self, names: Sequence[str]) -> None:
        """Compare on some of the personas; a part is a comparison of its own."""
        self.plan = self.plan.only(names)
        self.config = self.plan.config
        self.folder = RunFolder(self.plan.folder)

    @property
    def finished(self) -> bool:
        """Whether everything was computed, of every persona too."""
        return super().finished and not self._pending

    @property
    def _pending(self) -> list[PersonaPlan]:
        return [persona for persona in self.plan.personas if not persona.done]

    def check(self) -> None:
        # Elsewhere that is done there.
        if self.elsewhere is None:
            self._check(self._pending)

    def _check(self, personas: Sequence[PersonaPlan]) -> None:
        if not personas:
            return
        methods = [method.name for method in self.config.methods]
        self.check_shared(methods, judged=bool(self.plan.questions))
        for embedder in self.embedders if self.plan.questions else ():
            embedder.embed(["A sentence."])
        assert self.prose_rows is not None
        needs = {need for method in methods for need in method_entry(method).needs}
        asked = "answers" in needs or bool(self.config.side_effects.choices)
        for persona in personas:
            try:
                systems = PersonaRun(self, persona).systems()
                self.check_pairs(persona.pairs, systems, asked=asked)
                self.check_questions(systems)
            except SaesteerError as error:
                raise type(error)(f"persona {persona.name}: {error}") from error

    def stages(self) -> list[Stage]:
        return [Stage("personas", self._personas, done=not self._pending)]

    def parts(self) -> dict[str, Callable[[], object]]:
        return {persona.name: partial(self._alone, persona) for persona in self._pending}

    def _alone(self, persona: PersonaPlan) -> None:
        self._check([persona])
        self._measure([persona])

    def _personas(self) -> None:
        if self.elsewhere is not None:
            self.share_out()
            # What is not made there is made here, which nobody has checked.
            self._check(self._pending)
        self._measure(self._pending)

    def _measure(self, personas: Sequence[PersonaPlan]) -> None:
        parent = run_id(self.folder)
        steps = sum(1 for persona in personas for _ in PersonaRun(self, persona).steps())
        for persona in personas:
            RunFolder(persona.folder).create()
        with self.progress.task("comparing", total=steps, unit="steps") as task:
            for persona in personas:
                self._wait_for_others(persona)
                if persona.done:
                    continue
                # Each lets go of what it has read before the next one begins.
                self._measure_one(PersonaRun(self, persona), task, parent)

    def _wait_for_others(self, persona: PersonaPlan) -> None:
        """Wait while another process has a persona: it finishes it, or what it leaves is there."""
        told = False
        while _is_in_hand(RunFolder(persona.folder)):
            if not told:
                told = True
                self.progress.say(f"{persona.name} is measured by another process; waiting for it")
            time.sleep(POLL_SECONDS)

    def _measure_one(self, run: PersonaRun, task: Task, parent: str | None) -> None:
        config, folder = self.config, run.folder
        settings = config.model_dump(mode="json", exclude={"personas"})
        with recorded_run(
            folder,
            kind="persona",
            name=run.persona.name,
            config={**settings, "persona": run.persona.settings.model_dump(mode="json")},
            group=config.name,
            parent=parent,
            # The comparison that they are a part of is what W&B is told.
            wandb=TrackingSettings(wandb="off"),
            progress=self.progress,
        ) as recorded:
            weights = list(self.weights_key)
            if folder.read_json("run.json").get("weights", weights) != weights:
                raise MismatchError(
                    f"persona folder {folder.path} was begun with other weights of the model or "
                    "the SAE; delete the folder to begin anew, or put those weights back."
                )
            write_record(folder, {"weights": weights})
            run.run(task)
            seconds = {stage: round(value, 1) for stage, value in run.seconds.items()}
            files = [file for file in folder.path.rglob("*.*") if file.is_file()]
            names = sorted(file.relative_to(folder.path).as_posix() for file in files)
            folder.write_json(DONE, {"seconds": seconds, "files": names})
            recorded.timings(run.seconds)
            methods = {"effect": config.headline, "effect_baseline": config.baseline}
            effects = {label: run.matched(name)[1]["effect"] for label, name in methods.items()}
            recorded.summary({label: e and e["effect"] for label, e in effects.items()})

    @cached_property
    def prose_rows(self) -> list[TokenRow]:
        """Plain texts for the loss, read on from their first tokens; short ones are left out."""
        source = self.config.side_effects.prose
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
    def embedders(self) -> list[SentenceEmbedder]:
        """What embeds sentences for judges, a judge each."""
        return [self.embedder, *map(sentence_embedder, self.config.writing.embedders)]

    @cached_property
    def judge_model(self) -> TransformerBridge:
        """The model that judges by descriptions."""
        name = self.config.writing.judge_model
        assert name is not None
        if name == self.config.model.name:
            return self.model
        self.progress.say(f"Loading judge {name} ...")
        place: Any = {"device": self._device, "device_map": self.config.model.device_map}
        return load_model(name, dtype=self.dtype, progress=self.progress, **place)

    @property
    def sampling(self) -> WritingSettings:
        """How completions are sampled."""
        config = self.config.writing
        return WritingSettings(
            n_samples=config.n_samples,
            max_new_tokens=config.max_new_tokens,
            chat=self.config.reading.chat,
            engine=config.engine,
        )

    def finish(self) -> dict[str, Any]:
        import pandas as pd

        self.progress.say("Summing up")
        metrics = finite(metrics_of(self))
        write_record(self.folder, {"weights": self.weights_key})
        for name in TABLES:
            write_table(self.folder, f"tables/{name}.csv", pd.json_normalize(metrics[name]))
        return metrics

    def report(self, results: Results) -> Report:
        from saesteer.report.compare import compare_report

        return compare_report(results.metrics)

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        kl_target, method = metrics.get("headline_kl_target"), str(metrics.get("headline_method"))

        def at_target(table: str) -> dict[str, Mapping[str, Any]]:
            rows = [row for row in metrics.get(table, ()) if row.get("kl_target") == kl_target]
            return {str(row.get("method")): row for row in rows}

        by_method, texts = at_target("summary"), at_target("generation_summary")
        own, said = by_method.get(method, {}), texts.get(method, {})
        found = {name: number_at(own, field) for name, field in HEADLINE.items()}
        return {
            **found,
            **{name: number_at(said, field) for name, field in TEXT.items()},
            "kl_target": kl_target,
            # Every vector is given the KL target itself, to within 3%.
            "kl": kl_target if found["effect"] else None,
            "effects": {method: row.get("effect") for method, row in by_method.items()},
        }

    def tell(self, record: RecordedRun, results: Results) -> None:
        from saesteer.report.compare import strength_changes

        metrics = results.metrics
        for name in ("summary", "effects", "generation_summary", "null"):
            record.table(name, metrics[name])
        for name in ("features", "completions"):
            rows = [
                {"persona": persona, **{k: v for k, v in row.items() if not isinstance(v, list)}}
                for persona, listed in metrics[name].items()
                for row in listed
            ]
            record.table(name, rows)
        record.curve("change", strength_changes(metrics), x="multiple")
        for persona, file in metrics["vectors"].items():
            record.artifact(f"vector-{persona}", file, "vector")


def _is_in_hand(folder: RunFolder) -> bool:
    """Whether a process that is not this one is at work in a folder, as far as can be seen."""
    if not folder.has(RECORD):
        return False
    record, own = folder.read_json(RECORD), process_record()
    if not isinstance(record, dict) or all(record.get(key) == own[key] for key in own):
        return False
    return present_status(record, os.stat(folder.path / RECORD).st_mtime) == "running"
