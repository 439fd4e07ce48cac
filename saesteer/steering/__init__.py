"""Steering vectors: what they are, adding them, and generating with them."""

from saesteer.steering.apply import Steering, steer
from saesteer.steering.divergence import DivergenceMeter, StrengthMatch, match_strength
from saesteer.steering.generate import GenerationRecord, GenerationResult, generate
from saesteer.steering.gguf_vectors import export_gguf, import_gguf
from saesteer.steering.positions import DEFAULT_POSITIONS, SteeringMask
from saesteer.steering.strength import UNITS, Unit, parse, to_raw
from saesteer.steering.teacher_forced import TeacherForced
from saesteer.steering.vector import SteeredFeature, SteeringVector

__all__ = [
    "DEFAULT_POSITIONS",
    "UNITS",
    "DivergenceMeter",
    "GenerationRecord",
    "GenerationResult",
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
    "match_strength",
    "parse",
    "steer",
    "to_raw",
]
