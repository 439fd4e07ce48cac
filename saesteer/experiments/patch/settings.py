"""The settings of a patching run (`configs/patching/*.yaml`), checked before anything is loaded."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from saesteer.experiments.config import ExperimentConfig, ModelSettings
from saesteer.utils.settings import Settings, Source

Component = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "pattern",
]
Attribution = Literal["attribution", "integrated_gradients"]
MetricName = Literal["logit_difference", "answer_log_probability", "kl"]
HEADS = ("z", "q", "k", "v", "pattern")
_HEAD = re.compile(r"\d{1,4}\.\d{1,4}")
_NODE = re.compile(rf"{_HEAD.pattern}(@\S+)?")
_RECEIVER = re.compile(r"final|\d{1,4}\.\d{1,4}\.[qkv]")


class PatchModelSettings(ModelSettings):
    """The language model; float32 unless said otherwise.

    A patch changes a logit difference by hundredths, which is below the step between two
    neighbouring logits of a half-precision model.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"


class IoiSettings(Settings):
    """Indirect object identification, made for the model's tokenizer.

    Attributes:
        n: How many pairs.
        seed: Seeds the choice of names, places and objects; the run's own if null.
        eight: Take the eight well-known prompts in place of n generated ones.
    """

    n: int = Field(default=32, ge=2, le=4096)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    eight: bool = False


class PromptPairSettings(Settings):
    """The prompt pairs; see `load_prompt_pairs` and `generate_ioi`.

    Attributes:
        source: A JSON or JSONL file, or a bundled set such as "capitals".
        ioi: Generated pairs in place of a source.
        max_pairs: Keep a seeded random choice of at most this many.
        both_ways: Use each pair the other way round too.
        prepend_bos: Whether prompts start with BOS.
        solved_only: Leave out pairs unless the model prefers the right answer on both prompts.
    """

    source: Source | None = None
    ioi: IoiSettings | None = None
    max_pairs: int | None = Field(default=None, ge=2)
    both_ways: bool = False
    prepend_bos: bool = True
    solved_only: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> PromptPairSettings:
        if (self.source is None) == (self.ioi is None):
            raise ValueError("give either source (a file or a bundled set) or ioi")
        return self


class AttributionSettings(Settings):
    """Attribution patching beside activation patching.

    Attributes:
        methods: "attribution" (one backward pass) and "integrated_gradients" (`steps` of them).
        steps: Points that integrated gradients average over.
        line: The way they lead along: the "inputs", or the "activations" of each layer at a time.
    """

    methods: list[Attribution] = Field(default=["attribution"], min_length=1)
    steps: int = Field(default=5, ge=1, le=512)
    line: Literal["inputs", "activations"] = "inputs"

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: list[str]) -> list[str]:
        return _each_once(methods)


class PathSettings(Settings):
    """Path patching from every head or MLP to chosen receivers.

    Attributes:
        senders: Every head ("z"), every MLP ("mlp_out"), or both.
        receivers: "final" for the final residual stream, or a head's input such as "9.9.q"; a list
            of heads' inputs is patched together.
        mlps: Whether MLPs between sender and receiver are "recomputed" or "frozen".
    """

    senders: list[Literal["z", "mlp_out"]] = Field(default=["z"], min_length=1)
    receivers: list[str | list[str]] = Field(default=["final"], min_length=1)
    mlps: Literal["recomputed", "frozen"] = "recomputed"

    @field_validator("senders")
    @classmethod
    def _once(cls, senders: list[str]) -> list[str]:
        return _each_once(senders)

    @field_validator("receivers")
    @classmethod
    def _known(cls, receivers: list[str | list[str]]) -> list[str | list[str]]:
        for group in receivers:
            names = [group] if isinstance(group, str) else group
            for name in names:
                if not _RECEIVER.fullmatch(name):
                    raise ValueError(
                        f"{name!r} is no receiver; write final, or a head's input such as 9.9.q"
                    )
            if not names or (len(names) > 1 and "final" in names):
                raise ValueError("a group of receivers is of heads' inputs alone, at least one")
        _each_once([str(group) for group in receivers])
        return receivers

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """The receivers, each group as a tuple."""
        return [(one,) if isinstance(one, str) else tuple(one) for one in self.receivers]


class CircuitSettings(Settings):
    """The search for a circuit of heads, or the test of a given one.

    Attributes:
        faithfulness: The share of what all heads do together that the circuit must keep.
        roles: Choose heads at these positions, each by itself, such as ["S2", "end"]; at all
            positions together if null.
        heads: Test this circuit in place of a search: heads such as "9.9" or "9.9@end", or
            "published", that of GPT-2 small for IOI.
        random_sets: Random sets of the circuit's heads that completeness is tried on.
    """

    faithfulness: float = Field(default=0.8, gt=0, lt=1)
    roles: list[str] | None = Field(default=None, min_length=1)
    heads: list[str] | Literal["published"] | None = None
    random_sets: int = Field(default=5, ge=0, le=1000)

    @field_validator("heads", mode="before")
    @classmethod
    def _known(cls, heads: Any) -> Any:
        return _named_heads(heads, _NODE)


class LensSettings(Settings):
    """The logit lens, and direct logit attribution.

    Attributes:
        side: Which prompts are read.
        every_position: Read the lens at every token and not at the answer's position alone.
        top: Top tokens kept at each.
    """

    side: Literal["clean", "corrupted"] = "clean"
    every_position: bool = False
    top: int = Field(default=5, ge=1, le=100)


class AttentionSettings(Settings):
    """Attention patterns to look at.

    Attributes:
        heads: Heads such as "9.9"; the strongest of head patching if null.
        n_heads: How many of the strongest.
        prompts: Of how many prompts.
    """

    heads: list[str] | None = None
    n_heads: int = Field(default=6, ge=1, le=64)
    prompts: int = Field(default=2, ge=1, le=16)

    @field_validator("heads", mode="before")
    @classmethod
    def _known(cls, heads: Any) -> Any:
        return _named_heads(heads, _HEAD)

    @property
    def chosen(self) -> list[tuple[int, int]]:
        """The named heads, as layer and head."""
        return [(int(layer), int(head)) for layer, head in (h.split(".") for h in self.heads or ())]


class FeatureSettings(Settings):
    """Patching of an SAE's features.

    Attributes:
        n_features: How many are patched one by one: the strongest by attribution.
        vector: A steering vector whose own features are patched instead, one by one and by
            cluster.
    """

    n_features: int = Field(default=32, ge=1, le=4096)
    vector: Source | None = None


class PatchConfig(ExperimentConfig):
    """Everything a patching run depends on.

    Attributes:
        name: What the run is called; part of its folder's name.
        sae: An SAE whose features are patched at its site: the bundled "smollm2", a folder, or
            "release:id".
        pairs: The prompt pairs.
        metric: What is measured at the answer position.
        modes: "denoising" (clean into corrupted: what is sufficient) and "noising" (corrupted into
            clean: what is necessary).
        components: What is patched: residual stream and sub-layers by layer and position, heads by
            layer and head.
        by_position: Of the head components, those attributed by position too.
        patch_by_position: Patch these by position as well: a run for each layer, head and
            position.
        attribution: Beside it; null leaves it out.
        path: Path patching; null leaves it out.
        circuit: The search for a circuit on half of the pairs, tested on the other half; null
            leaves it out.
        lens: The logit lens and direct logit attribution; null leaves them out.
        attention: Attention patterns; null leaves them out.
        features: Of the SAE, if one is named.
        resamples: Bootstrap resamples of the intervals over pairs.
        memory_gb: The most memory that batches of patched runs may take beside the model, GiB.
        seed: Seeds choices and resamples.
        folder: Where runs are kept.
        tracking: Where the run is recorded besides.
    """

    kind: ClassVar[str] = "patch"

    model: PatchModelSettings = PatchModelSettings()
    sae: Source | None = None
    pairs: PromptPairSettings
    metric: MetricName = "logit_difference"
    modes: list[Literal["denoising", "noising"]] = Field(default=["denoising"], min_length=1)
    components: list[Component] = Field(
        default=["resid_pre", "attn_out", "mlp_out", "z"], min_length=1
    )
    by_position: list[Component] = Field(default=[])
    patch_by_position: bool = False
    attribution: AttributionSettings | None = AttributionSettings()
    path: PathSettings | None = None
    circuit: CircuitSettings | None = None
    lens: LensSettings | None = LensSettings()
    attention: AttentionSettings | None = AttentionSettings()
    features: FeatureSettings = FeatureSettings()
    resamples: int = Field(default=2000, ge=0, le=100_000)
    memory_gb: float = Field(default=2.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("modes", "components", "by_position")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        return _each_once(names)

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


def _named_heads(heads: Any, form: re.Pattern[str]) -> Any:
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


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is named twice; name it once")
    return names
