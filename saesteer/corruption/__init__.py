"""Layers skipped, repeated and permuted, and what that does to tasks."""

from saesteer.corruption.apply import corrupted
from saesteer.corruption.families import Family, make_family
from saesteer.corruption.program import Program, parse_program
from saesteer.corruption.run import CorruptRun, corrupt, load_corrupt_run
from saesteer.corruption.settings import CorruptConfig
from saesteer.corruption.tasks import Task, load_tasks

__all__ = [
    "CorruptConfig",
    "CorruptRun",
    "Family",
    "Program",
    "Task",
    "corrupt",
    "corrupted",
    "load_corrupt_run",
    "load_tasks",
    "make_family",
    "parse_program",
]
