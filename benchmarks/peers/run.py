"""saesteer beside its peers: the same model, pairs, prompts, tokens and thread, turn by turn.

It uses the standard library alone, because a process that another one starts counts that one's
memory as its own until it is replaced.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OWN, BARE, HAND = "saesteer", "transformers 5, unsteered", "transformers 5, by hand"
OLD, SV, REPENG = "transformers 4, unsteered", "steering-vectors 0.12.2", "repeng 0.4.0"
# Who stands in the table: the script, and the environment that it runs in ("" for ours).
WORKERS = {
    OWN: ("use_saesteer", ""),
    BARE: ("use_transformers", ""),
    HAND: ("use_transformers", ""),
    OLD: ("use_transformers", "steering-vectors"),
    SV: ("use_steering_vectors", "steering-vectors"),
    REPENG: ("use_repeng", "repeng"),
}
PEERS = (SV, REPENG)
COUNTED = ("load", "fit", "generate", "strengths")
FIT, STRENGTHS = "fit, {} pairs", "{} strengths of a prompt"
# Rows whose tokens must equal those of the hook by hand, and the cosine of two fits.
EQUAL_ROWS, EQUAL_COSINE = 0.95, 0.9999


class Size(NamedTuple):
    """How much is measured."""

    pairs: int
    rows: tuple[int, ...]
    strengths: tuple[float, ...]
    tokens: int


FULL = Size(200, (1, 8, 64), (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0), 24)
QUICK = Size(16, (1, 4), (-2.0, 2.0), 4)


class Worker:
    """A library in a process of its own."""

    def __init__(self, script: str, python: str, log: Path, clock: str) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            # For this checkout's saesteer; no peer imports it.
            "PYTHONPATH": str(ROOT),
        }
        self.log, self.clock, self.peak, self.versions = log, clock, 0.0, {}
        self._process = subprocess.Popen(
            [python, str(HERE / f"{script}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env=environment,
            text=True,
        )

    def ask(self, task: str, **given: Any) -> tuple[float, Any]:
        """Return the seconds that a task took and its result."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"task": task, **given}), file=self._process.stdin, flush=True)
            answer = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            said = (self.log.read_text(encoding="utf-8").splitlines() or ["nothing"])[-1]
            raise SystemExit(f"a peer stopped at {task!r} ({said}); see {self.log}.") from error
        self.peak, self.versions = answer["peak_mib"], answer["versions"]
        return answer["seconds"][self.clock], answer["result"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Measured:
    """Seconds of every round, and the first round's result, by task and by who did it."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def turns(
        self, what: str, who: list[str], asked: dict[str, tuple[Worker, dict]], rounds: int
    ) -> None:
        """Let everybody do a task once a round, every other round in reverse order."""
        seconds = self.seconds.setdefault(what, {name: [] for name in who})
        results = self.results.setdefault(what, {})
        for number in range(rounds):
            for name in who if number % 2 == 0 else reversed(who):
                worker, task = asked[name]
                took, result = worker.ask(**task)
                seconds[name].append(took)
                results.setdefault(name, result)
        print(f"  {what}")
        print(*(f"    {name}: {spread(took)} s" for name, took in seconds.items()), sep="\n")

    def ratio(self, what: str, name: str) -> tuple[float, float, float]:
        """Return how many times as fast saesteer is: the rounds' median, least and largest."""
        own, other = self.seconds[what][OWN], self.seconds[what][name]
        ratios = [b / a for a, b in zip(own, other, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)

    def fastest(self, what: str, names: tuple[str, ...]) -> str:
        """Return who of them has the smallest median."""
        return min(names, key=lambda name: statistics.median(self.seconds[what][name]))


def spread(seconds: list[float]) -> str:
    """Return a median with its range."""
    middle = f"{statistics.median(seconds):.2f}"
    if len(seconds) == 1:
        return middle
    return f"{middle} ({min(seconds):.2f} to {max(seconds):.2f})"


def cosine(a: list[float], b: list[float]) -> float:
    """Return the cosine of two vectors."""
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return product / math.hypot(*a) / math.hypot(*b)


def lines(path: Path, *names: str) -> list[dict[str, Any]]:
    """Return the records of a bundled data file that hold the fields."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [record for record in records if all(name in record for name in names)]


def lines_written(script: str) -> int:
    """Count what a user writes: the imports, and the bodies of what the benchmark calls."""
    text = (HERE / f"{script}.py").read_text(encoding="utf-8")
    source, counted = text.splitlines(), set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            if getattr(node, "module", "") not in ("__future__", "typing", "worker"):
                counted.update(range(node.lineno, node.end_lineno + 1))  # type: ignore[operator]
        elif isinstance(node, ast.FunctionDef) and node.name in COUNTED:
            counted.update(range(node.body[0].lineno, node.end_lineno + 1))  # type: ignore[operator]
    code = (source[number - 1].strip() for number in counted)
    return sum(bool(line) and not line.startswith("#") for line in code)


def measure(
    workers: dict[str, Worker], size: Size, rounds: int, scratch: Path
) -> tuple[Measured, list[str], dict[str, int]]:
    """Return the times, what does not agree, and the exported files' sizes."""
    pairs = [
        [pair["positive"], pair["negative"]]
        for pair in lines(ROOT / "datasets/pairs/agreeableness.jsonl", "positive", "negative")
    ][: size.pairs]
    questions = [
        f"Question: {record['question']}\nAnswer:"
        for name in ("neutral_questions", "open_questions")
        for record in lines(ROOT / f"datasets/{name}.jsonl", "question")
    ]
    measured, fits = Measured(), [OWN, HAND, *PEERS]
    for name in fits:
        workers[name].ask("fit", pairs=pairs[:4])
    what = FIT.format(len(pairs))
    asked = {name: (workers[name], {"task": "fit", "pairs": pairs}) for name in fits}
    measured.turns(what, fits, asked, min(rounds, 3))
    found = measured.results[what]
    _, pca = workers[OWN].ask("fit_pca", pairs=pairs)
    wrong = []
    for name in fits[1:]:
        same = cosine(found[name], pca if name == REPENG else found[OWN])
        print(f"    cosine of {name} with saesteer's: {same:.6f}")
        if same < EQUAL_COSINE:
            wrong.append(f"the vector of {name} has cosine {same:.4f} with saesteer's.")

    for name in fits:
        workers[name].ask("take", raw=found[OWN])
    steered, free = {"task": "generate", "steered": True, "strength": 2.0}, {"task": "unsteered"}
    for rows in size.rows:
        given = {"prompts": questions[:rows], "tokens": size.tokens}
        what, everybody = f"{rows} row{'s' * (rows > 1)}", [OWN, BARE, OLD, *PEERS]
        asked = {
            name: (workers[name], (free if name in (BARE, OLD) else steered) | given)
            for name in everybody
        }
        if rows == size.rows[0]:
            for worker, task in asked.values():
                worker.ask(**task)
        measured.turns(what, everybody, asked, rounds if rows < 32 else min(rounds, 3))
        _, wanted = workers[HAND].ask(**steered | given)
        found = measured.results[what]
        for name in (OWN, *PEERS):
            wrong += differing(f"{what}, {name}", found[name], wanted)
        wrong += differing(f"{what}, {OLD}", found[OLD], found[BARE])

    given = {
        "task": "strengths",
        "steered": True,
        "prompt": questions[0],
        "strengths": size.strengths,
        "tokens": size.tokens,
    }
    what = STRENGTHS.format(len(size.strengths))
    measured.turns(what, fits, {name: (workers[name], given) for name in fits}, rounds)
    found = measured.results[what]
    for name in (OWN, *PEERS):
        wrong += differing(f"{what}, {name}", found[name], found[HAND])

    sizes = {}
    for name in (OWN, REPENG):
        path = scratch / "vector.gguf"
        workers[name].ask("export", steered=True, path=str(path))
        sizes[name] = path.stat().st_size
    return measured, wrong, sizes


def differing(what: str, rows: list[list[int]], wanted: list[list[int]]) -> list[str]:
    """Say how many rows have the wanted tokens; return a sentence if too few have."""
    equal = sum(a == b for a, b in zip(rows, wanted, strict=True))
    print(f"    {what}: {equal} of {len(wanted)} rows have the expected tokens")
    if equal >= EQUAL_ROWS * len(wanted):
        return []
    return [f"{what}: {len(wanted) - equal} of {len(wanted)} rows have other tokens."]


def verdicts(measured: Measured, size: Size) -> list[str]:
    """Return how saesteer did, beside what was wanted."""
    said = []
    what = FIT.format(size.pairs)
    fastest = measured.fastest(what, (HAND, *PEERS))
    said.append((what, fastest, "1"))
    said += [(f"{rows} row{'s' * (rows > 1)}", BARE, "0.98") for rows in size.rows]
    what = STRENGTHS.format(len(size.strengths))
    said.append((what, measured.fastest(what, PEERS), "3"))
    sentences = []
    for what, name, wanted in said:
        median, low, high = measured.ratio(what, name)
        sentences.append(
            f"{what}: {median:.2f} times ({low:.2f} to {high:.2f}) as fast as {name}; "
            f"wanted {wanted}"
        )
    return sentences


def table(measured: Measured, workers: dict[str, Worker], sizes: dict[str, int]) -> str:
    """Return the table as Markdown: a row a library, seconds with their range."""
    heads = ["", *measured.seconds, "GGUF, bytes", "peak memory, MiB", "lines"]
    rows = []
    for name, (script, _) in WORKERS.items():
        times = [by.get(name) for by in measured.seconds.values()]
        counted = str(lines_written(script)) if name not in (BARE, OLD) else ""
        rows.append(
            [
                name,
                *(spread(seconds) if seconds else "" for seconds in times),
                str(sizes.get(name, "")),
                f"{workers[name].peak:.0f}" if name != HAND else "",
                counted,
            ]
        )
    body = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in body)


def patching() -> list[str]:
    """Return what benchmarks/patching.py says of saesteer beside transformer_lens.patching."""
    command = [sys.executable, str(HERE.parent / "patching.py"), "--pairs", "late"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"benchmarks/patching.py failed: {done.stderr.splitlines()[-1]}")
    return done.stdout.splitlines()


def main() -> None:
    """Take turns, say what agrees, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--out", type=Path, help="the Markdown file (peers.md beside them)")
    parser.add_argument("--rounds", type=int, default=5, help="3 at most of what takes long")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu is the process's own time, which a busy machine hardly changes",
    )
    parser.add_argument("--quick", action="store_true", help="a trial: little, once, no patching")
    options = parser.parse_args()
    size, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    out = options.out or options.environments / "peers.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    python = {"": sys.executable}
    for name in ("steering-vectors", "repeng"):
        python[name] = str(options.environments / name / "bin" / "python")
        if not Path(python[name]).exists():
            raise SystemExit(f"{python[name]} is not there; run make bench-peers.")
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        write = [sys.executable, str(HERE / "model_folder.py"), str(scratch / "model")]
        subprocess.run(write, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        workers: dict[str, Worker] = {}
        for number, (name, (script, place)) in enumerate(WORKERS.items()):
            if name == HAND:
                workers[name] = workers[BARE]
                continue
            log = out.parent / f"worker-{number}.log"
            workers[name] = Worker(script, python[place], log, options.clock)
            workers[name].ask("load", folder=str(scratch / "model"))
            print(f"{name}: {workers[name].versions}, {workers[name].peak:.0f} MiB loaded")
        measured, wrong, sizes = measure(workers, size, rounds, scratch)
        text = table(measured, workers, sizes)
        for worker in workers.values():
            worker.close()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{used.ru_utime + used.ru_stime:.0f} s of processor time so far")
    said = verdicts(measured, size) + ([] if options.quick else patching())
    notes = "\n".join(f"- {sentence.strip()}" for sentence in [*said, *wrong])
    head = (
        f"SmolLM2-135M-Instruct, float32, one thread of {platform.machine()}, {size.tokens} new "
        f"tokens a row; seconds ({options.clock}), median of the rounds with their range.\n"
    )
    out.write_text(f"{head}\n{text}\n\n{notes}\n", encoding="utf-8")
    print(f"\n{notes}\n\nThe whole table is in {out}; it goes into benchmarks/README.md.")
    if wrong:
        raise SystemExit("results do not agree; see the last lines above.")


if __name__ == "__main__":
    main()
