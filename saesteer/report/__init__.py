"""Figures and reports, from results alone."""

from saesteer.report.figures import PropensityData, propensity_data, propensity_figure
from saesteer.report.page import write_report

__all__ = ["PropensityData", "propensity_data", "propensity_figure", "write_report"]
