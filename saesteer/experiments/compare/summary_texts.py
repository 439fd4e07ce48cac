"""What the personas' written texts, features and side effects add to `metrics.json`."""

from __future__ import annotations

import json

import numpy as np

from saesteer.evaluation.statistics import compare_paired, hierarchical_bootstrap
from saesteer.experiments.compare.context import CompareContext
from saesteer.experiments.compare.persona_run import PersonaRun
from saesteer.experiments.compare.summary import Grid, Row
from saesteer.methods import AttributedSae, ClusteredSae
from saesteer.methods.clustered_sae import chosen_clusters
from saesteer.methods.features import vector_features
from saesteer.saes.labels import feature_url

CONTEXTS = 5


def written_files(run: PersonaRun) -> list[Row]:
    """Return a persona's written records, one for each method and KL target."""
    files = sorted((run.folder.path / "written").glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def generation(results: Grid) -> dict[str, list[Row]]:
    """Return `generation`, `generation_summary` and `judges`."""
    lines: list[Row] = []
    ranges: dict[tuple[str, float | None], dict[str, Row]] = {}
    judges = []
    for run in results.runs:
        name = run.persona.name
        if run.folder.has("judge.json"):
            judges.append(run.folder.read_json("judge.json"))
        for record in written_files(run):
            key = (record["method"], record["kl_target"])
            ranges.setdefault(key, {})[name] = record
            fields = {"persona": name, "method": key[0], "kl_target": key[1]}
            lines += [{**fields, **sign} for sign in record["summary"]["signs"]]
    summary = [
        _generation_row(results, method, kl_target, found, ranges)
        for (method, kl_target), found in ranges.items()
    ]
    return {"generation": lines, "generation_summary": summary, "judges": judges}


def _generation_row(
    results: Grid,
    method: str,
    kl_target: float | None,
    found: dict[str, Row],
    ranges: dict[tuple[str, float | None], dict[str, Row]],
) -> Row:
    baseline = ranges.get((results.config.baseline, kl_target), {})
    readings = {name: _by_question(found.get(name)) for name in results.names}
    estimate = hierarchical_bootstrap([_values(by) for by in readings.values()])
    # A question whose answer is empty under one of the two has no partner under the other.
    both = [_paired(by, _by_question(baseline.get(name))) for name, by in readings.items()]
    ratio = compare_paired([own for own, _ in both], [against for _, against in both]).ratio
    right = [record["summary"]["right_direction"] for record in found.values()]
    known = [value for value in right if value is not None]
    quality = [c for r in found.values() if (c := r["summary"]["composite"]) is not None]
    return {
        "method": method,
        "kl_target": kl_target,
        "judge_range": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "right_direction": sum(known) if known else None,
        "n_personas": estimate.n_personas,
        "composite": float(np.mean(quality)) if quality else None,
    }


def _by_question(record: Row | None) -> dict[int, float]:
    """Return each question's mean judge reading, positive minus negative, where there are both."""
    if record is None:
        return {}
    readings: dict[tuple[int, int], list[float]] = {}
    for entry in record["records"]:
        if entry["judge"] is not None:
            readings.setdefault((entry["question"], entry["sign"]), []).append(entry["judge"])
    questions = sorted({question for question, sign in readings if sign})
    both = [q for q in questions if (q, 1) in readings and (q, -1) in readings]
    return {q: float(np.mean(readings[(q, 1)]) - np.mean(readings[(q, -1)])) for q in both}


def _values(by_question: dict[int, float]) -> np.ndarray | None:
    return np.array(list(by_question.values())) if by_question else None


def _paired(
    own: dict[int, float], against: dict[int, float]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    shared = [question for question in own if question in against]
    return _values({q: own[q] for q in shared}), _values({q: against[q] for q in shared})


def completions(results: Grid) -> dict[str, list[Row]]:
    """Return the texts that the page shows: the first sample of the first questions."""
    config = results.config
    shown: dict[str, list[Row]] = {}
    for run in results.runs:
        rows = shown.setdefault(run.persona.name, [])
        for record in written_files(run):
            if record["kl_target"] not in (results.headline, None):
                continue
            for entry in record["records"]:
                if entry["sample"] or entry["question"] >= config.writing.shown:
                    continue
                rows.append(
                    {
                        "question": run.bench.plan.questions[entry["question"]],
                        "method": record["method"],
                        "strength": record["strengths"].get(str(entry["sign"])) or 0.0,
                        "sign": entry["sign"],
                        "text": entry["text"],
                        "judge": entry["judge"],
                    }
                )
    return shown


def side_effects(results: Grid) -> Row:
    """Return the change of loss on prose and what each persona's vector does to the others."""
    config = results.config
    prose = [row for run in results.runs for row in run.folder.read_json("prose.json")]
    matrix = []
    if config.side_effects.pairs and len(results.runs) > 1:
        for name in results.runs[0].looked_at():
            values = [[run.shift_on(other, name) for other in results.runs] for run in results.runs]
            matrix.append({"method": name, "personas": results.names, "values": values})
    return {"prose": prose, "matrix": matrix}


def named_features(bench: CompareContext, run: PersonaRun, method: str) -> Row:
    """Return the features of a method's vector with what is known of them, and the cluster tree."""
    vector, _ = run.matched(method, run.config.evaluation.headline_kl_target)
    if vector is None:
        return {"features": [], "tree": {}}
    inputs, table = run.first.context.inputs, bench.table
    assert inputs.codes is not None
    rows = []
    for row in vector_features(vector, inputs.codes):
        known = None if table is None else table.row(row["feature"])
        contexts = [] if known is None else known.contexts[:CONTEXTS]
        rows.append(
            {
                **row,
                "contexts": [
                    {"text": c.text, "token": c.token, "activation": c.activation} for c in contexts
                ],
                "url": feature_url(bench.sae.neuronpedia_id, row["feature"]),
            }
        )
    return {"features": rows, "tree": _tree(run, method)}


def _tree(run: PersonaRun, method: str) -> Row:
    from saesteer.methods.registry import build_method

    chosen = run.first.folder.read_json(f"chosen/{method}.json")["settings"]
    built = build_method(method, chosen)
    if not isinstance(built, AttributedSae | ClusteredSae):
        return {}
    if isinstance(built, AttributedSae) and built.candidates == "any":
        return {}
    decoder = run.bench.sae.decoder.numpy()
    inputs = run.first.context.inputs
    _, clusters = chosen_clusters(inputs, decoder, built.selection, built.clustering)
    return {
        "linkage": clusters.linkage.tolist(),
        "labels": clusters.indices.tolist(),
        "clusters": clusters.labels.tolist(),
    }
