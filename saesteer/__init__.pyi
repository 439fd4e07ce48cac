"""Every public name, written once: `__init__.py` reads this file, and so do type checkers."""

from saesteer.data import ContrastivePair as ContrastivePair
from saesteer.data import PairSet as PairSet
from saesteer.data import load_pairs as load_pairs
from saesteer.data import pairs_from as pairs_from
from saesteer.data import split_pairs as split_pairs
from saesteer.evaluation import EffectMeter as EffectMeter
from saesteer.evaluation import PropensityMeter as PropensityMeter
from saesteer.evaluation.evaluate import evaluate as evaluate
from saesteer.experiments.registry import run as run
from saesteer.experiments.results import Results as Results
from saesteer.methods import CAA as CAA
from saesteer.methods import PCA as PCA
from saesteer.methods import AttributedSAE as AttributedSAE
from saesteer.methods import ClusteredSAE as ClusteredSAE
from saesteer.methods import DifferenceInMeans as DifferenceInMeans
from saesteer.methods import FitContext as FitContext
from saesteer.methods import LogisticProbe as LogisticProbe
from saesteer.methods import MeanDecodedDelta as MeanDecodedDelta
from saesteer.methods import Method as Method
from saesteer.methods import NaturalGradient as NaturalGradient
from saesteer.methods import ObjectiveSettings as ObjectiveSettings
from saesteer.methods import RandomDirection as RandomDirection
from saesteer.methods import RandomFeatures as RandomFeatures
from saesteer.methods import ReadingSettings as ReadingSettings
from saesteer.methods import SystemPrompt as SystemPrompt
from saesteer.methods import TargetAtoms as TargetAtoms
from saesteer.methods import TopFeature as TopFeature
from saesteer.methods.features import PairCodes as PairCodes
from saesteer.methods.features import cluster_features as cluster_features
from saesteer.methods.features import encode_pairs as encode_pairs
from saesteer.methods.features import fit_weights as fit_weights
from saesteer.methods.features import select_features as select_features
from saesteer.models import Site as Site
from saesteer.models import encode_statements as encode_statements
from saesteer.models import load_model as load_model
from saesteer.models import plain_model as plain_model
from saesteer.models import wrap_model as wrap_model
from saesteer.models.pair_activations import read_pair_activations as read_pair_activations
from saesteer.patching import PatchResult as PatchResult
from saesteer.patching import PromptPair as PromptPair
from saesteer.patching import lens as lens
from saesteer.patching import load_prompt_pairs as load_prompt_pairs
from saesteer.patching import patch as patch
from saesteer.saes import doctor as doctor
from saesteer.saes import load_sae as load_sae
from saesteer.steering import SteeringVector as SteeringVector
from saesteer.steering import generate as generate
from saesteer.steering import match_strength as match_strength
from saesteer.steering import steer as steer
from saesteer.steering.divergence import DivergenceMeter as DivergenceMeter
from saesteer.utils.errors import SaesteerError as SaesteerError
from saesteer.utils.settings import load_config as load_config

__version__: str
__all__: list[str]
