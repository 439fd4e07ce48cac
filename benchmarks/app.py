"""The page of `saesteer app` over HTTP against `ss.generate`, the same rows: speed and wait."""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from typing import Any

import torch
import uvicorn
from pairing import paired_ratio

from saesteer.app.opening import open_bundled, open_sae
from saesteer.app.server import listen, make_server
from saesteer.models import load_model
from saesteer.steering import generate
from saesteer.utils.progress import terminal_progress

STRENGTHS = (0.0, 0.3)


def main() -> None:
    """Print the time to the first token, and tokens per second of both with their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress = terminal_progress()
    model = load_model(options.model)
    bench = open_bundled(model, open_sae(None, None, options.model, progress), progress)
    prompt = "How should I spend a rainy afternoon?"
    sampling = {"temperature": 0.7, "max_new_tokens": options.new_tokens, "seed": 0}
    body = {"prompt": prompt, "columns": [[0, x] for x in STRENGTHS], **sampling}
    firsts: list[float] = []
    tokens = 0
    with listen(0) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(make_server(bench, port), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        serving = threading.Thread(target=server.run, args=([listening],), daemon=True)
        serving.start()

        def page() -> None:
            nonlocal tokens
            answers, first = written(port, body)
            tokens = sum(answer["tokens"] for answer in answers)
            firsts.append(first)

        def bare() -> None:
            generate(model, prompt, bench.vector, STRENGTHS, top_p=0.9, **sampling)

        ratio = paired_ratio(page, bare, options.rounds)
        server.should_exit = True
        serving.join(20)
    print(f"app, {len(STRENGTHS)} columns, {tokens} tokens in all, {options.threads} threads")
    # The first call warms up.
    first = statistics.median(firsts[1:])
    print(f"  first token after {first:.3f} s ({min(firsts[1:]):.3f} to {max(firsts[1:]):.3f})")
    print(f"  page        {tokens / ratio.candidate:7.1f} tokens/s")
    print(f"  ss.generate {tokens / ratio.reference:7.1f} tokens/s")
    print(f"  ratio {ratio.median:.3f} (rounds {ratio.low:.3f} to {ratio.high:.3f})")
    print("wanted: first token within 0.3 s, ratio >= 0.95")


def written(port: int, body: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Return the page's answers and the seconds until the first of their text came."""
    start, first = time.perf_counter(), None
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    asking.request("POST", "/api/write", json.dumps(body), {"Content-Type": "application/json"})
    reply = asking.getresponse()
    for line in reply:
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "row" not in event:
            asking.close()
            return event["answers"], first or 0.0
        first = first or time.perf_counter() - start
    raise SystemExit("the page ended its answer early")


if __name__ == "__main__":
    main()
