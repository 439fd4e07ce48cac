"""Activation, attribution and path patching, reading and circuits.

`patch` is the one call for all methods and `lens` reads prompts layer by layer;
`saesteer.experiments.patch` strings the pieces together.
"""

from saesteer.patching.answers import task_answers
from saesteer.patching.attribution import attribution_patching
from saesteer.patching.batch import PairBatch, encode_pairs
from saesteer.patching.direct import direct_attribution
from saesteer.patching.ioi import eight_ioi_pairs, generate_ioi
from saesteer.patching.lens import lens, logit_lens
from saesteer.patching.metrics import Metric, MetricRows, metric_named
from saesteer.patching.pairs import PromptPair, load_prompt_pairs
from saesteer.patching.patcher import activation_patching, patch, unpatched
from saesteer.patching.paths import path_patching
from saesteer.patching.result import PatchResult
from saesteer.patching.summary import agreement

__all__ = [
    "Metric",
    "MetricRows",
    "PairBatch",
    "PatchResult",
    "PromptPair",
    "activation_patching",
    "agreement",
    "attribution_patching",
    "direct_attribution",
    "eight_ioi_pairs",
    "encode_pairs",
    "generate_ioi",
    "lens",
    "load_prompt_pairs",
    "logit_lens",
    "metric_named",
    "patch",
    "path_patching",
    "task_answers",
    "unpatched",
]
