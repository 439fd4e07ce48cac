"""Probes on every layer, or on an SAE's codes: `saesteer probe train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from saesteer.data.labelled import LabelledSet
from saesteer.experiments.base import Experiment, Stage, write_png
from saesteer.experiments.probe.config import ProbeConfig, ProbePlan, plan_probes
from saesteer.experiments.results import METRICS, Results
from saesteer.models import Site, model_info
from saesteer.models.tokens import TokenRow
from saesteer.probes import sparse
from saesteer.probes.fitting import Parts
from saesteer.probes.independent import load_text_classifier, train_text_classifier
from saesteer.probes.probe import FILE_NAME, LinearProbe, ProbeSet
from saesteer.probes.reading import (
    CHUNK_ROWS,
    INDEX,
    LayerStore,
    encode_labelled,
    probe_sites,
    read_layers,
    read_share,
    share_file,
)
from saesteer.probes.readout import check_record
from saesteer.report import Report
from saesteer.saes.adapter import Sae, check_compatible
from saesteer.saes.labels import known_descriptions, own_table
from saesteer.saes.loading import load_sae
from saesteer.tracking import RecordedRun
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ModelError
from saesteer.utils.run_folder import environment_record, write_record

SCORES = "scores.json"
JUDGE = "judge.json"
ALL_CODES_C = 1.0
# Each process that reads a share loads the model.
MOST_SHARES = 16


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
    make_plan = staticmethod(plan_probes)

    def stages(self) -> list[Stage]:
        return [Stage("probes", self._probes), Stage("judge", self._judge)]

    def _probes(self) -> None:
        name = self.config.reading.sae
        found, scores = self._on_layers() if name is None else self._on_codes(load_sae(name))
        self.folder.write(FILE_NAME, found.save)
        self.folder.write_json(SCORES, scores)

    def _on_layers(self) -> tuple[ProbeSet, dict[str, Any]]:
        plan, folder = self.plan, self.folder
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
        self.share_out()
        with self.progress.task("probes", len(store.sites), "layers") as task:
            for site in store.sites:
                record, kept = _layer_files(site)
                if not (folder.has(record) and folder.has(kept)):
                    self._write_layer(store, checks, site)
                records.append(folder.read_json(record))
                probes += ProbeSet.load(folder.path / kept).probes
                task.advance(1, f"layer {site.layer}")
        best = min(records, key=lambda record: min(record["cv_loss"].values(), default=0.0))
        found = self._probe_set(probes, fingerprint, int(best["layer"]))
        return found, {"best": found.best, "layers": records}

    def _store(self, texts: LabelledSet, folder: Path) -> LayerStore:
        if (folder / INDEX).is_file():
            return LayerStore(folder)
        self.share_out()
        return read_layers(
            *self._reading_of(texts, folder),
            metadata={
                "model_fingerprint": model_info(self.model).fingerprint,
                "dtype": str(self.model.cfg.dtype).removeprefix("torch."),
                "texts": texts.digest,
            },
            progress=self.progress,
        )

    def _reading_of(self, texts: LabelledSet, folder: Path) -> tuple[Any, ...]:
        reading = self.config.reading
        sites = probe_sites(int(self.model.cfg.n_layers), reading)
        self.progress.say(f"Reading {len(texts):,} texts at {len(sites)} layers in one pass")
        return self.model, self._rows(texts), sites, folder, reading

    def _rows(self, texts: LabelledSet, prepend_bos: bool | None = None) -> list[TokenRow]:
        how: Any = {"prepend_bos": prepend_bos, "max_length": self.context}
        return encode_labelled(self.tokenizer, texts.texts, self.config.reading, **how)

    @cached_property
    def _parts(self) -> Parts:
        split, config = self.plan.split, self.config
        labels = self.plan.used.labels
        return Parts(labels, split.groups, split.train, split.test, config.fit, config.seed)

    def parts(self) -> dict[str, Callable[[], object]]:
        # Shares of the texts, which are read at all layers; then the layers, each fitted alone.
        plan = self.plan
        if plan.sae is not None:
            return {}
        stores = {plan.store: plan.texts}
        stores |= {} if plan.checks is None else {plan.checks_store: plan.checks}
        unread = {place: texts for place, texts in stores.items() if not (place / INDEX).is_file()}
        if not unread:
            store, *checks = map(LayerStore, stores)
            of = checks[0] if checks else None
            return {
                str(site): partial(self._write_layer, store, of, site)
                for site in store.sites
                if not all(map(self.folder.has, _layer_files(site)))
            }
        return {
            f"{place.name} {share[0] + 1} of {share[1]}": partial(
                self._read_share, texts, place, share
            )
            for place, texts in unread.items()
            for share in _shares(len(texts))
            if not share_file(place, share).is_file()
        }

    def _read_share(self, texts: LabelledSet, folder: Path, share: tuple[int, int]) -> None:
        read_share(*self._reading_of(texts, folder), share=share)

    def _write_layer(self, store: LayerStore, checks: LayerStore | None, site: Site) -> None:
        probe, scores = self._fit_layer(store, checks, site)
        record, kept = _layer_files(site)
        made = self._probe_set([probe], store.metadata["model_fingerprint"], site.layer)
        made.save(self.folder.path / kept)
        self.folder.write_json(record, scores)

    def _fit_layer(
        self, store: LayerStore, checks: LayerStore | None, site: Site
    ) -> tuple[LinearProbe, dict[str, Any]]:
        started = time.perf_counter()
        plan, parts = self.plan, self._parts
        x = store.site(site)[plan.places]
        probe = LinearProbe.fit(site, plan.used.classes, x, parts, store.residual_norm(site))
        scores = parts.score(probe, x[parts.test])
        record: dict[str, Any] = {
            "site": str(site),
            "layer": site.layer,
            "c": probe.c,
            "cv_loss": {f"{c:g}": loss for c, loss in probe.cv_loss.items()},
            "converged": probe.converged,
            **scores,
        }
        if parts.settings.control:
            shuffled = parts.shuffled()
            control = shuffled.score(shuffled.fit(x, c=probe.c), x[parts.test])
            gap = scores["accuracy"]["value"] - control["accuracy"]["value"]
            record |= {"control": control, "selectivity": gap}
        if checks is not None and plan.checks is not None:
            found = probe.probabilities(checks.site(site)).argmax(axis=1)
            predicted = [probe.classes[number] for number in found]
            record["checks"] = check_record(plan.checks.texts, predicted)
        record["seconds"] = round(time.perf_counter() - started, 2)
        return probe, record

    def _probe_set(
        self, probes: list[LinearProbe], fingerprint: str, best: int, sae: str | None = None
    ) -> ProbeSet:
        config, reading = self.config, self.config.reading
        return ProbeSet(
            tuple(probes),
            config.model.name,
            fingerprint,
            reading.positions,
            best,
            before=reading.before,
            after=reading.after,
            sae=sae,
            name=config.name,
        )

    def _on_codes(self, sae: Sae) -> tuple[ProbeSet, dict[str, Any]]:
        """Fit k-sparse, L1 and full probes on an SAE's codes, beside one on the residual stream."""
        plan, config, settings = self.plan, self.config, self.config.sparse
        table = None if plan.sae is None else own_table(plan.sae)
        words = known_descriptions(sae, table, self.progress)
        check_compatible(self.model, sae)
        found = self._codes(sae)
        fingerprint = model_info(self.model).fingerprint
        self._write_inputs(fingerprint)
        parts, classes, norm = self._parts, plan.used.classes, found.residual_norm
        codes, residual = csr_matrix(found.codes[plan.places]), found.residual[plan.places]
        self.progress.say(f"Fitting sparse probes on {len(parts.train):,} texts")
        reference = parts.score(parts.fit(residual), residual[parts.test])
        strongest = sparse.k_sparse_probes(codes, parts, settings.k)
        l1 = [sparse.all_codes_probe(codes, parts, c, l1=True) for c in settings.l1_c]
        whole = sparse.all_codes_probe(codes, parts, ALL_CODES_C)
        for one in strongest:
            if np.any(one.last_direction):
                vector = sparse.code_vector(
                    one,
                    sae,
                    words,
                    model=config.model.name,
                    model_fingerprint=fingerprint,
                    residual_norm=norm,
                    read_positions=config.reading.positions,
                    name=f"{config.name} {classes[0]} to {classes[-1]}",
                )
                vector.save(self.folder.path / f"sparse/k-{len(one.features)}.safetensors")
        probe = sparse.widened(whole, codes, parts, sae, classes, norm)
        most = len(strongest[-1].features)
        return self._probe_set([probe], fingerprint, sae.site.layer, sae.name), {
            "sae": str(config.reading.sae),
            "site": str(sae.site),
            "best": sae.site.layer,
            "layers": [],
            "residual": reference,
            "sparse": [one.as_dict() for one in [*strongest, *l1, whole]],
            "needed": sparse.features_needed(strongest, reference["macro_f1"]["value"] or 0.0),
            "features": sparse.feature_records(codes, parts, sae, classes, words, most),
            "model_fingerprint": fingerprint,
        }

    def _codes(self, sae: Sae) -> sparse.TextCodes:
        rows = self._rows(self.plan.texts, sae.prepend_bos)
        pooling = self.config.reading.pooling

        def compute() -> dict[str, np.ndarray]:
            self.progress.say(f"Encoding {len(rows):,} texts with SAE {sae.name} at {sae.site}")
            return sparse.read_codes(self.model, rows, sae, pooling, progress=self.progress)

        cache, store = Cache(self.plan.store.parent), self.plan.store.name
        # A name such as release:id says nothing of the weights behind it.
        return sparse.TextCodes.of_arrays(
            cache.once("codes", store, sae.fingerprint, compute=compute)
        )

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
        used, split, config = self.plan.used, self.plan.split, self.config
        if not len(split.judge):
            return
        self.progress.say(
            f"Training the independent classifier on {len(split.judge):,} other texts"
        )
        try:
            judge = train_text_classifier(
                used.subset(split.judge.tolist()),
                used.subset(split.test.tolist()),
                config.fit,
                groups=split.groups[split.judge].tolist(),
                seed=config.seed,
            )
        except ModelError as error:
            self.progress.say(f"  left out: {error}")
        else:
            judge.save(self.folder.path / JUDGE)

    def finish(self) -> dict[str, Any]:
        config, plan, split, used = self.config, self.plan, self.plan.split, self.plan.used
        test = np.bincount(used.labels[split.test], minlength=len(used.classes))
        judge = None
        if self.folder.has(JUDGE):
            kept = load_text_classifier(self.folder.path / JUDGE)
            judge = {"n_train": kept.n_train, **kept.scores}
        return {
            "name": config.name,
            "model": config.model.name,
            "source": plan.texts.source,
            "classes": list(used.classes),
            "positions": config.reading.positions,
            "n_train": len(split.train),
            "n_test": len(split.test),
            "n_judge": len(split.judge),
            "test_counts": test.tolist(),
            "n_checks": 0 if plan.checks is None else len(plan.checks),
            **self.folder.read_json(SCORES),
            "judge": judge,
        }

    def report(self, results: Results) -> Report:
        from saesteer.report.probe import probe_report

        return probe_report(results.metrics)

    def write_report(self) -> None:
        from saesteer.report.probe import confusion_figure, layer_table

        metrics = self.folder.read_json(METRICS)
        if metrics["layers"]:
            self.folder.write("layers.csv", layer_table(metrics).to_csv)
            write_png(self.folder, "confusion.png", [confusion_figure(metrics)])
        super().write_report()

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        best = next((r for r in _rows(metrics) if r["layer"] == metrics["best"]), {})
        counts = {name: metrics[name] for name in ("n_train", "n_test", "n_judge", "n_checks")}
        found = {"best_layer": metrics["best"], **best, **counts}
        return found | ({"features_needed": metrics["needed"]} if "needed" in metrics else {})

    def tell(self, record: RecordedRun, results: Results) -> None:
        layers = _rows(results.metrics)
        if layers:
            record.curve("layers", layers, x="layer")
            record.table("layers", layers)
        for name in ("sparse", "features"):
            if results.metrics.get(name):
                record.table(name, results.metrics[name])
        record.artifact("probes", self.folder.path / FILE_NAME, "probes")


def _shares(n_texts: int) -> list[tuple[int, int]]:
    """The shares in which so many texts are read; none where there is nothing to share."""
    of = min(MOST_SHARES, -(-n_texts // CHUNK_ROWS))
    return [(number, of) for number in range(of)] if of > 1 else []


def _layer_files(site: Site) -> tuple[str, str]:
    return f"layers/{site}.json", f"layers/{site}.safetensors"


def _rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for record in metrics["layers"]:
        names = ("accuracy", "macro_f1", "auroc")
        scores = {name: (record.get(name) or {}).get("value") for name in names}
        control = {"selectivity": record["selectivity"]} if "selectivity" in record else {}
        rows.append({"layer": record["layer"], **scores, **control})
    return rows
