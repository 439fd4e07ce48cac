"""One self-contained page of a comparison: opens offline, asks nothing of the network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.report import costs, drawing, effects, named_features, reading, written
from saesteer.report.frame import asset, embedded, environment, script_hash, write_page
from saesteer.report.headline import headline_pieces, headline_remarks
from saesteer.report.palette import AGAINST, TOWARDS, cluster_colours, method_colours
from saesteer.report.reading import Method, Metrics
from saesteer.report.trees import dendrogram_figure
from saesteer.saes.neuronpedia.links import SITE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SECTIONS = (
    ("effect", "Effect"),
    ("personas", "Personas"),
    ("methods", "Methods"),
    ("features", "Features"),
    ("text", "Text"),
    ("side-effects", "Side effects"),
    ("secondary", "Secondary"),
    ("run", "Run"),
)


def write_report(metrics: Metrics, path: str | os.PathLike[str]) -> Path:
    """Write a comparison's page.

    Args:
        metrics: What `metrics.json` of `saesteer compare` holds; every part may be absent or
            empty, and the page then says so.
        path: The file to write, such as `report.html`; its folder is made.

    Returns:
        The path.

    Raises:
        OutputError: The file cannot be written.
    """
    return write_page(report_page(metrics), path)


def report_page(metrics: Metrics) -> str:
    """Return a comparison's page as HTML."""
    from plotly.offline import get_plotlyjs

    figures: dict[str, str] = {}
    scripts = {"plotly": get_plotlyjs(), "page": asset("script.js")}
    parts: dict[str, Any] = {
        "metrics": metrics,
        "sections": SECTIONS,
        "kl_target": reading.headline_kl_target(metrics),
        "kl_targets": reading.kl_targets(metrics),
        "style": asset("style.css"),
        "scripts": scripts,
        "script_hashes": [script_hash(script) for script in scripts.values()],
        **_headline(metrics),
        **_effects(metrics, figures),
        **_features(metrics, figures),
        **_written(metrics, figures),
        **_costs(metrics, figures),
        "config": {
            name: json.dumps(metrics[key], indent=2, ensure_ascii=False, default=str)
            for name, key in (("Settings", "config"), ("Chosen on validation", "chosen"))
            if metrics.get(key)
        },
        "stages": costs.stage_data(metrics),
    }
    # The figures come last: the calls above fill them in.
    parts["figures"] = embedded(figures)
    templates = environment()
    templates.globals.update(judge_bar=_judge_bar, listing=reading.listing, Method=Method)
    return templates.get_template("report.html").render(parts)


def _headline(metrics: Metrics) -> dict[str, Any]:
    data = effects.headline_data(metrics)
    written_rows = {
        row.method.name: row
        for row in written.written_table(metrics)
        if reading.same(row.kl_target, reading.headline_kl_target(metrics))
    }
    return {
        "headline": data,
        "pieces": headline_pieces(data) if data else [],
        "remarks": headline_remarks(data) if data else [],
        "headline_written": written_rows.get(str(metrics.get("headline_method"))),
    }


def effect_figures(metrics: Metrics) -> dict[str, Figure]:
    """Return the figures of what the methods did: by KL target, by strength and by persona.

    Args:
        metrics: What a comparison's metrics.json holds; what is missing has no figure.
    """
    names = (metrics.get("headline_method"), metrics.get("baseline"))
    colours = method_colours(reading.methods(metrics), *names)
    curves, strengths = effects.target_data(metrics), effects.strength_data(metrics)
    forest = effects.forest_data(metrics)
    found = {}
    if curves:
        found["kl_targets"] = drawing.target_figure(curves, colours, *names)
    if strengths:
        found["strengths"] = drawing.strength_figure(strengths, colours, *names)
    if forest:
        labels = (reading.label_of(metrics, name) if name else "" for name in names)
        found["forest"] = drawing.forest_figure(forest, *labels)
    return found


def _effects(metrics: Metrics, figures: dict[str, str]) -> dict[str, Any]:
    methods = reading.methods(metrics)
    for name, figure in effect_figures(metrics).items():
        _add(figures, name, figure)
    return {
        "methods": methods,
        "colours": method_colours(methods, metrics.get("headline_method"), metrics.get("baseline")),
        "forest": effects.forest_data(metrics),
        "persona_rows": {str(row.get("name")): row for row in reading.rows(metrics, "personas")},
        "method_rows": effects.method_table(metrics) if methods else [],
        "missed": effects.missed_targets(metrics),
        "strengths": effects.strength_data(metrics),
        "curves": effects.target_data(metrics),
    }


def _features(metrics: Metrics, figures: dict[str, str]) -> dict[str, Any]:
    panels = []
    for persona in reading.groups(metrics, "features"):
        rows = named_features.feature_data(metrics, persona)
        tree = named_features.dendrogram_data(metrics, persona)
        clusters = named_features.cluster_order(rows)
        if isinstance(tree, named_features.Dendrogram):
            clusters += [c.cluster for c in tree.leaves if c.cluster is not None]
        colours = cluster_colours([*dict.fromkeys(clusters)])
        figure, note = "", ""
        if isinstance(tree, str):
            note = tree
        else:
            figure = f"tree-{len(panels)}"
            _add(figures, figure, dendrogram_figure(tree, colours))
        heaviest = max((abs(row.weight or 0.0) for row in rows), default=0.0) or 1.0
        panels.append(
            {
                "persona": persona,
                "rows": rows,
                "colours": colours,
                "heaviest": heaviest,
                "figure": figure,
                "note": note,
            }
        )
    embeds = any(row.embed for panel in panels for row in panel["rows"])
    return {"feature_panels": panels, "framed": SITE if embeds else None}


def _written(metrics: Metrics, figures: dict[str, str]) -> dict[str, Any]:
    spans = written.judge_spans(metrics)
    if spans:
        colours = method_colours(
            reading.methods(metrics), metrics.get("headline_method"), metrics.get("baseline")
        )
        _add(figures, "judge", drawing.judge_figure(spans, colours))
    texts = {
        persona: questions
        for persona in reading.groups(metrics, "completions")
        if (questions := written.completion_data(metrics, persona))
    }
    return {
        "spans": spans,
        "written_rows": written.written_table(metrics),
        "written_means": written.written_means(metrics),
        "llm_means": written.llm_means(metrics),
        "texts": texts,
        "scales": {persona: written.judge_scale(found) for persona, found in texts.items()},
        "judges": costs.judge_data(metrics),
    }


def _costs(metrics: Metrics, figures: dict[str, str]) -> dict[str, Any]:
    matrices = costs.side_effect_data(metrics)
    sizes = [abs(v) for m in matrices for line in m.values for v in line if v is not None]
    for place, matrix in enumerate(matrices):
        figure = drawing.matrix_figure(matrix.personas, matrix.values, max(sizes, default=1.0))
        _add(figures, f"matrix-{place}", figure)
    return {
        "matrices": matrices,
        "prose": costs.prose_data(metrics),
        "choices": costs.choice_data(metrics),
    }


def _add(figures: dict[str, str], name: str, figure: Figure) -> None:
    figures[name] = figure.to_json() or "{}"


def _judge_bar(judge: float | None, scale: float) -> str:
    """Return the style of a judge's bar: from the middle, as far as the logit is of the scale."""
    if judge is None:
        return ""
    share = 50 * min(1.0, abs(judge) / scale)
    left = 50.0 if judge >= 0 else 50.0 - share
    return f"left:{left:.1f}%;width:{share:.1f}%;background:{TOWARDS if judge >= 0 else AGAINST}"
