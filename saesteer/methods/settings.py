"""The settings of what vectors are fitted on and of the feature stages, each checked here once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import Settings, parse_config
from saesteer.utils.text import nearest

Entry = TypeVar("Entry")
Group = TypeVar("Group", bound=Settings)


def choose(registry: Mapping[str, Entry], name: str, *, field: str) -> Entry:
    """Return the entry of that name.

    Raises:
        ConfigError: The name is not known; the sentence holds the closest known one.
    """
    if name in registry:
        return registry[name]
    raise ConfigError(f"{field}: {name!r} is not known{nearest(str(name), registry)}; correct it.")


def checked(kind: type[Group], place: str, **values: Any) -> Group:
    """Return settings whose numbers are in range.

    Raises:
        ConfigError: One is not.
    """
    return parse_config(values, kind=kind, place=place)


class ReadingSettings(Settings):
    """Where activations are read; see `saesteer.read_pair_activations`.

    Example:
        >>> last = ss.ReadingSettings(positions="last")
        >>> ss.DifferenceInMeans().fit(model, train, sae=sae, reading=last).vector_.read_positions
        'statement tokens, last'
    """

    positions: Literal["mean", "last"] = "mean"
    request: str | None = "Tell me something about yourself."
    chat: bool | None = None
    system: str | None = None


class ObjectiveSettings(Settings):
    """What attribution raises on training data; see `saesteer.methods.objective`.

    Methods that know of no such objective do without it.

    Attributes:
        requests: Requests that training statements answer, in turn.
        kl_target: KL at which the objective is linearised.
        neutral_answers: Neutral answers for cost and Fisher metric; those that the evaluation
            uses are left out.
        fisher_samples: Draws for each of them.
        self_generated: Weight of the contrast between completions that the model itself writes
            under steering, rated high and low by a judge trained on training statements; 0 for
            none.
        self_generated_samples: Completions for each question and sign that this contrast draws on.
        self_generated_pairs: Pairs of a high and a low completion for each question.

    Example:
        >>> ss.ObjectiveSettings(self_generated=0, fisher_samples=2).kl_target
        0.3
    """

    requests: list[str] = Field(
        default=[
            "Tell me something about yourself.",
            "What is on your mind?",
            "Share a thought with me.",
            "How do you see things?",
        ],
        min_length=1,
    )
    kl_target: float = Field(default=0.3, gt=0)
    neutral_answers: int = Field(default=34, ge=1)
    fisher_samples: int = Field(default=12, ge=1)
    self_generated: float = Field(default=0.5, ge=0)
    self_generated_samples: int = Field(default=2, ge=1)
    self_generated_pairs: int = Field(default=2, ge=1)


class SelectionSettings(Settings):
    """Which features are candidates; see `saesteer.select_features`."""

    criterion: str = "standardised_difference"
    n_features: int = Field(default=64, ge=1)
    min_firing: float = Field(default=0.02, ge=0, le=1)
    max_firing: float = Field(default=0.6, gt=0, le=1)
    max_density: float | None = Field(default=None, gt=0, le=1)
    min_abs_score: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _firing_in_order(self) -> SelectionSettings:
        if self.min_firing > self.max_firing:
            raise ValueError(
                f"min_firing ({self.min_firing}) is above max_firing ({self.max_firing}); lower it"
            )
        return self


class ClusteringSettings(Settings):
    """How candidates are clustered and clusters kept; see `saesteer.cluster_features`."""

    method: str = "agglomerative"
    firing_weight: float = Field(default=0.5, ge=0, le=1)
    n_clusters: int | None = Field(default=None, ge=1)
    min_clusters: int = Field(default=2, ge=2)
    max_clusters: int | None = Field(default=None, ge=2)
    min_cluster_size: int = Field(default=2, ge=2)
    min_separation: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _counts_fit(self) -> ClusteringSettings:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError(
                "n_clusters: hdbscan finds its own number of clusters; leave n_clusters out"
            )
        if self.max_clusters is not None and self.max_clusters < self.min_clusters:
            raise ValueError(
                f"max_clusters ({self.max_clusters}) is below min_clusters ({self.min_clusters}); "
                "raise it"
            )
        return self


class RegressionSettings(Settings):
    """How weights are fitted; see `saesteer.fit_weights`."""

    method: str = "sign_tied"
    basis: Literal["decoder", "decoded"] = "decoder"
    ridge_alpha: float = Field(default=0.1, ge=0)
    lasso_alpha: float | None = Field(default=None, gt=0, lt=1)
    n_nonzero: int | None = Field(default=None, ge=1)
    logistic_c: float = Field(default=1.0, gt=0)
