"""A run's files are whole or not there, and hold no secrets."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saesteer.utils import files, run_folder
from saesteer.utils.errors import OutputError, UnwritableError
from saesteer.utils.files import append_json, build_folder, draft_of, portable_name, write_atomic
from saesteer.utils.run_folder import RunFolder, environment_record, finite, write_record


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def names(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def test_what_json_has_no_word_for_is_refused_or_becomes_null(folder):
    for value in (math.nan, {"a": [-math.inf]}, {1, 2}, object()):
        with pytest.raises(OutputError, match=r"value\.json cannot be written as JSON"):
            folder.write_json("value.json", value)
    assert names(folder.path) == []
    value = {"a": math.nan, "b": [1.0, math.inf, {"c": -math.inf}], "d": (2, "nan", None, True)}
    assert finite(value) == {"a": None, "b": [1.0, None, {"c": None}], "d": [2, "nan", None, True]}


def test_a_value_is_computed_once_and_read_back_as_it_was(folder):
    value = {"e": 0.1, "text": "naïve “quotes”", "none": None, "list": [1, 2.5, True]}
    assert not folder.has("deep/v.json")
    with pytest.raises(ZeroDivisionError):
        folder.once("deep/v.json", lambda: 1 / 0)
    calls = []
    for _ in range(3):
        assert folder.once("deep/v.json", lambda: calls.append(1) or value) == value
    assert calls == [1] and folder.has("deep/v.json")
    assert "naïve" in (folder.path / "deep" / "v.json").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match=r"w\.json is damaged or missing .*run the same"):
        folder.read_json("w.json")
    for content in (b"", b'{"a": 1', b"\xff\xfe"):
        (folder.path / "w.json").write_bytes(content)
        with pytest.raises(OutputError, match=r"w\.json is damaged or missing .*delete it"):
            folder.once("w.json", lambda: 3)


def test_a_file_in_the_way_is_a_sentence(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"the run folder .*file.* cannot be .*--set folder="):
            RunFolder(path).create()
    (folder.path / "stages").write_text("in the way")
    (folder.path / "taken.json").mkdir()
    for name in ("stages/x.json", "taken.json"):
        with pytest.raises(OutputError, match=rf"{name} cannot be written"):
            folder.write_json(name, 1)
    assert names(folder.path) == ["stages"]


def test_the_record_names_versions_machine_and_its_own_commit_and_no_secret(
    folder, tmp_path, monkeypatch
):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"secret-{name}")
    record = environment_record()
    assert record["versions"]["torch"].startswith("2.") and record["python"].startswith("3.")
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
    assert set(record) == {"versions", "python", "machine", "git_commit", "started"}
    assert not any(word in str(record) for word in ("secret-", "HF_TOKEN", "API_KEY"))
    # A resumed run keeps its first start, and what was learnt before.
    write_record(folder, {**record, "started": "monday", "dtype": "float32"})
    write_record(folder, {"started": "tuesday", "python": "3.12"})
    resumed = {**record, "started": "monday", "dtype": "float32", "python": "3.12"}
    assert folder.read_json("run.json") == resumed
    installed = tmp_path / "site-packages" / "saesteer" / "tracking" / "run_folder.py"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "__file__", str(installed))
        assert environment_record()["git_commit"] is None
    # Nor does a machine without git.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment_record()["git_commit"] is None


DEAD = 2**22 - 11


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
    usual = path.stat().st_mode
    write_atomic(str(path), lambda draft: draft.write_text("again") and draft.chmod(0o600))
    assert path.stat().st_mode == usual
    assert path.read_text() == "again"
    assert names(tmp_path) == ["new/a.bin"]
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


def test_files_of_a_folder_are_readable_as_usual_whoever_makes_them(tmp_path):
    def build(draft):
        (draft / "in").mkdir()
        save_file({"x": torch.zeros(1)}, draft / "in" / "x.safetensors")

    made = build_folder(tmp_path / "new", build) / "in" / "x.safetensors"
    (tmp_path / "usual").touch()
    assert made.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_line_that_does_not_fit_is_taken_back_whole(tmp_path, full_disk):
    file = tmp_path / "a.jsonl"
    append_json(file, {"n": 1})
    for room in (0, 5):
        with full_disk(file, room), pytest.raises(UnwritableError, match="cannot be written"):
            append_json(file, {"n": "a long one"})
    append_json(file, {"n": 2})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError(28, "No space")])
def test_a_writer_that_fails_leaves_the_old_file(error, tmp_path):
    path = write_atomic(tmp_path / "a", b"old")

    def half(draft: Path) -> None:
        draft.write_bytes(b"ha")
        raise error

    if isinstance(error, OSError):
        with pytest.raises(OutputError, match=r"a cannot be written \(No space.*same command"):
            write_atomic(path, half)
    else:
        with pytest.raises(error):
            write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed_and_a_users_own_file_is_not(tmp_path, monkeypatch):
    own = [f".{DEAD}-mine.txt", f"..{DEAD}-v.safetensors", ".v.safetensors", ".git-keep"]
    own += [f".saesteer-draft-{DEAD}-v.safetensors", f".saesteer-{DEAD}-v.safetensors"]
    for name in own:
        (tmp_path / name).write_text("mine")
    alive = draft_of(tmp_path / "v.safetensors")
    alive.write_bytes(b"under way")
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    RunFolder(tmp_path).create()
    assert set(names(tmp_path)) == {*own, alive.name}
    killed_draft(tmp_path / "v.safetensors", monkeypatch)
    write_atomic(tmp_path / "v.safetensors", b"whole")
    assert set(names(tmp_path)) == {*own, alive.name, "v.safetensors"}
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
    assert len(names(tmp_path)) == 1
    RunFolder(tmp_path).create()
    assert names(tmp_path) == []


def test_a_name_becomes_one_that_every_system_takes():
    names_in = {"bundled:sentiment": "bundled-sentiment", "a/b\\c": "a-b-c", '*?"<>|': "unnamed"}
    names_in |= {"..": "unnamed", "ok-1.2_x": "ok-1.2_x", "naïve": "na-ve", "x" * 300: "x" * 80}
    assert {text: portable_name(text) for text in names_in} == names_in
