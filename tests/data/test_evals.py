from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saesteer.data import load_pairs
from saesteer.utils.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
EVALS = SHARED / "model_written_evals"


def statement(text: str, answer: str = "Yes", confidence: float | None = 0.9) -> dict[str, Any]:
    other = "No" if answer == "Yes" else "Yes"
    record: dict[str, Any] = {
        "question": f'Is the following statement something you would say?\n"{text}"',
        "statement": text,
        "answer_matching_behavior": f" {answer}",
        "answer_not_matching_behavior": f" {other}",
    }
    return record if confidence is None else {**record, "label_confidence": confidence}


def write(folder: Path, records: list[Any], name: str = "trait.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_equal_sides_are_paired_as_the_best_assignment_of_lengths_would(tmp_path: Path):
    # Seven texts a side, so that every one of the 5,040 assignments can be tried.
    positives = [
        letter * size for letter, size in zip("abcdefg", (9, 40, 21, 5, 70, 33, 14), strict=False)
    ]
    negatives = [
        letter * size for letter, size in zip("tuvwxyz", (30, 8, 64, 6, 25, 12, 50), strict=False)
    ]
    records = [statement(text) for text in positives] + [
        statement(text, "No") for text in negatives
    ]
    pairs = load_pairs(write(tmp_path, records))
    best = min(
        sum((len(p) - len(n)) ** 2 for p, n in zip(positives, order, strict=True))
        for order in itertools.permutations(negatives)
    )
    assert sum((len(pair.positive) - len(pair.negative)) ** 2 for pair in pairs) == best
    assert list(pairs.positives) == positives


def test_what_is_left_out_is_counted(tmp_path: Path):
    records = [
        statement("one two three", "Yes", 0.95),
        statement("four five caf\u00e9", "Yes", 0.6),
        statement("one  two three", "Yes", 0.95),
        statement("four five cafe\u0301", "Yes", 0.95),
        statement("seven eight", "No", 0.9),
    ]
    pairs = load_pairs(write(tmp_path, records), min_label_confidence=0.9)
    assert [(pair.positive, pair.negative) for pair in pairs] == [("one two three", "seven eight")]
    assert pairs.dropped == 3
    # Of the longer side the statements that fit stay.
    records = [statement("a" * 10), statement("b" * 30)]
    records += [statement("uvwxy"[n] * size, "No") for n, size in enumerate((5, 11, 29, 90, 60))]
    pairs = load_pairs(write(tmp_path, records), format="persona")
    assert [(len(pair.positive), len(pair.negative)) for pair in pairs] == [(10, 11), (30, 29)]
    assert pairs.dropped == 3
    for layout, told in (("caa", "an A/B file names an option"), ("jsonl", "unknown field 'quest")):
        with pytest.raises(DataError, match=told):
            load_pairs(tmp_path / "trait.jsonl", format=layout)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (statement("x", "Maybe"), r"answer_matching_behavior' is 'maybe'; a persona file says Yes"),
        ({**statement("x"), "answer_not_matching_behavior": " Yes"}, r"one of them has to be Yes"),
        (statement("x", "Yes", 1.7), r"'label_confidence' is 1\.7; give a number from 0 to 1"),
        ({**statement("x"), "label_confidence": True}, r"'label_confidence' is True"),
        (statement("good  words\u200b", "No"), r"this statement stands on the other side at .*:1"),
        (statement("a", "Yes", None), "the field 'label_confidence' is missing"),
    ],
)
def test_a_bad_statement_is_refused_with_its_line(tmp_path: Path, record: object, message: str):
    path = write(tmp_path, [statement("good words"), statement("bad words", "No"), record])
    with pytest.raises(DataError, match=rf"trait\.jsonl:3: .*{message}"):
        load_pairs(path, min_label_confidence=0.5)


def test_a_one_sided_persona_file_is_refused(tmp_path: Path):
    path = write(tmp_path, [statement("a"), statement("b", "No", None)])
    assert len(load_pairs(path)) == 1
    path = write(tmp_path, [statement("a"), statement("b", "No", 0.2)])
    with pytest.raises(DataError, match=r"trait\.jsonl: no statement has .* No \(1 are below min"):
        load_pairs(path, min_label_confidence=0.5)
    with pytest.raises(DataError, match=r"trait\.jsonl: no statement has .* Yes, so there is one"):
        load_pairs(write(tmp_path, [statement("a", "No")]))


def choice(question: str, matching: object = "(A)", other: object = "(B)") -> dict[str, Any]:
    return {
        "question": question,
        "answer_matching_behavior": matching,
        "answer_not_matching_behavior": other,
    }


TEA = ("Tea or rain?", "Tea, hot (very)", "Rain\nand wind")


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("Tea or rain?\n\nChoices:\n (A) Tea, hot (very)\n (B) Rain\nand wind", TEA),
        (
            "Question: Tea or rain?\n\nAnswers:\n(A): Tea, hot (very)\n"
            "(B): Rain\nand wind\n\nAnswer:",
            TEA,
        ),
        ("Tea or rain? (A) Tea, hot (very) (B) Rain\nand wind\n\nAnswer: (", TEA),
        ("Tea or rain?\n(B) Rain\nand wind\n(A) Tea, hot (very)\n(C) Snow", TEA),
        ("Tea or rain? Possible answers:\n(a) Tea, hot (very)\n(b) Rain\nand wind", TEA),
        ("Tea or rain?\n\n**Options:**\n\n(A) Tea, hot (very)\n(B) Rain\nand wind", TEA),
        (
            "Is (A) better than (B)? Choices: (A) Yes (B) No",
            ("Is (A) better than (B)?", "Yes", "No"),
        ),
        (
            "Choose one of these options: (A) Yes (B) No",
            ("Choose one of these options:", "Yes", "No"),
        ),
    ],
)
def test_stem_and_options_of_an_ab_question_are_told_apart(tmp_path: Path, question, told):
    path = write(tmp_path, [choice(question), choice(question, " (B)", " (A)")], "ab.json")
    first, second = load_pairs(path)
    assert (first.prompt, first.positive, first.negative) == told
    assert (second.positive, second.negative) == (first.negative, first.positive)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (choice("Tea or rain?\n(A) Tea"), r"the question has no option '\(B\)'; write"),
        (choice("Tea?\n(A) Rain\n(B) Rain"), r"both sides are 'Rain'"),
        (choice("Tea?\n(A) Tea\n(B) Rain", "Tea"), r"'answer_matching_behavior' is 'Tea'; an A/B"),
        (choice("Tea?\n(A) Tea\n(B) Rain", "(A)", []), r"'answer_not_matching_behavior' is \[\]"),
        (choice("(A) Tea\n(B) Rain"), r"holds options but no question"),
        (
            {"question": "x", "answer_matching_behavior": "(A)"},
            r"not_matching_behavior' is missing",
        ),
    ],
)
def test_a_bad_ab_question_is_refused_with_its_line(tmp_path: Path, record: object, message: str):
    good = choice("Tea or rain?\n(A) Tea\n(B) Rain")
    with pytest.raises(DataError, match=rf"trait\.jsonl:2: .*{message}"):
        load_pairs(write(tmp_path, [good, record]))


@pytest.mark.skipif(not EVALS.is_dir(), reason=f"{EVALS} is not there: no published persona files")
def test_the_published_persona_files_are_read_and_paired_by_length():
    for path in sorted(EVALS.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        positive = {r["statement"] for r in rows if r["answer_matching_behavior"].strip() == "Yes"}
        pairs = load_pairs(path)
        assert len(pairs) == 500
        assert pairs.dropped == 0
        assert set(pairs.positives) == positive
        assert set(pairs.negatives) == {row["statement"] for row in rows} - positive
        lengths = np.array([[len(pair.positive), len(pair.negative)] for pair in pairs])
        by_rank = np.abs(np.diff(np.sort(lengths, axis=0), axis=1)).mean()
        at_random = np.abs(lengths[:, :1] - lengths[:, 1][None, :]).mean()
        paired = np.abs(np.diff(lengths, axis=1)).mean()
        # Pairing by rank alone is the optimum; keeping near-duplicates together may cost at most a
        # fifth of what it gains over pairing at random (measured: 0 to 16%).
        assert by_rank <= paired <= by_rank + 0.2 * (at_random - by_rank)
