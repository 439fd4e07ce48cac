from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from saesteer.data import read_pairs
from saesteer.data.records import read_records, read_text
from saesteer.utils.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_record_of_a_json_list_knows_the_line_it_starts_on(tmp_path: Path):
    text = '\n[ {"a": "x]},{"}, {"a":\n\n"y"},\n\n  {"a": ["\\n", {"b": 1}]}\n, 7]\n'
    file = read_records(write(tmp_path, "f.json", text))
    assert [record.value for record in file.records] == json.loads(text)
    lines = [record.place.removeprefix(str(file.path)) for record in file.records]
    assert lines == [":2: record 1", ":2: record 2", ":6: record 3", ":7: record 4"]


def test_an_indented_dump_gives_the_line_of_each_record(tmp_path: Path):
    values = [{"text": f"number {number}", "nested": {"x": [number]}} for number in range(50)]
    text = json.dumps({"metadata": {"pairs": [1, 2]}, "pairs": values, "end": None}, indent=2)
    file = read_records(write(tmp_path, "f.json", text))
    lines = text.split("\n")
    for number, record in enumerate(file.records):
        assert record.value == values[number]
        line = int(record.place.split(":")[-2])
        assert lines[line - 1].strip() == "{"
        assert f"number {number}" in lines[line]


def test_json_lines_may_hold_unicode_line_separators_blank_lines_and_crlf(tmp_path: Path):
    text = '{"a": "one\u2028two"}\r\n\r\n{"a": "three\u0085four"}\r\n'
    file = read_records(write(tmp_path, "f.jsonl", text))
    assert [record.value["a"] for record in file.records] == ["one\u2028two", "three\u0085four"]
    assert file.records[1].place.endswith(":3")


def test_json_lines_in_a_json_file_and_a_list_in_a_jsonl_file_are_understood(tmp_path: Path):
    lines = read_records(write(tmp_path, "f.json", '{"a": 1}\n{"a": 2}\n'))
    listed = read_records(write(tmp_path, "g.jsonl", '[{"a": 1},\n{"a": 2}]\n'))
    assert [record.value for record in lines.records] == [{"a": 1}, {"a": 2}]
    assert [record.value for record in listed.records] == [{"a": 1}, {"a": 2}]


def test_a_broken_line_spoils_only_itself(tmp_path: Path):
    file = read_records(write(tmp_path, "f.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n'))
    assert [record.problem is None for record in file.records] == [True, False, True]
    with pytest.raises(DataError, match=r"f\.jsonl:2: this line is not valid JSON"):
        file.records[1].fields()


def test_a_field_given_twice_is_a_problem_and_not_silently_the_last(tmp_path: Path):
    file = read_records(write(tmp_path, "f.json", '[{"a": "x"},\n{"a": "x", "a": "y"}]'))
    with pytest.raises(DataError, match=r"f\.json:2: record 2: the field 'a' is given twice"):
        file.records[1].fields()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"a": 1},\n{"a": 2]', 2),
        ('[{"a": 1}\n{"a": 2}]', 2),
        ('[{"a": 1}]\n\nrubbish', 3),
        ('{"pairs": [\n{"a": 1},\n]}', 3),
        ("nothing like JSON", 1),
        ("[" * 100_000, 1),
        ("[" + "9" * 5000 + "]", 1),
    ],
)
def test_broken_json_is_told_with_its_line(tmp_path: Path, text: str, line: int):
    with pytest.raises(DataError, match=rf"f\.json:{line}: this is not valid JSON .*; mend"):
        read_records(write(tmp_path, "f.json", text))


def test_csv_with_quotes_commas_line_breaks_and_byte_order_mark(tmp_path: Path):
    text = '\ufeffpositive,negative\r\n"Yes, I do","He said ""no""\nand left"\r\n\r\nb,c\r\n'
    file = read_records(write(tmp_path, "f.csv", text))
    assert file.header == ("positive", "negative")
    assert file.records[0].value == {
        "positive": "Yes, I do",
        "negative": 'He said "no"\nand left',
    }
    assert [record.place.split(":")[-1] for record in file.records] == ["2", "5"]


def test_rows_of_the_wrong_width_are_told_with_the_way_out(tmp_path: Path):
    file = read_records(write(tmp_path, "f.csv", "a,b\n1,2\n1,2,3\n1\n"))
    assert [record.problem is None for record in file.records] == [True, False, False]
    with pytest.raises(DataError, match=r"f\.csv:3: the row has 3 fields and the header 2; put"):
        file.records[1].fields()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n"open,3\n4,5\n', r"f\.csv:3: this is not valid CSV"),
        ('a,b\n"x"y,2\n', r"f\.csv:2: this is not valid CSV"),
        ("a,a\n1,2\n", r"f\.csv:1: the column 'a' is given twice"),
        ("a,b\n", r"f\.csv: the file holds no records"),
    ],
)
def test_csv_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        read_records(write(tmp_path, "f.csv", text))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_text_that_is_too_long_is_told_alike_in_every_syntax(tmp_path: Path, suffix: str):
    text = "kind " * 40_000
    lines = {
        "csv": f'positive,negative\n"{text}",cold\n',
        "jsonl": json.dumps({"positive": text, "negative": "cold"}),
    }
    limit = csv.field_size_limit()
    with pytest.raises(DataError, match="the field 'positive' has 200,000 characters, more than"):
        read_pairs(write(tmp_path, f"f.{suffix}", lines[suffix]))
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"f\.jsonl: the file is empty; write"),
        (b"\xef\xbb\xbf \n\n", r"f\.jsonl: the file is empty"),
        (b'{"a": "x"}\n{"a": "caf\xe9"}\n', r"f\.jsonl:2: the file is not UTF-8; save"),
        ('{"a": 1}'.encode("utf-16"), r"f\.jsonl:1: the file is not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), r"f\.jsonl:1: the file holds a zero byte"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str):
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path, "f.jsonl", content))


def test_an_empty_list_holds_no_records(tmp_path: Path):
    for text in ("[]", '{"pairs": []}'):
        with pytest.raises(DataError, match="holds no records; write at least one"):
            read_records(write(tmp_path, "f.json", text))


def test_pairs_that_are_no_list_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"f\.json: the field 'pairs' is \{\}, not a list; write"):
        read_records(write(tmp_path, "f.json", '{"pairs": {}}'))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.json: there is no such file; check"):
        read_text(tmp_path / "gone.json")
    with pytest.raises(DataError, match="this is a folder; give"):
        read_text(tmp_path)
    with pytest.raises(DataError, match=r"cannot be opened .*; give the path"):
        read_text(Path("x" * 5000))


def test_a_file_of_unknown_kind_is_read_by_its_content_or_refused(tmp_path: Path):
    file = read_records(write(tmp_path, "f.data", '{"a": 1}\n{"a": 2}\n'))
    assert len(file.records) == 2
    table = write(tmp_path, "g.data", "a,b\n1,2\n")
    with pytest.raises(DataError, match="what kind of file this is cannot be told"):
        read_records(table)
    assert read_records(table, "csv").records[0].value == {"a": "1", "b": "2"}
