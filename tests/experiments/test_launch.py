"""Work shared out to processes, Slurm and Ray: what is killed is run again, what is done is not."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saesteer.experiments import launch as launching
from saesteer.experiments.kinds import experiment_named
from saesteer.experiments.launch import Launch, Task, make_elsewhere
from saesteer.experiments.results import Results
from saesteer.tracking import list_runs
from saesteer.utils.errors import SaesteerError
from saesteer.utils.settings import parse_config
from tests.texts import Said, write_lines

PERSONAS = ("kindly", "boldly", "calmly")


@pytest.fixture
def task(tmp_path) -> Callable[..., Task]:
    """Return a function that makes a task of a shell script, done once its file is there."""

    def make(name: str, script: str) -> Task:
        file = tmp_path / name
        command = ["sh", "-c", f"echo ran >> {file}.runs; {script}"]
        return Task(name, command, file.exists)

    return make


def runs(folder: Path) -> dict[str, int]:
    return {f.stem: len(f.read_text().splitlines()) for f in sorted(folder.glob("*.runs"))}


def test_what_is_killed_is_run_again_and_what_says_why_it_fails_is_not(task, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.01)
    once, there = tmp_path / "once", tmp_path / "killed"
    killed = f"test -e {once} && touch {there}; touch {once}; kill -9 $$"
    tasks = [
        task("fine", f"touch {tmp_path}/fine"),
        # It did its work, and then fell over.
        task("late", f"touch {tmp_path}/late; exit 3"),
        task("killed", killed),
        task("refused", "echo 'error: no pairs; give some.' >&2; exit 2"),
        task("never", "exit 3"),
    ]
    said = Said()
    with pytest.raises(SaesteerError) as told:
        Launch(tasks, 2, tmp_path / "logs", threads=1, progress=said).local()
    assert "2 of 5 tasks failed (refused and never)" in str(told.value)
    log = tmp_path / "logs" / "refused.log"
    assert f"see {log}, correct that" in str(told.value)
    assert "no pairs; give some." in log.read_text()
    assert runs(tmp_path) == {"fine": 1, "killed": 2, "late": 1, "never": 4, "refused": 1}
    assert "killed ended with code -9; it is started again" in said.lines


@pytest.mark.parametrize(
    ("workers", "seen"),
    [(1, ["0,1,2"]), (2, ["0", "1,2"]), (4, ["0", "0", "1", "2"])],
)
def test_gpus_are_shared_out_so_that_a_model_can_be_spread_over_a_share(workers, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    found = [launching._gpus(slot, workers)["CUDA_VISIBLE_DEVICES"] for slot in range(workers)]
    assert sorted(found) == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert launching._gpus(0, workers) == {}


@pytest.fixture
def begun(few, compare_data, small, tmp_path) -> Callable[..., Any]:
    """Return a function that gives an experiment of a kind, in a folder of its own."""

    def make(kind: str, folder: str = "shared") -> Any:
        settings = small(kind)
        if kind == "compare":
            personas = [compare_data[name] for name in PERSONAS]
            settings = few(methods=["difference_in_means", "pca"], headline="pca")
            settings |= {"personas": personas}
        if kind == "probe":
            # More than a chunk of texts is read by more than one process.
            lines = [
                {"text": f"{'glad' if i % 2 else 'grim'} {i}", "label": "ab"[i % 2]}
                for i in range(300)
            ]
            settings["data"]["source"] = write_lines(tmp_path / "texts.jsonl", lines)
        settings["folder"] = str(tmp_path / folder)
        experiment = experiment_named(kind)
        return experiment(parse_config(settings, kind=experiment.Config, place="test"), Said())

    return make


def comparable(results: Results) -> dict[str, Any]:
    """Metrics without times and places."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            left_out = ("seconds", "folder", "vectors")
            return {k: cut(v) for k, v in value.items() if k not in left_out}
        return [cut(one) for one in value] if isinstance(value, list) else value

    return cut(results.metrics)


PARTS = {
    "compare": set(PERSONAS),
    "patch": {"attribution-all-denoising", "activation-z-denoising", "path-z-to-final-denoising"},
    "probe": {
        *(f"blocks.{layer}.hook_resid_post" for layer in range(3)),
        *("texts 1 of 2", "texts 2 of 2"),
    },
}


@pytest.fixture
def forked(tmp_path, monkeypatch) -> None:
    """Let tasks be forks of a process that has imported everything."""
    pytest.importorskip("resource", reason="processes are limited as POSIX has it")
    from tests.torture.processes import Child

    places = (tmp_path / f"fork-{number}" for number in itertools.count())

    class Forked:
        def __init__(self, command: Sequence[str], *, env: dict[str, str], **_: Any) -> None:
            assert command[:3] == [sys.executable, "-m", "saesteer.cli.main"]
            self._child = Child(command[3:], next(places), env=env)

        def poll(self) -> int | None:
            return self._child.code

    own = SimpleNamespace(**{**vars(subprocess), "Popen": Forked})
    monkeypatch.setattr(launching, "subprocess", own)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
def test_two_processes_find_what_one_finds_to_the_last_bit(kind, begun, request):
    # One kind starts its processes as a user does, which takes each of them seconds.
    if kind != "patch":
        request.getfixturevalue("forked")
    shared, given = begun(kind), set[str]()

    def elsewhere(experiment: Any) -> None:
        # The texts' name has a digest behind it.
        given.update(re.sub(r"-\w+ ", " ", name) for name in experiment.parts())
        make_elsewhere(experiment, "local", 2, threads=1)
        # None is left for this process.
        assert not experiment.parts()

    shared.elsewhere = elsewhere
    results = shared.run()
    assert given == PARTS[kind]
    assert len(list((shared.folder.path / "logs").iterdir())) == len(given)
    assert comparable(results) == comparable(begun(kind, "alone").run())
    # Again: nothing is left, and nobody is asked.
    again = begun(kind)
    again.elsewhere = pytest.fail
    assert again.run().metrics == results.metrics


def test_slurm_is_given_an_array_of_one_job_a_persona(begun, slurm_script, monkeypatch):
    submitit = pytest.importorskip("submitit")
    handed = []

    def work(self: Launch, start: Any, *rest: Any) -> None:
        handed.extend(start(dict(enumerate(self.tasks))))

    monkeypatch.setattr(Launch, "_work", work)
    compare = begun("compare")
    make_elsewhere(compare, "slurm", 2, threads=3, options={"partition": "gpu"})
    script = slurm_script.read_text().splitlines()
    for line in ("--array=0-2%2", "--cpus-per-task=3", "--partition=gpu"):
        assert f"#SBATCH {line}" in script
    assert [job.job_id for job in handed] == ["42_0", "42_1", "42_2"]
    commands = [job.submission().args[0] for job in handed]
    assert [command[-1] for command in commands] == list(PERSONAS)
    # What "auto" stands for is the same for all.
    assert all(command[command.index("--dtype") + 1] == "float32" for command in commands)
    assert issubclass(submitit.SlurmJob, type(handed[0]))


@pytest.mark.slow
def test_a_job_whose_machine_is_gone_is_submitted_again(task, tmp_path):
    pytest.importorskip("submitit")
    # The first time it takes its job's own process with it.
    script = f"test -e {tmp_path}/once && exec touch {tmp_path}/a; touch {tmp_path}/once; "
    tasks = [task("a", script + "kill -9 $PPID"), task("b", f"touch {tmp_path}/b")]
    said = Said()
    launch = Launch(tasks, 2, tmp_path / "logs", threads=1, progress=said)
    launch.slurm({"timeout_min": 5}, cluster="local", seconds=0.2)
    assert runs(tmp_path) == {"a": 2, "b": 1}
    assert "a is gone; it is started again" in said.lines


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_finds_what_one_process_finds(begun, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers are nicer than everything else, which on a busy machine takes minutes.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    # A GPU each, as Ray believes: no two tasks share one.
    one: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 * 2**20}
    one["include_dashboard"] = False
    try:
        cluster = Cluster(initialize_head=True, head_node_args=one)
        second = cluster.add_node(**one)
        cluster.wait_for_nodes(timeout=120)
    except (OSError, RuntimeError, TimeoutError, ConnectionError) as error:
        pytest.skip(f"no Ray cluster starts on this machine: {error}")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    shared, begin = begun("compare"), {}

    def lose() -> None:
        # Both nodes are in the middle of a persona.
        folders = Path(shared.config.folder) / "personas"
        deadline = time.monotonic() + 600
        while len(list(folders.glob("*/run.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        begin.update({f.parent.name: f.read_text() for f in folders.glob("*/run.json")})
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=lose)
    shared.elsewhere = lambda experiment: make_elsewhere(experiment, "ray", 2, threads=1)
    try:
        killer.start()
        results = shared.run()
        assert not ray.is_initialized()
    finally:
        killer.join()
        cluster.shutdown()
    lost = [line for line in shared.progress.lines if "is gone; it is started again" in line]
    assert len(lost) == 1, shared.progress.lines
    # The one that was lost was gone on with by another process, the others by the one they had.
    went_on = {}
    for file in (Path(shared.config.folder) / "personas").glob("*/run.json"):
        before = json.loads(begin.get(file.parent.name, "null"))
        now = json.loads(file.read_text())
        went_on[file.parent.name.partition("-")[0]] = before and before["pid"] != now["pid"]
    assert sorted(map(str, went_on.values())) == ["False", "None", "True"]
    assert [name for name, moved in went_on.items() if moved] == [lost[0].partition(" ")[0]]
    assert {run.status for run in list_runs(shared.config.folder)} == {"finished"}
    assert comparable(results) == comparable(begun("compare", "alone").run())
