"""How what a model says answers to a small push at a site."""

from saesteer.methods.attribution.fisher import FisherMetric, fisher_metric
from saesteer.methods.attribution.gradients import row_gradients
from saesteer.methods.attribution.objective import Contrast, Linearisation, SteeringObjective
from saesteer.methods.attribution.own_words import OwnWords, own_words

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
