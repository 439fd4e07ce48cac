"""The list of runs is safe for several processes, and can always be made again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from saesteer.tracking import store_file
from saesteer.tracking.recording import recorded_run
from saesteer.tracking.store import RunStore, find_among, root_of
from saesteer.tracking.store_file import DamagedStore
from saesteer.utils.errors import DataError, OutputError
from saesteer.utils.run_folder import RunFolder


def make(root: Path, name: str, **metrics: float) -> str:
    with recorded_run(RunFolder(root / name), kind="run", name=name, root=root) as run:
        run.summary(metrics)
    return run.id


def told(store: RunStore) -> list[tuple]:
    return sorted((r.id, r.name, r.status, r.folder.name, r.metrics.get("e")) for r in store.runs())


@pytest.fixture
def store(root) -> RunStore:
    """A store of three runs."""
    for number, name in enumerate(("one", "two", "three")):
        make(root, name, e=float(number))
    return RunStore(root)


WRITER = """
import sys
import time
from contextlib import closing
from pathlib import Path
from saesteer.utils.run_folder import RunFolder
from saesteer.tracking.recording import recorded_run
root, who = Path(sys.argv[1]), sys.argv[2]
for number in range(6):
    with recorded_run(RunFolder(root / f"{who}-{number}"), kind="run", name=who) as run:
        run.summary({"e": number})
    run.note("done")
"""


def test_four_processes_write_at_once_and_nothing_is_lost(root):
    command = [sys.executable, "-W", "error", "-c", WRITER, str(root)]
    writers = [
        subprocess.Popen([*command, who], stderr=subprocess.PIPE, text=True) for who in "abcd"
    ]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        # A warning would be an error here.
        assert (writer.returncode, err) == (0, "")
    runs = RunStore(root).runs()
    assert len(runs) == 24 == len({run.id for run in runs})
    assert {run.status for run in runs} == {"finished"}
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT COUNT(*) FROM runs").fetchone() == (24,)


def test_a_rebuilt_store_says_what_the_lost_one_said(store, root):
    store.add_note(store.runs()[0], "worth a look")
    before, notes = told(store), [run.notes for run in store.runs()]
    for file in root.glob("index.sqlite*"):
        file.unlink()
    assert told(store) == before
    assert not store.path.exists()
    store.rebuild()
    assert store.path.exists()
    assert told(store) == before
    assert [run.notes for run in store.runs()] == notes


def test_the_next_run_brings_a_lost_store_back_whole(store, root):
    before = told(store)
    store.path.unlink()
    make(root, "four", e=3.0)
    assert len(told(store)) == 4
    assert set(told(store)) > set(before)


def test_the_latest_run_is_first_and_deleted_folders_are_left_out(store, root):
    for number, run in enumerate(sorted(store.runs(), key=lambda run: run.metrics["e"])):
        record = json.loads((run.folder / "run.json").read_text())
        record["started"] = f"2026-11-2{number}T10:00:00+0000"
        (run.folder / "run.json").write_text(json.dumps(record))
    assert [run.name for run in store.runs()] == ["three", "two", "one"]
    shutil.rmtree(root / "two")
    assert [run.name for run in store.runs()] == ["three", "one"]
    store.rebuild()
    assert [run.name for run in store.runs()] == ["three", "one"]


def test_the_folder_is_the_truth_where_the_store_was_not_told(store, root):
    file = root / "one" / "run.json"
    record = json.loads(file.read_text())
    record["metrics"] = {"e": 42.0}
    file.write_text(json.dumps(record))
    assert store.find("one").metrics == {"e": 42.0}
    assert next(run for run in store.runs() if run.name == "one").metrics == {"e": 42.0}


def test_a_moved_folder_of_runs_keeps_its_list(store, root, tmp_path):
    before = told(store)
    root.rename(tmp_path / "moved")
    moved = RunStore(tmp_path / "moved")
    assert told(moved) == before
    assert all(run.folder.is_dir() for run in moved.runs())


def test_a_copied_run_is_a_run_of_its_own(store, root):
    shutil.copytree(root / "one", root / "copy")
    runs = store.rebuild()
    assert len({run.id for run in runs}) == 4
    assert {run.folder.name for run in runs} == {"one", "two", "three", "copy"}


@pytest.mark.parametrize("damage", ["rubbish", "cut", "empty"])
def test_a_damaged_store_is_said_and_made_again(damage, store, root):
    before = told(store)
    with closing(sqlite3.connect(store.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = store.path.read_bytes()
    broken = {"rubbish": b"no database at all " * 200, "cut": whole[:5000] + b"\xff" * 4000}
    store.path.write_bytes(broken.get(damage, b""))
    if damage == "empty":
        # An empty file is an empty database.
        assert told(store) == before
    else:
        with pytest.raises(DamagedStore, match="saesteer runs rebuild"):
            store.runs()
    store.rebuild()
    assert told(store) == before


def test_a_store_of_another_version_is_made_again(store, root, monkeypatch):
    before = told(store)
    monkeypatch.setattr(store_file, "VERSION", 2)
    monkeypatch.setattr("saesteer.tracking.store.VERSION", 2)
    assert told(store) == before
    make(root, "four", e=3.0)
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT COUNT(*) FROM runs").fetchone() == (4,)


def test_another_programs_database_is_left_alone(root, tmp_path, monkeypatch):
    place = tmp_path / "music.sqlite"
    with closing(sqlite3.connect(place, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
        connection.execute("INSERT INTO songs VALUES ('a')")
    monkeypatch.setenv("SAESTEER_STORE", str(place))
    with pytest.warns(UserWarning, match="another program's database"):
        make(root, "one", e=1.0)
    with pytest.raises(OutputError, match="another program's"):
        RunStore(root).rebuild()
    with closing(sqlite3.connect(place)) as connection:
        assert connection.execute("SELECT name FROM songs").fetchall() == [("a",)]
        assert len(connection.execute("SELECT * FROM sqlite_master").fetchall()) == 1


def test_a_locked_store_is_waited_for_only_so_long(store, root, monkeypatch):
    monkeypatch.setattr(store_file, "BUSY_SECONDS", 0.1)
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="locked"):
        make(root, "four", e=3.0)
    holder.execute("ROLLBACK")
    holder.close()
    assert (root / "four" / "run.json").is_file()
    assert len(store.rebuild()) == 4


def test_a_store_elsewhere_is_named_by_the_environment(root, tmp_path, monkeypatch):
    place = tmp_path / "deep" / "mine.sqlite"
    monkeypatch.setenv("SAESTEER_STORE", str(place))
    made = make(root, "one", e=1.0)
    other = make(tmp_path / "other", "two", e=2.0)
    assert place.is_file() and not (root / "index.sqlite").exists()
    assert {run.id for run in RunStore(Path("anywhere")).runs()} == {made, other}
    assert RunStore(Path("anywhere")).find("two").folder == tmp_path / "other" / "two"


def test_a_run_is_found_by_id_beginning_folder_and_name(store, root):
    run = store.runs()[0]
    for name in (run.id, run.id.upper(), run.id[:6], run.folder, str(run.folder), run.folder.name):
        assert store.find(name).folder.name == run.folder.name, name


def test_what_names_no_run_or_several_is_one_sentence(store):
    with pytest.raises(DataError, match=r"no run 'thre'; did you mean three\?"):
        store.find("thre")
    with pytest.raises(DataError, match="there is no run 'zzzzzz'"):
        store.find("zzzzzz")
    with pytest.raises(DataError, match="there is no run ''"):
        store.find("")
    with pytest.raises(DataError, match="there is no run"):
        store.find("a\0b")
    several = [r.__class__(**{**vars(r), "id": f"abc{n}"}) for n, r in enumerate(store.runs())]
    with pytest.raises(DataError, match="beginning of several"):
        find_among(several, "abc")


def test_notes_are_text_or_named_parts_and_outlive_the_store(store, root):
    store.add_note("one", "  first  ")
    run = store.add_note("one", {"observation": "E rises", "effect": float("nan"), "tags": ["a"]})
    assert [note.get("text") for note in run.notes] == ["first", None]
    assert run.notes[1]["observation"] == "E rises" and run.notes[1]["effect"] is None
    assert all(note["time"] for note in run.notes)
    with (root / "one" / "notes.jsonl").open("a") as stream:
        stream.write("{half\n")
    store.path.unlink()
    assert store.find("one").notes == run.notes
    for empty in ("", "  ", {}, {"observation": ""}):
        with pytest.raises(DataError, match="note is empty"):
            store.add_note("one", empty)
    with pytest.raises(DataError, match="cannot be written as JSON"):
        store.add_note("one", {"x": object()})


def test_runs_from_before_recording_are_listed_too(root):
    old = root / "tiny-0123456789"
    (old / "stages").mkdir(parents=True)
    (old / "vector.safetensors").write_bytes(b"")
    (old / "run.json").write_text(json.dumps({"started": "2026-01-01T00:00:00+0000"}))
    (old / "config.json").write_text(json.dumps({"name": "tiny", "tracking": {}, "seed": 1}))
    metrics = {"vector": {"effect": {"effect": 0.5}}, "curve": [1, 2], "seconds": {"a": 1.5}}
    (old / "metrics.json").write_text(json.dumps(metrics))
    (root / "begun-0123456789").mkdir()
    (root / "begun-0123456789" / "run.json").write_text("{}")
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("[")
    runs = {run.name: run for run in RunStore(root).rebuild()}
    assert set(runs) == {"tiny", "begun-0123456789"}
    tiny = runs["tiny"]
    assert (tiny.kind, tiny.status, tiny.seconds) == ("run", "finished", 1.5)
    assert tiny.config == {"name": "tiny", "seed": 1}
    assert tiny.metrics == {"vector": {"effect": {"effect": 0.5}}, "seconds": {"a": 1.5}}
    assert runs["begun-0123456789"].status == "stopped"


def test_a_run_below_a_run_is_listed_with_the_outermost_folder_of_runs(root):
    make(root, "one", e=1.0)
    with recorded_run(RunFolder(root / "one" / "looks" / "x"), kind="look", name="x"):
        pass
    assert list(root.rglob("index.sqlite")) == [root / "index.sqlite"]
    assert {run.name for run in RunStore(root).runs()} == {"one", "x"}
    assert {run.name for run in RunStore(root).folders()} == {"one", "x"}
    assert root_of(Path("elsewhere/run")) == Path("elsewhere")


def test_hundreds_of_runs_are_listed_in_a_moment(root):
    for number in range(400):
        place = root / f"run-{number}"
        place.mkdir(parents=True)
        record = {"id": f"{number:08x}", "kind": "run", "name": "n", "status": "finished"}
        (place / "run.json").write_text(json.dumps({**record, "metrics": {"e": number}}))
    store = RunStore(root)
    store.rebuild()
    start = time.perf_counter()
    assert len(store.runs()) == 400
    assert time.perf_counter() - start < 1.5
