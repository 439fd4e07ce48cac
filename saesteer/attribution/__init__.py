"""How what a model says answers to a small push at a site."""

from saesteer.attribution.fisher import FisherMetric, fisher_metric
from saesteer.attribution.gradients import row_gradients
from saesteer.attribution.objective import Contrast, Linearisation, SteeringObjective
from saesteer.attribution.own_words import OwnWords, own_words

__all__ = [
    "Contrast",
    "FisherMetric",
    "Linearisation",
    "OwnWords",
    "SteeringObjective",
    "fisher_metric",
    "own_words",
    "row_gradients",
]
