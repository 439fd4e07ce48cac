"""A sparse autoencoder of a model's site, trained on text: `saesteer sae train`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from saesteer.data.texts import read_texts
from saesteer.experiments.base import Experiment, Stage
from saesteer.experiments.config import (
    ExperimentConfig,
    Plan,
    run_folder,
    sources,
    weights_digest,
)
from saesteer.experiments.results import METRICS, Results
from saesteer.models import model_info
from saesteer.models.resolve import check_shape
from saesteer.models.sites import Site, check_site
from saesteer.report import Report
from saesteer.report.sae import sae_report
from saesteer.saes.adapter import LensSae
from saesteer.saes.card import finish_sae, sae_card
from saesteer.saes.corpus import PackedCorpus, pack_corpus
from saesteer.saes.doctor import DoctorReport
from saesteer.saes.harvest import Harvest, harvest, harvest_key
from saesteer.saes.loading import load_sae
from saesteer.saes.training import SaeTrainingConfig, train_topk
from saesteer.tracking import RecordedRun
from saesteer.utils.cache import content_digest
from saesteer.utils.files import write_atomic
from saesteer.utils.settings import Source

SAE, CORPUS, CARD = "sae", "corpus.json", "sae/README.md"
SAE_FILES = ("sae/cfg.json", "sae/sae_weights.safetensors")
MEASURED = ("sae/metrics.json", "sae/features.parquet")
STEPS_BETWEEN_POINTS = 10
_FIGURES = tuple(field.name for field in fields(DoctorReport) if field.name != "remark")


class TrainSaeConfig(SaeTrainingConfig, ExperimentConfig):
    """What to train, on what, and where; called by site, features and k if it has no name."""

    kind: ClassVar[str] = "sae-train"

    folder: Source = "runs/sae"
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("model", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" not in data and "site" in data:
            d_sae, k = (data.get(name, cls.model_fields[name].default) for name in ("d_sae", "k"))
            return {**data, "name": f"{data['site']}-{d_sae}-k{k}"}
        return data

    def uncounted(self) -> dict[str, Any]:
        return {**super().uncounted(), "harvest_sites": True}


def plan_training(config: TrainSaeConfig) -> Plan:
    """Check the sites against the model's shape, and that the texts are there."""
    model, _ = sources(config)
    for site in config.all_sites:
        check_shape(model, Site.parse(site), None, "site")
    files = [source.path for source in config.corpus if source.path is not None]
    for file in files:
        read_texts(file)
    texts = " ".join(content_digest(Path(file)) for file in files)
    folder = run_folder(config, corpus=texts, **weights_digest(model))
    return Plan(config=config, model=model, folder=folder)


class SaeResults(Results):
    """What an SAE training found."""

    report_name = CARD

    @property
    def finished(self) -> bool:
        """Whether everything was computed."""
        # An earlier version wrote its figures beside the SAE alone.
        earlier = not (self.folder.path / "stages").is_dir()
        return self.folder.has(METRICS) or (
            earlier and all(map(self.folder.has, (*SAE_FILES, *MEASURED)))
        )

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`: the doctor's figures on held-out rows, and what was trained on."""
        return self.folder.read_json(METRICS if self.folder.has(METRICS) else MEASURED[0])

    @property
    def doctor(self) -> DoctorReport:
        """The doctor's figures on held-out rows."""
        given = {name: self.metrics[name] for name in _FIGURES}
        found: Any = {name: math.nan if one is None else one for name, one in given.items()}
        return DoctorReport(**found)

    @property
    def sae_folder(self) -> Path:
        """Where the SAE lies, in sae_lens's layout."""
        return self.folder.path / SAE

    @cached_property
    def sae(self) -> LensSae:
        """The SAE."""
        return load_sae(self.sae_folder)


class TrainSae(Experiment[SaeResults]):
    """Reads a corpus once, trains a TopK SAE on it, measures it and writes its feature table."""

    Config = TrainSaeConfig
    Results = SaeResults
    about = "an SAE of one site, trained on text, with what it explains of held-out text"
    plan: Plan
    make_plan = staticmethod(plan_training)

    def check(self) -> None:
        for site in self.config.all_sites:
            check_site(self.model, Site.parse(site))

    def stages(self) -> list[Stage]:
        return [
            Stage("activations", self._read),
            Stage("training", self._train),
            Stage("measuring", self._measure),
        ]

    @cached_property
    def corpus(self) -> PackedCorpus:
        """The text, as rows to train on and rows held out."""
        self.progress.say("Reading and tokenising the text ...")
        return pack_corpus(self.tokenizer, self.config)

    @cached_property
    def harvested(self) -> Harvest:
        """The training rows' activations, shared by trainings on the same text."""
        info = model_info(self.model)
        rows, sites = self.corpus.train, self.config.all_sites
        key = harvest_key(info.fingerprint, rows, sites, info.plain.dtype)
        return harvest(
            self.model,
            rows,
            sites,
            Path(self.config.folder) / "activations" / key,
            max_tokens=self.config.tokens,
            progress=self.progress,
        )

    def _read(self) -> None:
        corpus = self.corpus
        counts = {"train_tokens": corpus.train_tokens, "train_rows": len(corpus.train)}
        counts["held_out_rows"] = len(corpus.held_out)
        self.progress.say(
            f"{corpus.train_tokens:,} training tokens in {len(corpus.train):,} rows; "
            f"{len(corpus.held_out):,} rows held out."
        )
        assert self.harvested
        self.folder.write_json(CORPUS, counts)

    def _train(self) -> None:
        def log(step: int, values: dict[str, float]) -> None:
            if step % STEPS_BETWEEN_POINTS == 0:
                self.recorded.log(values, step=step)

        config, info = self.config, model_info(self.model)
        # What an SAE's users must know about how it was trained, in sae_lens's names.
        metadata: dict[str, object] = {
            "model_name": config.model.name,
            "hook_name": config.site,
            "context_size": config.context,
            "prepend_bos": self.tokenizer.bos_token_id is not None,
            "exclude_special_tokens": True,
            "model_fingerprint": info.fingerprint,
            "dataset": [source.path or source.hub for source in config.corpus],
        }
        how: Any = {"device": info.plain.device, "progress": self.progress, "watch": log}
        train_topk(self.harvested, config, metadata, self.folder.path, **how)
        # Found, they count as the stage's files.
        assert all(map(self.folder.has, SAE_FILES))

    def _measure(self) -> None:
        finish_sae(self.folder.path / SAE, self.model, self.corpus, self.progress)
        assert all(map(self.folder.has, MEASURED))

    def finish(self) -> dict[str, Any]:
        shape = {name: getattr(self.config, name) for name in ("site", "d_sae", "k")}
        return {**self.folder.read_json(MEASURED[0]), **shape, **self.folder.read_json(CORPUS)}

    def report(self, results: SaeResults) -> Report:
        name, where = self.config.model.name, str(results.sae_folder)
        found = sae_report(results.doctor, where, name, self.config.site)
        commands = [f"saesteer steer agreeableness --sae {{folder}}/{SAE}"]
        return replace(found, page=CARD, commands=commands)

    def write_report(self) -> None:
        results = SaeResults(self.folder)
        tokens = results.metrics["train_tokens"]
        card = sae_card(self.config, self.config.model.name, results.doctor, tokens)
        write_atomic(self.folder.path / CARD, card.encode())

    def headline(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: metrics.get(name) for name in _FIGURES}

    def tell(self, record: RecordedRun, results: Results) -> None:
        record.artifact("sae", self.folder.path / SAE, "sae")
