from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from saesteer.data import read_texts
from saesteer.data import texts as texts_module
from saesteer.utils.errors import ConfigError, DataError

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"


def lines_of(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "meta": 1}) + "\n" for text in texts).encode()


def test_paragraphs_are_separated_by_blank_lines(tmp_path: Path):
    path = tmp_path / "prose.txt"
    path.write_bytes("\ufeff\n\nOne é\r\ntwo\r\n \t\r\n\r\nThree\n\nFour".encode())
    assert list(read_texts(path)) == ["One é\ntwo", "Three", "Four"]
    packed = tmp_path / "prose.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_texts(str(packed))) == ["One é\ntwo", "Three", "Four"]


def test_json_lines_are_read_packed_and_unpacked(tmp_path: Path):
    texts = ["first\nline", "second\u2028", " third "]
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(texts) + b"\n" + lines_of(["  "]))
    assert list(read_texts(path)) == texts
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(read_texts(packed)) == texts
    assert list(read_texts(packed, limit=2)) == texts[:2]


def test_a_limit_is_reached_before_a_bad_line_behind_it_matters(tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(["good", "better"]) + b"{broken\n")
    assert list(read_texts(path, limit=2)) == ["good", "better"]
    stream = read_texts(path)
    assert [next(stream), next(stream)] == ["good", "better"]
    with pytest.raises(DataError, match=r"texts\.jsonl:3: this line is not valid JSON"):
        next(stream)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"txt": "x"}', r"has no text in a field \"text\" \(the record has 'txt'\)"),
        (b'{"text": 3}', r"has no text in a field"),
        (b'["x"]', r"has no text in a field"),
        (b"[" * 100_000, r"this line is not valid JSON"),
        (b'{"text": "caf\xe9"}', r"the file is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(lines_of(["good"]) + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"texts\.jsonl:3: .*{message}"):
        list(read_texts(path))


def test_a_file_that_is_cut_off_or_not_packed_is_refused(tmp_path: Path):
    path = tmp_path / "texts.jsonl.gz"
    whole = gzip.compress(lines_of([f"text {number}" * 50 for number in range(500)]))
    for content in (whole[:-20], whole[: len(whole) // 2], b"plain text\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"texts\.jsonl\.gz:\d+: the gzip file is damaged"):
            list(read_texts(path))


def test_what_cannot_be_read_is_refused_at_once(tmp_path: Path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="there is no such file"):
        read_texts(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="this is a folder"):
        read_texts(tmp_path / "folder.txt")
    with pytest.raises(DataError, match=r"texts are read from \.txt, .*give the file one of these"):
        read_texts(tmp_path / "prose.pdf")
    (tmp_path / "prose.txt").write_text("x")
    with pytest.raises(ConfigError, match="limit is 0; give at least 1"):
        read_texts(tmp_path / "prose.txt", limit=0)


def test_a_file_without_line_ends_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(texts_module, "MAX_BYTES", 1 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (1 << 24)))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz:1: this line has more than 1 MiB"):
        list(read_texts(path))
    path = tmp_path / "endless.txt"
    path.write_bytes(b"word word word\n" * 100_000)
    with pytest.raises(DataError, match=r"endless\.txt:\d+: this paragraph has more than 1 MiB"):
        list(read_texts(path))
