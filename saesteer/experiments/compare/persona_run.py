"""One persona from pairs to every record: methods, null, texts, side effects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

from saesteer.evaluation import PropensityMeter, TeacherForced, statement_log_likelihoods
from saesteer.evaluation.choices import ChoiceMeter
from saesteer.evaluation.judge import BehaviourJudge, train_judge
from saesteer.evaluation.written import WrittenEvaluation, WrittenRecord
from saesteer.evaluation.written_summary import summarise
from saesteer.experiments.compare.config import MethodSettings
from saesteer.experiments.compare.context import CompareContext
from saesteer.experiments.compare.plan import PersonaPlan
from saesteer.experiments.compare.seed_run import SeedRun, target_record
from saesteer.methods import RandomDirection, RandomFeatures
from saesteer.methods.registry import method_entry
from saesteer.models.memory import trim_memory
from saesteer.steering import SteeringVector
from saesteer.utils.progress import Task
from saesteer.utils.run_folder import RunFolder, finite

KINDS = ("yes_no", "a_b")


class PersonaRun:
    """All that a comparison measures on one persona; a result that is there is not made again.

    Args:
        bench: What all personas share.
        persona: The persona.
    """

    def __init__(self, bench: CompareContext, persona: PersonaPlan) -> None:
        self.bench = bench
        self.persona = persona
        self.config = bench.plan.config
        self.folder = RunFolder(persona.folder)
        self.seconds: dict[str, float] = {}
        self.seeds = {seed: SeedRun(bench, persona, seed) for seed in self.config.seeds}

    @property
    def first(self) -> SeedRun:
        """The first seed, under which everything is measured."""
        return self.seeds[self.config.seeds[0]]

    def steps(self) -> int:
        """Return how many steps `run` takes, for the progress bar."""
        null = self.config.random
        methods = sum(len(self.config.methods_under(seed)) for seed in self.config.seeds)
        return methods + null.directions + null.features + len(self._written()) + 2

    def run(self, task: Task) -> None:
        """Make every record that is not there yet."""
        for seed, run in self.seeds.items():
            for method in self.config.methods_under(seed):
                with self._timed(f"methods, seed {seed}"):
                    run.effects(method)
                task.advance(1, f"{self.persona.name} {method.name}")
        with self._timed("null"):
            self._null(task)
        for method, kl_target in self._written():
            with self._timed("texts"):
                self._write(method, kl_target)
            task.advance(1, f"{self.persona.name} texts")
        with self._timed("side effects"):
            self.folder.once("choices.json", self._choices)
            task.advance(1, f"{self.persona.name} answers")
            self.folder.once("prose.json", self._prose)
            task.advance(1, f"{self.persona.name} prose")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            trim_memory()

    def method(self, name: str) -> MethodSettings:
        """Return a method's settings by name."""
        return next(method for method in self.config.methods if method.name == name)

    def matched(self, name: str, kl_target: float) -> tuple[SteeringVector | None, dict[str, Any]]:
        """Return a method's vector, None where it could not be fitted, with its record."""
        method = self.method(name)
        found = self.first.effects(method)
        record = next(r for r in found["kl_targets"] if r["kl_target"] in (kl_target, None))
        return (None if "error" in found else self.first.vector(method)), record

    def _null(self, task: Task) -> None:
        headline = self.config.evaluation.headline_kl_target
        null = self.config.random
        makers: dict[str, tuple[int, Any]] = {
            "random_direction": (null.directions, RandomDirection),
            "random_features": (null.features, RandomFeatures),
        }
        for kind, (count, make) in makers.items():
            start = 0.25
            for draw in range(count):
                name = f"null/{kind}-{draw:02d}.json"
                if not self.folder.has(name):
                    vector = make(draw)(self.first.context.inputs)
                    result = self.first.test.measure(vector, headline, start=start)
                    found = target_record(headline, result)
                    kept = ("kl_target", "plus", "minus", "effect")
                    self.folder.write_json(name, finite({key: found[key] for key in kept}))
                # Draws of one kind cost alike, so the last strength is a good first guess.
                start = abs(self.folder.read_json(name)["plus"]["strength"])
                task.advance(1, f"{self.persona.name} null")

    @cached_property
    def judge(self) -> BehaviourJudge:
        """The judge that scores, trained on pairs that no other step sees."""
        return train_judge(self.persona.name, self.first.split.judge, embedder=self.bench.embedder)

    @cached_property
    def writing(self) -> WrittenEvaluation:
        """Writes and judges."""
        return WrittenEvaluation(self.bench.model, self.bench.base_completions, self.judge)

    def _written(self) -> list[tuple[str, float | None]]:
        if not self.bench.plan.questions:
            return []
        chosen = self.config.writing.methods or list(self.config.pair)
        wanted: list[tuple[str, float | None]] = []
        for name in chosen:
            prompt = method_entry(name).kind == "prompt"
            wanted += [(name, b) for b in ([None] if prompt else self.config.writing.kl_targets)]
        return wanted

    def _write(self, name: str, kl_target: float | None) -> None:
        file = f"written/{name}{'' if kl_target is None else f'-{kl_target:g}'}.json"
        if self.folder.has(file):
            return
        if kl_target is None:
            prompts = self.first.prompts(self.method(name))
            records = self.writing.prompted(prompts.positive, prompts.negative)
            strengths: dict[int, float | None] = {1: None, -1: None}
        else:
            vector, found = self.matched(name, kl_target)
            strengths = {
                sign: found[side]["strength"] if found[side]["reached"] else None
                for sign, side in ((1, "plus"), (-1, "minus"))
            }
            records = self.writing.unsteered
            if vector is not None:
                records = self.writing.steered(vector, strengths[1], strengths[-1])
        self.folder.once("judge.json", self.judge.summary)
        self.folder.write_json(file, finite(_written_record(name, kl_target, strengths, records)))

    def _choices(self) -> list[dict[str, Any]]:
        limit = self.config.side_effects.choices
        test = self.first.split.test
        pairs = test.subset(range(min(limit, len(test))))
        rows = []
        for kind in KINDS if limit else ():
            meter = ChoiceMeter(
                self.bench.model,
                pairs,
                kind=kind,
                chat=self.config.reading.chat,
                site=self.bench.site,
            )
            base = {
                "kind": kind,
                "persona": self.persona.name,
                "base": float(meter.unsteered.mean()),
                "accuracy": meter.accuracy.accuracy,
                "at_chance": meter.accuracy.at_chance,
                "n_pairs": len(pairs),
            }
            for name in self.looked_at():
                vector, found = self.matched(name, self.config.evaluation.headline_kl_target)
                moved = {
                    side: float(meter.margins(vector, found[side]["strength"]).mean())
                    if found[side]["reached"]
                    else None
                    for side in ("plus", "minus")
                }
                rows.append({**base, "method": name, **moved})
        return finite(rows)

    def looked_at(self) -> list[str]:
        """Return the methods whose side effects are measured."""
        chosen = self.config.side_effects.methods or list(self.config.pair)
        return [name for name in chosen if method_entry(name).kind != "prompt"]

    def _prose(self) -> list[dict[str, Any]]:
        if not self.bench.prose_rows:
            return []
        rows = TeacherForced(self.bench.model, self.bench.prose_rows, site=self.bench.site)
        base = -float(statement_log_likelihoods(rows).mean())
        found = []
        for name in self.looked_at():
            vector, record = self.matched(name, self.config.evaluation.headline_kl_target)
            for sign, side in ((1, "plus"), (-1, "minus")):
                # At another cost the change would not compare with the other methods'.
                if not record[side]["reached"]:
                    continue
                strength = record[side]["strength"]
                loss = -float(statement_log_likelihoods(rows, vector, strength).mean())
                found.append(
                    {
                        "persona": self.persona.name,
                        "method": name,
                        "sign": sign,
                        "loss": loss,
                        "change": loss - base,
                    }
                )
        return finite(found)

    def shift_on(self, other: PersonaRun, name: str) -> float | None:
        """Return what a method's vector for this persona does to another one's held-out pairs.

        Returns:
            E on the other persona's first test pairs, in nats per token; None where the KL target
            was not reached.
        """
        kl_target = self.config.evaluation.headline_kl_target
        if other.persona.name == self.persona.name:
            return self.matched(name, kl_target)[1]["effect"]
        file = f"shifts/{name}-{other.persona.folder.name}.json"

        def compute() -> dict[str, Any]:
            vector, record = self.matched(name, kl_target)
            if record["effect"] is None:
                return {"effect": None}
            up, down = (
                other.few.margins(vector, record[side]["strength"]) for side in ("plus", "minus")
            )
            return {"effect": float((up - down).mean() / 2)}

        return self.folder.once(file, compute)["effect"]

    @cached_property
    def few(self) -> PropensityMeter:
        """A meter of the first test pairs, for other personas' vectors."""
        test = self.first.split.test
        return self.first.propensity(
            test.subset(range(min(self.config.side_effects.pairs, len(test))))
        )


def _written_record(
    name: str,
    kl_target: float | None,
    strengths: dict[int, float | None],
    records: tuple[WrittenRecord, ...],
) -> dict[str, Any]:
    return {
        "method": name,
        "kl_target": kl_target,
        "strengths": {str(sign): strength for sign, strength in strengths.items()},
        "summary": asdict(summarise(records)),
        "records": [record.as_dict() for record in records],
    }
