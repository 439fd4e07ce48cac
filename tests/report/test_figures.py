"""The figure shows the numbers of metrics.json and nothing else."""

from __future__ import annotations

from saesteer.report import propensity_data, propensity_figure

LABEL = "SAE features, attribution weights"


def _metrics():
    effect = {"effect": 0.3, "low": 0.2, "high": 0.4}
    curve = [{"multiple": m, "margin": 0.1 * m, "strength": m} for m in (-1.0, 0.0, 1.0)]
    return {
        "curve": curve,
        "curve_difference_in_means": curve,
        "vector": {"method": "attributed_sae", "effect": effect},
        "difference_in_means": {"method": "difference_in_means", "effect": None},
        "random_directions": [{"effect": {"effect": 0.05}}, {"effect": None}],
        "unsteered_margin": 0.02,
    }


def test_data_is_that_of_the_metrics():
    data = propensity_data(_metrics())
    assert data.curves[LABEL] == [(-1.0, -0.1), (0.0, 0.0), (1.0, 0.1)]
    assert data.effects == [(LABEL, 0.3, 0.2, 0.4)]
    assert data.null == [0.05]
    assert data.unsteered == 0.02


def test_a_vector_that_missed_the_target_is_not_drawn():
    figure = propensity_figure(propensity_data(_metrics()), "t").to_dict()
    drawn = [trace["x"][0] for trace in figure["data"] if trace["mode"] == "markers"]
    assert drawn == [LABEL, "1 random"]


def test_without_random_directions_the_figure_still_draws():
    metrics = {**_metrics(), "random_directions": []}
    figure = propensity_figure(propensity_data(metrics), "t").to_dict()
    assert len(figure["data"]) == 3
    assert "Effect E" in str(figure["layout"])
