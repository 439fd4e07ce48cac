"""A run's files are whole or not there, and hold no secrets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from saesteer.utils import run_folder
from saesteer.utils.errors import OutputError
from saesteer.utils.run_folder import RunFolder, environment_record, finite, write_record


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def names(folder: RunFolder) -> list[str]:
    return sorted(str(f.relative_to(folder.path)) for f in folder.path.rglob("*") if f.is_file())


def test_what_is_written_is_read_back_and_naming_a_folder_makes_none(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert not folder.path.exists() and not folder.has("value.json")
    assert folder.create() is folder and names(folder) == []
    value = {"e": 0.1, "text": "naïve “quotes”", "none": None, "list": [1, 2.5, True]}
    path = folder.write_json("deep/down/value.json", value)
    assert path == folder.path / "deep/down/value.json"
    assert folder.has("deep/down/value.json")
    assert folder.read_json("deep/down/value.json") == value
    assert "naïve" in path.read_text(encoding="utf-8")


def test_a_full_disk_is_a_sentence_with_the_way_on(folder):
    def full(draft: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        OutputError, match=r"a\.txt cannot be written \(No space left.*same command"
    ):
        folder.write("a.txt", full)


def test_what_json_has_no_word_for_is_refused_or_becomes_null(folder):
    for value in (math.nan, {"a": [-math.inf]}, {1, 2}, object()):
        with pytest.raises(OutputError, match=r"value\.json cannot be written as JSON"):
            folder.write_json("value.json", value)
    assert names(folder) == []
    value = {"a": math.nan, "b": [1.0, math.inf, {"c": -math.inf}], "d": (2, "nan", None, True)}
    assert finite(value) == {"a": None, "b": [1.0, None, {"c": None}], "d": [2, "nan", None, True]}


def test_a_value_is_computed_once_and_again_where_that_failed(folder):
    with pytest.raises(ZeroDivisionError):
        folder.once("v.json", lambda: 1 / 0)
    calls = []
    for _ in range(3):
        assert folder.once("v.json", lambda: calls.append(1) or {"n": len(calls)}) == {"n": 1}
    assert calls == [1]


def test_a_damaged_or_missing_file_is_a_sentence_also_where_it_would_be_computed(folder):
    with pytest.raises(OutputError, match=r"v\.json is damaged or missing .*run the same"):
        folder.read_json("v.json")
    for content in (b"", b'{"a": 1', b"\xff\xfe"):
        (folder.path / "v.json").write_bytes(content)
        with pytest.raises(OutputError, match=r"v\.json is damaged or missing .*delete it"):
            folder.once("v.json", lambda: 3)


def test_a_file_in_the_way_is_a_sentence(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"the run folder .*file.*--set folder="):
        RunFolder(tmp_path / "file").create()
    with pytest.raises(OutputError, match=r"cannot be written"):
        RunFolder(tmp_path / "file" / "below").create()
    (folder.path / "stages").write_text("in the way")
    with pytest.raises(OutputError, match=r"stages/x\.json cannot be written"):
        folder.write_json("stages/x.json", 1)
    (folder.path / "taken.json").mkdir()
    with pytest.raises(OutputError, match=r"taken\.json cannot be written"):
        folder.write_json("taken.json", 1)
    assert names(folder) == ["stages"]


def test_the_record_names_versions_machine_and_its_own_commit_alone(tmp_path, monkeypatch):
    record = environment_record()
    assert record["versions"]["torch"].startswith("2.") and record["python"].startswith("3.")
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
    assert set(record) == {"versions", "python", "machine", "git_commit", "started"}
    installed = tmp_path / "site-packages" / "saesteer" / "tracking" / "run_folder.py"
    monkeypatch.setattr(run_folder, "__file__", str(installed))
    assert environment_record()["git_commit"] is None


def test_a_resumed_run_keeps_its_first_start_and_what_was_learnt_before(folder):
    write_record(folder, {"started": "monday", "dtype": "float32", "python": "3.11"})
    write_record(folder, {"started": "tuesday", "python": "3.12"})
    assert folder.read_json("run.json") == {
        "started": "monday",
        "dtype": "float32",
        "python": "3.12",
    }


def test_secrets_of_the_environment_are_not_in_the_record(folder, monkeypatch):
    secrets = ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY")
    for name in secrets:
        monkeypatch.setenv(name, f"secret-{name}")
    write_record(folder, environment_record())
    text = (folder.path / "run.json").read_text(encoding="utf-8")
    assert "secret-" not in text
    assert not any(name in text for name in secrets)
