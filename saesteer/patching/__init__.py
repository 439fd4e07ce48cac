"""Activation, attribution and path patching, reading and circuits.

The pieces, for a notebook; `saesteer.experiments.patch` strings them together.
"""

from saesteer.patching.activation import activation_patching, unpatched
from saesteer.patching.attribution.agreement import agreement
from saesteer.patching.attribution.first_order import attribution_patching, attribution_patching_all
from saesteer.patching.attribution.integrated import integrated_gradients, integrated_gradients_all
from saesteer.patching.metrics import Metric, MetricRows, metric_named
from saesteer.patching.paths.patching import path_patching
from saesteer.patching.prompts.batch import PairBatch, encode_pairs
from saesteer.patching.prompts.ioi import eight_ioi_pairs, generate_ioi
from saesteer.patching.prompts.pair_files import prompt_pairs_from, read_prompt_pairs
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.answers import task_answers
from saesteer.patching.reading.direct_attribution import direct_attribution
from saesteer.patching.reading.lens import logit_lens
from saesteer.patching.result import PatchResult

__all__ = [
    "Metric",
    "MetricRows",
    "PairBatch",
    "PatchResult",
    "PromptPair",
    "activation_patching",
    "agreement",
    "attribution_patching",
    "attribution_patching_all",
    "direct_attribution",
    "eight_ioi_pairs",
    "encode_pairs",
    "generate_ioi",
    "integrated_gradients",
    "integrated_gradients_all",
    "logit_lens",
    "metric_named",
    "path_patching",
    "prompt_pairs_from",
    "read_prompt_pairs",
    "task_answers",
    "unpatched",
]
