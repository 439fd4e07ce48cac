"""Reading every layer of many texts against bare passes over the same texts, and fitting a probe.

    python benchmarks/probes.py [--texts 600] [--threads 2] [--rounds 7]

Both sides run the same batches. The bare pass is the Hugging Face model without its unembedding,
which reading has no need of either: the sterner comparison. The whole model stands beside it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairing import paired_ratio

from saesteer.data.labelled import read_labelled
from saesteer.models import load_model, plain_model
from saesteer.models.tokens import length_sorted_batches, pad_rows, padding_id
from saesteer.probes.fitting import FitSettings, fit_probe
from saesteer.probes.reading import (
    ReadSettings,
    encode_labelled,
    length_chunks,
    probe_sites,
    read_layers,
)


def main() -> None:
    """Print the cost of reading all layers, and of fitting thirty probes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--source", default="sentiment")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fit-texts", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reading(options)
    fitting(options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")


def reading(options: argparse.Namespace) -> None:
    """Print the ratio of reading to bare passes."""
    model = load_model(options.model)
    settings = ReadSettings()
    texts = read_labelled(options.source).texts[: options.texts]
    rows = encode_labelled(model.tokenizer, texts, settings)  # type: ignore[arg-type]
    sites = probe_sites(int(model.cfg.n_layers), settings)
    whole = plain_model(model)
    bare = whole.base_model
    pad = padding_id(model)
    batches = []
    for chunk in length_chunks(rows, len(sites) * int(model.cfg.d_model)):
        own = [rows[i] for i in chunk]
        for batch in length_sorted_batches(own, max_tokens=2048):
            inputs = pad_rows([own[i] for i in batch], pad, "cpu", side="right").inputs
            batches.append(inputs)

    def passes(reference: Any) -> None:
        with torch.inference_mode():
            for inputs in batches:
                reference(**inputs, use_cache=False)

    tokens = sum(map(len, rows))
    print(
        f"reading {len(sites)} layers of {len(rows)} texts ({tokens} tokens), {options.threads} "
        f"threads, {str(bare.dtype).removeprefix('torch.')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, reference in (("without unembedding", bare), ("whole", whole)):
            ratio = paired_ratio(
                # A folder of its own each time, or what is there would be read back.
                lambda: read_layers(
                    model, rows, sites, Path(tempfile.mkdtemp(dir=folder)), settings
                ),
                lambda r=reference: passes(r),
                options.rounds,
            )
            # How much longer reading takes: the inverse of how fast it is.
            low, high = 1 / ratio.high, 1 / ratio.low
            print(f"  saesteer {tokens / ratio.candidate:.0f} tokens/s")
            print(f"  Hugging Face, {name}: {tokens / ratio.reference:.0f} tokens/s")
            print(
                f"  cost {1 / ratio.median:.3f} times (rounds {low:.3f} to {high:.3f}); wanted "
                "<= 1.15"
            )


def fitting(options: argparse.Namespace) -> None:
    """Print how long a probe takes on made-up activations of the real size."""
    rng = np.random.default_rng(0)
    n, width = options.fit_texts, 576
    labels = np.arange(n) % 3
    x = rng.normal(size=(n, width)) + 0.25 * rng.normal(size=(3, width))[labels]
    start = time.perf_counter()
    fit_probe(x.astype(np.float32), labels, np.arange(n), FitSettings())
    seconds = time.perf_counter() - start
    print(
        f"fitting on {n:,} texts of width {width}, 4 strengths in 3 folds: {seconds:.1f} s a "
        f"probe, {30 * seconds / 60:.1f} minutes for 30"
    )


if __name__ == "__main__":
    main()
