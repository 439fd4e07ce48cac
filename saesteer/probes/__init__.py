"""Linear probes on every layer, and interventions along what they find."""

from saesteer.probes.intervene import intervene
from saesteer.probes.interventions import (
    Intervention,
    class_alpha,
    make_intervention,
    parse_schedule,
)
from saesteer.probes.plan import ProbePlan, plan_probes
from saesteer.probes.probe_set import LinearProbe, ProbeSet
from saesteer.probes.readout import (
    OWN_READING,
    TokenReading,
    probe_lean,
    read_texts_with,
    reading_page,
    run_checks,
)
from saesteer.probes.settings import ProbeConfig
from saesteer.probes.training import ProbeRun, load_run, train_probes

__all__ = [
    "OWN_READING",
    "Intervention",
    "LinearProbe",
    "ProbeConfig",
    "ProbePlan",
    "ProbeRun",
    "ProbeSet",
    "TokenReading",
    "class_alpha",
    "intervene",
    "load_run",
    "make_intervention",
    "parse_schedule",
    "plan_probes",
    "probe_lean",
    "read_texts_with",
    "reading_page",
    "run_checks",
    "train_probes",
]
