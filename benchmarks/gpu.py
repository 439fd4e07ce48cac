"""Generation, reading and patching on a GPU: held to the CPU's results, then timed.

At most five minutes. `--cpu` runs the same with little of everything where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import numpy as np
import torch
from generation import a_vector, against_plain, prompt_batch, write
from pairing import paired_ratio
from patching import eight_pairs, lens_function, own_function
from reading import against_bare, text_rows

from saesteer.models import Site, load_model, plain_model
from saesteer.models.reading import read_rows
from saesteer.patching.batch import encode_pairs
from saesteer.patching.metrics import metric_named
from saesteer.steering import steer

AGREE = 1e-3


def results(model: Any, layer: int, few: bool) -> dict[str, np.ndarray]:
    """Return what has to be the same wherever the model runs."""
    site, vector = Site(layer), a_vector(model, layer)
    read = read_rows(model, text_rows(model, 2 if few else 16, 32 if few else 128), [site])
    tokens = prompt_batch(model, 2 if few else 8)
    bare: Any = plain_model(model)
    with steer(model, vector, 0.1), torch.inference_mode():
        # The last column is real in every row.
        scores = bare(**tokens.inputs).logits[:, -1].float().log_softmax(dim=-1)
    with steer(model, vector, 0.1):
        written = write(model, tokens, 4 if few else 24)
    values = read[site].values.float().numpy()
    return {
        "activations, in their standard deviations": values / values.std(),
        "steered next-token log-probabilities, nats": scores.cpu().numpy(),
        "steered greedy tokens, share that differs": written.cpu().numpy(),
        "patched logit differences, residual stream": patched(model, "resid_pre", [layer], few)(),
        "patched logit differences, heads": patched(model, "z", [layer], few)(),
    }


def patched(model: Any, component: str, layers: list[int], few: bool) -> Any:
    """Return the function that patches eight prompt pairs, or two."""
    batch = encode_pairs(model, eight_pairs("late")[: 2 if few else 8])
    return own_function(model, batch, component, layers, metric_named("logit_difference"))


def gap(here: np.ndarray, there: np.ndarray) -> float:
    """Return the largest difference, of tokens the share of those that differ."""
    if here.dtype.kind == "i":
        return float((here != there).mean())
    return float(np.abs(here - there).max())


def time_patching(model: Any, layers: list[int], few: bool) -> list[str]:
    """Time patching against transformer_lens on the same cells; return what to print."""
    batch, lines = encode_pairs(model, eight_pairs("late")[: 2 if few else 8]), []
    for component in ("resid_pre", "z"):
        own = patched(model, component, layers, few)
        lens = lens_function(model, batch, component, layers)
        ratio = paired_ratio(own, lens, 1 if few else 3)
        lines.append(
            f"patching {component}, layers {layers}: {ratio.median:.1f} times as fast as "
            f"transformer_lens ({ratio.low:.1f} to {ratio.high:.1f}), {ratio.candidate:.3f} s "
            f"against {ratio.reference:.3f} s"
        )
    return lines


def main() -> None:
    """Print what agrees, then what to write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    options = parser.parse_args()
    few, layer, started = options.cpu, options.layer, time.perf_counter()
    device = "cpu" if few else "cuda"
    if not few and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; python benchmarks/gpu.py --cpu tries the script.")
    # TensorFloat-32 keeps ten bits, with which no 1e-3 can be held.
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = results(load_model(options.model, device="cpu", dtype="float32"), layer, few)
    gc.collect()
    model = load_model(options.model, device=device, dtype="float32")
    apart = []
    for name, here in results(model, layer, few).items():
        found = gap(here, wanted[name])
        print(f"{name}: {device} against cpu {found:.1e}, wanted at most {AGREE:.0e}")
        apart += [name] if not found <= AGREE else []

    name = "cpu" if few else torch.cuda.get_device_name()
    print(f"\nto write down: {name}, torch {torch.__version__}, {options.model}")
    sizes = (1, 2) if few else (1, 8, 64, 256)
    n_layers = int(model.cfg.n_layers)
    layers = [n_layers - 2] if few else list(range(n_layers))[4::8]
    for dtype in ("float32",) if few else ("float32", "bfloat16"):
        if dtype != "float32":
            del model
            gc.collect()
            model = load_model(options.model, device=device, dtype=dtype)
        rounds, vector = 1 if few else 5, a_vector(model, layer)
        for rows in sizes:
            print(*against_plain(model, vector, rows, 4 if few else 32, rounds), sep="\n")
        texts = text_rows(model, 2 if few else 64, 32 if few else 128)
        print(*against_bare(model, texts, Site(layer), rounds), sep="\n")
        print(*time_patching(model, layers, few), sep="\n")
    if not few:
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
    print(f"{time.perf_counter() - started:.0f} s in all")
    if apart:
        raise SystemExit(f"not the CPU's: {'; '.join(apart)}.")


if __name__ == "__main__":
    main()
