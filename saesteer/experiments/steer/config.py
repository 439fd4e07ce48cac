"""The settings of `saesteer run` (`configs/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from saesteer.data import PairSet, read_pairs
from saesteer.data.bundled import bundled_names, bundled_pair_names, find_file
from saesteer.experiments.config import ExperimentConfig
from saesteer.methods.features import ClusteringSettings, RegressionSettings, SelectionSettings
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.steering.divergence import NEUTRAL_ANSWERS
from saesteer.utils.errors import DataError
from saesteer.utils.settings import Settings, Source, Sources

DEFAULT = "attributed_sae"
CLUSTERED = "clustered_sae"
CLUSTERED_GROUPS = ("selection", "clustering", "regression")


class PairSource(Settings):
    """Where contrastive pairs come from; see `saesteer.read_pairs`."""

    source: Source
    format: str = "auto"
    positive_key: str = "positive"
    negative_key: str = "negative"
    min_label_confidence: float = Field(default=0.0, ge=0, le=1)

    def read(self, **more: Any) -> PairSet:
        """The pairs, read."""
        how = self.model_dump(include=PairSource.model_fields.keys() - {"source"})
        return read_pairs(self.source, **how, **more)


class AnsweredSource(PairSource):
    """Contrastive pairs, with answers of known sides where somebody has written some."""

    # Answers of known sides, which admit and train judges: a file of pairs whose prompts are the
    # questions, or the name of a bundled set; the one that is called like bundled pairs if null.
    answers: PairSource | None = None

    @field_validator("answers", mode="before")
    @classmethod
    def _source_alone(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    def read_answers(self) -> PairSet | None:
        """The answers of known sides; the bundled ones if the pairs are bundled."""
        bundled, source = bundled_names("answers"), self.answers
        if source is None:
            if self.source not in bundled or self.source not in bundled_pair_names():
                return None
            source = PairSource(source=self.source)
        path, _ = find_file(source.source, bundled, "answers")
        answers = source.model_copy(update={"source": str(path)}).read()
        for pair in answers:
            if pair.prompt is None:
                raise DataError(
                    f"{answers.source}: answer {pair.id!r} has no question; give it as its prompt."
                )
        return answers


class PairSettings(AnsweredSource):
    """The contrastive pairs and how they are divided; see `saesteer.split_pairs`."""

    max_pairs: int | None = Field(default=None, ge=3)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.3, gt=0, lt=1)
    near_duplicate: float = Field(default=0.5, gt=0, le=1)


class MethodChoice(Settings):
    """A way from pairs to a vector: its name and its own settings."""

    name: str
    settings: dict[str, Any] = Field(default={})


class MeasureSettings(Settings):
    """How effect and cost are measured on held-out pairs."""

    # Strengths of the curve, as multiples of the matched strength of their sign.
    multiples: list[float] = Field(default=[-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], min_length=2)
    # The neutral request before held-out statements; not one that was trained with.
    request: str = "What would you say?"
    # Answers that KL is measured on: a file with question and answer, or the bundled set.
    neutral: Source = "neutral_answers"
    neutral_answers: int = Field(default=NEUTRAL_ANSWERS, ge=1)

    @field_validator("multiples")
    @classmethod
    def _no_multiple_twice(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} names a multiple twice; name each once")
        return values


class EvaluationSettings(MeasureSettings):
    """How the shift is measured."""

    # KL(steered || base) on neutral text, nats per token, that every vector is given. At 0.15 the
    # bundled model's text shows the persona and still reads well.
    kl_target: float = Field(default=0.15, gt=0, le=20)
    # Five show what any push of the cost does; 19 are the fewest that can give p = 0.05.
    random_directions: int = Field(default=5, ge=0)
    # The most held-out pairs to score.
    max_pairs: int | None = Field(default=None, ge=1)


class CompletionSettings(Settings):
    """What the steered model writes, as a comparison lets it write."""

    # Does the persona come through when asked, and unasked?
    questions: Sources = Field(default=["open_questions", "neutral_questions"])
    # The first of each; only those that are shown where there is no judge to read the others.
    n_questions: int = Field(default=30, ge=0)
    shown: int = Field(default=6, ge=0, description="questions whose completions are shown")
    max_new_tokens: int = Field(default=48, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    chat: bool | Literal["auto"] = "auto"


class RunConfig(ExperimentConfig):
    """Everything a run depends on."""

    kind: ClassVar[str] = "run"

    # The bundled SAE "smollm2", a folder, or "release:id".
    sae: Source = "smollm2"
    # The SAE's own site if null; another one is refused.
    site: str | None = None
    pairs: PairSettings
    reading: ReadingSettings = ReadingSettings()
    method: MethodChoice = MethodChoice(name=DEFAULT)
    # The settings of method clustered_sae, which one of them asks for where no method is named.
    selection: SelectionSettings = SelectionSettings()
    clustering: ClusteringSettings = ClusteringSettings()
    regression: RegressionSettings = RegressionSettings()
    # What methods that need an objective are fitted to.
    objective: ObjectiveSettings = ObjectiveSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    completions: CompletionSettings = CompletionSettings()
    # Seeds the split, the random directions and the sampling.
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _method_of_settings(cls, values: Any) -> Any:
        given = isinstance(values, dict) and any(values.get(name) for name in CLUSTERED_GROUPS)
        return {"method": CLUSTERED, **values} if given else values

    @field_validator("method", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {"name": DEFAULT, **value}
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_are_the_methods(self) -> RunConfig:
        groups = {name: getattr(self, name) for name in CLUSTERED_GROUPS}
        if self.method.name == CLUSTERED:
            if self.method.settings:
                raise ValueError(
                    f"method.settings: those of {CLUSTERED} stand beside it; give "
                    f"{', '.join(groups)}"
                )
            return self
        for name, group in groups.items():
            # Whole and as it is by default, as a run's config.json has it, it asks for nothing.
            given = group.model_fields_set
            if group != type(group)() or 0 < len(given) < len(type(group).model_fields):
                raise ValueError(
                    f"{name} belongs to method {CLUSTERED}; give {self.method.name}'s own under "
                    "method.settings"
                )
        return self

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings."""
        if self.method.name != CLUSTERED:
            return self.method.settings
        return {name: getattr(self, name).model_dump() for name in CLUSTERED_GROUPS}

    def uncounted(self) -> dict[str, Any]:
        """Return what changes no number, and so counts in no digest."""
        # Folders from before a method could be chosen are this one's.
        alone = {"method": True, "objective": True} if self.method.name == CLUSTERED else {}
        return {**super().uncounted(), **alone}
