"""Sweeps: many runs of one configuration, on one machine or many."""
