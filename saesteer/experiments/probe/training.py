"""`saesteer probe train`: from labelled texts to one scored probe per layer, in a run's folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saesteer.experiments.probe.plan import ProbePlan, plan_probes
from saesteer.experiments.recorded import recorded_experiment, tell_probes
from saesteer.experiments.shelf import Shelf
from saesteer.experiments.workbench import ModelBench, on_its_threads
from saesteer.models import Site, model_info
from saesteer.probes.fitting import FittedProbe, fit_probe
from saesteer.probes.independent import train_text_classifier
from saesteer.probes.probe_set import FILE_NAME, LinearProbe, ProbeSet
from saesteer.probes.reading import encode_labelled, probe_sites, read_layers
from saesteer.probes.scores import control_labels, score
from saesteer.probes.settings import ProbeConfig
from saesteer.probes.store import LayerStore, open_store
from saesteer.utils.errors import ModelError, OutputError
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder, environment_record, write_record

if TYPE_CHECKING:
    from saesteer.data.labelled import LabelledSet

JUDGE = "judge.json"


@dataclass(frozen=True)
class ProbeRun:
    """What a probe run found; all of it is in its folder too.

    Attributes:
        folder: The run's folder.
        probes: The probes.
        metrics: `metrics.json`.
    """

    folder: RunFolder
    probes: ProbeSet
    metrics: dict[str, Any]


@on_its_threads
def train_probes(
    config: ProbeConfig,
    progress: Progress | None = None,
    shelf: Shelf | None = None,
    **record: Any,
) -> ProbeRun:
    """Read every layer in one pass, fit and score a probe on each, and record the run.

    What the run's folder holds already is not done again.

    Args:
        config: The settings.
        progress: Where to show progress.
        shelf: What other runs of this process have loaded already; nothing if None.
        record: What else the record says: `tags`, `group` and `parent` of `recorded_run`.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.
    """
    progress = progress or Progress()
    plan = plan_probes(config)
    bench = ModelBench(plan, progress, shelf)
    with recorded_experiment("probe-train", config, plan.folder, progress, **record) as recorded:
        with recorded.stage("probes"):
            run = _trained(plan, bench)
        tell_probes(recorded, run)
    return run


def _trained(plan: ProbePlan, bench: ModelBench) -> ProbeRun:
    config, progress = plan.config, bench.progress
    if config.reading.sae is not None:
        from saesteer.experiments.probe.sparse_run import train_on_codes

        return train_on_codes(plan, bench)
    folder = RunFolder(plan.folder)
    if folder.has("metrics.json") and folder.has(FILE_NAME):
        return load_run(folder)
    store, checks = read_stores(bench)
    write_inputs(folder.create(), plan, store)
    records, probes = _fit_layers(plan, folder, store, checks, progress)
    judge = train_judge(plan, folder, progress)
    best = min(records, key=lambda record: min(record["cv_loss"].values(), default=0.0))
    found = ProbeSet(
        probes=tuple(probes),
        model=config.model.name,
        model_fingerprint=store.metadata["model_fingerprint"],
        positions=config.reading.positions,
        best=int(best["layer"]),
        before=config.reading.before,
        after=config.reading.after,
        name=config.name,
    )
    found.save(folder.path / FILE_NAME)
    metrics = {**shared_metrics(plan), "best": found.best, "layers": records, "judge": judge}
    folder.write_json("metrics.json", metrics)
    write_reports(folder, metrics)
    return ProbeRun(folder, found, metrics)


def load_run(folder: RunFolder) -> ProbeRun:
    """Read a finished run back from its folder.

    Raises:
        SaesteerError: The folder holds no finished run.
    """
    if not folder.has("metrics.json"):
        raise OutputError(
            f"{folder.path} holds no finished probe run; give the folder that saesteer probe train "
            "names at its end."
        )
    return ProbeRun(folder, ProbeSet.load(folder.path), folder.read_json("metrics.json"))


def read_stores(bench: ModelBench) -> tuple[LayerStore, LayerStore | None]:
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


def write_inputs(folder: RunFolder, plan: ProbePlan, store: LayerStore | None) -> None:
    """Write what the run starts from: settings, split, versions."""
    folder.write_json("config.json", plan.config.model_dump(mode="json"))
    ids = [text.id for text in plan.used.texts]
    folder.write_json(
        "split.json",
        {part: [ids[i] for i in getattr(plan.split, part)] for part in ("train", "test", "judge")},
    )
    record = {**environment_record(), "texts_sha256": plan.texts.digest}
    if store is not None:
        record["model_fingerprint"] = store.metadata["model_fingerprint"]
        record["activations"] = str(store.path)
    write_record(folder, record)


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


def _fit_layers(
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


def train_judge(plan: ProbePlan, folder: RunFolder, progress: Progress) -> dict[str, Any] | None:
    """Train and keep the independent classifier; None where its package is not installed."""
    from saesteer.probes.independent import load_text_classifier

    split = plan.split
    if not len(split.judge):
        return None
    if not folder.has(JUDGE):
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
            return None
        judge.save(folder.path / JUDGE)
    kept = load_text_classifier(folder.path / JUDGE)
    return {"n_train": kept.n_train, **kept.scores.as_dict()}


def write_reports(folder: RunFolder, metrics: dict[str, Any]) -> None:
    """Write the figures and the table of layers."""
    from saesteer.probes.figures import confusion_page, confusion_picture, layer_table

    folder.write("layers.csv", layer_table(metrics).to_csv)
    folder.write("confusion.html", lambda draft: confusion_page(metrics, draft))
    folder.write("confusion.png", lambda draft: confusion_picture(metrics, draft))
