"""What goes with a trained SAE: half-precision weights, held-out metrics, card, feature table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from saesteer.saes.describe import build_feature_table
from saesteer.saes.doctor import DoctorReport, doctor
from saesteer.saes.loading import load_sae
from saesteer.saes.table import save_feature_table
from saesteer.saes.training import SaeTrainingConfig
from saesteer.utils.files import write_atomic
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.corpus import PackedCorpus

TABLE_ROWS = 1500
HELD_OUT_ROWS = 400


def finish_sae(
    folder: Path, model: TransformerBridge, corpus: PackedCorpus, progress: Progress | None = None
) -> DoctorReport:
    """Round an SAE's weights to bfloat16, measure it on held-out text and write its feature table.

    Returns:
        The doctor's report on held-out rows, measured on the weights as saved.
    """
    _round_weights(folder)
    sae = load_sae(folder)
    report = doctor(model, sae, corpus.held_out[:HELD_OUT_ROWS], progress=progress)
    # JSON has no word for NaN, which a model that ignores the site leaves in ce_score.
    figures = {k: v if math.isfinite(v) else None for k, v in report.as_dict().items()}
    write_atomic(folder / "metrics.json", (json.dumps(figures, indent=2) + "\n").encode())
    table = build_feature_table(model, sae, corpus.train[:TABLE_ROWS], progress=progress)
    save_feature_table(table, folder / "features.parquet")
    return report


def sae_card(config: SaeTrainingConfig, model: str, report: DoctorReport, tokens: int) -> str:
    """Return the card as Markdown: site, data, tokens, settings and held-out metrics."""
    sources = "\n".join(
        f"- {Path(source.path).name if source.path else source.hub} ({source.style})"
        for source in config.corpus
    )
    used = min(tokens, config.tokens or tokens)
    return f"""# SAE of {model} at {config.site}

TopK sparse autoencoder, {config.d_sae:,} features, k = {config.k}, trained with sae_lens's model
and losses by `saesteer sae train`; bfloat16 weights in sae_lens's layout.

## Data
{sources}

{used:,} distinct tokens, {used * config.epochs:,} seen in all (epochs: {config.epochs}), rows of
{config.context} tokens that start with BOS; BOS, template and other special tokens were left out.
{config.held_out:.0%} of the documents were held out.

## Settings
Adam at {config.learning_rate:g} (warm-up {config.warmup_steps} steps, cosine decay to zero),
{config.batch} tokens a step, bfloat16 autocast {"on" if config.autocast else "off"}, auxiliary loss
(weight {config.dead_weight:g}) for features that have not fired for {config.dead_after:,} tokens, \
{_falling(config)}seed {config.seed}.

## Held-out metrics (`saesteer doctor`, {report.n_tokens:,} tokens)
| measure | value |
| --- | --- |
| explained variance | {report.explained_variance:.4f} |
| L0 | {report.l0:.1f} |
| cross-entropy recovered | {report.ce_score:.4f} |
| loss clean / spliced / ablated | {report.ce_clean:.3f} / {report.ce_spliced:.3f} / \
{report.ce_ablated:.3f} |
| norm ratio | {report.norm_ratio:.3f} |
| features that never fired | {report.dead:.2%} |
"""


def _falling(config: SaeTrainingConfig) -> str:
    if config.k_start is None or config.k_start <= config.k:
        return ""
    return f"k falling from {config.k_start} over {config.k_steps} steps,\n"


def _round_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "sae_weights.safetensors"
    weights = {name: t.to(torch.bfloat16) for name, t in load_file(path).items()}
    write_atomic(path, lambda draft: save_file(weights, draft))
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    config.update(dtype="bfloat16", device="cpu")
    write_atomic(folder / "cfg.json", (json.dumps(config, indent=2) + "\n").encode())
