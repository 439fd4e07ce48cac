"""One library's process: a JSON task a line in, a JSON answer a line out, torch on one thread.

Each `use_*.py` beside this file is what somebody would write with that library, as functions:

- `load(folder)` returns the model with its tokenizer, and `as_vector(model, raw)` the library's
  vector at LAYER's output for a list of floats: plumbing, neither timed nor counted;
- `fit(model, pairs)` returns the vector of (positive, negative) texts at their last tokens, as
  floats;
- `generate(model, prompts, vector, strength, tokens)` returns the token ids of each row, `strength`
  a multiple of the vector, added at every position;
- `strengths(model, prompt, vector, strengths, tokens)` the same of one prompt, a row a strength;
- `export(model, vector, path)` writes a GGUF control vector.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

LAYER = 10
# What a row is generated with: as many tokens as asked for, the likeliest each time.
GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 2}


def exactly(tokens: int) -> dict[str, Any]:
    """Return the arguments with which `generate` writes so many tokens, the likeliest each time."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, **GREEDY}


def serve(functions: dict[str, Any]) -> None:
    """Answer tasks until the input ends; `functions` are a module's `globals()`."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever libraries print belongs to nobody's answer.
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    model: Any = None
    vector: Any = None
    for line in sys.stdin:
        task = json.loads(line)
        name = task.pop("task")
        result: Any = None
        seconds = {"wall": 0.0, "cpu": 0.0}
        if name == "load":
            model = functions["load"](**task)
        elif name == "take":
            vector = functions["as_vector"](model, **task)
        else:
            if task.pop("steered", False):
                task["vector"] = vector
            seconds, result = _timed(functions[name], model, **task)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"seconds": seconds, "result": result, "peak_mib": peak, "versions": _versions()}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(function: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*given, **named)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "numpy")}
