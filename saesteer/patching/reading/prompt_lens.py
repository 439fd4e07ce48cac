"""The logit lens on plain prompts, which have no right and wrong answer: the model's own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saesteer.models.loading import plain_model
from saesteer.models.tokens import encode_texts, input_device
from saesteer.patching.prompts.batch import PairBatch, token_text
from saesteer.patching.prompts.pairs import PromptPair
from saesteer.patching.reading.answers import answer_logits
from saesteer.patching.reading.lens import logit_lens
from saesteer.utils.text import said


@dataclass(frozen=True)
class PromptReading:
    """One prompt, read at every layer and sub-layer.

    Attributes:
        prompt: The prompt.
        tokens: Its tokens, BOS included.
        answer: The token that the model finds most likely behind it.
        other: The runner-up.
        points: Where it was read, such as "3 resid_post".
        top: The most likely tokens by [point][token], best first.
        rank: The answer's rank behind the last token at each point; 0 is the most likely.
        probability: The answer's probability there.
        margin: Its logit less the runner-up's there.
    """

    prompt: str
    tokens: tuple[str, ...]
    answer: str
    other: str
    points: tuple[str, ...]
    top: tuple[tuple[tuple[str, ...], ...], ...]
    rank: tuple[int, ...]
    probability: tuple[float, ...]
    margin: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it: the reading behind the last token, point by point."""
        return {
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "answer": self.answer,
            "runner_up": self.other,
            "points": [
                {
                    "point": point,
                    "top": list(self.top[i][-1]),
                    "rank": self.rank[i],
                    "probability": self.probability[i],
                    "margin": self.margin[i],
                }
                for i, point in enumerate(self.points)
            ],
        }


def read_prompts(
    model: Any, prompts: Sequence[str], *, top_k: int = 3, prepend_bos: bool = True
) -> list[PromptReading]:
    """Read prompts at every layer, sub-layer and token.

    Args:
        model: A bridge from `load_model`.
        prompts: The prompts.
        top_k: How many of the most likely tokens to keep.
        prepend_bos: Whether they start with BOS.

    Raises:
        DataError: A prompt is longer than the model's context.
        ConfigError: `top_k` is above the vocabulary's size.
    """
    rows = encode_texts(
        model.tokenizer,
        prompts,
        prepend_bos=prepend_bos,
        max_length=int(model.cfg.n_ctx),
        what="prompt",
    )
    return [_read(model, prompt, row.ids, top_k) for prompt, row in zip(prompts, rows, strict=True)]


def _read(model: Any, prompt: str, tokens: Sequence[int], top_k: int) -> PromptReading:
    device = input_device(plain_model(model))
    ids = torch.tensor([list(tokens)], device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    best = answer_logits(model, ids, mask)[0].topk(2).indices.tolist()
    answer, other = (token_text(model.tokenizer, token) for token in best)
    words = tuple(token_text(model.tokenizer, token) for token in tokens)
    batch = PairBatch(
        pairs=(PromptPair(prompt, prompt, answer, other, "prompt"),),
        clean=ids,
        corrupted=ids,
        clean_mask=mask,
        corrupted_mask=mask,
        to_clean=torch.arange(len(words), device=device)[None],
        right=torch.tensor(best[:1], device=device),
        wrong=torch.tensor(best[1:], device=device),
        clean_words=(words,),
        corrupted_words=(words,),
        answers=((answer, other),),
    )
    found = logit_lens(model, batch, every_position=True, top_k=top_k)
    return PromptReading(
        prompt=prompt,
        tokens=words,
        answer=answer,
        other=other,
        points=found.labels,
        top=found.top[0],
        rank=tuple(found.right_rank[0, :, -1].tolist()),
        probability=tuple(found.right_probability[0, :, -1].tolist()),
        margin=tuple(found.logit_difference[0, :, -1].tolist()),
    )


def lens_page(readings: Sequence[PromptReading], model: str) -> str:
    """Return a page with the most likely next token at every layer and token, offline."""
    import html

    def shown(text: object) -> str:
        return html.escape(said(text))

    parts = []
    for reading in readings:
        head = "".join(f"<th>{shown(token)}</th>" for token in reading.tokens)
        lines = []
        for i in reversed(range(len(reading.points))):
            cells = "".join(
                f'<td title="{shown(" | ".join(top))}"'
                f"{' class=own' if top and top[0] == reading.answer else ''}>"
                f"{shown(top[0] if top else '')}</td>"
                for top in reading.top[i]
            )
            lines.append(f"<tr><th>{shown(reading.points[i])}</th>{cells}</tr>")
        parts.append(
            f"<h2>{shown(reading.prompt)}</h2><p>The model goes on with <b>"
            f"{shown(reading.answer)}</b>.</p><div><table><tr><th></th>{head}</tr>"
            f"{''.join(lines)}</table></div>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv='
        "\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Logit lens: {shown(model)}</title><style>body{{font:14px/1.4 system-ui,sans-serif;"
        "margin:2rem;color:#1f2630}div{overflow-x:auto}table{border-collapse:collapse;font-size:"
        "12px}td,th{border:1px solid #e3e6eb;padding:2px 6px;white-space:pre;text-align:left}th{"
        "color:#5c6675;font-weight:500}td.own{background:#d5ecdc}</style></head><body>"
        f"<h1>Logit lens: {shown(model)}</h1><p>Each row reads as if the model ended there; hover "
        "for the runners-up. Green is the model's final answer.</p>"
        f"{''.join(parts)}</body></html>\n"
    )
