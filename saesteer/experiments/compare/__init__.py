"""Methods held against each other at equal cost, over personas."""

from saesteer.experiments.compare.config import CompareConfig
from saesteer.experiments.compare.run import compare

__all__ = ["CompareConfig", "compare"]
