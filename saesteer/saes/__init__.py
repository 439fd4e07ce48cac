"""Sparse autoencoders: loading, examining and training them."""

from saesteer.saes.adapter import LensSae, Sae, check_compatible
from saesteer.saes.describe import build_feature_table
from saesteer.saes.doctor import DoctorReport, doctor, rows_for
from saesteer.saes.loading import load_sae, resolve_sae
from saesteer.saes.table import FeatureCard, FeatureTable, load_feature_table

__all__ = [
    "DoctorReport",
    "FeatureCard",
    "FeatureTable",
    "LensSae",
    "Sae",
    "build_feature_table",
    "check_compatible",
    "doctor",
    "load_feature_table",
    "load_sae",
    "resolve_sae",
    "rows_for",
]
