"""Contrastive pairs, questions and texts: reading, checking and splitting them."""

from __future__ import annotations

from saesteer.data.bundled import bundled_pair_names, datasets_folder
from saesteer.data.labelled import LabelledSet, LabelledText, check_trainable, load_texts
from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.data.pairs import ContrastivePair, PairSet
from saesteer.data.readers import load_pairs, pairs_from, read_pairs
from saesteer.data.splits import Split, split_pairs
from saesteer.data.texts import Answer, read_answers, read_questions, read_texts

__all__ = [
    "Answer",
    "ContrastivePair",
    "LabelledSet",
    "LabelledText",
    "PairSet",
    "Split",
    "bundled_pair_names",
    "check_trainable",
    "datasets_folder",
    "load_pairs",
    "load_texts",
    "near_duplicate_groups",
    "pairs_from",
    "read_answers",
    "read_pairs",
    "read_questions",
    "read_texts",
    "split_pairs",
]
