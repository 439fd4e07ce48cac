"""The bundled pairs and questions, held against what the project promises of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from saesteer.data import (
    bundled,
    bundled_pair_names,
    datasets_folder,
    near_duplicate_groups,
    read_pairs,
    read_questions,
)
from saesteer.utils.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
PAIR_FILES = sorted((REPOSITORY / "datasets" / "pairs").glob("*.jsonl"))
NEGATION = re.compile(
    r"\b(?:no|not|never|none|nobody|nothing|nowhere|neither|nor|without|cannot|hardly)\b"
    r"|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b",
    re.IGNORECASE,
)

each_set = pytest.mark.parametrize("path", PAIR_FILES, ids=lambda path: path.stem)


def test_at_least_six_sets_are_bundled_and_agreeableness_is_one():
    names = bundled_pair_names()
    assert list(names) == [path.stem for path in PAIR_FILES]
    assert len(names) >= 6
    assert "agreeableness" in names


@each_set
def test_a_bundled_set_is_read_by_its_name(path: Path):
    pairs = read_pairs(path.stem)
    assert pairs.source == f"bundled:{path.stem}"
    assert len(pairs) >= 150


@each_set
def test_both_sides_have_the_same_mean_length(path: Path):
    pairs = read_pairs(path)
    positive = np.mean([len(text.split()) for text in pairs.positives])
    negative = np.mean([len(text.split()) for text in pairs.negatives])
    assert abs(positive - negative) <= 0.03 * max(positive, negative)


@each_set
def test_negation_does_not_give_the_side_away(path: Path):
    pairs = read_pairs(path)
    positive = sum(len(NEGATION.findall(text)) for text in pairs.positives)
    negative = sum(len(NEGATION.findall(text)) for text in pairs.negatives)
    assert abs(positive - negative) < 0.2 * max(positive, negative, 1)


@each_set
def test_no_statement_is_nearly_repeated_in_another_pair(path: Path):
    pairs = read_pairs(path)
    groups = near_duplicate_groups(pairs.positives + pairs.negatives)
    homes: dict[int, set[str]] = {}
    texts: dict[int, set[str]] = {}
    ids = [pair.id for pair in pairs] * 2
    for group, id, text in zip(
        groups.tolist(), ids, pairs.positives + pairs.negatives, strict=False
    ):
        homes.setdefault(group, set()).add(id)
        texts.setdefault(group, set()).add(text)
    repeated = [texts[group] for group, members in homes.items() if len(members) > 1]
    assert repeated == []


def test_sixty_neutral_questions_are_bundled():
    assert len(read_questions("neutral_questions")) == 60


def test_a_checkout_reads_its_own_datasets():
    assert datasets_folder() == REPOSITORY / "datasets"


def test_an_installed_package_reads_its_own_copy_and_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "site-packages" / "saesteer"
    stranger = package.parent / "datasets"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").touch()
    monkeypatch.setattr(bundled, "__file__", str(package / "data" / "bundled.py"))
    assert bundled_pair_names() == ()
    with pytest.raises(DataError, match="install saesteer again, or give the path"):
        datasets_folder()
    copy = package / "_datasets"
    (copy / "pairs").mkdir(parents=True)
    (copy / "pairs" / "warmth.jsonl").write_text('{"positive": "warm", "negative": "icy"}\n')
    assert datasets_folder() == copy
    assert bundled_pair_names() == ("warmth",)
    assert len(read_pairs("warmth")) == 1
