"""The settings of a probe run (`configs/probes/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from saesteer.utils.settings import Settings, Source

ReadPosition = Literal["mean", "last", "span", "end"]


class TextSettings(Settings):
    """The labelled texts; see `read_labelled` and `split_labelled`.

    Attributes:
        max_texts: Keep a seeded random choice of at most this many texts.
        test: Texts that probes are scored on: a share below 1, or a count.
        judge: Texts set aside for the independent classifier: a share below 1, or a count.
        near_duplicate: Texts this alike stay in one part; null to go by declared groups alone.
    """

    source: Source = "sentiment"
    format: Literal["auto", "labelled", "valence", "tweets"] = "auto"
    text_key: str = "text"
    label_key: str = "label"
    group_key: str | None = None
    classes: list[str] | None = Field(default=None, min_length=2)
    drop_other: bool = False
    skip_blank: bool = False
    threshold: float = Field(default=0.5, gt=0, le=4)
    max_texts: int | None = Field(default=None, ge=10)
    test: int | float = Field(default=0.2, gt=0)
    judge: int | float = Field(default=0.15, ge=0)
    near_duplicate: float | None = Field(default=0.5, gt=0, le=1)


class ReadSettings(Settings):
    """Where the residual stream is read; see `read_layers`.

    Attributes:
        positions: "mean" over the text's tokens, its "last" token, the mean over the labelled
            "span", or the "end" of the row, which only differs from "last" where words stand
            after the text.
        before: Words before every text, never read.
        after: Words after every text, read only by "end".
        hook: The hook's name inside each block.
        layers: The blocks; all if null.
        sae: Probe this SAE's codes at its own site instead of the residual stream.
        storage: How activations are kept on disk.
    """

    positions: ReadPosition = "mean"
    before: str = ""
    after: str = ""
    hook: str = "hook_resid_post"
    layers: list[int] | None = Field(default=None, min_length=1)
    sae: Source | None = None
    storage: Literal["float16", "bfloat16"] = "float16"

    @field_validator("layers")
    @classmethod
    def _no_layer_twice(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and (len(set(layers)) < len(layers) or min(layers) < 0):
            raise ValueError(f"{layers} names a layer twice or below 0; name each once")
        return layers


class FitSettings(Settings):
    """How probes are fitted; see `fit_probe`.

    Attributes:
        classes: Fit on texts of these classes alone, in this order; all if null. Texts of the
            others are read all the same, so that runs share their activations.
        c: Inverse regularisation strengths to choose from, in scikit-learn's sense.
        folds: Folds of the cross-validation that chooses; groups stay together.
        class_weight: "balanced" weighs every class alike.
        max_iter: The most steps of the solver.
        tol: Where the solver stops.
        resamples: Bootstrap resamples of the intervals.
        control: Whether a control probe on shuffled labels is fitted at every layer.
    """

    classes: list[str] | None = Field(default=None, min_length=2)
    c: list[float] = Field(default=[1e-4, 1e-3, 1e-2, 1e-1], min_length=1)
    folds: int = Field(default=3, ge=2)
    class_weight: Literal["balanced"] | None = None
    max_iter: int = Field(default=400, ge=1)
    tol: float = Field(default=1e-3, gt=0)
    resamples: int = Field(default=1000, ge=0)
    control: bool = True

    @field_validator("c")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if min(values) <= 0 or len(set(values)) < len(values):
            raise ValueError(f"{values} are not different numbers above 0; give some")
        return sorted(values)


class SparseSettings(Settings):
    """How many SAE features a concept needs; see `sparse_probes`.

    Attributes:
        k: Numbers of features to try, the strongest by ANOVA F on the training texts.
        l1_c: Inverse L1 penalties to try.
    """

    k: list[int] = Field(default=[1, 2, 4, 8, 16, 32, 64, 128], min_length=1)
    l1_c: list[float] = Field(default=[0.01, 0.03, 0.1, 0.3, 1.0])

    @field_validator("k")
    @classmethod
    def _at_least_one(cls, values: list[int]) -> list[int]:
        if min(values) < 1 or len(set(values)) < len(values):
            raise ValueError(f"{values} are not different numbers from 1 on; give some")
        return sorted(values)
