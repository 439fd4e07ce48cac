"""What every kind of experiment owes: resume, one record, one sentence, nothing told twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import saesteer as ss
from saesteer.experiments import context, steering
from saesteer.experiments.base import Experiment
from saesteer.experiments.registry import KINDS, experiment_named, run_experiment
from saesteer.experiments.results import Results
from saesteer.tracking import list_runs
from saesteer.utils import files
from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.run_folder import RunFolder
from saesteer.utils.settings import parse_config
from tests.experiments.conftest import timeless

COMMANDS = {
    **{kind: (kind,) for kind in KINDS},
    "train_sae": ("sae", "train"),
    "steering_bench": ("measure", "steering-bench"),
    "axbench": ("measure", "axbench"),
}
RECORDED = {"steer": "run", "probe": "probe-train", "train_sae": "sae-train"}
SECRETS = {name: f"{name}-of-mine" for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")}
EARLIER = Path(__file__).parent / "earlier"
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def _every_model_is_loaded_once() -> Iterator[None]:
    load_model = context.load_model

    @cache
    def load(name: str, device: Any, dtype: Any) -> Any:
        return load_model(name, device=device, dtype=dtype)

    def shared(name: str, *, device: Any, dtype: Any, **rest: Any) -> Any:
        return load(name, device, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "load_model", shared)
        yield


def made(kind: str, settings: dict[str, Any]) -> Experiment:
    experiment = experiment_named(kind)
    return experiment(parse_config(settings, kind=experiment.Config, place="test"))


def refuse(*args: Any, **how: Any) -> None:
    raise AssertionError("this must not be called")


def interrupt(*args: Any, **how: Any) -> None:
    raise KeyboardInterrupt


def stored(found: Results) -> Any:
    """Return a run's metrics without its place and its times."""
    text = (found.folder.path / "metrics.json").read_text(encoding="utf-8")
    return timeless(json.loads(text.replace(str(found.folder.path.parent), "")))


@pytest.fixture(scope="module")
def whole(small_in, tmp_path_factory) -> Callable[[str], Results]:
    """Return a function from a kind to a run of it from Python that nothing stopped."""

    @cache
    def run(kind: str) -> Results:
        with pytest.MonkeyPatch.context() as patch:
            for name, secret in SECRETS.items():
                patch.setenv(name, secret)
            return made(kind, small_in(kind, tmp_path_factory.mktemp(kind))).run()

    return run


def killed_after(stage: str, kind: str, settings: dict[str, Any]) -> None:
    """Run an experiment in a process of its own that is killed once a stage is done."""
    child = os.fork()
    if child == 0:
        try:
            do = Experiment._do

            def then_die(self: Experiment, done: Any, recorded: Any) -> None:
                do(self, done, recorded)
                if done.name == stage:
                    os.kill(os.getpid(), signal.SIGKILL)

            Experiment._do = then_die  # type: ignore[method-assign]
            made(kind, settings).run()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@each_kind
def test_a_run_that_is_killed_after_each_stage_ends_with_the_same_metrics(
    kind, small, whole, tmp_path
):
    expected, settings = stored(whole(kind)), small(kind)
    folder = made(kind, settings).folder.path
    for stage in made(kind, settings).stages():
        killed_after(stage.name, kind, settings)
        assert not (folder / "metrics.json").exists()
    again = made(kind, settings)
    assert again.pending() == [] and not again.finished
    assert stored(again.run()) == expected
    assert not list((tmp_path / "runs").rglob(".saesteer-draft-*"))
    (found,) = [run for run in list_runs(tmp_path / "runs") if run.folder == folder]
    assert found.status == "finished"


@pytest.mark.parametrize("kind", ["probe", "corrupt", "patch"])
def test_a_run_that_is_stopped_while_it_draws_has_every_figure_afterwards(
    kind, small, whole, monkeypatch
):
    settings, found = small(kind), whole(kind)
    folder = shutil.copytree(found.folder.path, made(kind, settings).folder.path)
    drawn = sorted(folder.rglob("*.png"))
    assert drawn
    for file in (*drawn, folder / found.report.name):
        file.unlink()
    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr("saesteer.report.pictures.save_png", interrupt)
        made(kind, settings).run()
    assert made(kind, settings).run().report.is_file()
    assert sorted(folder.rglob("*.png")) == drawn


@each_kind
def test_a_run_from_python_is_the_run_of_the_shell(
    kind, whole, config_file, run_cli, no_loading, tmp_path, monkeypatch
):
    # What would be done is said, and nothing is written.
    shown = run_cli(*COMMANDS[kind], config_file(kind), "--dry-run")
    assert (shown.code, shown.err) == (0, "") and "tiny" in shown.out
    told = json.loads(run_cli(*COMMANDS[kind], config_file(kind), "--dry-run", "--json").out)
    assert not told["finished"] and told["to_do"] and told["settings"]["name"] == "tiny"
    assert not (tmp_path / "runs").exists()

    monkeypatch.undo()
    results = whole(kind)
    folder = results.folder.path
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["name"]) == (RECORDED.get(kind, kind), "tiny")
    assert record["status"] == "finished" and record["metrics"] and record["seconds"]

    # The shell finds it finished: the same numbers, and nothing is loaded.
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(context, "load_model", refuse)
    monkeypatch.setattr(steering, "load_sae", refuse)
    answer = run_cli(*COMMANDS[kind], config_file(kind, folder=str(folder.parent)), "--json")
    assert answer.code == 0
    assert json.loads(answer.out, parse_constant=refuse) == results.metrics
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    opened = ss.Results.open(folder)
    assert type(opened) is type(results) and opened.metrics == results.metrics
    assert opened.report.is_file()
    monkeypatch.undo()

    # Elsewhere it computes them.
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    answer = run_cli(*COMMANDS[kind], config_file(kind), "--json")
    (other,) = [path.parent for path in (tmp_path / "runs").glob("tiny-*/metrics.json")]
    assert other.name == folder.name
    told = json.loads((other / "run.json").read_text(encoding="utf-8"))
    assert told.keys() == record.keys() and told["metrics"] == record["metrics"]
    for file in (*tmp_path.rglob("*"), *folder.rglob("*")):
        if file.is_file():
            assert b"-of-mine" not in file.read_bytes(), file


@each_kind
def test_a_full_disk_and_a_damaged_file_are_one_sentence_and_the_run_goes_on_afterwards(
    kind, small, whole, monkeypatch
):
    settings = small(kind)
    replace, left = os.replace, 4

    def full(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(OutputError, match=r"cannot be written .*No space left.*free") as told:
            made(kind, settings).run()
    assert "\n" not in str(told.value)
    found = made(kind, settings).run()
    assert stored(found) == stored(whole(kind))
    folder = found.folder.path
    marked = sorted((folder / "stages").glob("*.json"))
    # A comparison's stage is done where its personas' own folders say so.
    for file in [folder / "metrics.json", *([] if kind == "compare" else marked[:1])]:
        content = file.read_bytes()
        others = [b"[1]"] if file.name == "metrics.json" else []
        for damaged in (content[: len(content) // 2], *others):
            file.write_bytes(damaged)
            with pytest.raises(OutputError, match=rf"{file.name} is damaged .*delete it") as told:
                made(kind, settings).run()
            assert "\n" not in str(told.value)
        file.write_bytes(content)
    assert made(kind, settings).run().metrics


@each_kind
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    kind, small, monkeypatch
):
    monkeypatch.setattr(context, "load_model", refuse)
    settings = small(kind)

    def closed(dir: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("saesteer.experiments.config.TemporaryFile", closed)
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\); choose"):
        made(kind, settings)
    monkeypatch.undo()
    Path(settings["folder"]).write_text("in the way")
    with pytest.raises(ConfigError, match=r"is a file; choose another with --set folder="):
        made(kind, settings)


def test_a_folder_that_fails_only_when_it_is_made_is_refused_too(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"link cannot be written .*choose another"):
        RunFolder(tmp_path / "link").create()


@pytest.mark.parametrize("kind", sorted(path.name for path in EARLIER.iterdir()))
def test_folders_of_earlier_versions_open(kind, tmp_path):
    folder = shutil.copytree(EARLIER / kind, tmp_path / kind)
    found = ss.Results.open(folder)
    assert found.metrics
    experiment = experiment_named(kind)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # It has settings, and has planned nothing.
    bare = object.__new__(experiment)
    bare.config = parse_config(settings, kind=experiment.Config, place="config.json")
    shown = bare.headline(found.metrics)
    assert any(isinstance(value, float) for value in shown.values())
    (folder / "metrics.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "sae", ignore_errors=True)
    with pytest.raises(OutputError, match="holds no finished experiment"):
        ss.Results.open(folder)


def test_a_run_that_fails_is_recorded_as_such(small, monkeypatch):
    def fail(*args: Any, **how: Any):
        raise RuntimeError("no more")

    monkeypatch.setattr("saesteer.methods.fit_context.encode_pairs", fail)
    with pytest.raises(RuntimeError):
        made("steer", small("steer")).run()
    (found,) = list_runs(Path(small("steer")["folder"]))
    assert (found.status, found.error) == ("failed", "RuntimeError: no more")


def test_any_kind_runs_by_its_file_from_python(config_file, small):
    results = ss.run(config_file("corrupt"), overrides=["programs=[skip 1]"])
    assert "skip 1" in results.metrics["programs"]
    with pytest.raises(ConfigError, match="experiment 'fry' is unknown"):
        run_experiment(config_file("corrupt"), overrides=["kind=fry"])
