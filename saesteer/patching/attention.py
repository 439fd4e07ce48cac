"""Attention patterns of chosen heads, and a page that shows them and opens offline.

The drawing is circuitsvis's own. Its Python side asks the network where to load its script from,
so the script that comes in its wheel is put into the page instead.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from saesteer.models.hooks import keeping
from saesteer.models.sites import bridge_target
from saesteer.patching.batch import PairBatch, Side
from saesteer.patching.target import check_bridge_alike, check_heads, site_of
from saesteer.utils.errors import ConfigError, HookError, SiteError

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#1f2328;background:#fff}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2.5rem}"
    "p{color:#57606a}"
)


class AttentionView(NamedTuple):
    """One prompt's attention patterns."""

    name: str
    tokens: tuple[str, ...]  # Padding left out.
    heads: tuple[tuple[int, int], ...]  # Layer and head.
    # How much each token (row) attends to each token (column); rows sum to 1.
    patterns: Float[np.ndarray, "head to from"]


def attention_views(
    model: Any,
    batch: PairBatch,
    heads: Sequence[tuple[int, int]],
    *,
    side: Side = "clean",
    pairs: Sequence[int] = (0,),
) -> tuple[AttentionView, ...]:
    """Read attention patterns of some pairs' prompts.

    Raises:
        ConfigError: The model has no such head.
        SiteError: It keeps no patterns, or its bridge computes another model.
    """
    check_heads(model, heads)
    check_bridge_alike(model, "the attention")
    sites = {layer: site_of("pattern", layer) for layer in sorted({at for at, _ in heads})}
    hooks = model.hook_dict
    absent = [site for site in sites.values() if str(site) not in hooks]
    if absent:
        raise SiteError(
            f"site {absent[0]}: {model.cfg.model_name} has no attention pattern there; choose "
            "another layer."
        )
    targets = {layer: bridge_target(model, site) for layer, site in sites.items()}
    ids, mask = batch.side(side)
    views = []
    for number in pairs:
        # One prompt at a time and without padding, so nothing has to be masked or cut away.
        real = mask[number]
        try:
            with torch.no_grad(), keeping(targets) as kept:
                model.original_model(input_ids=ids[number][real][None], use_cache=False)
        except HookError as error:
            raise SiteError(
                f"the attention of {model.cfg.model_name} keeps no pattern; choose another model."
            ) from error
        patterns = [kept[layer][0, head].float().cpu().numpy() for layer, head in heads]
        tokens = batch.words(side)[number][batch.width - int(real.sum()) :]
        name = batch.names[number]
        views.append(AttentionView(name, tokens, tuple(heads), np.stack(patterns)))
    return tuple(views)


def attention_page(views: Sequence[AttentionView], *, title: str = "Attention patterns") -> str:
    """Return a page of HTML that holds everything it needs."""
    sections, calls = [], []
    for number, view in enumerate(views):
        place = f"view-{number}"
        sections.append(f'<h2>{html.escape(view.name)}</h2><div id="{place}"></div>')
        props = {
            "tokens": list(view.tokens),
            "attention": np.round(view.patterns.astype(float), 4).tolist(),
            "attentionHeadNames": [f"{layer}.{head}" for layer, head in view.heads],
            "maskUpperTri": True,
        }
        calls.append(f'CircuitsVis.render("{place}",CircuitsVis.AttentionHeads,{_inline(props)});')
    shown = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{shown}</title><style>{_STYLE}</style></head><body><h1>{shown}</h1>"
        "<p>Each row is a token and shows how much it attends to the tokens before it. Click a "
        "head to see it large, hover for the numbers.</p>"
        f"{''.join(sections)}<script>{_bundle()}</script>"
        f"<script>{''.join(calls)}</script></body></html>\n"
    )


def _bundle() -> str:
    spec = find_spec("circuitsvis")
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent
    script = None if found is None else found / "dist" / "cdn" / "iife.js"
    if script is None or not script.is_file():
        raise ConfigError(
            "attention pages are drawn by circuitsvis, which is not installed here; install "
            "saesteer again, or: pip install circuitsvis"
        )
    text = script.read_text(encoding="utf-8").replace("</script", "<\\/script")
    # The map lies beside the wheel's script, not beside the page.
    return text.split("//# sourceMappingURL=")[0]


def _inline(props: dict[str, Any]) -> str:
    text = json.dumps(props, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
