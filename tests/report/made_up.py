"""Metrics of a comparison that never ran, in the shape of `metrics.json`.

`python tests/report/made_up.py FOLDER` writes metrics.json and report.html there, to look at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PERSONAS = (
    "agreeableness",
    "extraversion",
    "neuroticism",
    "openness",
    "conscientiousness",
    "desire-for-recursive-self-improvement",
    "optimism",
    "curiosity",
    "formality",
    "frugality",
    "playfulness",
    "love-of-nature",
)
METHODS = (
    ("attributed_sae", "SAE features, attribution weights", "sae", 0.62),
    ("difference_in_means", "difference in means", "dense", 0.38),
    ("attributed_any", "any SAE feature, attribution", "sae", 0.71),
    ("clustered_sae", "clustered SAE regression", "sae", 0.29),
    ("mean_decoded_delta", "decoded mean SAE delta", "sae", 0.35),
    ("top_feature", "top SAE feature (output score)", "sae", 0.17),
    ("target_atoms", "steering target atoms", "sae", 0.31),
    ("caa_answers", "CAA on answer letters", "dense", 0.12),
    ("pca", "PCA of the differences", "dense", 0.33),
    ("logistic_probe", "logistic probe", "dense", 0.36),
    ("system_prompt", "persona system prompt", "prompt", 0.55),
    ("random_direction", "random direction", "null", -0.01),
)
KL_TARGETS = (0.1, 0.3, 1.0)
GAIN = {0.1: 0.5, 0.3: 1.0, 1.0: 1.5}
TOPICS = (
    "kindness and helping",
    "words of agreement",
    "refusal and blame",
    "warm greetings",
    "first person plural",
    "insults",
    "apologies",
    "shared plans",
    "doubt",
    "praise of other people",
)
QUESTIONS = (
    "How was your day?",
    "What should I do this weekend?",
    "Tell me about a neighbour of yours.",
    "Which book would you give to a friend?",
    "A stranger asks you for directions. What do you say?",
    "What makes a good meal?",
)
TEXTS = {
    -1: "I don't see why I should care. People bring their own trouble on themselves, and most of "
    "them waste my time with it.",
    0: "It was a fairly ordinary day. I went for a walk, answered some messages and read a little "
    "in the evening.",
    1: "It was lovely, thank you for asking! I spent it helping a friend move house, and we laughed"
    " a lot together over lunch.",
}
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>"
    "\"quoted\" & 'single' {{ 7*7 }} </script><!-- \U0001f60a שלום עולם \u202edesrever"
)


def made_up_metrics(
    n_personas: int = 12,
    n_methods: int = 12,
    n_features: int = 32,
    *,
    seed: int = 0,
    hostile: bool = False,
) -> dict[str, Any]:
    """Return a full set of metrics; hostile ones carry markup wherever text can stand."""
    rng = np.random.default_rng(seed)
    names, methods = PERSONAS[:n_personas], METHODS[:n_methods]
    scale = {name: float(rng.lognormal(0, 0.3)) for name in names}
    effects = _effects(rng, names, methods, scale)
    metrics = {
        "name": "personas",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sae": "sae-smollm2",
        "site": "blocks.10.hook_resid_post",
        "seeds": [0, 1, 2],
        "kl_targets": list(KL_TARGETS),
        "headline_kl_target": 0.3,
        "headline_method": "attributed_sae",
        "baseline": "difference_in_means",
        "methods": [{"name": n, "label": label, "kind": kind} for n, label, kind, _ in methods],
        "personas": [
            _persona(rng, name, own=place >= n_personas // 2) for place, name in enumerate(names)
        ],
        "effects": effects,
        "curves": _curves(rng, names, methods, scale),
        "summary": _summary(rng, methods, len(names), scale),
        "areas": [_with_interval("area", 0.95 * mean, 0.08, method=n) for n, *_, mean in methods],
        "null": [_null(rng, n, k) for n in names for k in ("random_direction", "random_features")],
        **_generation(rng, names, methods, scale),
        "choices_margins": _choices(rng, names, methods),
        "side_effects": _side_effects(rng, names, methods),
        "features": {name: _features(rng, n_features) for name in names},
        "completions": {name: _completions(rng, methods) for name in names},
        "chosen": {name: {"n_features": 32, "ridge": 0.01, "layer": 10} for name in names},
        "config": {"seed": 0, "kl_targets": list(KL_TARGETS), "model": {"name": "smollm2"}},
        "seconds": {"read": 61.2, "gradients": 140.9, "fit": 22.4, "match": 803.0, "write": 402.7},
    }
    metrics["linkage"] = {name: _linkage(rng, metrics["features"][name]) for name in names}
    if hostile:
        _poison(metrics)
    return json.loads(json.dumps(metrics))


def _with_interval(name: str, value: float, half: float, **fields: Any) -> dict[str, Any]:
    return {**fields, name: value, "low": value - half, "high": value + half}


def _persona(rng, name: str, *, own: bool) -> dict[str, Any]:
    source = f"datasets/pairs/{name}.jsonl" if own else f"model_written_evals/{name}.jsonl"
    counts = {"n_train": 200, "n_validation": 75, "n_test": 75, "n_judge": 150}
    margin = float(rng.normal(0, 0.3))
    return {"name": name, "source": source, "own": own, **counts, "unsteered_margin": margin}


def _effects(rng, names, methods, scale) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        for method, _, _, mean in methods:
            for kl_target in KL_TARGETS:
                for seed in range(3):
                    value = mean * GAIN[kl_target] * scale[name] + rng.normal(0, 0.03)
                    missed = method == "top_feature" and kl_target == 1.0 and seed == 0
                    side = {
                        "strength": float(0.3 * kl_target**0.5),
                        "kl": kl_target,
                        "reached": True,
                    }
                    rows.append(
                        {
                            **_with_interval("effect", value, 0.06 + 0.1 * abs(value)),
                            "persona": name,
                            "method": method,
                            "seed": seed,
                            "kl_target": kl_target,
                            "moved_share": float(np.clip(0.5 + value / 2, 0, 1)),
                            "common_shift": float(rng.normal(-0.3 * kl_target, 0.05)),
                            "anti_steerable": float(np.clip(0.4 - value / 2, 0, 1)),
                            "slope": value * 0.9,
                            "plus": side,
                            "minus": {**side, "strength": -side["strength"]},
                            "n_pairs": 75,
                        }
                    )
                    if missed:
                        rows[-1].update(effect=None, low=None, high=None)
    return rows


def _curves(rng, names, methods, scale) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        base = float(rng.normal(0, 0.2))
        for method, _, _, mean in methods:
            for multiple in (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5):
                margin = base + scale[name] * mean * float(np.tanh(multiple * 1.2))
                fields = {"persona": name, "method": method, "seed": 0, "multiple": multiple}
                sides = {"positive": -2.9 + margin / 2, "negative": -2.9 - margin / 2}
                rows.append({**fields, "strength": 0.2 * multiple, "margin": margin, **sides})
    return rows


def _summary(rng, methods, n: int, scale) -> list[dict[str, Any]]:
    rows, typical = [], float(np.mean(list(scale.values())))
    for method, _, _, mean in methods:
        for kl_target in KL_TARGETS:
            ratio = mean / 0.38
            half = 0.08 + 0.1 * abs(mean)
            rows.append(
                {
                    **_with_interval(
                        "effect", mean * GAIN[kl_target] * typical, half * GAIN[kl_target]
                    ),
                    "method": method,
                    "kl_target": kl_target,
                    "n_personas": n,
                    "ratio": ratio,
                    "ratio_low": ratio - 0.14 * abs(ratio),
                    "ratio_high": ratio + 0.15 * abs(ratio),
                    "p": float(rng.uniform(0.0004, 0.04)),
                    "p_holm": float(rng.uniform(0.005, 0.045)),
                    "beyond_null": n if mean > 0.2 else 2,
                }
            )
            if method == "difference_in_means":
                rows[-1].update(ratio=1.0, ratio_low=1.0, ratio_high=1.0, p=None, p_holm=None)
    return rows


def _null(rng, persona: str, kind: str) -> dict[str, Any]:
    effects = rng.normal(0, 0.05, 20).tolist()
    largest = max(map(abs, effects))
    return {"persona": persona, "kind": kind, "effects": effects, "largest": largest, "p": 1 / 21}


def _generation(rng, names, methods, scale) -> dict[str, Any]:
    lines, summary = [], []
    for method, _, _, mean in methods:
        for kl_target in KL_TARGETS[:2]:
            width = 3.4 * (mean if mean < 0.5 else 0.5 + (mean - 0.5) / 3) * GAIN[kl_target]
            summary.append(
                {
                    **_with_interval("judge_range", width, 0.4),
                    "method": method,
                    "kl_target": kl_target,
                    "ratio": width / (3.4 * 0.38 * GAIN[kl_target]),
                    "ratio_low": width / (3.4 * 0.38 * GAIN[kl_target]) - 0.2,
                    "ratio_high": width / (3.4 * 0.38 * GAIN[kl_target]) + 0.2,
                    "right_direction": float(np.clip(0.6 + mean, 0, 1)),
                    "composite": 0.7 - 0.1 * kl_target,
                }
            )
            for name in names:
                for sign in (-1, 0, 1):
                    judge = -0.5 + sign * width / 2 * scale[name] + rng.normal(0, 0.2)
                    lines.append(_written_line(rng, name, method, kl_target, sign, judge))
    judges = [
        {"persona": n, "auc": float(rng.uniform(0.85, 0.99)), "n_train": 200, "n_test": 100}
        for n in names
    ]
    return {"generation": lines, "generation_summary": summary, "judges": judges}


def _written_line(rng, name, method, kl_target, sign, judge) -> dict[str, Any]:
    return {
        "persona": name,
        "method": method,
        "kl_target": kl_target,
        "sign": sign,
        "n": 128,
        "judge": judge,
        "judge_low": judge - 0.25,
        "judge_high": judge + 0.25,
        "sentiment": float(np.clip(0.4 + 0.2 * sign, -1, 1)),
        "nll": float(1.6 + 0.4 * abs(sign) + rng.normal(0, 0.05)),
        "rep4": 0.02,
        "distinct2": 0.9,
        "similarity": 0.45,
        "composite": 0.66,
    }


def _choices(rng, names, methods) -> list[dict[str, Any]]:
    return [
        {
            "persona": name,
            "method": method,
            "kind": kind,
            "base": 0.1,
            "plus": 0.1 + mean * (1.2 if kind == "yes_no" else 0.1),
            "minus": 0.1 - mean * (1.1 if kind == "yes_no" else 0.1),
            "accuracy": 0.64 if kind == "yes_no" else 0.51,
            "at_chance": kind == "a_b",
        }
        for kind in ("yes_no", "a_b")
        for name in names
        for method, _, _, mean in methods[:2]
    ]


def _side_effects(rng, names, methods) -> dict[str, Any]:
    matrix = []
    for method, _, _, mean in methods[:2]:
        values = rng.normal(0, 0.12, (len(names), len(names)))
        np.fill_diagonal(values, mean * rng.uniform(0.7, 1.4, len(names)))
        matrix.append({"method": method, "personas": list(names), "values": values.tolist()})
    prose = [
        {"persona": n, "method": m, "sign": s, "loss": 3.1 + c, "change": c}
        for n in names
        for m, *_ in methods
        for s in (-1, 1)
        for c in [float(abs(rng.normal(0.2, 0.05)))]
    ]
    return {"prose": prose, "matrix": matrix}


def _features(rng, n: int) -> list[dict[str, Any]]:
    indices = rng.choice(4608, n, replace=False)
    rows = []
    for place, index in enumerate(indices):
        topic = TOPICS[place % len(TOPICS)]
        sign = 1 if rng.random() < 0.6 else -1
        token = topic.split()[-1]
        contexts = [
            {
                "text": f"I always thought that {token} would count for more than anything, {k}",
                "token": token,
                "activation": float(rng.uniform(2, 12)),
            }
            for k in range(5)
        ]
        rows.append(
            {
                "feature": int(index),
                "weight": sign * float(rng.exponential(0.4)) + sign * 0.02,
                "cluster": place % 6,
                "description": f"{topic}; promotes “{token}”",
                "firing_positive": float(rng.uniform(0.1, 0.6)),
                "firing_negative": float(rng.uniform(0.0, 0.3)),
                "score": sign * float(rng.uniform(3, 9)),
                "contexts": contexts,
                "url": f"https://www.neuronpedia.org/smollm2/10/{index}" if place % 3 else None,
            }
        )
    return rows


def _linkage(rng, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from scipy.cluster.hierarchy import linkage

    centres = rng.normal(size=(6, 8))
    rows = [centres[row["cluster"]] + 0.35 * rng.normal(size=8) for row in features]
    found = linkage(np.array(rows), "average")
    return {
        "linkage": found.tolist(),
        "labels": [row["feature"] for row in features],
        "clusters": [row["cluster"] for row in features],
    }


def _completions(rng, methods) -> list[dict[str, Any]]:
    return [
        {
            "question": question,
            "method": method,
            "strength": strength,
            "sign": int(np.sign(strength)),
            "text": TEXTS[int(np.sign(strength))],
            "judge": float(np.sign(strength) * 2.2 - 0.4 + rng.normal(0, 0.5)),
        }
        for question in QUESTIONS
        for method, *_ in methods[:2]
        for strength in (-0.31, -0.16, 0.0, 0.14, 0.28)
    ]


def _poison(metrics: dict[str, Any]) -> None:
    """Put markup wherever a model or a file can put text."""
    metrics["name"] = metrics["model"] = HOSTILE
    metrics["methods"][0]["label"] = HOSTILE
    metrics["config"]["note"] = HOSTILE
    for rows in metrics["features"].values():
        rows[0].update(description=HOSTILE, url="javascript:window.hacked=3")
        rows[0]["contexts"][0].update(text=f"before {HOSTILE} after", token=HOSTILE)
    for rows in metrics["completions"].values():
        rows[0].update(text=HOSTILE, question=HOSTILE)


def main(folder: Path) -> None:
    """Write the metrics and their report."""
    from saesteer.report import write_report

    folder.mkdir(parents=True, exist_ok=True)
    metrics = made_up_metrics()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    print(write_report(metrics, folder / "report.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
