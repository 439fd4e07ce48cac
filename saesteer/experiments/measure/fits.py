"""What public measures have in common: settings, SAE, and methods fitted to sets of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator, model_validator

from saesteer.data import PairSet
from saesteer.experiments.base import Experiment, write_table
from saesteer.experiments.config import ExperimentConfig
from saesteer.experiments.results import Results
from saesteer.experiments.steer.config import MethodChoice
from saesteer.experiments.steering import check_also
from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.methods.registry import build_method, method_entry
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.models.sites import Site
from saesteer.saes.adapter import LensSae
from saesteer.steering import SteeringVector
from saesteer.utils.errors import DataError, SteeringError
from saesteer.utils.settings import Source


class MeasureConfig(ExperimentConfig):
    """Everything that a public measure depends on besides its own settings."""

    # The download.
    source: Source
    # The bundled SAE "smollm2", a folder, or "release:id"; null for methods without features, which
    # then need a site.
    sae: Source | None = "smollm2"
    site: str | None = None
    methods: list[MethodChoice] = Field(min_length=1)
    # What methods that need an objective are fitted to: the data alone, in no persona's words.
    objective: ObjectiveSettings = ObjectiveSettings(prompted=0.0)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("methods", mode="before")
    @classmethod
    def _names_alone(cls, values: Any) -> Any:
        if not isinstance(values, list):
            return values
        return [{"name": value} if isinstance(value, str) else value for value in values]

    @model_validator(mode="after")
    def _methods_can_be_fitted(self) -> MeasureConfig:
        names = [method.name for method in self.methods]
        for name in names:
            kind = method_entry(name).kind
            if kind == "prompt":
                raise ValueError(f"method {name} is a prompt and no vector; leave it out")
            if kind == "sae" and self.sae is None:
                raise ValueError(f"method {name} needs an SAE; name one as sae or leave it out")
            if names.count(name) > 1:
                raise ValueError(f"methods: {name} stands there twice; name it once")
        if self.sae is None and self.site is None:
            raise ValueError("without an SAE there is no site; give one as site")
        if self.objective.prompted > 0:
            raise ValueError(
                "objective.prompted: these data have no persona to ask for; set it to 0"
            )
        return self

    def check_methods(self) -> dict[str, str]:
        """Check every method's own settings; see `check_also`."""
        return check_also(self, [(method.name, method.settings) for method in self.methods])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The methods as `metrics.json` names them."""
        known = [method_entry(method.name) for method in self.methods]
        return [{"name": one.name, "label": one.label, "kind": one.kind} for one in known]


class Measure(Experiment[Results]):
    """Fits every method to sets of pairs, one set after another."""

    # A fit whose objective's cost, which knows of no pairs, the next ones share.
    _first: FitContext | None = None

    @cached_property
    def sae(self) -> LensSae | None:
        """The SAE, checked against the model."""
        return self.loaded_sae(self.config.sae)

    @property
    def site(self) -> Site:
        """Where vectors are read and written."""
        return Site.parse(self.config.site) if self.sae is None else self.sae.write_site

    def context(self, pairs: PairSet, reading: ReadingSettings) -> FitContext:
        """Return what methods are fitted to a set of pairs with."""
        config = self.config
        given = FitContext(
            self.model,
            pairs,
            sae=self.sae,
            site=config.site,
            seed=config.seed,
            reading=reading,
            objective=config.objective,
            cache=self.cache,
            progress=self.progress,
        )
        given.model_name = config.model.name
        if self._first is None:
            self._first = given
        elif "cost" in vars(self._first):
            given.cost = self._first.cost
        return given

    def metrics_of(self, tables: Mapping[str, list[dict[str, Any]]], **own: Any) -> dict[str, Any]:
        """Write the tables, and return `metrics.json` with them and a measure's own fields."""
        import pandas as pd

        config = self.config
        for name, rows in tables.items():
            write_table(self.folder, f"tables/{name}.csv", pd.DataFrame(rows))
        return {
            "name": config.name,
            "model": config.model.name,
            "sae": config.sae,
            "site": str(self.site),
            "methods": config.entries,
            **own,
            **tables,
        }


def fitted(choice: MethodChoice, given: FitContext) -> SteeringVector | str:
    """Return a method's vector, or why the pairs give it none."""
    method = build_method(choice.name, choice.settings)
    assert isinstance(method, Method)
    try:
        return method.fit_in(given).vector_
    except (DataError, SteeringError) as error:
        return str(error)
