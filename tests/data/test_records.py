"""Files of records: JSON, JSONL, CSV and Parquet, and those that cannot be used."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saesteer.data import load_pairs
from saesteer.data.records import read_records
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


def test_the_content_tells_json_from_json_lines(tmp_path: Path):
    for name, text in (
        ("f.json", '{"a": 1}\n{"a": 2}\n'),
        ("g.jsonl", '[{"a": 1},\n{"a": 2}]\n'),
        ("f.data", '{"a": 1}\n{"a": 2}\n'),
    ):
        found = read_records(write(tmp_path, name, text))
        assert [record.value for record in found.records] == [{"a": 1}, {"a": 2}]
    table = write(tmp_path, "g.data", "a,b\n1,2\n")
    with pytest.raises(DataError, match="what kind of file this is cannot be told"):
        read_records(table)
    assert read_records(table, "csv").records[0].value == {"a": "1", "b": "2"}


def test_a_bad_line_spoils_only_itself_whatever_ends_the_lines(tmp_path: Path):
    lines = ['{"a": "one\u2028two"}', "", '{"a": "three\u0085four"}', '{"a": ', '{"a": 3, "a": 4}']
    file = read_records(write(tmp_path, "f.jsonl", "\r\n".join(lines)))
    good = [record.fields()["a"] for record in file.records[:2]]
    assert good == ["one\u2028two", "three\u0085four"]
    assert file.records[1].place.endswith(":3")
    with pytest.raises(DataError, match=r"f\.jsonl:4: this line is not valid JSON"):
        file.records[2].fields()
    with pytest.raises(DataError, match=r"f\.jsonl:5: the field 'a' is given twice"):
        file.records[3].fields()


def _parquet(folder: Path) -> bytes:
    # 12 kB that stand for 2 GB.
    path = folder / "made.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * 20_000])
    pq.write_table(pa.table({"positive": column}), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "f.jsonl",
            json.dumps({f"k{n}": n for n in range(100_000)})[:-1] + ', "k99999": 1}',
            "100,000 fields and may have 1,000",
        ),
        ("f.csv", ",".join(f"c{n}" for n in range(50_000)), "50,000 columns and may have 1,000"),
        ("f.jsonl", '{"positive": ' + "[" * 90 + "]" * 90 + "}", "nested more than 50 deep"),
        ("f.jsonl", '{"positive": ' + "[" * 90_000, "nested too deeply"),
        ("f.jsonl", '{"positive": ' + "9" * 6000 + "}", "6000 digits"),
        ("f.parquet", _parquet, "bytes or more and may have 200,000,000"),
    ],
    ids=["keys", "columns", "deep", "deeper", "digits", "parquet"],
)
def test_a_small_file_that_stands_for_endless_work_is_refused_by_its_limit(
    tmp_path, name, content, message
):
    made: Any = content(tmp_path) if callable(content) else content
    path = write(tmp_path, name, made)
    start = time.process_time()
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(path)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 400


def test_csv_with_quotes_commas_line_breaks_and_byte_order_mark(tmp_path: Path):
    text = '\ufeffpositive,negative\r\n"Yes, I do","He said ""no""\nand left"\r\n\r\nb,c\r\n1\r\n'
    file = read_records(write(tmp_path, "f.csv", text))
    assert file.header == ("positive", "negative")
    assert file.records[0].value == {
        "positive": "Yes, I do",
        "negative": 'He said "no"\nand left',
    }
    assert [record.place.split(":")[-1] for record in file.records] == ["2", "5", "6"]
    with pytest.raises(DataError, match=r"f\.csv:6: the row has 1 fields and the header 2; put"):
        file.records[2].fields()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_text_that_is_too_long_is_told_alike_in_every_syntax(tmp_path: Path, suffix: str):
    text = "kind " * 40_000
    lines = {
        "csv": f'positive,negative\n"{text}",cold\n',
        "jsonl": json.dumps({"positive": text, "negative": "cold"}),
    }
    limit = csv.field_size_limit()
    with pytest.raises(DataError, match="the field 'positive' has 200,000 characters, more than"):
        load_pairs(write(tmp_path, f"f.{suffix}", lines[suffix]))
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.csv", 'a,b\n1,2\n"open,3\n4,5\n', r"f\.csv:3: this is not valid CSV"),
        ("f.csv", "a,a\n1,2\n", r"f\.csv:1: the column 'a' is given twice"),
        ("f.csv", "a,b\n", r"f\.csv: the file holds no records"),
        ("f.json", '{"pairs": []}', r"holds no records; write at least one"),
        ("f.json", '{"pairs": {}}', r"f\.json: the field 'pairs' is \{\}, not a list; write"),
        ("f.json", '[{"a": 1}]\n\nrubbish', r"f\.json:3: this is not valid JSON .*; mend"),
        ("f.json", '{"pairs": [\n{"a": 1},\n]}', r"f\.json:3: this is not valid JSON"),
        ("f.json", "[" * 100_000, r"f\.json:1: this is not valid JSON"),
        ("f.json", "[" + "9" * 5000 + "]", r"f\.json:1: this is not valid JSON"),
        ("f.jsonl", " \n", r"f\.jsonl: the file is empty"),
        ("f.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}', r"f\.jsonl:2: the file is not UTF-8"),
        ("f.jsonl", '{"a": 1}'.encode("utf-16-le"), r"f\.jsonl:1: the file holds a zero byte"),
        ("f.parquet", b"PAR1 no", r"f\.parquet: cannot be read as Parquet"),
        ("gone.json", None, r"gone\.json: there is no such file; check"),
        (".", None, "this is a folder; give"),
        ("x" * 5000, None, r"cannot be opened .*; give the path"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, name, content, message: str):
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / name)
