"""How what a model says answers to a small push at a site."""

from saesteer.attribution.fisher import FisherMetric, fisher_metric
from saesteer.attribution.gradients import row_gradients

__all__ = ["FisherMetric", "fisher_metric", "row_gradients"]
