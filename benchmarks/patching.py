"""Activation patching against transformer_lens.patching on the same cells, turn by turn."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pairing import paired_ratio

from saesteer.models import load_model
from saesteer.patching.batch import PairBatch, direction_of, encode_pairs
from saesteer.patching.engine.rows import Rows, plan_rows
from saesteer.patching.metrics import Metric, metric_named
from saesteer.patching.pairs import PromptPair
from saesteer.patching.patcher import activation_patching

FRAMES = (
    ("When{A} and{B} went to the shops,{S} gave the bag to", " John", " Mary"),
    ("When{A} and{B} went to the park,{S} gave the ball to", " Tom", " James"),
    ("When{A} and{B} went to the shops,{S} gave an apple to", " Dan", " Sid"),
    ("After{A} and{B} went to the park,{S} gave a drink to", " Martin", " Amy"),
)
WANTED = {"resid_pre": 5.0, "z": 4.0}
MOST_MEMORY = 1.5


def eight_pairs(kind: str) -> list[PromptPair]:
    """Return 8 pairs: "late" differ in the second subject alone, "early" in every name."""
    pairs = []
    for frame, a, b in FRAMES:
        for subject, other in ((a, b), (b, a)):
            clean = frame.format(A=a, B=b, S=subject)
            late = frame.format(A=a, B=b, S=other)
            early = frame.format(A=b, B=a, S=other)
            pairs.append(PromptPair(clean, late if kind == "late" else early, other, subject))
    return pairs


def lens_function(
    model: Any, batch: PairBatch, component: str, layers: list[int]
) -> Callable[[], np.ndarray]:
    """Return what transformer_lens.patching needs for the cells, its clean run included."""
    from transformer_lens import patching

    heads = component == "z"
    setter = patching.layer_head_vector_patch_setter if heads else patching.layer_pos_patch_setter
    count = int(model.cfg.n_heads) if heads else batch.width
    cells = pd.DataFrame([(i, j) for i in layers for j in range(count)], columns=["layer", "at"])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return (last.gather(1, batch.right[:, None]) - last.gather(1, batch.wrong[:, None])).mean()

    def run() -> np.ndarray:
        with torch.no_grad():
            _, cache = model.run_with_cache(batch.clean)
            values = patching.generic_activation_patch(
                model, batch.corrupted, cache, metric, setter, component, index_df=cells
            )
        return values.float().cpu().numpy().reshape(len(layers), count)

    return run


def own_function(
    model: Any, batch: PairBatch, component: str, layers: list[int], metric: Metric
) -> Callable[[], np.ndarray]:
    """Return the same from saesteer."""

    def run() -> np.ndarray:
        result = activation_patching(model, batch, component, metric, layers=layers)
        return result.mean(normalised=False)

    return run


def planned(model: Any, batch: PairBatch, component: str, layers: list[int]) -> Rows:
    """Return the patched rows that can differ from the unpatched run."""
    fresh = direction_of(batch, "denoising").fresh[:, :, None].numpy()
    depth = np.asarray(layers)
    if component == "z":
        heads = np.arange(int(model.cfg.n_heads))
        return plan_rows((len(batch), len(layers), len(heads)), depth, heads, None, fresh)
    columns = np.arange(batch.width)
    shape = (len(batch), len(layers), 1, len(columns))
    return plan_rows(shape, depth, columns[:0], columns, fresh)


def floor_operations(model: Any, rows: Rows, width: int) -> float:
    """Return the floating-point operations of the matrix products that the rows cannot do without.

    Columns from the patched one on, blocks from the patched one on; behind the last block only
    keys and values of all columns. Attention's own products, norms and logits are left out.
    """
    from saesteer.models import plain_model
    from saesteer.patching.target import find_target

    mapping: Any = model.adapter.component_mapping
    plain = plain_model(model)
    blocks: Any = plain.get_submodule(mapping["blocks"].name)
    block = sum(p.numel() for p in blocks[0].parameters() if p.ndim == 2)
    target = find_target(model, "k", 0)
    if target is None or target.width is not None:
        raise SystemExit("the floor is counted for models with separate keys and values alone")
    module: Any = target.module
    keys = 2 * module.weight.numel()
    tokens = width - rows.column
    full = (len(blocks) - 1 - rows.layer) * tokens * block
    return float(2 * (full + tokens * keys + (block - keys)).sum())


def product_rate(width: int, dtype: torch.dtype) -> float:
    """Return the operations per second of a matrix product of the model's own size."""
    x, w = torch.randn(512, width).to(dtype), torch.randn(3 * width, width).to(dtype)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return 2 * x.numel() * len(w) / float(np.median(times))


def peak_memory(options: argparse.Namespace, side: str) -> tuple[float, float]:
    """Return a process's memory with the model loaded and at the most while patching, in MiB."""
    command = [sys.executable, __file__, "--memory-of", side, "--model", options.model]
    command += ["--threads", str(options.threads), "--dtype", options.dtype]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = json.loads(out.splitlines()[-1])
    return before, after


def measure_memory(options: argparse.Namespace, model: Any) -> None:
    """Patch on one side alone and print the process's memory before and its largest since."""
    batch = encode_pairs(model, eight_pairs("early"))
    # Loading a model takes more than running it: the high-water mark starts anew here.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    for component in WANTED:
        if options.memory_of == "lens":
            # One cell after another: more of them need no more memory.
            lens_function(model, batch, component, [0])()
        else:
            metric = metric_named("logit_difference")
            own_function(model, batch, component, [10, 12, 14, 16, 18], metric)()
    print(json.dumps([before, resident("VmHWM")]))


def resident(field: str) -> float:
    """Return a field of Linux's record of this process's memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def compare(options: argparse.Namespace, model: Any, kind: str) -> None:
    """Time both sides on one set of pairs."""
    batch = encode_pairs(model, eight_pairs(kind))
    layers = list(range(int(model.cfg.n_layers)))[options.every // 2 :: options.every]
    rate = product_rate(int(model.cfg.d_model), model.cfg.dtype)
    print(f"{len(batch)} pairs that differ {kind}, {batch.width} columns, layers {layers}")
    for component in options.components:
        wanted, metric = WANTED[component], metric_named("logit_difference")
        own = own_function(model, batch, component, layers, metric)
        lens = lens_function(model, batch, component, layers)
        gap = np.abs(own() - lens()).max()
        ratio = paired_ratio(own, lens, options.rounds)
        rows = planned(model, batch, component, layers)
        floor = floor_operations(model, rows, batch.width)
        print(
            f"  {component}: {ratio.median:.1f} times as fast (rounds {ratio.low:.1f} to "
            f"{ratio.high:.1f}; wanted {wanted:.0f}), {ratio.candidate:.2f} s against "
            f"{ratio.reference:.2f} s; largest difference {gap:.1e}"
        )
        print(
            f"    {len(rows)} rows, floor {floor / 1e9:.0f} GFLOP = {floor / rate:.2f} s at this "
            f"machine's {rate / 1e9:.0f} GFLOP/s; {ratio.candidate * rate / floor:.2f} floors"
        )


def main() -> None:
    """Print the ratios in time and in memory, and the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=8, help="patch every n-th layer")
    parser.add_argument("--pairs", nargs="+", choices=["late", "early"], default=["late", "early"])
    parser.add_argument("--components", nargs="+", choices=list(WANTED), default=list(WANTED))
    parser.add_argument("--memory-of", choices=["own", "lens"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=options.dtype)
    if options.memory_of:
        measure_memory(options, model)
        return
    print(f"{options.model}, {options.dtype}, {options.threads} thread(s), {options.rounds} rounds")
    for kind in options.pairs:
        compare(options, model, kind)
    if not Path("/proc/self/clear_refs").exists():
        print("memory: measured on Linux alone")
        return
    (loaded, own), (_, lens) = (peak_memory(options, side) for side in ("own", "lens"))
    print(
        f"memory: {own:.0f} MiB against {lens:.0f} MiB at the most, {own / lens:.2f} times (wanted "
        f"at most {MOST_MEMORY}); the loaded model alone {loaded:.0f} MiB"
    )


if __name__ == "__main__":
    main()
