"""Completions a second of the three engines: same prompts, same vector, turn by turn in one run.

The server is llama.cpp from the wheel xllamacpp, in this process and on loopback, with the bundled
model's own GGUF file, weights packed, and the vector baked in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from saesteer.data import read_questions
from saesteer.models import Site, load_model, model_info
from saesteer.steering import SteeringVector, generate
from saesteer.steering.bake import bake_gguf
from saesteer.steering.engines.base import EVERYWHERE, Engine
from saesteer.steering.engines.local import TransformersEngine
from saesteer.steering.engines.openai import OpenAIEngine
from saesteer.steering.engines.paged import PagedEngine
from saesteer.steering.engines.settings import EngineSettings


def main() -> None:
    """Print completions a second of each, and how many texts are the first one's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Continuous batching runs in a thread of its own, which asks the environment.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["NO_PROXY"] = "127.0.0.1"
    model = load_model("smollm2", dtype=options.dtype)
    vector = SteeringVector.from_raw(
        torch.randn(int(model.cfg.d_model), generator=torch.Generator().manual_seed(0)),
        site=Site(options.layer),
        model="smollm2",
        model_fingerprint=model_info(model).fingerprint,
        residual_norm=60.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        baked = bake_gguf("smollm2", vector, 0.3, Path(folder) / "baked")
        server = _served(next(baked.glob("*.gguf")), options)
        asked: dict[str, Any] = {"name": "openai", "server": f"{server.listening_address}/v1"}
        engines: dict[str, Engine] = {
            "transformers": TransformersEngine(model),
            "paged": PagedEngine(model),
            "openai": OpenAIEngine(model, EngineSettings(**asked)),
        }
        prompts = read_questions("neutral_questions")[: options.prompts]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        texts: dict[str, list[str]] = {}
        # The first round warms up, and has the server show what it serves.
        for number in range(options.rounds + 1):
            for name, engine in engines.items():
                start = time.perf_counter()
                result = generate(
                    model,
                    prompts,
                    vector,
                    0.3,
                    positions=EVERYWHERE,
                    max_new_tokens=options.new_tokens,
                    engine=engine,
                )
                if number:
                    seconds[name].append(time.perf_counter() - start)
                texts[name] = [record.text for record in result.records]
        del server
    dtype = str(next(model.original_model.parameters()).dtype).removeprefix("torch.")
    print(
        f"engines, {options.prompts} prompts of {min(map(len, prompts))} to "
        f"{max(map(len, prompts))} characters, {options.new_tokens} tokens, {options.threads} "
        f"threads, {dtype}; llama.cpp with its weights packed"
    )
    for name, taken in seconds.items():
        rates = sorted(options.prompts / one for one in taken)
        same = sum(a == b for a, b in zip(texts[name], texts["transformers"], strict=True))
        print(
            f"  {name:13} {statistics.median(rates):6.2f} completions/s "
            f"({rates[0]:.2f} to {rates[-1]:.2f}); {same} of {options.prompts} texts the same"
        )


def _served(file: Path, options: argparse.Namespace) -> Any:
    llama_cpp: Any = xllamacpp
    settings = llama_cpp.CommonParams()
    settings.model.path, settings.port = str(file), 0
    settings.n_parallel, settings.n_ctx, settings.n_gpu_layers = 8, 8 * 512, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    return llama_cpp.Server(settings)


if __name__ == "__main__":
    main()
