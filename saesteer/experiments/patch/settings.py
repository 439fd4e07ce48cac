"""The settings of a patching run (`configs/patching/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from saesteer.experiments.config import ExperimentConfig, PreciseModelSettings
from saesteer.utils.settings import Settings, Source

# fmt: off
Component = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"
]
# fmt: on
HEADS = ("z", "q", "k", "v", "pattern")
_HEAD = re.compile(r"\d{1,4}\.\d{1,4}")
_NODE = re.compile(rf"{_HEAD.pattern}(@\S+)?")
_RECEIVER = re.compile(r"final|\d{1,4}\.\d{1,4}\.[qkv]")


def _each_once(names: list[Any]) -> list[Any]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is named twice; name it once")
    return names


def _heads_named(form: re.Pattern[str]) -> BeforeValidator:
    def check(heads: Any) -> Any:
        if not isinstance(heads, list):
            return heads
        if not heads:
            raise ValueError("there is no head in the list; name one, or give null")
        for name in heads:
            # Without quotes YAML reads the head 9.10 as the number 9.1.
            if not isinstance(name, str) or not form.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no head; write its layer and number in quotes, such as '9.10'"
                )
        return _each_once(heads)

    return BeforeValidator(check)


def _receivers(groups: list[str | list[str]]) -> list[str | list[str]]:
    for group in groups:
        names = [group] if isinstance(group, str) else group
        for name in names:
            if not _RECEIVER.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no receiver; write final, or a head's input such as 9.9.q"
                )
        if not names or (len(names) > 1 and "final" in names):
            raise ValueError("a group of receivers is of heads' inputs alone, at least one")
    return _each_once(groups)


Once = AfterValidator(_each_once)


class IoiSettings(Settings):
    """Indirect object identification, made for the model's tokenizer."""

    # How many pairs.
    n: int = Field(default=32, ge=2, le=4096)
    # Seeds the choice of names, places and objects; the run's own if null.
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    # Take the eight well-known prompts in place of n generated ones.
    eight: bool = False


class PromptPairSettings(Settings):
    """The prompt pairs; see `load_prompt_pairs` and `generate_ioi`."""

    # A JSON or JSONL file, or a bundled set such as "capitals"; or generated pairs in its place.
    source: Source | None = None
    ioi: IoiSettings | None = None
    # Keep a seeded random choice of at most this many.
    max_pairs: int | None = Field(default=None, ge=2)
    # Use each pair the other way round too.
    both_ways: bool = False
    prepend_bos: bool = True
    # Leave out pairs unless the model prefers the right answer on both prompts.
    solved_only: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> PromptPairSettings:
        if (self.source is None) == (self.ioi is None):
            raise ValueError("give either source (a file or a bundled set) or ioi")
        return self


class AttributionSettings(Settings):
    """Attribution patching beside activation patching."""

    # One backward pass, and `steps` of them.
    methods: Annotated[list[Literal["attribution", "integrated_gradients"]], Once] = Field(
        default=["attribution"], min_length=1
    )
    # Points that integrated gradients average over.
    steps: int = Field(default=5, ge=1, le=512)
    # The way they lead along: the inputs, or the activations of each layer at a time.
    line: Literal["inputs", "activations"] = "inputs"


class PathSettings(Settings):
    """Path patching from every head or MLP to chosen receivers."""

    # Every head ("z"), every MLP ("mlp_out"), or both.
    senders: Annotated[list[Literal["z", "mlp_out"]], Once] = Field(default=["z"], min_length=1)
    # "final" for the final residual stream, or a head's input such as "9.9.q"; a list of heads'
    # inputs is patched together.
    receivers: Annotated[list[str | list[str]], AfterValidator(_receivers)] = Field(
        default=["final"], min_length=1
    )
    # MLPs between sender and receiver.
    mlps: Literal["recomputed", "frozen"] = "recomputed"

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The receivers, each group as a tuple."""
        return [(one,) if isinstance(one, str) else tuple(one) for one in self.receivers]


class CircuitSettings(Settings):
    """The search for a circuit of heads, or the test of a given one."""

    # The share of what all heads do together that the circuit must keep.
    faithfulness: float = Field(default=0.8, gt=0, lt=1)
    # Choose heads at these positions, each by itself, such as ["S2", "end"]; at all positions
    # together if null.
    roles: list[str] | None = Field(default=None, min_length=1)
    # Test this circuit in place of a search: heads such as "9.9" or "9.9@end", or "published", that
    # of GPT-2 small for IOI.
    heads: Annotated[list[str] | Literal["published"] | None, _heads_named(_NODE)] = None
    # Random sets of the circuit's heads that completeness is tried on.
    random_sets: int = Field(default=5, ge=0, le=1000)


class LensSettings(Settings):
    """The logit lens, and direct logit attribution."""

    side: Literal["clean", "corrupted"] = "clean"
    # Read the lens at every token and not at the answer's position alone.
    every_position: bool = False
    # Top tokens kept at each.
    top: int = Field(default=5, ge=1, le=100)


class AttentionSettings(Settings):
    """Attention patterns to look at."""

    # Heads such as "9.9"; the strongest of head patching if null, so many.
    heads: Annotated[list[str] | None, _heads_named(_HEAD)] = None
    n_heads: int = Field(default=6, ge=1, le=64)
    # Of how many prompts.
    prompts: int = Field(default=2, ge=1, le=16)

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """The named heads, as layer and head."""
        return [(int(layer), int(head)) for layer, head in (h.split(".") for h in self.heads or ())]


class FeatureSettings(Settings):
    """Patching of an SAE's features."""

    # How many are patched one by one: the strongest by attribution.
    n_features: int = Field(default=32, ge=1, le=4096)
    # A steering vector whose own features are patched instead, one by one and by cluster.
    vector: Source | None = None


class PatchConfig(ExperimentConfig):
    """Everything a patching run depends on; a part that is null is left out."""

    kind: ClassVar[str] = "patch"

    model: PreciseModelSettings = PreciseModelSettings()
    # An SAE whose features are patched at its site: the bundled "smollm2", a folder, or
    # "release:id".
    sae: Source | None = None
    pairs: PromptPairSettings
    # What is measured at the answer position.
    metric: Literal["logit_difference", "answer_log_probability", "kl"] = "logit_difference"
    # Clean into corrupted (what is sufficient), and corrupted into clean (what is necessary).
    modes: Annotated[list[Literal["denoising", "noising"]], Once] = Field(
        default=["denoising"], min_length=1
    )
    # Residual stream and sub-layers by layer and position, heads by layer and head.
    components: Annotated[list[Component], Once] = Field(
        default=["resid_pre", "attn_out", "mlp_out", "z"], min_length=1
    )
    # Of the head components, those attributed by position too; and whether these are patched by
    # position as well: a run for each layer, head and position.
    by_position: Annotated[list[Component], Once] = Field(default=[])
    patch_by_position: bool = False
    attribution: AttributionSettings | None = AttributionSettings()
    path: PathSettings | None = None
    # Searched on half of the pairs and tested on the other half.
    circuit: CircuitSettings | None = None
    lens: LensSettings | None = LensSettings()
    attention: AttentionSettings | None = AttentionSettings()
    features: FeatureSettings = FeatureSettings()
    # Bootstrap resamples of the intervals over pairs.
    resamples: int = Field(default=2000, ge=0, le=100_000)
    # The most memory that batches of patched runs may take beside the model, GiB.
    memory_gb: float = Field(default=2.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _parts_fit(self) -> PatchConfig:
        for name in self.by_position:
            if name not in HEADS or name not in self.components:
                raise ValueError(
                    f"by_position names {name!r}, which is no head component of components; name "
                    f"one of {', '.join(c for c in self.components if c in HEADS) or 'z, q, k, v'}"
                )
        if self.features.vector is not None and self.sae is None:
            raise ValueError("features.vector needs the SAE of its features; name it as sae")
        return self

    def uncounted(self) -> dict[str, Any]:
        """Return what changes no number, and so counts in no digest."""
        return {**super().uncounted(), "memory_gb": True}
