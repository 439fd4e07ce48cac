"""A whole family of "keep k" programs against its blocks and unembeddings run bare.

    python benchmarks/corruption.py [--rows 24] [--threads 1] [--rounds 9]

The candidate scores every answer token of one batch under all n + 1 programs. The reference does
the arithmetic alone: one pass through the n blocks, and n + 1 unembeddings at the positions scored.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from pairing import paired_ratio

from saesteer.corruption.family import family_states
from saesteer.corruption.measure import score_task
from saesteer.corruption.program import make_family
from saesteer.corruption.tasks import TaskRows, load_tasks, task_rows
from saesteer.models import load_model, plain_model
from saesteer.models.tokens import pad_rows, padding_id


def main() -> None:
    """Print the cost of a family over the cost of its arithmetic, for several tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tasks", nargs="*", default=["opposites", "json_completion", "addition"])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=options.dtype)
    for task in load_tasks(options.tasks):
        rows = task_rows(
            model.tokenizer,  # type: ignore[arg-type]
            task,
            shots=options.shots,
            max_questions=options.rows,
        )
        measure(model, rows, options)


def measure(model: Any, rows: TaskRows, options: argparse.Namespace) -> None:
    """Print one task's ratio."""
    n_layers = int(model.cfg.n_layers)
    programs = make_family("keep", n_layers).programs
    plain: Any = plain_model(model)
    batch = pad_rows(rows.rows, padding_id(model), "cpu", side="right")
    chosen = torch.roll(batch.span, -1, dims=1)
    chosen[:, -1] = False
    with torch.inference_mode():
        state = plain.base_model(**batch.inputs, use_cache=False).last_hidden_state[chosen]

    def arithmetic() -> None:
        with torch.inference_mode():
            plain.base_model(**batch.inputs, use_cache=False)
            for _ in range(n_layers + 1):
                plain.lm_head(state)

    def family() -> None:
        # The last program is the intact model; score_task would put another before it.
        score_task(model, programs[::-1], rows, top=0, max_tokens=10**9)

    def blocks() -> None:
        family_states(model, programs, batch, chosen)

    def bare_blocks() -> None:
        with torch.inference_mode():
            plain.base_model(**batch.inputs, use_cache=False)

    dtype = str(plain.dtype).removeprefix("torch.")
    print(
        f"{rows.task}: {len(rows.rows)} rows, {batch.input_ids.numel()} positions, "
        f"{int(chosen.sum())} scored, {n_layers + 1} programs, {options.threads} threads, {dtype}"
    )
    for name, candidate, reference in (
        ("scored family against blocks and unembeddings", family, arithmetic),
        ("states of the family against the blocks", blocks, bare_blocks),
    ):
        ratio = paired_ratio(candidate, reference, options.rounds)
        low, high = 1 / ratio.high, 1 / ratio.low
        print(
            f"  {name}: {ratio.candidate:.3f} s against {ratio.reference:.3f} s, "
            f"{1 / ratio.median:.3f} times (rounds {low:.3f} to {high:.3f}); wanted <= 1.3"
        )


if __name__ == "__main__":
    main()
