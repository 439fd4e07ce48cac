"""Layers skipped, repeated and permuted, and what that does to tasks."""

from saesteer.corruption.apply import corrupted
from saesteer.corruption.program import Family, Program, make_family, parse_program
from saesteer.corruption.tasks import Task, load_tasks

__all__ = [
    "Family",
    "Program",
    "Task",
    "corrupted",
    "load_tasks",
    "make_family",
    "parse_program",
]
