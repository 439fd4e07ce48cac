"""The settings of the stages from codes to weights, checked before anything is loaded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saesteer.utils.settings import Settings


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
    n_clusters: int | None = Field(default=None, ge=2)
    min_clusters: int = Field(default=2, ge=2)
    max_clusters: int | None = Field(default=None, ge=2)
    min_cluster_size: int = Field(default=2, ge=2)
    min_separation: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _counts_fit(self) -> ClusteringSettings:
        if self.n_clusters is not None and self.method == "hdbscan":
            raise ValueError("hdbscan finds its own number of clusters; leave n_clusters out")
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
    lasso_alpha: float | None = Field(default=None, gt=0)
    n_nonzero: int | None = Field(default=None, ge=1)
    logistic_c: float = Field(default=1.0, gt=0)
