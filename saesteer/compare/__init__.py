"""Methods held against each other at equal cost, over personas."""

from saesteer.compare.config import CompareConfig
from saesteer.compare.run import compare

__all__ = ["CompareConfig", "compare"]
