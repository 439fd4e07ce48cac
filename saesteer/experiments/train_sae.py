"""From a configuration to a trained SAE in a folder: `saesteer sae train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.models import load_model, model_info, resolve_model
from saesteer.models.shape import check_shape
from saesteer.models.sites import Site, check_site
from saesteer.saes.card import TrainedSae
from saesteer.saes.corpus import PackedCorpus, pack_corpus
from saesteer.saes.harvest import Harvest, harvest, harvest_key
from saesteer.saes.settings import SaeTrainingConfig
from saesteer.saes.training import Watch, train_topk
from saesteer.tracking import recorded_run
from saesteer.utils.files import write_atomic
from saesteer.utils.progress import Progress
from saesteer.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


STEPS_BETWEEN_POINTS = 10


def train_sae(
    config: SaeTrainingConfig,
    progress: Progress | None = None,
    *,
    watch: Watch | None = None,
    **record: Any,
) -> TrainedSae:
    """Train an SAE, write its card and feature table, and record the run.

    An earlier run of the configuration that was stopped is gone on with.

    Args:
        config: The settings.
        progress: Where to show progress.
        watch: Called after every step with its number, loss and share of dead features.
        record: What else the record says: `tags`, `group` and `parent` of `recorded_run`.

    Returns:
        The SAE with what it does on held-out rows.

    Raises:
        SaesteerError: See the stages: `pack_corpus`, `harvest`, `train_topk`, `finish_sae`.
    """
    from saesteer.saes.card import finish_sae

    progress = progress or Progress()
    for site in config.all_sites:
        check_shape(resolve_model(config.model), Site.parse(site), None, "site")
    with recorded_run(
        RunFolder(training_folder(config)),
        kind="sae-train",
        name=f"{config.site}-{config.d_sae}",
        config=config.model_dump(mode="json"),
        wandb=config.tracking,
        progress=progress,
        **record,
    ) as recorded:

        def watched(step: int, values: dict[str, float]) -> None:
            if step % STEPS_BETWEEN_POINTS == 0:
                recorded.log(values, step=step)
            if watch is not None:
                watch(step, values)

        with recorded.stage("training"):
            trained = _trained(config, progress, watched)
        with recorded.stage("measuring"):
            report = finish_sae(trained, config, progress)
        recorded.summary(report.as_dict())
        recorded.artifact("sae", trained.folder, "sae")
    return replace(trained, report=report)


def _trained(config: SaeTrainingConfig, progress: Progress, watch: Watch) -> TrainedSae:
    model = load_model(config.model, progress=progress)
    for site in config.all_sites:
        check_site(model, Site.parse(site))
    assert model.tokenizer is not None
    progress.say("Reading and tokenising the text ...")
    corpus = pack_corpus(model.tokenizer, config)
    progress.say(
        f"{corpus.train_tokens:,} training tokens in {len(corpus.train):,} rows; "
        f"{len(corpus.held_out):,} rows held out."
    )
    harvested = harvest_corpus(model, corpus, config, progress)
    folder = training_folder(config)
    out = train_topk(
        harvested,
        config,
        sae_metadata(model, config),
        folder,
        device=model_info(model).plain.device,
        progress=progress,
        watch=watch,
    )
    write_atomic(folder / "config.json", config.model_dump_json(indent=2).encode())
    return TrainedSae(out, corpus, model)


def harvest_corpus(
    model: TransformerBridge,
    corpus: PackedCorpus,
    config: SaeTrainingConfig,
    progress: Progress | None = None,
) -> Harvest:
    """Read the training rows' activations into the configuration's folder."""
    info = model_info(model)
    key = harvest_key(info.fingerprint, corpus.train, config.all_sites, info.plain.dtype)
    folder = Path(config.folder) / "activations" / key
    return harvest(
        model, corpus.train, config.all_sites, folder, max_tokens=config.tokens, progress=progress
    )


def sae_metadata(model: TransformerBridge, config: SaeTrainingConfig) -> dict[str, object]:
    """Return what an SAE's users must know about how it was trained, in sae_lens's names."""
    info = model_info(model)
    return {
        "model_name": config.model,
        "hook_name": config.site,
        "context_size": config.context,
        "prepend_bos": model.tokenizer.bos_token_id is not None,  # type: ignore[union-attr]
        "exclude_special_tokens": True,
        "model_fingerprint": info.fingerprint,
        "dataset": [source.path or source.hub for source in config.corpus],
    }


def training_folder(config: SaeTrainingConfig) -> Path:
    """Return a training's folder, which two different trainings do not share."""
    import hashlib

    record = config.model_dump(exclude={"folder", "harvest_sites", "tracking"})
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
    return Path(config.folder) / f"{config.site}-{config.d_sae}-k{config.k}-{digest}"
