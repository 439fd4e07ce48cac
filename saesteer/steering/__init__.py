"""Steering vectors: what they are, adding them, and generating with them."""

from saesteer.steering.apply import Steering, steer
from saesteer.steering.generate import GenerationRecord, GenerationResult, generate
from saesteer.steering.gguf_vectors import export_gguf, import_gguf
from saesteer.steering.positions import DEFAULT_POSITIONS, SteeringMask
from saesteer.steering.strength import UNITS, Unit, parse, to_raw
from saesteer.steering.vector import SteeredFeature, SteeringVector

__all__ = [
    "DEFAULT_POSITIONS",
    "UNITS",
    "GenerationRecord",
    "GenerationResult",
    "SteeredFeature",
    "Steering",
    "SteeringMask",
    "SteeringVector",
    "Unit",
    "export_gguf",
    "generate",
    "import_gguf",
    "parse",
    "steer",
    "to_raw",
]
