"""The settings of a comparison (`configs/compare/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from saesteer.data.pairs import Description
from saesteer.evaluation.llm_client import Endpoint
from saesteer.experiments.config import ExperimentConfig
from saesteer.experiments.steer.config import AnsweredSource, MeasureSettings, MethodChoice
from saesteer.methods.registry import method_entry
from saesteer.methods.settings import ObjectiveSettings, ReadingSettings
from saesteer.steering.engines.settings import EngineSettings
from saesteer.utils.settings import Settings, Source, Sources, short_hash


class PersonaSettings(AnsweredSource):
    """One persona: a set of contrastive pairs, called by its file's name if it has none."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    # Completes "You are ..." for the system prompt and for the judge that goes by a description;
    # what the pairs' file says under `describe` if null, and with neither the prompt quotes
    # training statements.
    description: str | None = None
    # The same for the negative side.
    opposite: str | None = None

    @property
    def described(self) -> Description | None:
        """Either side in words, where both are."""
        if self.description and self.opposite:
            return Description(self.description, self.opposite)
        return None

    @property
    def label(self) -> str:
        """The persona's name."""
        return self.name or PurePath(self.source).name.split(".")[0]


class SplitSettings(Settings):
    """The most pairs of each part; a smaller set is shared out in the same proportions."""

    train: int = Field(default=120, ge=4)
    validation: int = Field(default=30, ge=2)
    test: int = Field(default=48, ge=2)
    # Pairs that train and test the behaviour judge, and that no other step sees.
    judge: int = Field(default=100, ge=10)
    near_duplicate: float = Field(default=0.5, gt=0, le=1)


class MethodSettings(MethodChoice):
    """One method; of several settings in `grid` the best on validation pairs is taken."""

    grid: list[dict[str, Any]] = Field(default=[])


class CostSettings(MeasureSettings):
    """How effect and cost are measured."""

    # KL(steered || base) on neutral answers, nats per token.
    kl_targets: list[float] = Field(default=[0.1, 0.3, 1.0], min_length=1)
    # The one of the headline, of choices and of the null.
    headline_kl_target: float = Field(default=0.3, gt=0)

    @field_validator("kl_targets")
    @classmethod
    def _targets_rise(cls, values: list[float]) -> list[float]:
        if any(value <= 0 for value in values) or len(set(values)) < len(values):
            raise ValueError(f"{values} are not different KL targets above 0")
        return sorted(values)

    @model_validator(mode="after")
    def _headline_is_one(self) -> CostSettings:
        if self.headline_kl_target not in self.kl_targets:
            raise ValueError(
                f"headline_kl_target {self.headline_kl_target} is not one of the KL targets"
            )
        return self


class RandomSettings(Settings):
    """What any push of the same cost does, on the first seed's test pairs; 0 leaves a kind out."""

    directions: int = Field(default=20, ge=0)
    features: int = Field(default=20, ge=0)


class LlmJudgeSettings(Settings):
    """A judge behind an OpenAI-compatible endpoint; see `Endpoint` for what the settings mean."""

    model: str
    base_url: Source = "https://api.openai.com/v1"
    # The name of the environment variable that holds the key; never the key itself.
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = Field(default=60.0, gt=0)
    attempts: int = Field(default=5, ge=1)
    # Questions under way at once.
    workers: int = Field(default=4, ge=1)

    @property
    def endpoint(self) -> Endpoint:
        """Whom to ask."""
        return Endpoint(**self.model_dump(exclude={"workers"}))


class WritingChoices(Settings):
    """What the steered model writes."""

    # Headline and baseline if null.
    methods: list[str] | None = None
    kl_targets: list[float] = Field(default=[0.3])
    # Of each the first are written to, the last ones are answered to be trained on: does
    # the persona come through when asked, and unasked?
    questions: Sources = Field(default=["open_questions", "neutral_questions"])
    # Of each.
    n_questions: int = Field(default=30, ge=0)
    # Under each seed that a method is fitted with. Further questions and personas tell more than
    # further samples of one question, which cost as much.
    n_samples: int = Field(default=1, ge=1)
    # Judges beside MiniLM's: wordllama, or the folder of a model for sentence-transformers.
    embedders: list[Source] = Field(default=["wordllama"])
    # A model that judges too, by the description of the two sides where there is one; the steered
    # one's name is itself, unsteered. It reads every text eight times, so it takes longer than all
    # the rest of a comparison.
    judge_model: Source | None = None
    # One behind an OpenAI-compatible endpoint that judges by it too; every text goes there.
    judge_endpoint: LlmJudgeSettings | None = None
    # Methods that are written with once more, at the KL that a prompt among the methods costs, each
    # side at its own; headline and baseline if null, none if empty.
    at_prompt: list[str] | None = None
    max_new_tokens: int = Field(default=40, ge=1)
    # What writes; transformers if null.
    engine: EngineSettings | None = None
    shown: int = Field(default=10, ge=0, description="questions whose completions the page shows")

    @field_validator("engine")
    @classmethod
    def _steers_by_vectors(cls, value: EngineSettings | None) -> EngineSettings | None:
        if value is not None and value.name == "openai" and value.steering != "vllm-lens":
            raise ValueError(
                f"a server with steering {value.steering!r} holds vectors that were there before, "
                "and a comparison fits its own; use steering vllm-lens, or the engine paged"
            )
        return value


class SideEffectSettings(Settings):
    """What else moved."""

    # Headline and baseline if null.
    methods: list[str] | None = None
    # Held-out pairs of every other persona.
    pairs: int = Field(default=20, ge=0)
    # A file of plain texts, or the bundled ones; the loss on them is measured.
    prose: Source = "prose"
    n_prose: int = Field(default=30, ge=0)
    # Held-out pairs for the Yes/No and A/B margins.
    choices: int = Field(default=16, ge=0)


class CompareConfig(ExperimentConfig):
    """Everything a comparison depends on."""

    kind: ClassVar[str] = "compare"

    sae: Source = "smollm2"
    site: str | None = None
    personas: list[PersonaSettings] = Field(min_length=1)
    # Either side of the one persona in words; of several each says its own.
    describe: Description | None = None
    splits: SplitSettings = SplitSettings()
    reading: ReadingSettings = ReadingSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    methods: list[MethodSettings] = Field(min_length=1)
    # The method that the report is about, and what it is held against.
    headline: str = "attributed_sae"
    baseline: str = "difference_in_means"
    # Methods that are fitted and measured under every seed, the others under the first; headline
    # and baseline if null.
    repeated: list[str] | None = None
    # Each splits train, validation and test anew.
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    evaluation: CostSettings = CostSettings()
    random: RandomSettings = RandomSettings()
    writing: WritingChoices = WritingChoices()
    side_effects: SideEffectSettings = SideEffectSettings()
    # Rates the completions at the headline KL target for the persona's description, or its name.
    llm_judge: LlmJudgeSettings | None = None

    @field_validator("personas", "methods", mode="before")
    @classmethod
    def _names_alone(cls, values: Any, info: Any) -> Any:
        key = "source" if info.field_name == "personas" else "name"
        if not isinstance(values, list):
            return values
        return [{key: value} if isinstance(value, str) else value for value in values]

    @field_validator("personas")
    @classmethod
    def _different_personas(cls, values: list[PersonaSettings]) -> list[PersonaSettings]:
        _no_twins([persona.label for persona in values], "personas", "give each a name of its own")
        return values

    @model_validator(mode="after")
    def _describes_one(self) -> CompareConfig:
        if self.describe is not None and len(self.personas) > 1:
            raise ValueError(
                f"describe is of one persona and there are {len(self.personas)}; give each a "
                "description and an opposite"
            )
        return self

    @model_validator(mode="after")
    def _methods_agree(self) -> CompareConfig:
        names = [method.name for method in self.methods]
        _no_twins(names, "methods", "name each once")
        listed = {
            "headline": [self.headline],
            "baseline": [self.baseline],
            "repeated": self.repeated,
            "writing.methods": self.writing.methods,
            "writing.at_prompt": self.writing.at_prompt,
            "side_effects.methods": self.side_effects.methods,
        }
        for field, wanted in listed.items():
            for name in wanted or ():
                if name not in names:
                    raise ValueError(f"{field} {name!r} is not one of the methods")
        for kl_target in self.writing.kl_targets:
            if self.writing.n_questions and kl_target not in self.evaluation.kl_targets:
                raise ValueError(
                    f"writing.kl_targets {kl_target} is not one of evaluation.kl_targets"
                )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {self.seeds} are not different numbers from 0")
        return self

    @property
    def pair(self) -> tuple[str, ...]:
        """Headline and baseline."""
        return tuple(dict.fromkeys((self.headline, self.baseline)))

    @property
    def prompt(self) -> str | None:
        """The first method that is a prompt."""
        prompts = (m.name for m in self.methods if method_entry(m.name).kind == "prompt")
        return next(prompts, None)

    @property
    def at_prompt(self) -> list[str]:
        """The methods that are written with at the prompt's own KL."""
        if self.prompt is None or not self.writing.n_questions:
            return []
        chosen = self.writing.at_prompt
        return list(self.pair if chosen is None else chosen)

    def method(self, name: str) -> MethodSettings:
        """The method of a name."""
        return next(method for method in self.methods if method.name == name)

    def seeds_of(self, method: str) -> list[int]:
        """The seeds under which a method is measured."""
        again = self.pair if self.repeated is None else self.repeated
        return self.seeds if method in again else self.seeds[:1]

    def seeds_at(self, method: str, kl_target: float) -> list[int]:
        """The seeds under which a method is measured at a KL target."""
        seeds = self.seeds_of(method)
        return seeds if kl_target == self.evaluation.headline_kl_target else seeds[:1]

    def methods_under(self, seed: int) -> list[MethodSettings]:
        """The methods measured under a seed."""
        return [method for method in self.methods if seed in self.seeds_of(method.name)]

    def persona_digest(self, persona: PersonaSettings, **inputs: str) -> str:
        """A hash of all that one persona's results depend on, whoever else is compared."""
        whole = ("name", "personas", "describe", "headline", "baseline", "llm_judge")
        # How an endpoint is asked changes no reading.
        asking = {"key_variable", "timeout", "attempts", "workers"}
        served = {"server", "key_variable", "timeout", "attempts", "workers"}
        writing = {"shown": True, "judge_endpoint": asking, "engine": served}
        left_out = {**self.uncounted(), "writing": writing, **dict.fromkeys(whole, True)}
        record = self.model_dump(mode="json", exclude=left_out)
        # What depends on headline and baseline is settled here, so that their names need not count.
        record["repeated"] = {m.name: self.seeds_of(m.name) for m in self.methods}
        record["writing"]["methods"] = self.writing.methods or list(self.pair)
        record["writing"]["at_prompt"] = sorted(self.at_prompt)
        # Folders from before there were these go on where they are not used.
        for later in ("judge_endpoint", "embedders", "at_prompt", "engine"):
            if not record["writing"][later]:
                del record["writing"][later]
        if len(self.seeds) > 1:
            record["writing"]["seeds"] = "repeated"  # and not the first alone, as once
        record["side_effects"]["methods"] = self.side_effects.methods or list(self.pair)
        return short_hash([record, persona.model_dump(mode="json"), inputs])


def _no_twins(names: list[str], field: str, way_out: str) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"{field}: {', '.join(twins)} stands there twice; {way_out}")
