"""Whether a model and an SAE belong together, measured on text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saesteer.models.hooks import HookTarget, hooked
from saesteer.models.reading import Activations, read_rows
from saesteer.models.sites import Site, check_site, resolve_target
from saesteer.models.tokens import (
    TokenBatch,
    TokenRow,
    encode_texts,
    input_device,
    length_sorted_batches,
    pad_rows,
    padding_id,
)
from saesteer.saes.adapter import Sae, check_compatible, expected_width
from saesteer.utils.errors import DataError, MismatchError, SiteError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

REFUSED_BELOW = 0.2
# SAEs of their own model and site explain 0.6 to 0.95 of the variance, small ones a little less.
DOUBTED_BELOW = 0.5
FEWEST_TOKENS = 64
# How many blocks up and down another site is looked for, and on how many tokens.
NEIGHBOURS = 3
NEIGHBOUR_TOKENS = 2000


@dataclass(frozen=True)
class DoctorReport:
    """How well an SAE stands for a model's activations; special tokens are left out throughout."""

    explained_variance: float  # 1 - sum |x - SAE(x)|^2 / sum |x - mean x|^2 over tokens.
    l0: float  # Mean number of features that fire on a token.
    ce_clean: float  # Cross-entropy of the next token, nats.
    ce_spliced: float  # The same with the reconstruction in place of the activation.
    ce_ablated: float  # The same with zero in place of it.
    # (ablated - spliced) / (ablated - clean), as sae_lens's `ce_loss_score`.
    ce_score: float
    norm_ratio: float  # Mean of |SAE(x)| / |x|.
    residual_norm: float  # Mean L2 norm of the activation.
    # Share of features that fired on none of the tokens; an upper bound on the features that are
    # dead, the looser the fewer the tokens.
    dead: float
    n_tokens: int
    # What speaks against model and SAE belonging together, a sentence; empty if nothing.
    remark: str = ""

    def as_dict(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "remark"}


def doctor(
    model: TransformerBridge,
    sae: Sae,
    rows: Sequence[TokenRow],
    *,
    progress: Progress | None = None,
) -> DoctorReport:
    """Measure an SAE on text and refuse one that does not belong to the model.

    The rows are tokenised as the SAE wants it (`rows_for`).

    Raises:
        MismatchError: Widths differ, the SAE records other weights of a model, or the explained
            variance is near or below zero.
        SiteError: The model has no such site.
        DataError: There is too little text.

    Example:
        >>> rows = ss.encode_statements(model.tokenizer, texts)
        >>> report = ss.doctor(model, sae, rows)
        >>> round(report.explained_variance, 2)
        1.0
    """
    check_compatible(model, sae)
    # The first token of a row has no prediction, so rows of one token measure no loss.
    if sum(sum(row.kept[1:]) for row in rows) < FEWEST_TOKENS:
        raise DataError(
            f"the doctor needs at least {FEWEST_TOKENS} tokens of text; give a longer file."
        )
    fit, remark = _fit(model, sae, rows)
    losses = _losses(model, sae, rows, progress or Progress())
    gap = losses["ablated"] - losses["clean"]
    return DoctorReport(
        **fit,
        ce_clean=losses["clean"],
        ce_spliced=losses["spliced"],
        ce_ablated=losses["ablated"],
        ce_score=(losses["ablated"] - losses["spliced"]) / gap if gap else float("nan"),
        n_tokens=sum(sum(row.kept) for row in rows),
        remark=remark,
    )


def check_fit(model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow]) -> str:
    """Refuse an SAE as `doctor` does, with no pass past the sites around its own.

    Returns what speaks against the two belonging together, a sentence; empty if nothing.
    """
    check_compatible(model, sae)
    return _fit(model, sae, rows)[1]


def _fit(
    model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow]
) -> tuple[dict[str, float], str]:
    """Return the figures of the reconstruction, and what speaks against the two."""
    read = read_rows(model, rows, [sae.site, sae.write_site])
    fit = _reconstruction(sae, read[sae.site], read[sae.write_site])
    explained_variance = fit["explained_variance"]
    said = (
        f"SAE {sae.name} explains {explained_variance:.2f} of the variance at {sae.site} of "
        f"{model.cfg.model_name}"
    )
    better = _better_site(model, sae, rows)
    if better is not None:
        said += f" and {better[1]:.2f} at {better[0]}"
    if not explained_variance >= REFUSED_BELOW:
        raise MismatchError(
            f"{said}, so it was not trained on this model or site; choose the SAE of this model "
            "and site (its card names them)."
        )
    remark = ""
    if better is not None:
        remark = (
            f"{said}, so it was not trained at this site but there or nearby; correct hook_name "
            "in its cfg.json, or choose the SAE of this site."
        )
    elif explained_variance < DOUBTED_BELOW:
        remark = (
            f"{said}, which says that it was not trained on this model or site, or trained badly; "
            "choose the SAE of this model and site (its card names them)."
        )
    return fit, remark


def _better_site(
    model: TransformerBridge, sae: Sae, rows: Sequence[TokenRow]
) -> tuple[Site, float] | None:
    """Return the nearby site where the SAE explains clearly more, and how much it does."""
    ends = {shift: _moved(model, sae, shift) for shift in range(-NEIGHBOURS, NEIGHBOURS + 1)}
    there = {shift: sites for shift, sites in ends.items() if sites is not None}
    sites = list(dict.fromkeys(site for pair in there.values() for site in pair))
    read = read_rows(model, _first_tokens(rows, NEIGHBOUR_TOKENS), sites)
    found = {
        shift: _reconstruction(sae, read[site], read[write])["explained_variance"]
        for shift, (site, write) in there.items()
    }
    best = max(found, key=lambda shift: found[shift])
    left, left_here = 1 - found[best], 1 - found[0]
    # Neither the last few hundredths of a good fit nor one bad fit against another count.
    if found[best] < REFUSED_BELOW or not left < min(0.85 * left_here, left_here - 0.02):
        return None
    return there[best][0], found[best]


def _moved(model: TransformerBridge, sae: Sae, shift: int) -> tuple[Site, Site] | None:
    read = replace(sae.site, layer=sae.site.layer + shift)
    write = replace(sae.write_site, layer=sae.write_site.layer + shift)
    try:
        for site, width in ((read, sae.d_in), (write, int(sae.decoder.shape[1]))):
            check_site(model, site)
            if expected_width(model, site) not in (None, width):
                return None
    except SiteError:
        return None
    return read, write


def _first_tokens(rows: Sequence[TokenRow], tokens: int) -> list[TokenRow]:
    counts = accumulate(sum(row.kept) for row in rows)
    return [row for row, count in zip(rows, counts, strict=True) if count - sum(row.kept) < tokens]


def _reconstruction(sae: Sae, inputs: Activations, outputs: Activations) -> dict[str, float]:
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
        with hooked([(reading, lambda hidden: seen.update(input=hidden)), (writing, change)]):
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
    cut = [row.part(0, limit) for row in rows]
    return [row for row in cut if any(row.kept)]
