"""The settings of an agent (`configs/agent/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from saesteer.evaluation.llm_client import Endpoint
from saesteer.utils.redaction import check_no_secret
from saesteer.utils.settings import Settings, TrackingSettings, short_hash

DEFAULT = Path(__file__).parent / "default.yaml"
LAYER = "{layer}"
# Those of the registry in which every setting that names a place is known to do so.
Kind = Literal["corrupt", "run", "steer", "compare", "probe", "patch"]


class BudgetSettings(Settings):
    """What the program lets the planner spend; it ends when any of it is spent."""

    experiments: int = Field(default=20, ge=1)
    # Prompts and answers together.
    tokens: int = Field(default=300_000, ge=1)
    # What those tokens may cost, in the currency of the prices.
    money: float | None = Field(default=None, gt=0)
    # Experiments and waiting together, over all sessions of a resumed agent.
    seconds: float = Field(default=3600.0, gt=0)
    # Answers, refused ones included; four an experiment and ten if null.
    turns: int | None = Field(default=None, ge=1)
    # Refused answers in a row that end it, and proposals of one experiment.
    refusals: int = Field(default=6, ge=1)
    repeats: int = Field(default=3, ge=1)

    @property
    def most_turns(self) -> int:
        """How many answers the planner may give."""
        return self.turns or 4 * self.experiments + 10


class PlannerSettings(Settings):
    """Who plans; see `saesteer.evaluation.llm_client.Endpoint` for how it is asked."""

    # "llm" asks an endpoint, "seeded" needs no language model; "auto" is "llm" where `model` names
    # one.
    kind: Literal["auto", "seeded", "llm"] = "auto"
    model: str | None = None
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    # Whether the endpoint knows tool calling; "auto" tries, and falls back on JSON answers.
    tools: bool | Literal["auto"] = "auto"
    max_tokens: int = Field(default=1024, ge=16)
    timeout: float = Field(default=120.0, gt=0)
    attempts: int = Field(default=4, ge=1)
    first_wait: float = Field(default=1.0, ge=0)
    # Of a million tokens.
    price_in: float | None = Field(default=None, ge=0)
    price_out: float | None = Field(default=None, ge=0)

    @property
    def chosen(self) -> Literal["seeded", "llm"]:
        """The planner that "auto" stands for."""
        if self.kind != "auto":
            return self.kind
        return "llm" if self.model else "seeded"

    def endpoint(self) -> Endpoint:
        """Return whom to ask."""
        names = ("base_url", "key_variable", "timeout", "attempts", "first_wait", "max_tokens")
        asked: dict[str, Any] = {name: getattr(self, name) for name in names}
        return Endpoint(model=self.model or "", called="the planner", **asked)


class SearchSettings(Settings):
    """The space that the seeded planner searches by successive halving.

    Li et al., "Hyperband", JMLR 18 (2018), section 2: all candidates are measured cheaply, the
    best share of them again at more cost, until one is left.
    """

    kind: Kind
    # Values by setting; a candidate takes one of each. Words with "{layer}" in them stand for one
    # value for each of the model's layers.
    parameters: dict[str, list[JsonValue] | str] = Field(min_length=1)
    # The one setting that takes a list, so that candidates can share one experiment.
    batch: str | None = None
    # Where it stands in the metrics: keys from outside in, "a=b" for the record of a list whose
    # field `a` is `b`, and "{candidate}" for the batched setting's value.
    metric: list[str] = Field(min_length=1)
    goal: Literal["maximize", "minimize"] = "maximize"
    # The setting that makes an experiment dearer, and its values from cheap to dear.
    fidelity: str | None = None
    rungs: list[JsonValue] = Field(default=[])
    # The share that goes on to the next rung.
    keep: float = Field(default=0.34, gt=0, lt=1)
    # What is found, for the notes; such as "the layer whose removal costs most".
    question: str = "the best setting"

    @model_validator(mode="after")
    def _fits(self) -> SearchSettings:
        for name, values in self.parameters.items():
            if not values:
                raise ValueError(f"parameters.{name} has no value; give some")
            if isinstance(values, str):
                if LAYER not in values:
                    raise ValueError(
                        f"parameters.{name} is one value; give a list, or words with {LAYER} in "
                        "them"
                    )
            elif any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"parameters.{name} names a value twice; name each once")
        if self.batch is not None and self.batch not in self.parameters:
            raise ValueError(f"batch {self.batch!r} is none of the parameters; name one of them")
        if (self.fidelity is None) != (not self.rungs):
            raise ValueError("fidelity and rungs belong together; give both or neither")
        return self

    @property
    def by_layer(self) -> bool:
        """Whether the space depends on how many layers the model has."""
        return any(isinstance(values, str) for values in self.parameters.values())

    def spelt_out(self, n_layers: int) -> dict[str, list[JsonValue]]:
        """Return every parameter's values for a model of so many layers."""
        return {
            name: [values.replace(LAYER, str(layer)) for layer in range(n_layers)]
            if isinstance(values, str)
            else values
            for name, values in self.parameters.items()
        }


class AgentConfig(Settings):
    """Everything an agent depends on."""

    name: Annotated[str, AfterValidator(check_no_secret)] = Field(
        default="agent", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60
    )
    goal: str = Field(min_length=1, max_length=2000)
    # Base settings by kind of experiment, or a file of them; no other kind can be run.
    experiments: dict[Kind, dict[str, Any] | str] = Field(min_length=1)
    budget: BudgetSettings = BudgetSettings()
    planner: PlannerSettings = PlannerSettings()
    search: SearchSettings | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    # Of the agent and its experiments.
    folder: str = "runs"
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _complete(self) -> AgentConfig:
        planner = self.planner
        if planner.chosen == "llm" and not planner.model:
            raise ValueError("planner.model is empty; name a model that the endpoint serves")
        if planner.chosen == "seeded" and self.search is None:
            raise ValueError(
                "the seeded planner needs a search; give one, or name a planner.model to ask"
            )
        if self.search is not None and self.search.kind not in self.experiments:
            raise ValueError(
                f"search.kind {self.search.kind!r} is none of the experiments; add it there"
            )
        prices = (planner.price_in, planner.price_out)
        if planner.chosen == "llm" and self.budget.money is not None and None in prices:
            raise ValueError(
                "budget.money needs planner.price_in and planner.price_out; give the prices of a "
                "million tokens, or leave money out"
            )
        return self

    def digest(self) -> str:
        """Return a short hash of what the agent's choices depend on.

        The budget is left out: more of it goes on with the same agent. So is how the endpoint is
        reached and what it costs.
        """
        reached = {"base_url", "key_variable", "timeout", "attempts", "first_wait"}
        planner = {*reached, "price_in", "price_out"}
        left_out: Any = {"folder": True, "budget": True, "tracking": True, "planner": planner}
        return short_hash(self.model_dump(mode="json", exclude=left_out))

    @property
    def path(self) -> Path:
        """Where an agent of these settings is kept; its name is its experiments' group."""
        return Path(self.folder) / f"{self.name}-{self.digest()}"
