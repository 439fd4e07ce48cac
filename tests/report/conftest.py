"""Metrics to check by hand."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def small() -> dict[str, Any]:
    """Return metrics of two personas and three methods with numbers to check by hand."""
    side = {"strength": 0.2, "kl": 0.3, "reached": True}
    shared = {"moved_share": 0.7, "slope": 0.4, "n_pairs": 9, "minus": side, "plus": side}
    effects = [
        {"persona": p, "method": m, "seed": s, "kl_target": 0.3, "effect": e, "low": e - 0.1}
        | {"high": e + 0.1, "anti_steerable": 0.1 * s, "common_shift": -0.2, **shared}
        for p, m, s, e in (
            ("warm", "ours", 0, 0.4),
            ("warm", "ours", 1, 0.6),
            ("warm", "theirs", 0, 0.2),
            ("brave", "ours", 0, 0.9),
            ("brave", "theirs", 0, 0.3),
        )
    ]
    effects.append({**effects[0], "persona": "brave", "method": "chance", "effect": None})
    summary = [
        {"method": m, "kl_target": b, "n_personas": 2, "effect": e, "low": e - 0.2, "high": e + 0.2}
        | {"ratio": e / 0.25, "ratio_low": e / 0.25 - 0.5, "ratio_high": e / 0.25 + 0.5}
        | {"p": 0.5, "p_holm": 0.04, "beyond_null": 2}
        for m, b, e in (
            ("ours", 0.1, 0.3),
            ("ours", 0.3, 0.7),
            ("theirs", 0.1, 0.1),
            ("theirs", 0.3, 0.25),
        )
    ]
    nothing = ("effect", "low", "high", "ratio", "ratio_low", "ratio_high", "p", "p_holm")
    summary += [
        {"method": "chance", "kl_target": b, "n_personas": 0, "beyond_null": None}
        | dict.fromkeys(nothing)
        for b in (0.1, 0.3)
    ]
    null = [
        {"persona": p, "kind": "random_direction", "effects": e, "largest": 0.1, "p": 0.25}
        for p, e in (("warm", [0.05, -0.1]), ("brave", [0.02, 0.1]))
    ]
    return {
        "name": "by hand",
        "kl_targets": [0.1, 0.3],
        "headline_kl_target": 0.3,
        "headline_method": "ours",
        "baseline": "theirs",
        "methods": [
            {"name": "chance", "label": "random direction", "kind": "null"},
            {"name": "theirs", "label": "difference in means", "kind": "dense"},
            {"name": "ours", "label": "SAE features", "kind": "sae"},
        ],
        "model": "m",
        "sae": "s",
        "site": "blocks.1.hook_resid_post",
        "seeds": [0, 1],
        "personas": [
            {"name": n, "own": n == "brave", "source": f"{n}.jsonl", "unsteered_margin": 0.1}
            | {f"n_{part}": 9 for part in ("train", "validation", "test", "judge")}
            for n in ("warm", "brave")
        ],
        "effects": effects,
        "summary": summary,
        "null": null,
        "side_effects": {"matrix": [], "prose": []},
        **{name: {} for name in ("features", "linkage", "completions", "vectors", "chosen")},
        **{name: {} for name in ("config", "seconds")},
        **{name: [] for name in ("curves", "areas", "generation", "generation_summary")},
        **{name: [] for name in ("judges", "llm_judge", "choices_margins")},
    }
