"""Which heads to look at, and the page of their attention patterns."""

from __future__ import annotations

import numpy as np

from saesteer.experiments.patch.cells import Job, load_job
from saesteer.experiments.patch.context import PatchContext
from saesteer.experiments.patch.reading import DIRECT, strongest_rows
from saesteer.experiments.patch.results import PatchResults

ATTENTION = "attention.html"


def run_attention(bench: PatchContext) -> None:
    """Write the page of the chosen or strongest heads' attention patterns."""
    from saesteer.patching.reading.attention_view import attention_views, write_attention_page

    settings = bench.plan.config.attention
    if settings is None or bench.folder.has(ATTENTION):
        return
    heads = strongest_heads(bench, settings.n_heads) if settings.heads is None else settings.chosen
    if not heads:
        bench.progress.say(
            "  attention patterns left out: no head was patched; name attention.heads"
        )
        return
    pairs = range(min(settings.prompts, len(bench.batch)))
    title = f"{bench.plan.config.name}: attention patterns"
    # Some attention never forms its patterns; everything else of the run stands without them.
    with bench.leaving_out("attention patterns"):
        views = attention_views(bench.model, bench.batch, heads, pairs=pairs)
        bench.folder.write(ATTENTION, lambda draft: write_attention_page(views, draft, title=title))


def strongest_heads(bench: PatchContext, most: int) -> list[tuple[int, int]]:
    """Return the heads of the largest effect by what was patched, or by direct attribution."""
    config = bench.plan.config
    for method in ("activation", "integrated_gradients", "attribution"):
        result = load_job(bench.folder, Job(method, "z", config.modes[0]))
        if result is not None:
            origin = result.corrupted if result.mode == "denoising" else result.clean
            size = np.abs(np.nanmean(result.values - origin[:, None, None], axis=0))
            order = np.argsort(-size, axis=None, kind="stable")[:most]
            places = [divmod(int(place), size.shape[1]) for place in order]
            return [(int(result.coords["layer"][layer]), head) for layer, head in places]
    table = PatchResults(bench.folder).table(DIRECT)
    if table is None:
        return []
    return [(row["layer"], row["head"]) for row in strongest_rows(table, most)]
