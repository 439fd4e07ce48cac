"""Layers skipped, repeated and permuted, and what that does to tasks."""
