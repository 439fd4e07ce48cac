"""What a run's stages share: model, SAE and tables, loaded when first needed and once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from saesteer.errors import ConfigError
from saesteer.models import Site, load_model
from saesteer.models.tokens import encode_statements
from saesteer.plan import Plan
from saesteer.progress import Progress
from saesteer.saes.adapter import LensSae, check_compatible
from saesteer.saes.doctor import quick_explained_variance, refuse_misfit
from saesteer.saes.loading import load_sae
from saesteer.saes.table import FeatureTable, load_feature_table

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.models.tokens import TokenRow

FEATURE_TABLE = "features.parquet"


class Workbench:
    """Loads each thing once, on first use, so that a resumed run loads only what it needs.

    Args:
        plan: The run.
        progress: Where to say what is being loaded.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.progress = progress

    @cached_property
    def model(self) -> TransformerBridge:
        """The model."""
        settings = self.plan.config.model
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.progress.say(f"Loading model {settings.name} ...")
        return load_model(
            settings.name,
            device=None if settings.device == "auto" else settings.device,
            dtype=settings.dtype,
            device_map=settings.device_map,
            trust_remote_code=settings.trust_remote_code,
        )

    @cached_property
    def sae(self) -> LensSae:
        """The SAE, checked against the model.

        Raises:
            MismatchError: It does not belong to the model.
            ConfigError: The settings name another site than the SAE's.
        """
        config = self.plan.config
        self.progress.say(f"Loading SAE {config.sae} ...")
        sae = load_sae(config.sae)
        if config.site is not None and Site.parse(config.site) != sae.write_site:
            raise ConfigError(
                f"site {config.site} is not where SAE {config.sae} lives ({sae.write_site}); leave "
                "site out or choose an SAE of that site."
            )
        check_compatible(self.model, sae)
        refuse_misfit(self.model, sae, quick_explained_variance(self.model, sae, self.neutral_rows))
        return sae

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's feature table, where its folder has one."""
        from pathlib import Path

        where = self.plan.sae
        if not isinstance(where, Path) or not (where / FEATURE_TABLE).is_file():
            return None
        return load_feature_table(where / FEATURE_TABLE)

    @cached_property
    def neutral_rows(self) -> list[TokenRow]:
        """The neutral answers as the assistant's words."""
        assert self.model.tokenizer is not None
        return encode_statements(
            self.model.tokenizer,
            [answer.answer for answer in self.plan.answers],
            [answer.question for answer in self.plan.answers],
            chat=self.plan.config.reading.chat,
            max_length=int(self.model.cfg.n_ctx),
        )
