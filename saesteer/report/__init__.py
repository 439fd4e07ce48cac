"""Reports of experiments: one layout for page, terminal and W&B."""

from saesteer.report.layout import Figure, Section, Table, Text, Texts
from saesteer.report.report import Report

__all__ = ["Figure", "Report", "Section", "Table", "Text", "Texts"]
