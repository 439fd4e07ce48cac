"""One scored probe per layer, from labelled texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.context import Context
from saesteer.experiments.probe.plan import ProbePlan
from saesteer.models import Site, model_info
from saesteer.probes.fitting import FittedProbe, fit_probe
from saesteer.probes.independent import load_text_classifier, train_text_classifier
from saesteer.probes.probe_set import LinearProbe, ProbeSet
from saesteer.probes.reading import encode_labelled, probe_sites, read_layers
from saesteer.probes.scores import control_labels, score
from saesteer.probes.store import LayerStore, open_store
from saesteer.utils.errors import ModelError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from saesteer.data.labelled import LabelledSet

JUDGE = "judge.json"


def read_stores(bench: Context) -> tuple[LayerStore, LayerStore | None]:
    """Return the activations of the texts and of the plain cases, reading what is missing."""
    plan = bench.plan
    jobs = [(plan.texts, plan.store)]
    if plan.checks is not None:
        jobs.append((plan.checks, plan.checks_store))
    stores = []
    for texts, path in jobs:
        if not path.is_file():
            model = bench.model
            sites = probe_sites(int(model.cfg.n_layers), plan.config.reading)
            bench.progress.say(f"Reading {len(texts):,} texts at {len(sites)} layers in one pass")
            assert model.tokenizer is not None
            rows = encode_labelled(
                model.tokenizer,
                texts.texts,
                plan.config.reading,
                max_length=int(model.cfg.n_ctx),
            )
            read_layers(
                model,
                rows,
                sites,
                path,
                positions=plan.config.reading.positions,
                storage=plan.config.reading.storage,
                metadata={
                    "model_fingerprint": model_info(model).fingerprint,
                    "dtype": str(model.cfg.dtype).removeprefix("torch."),
                    "texts": texts.digest,
                },
                progress=bench.progress,
            )
        stores.append(open_store(path))
    return stores[0], stores[1] if len(stores) > 1 else None


def shared_metrics(plan: ProbePlan) -> dict[str, Any]:
    """Return what every probe run's metrics begin with."""
    split, used = plan.split, plan.used
    test = np.bincount(used.labels[split.test], minlength=len(used.classes))
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
    }


def fit_layers(
    plan: ProbePlan,
    folder: RunFolder,
    store: LayerStore,
    checks: LayerStore | None,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[LinearProbe]]:
    records: list[dict[str, Any]] = []
    probes: list[LinearProbe] = []
    progress.say(
        f"Fitting {len(store.sites)} probes on {len(plan.split.train):,} texts, scoring on "
        f"{len(plan.split.test):,}"
    )
    with progress.task("probes", len(store.sites), "layers") as task:
        for site in store.sites:
            name = f"layers/{site}"
            if not (folder.has(f"{name}.json") and folder.has(f"{name}.safetensors")):
                record, probe = _fit_layer(plan, store, checks, site)
                _one(plan, store, probe).save(folder.path / f"{name}.safetensors")
                folder.write_json(f"{name}.json", record)
            records.append(folder.read_json(f"{name}.json"))
            probes += ProbeSet.load(folder.path / f"{name}.safetensors").probes
            task.advance(1, f"layer {site.layer}")
    return records, probes


def _one(plan: ProbePlan, store: LayerStore, probe: LinearProbe) -> ProbeSet:
    reading = plan.config.reading
    return ProbeSet(
        (probe,),
        plan.config.model.name,
        store.metadata["model_fingerprint"],
        reading.positions,
        probe.site.layer,
        reading.before,
        reading.after,
    )


def _fit_layer(
    plan: ProbePlan, store: LayerStore, checks: LayerStore | None, site: Site
) -> tuple[dict[str, Any], LinearProbe]:
    started = time.perf_counter()
    settings, seed = plan.config.fit, plan.config.seed
    split, labels = plan.split, plan.used.labels
    x = store.site(site)[plan.places]
    groups = split.groups
    train, test = x[split.train], x[split.test]
    fitted = fit_probe(train, labels[split.train], groups[split.train], settings, seed=seed)
    scores = score(
        labels[split.test],
        fitted.probabilities(test),
        groups[split.test],
        resamples=settings.resamples,
        seed=seed,
    )
    record: dict[str, Any] = {
        "site": str(site),
        "layer": site.layer,
        "c": fitted.c,
        "cv_loss": {f"{c:g}": loss for c, loss in fitted.cv_loss.items()},
        "converged": fitted.converged,
        **scores.as_dict(),
    }
    if settings.control:
        record |= _control(plan, train, test, fitted.c, scores.accuracy.value)
    if checks is not None and plan.checks is not None:
        record["checks"] = check_record(plan.checks, fitted, checks.site(site))
    record["seconds"] = round(time.perf_counter() - started, 2)
    n_classes = len(plan.used.classes)
    means = np.stack([train[labels[split.train] == c].mean(axis=0) for c in range(n_classes)])
    probe = LinearProbe(
        site,
        plan.used.classes,
        fitted.weight,
        fitted.bias,
        means.astype(np.float32),
        store.residual_norm(site),
        fitted.c,
    )
    return record, probe


def _control(
    plan: ProbePlan, train: np.ndarray, test: np.ndarray, c: float, accuracy: float | None
) -> dict[str, Any]:
    settings, seed, split = plan.config.fit, plan.config.seed, plan.split
    shuffled = control_labels(plan.used.labels, seed)
    control = fit_probe(
        train, shuffled[split.train], split.groups[split.train], settings, c=c, seed=seed
    )
    scores = score(
        shuffled[split.test],
        control.probabilities(test),
        split.groups[split.test],
        resamples=settings.resamples,
        seed=seed,
    ).as_dict()
    value = scores["accuracy"]["value"]
    selectivity = None if accuracy is None or value is None else accuracy - value
    return {"control": scores, "selectivity": selectivity}


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


def train_judge(plan: ProbePlan, folder: RunFolder, progress: Progress) -> None:
    """Train and keep the independent classifier, unless its package is not installed."""
    split = plan.split
    if not len(split.judge):
        return
    progress.say(f"Training the independent classifier on {len(split.judge):,} other texts")
    part: Sequence[int] = split.judge.tolist()
    try:
        judge = train_text_classifier(
            plan.used.subset(part),
            plan.used.subset(split.test.tolist()),
            plan.config.fit,
            groups=split.groups[split.judge].tolist(),
            seed=plan.config.seed,
        )
    except ModelError as error:
        progress.say(f"  left out: {error}")
    else:
        judge.save(folder.path / JUDGE)


def judge_record(folder: RunFolder) -> dict[str, Any] | None:
    """Return the independent classifier's scores; None where there is none."""
    if not folder.has(JUDGE):
        return None
    kept = load_text_classifier(folder.path / JUDGE)
    return {"n_train": kept.n_train, **kept.scores.as_dict()}
