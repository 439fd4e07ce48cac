"""Steering vectors: what they are, adding them, and generating with them."""

from saesteer.steering.apply import Steering, intervene, steer
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength
from saesteer.steering.edits import Ablate, Add, Edit, Flip, Set
from saesteer.steering.generate import GenerationRecord, GenerationResult, generate
from saesteer.steering.gguf_vectors import export_gguf, import_gguf
from saesteer.steering.positions import DEFAULT_POSITIONS, SteeringMask
from saesteer.steering.strength import UNITS, Unit, parse, to_raw
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.steering.vector import SteeredFeature, SteeringVector, load_vector

__all__ = [
    "DEFAULT_POSITIONS",
    "UNITS",
    "Ablate",
    "Add",
    "DivergenceMeter",
    "Edit",
    "Flip",
    "GenerationRecord",
    "GenerationResult",
    "Set",
    "SteeredFeature",
    "Steering",
    "SteeringMask",
    "SteeringVector",
    "StrengthMatch",
    "TeacherForced",
    "Unit",
    "export_gguf",
    "generate",
    "import_gguf",
    "intervene",
    "load_vector",
    "match_strength",
    "parse",
    "steer",
    "to_raw",
]
