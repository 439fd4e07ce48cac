"""The bundled data, held against what the project promises of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from saesteer.data import (
    bundled,
    bundled_pair_names,
    datasets_folder,
    load_pairs,
    near_duplicate_groups,
    read_answers,
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


@pytest.mark.parametrize("name", [path.stem for path in PAIR_FILES])
def test_neither_length_nor_negation_nor_repetition_gives_a_side_away(name: str):
    pairs = load_pairs(name)
    assert pairs.source == f"bundled:{name}"
    assert len(pairs) >= 150
    sides = (pairs.positives, pairs.negatives)
    words = [np.mean([len(text.split()) for text in side]) for side in sides]
    assert abs(words[0] - words[1]) <= 0.03 * max(words)
    negations = [sum(len(NEGATION.findall(text)) for text in side) for side in sides]
    assert abs(negations[0] - negations[1]) < 0.2 * max(*negations, 1)
    groups = near_duplicate_groups(pairs.positives + pairs.negatives).reshape(2, -1)
    homes: dict[int, set[int]] = {}
    for place, group in np.ndenumerate(groups):
        homes.setdefault(int(group), set()).add(place[1])
    assert all(len(places) == 1 for places in homes.values())


def test_six_sets_sixty_questions_and_some_answers_are_bundled():
    names = bundled_pair_names()
    assert list(names) == [path.stem for path in PAIR_FILES]
    assert len(names) >= 6
    assert len(read_questions("neutral_questions")) == 60
    answers = read_answers("neutral_answers")
    assert len({answer.question for answer in answers}) == len(answers) >= 6
    assert all(len(answer.answer.split()) >= 20 for answer in answers)


def test_an_installed_package_reads_its_own_copy_and_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert datasets_folder() == REPOSITORY / "datasets"
    package = tmp_path / "site-packages" / "saesteer"
    stranger = package.parent / "datasets"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").touch()
    monkeypatch.setattr(bundled, "__file__", str(package / "data" / "bundled.py"))
    assert bundled_pair_names() == ()
    with pytest.raises(DataError, match="install saesteer again, or give the path"):
        datasets_folder()
    with pytest.raises(DataError, match="'agreeablenes'; none is bundled"):
        load_pairs("agreeablenes")
    copy = package / "_datasets"
    (copy / "pairs").mkdir(parents=True)
    (copy / "pairs" / "warmth.jsonl").write_text('{"positive": "warm", "negative": "icy"}\n')
    assert datasets_folder() == copy
    assert len(load_pairs("warmth")) == 1
    # A bundled name wins over a folder of that name, a path over the bundled name.
    (tmp_path / "warmth").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_pairs("warmth").source == "bundled:warmth"
    with pytest.raises(DataError, match="warmth: this is a folder"):
        load_pairs(Path("warmth"))
