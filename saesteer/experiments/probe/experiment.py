"""Probes on every layer, or on an SAE's codes: `saesteer probe train`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from saesteer.experiments.base import Experiment, Stage
from saesteer.experiments.probe.config import ProbeConfig
from saesteer.experiments.probe.plan import ProbePlan, plan_probes
from saesteer.experiments.probe.sparse_run import train_on_codes
from saesteer.experiments.probe.training import (
    fit_layers,
    judge_record,
    read_stores,
    shared_metrics,
    train_judge,
)
from saesteer.experiments.results import Results
from saesteer.probes.probe_set import FILE_NAME, ProbeSet
from saesteer.report import Report
from saesteer.tracking.recording import RecordedRun
from saesteer.utils.run_folder import environment_record, write_record

SCORES = "scores.json"


class ProbeResults(Results):
    """What a probe run found."""

    @cached_property
    def probes(self) -> ProbeSet:
        """The probes."""
        return ProbeSet.load(self.folder.path)


class TrainProbes(Experiment[ProbeResults]):
    """Reads every layer in one pass, and fits and scores a probe on each."""

    Config = ProbeConfig
    Results = ProbeResults
    about = "a linear probe on every layer"
    plan: ProbePlan

    @staticmethod
    def make_plan(config: ProbeConfig) -> ProbePlan:
        """Read the texts and check every setting."""
        return plan_probes(config)

    def stages(self) -> list[Stage]:
        """Return the steps: the probes, and the classifier that they are held against."""
        return [Stage("probes", self._probes), Stage("judge", self._judge)]

    def _probes(self) -> None:
        plan = self.plan
        if plan.config.reading.sae is None:
            store, checks = read_stores(self)
            self._write_inputs(store.metadata["model_fingerprint"], activations=str(store.path))
            records, probes = fit_layers(plan, self.folder, store, checks, self.progress)
            best = min(records, key=lambda record: min(record["cv_loss"].values(), default=0.0))
            reading = plan.config.reading
            found = ProbeSet(
                probes=tuple(probes),
                model=plan.config.model.name,
                model_fingerprint=store.metadata["model_fingerprint"],
                positions=reading.positions,
                best=int(best["layer"]),
                before=reading.before,
                after=reading.after,
                name=plan.config.name,
            )
            scores: dict[str, Any] = {"best": found.best, "layers": records}
        else:
            found, scores = train_on_codes(self, self.folder)
            self._write_inputs(found.model_fingerprint)
        self.folder.write(FILE_NAME, found.save)
        self.folder.write_json(SCORES, scores)

    def _write_inputs(self, fingerprint: str, **more: str) -> None:
        plan = self.plan
        ids = [text.id for text in plan.used.texts]
        parts = ("train", "test", "judge")
        split = {part: [ids[i] for i in getattr(plan.split, part)] for part in parts}
        self.folder.write_json("split.json", split)
        record = {"texts_sha256": plan.texts.digest, "model_fingerprint": fingerprint, **more}
        write_record(self.folder, {**environment_record(), **record})

    def _judge(self) -> None:
        train_judge(self.plan, self.folder, self.progress)

    def finish(self) -> dict[str, Any]:
        """Return the metrics."""
        scores = self.folder.read_json(SCORES)
        return {**shared_metrics(self.plan), **scores, "judge": judge_record(self.folder)}

    def report(self, results: Results) -> Report:
        """Return the report."""
        from saesteer.report.probe import probe_report

        return probe_report(results.metrics)

    def write_report(self) -> None:
        """Write the page, the table of layers, and the confusion matrices as PNG."""
        from saesteer.report.pictures import save_png
        from saesteer.report.probe import confusion_figure, layer_table

        super().write_report()
        metrics = self.folder.read_json("metrics.json")
        if metrics["layers"]:
            drawn = confusion_figure(metrics)
            self.folder.write("layers.csv", layer_table(metrics).to_csv)
            self.folder.write("confusion.png", lambda draft: save_png([drawn], draft))

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the best layer's scores, and how many texts there were."""
        best = next((r for r in _rows(metrics) if r["layer"] == metrics["best"]), {})
        counts = {name: metrics[name] for name in ("n_train", "n_test", "n_judge", "n_checks")}
        found = {"best_layer": metrics["best"], **best, **counts}
        return found | ({"features_needed": metrics["needed"]} if "needed" in metrics else {})

    def tell(self, record: RecordedRun, results: Results) -> None:
        """Show the scores by layer and the features elsewhere too."""
        layers = _rows(results.metrics)
        if layers:
            record.curve("layers", layers, x="layer")
            record.table("layers", layers)
        for name in ("sparse", "features"):
            if results.metrics.get(name):
                record.table(name, results.metrics[name])
        record.artifact("probes", self.folder.path / FILE_NAME, "probes")


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for record in metrics["layers"]:
        names = ("accuracy", "macro_f1", "auroc")
        scores = {name: (record.get(name) or {}).get("value") for name in names}
        control = {"selectivity": record["selectivity"]} if "selectivity" in record else {}
        rows.append({"layer": record["layer"], **scores, **control})
    return rows
