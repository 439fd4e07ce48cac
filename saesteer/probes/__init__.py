"""Linear probes on every layer, and interventions along what they find."""

from saesteer.probes.interventions import Intervention, class_alpha, make_intervention
from saesteer.probes.probe import LinearProbe, ProbeSet
from saesteer.probes.readout import (
    OWN_READING,
    TokenReading,
    probe_lean,
    read_texts_with,
    reading_page,
    run_checks,
)

__all__ = [
    "OWN_READING",
    "Intervention",
    "LinearProbe",
    "ProbeSet",
    "TokenReading",
    "class_alpha",
    "make_intervention",
    "probe_lean",
    "read_texts_with",
    "reading_page",
    "run_checks",
]
