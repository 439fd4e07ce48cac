"""Whether a model and an SAE belong together, measured on text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saesteer.activations.reading import read_rows
from saesteer.errors import DataError, MismatchError
from saesteer.models.sites import HookTarget, resolve_target
from saesteer.models.tokens import (
    TokenBatch,
    TokenRow,
    encode_texts,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.progress import Progress
from saesteer.saes.adapter import Sae, check_compatible

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

REFUSED_BELOW = 0.2
FEWEST_TOKENS = 64


@dataclass(frozen=True)
class DoctorReport:
    """How well an SAE stands for a model's activations; special tokens are left out throughout.

    Attributes:
        explained_variance: 1 - sum |x - SAE(x)|^2 / sum |x - mean x|^2 over tokens.
        l0: Mean number of features that fire on a token.
        ce_clean: Cross-entropy of the next token, nats.
        ce_spliced: The same with the reconstruction in place of the activation.
        ce_ablated: The same with zero in place of it.
        ce_score: Share of cross-entropy recovered, (ablated - spliced) / (ablated - clean), as
            sae_lens's `ce_loss_score`.
        norm_ratio: Mean of |SAE(x)| / |x|.
        residual_norm: Mean L2 norm of the activation.
        dead: Share of features that fired on none of the tokens; an upper bound on the features
            that are dead, the looser the fewer the tokens.
        n_tokens: Tokens measured.
    """

    explained_variance: float
    l0: float
    ce_clean: float
    ce_spliced: float
    ce_ablated: float
    ce_score: float
    norm_ratio: float
    residual_norm: float
    dead: float
    n_tokens: int

    def as_dict(self) -> dict[str, float]:
        """Return the figures as plain numbers."""
        return asdict(self)


def doctor(
    model: TransformerBridge,
    sae: Sae,
    rows: Sequence[TokenRow],
    *,
    progress: Progress | None = None,
) -> DoctorReport:
    """Measure an SAE on text and refuse one that does not belong to the model.

    Args:
        model: The model.
        sae: The SAE.
        rows: Tokenised text (`encode_texts`), prepared as the SAE wants it.
        progress: Where to show progress.

    Raises:
        MismatchError: Widths differ, or the explained variance is near or below zero.
        SiteError: The model has no such site.
        DataError: There is too little text.
    """
    check_compatible(model, sae)
    # The first token of a row has no prediction, so rows of one token measure no loss.
    if sum(sum(row.kept[1:]) for row in rows) < FEWEST_TOKENS:
        raise DataError(
            f"the doctor needs at least {FEWEST_TOKENS} tokens of text; give a longer file."
        )
    fit = _reconstruction(model, sae, rows)
    refuse_misfit(model, sae, fit["explained_variance"])
    losses = _losses(model, sae, rows, progress or Progress())
    gap = losses["ablated"] - losses["clean"]
    return DoctorReport(
        **fit,
        ce_clean=losses["clean"],
        ce_spliced=losses["spliced"],
        ce_ablated=losses["ablated"],
        ce_score=(losses["ablated"] - losses["spliced"]) / gap if gap else float("nan"),
        n_tokens=sum(sum(row.kept) for row in rows),
    )


def refuse_misfit(model: TransformerBridge, sae: Sae, explained_variance: float) -> None:
    """Raise MismatchError if an explained variance says that SAE and model do not belong."""
    if not explained_variance >= REFUSED_BELOW:
        raise MismatchError(
            f"SAE {sae.name} explains {explained_variance:.2f} of the variance at {sae.site} of "
            f"{model.cfg.model_name}, so it was not trained on these activations; choose the SAE "
            "of this model and site (its card names them)."
        )


def quick_explained_variance(model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow]) -> float:
    """Return the explained variance alone, which costs no pass past the SAE's site."""
    check_compatible(model, sae)
    return float(_reconstruction(model, sae, rows)["explained_variance"])


def _reconstruction(
    model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow]
) -> dict[str, float]:
    read = read_rows(model, rows, [sae.site, sae.write_site])
    inputs, outputs = read[sae.site], read[sae.write_site]
    mean = outputs.values.mean(dim=0, dtype=torch.float64)
    error = variance = active = ratio = norm = 0.0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for index in range(inputs.n_texts):
        codes = sae.encode(inputs.text(index)).cpu()
        rebuilt = sae.reconstruct(inputs.text(index)).cpu().to(torch.float64)
        actual = outputs.text(index).to(torch.float64)
        error += float((actual - rebuilt).pow(2).sum())
        variance += float((actual - mean).pow(2).sum())
        active += float((codes != 0).sum())
        ratio += float((rebuilt.norm(dim=1) / actual.norm(dim=1).clamp_min(1e-12)).sum())
        norm += float(actual.norm(dim=1).sum())
        fired |= (codes != 0).any(dim=0)
    n = len(inputs.values)
    return {
        "explained_variance": 1 - error / variance if variance else math.nan,
        "l0": active / n,
        "norm_ratio": ratio / n,
        "residual_norm": norm / n,
        "dead": 1 - float(fired.float().mean()),
    }


def _losses(
    model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow], progress: Progress
) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    reading = resolve_target(model, sae.site, bridged=sae.site != sae.write_site)
    writing = resolve_target(model, sae.write_site, bridged=sae.site != sae.write_site)
    pad = padding_id(model)
    device = input_device(writing.model)
    count = 0
    with progress.task("losses", total=len(rows), unit="rows") as task, torch.inference_mode():
        for batch in length_sorted_batches(rows, max_tokens=2048, max_rows=16):
            tokens = pad_rows([rows[i] for i in batch], pad, device, side="right")
            for name, loss in _batch_losses(reading, writing, sae, tokens).items():
                totals[name] += loss
            count += int(tokens.span[:, 1:].sum())
            task.advance(len(batch))
    return {name: total / count for name, total in totals.items()}


def _batch_losses(
    reading: HookTarget, writing: HookTarget, sae: Sae, tokens: TokenBatch
) -> dict[str, float]:
    seen: dict[str, Tensor] = {}
    changes: dict[str, Callable[[Tensor], Tensor | None]] = {
        "clean": lambda hidden: None,
        "spliced": lambda hidden: _spliced(hidden, seen["input"], tokens.span, sae),
        "ablated": lambda hidden: hidden * ~tokens.span.to(hidden.device)[..., None],
    }
    losses = {}
    for name, change in changes.items():
        with ExitStack() as stack:
            stack.callback(reading.hook(lambda hidden: seen.update(input=hidden)).remove)
            stack.callback(writing.hook(change).remove)
            logits = writing.model(**tokens.inputs, use_cache=False).logits
        losses[name] = _summed_loss(logits, tokens.input_ids, tokens.span)
    return losses


def _spliced(hidden: Tensor, read: Tensor, span: Tensor, sae: Sae) -> Tensor:
    out = hidden.clone()
    for row, kept in enumerate(span):
        where = kept.to(hidden.device)
        rebuilt = sae.reconstruct(read[row][where])
        out[row, where] = rebuilt.to(hidden.device, hidden.dtype)
    return out


def _summed_loss(logits: Tensor, ids: Tensor, span: Tensor) -> float:
    # One row at a time: a whole batch of float32 logits over a large vocabulary is gigabytes.
    total = 0.0
    for row in range(len(ids)):
        kept = span[row, 1:].to(logits.device)
        wanted = ids[row, 1:].to(logits.device)[kept]
        total += float(F.cross_entropy(logits[row, :-1][kept].float(), wanted, reduction="sum"))
    return total


def rows_for(
    model: TransformerBridge, sae: Sae, texts: Sequence[str], *, context: int
) -> list[TokenRow]:
    """Tokenise texts as the SAE wants them, each cut to `context` tokens; empty ones left out."""
    assert model.tokenizer is not None
    rows = encode_texts(model.tokenizer, texts, prepend_bos=sae.prepend_bos)
    limit = min(context, int(model.cfg.n_ctx))
    cut = [TokenRow(row.ids[:limit], row.kept[:limit]) for row in rows]
    return [row for row in cut if any(row.kept)]
