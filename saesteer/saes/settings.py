"""What an SAE training depends on, besides the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saesteer.utils.settings import Settings, Source


class CorpusSource(Settings):
    """One source of training text.

    Attributes:
        path: A .txt, .jsonl or .jsonl.gz file with a "text" field; relative to the working folder.
        hub: A Hugging Face data set's id instead; its `text_field` is read, streamed.
        split: The data set's split.
        text_field: The data set's field that holds the text.
        style: "plain" packs the texts as they are; "chat" joins short texts as the assistant's
            words after a neutral request, so that the SAE knows the template's contexts.
        limit: The most texts to take.
    """

    path: Source | None = None
    hub: Source | None = None
    split: str = "train"
    text_field: str = "text"
    style: Literal["plain", "chat"] = "plain"
    limit: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_place(self) -> CorpusSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        return self


class SaeTrainingConfig(Settings):
    """What to train and on what.

    Attributes:
        site: The site to train on, such as "blocks.10.hook_resid_post".
        harvest_sites: Sites read in the same pass, so that SAEs at several can be compared.
        corpus: Where the text comes from.
        held_out: Share of documents kept for the metrics.
        context: Tokens in a row, BOS included.
        tokens: Distinct tokens to train on; all there are if None.
        epochs: Passes over them.
        d_sae: Number of features.
        k: Features active on each token (TopK).
        k_start: Features active at the first step; falls linearly to k over `k_steps`, so that more
            features find something to do before the competition is at its hardest.
        k_steps: Steps of that fall.
        batch: Tokens in a step.
        learning_rate: Adam's peak rate; warmed up linearly, then decayed to zero by a cosine.
        warmup_steps: Steps of warm-up.
        dead_after: A feature is dead when it has not fired for so many tokens; it is then
            revived by sae_lens's auxiliary loss.
        dead_weight: Weight of that loss.
        autocast: Run the matrix products in bfloat16.
        seed: Seeds the split, the order and the initial weights.
    """

    site: str
    harvest_sites: list[str] = Field(default_factory=list)
    corpus: list[CorpusSource] = Field(min_length=1)
    held_out: float = Field(default=0.03, gt=0, lt=0.5)
    context: int = Field(default=256, ge=16)
    tokens: int | None = Field(default=None, gt=0)
    epochs: int = Field(default=2, ge=1)
    d_sae: int = Field(default=4608, ge=8)
    k: int = Field(default=48, ge=1)
    k_start: int | None = Field(default=None, ge=1)
    k_steps: int = Field(default=500, ge=0)
    batch: int = Field(default=4096, ge=16)
    learning_rate: float = Field(default=1.2e-3, gt=0)
    warmup_steps: int = Field(default=200, ge=0)
    dead_after: int = Field(default=500_000, gt=0)
    dead_weight: float = Field(default=1.0, ge=0)
    autocast: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _k_fits(self) -> SaeTrainingConfig:
        if self.k >= self.d_sae:
            raise ValueError(f"k ({self.k}) must be smaller than d_sae ({self.d_sae})")
        return self

    @property
    def all_sites(self) -> list[str]:
        """Every site that the harvest reads, the training site among them, in order."""
        return sorted({self.site, *self.harvest_sites})
