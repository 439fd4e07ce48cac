"""A run's files are whole or not there, and hold no secrets."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saesteer.utils import files, run_folder
from saesteer.utils.errors import OutputError
from saesteer.utils.files import draft_of, portable_name, write_atomic
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
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "__file__", str(installed))
        assert environment_record()["git_commit"] is None
    # Nor does a machine without git.
    monkeypatch.setenv("PATH", str(tmp_path))
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


DEAD = 2**22 - 11


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def killed_draft(target: Path, monkeypatch, *, host: str | None = None) -> Path:
    """Leave what a process of another number, here or on another host, would leave."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "getpid", lambda: DEAD)
        if host is not None:
            patch.setattr(files.socket, "gethostname", lambda: host)
        draft = draft_of(target)
    files.leave(draft)
    draft.write_bytes(b"half")
    return draft


def test_what_is_written_is_there_whole_and_alone(tmp_path):
    path = write_atomic(tmp_path / "new" / "a.bin", b"\0whole")
    assert path.read_bytes() == b"\0whole"
    write_atomic(str(path), lambda draft: draft.write_text("again"))
    assert path.read_text() == "again"
    assert names_in(tmp_path) == ["a.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    # The draft keeps the ending, which says the format, and fits where the file does.
    seen = []
    target = tmp_path / ("ü" * 125 + ".png")
    write_atomic(target, lambda draft: seen.append(draft.suffix) or draft.write_bytes(b"x"))
    assert seen == [".png"] and target.exists()
    # Writers of one file do not meet.
    write_atomic(path, lambda draft: draft.write_bytes(b"first") and write_atomic(path, b"second"))
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError(28, "No space")])
def test_a_writer_that_fails_leaves_the_old_file(error, tmp_path):
    path = write_atomic(tmp_path / "a", b"old")

    def half(draft: Path) -> None:
        draft.write_bytes(b"ha")
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed_and_a_users_own_file_is_not(tmp_path, monkeypatch):
    own = [f".{DEAD}-mine.txt", f"..{DEAD}-v.safetensors", ".v.safetensors", ".git-keep"]
    own += [f".saesteer-draft-{DEAD}-v.safetensors", f".saesteer-{DEAD}-v.safetensors"]
    for name in own:
        (tmp_path / name).write_text("mine")
    alive = draft_of(tmp_path / "v.safetensors")
    alive.write_bytes(b"under way")
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    RunFolder(tmp_path).create()
    assert set(names_in(tmp_path)) == {*own, alive.name}
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    write_atomic(tmp_path / "v.safetensors", b"whole")
    assert set(names_in(tmp_path)) == {*own, alive.name, "v.safetensors"}
    # Another machine's draft stays for a day.
    foreign = killed_draft(tmp_path / "v.safetensors", monkeypatch, host="another")
    RunFolder(tmp_path).create()
    assert foreign.exists()
    yesterday = time.time() - files.FOREIGN_SECONDS - 60
    os.utime(foreign, (yesterday, yesterday))
    RunFolder(tmp_path).create()
    assert not foreign.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from saesteer.models import Site
from saesteer.steering import SteeringVector
os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
vector = SteeringVector.from_raw(torch.ones(4), site=Site(0), model="m")
vector.save(Path(sys.argv[1]) / "vector.safetensors")
"""


def test_a_vector_whose_saving_was_killed_leaves_nothing_for_the_next_run(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names_in(tmp_path)) == 1
    RunFolder(tmp_path).create()
    assert names_in(tmp_path) == []


def test_a_name_becomes_one_that_every_system_takes():
    names_in = {"bundled:sentiment": "bundled-sentiment", "a/b\\c": "a-b-c", '*?"<>|': "unnamed"}
    names_in |= {"..": "unnamed", "ok-1.2_x": "ok-1.2_x", "naïve": "na-ve", "x" * 300: "x" * 80}
    assert {text: portable_name(text) for text in names_in} == names_in
