"""Probes on every layer, or on an SAE's codes: `saesteer probe train`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from saesteer.data.labelled import LabelledSet
from saesteer.experiments.base import Experiment, Stage
from saesteer.experiments.probe.config import ProbeConfig, ProbePlan, plan_probes
from saesteer.experiments.results import Results
from saesteer.models import Site, model_info
from saesteer.models.tokens import TokenRow
from saesteer.probes.fitting import FittedProbe, fit_probe
from saesteer.probes.independent import load_text_classifier, train_text_classifier
from saesteer.probes.probe import FILE_NAME, LinearProbe, ProbeSet
from saesteer.probes.reading import (
    INDEX,
    LayerStore,
    TextCodes,
    encode_labelled,
    probe_sites,
    read_codes,
    read_layers,
)
from saesteer.probes.scores import Scores, control_labels, score
from saesteer.probes.sparse import (
    SparseData,
    SparseProbe,
    all_codes_probe,
    features_needed,
    k_sparse_probes,
    l1_probes,
    rank_features,
)
from saesteer.report import Report
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.labels import PLACE_KEY, feature_url, known_descriptions, own_table
from saesteer.saes.loading import load_sae, resolve_sae
from saesteer.steering import SteeredFeature, SteeringVector
from saesteer.tracking import RecordedRun
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ModelError
from saesteer.utils.run_folder import environment_record, write_record

SCORES = "scores.json"
JUDGE = "judge.json"
ALL_CODES_C = 1.0


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
        if self.plan.config.reading.sae is None:
            found, scores = self._on_layers()
        else:
            found, scores = self._on_codes(load_sae(self.plan.config.reading.sae))
        self.folder.write(FILE_NAME, found.save)
        self.folder.write_json(SCORES, scores)

    def _on_layers(self) -> tuple[ProbeSet, dict[str, Any]]:
        plan = self.plan
        store = self._store(plan.texts, plan.store)
        checks = None if plan.checks is None else self._store(plan.checks, plan.checks_store)
        fingerprint = store.metadata["model_fingerprint"]
        self._write_inputs(fingerprint, activations=str(store.folder))
        self.progress.say(
            f"Fitting {len(store.sites)} probes on {len(plan.split.train):,} texts, scoring on "
            f"{len(plan.split.test):,}"
        )
        records: list[dict[str, Any]] = []
        probes: list[LinearProbe] = []
        with self.progress.task("probes", len(store.sites), "layers") as task:
            for site in store.sites:
                name = f"layers/{site}"
                if not (self.folder.has(f"{name}.json") and self.folder.has(f"{name}.safetensors")):
                    probe, record = self._fit_layer(store, checks, site)
                    one = self._probe_set([probe], fingerprint, site.layer)
                    one.save(self.folder.path / f"{name}.safetensors")
                    self.folder.write_json(f"{name}.json", record)
                records.append(self.folder.read_json(f"{name}.json"))
                probes += ProbeSet.load(self.folder.path / f"{name}.safetensors").probes
                task.advance(1, f"layer {site.layer}")
        best = min(records, key=lambda record: min(record["cv_loss"].values(), default=0.0))
        found = self._probe_set(probes, fingerprint, int(best["layer"]))
        return found, {"best": found.best, "layers": records}

    def _store(self, texts: LabelledSet, folder: Path) -> LayerStore:
        if (folder / INDEX).is_file():
            return LayerStore(folder)
        reading = self.plan.config.reading
        sites = probe_sites(int(self.model.cfg.n_layers), reading)
        self.progress.say(f"Reading {len(texts):,} texts at {len(sites)} layers in one pass")
        return read_layers(
            self.model,
            self._rows(texts),
            sites,
            folder,
            positions=reading.positions,
            storage=reading.storage,
            metadata={
                "model_fingerprint": model_info(self.model).fingerprint,
                "dtype": str(self.model.cfg.dtype).removeprefix("torch."),
                "texts": texts.digest,
            },
            progress=self.progress,
        )

    def _rows(self, texts: LabelledSet, prepend_bos: bool | None = None) -> list[TokenRow]:
        reading = self.plan.config.reading
        how: Any = {"prepend_bos": prepend_bos, "max_length": self.context}
        return encode_labelled(self.tokenizer, texts.texts, reading, **how)

    def _fit_layer(
        self, store: LayerStore, checks: LayerStore | None, site: Site
    ) -> tuple[LinearProbe, dict[str, Any]]:
        started = time.perf_counter()
        plan, settings, seed = self.plan, self.plan.config.fit, self.plan.config.seed
        labels, split = plan.used.labels, plan.split
        x = store.site(site)[plan.places]
        train, groups = x[split.train], split.groups[split.train]
        probe, fitted = LinearProbe.fit(
            site,
            plan.used.classes,
            train,
            labels[split.train],
            groups,
            settings,
            residual_norm=store.residual_norm(site),
            seed=seed,
        )
        scores = self._scored(fitted, x[split.test], labels)
        record: dict[str, Any] = {
            "site": str(site),
            "layer": site.layer,
            "c": fitted.c,
            "cv_loss": {f"{c:g}": loss for c, loss in fitted.cv_loss.items()},
            "converged": fitted.converged,
            **scores.as_dict(),
        }
        if settings.control:
            shuffled = control_labels(labels, seed)
            given: Any = (train, shuffled[split.train], groups, settings)
            control = self._scored(
                fit_probe(*given, c=fitted.c, seed=seed), x[split.test], shuffled
            )
            values = scores.accuracy.value, control.accuracy.value
            gap = None if None in values else values[0] - values[1]  # type: ignore[operator]
            record |= {"control": control.as_dict(), "selectivity": gap}
        if checks is not None and plan.checks is not None:
            record["checks"] = check_record(plan.checks, fitted, checks.site(site))
        record["seconds"] = round(time.perf_counter() - started, 2)
        return probe, record

    def _scored(self, probe: FittedProbe, x: np.ndarray, labels: np.ndarray) -> Scores:
        test, config = self.plan.split.test, self.plan.config
        how: Any = {"resamples": config.fit.resamples, "seed": config.seed}
        return score(labels[test], probe.probabilities(x), self.plan.split.groups[test], **how)

    def _probe_set(
        self, probes: list[LinearProbe], fingerprint: str, best: int, sae: str | None = None
    ) -> ProbeSet:
        config, reading = self.plan.config, self.plan.config.reading
        return ProbeSet(
            tuple(probes),
            config.model.name,
            fingerprint,
            reading.positions,
            best,
            reading.before,
            reading.after,
            sae,
            config.name,
        )

    def _on_codes(self, sae: Sae) -> tuple[ProbeSet, dict[str, Any]]:
        """Fit k-sparse, L1 and full probes on an SAE's codes, beside one on the residual stream."""
        plan = self.plan
        config, settings, seed = plan.config, plan.config.fit, plan.config.seed
        name = str(config.reading.sae)
        words = known_descriptions(sae, own_table(resolve_sae(name)), self.progress)
        check_compatible(self.model, sae)
        found = self._codes(sae)
        fingerprint = model_info(self.model).fingerprint
        self._write_inputs(fingerprint)
        split, labels = plan.split, plan.used.labels
        codes, residual = csr_matrix(found.codes[plan.places]), found.residual[plan.places]
        data = SparseData(codes, labels, split.groups, split.train, split.test)
        self.progress.say(f"Fitting sparse probes on {len(split.train):,} texts")
        given: Any = (residual[split.train], labels[split.train], split.groups[split.train])
        dense = fit_probe(*given, settings, seed=seed)
        reference = self._scored(dense, residual[split.test], labels)
        sparse = k_sparse_probes(data, config.sparse.k, settings, seed=seed)
        l1 = l1_probes(data, config.sparse.l1_c, settings, seed=seed)
        whole = all_codes_probe(data, ALL_CODES_C, settings, seed=seed)
        for probe in sparse:
            vector = self._code_vector(probe, sae, found.residual_norm, fingerprint, words)
            if vector is not None:
                vector.save(self.folder.path / f"sparse/k-{len(probe.features)}.safetensors")
        probe = _whole_probe(whole, sae, data, plan.used.classes, found.residual_norm)
        return self._probe_set([probe], fingerprint, sae.site.layer, sae.name), {
            "sae": name,
            "site": str(sae.site),
            "best": sae.site.layer,
            "layers": [],
            "residual": reference.as_dict(),
            "sparse": [probe.as_dict() for probe in [*sparse, *l1, whole]],
            "needed": features_needed(sparse, reference.macro_f1.value or 0.0),
            "features": self._features(data, sae, len(sparse[-1].features), words),
            "model_fingerprint": fingerprint,
        }

    def _codes(self, sae: Sae) -> TextCodes:
        rows = self._rows(self.plan.texts, sae.prepend_bos)
        positions = self.plan.config.reading.positions

        def compute() -> dict[str, np.ndarray]:
            self.progress.say(f"Encoding {len(rows):,} texts with SAE {sae.name} at {sae.site}")
            how: Any = {"positions": positions, "progress": self.progress}
            return read_codes(self.model, rows, sae, **how).arrays()

        cache, store = Cache(self.plan.store.parent), self.plan.store.name
        # A name such as release:id says nothing of the weights behind it.
        return TextCodes.of_arrays(cache.once("codes", store, sae.fingerprint, compute=compute))

    def _code_vector(
        self,
        probe: SparseProbe,
        sae: Sae,
        residual_norm: float,
        fingerprint: str,
        descriptions: Mapping[int, str],
    ) -> SteeringVector | None:
        """Return what a sparse probe's weights amount to in the residual stream: W_dec' w."""
        rows = probe.weight
        weights = rows[0] if len(rows) == 1 else rows[-1] - rows[0]
        if not np.any(weights):
            return None
        decoder = sae.decoder[probe.features].float().cpu()
        features = tuple(
            SteeredFeature(int(i), float(w), None, descriptions.get(int(i)))
            for i, w in zip(probe.features, weights, strict=True)
            if w
        )
        config, classes = self.plan.config, self.plan.used.classes
        return SteeringVector.from_raw(
            torch.from_numpy(weights.astype(np.float32)) @ decoder,
            site=sae.write_site,
            model=config.model.name,
            model_fingerprint=fingerprint,
            sae=sae.name,
            sae_fingerprint=sae.fingerprint,
            residual_norm=residual_norm,
            features=features,
            read_positions=config.reading.positions,
            method="k_sparse_probe",
            name=f"{config.name} {classes[0]} to {classes[-1]}, {len(features)} features",
            provenance={PLACE_KEY: sae.neuronpedia_id},
        )

    def _features(
        self, data: SparseData, sae: Sae, count: int, descriptions: Mapping[int, str]
    ) -> list[dict[str, Any]]:
        """Return the strongest features with where they fire and what they stand for."""
        train, labels = csr_matrix(data.codes[data.train]), data.labels[data.train]
        order, f = rank_features(train, labels)
        records = []
        for index, strength in zip(order[:count].tolist(), f.tolist(), strict=False):
            means = {
                name: float(train[labels == number][:, index].mean())
                for number, name in enumerate(self.plan.used.classes)
            }
            records.append(
                {
                    "feature": index,
                    "f": float(strength),
                    "class": max(means, key=lambda name: means[name]),
                    "means": means,
                    "description": descriptions.get(index),
                    "url": feature_url(sae.neuronpedia_id, index),
                }
            )
        return records

    def _write_inputs(self, fingerprint: str, **more: str) -> None:
        plan = self.plan
        ids = [text.id for text in plan.used.texts]
        parts = ("train", "test", "judge")
        split = {part: [ids[i] for i in getattr(plan.split, part)] for part in parts}
        self.folder.write_json("split.json", split)
        record = {"texts_sha256": plan.texts.digest, "model_fingerprint": fingerprint, **more}
        write_record(self.folder, {**environment_record(), **record})

    def _judge(self) -> None:
        """Train and keep the independent classifier, unless its package is not installed."""
        plan, split = self.plan, self.plan.split
        if not len(split.judge):
            return
        self.progress.say(
            f"Training the independent classifier on {len(split.judge):,} other texts"
        )
        try:
            judge = train_text_classifier(
                plan.used.subset(split.judge.tolist()),
                plan.used.subset(split.test.tolist()),
                plan.config.fit,
                groups=split.groups[split.judge].tolist(),
                seed=plan.config.seed,
            )
        except ModelError as error:
            self.progress.say(f"  left out: {error}")
        else:
            judge.save(self.folder.path / JUDGE)

    def finish(self) -> dict[str, Any]:
        """Return the metrics."""
        plan, split, used = self.plan, self.plan.split, self.plan.used
        test = np.bincount(used.labels[split.test], minlength=len(used.classes))
        judge = None
        if self.folder.has(JUDGE):
            kept = load_text_classifier(self.folder.path / JUDGE)
            judge = {"n_train": kept.n_train, **kept.scores.as_dict()}
        return {
            "name": plan.config.name,
            "model": plan.config.model.name,
            "source": plan.texts.source,
            "classes": list(used.classes),
            "positions": plan.config.reading.positions,
            "n_train": len(split.train),
            "n_test": len(split.test),
            "n_judge": len(split.judge),
            "test_counts": test.tolist(),
            "n_checks": 0 if plan.checks is None else len(plan.checks),
            **self.folder.read_json(SCORES),
            "judge": judge,
        }

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


def check_record(checks: LabelledSet, fitted: FittedProbe, x: np.ndarray) -> dict[str, Any]:
    """Return how a probe does on the plain cases, with those that it misses."""
    found = fitted.probabilities(x).argmax(axis=1)
    right = found == checks.labels
    misses = [
        {"text": t.text, "label": t.label, "predicted": checks.classes[int(p)]}
        for t, p, ok in zip(checks.texts, found, right, strict=True)
        if not ok
    ]
    return {"n": len(right), "right": int(right.sum()), "misses": misses}


def _whole_probe(
    whole: SparseProbe, sae: Sae, data: SparseData, classes: tuple[str, ...], residual_norm: float
) -> LinearProbe:
    weight = np.zeros((len(whole.weight), sae.d_sae), dtype=np.float32)
    weight[:, whole.features] = whole.weight
    labels, train = data.labels[data.train], data.codes[data.train]
    means = [np.asarray(train[labels == c].mean(axis=0)) for c in range(len(classes))]
    joined = np.concatenate(means).astype(np.float32)
    return LinearProbe(sae.site, classes, weight, whole.bias, joined, residual_norm, whole.c)


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for record in metrics["layers"]:
        names = ("accuracy", "macro_f1", "auroc")
        scores = {name: (record.get(name) or {}).get("value") for name in names}
        control = {"selectivity": record["selectivity"]} if "selectivity" in record else {}
        rows.append({"layer": record["layer"], **scores, **control})
    return rows
