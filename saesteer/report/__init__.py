"""Figures and reports, from results alone."""

from saesteer.report.figures import PropensityData, propensity_data, propensity_figure

__all__ = ["PropensityData", "propensity_data", "propensity_figure"]
