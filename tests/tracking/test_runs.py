"""Runs are listed from their folders, whoever wrote them, found again and added up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saesteer.tracking import Run, add_note, find_run, list_runs, recorded_run
from saesteer.tracking.queries import (
    MISSING,
    aggregate,
    filter_runs,
    markdown_table,
    side_by_side,
    sort_runs,
)
from saesteer.tracking.runs import export_runs
from saesteer.utils.errors import ConfigError, DataError, OutputError
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
    with pytest.raises(DataError, match="note is empty"):
        add_note(root / "one", {"observation": ""})
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", '{"kind": "run", "tags": 5}'),
        ("run.json", '{"kind": "run", "seconds": {"a": null}}'),
        ("run.json", '{"kind": "run", "wandb": [1]}'),
        ("run.json", '{"kind": {"a": 1}}'),
        ("run.json", "[]"),
        ("run.json", "\xff"),
        ("run.json", "[" * 20_000),
        ("run.json", '{"config": ' + '{"a":' * 200 + "1" + "}" * 201),
    ],
)
def test_a_damaged_folder_is_named_and_left_out_and_the_list_stands(
    three, root, name, content, caplog
):
    (root / "two" / name).write_bytes(content.encode("latin-1"))
    assert [run.name for run in list_runs(root)] == ["six", "one"]
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.startswith("left out of the list: ") and str(root / "two" / name) in said
    for use in (lambda: find_run(root, root / "two"), lambda: make(root, "two")):
        with pytest.raises(OutputError, match=r"two.run\.json .*delete it"):
            use()


def test_an_older_folder_whose_metrics_were_edited_is_listed_without_them(three, root):
    (root / "two" / "run.json").write_text("{}")
    for metrics in ("[1]", '{"seconds": null}', '{"seconds": {"a": "b"}}', "5"):
        (root / "two" / "metrics.json").write_text(metrics)
        assert len(list_runs(root)) in (2, 3)


def test_exports_hold_what_was_recorded(three, root, tmp_path):
    for name, seed in (("one", "first"), ("two", 2)):
        record = json.loads((root / name / "run.json").read_text())
        record["config"] = {"seed": seed, "list": [1, {"a": 2}]}
        (root / name / "run.json").write_text(json.dumps(record))
    runs = list_runs(root)
    frame: Any = pd.read_parquet(export_runs(runs, tmp_path / "runs.parquet"))
    frame = frame.set_index("name")
    assert frame["metrics.e"].to_dict() == {"one": 0.0, "two": 1.0, "six": 2.0}
    # A Parquet column has one kind.
    assert frame["config.seed"].dropna().to_dict() == {"one": "first", "two": "2"}
    assert json.loads(frame["config.list"]["one"]) == [1, {"a": 2}]
    whole = json.loads(export_runs(runs, tmp_path / "runs.json").read_text())
    assert [run["config"] for run in whole] == [run.config for run in runs]
    export_runs([], tmp_path / "none.csv")


def a_run(number: int, effect: Any = 0.0, **more: Any) -> Run:
    config = {"model": {"name": "smollm2" if number % 2 else "gpt2"}, "seed": number, "site": None}
    facts: dict[str, Any] = {
        "id": f"{number:08x}",
        "kind": "run",
        "name": f"n{number}",
        "status": "finished",
        "folder": Path(f"runs/n{number}"),
        "config": config,
        "metrics": {"effect": effect, "fit": {"r2": number / 10}},
        "started": f"2026-11-{number + 10}T10:00:00+0000",
        "tags": ("persona", f"t{number}"),
    }
    return Run(**{**facts, **more})


RUNS = [
    a_run(1, 0.1),
    a_run(2, 0.3),
    a_run(3, None),
    a_run(4, 1e-4, metrics={}),
    a_run(5, -0.5, status="failed", error="no such site", notes=({"text": "look again"},)),
]


# Conditions, and the numbers of the runs that meet them.
KEPT: dict[str, list[int]] = {
    "config.model.name=smollm2": [1, 3, 5],
    "config.model.name!=smollm2": [2, 4],
    "metrics.effect>0.1": [2],
    "metrics.effect=null": [3],
    "metrics.effect exists": [1, 2, 3, 5],
    "metrics.effect missing": [4],
    "metrics.effect in 0.1, 0.3": [1, 2],
    "metrics.effect not in (0.1,0.3)": [3, 4, 5],
    "status in failed,killed": [5],
    "tags~T3": [3],
    "tags!~t3": [1, 2, 4, 5],
    "started>=2026-11-14": [4, 5],
    "config.site=null": [1, 2, 3, 4, 5],
    'config.site="null"': [],
    "metrics.effect>high": [],
    "status=failed or config.seed>1 and config.seed<4": [2, 3, 5],
    "(status=failed or config.seed>1) and config.seed<4": [2, 3],
    "((config.seed in (1,2)) and (tags~t1 or tags~t2))and status=finished": [1, 2],
    "not (config.seed in (1,2) or status=failed)": [3, 4],
    "notes~'again' or error~\"this and that\"": [5],
}


def test_a_condition_keeps_the_runs_that_meet_it():
    for text, numbers in KEPT.items():
        kept = filter_runs(RUNS, [text])
        assert [int(r.id, 16) for r in kept] == numbers, text
        # Conditions are met together.
        assert filter_runs(RUNS, [text, "config.seed<3"]) == [r for r in kept if r in RUNS[:2]]
    assert filter_runs([], list(KEPT)) == []
    # Keys may hold dots themselves.
    dotted = [a_run(1, config={"a": {"b": None, "c.d": 3}})]
    assert filter_runs(dotted, ["config.a.c.d=3", "config.a.b=null", "config.a.z missing"])


def test_a_condition_that_cannot_be_read_is_one_sentence():
    for text, told in {
        "=finished": "names no field",
        "status in": "names no value",
        "status exists now": "nothing may stand behind exists",
        "model.name=gpt2": r"no run has a field 'model.name' \(did you mean 'config.model.name'\?",
        "status=failed or (kind=run and efect>1)": "no run has a field 'efect'",
        "notes~salt and pepper": "'pepper' has no operator.*quote a value",
        "()": "has no operator",
    }.items():
        with pytest.raises(ConfigError, match=told):
            filter_runs(RUNS, [text])


def test_aggregates_are_those_of_numpy_by_group():
    rng = np.random.default_rng(0)
    runs = [a_run(n, float(rng.normal())) for n in range(11)]
    kinds = ("count", "mean", "median", "std", "min", "max")
    rows = aggregate(runs, ["metrics.effect"], by=["config.model.name"], kinds=kinds)
    assert [row["config.model.name"] for row in rows] == ["gpt2", "smollm2"]
    for row, odd in zip(rows, (0, 1), strict=True):
        values = np.array([r.metrics["effect"] for r in runs if int(r.id, 16) % 2 == odd])
        computed = [values.mean(), np.median(values), values.std(ddof=1), values.min()]
        assert list(row.values())[1:] == pytest.approx(
            [len(values), len(values), *computed, values.max()], abs=1e-12
        )
    # What is no number is left out and counted; of too few there is nothing.
    (row,) = aggregate(RUNS, ["metrics.effect"], kinds=("count", "mean"))
    assert list(row.values()) == [5, 3, pytest.approx((0.1 + 0.3 - 0.5) / 3)]
    (row,) = aggregate(RUNS[2:4], ["metrics.effect"], kinds=("count", "mean", "std", "min"))
    assert list(row.values()) == [2, 0, None, None, None]
    (row,) = aggregate(RUNS[:1], ["metrics.effect"], kinds=("mean", "std"))
    assert list(row.values()) == [1, 0.1, None]
    assert aggregate([], ["metrics.effect"]) == []


def test_the_table_is_markdown_that_any_reader_takes():
    rows = [{"name": "a|b", "e": 0.123456, "n": 3}, {"name": None, "e": None, "more": True}]
    assert markdown_table(rows).splitlines() == [
        "| name | e | n | more |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 0.1235 | 3 |  |",
        "| null | null |  | true |",
    ]
    assert markdown_table([]) == ""


def test_runs_are_sorted_and_those_that_lack_the_field_are_last():
    assert [r.name for r in sort_runs(RUNS, "metrics.effect")] == ["n5", "n1", "n2", "n3", "n4"]
    down = sort_runs(RUNS, "metrics.effect", descending=True)
    assert [r.name for r in down] == ["n2", "n1", "n5", "n3", "n4"]


def test_settings_stand_side_by_side_where_they_differ():
    one = a_run(1, 0.5).config
    differing = {"model.name": ["smollm2", MISSING], "site": [None, MISSING]}
    assert side_by_side([one, {"seed": 1}], differing=True) == differing
    assert side_by_side([one, {"seed": 1}])["seed"] == [1, 1]
