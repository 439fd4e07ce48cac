"""Spoiled files of every format that is read: one clear sentence, soon and in little memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.texts import words as made_up
from tests.torture.mutate import NO_FILES, put_no_file, spoil, spoiled_text
from tests.torture.processes import Child
from tests.torture.world import KEY, Tally, World

SECONDS, MEGABYTES = 5.0, 500.0
ROOT = Path(__file__).parents[2]
# The samples: what lies in a place before it is spoiled, and the command that reads it.
Read = tuple[list[Any], Path]
Sample = Callable[[World, Path, np.random.Generator], Read]


def _settings(world: World, place: Path, kind: str) -> str:
    file = place / f"{kind}.yaml"
    file.write_text(json.dumps(world.small(kind, place / "runs")))
    return str(file)


def _written(place: Path, records: list[dict[str, Any]], rng: np.random.Generator) -> Path:
    """Write records in one of the ways in which they are read."""
    ending = ("jsonl", "json", "csv", "parquet")[int(rng.integers(4))]
    file = place / f"data.{ending}"
    if ending == "json":
        file.write_text(json.dumps(records, indent=1))
    elif ending == "jsonl":
        file.write_text("\n".join(map(json.dumps, records)))
    else:
        import pandas as pd

        frame = pd.DataFrame(records)
        frame.to_csv(file, index=False) if ending == "csv" else frame.to_parquet(file)
    return file


def pairs(world: World, place: Path, rng: np.random.Generator) -> Read:
    records = [
        {"positive": f"glad {made_up(rng, 3)}", "negative": f"grim {made_up(rng, 3)}"}
        for _ in range(24)
    ]
    file = _written(place, records, rng)
    settings = _settings(world, place, "steer")
    return ["steer", settings, "--set", f"pairs.source={file}", "--dry-run"], file


def texts(world: World, place: Path, rng: np.random.Generator) -> Read:
    records = [
        {"text": f"{made_up(rng, 4)} {'ab'[n % 2]}", "label": "ab"[n % 2]} for n in range(40)
    ]
    file = _written(place, records, rng)
    settings = _settings(world, place, "probe")
    return ["probe", settings, "--set", f"data.source={file}", "--dry-run"], file


def prompts(world: World, place: Path, rng: np.random.Generator) -> Read:
    sides = {"clean": ("The cat sat on the", " m"), "corrupted": ("The dog ran on the", " h")}
    pair = {side: {"question": q, "answer": a} for side, (q, a) in sides.items()}
    file = place / "data.jsonl"
    file.write_text("\n".join([json.dumps(pair)] * 3))
    settings = _settings(world, place, "patch")
    return ["patch", settings, "--set", f"pairs.source={file}", "--dry-run"], file


def tasks(world: World, place: Path, rng: np.random.Generator) -> Read:
    file = Path(shutil.copy(ROOT / "datasets/tasks/capitals.json", place / "data.json"))
    settings = _settings(world, place, "corrupt")
    return ["corrupt", settings, "--set", f"tasks.source=[{file}]", "--dry-run"], file


def corpora(world: World, place: Path, rng: np.random.Generator) -> Read:
    file = place / f"data.{('jsonl', 'txt')[int(rng.integers(2))]}"
    lines = [made_up(rng, 20) for _ in range(30)]
    file.write_text(
        "\n".join(json.dumps({"text": line}) for line in lines)
        if file.suffix == ".jsonl"
        else "\n\n".join(lines)
    )
    settings = _settings(world, place, "train_sae")
    return ["sae", "train", settings, "--set", f"corpus=[{{path: {file}}}]", "--dry-run"], file


def settings(world: World, place: Path, rng: np.random.Generator) -> Read:
    import yaml

    kinds = {"steer": ["steer"], "probe": ["probe"], "patch": ["patch"], "compare": ["compare"]}
    kinds |= {"corrupt": ["corrupt"], "train_sae": ["sae", "train"]}
    kind = list(kinds)[int(rng.integers(len(kinds)))]
    file = place / "data.yaml"
    told = world.small(kind, place / "runs")
    file.write_text(yaml.safe_dump(told) if rng.random() < 0.6 else json.dumps(told))
    return [*kinds[kind], file, "--dry-run"], file


def sweeps(world: World, place: Path, rng: np.random.Generator) -> Read:
    file = place / "data.yaml"
    file.write_text(json.dumps(world.settings("sweep", place / "runs"), indent=1))
    return ["sweep", file, "--dry-run"], file


def agents(world: World, place: Path, rng: np.random.Generator) -> Read:
    file = place / "data.yaml"
    file.write_text(json.dumps(world.settings("agent", place / "runs"), indent=1))
    return ["agent", file, "--dry-run"], file


def overrides(world: World, place: Path, rng: np.random.Generator) -> Read:
    options = (
        "seed=3",
        "selection={min_firing: 0.7, n_features: 8}",
        "pairs.source=x.jsonl",
        'name="tiny"',
        "evaluation.multiples=[-1, 0, 1]",
        "model.name=gpt2",
    )
    word, how = spoiled_text(options[int(rng.integers(len(options)))], rng)
    (place / "how").write_text(how)
    return ["steer", _settings(world, place, "steer"), f"--set={word}", "--dry-run"], Path()


def vectors(world: World, place: Path, rng: np.random.Generator) -> Read:
    file = Path(shutil.copy(_steered(world) / "vector.safetensors", place))
    how = [
        ["vector", "show", file],
        ["generate", "Hi", "--vector", file, "--max-new-tokens", 1],
        ["vector", "export", file, place / "v.gguf"],
        ["vector", "combine", place / "out.safetensors", file],
    ]
    return how[int(rng.integers(len(how)))], file


def control_vectors(world: World, place: Path, rng: np.random.Generator) -> Read:
    asked = ["vector", "export", _steered(world)]
    made = _once(world, "gguf", lambda kept: [*asked, kept / "v.gguf", "--strength", 1])
    file = Path(shutil.copy(made / "v.gguf", place))
    return ["vector", "import", file, world.model, place / "v.safetensors"], file


def models(world: World, place: Path, rng: np.random.Generator) -> Read:
    asked = ["--max-new-tokens", 1]
    if rng.random() < 0.4:
        file = Path(shutil.copy(world.gguf, place))
        return ["generate", "Hi", "--model", file, *asked], file
    folder = Path(shutil.copytree(world.model, place / "model"))
    return ["generate", "Hi", "--model", folder, *asked], _one_of(folder, rng)


def saes(world: World, place: Path, rng: np.random.Generator) -> Read:
    folder = Path(shutil.copytree(world.sae, place / "sae"))
    file = _one_of(folder, rng)
    if rng.random() < 0.5:
        asked = ["--model", world.model, "--limit", 2, "--context", 8]
        return ["doctor", "--sae", folder, *asked], file
    return ["steer", _settings(world, place, "steer"), "--set", f"sae={folder}", "--dry-run"], file


def run_folders(world: World, place: Path, rng: np.random.Generator) -> Read:
    kind = ("steer", "probe", "patch", "corrupt")[int(rng.integers(4))]
    finished = _finished(world, kind)
    runs = Path(shutil.copytree(finished.parent, place / "runs"))
    folder = runs / finished.name
    look = ["runs", ("list", "rebuild")[int(rng.integers(2))], "--root", runs]
    again = [kind, _settings(world, place, kind)]
    ways = [look, ["runs", "show", folder.name, "--root", runs], ["features", folder], again]
    return ways[int(rng.integers(len(ways)))], _one_of(folder, rng)


def caches(world: World, place: Path, rng: np.random.Generator) -> Read:
    sort = int(rng.integers(3))
    if sort == 0:
        # What a probe has read; everything else of it is made again.
        finished = _finished(world, "probe")
        runs = Path(shutil.copytree(finished.parent, place / "runs"))
        stores = list(runs.rglob("texts-*.safetensors"))
        stores += list(runs.rglob("index.json"))
        for mark in (runs / finished.name).rglob("stages/*.json"):
            mark.unlink()
        (runs / finished.name / "metrics.json").unlink()
        return ["probe", _settings(world, place, "probe")], stores[int(rng.integers(len(stores)))]
    if sort == 1:
        asked = ["generate", "Hi", "--model", world.gguf, "--max-new-tokens", 1]
        kept = _once(world, "gguf-cache", lambda _: asked)
        shutil.copytree(kept / "cache", place / "cache")
        return asked, _one_of(place / "cache", rng)
    kept = _once(world, "labels", _import_labels)
    shutil.copytree(kept / "cache", place / "cache")
    asked = ["neuronpedia", "feature", "3", "--source", "gpt2-small/6-res-jb"]
    return asked, _one_of(place / "cache", rng)


def labels(world: World, place: Path, rng: np.random.Generator) -> Read:
    import gzip

    file = place / f"batch-0.jsonl{('', '.gz')[int(rng.integers(2))]}"
    data = _label_lines().encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return ["neuronpedia", "import", "gpt2-small/6-res-jb", file], file


FORMATS: dict[str, Sample] = {
    "pairs": pairs,
    "labelled texts": texts,
    "prompts": prompts,
    "tasks": tasks,
    "corpora": corpora,
    "settings": settings,
    "sweep files": sweeps,
    "agent files": agents,
    "--set": overrides,
    "vectors": vectors,
    "GGUF vectors": control_vectors,
    "models": models,
    "SAEs": saes,
    "run folders": run_folders,
    "caches": caches,
    "label files": labels,
}


def try_files(world: World, count: int) -> list[Tally]:
    """Read so many spoiled files; see `Tally`."""
    tallies = {sort: Tally(sort) for sort in FORMATS}

    def one(number: int) -> None:
        sort = list(FORMATS)[number % len(FORMATS)]
        rng, place = world.rng("files", number), world.place()
        words, file = FORMATS[sort](world, place, rng)
        turn = number // len(FORMATS)
        if sort == "--set":
            how = (place / "how").read_text()
        elif turn % 5 == 1 and turn // 5 < len(NO_FILES):
            # There are few of these, so all of them are tried.
            how = put_no_file(file, NO_FILES[turn // 5])
        else:
            how = spoil(file, rng)
        env = {**world.env, "SAESTEER_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
        outcome = Child(words, place, env=env).end()
        fault = outcome.fault(longest=SECONDS, megabytes=MEGABYTES)
        if KEY in outcome.out + outcome.err:
            fault = "it shows a key"
        tallies[sort].add(f"{number}, {file.name}: {how}", fault, outcome, outcome.cpu)
        if fault is None:
            shutil.rmtree(place, ignore_errors=True)

    world.each(one, range(count))
    return [tally for tally in tallies.values() if tally.tried]


def _one_of(folder: Path, rng: np.random.Generator) -> Path:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    return files[int(rng.integers(len(files)))]


def _once(world: World, name: str, words: Callable[[Path], Sequence[Any]]) -> Path:
    """A folder that a command has filled once, with a cache of its own."""
    with world.lock:
        kept = world.root / f"kept-{name}"
        if not kept.is_dir():
            kept.mkdir()
            env = {"SAESTEER_CACHE": str(kept / "cache")}
            found = world.run(words(kept), kept, env=env)
            assert found.code == 0, found
    return kept


def _finished(world: World, kind: str) -> Path:
    """A finished run's folder, below a folder of runs of its own."""
    kept = _once(world, kind, lambda kept: world.command(kind, kept))
    return next(file.parent for file in (kept / "runs").glob("*/metrics.json"))


def _steered(world: World) -> Path:
    return _finished(world, "steer")


def _label_lines() -> str:
    place = {"modelId": "gpt2-small", "layer": "6-res-jb"}
    lines = [{**place, "index": str(n), "description": f"label {n}"} for n in range(64)]
    return "\n".join(map(json.dumps, lines))


def _import_labels(kept: Path) -> list[Any]:
    file = kept / "batch-0.jsonl"
    file.write_text(_label_lines())
    return ["neuronpedia", "import", "gpt2-small/6-res-jb", file]
