"""Runs are listed from their folders, whoever wrote them, and found again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from saesteer.tracking import add_note, find_run, list_runs, recorded_run
from saesteer.tracking.runs import export_runs
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.run_folder import RunFolder


def make(root: Path, name: str, **metrics: float) -> str:
    with recorded_run(RunFolder(root / name), kind="run", name=name) as run:
        run.summary(metrics)
    return run.id


@pytest.fixture
def three(root) -> list[str]:
    """The ids of three runs."""
    return [make(root, name, e=float(number)) for number, name in enumerate(("one", "two", "six"))]


WRITER = """
import sys
from pathlib import Path
from saesteer.utils.run_folder import RunFolder
from saesteer.tracking import list_runs, recorded_run
root, who = Path(sys.argv[1]), sys.argv[2]
for number in range(6):
    with recorded_run(RunFolder(root / f"{who}-{number}"), kind="run", name=who) as run:
        run.summary({"e": number})
        assert run.id in {one.id for one in list_runs(root)}
    run.note(f"{who} is done")
"""


def test_four_processes_record_and_list_at_once_and_nothing_is_lost(root):
    command = [sys.executable, "-W", "error", "-c", WRITER, str(root)]
    writers = [
        subprocess.Popen([*command, who], stderr=subprocess.PIPE, text=True) for who in "abcd"
    ]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        # A warning would be an error here.
        assert (writer.returncode, err) == (0, "")
    runs = list_runs(root)
    assert len({run.id for run in runs}) == 24 == len(runs)
    assert {run.status for run in runs} == {"finished"}
    assert all(run.notes[0]["text"] == f"{run.name} is done" for run in runs)


def test_the_latest_run_is_first_and_a_copy_is_a_run_of_its_own(three, root, tmp_path):
    for number, name in enumerate(("one", "two", "six")):
        record = json.loads((root / name / "run.json").read_text())
        record["started"] = f"2026-11-2{number}T10:00:00+0000"
        (root / name / "run.json").write_text(json.dumps(record))
    assert [run.name for run in list_runs(root)] == ["six", "two", "one"]
    shutil.rmtree(root / "two")
    shutil.copytree(root / "one", root / "copy")
    root.rename(tmp_path / "moved")
    runs = list_runs(tmp_path / "moved")
    assert {run.folder.name for run in runs} == {"six", "one", "copy"}
    assert len({run.id for run in runs}) == 3
    assert list_runs(tmp_path / "nowhere") == []


def test_a_run_below_a_run_is_listed_and_found_by_id_beginning_folder_and_name(root):
    make(root, "one", e=1.0)
    make(root / "one" / "looks", "x", e=1.0)
    # Folders that hold many files and no runs are not looked into.
    make(root / "one" / "activations", "hidden", e=1.0)
    runs = list_runs(root)
    assert {run.name for run in runs} == {"one", "x"}
    (run,) = (run for run in runs if run.name == "one")
    for name in (run.id, run.id.upper(), run.id[:6], run.folder, str(run.folder), run.folder.name):
        assert find_run(root, name).folder == run.folder, name
    # What names no run or several is one sentence.
    for name in ("zzzzzz", "", "a\0b"):
        with pytest.raises(DataError, match="there is no run"):
            find_run(root, name)
    for place in (run.folder, root / "one" / "looks" / "x"):
        record = json.loads((place / "run.json").read_text())
        (place / "run.json").write_text(json.dumps({**record, "id": f"abc{place.name}"}))
    with pytest.raises(DataError, match="any of several runs"):
        find_run(root, "abc")


def test_notes_are_text_or_named_parts(three, root):
    add_note(root / "one", "  first  ")
    add_note(root / "one", {"observation": "E rises", "effect": float("nan"), "tags": ["a"]})
    with (root / "one" / "notes.jsonl").open("a") as stream:
        stream.write("{half\n")
    first, second = find_run(root, "one").notes
    assert first["text"] == "first" and first["time"]
    assert second["observation"] == "E rises" and second["effect"] is None
    for empty in ("", "  ", {}, {"observation": ""}):
        with pytest.raises(DataError, match="note is empty"):
            add_note(root / "one", empty)
    with pytest.raises(DataError, match="cannot be written as JSON"):
        add_note(root / "one", {"x": object()})


def test_runs_from_before_recording_are_listed_too(root):
    old = root / "tiny-0123456789"
    (old / "stages").mkdir(parents=True)
    (old / "vector.safetensors").write_bytes(b"")
    (old / "run.json").write_text(json.dumps({"started": "2026-01-01T00:00:00+0000"}))
    (old / "config.json").write_text(json.dumps({"name": "tiny", "tracking": {}, "seed": 1}))
    metrics = {"vector": {"effect": {"effect": 0.5}}, "curve": [1, 2], "seconds": {"a": 1.5}}
    (old / "metrics.json").write_text(json.dumps(metrics))
    for name, text in {"begun-0123456789": "{}", "broken": "["}.items():
        (root / name).mkdir()
        (root / name / "run.json").write_text(text)
    runs = {run.name: run for run in list_runs(root)}
    assert set(runs) == {"tiny", "begun-0123456789"}
    tiny = runs["tiny"]
    assert (tiny.kind, tiny.status, tiny.seconds) == ("run", "finished", 1.5)
    assert tiny.config == {"name": "tiny", "seed": 1}
    assert tiny.metrics == {"vector": {"effect": {"effect": 0.5}}, "seconds": {"a": 1.5}}
    assert runs["begun-0123456789"].status == "stopped"


def test_a_thousand_runs_are_listed_in_a_moment(root):
    for number in range(1000):
        place = root / f"run-{number}" / "evaluation"
        place.mkdir(parents=True)
        record = {"id": f"{number:08x}", "kind": "run", "name": "n", "status": "finished"}
        record["config"] = {f"group{n}": dict.fromkeys("abcdefgh", n) for n in range(8)}
        (place.parent / "run.json").write_text(json.dumps(record))
    start = time.perf_counter()
    assert len(list_runs(root)) == 1000
    assert time.perf_counter() - start < 1.0


def test_exports_hold_what_was_recorded(three, root, tmp_path):
    for name, seed in (("one", "first"), ("two", 2)):
        record = json.loads((root / name / "run.json").read_text())
        record["config"] = {"seed": seed, "list": [1, {"a": 2}]}
        (root / name / "run.json").write_text(json.dumps(record))
    runs = list_runs(root)
    frame = pd.read_parquet(export_runs(runs, tmp_path / "runs.parquet")).set_index("name")
    assert frame["metrics.e"].to_dict() == {"one": 0.0, "two": 1.0, "six": 2.0}
    # A Parquet column has one kind.
    assert frame["config.seed"].dropna().to_dict() == {"one": "first", "two": "2"}
    assert json.loads(frame["config.list"]["one"]) == [1, {"a": 2}]
    table = pd.read_csv(export_runs(runs, tmp_path / "runs.csv"), dtype={"id": str})
    assert list(table["id"]) == [run.id for run in runs]
    whole = json.loads(export_runs(runs, tmp_path / "runs.json").read_text())
    assert [run["config"] for run in whole] == [run.config for run in runs]
    export_runs([], tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="does not end in"):
        export_runs(runs, tmp_path / "runs.xlsx")
