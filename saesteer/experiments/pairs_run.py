"""One division of pairs: methods are fitted to one part of them and measured on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial, wraps
from typing import Any

import numpy as np

from saesteer.data import PairSet
from saesteer.evaluation import EffectMeter, VectorResult
from saesteer.experiments.steering import SteeringExperiment
from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.methods.registry import build_method
from saesteer.models import Site
from saesteer.models.reading import PairActivations
from saesteer.steering import SteeringVector
from saesteer.steering.engines import make_engine
from saesteer.utils.cache import ON_A_MODEL
from saesteer.utils.run_folder import RunFolder, finite

# The strength that is tried first, in units of the residual norm.
FIRST_TRY = 0.25


def kept(name: Callable[..., str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Keep a method's JSON in the file of its `folder` that `name` gives for its arguments."""

    def wrapped(make: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(make)
        def read(self: Any, *given: Any) -> Any:
            return self.folder.once(name(*given), lambda: finite(make(self, *given)))

        return read

    return wrapped


class PairsFit(FitContext):
    """Fits methods to a run's pairs, sharing with other fits what knows of no pairs."""

    def __init__(self, run: PairsRun) -> None:
        experiment, config = run.experiment, run.experiment.config
        sampling = experiment.sampling
        super().__init__(
            experiment.model,
            run.train,
            validation=run.validation,
            sae=experiment.sae,
            name=run.name,
            seed=run.seed,
            reading=config.reading,
            objective=config.objective,
            max_new_tokens=experiment.writing.max_new_tokens,
            engine=make_engine(sampling.engine, experiment.model, sampling.max_batch_rows),
            cache=experiment.cache,
            folder=run.folder,
            progress=experiment.progress,
        )
        self.model_name = config.model.name
        self.table = experiment.table
        self.questions = experiment.plan.training_questions
        self.described = run.described
        if experiment.plan.training_answers:
            self.cost = experiment.training_cost
        self._run = run

    def read(self, part: str, site: Site) -> PairActivations:
        """What was read of a part: a file of the run's folder where that has it."""
        run = self._run
        file = run.folder.path / f"activations/{part}.{site}.safetensors"
        return PairActivations.load(file) if file.is_file() else run.read[part][site]

    def fit(self, name: str, settings: Mapping[str, Any]) -> Method:
        """A method by its name, fitted."""
        method = build_method(name, settings)
        assert isinstance(method, Method)
        return method.fit_in(self)


class PairsRun:
    """One division of pairs: methods are fitted to one part and measured on another.

    Settings and clusters are chosen by the validation pairs; `name` is what vectors are called, and
    `seed` is for methods that draw at random.
    """

    def __init__(
        self,
        experiment: SteeringExperiment,
        train: PairSet,
        validation: PairSet,
        test: PairSet,
        *,
        name: str,
        seed: int,
        folder: RunFolder,
    ) -> None:
        self.experiment, self.config = experiment, experiment.config
        self.train, self.validation, self.held_out = train, validation, test
        self.name, self.seed, self.folder = name, seed, folder
        self.described = train.describe

    @cached_property
    def read(self) -> dict[str, Mapping[Site, PairActivations]]:
        """The activations of "train" and "validation" pairs at the SAE's sites."""
        parts = {"train": self.train, "validation": self.validation}
        return {name: self.experiment.read_sides(pairs) for name, pairs in parts.items()}

    @cached_property
    def context(self) -> PairsFit:
        """What methods are fitted with."""
        return PairsFit(self)

    @cached_property
    def test(self) -> EffectMeter:
        """The meter on held-out pairs."""

        def make() -> EffectMeter:
            return EffectMeter(
                self.experiment.divergence, self.experiment.propensity(self.held_out)
            )

        return self.experiment.cache.keep(ON_A_MODEL, self._measured_with, make)

    @cached_property
    def _measured_with(self) -> tuple[Any, ...]:
        """All that a vector's result depends on besides the vector and the KL target."""
        rows = tuple((tuple(row.ids), tuple(row.kept)) for row in self.experiment.neutral_rows)
        settings = (self.config.evaluation.request, self.config.reading.chat)
        # Not on the SAE: baselines and random directions are the same for all settings of features.
        return (*self.experiment.weights_key[:3], rows, self.held_out.digest, *settings)

    def measure(
        self, vector: SteeringVector, kl_target: float, start: float = FIRST_TRY
    ) -> dict[str, Any]:
        """A vector's `VectorResult` as JSON; `start` is the strength that is tried first."""
        return self.experiment.cache.record(
            "result",
            *(self._measured_with, *_identity(vector), kl_target, start),
            compute=lambda: finite(self.test.measure(vector, kl_target, start=start).as_dict()),
        )

    def curve(self, vector: SteeringVector, result: Mapping[str, Any]) -> dict[str, Any]:
        """The mean margin over multiples of a result's strengths, as `EffectMeter.curve` has it."""
        multiples = self.config.evaluation.multiples
        strengths = (result["plus"]["strength"], result["minus"]["strength"])
        matched = VectorResult.from_dict(dict(result))
        return self.experiment.cache.record(
            "margins",
            *(self._measured_with, *_identity(vector), strengths, multiples),
            compute=lambda: finite(self.test.curve(vector, matched, multiples)),
        )

    def draws(
        self,
        method: Callable[[int], Method],
        files: Sequence[str],
        kl_target: float,
        folder: RunFolder | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the results of random draws, each kept in its file: what any push of the cost does.

        `method` takes the draw's number as its seed; the files are in the run's folder if not told.
        """
        start = FIRST_TRY
        for seed, file in enumerate(files):
            compute = partial(self._drawn, method(seed), kl_target, start)
            found = (folder or self.folder).once(file, compute)
            # Draws of one kind cost alike, so the last one's strength is a good first guess.
            start = abs(found["plus"]["strength"])
            yield found

    def _drawn(self, method: Method, kl_target: float, start: float) -> dict[str, Any]:
        return self.measure(method.fit_in(self.context).vector_, kl_target, start)


def _identity(vector: SteeringVector) -> tuple[Any, ...]:
    parts = ((str(part.site), _numbers(part)) for part in vector.parts)
    about = (vector.name, vector.method, vector.positions, vector.residual_norm)
    return (*about, _numbers(vector), *parts)


def _numbers(vector: SteeringVector) -> np.ndarray:
    return vector.raw.float().cpu().numpy()
