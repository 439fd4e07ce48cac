"""Every kind of experiment, by its name."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from saesteer.utils.errors import ConfigError
from saesteer.utils.text import nearest


class Kind(NamedTuple):
    """A kind of experiment, and how its configurations look."""

    # "module:class" below `experiments`, imported when named: a command pays for its kind alone.
    experiment: str
    # The folder of its bundled configurations.
    folder: str
    # The setting that names an experiment's data, and whether it names a list of them.
    data: str
    several: bool = False
    # Where the names of bundled data are, as "module:names".
    bundled: str = ""
    # The bundled configuration that data alone is put into; the kind's defaults if None.
    base: str | None = None


_PAIRS = "saesteer.data.bundled:bundled_pair_names"
_PROMPTS = "saesteer.patching.pairs:bundled_prompt_sets"
_TASKS = "saesteer.corruption.tasks:bundled_task_names"
_SETS = "saesteer.data.labelled:BUNDLED_SETS"
KINDS = {
    "steer": Kind("steer.experiment:Steer", ".", "pairs.source", bundled=_PAIRS),
    "compare": Kind("compare.experiment:Compare", "compare", "personas", True, _PAIRS, "personas"),
    "corrupt": Kind(
        "corrupt.experiment:Corrupt", "corruption", "tasks.source", True, _TASKS, "depth"
    ),
    "patch": Kind(
        "patch.experiment:Patch", "patching", "pairs.source", bundled=_PROMPTS, base="capitals"
    ),
    "probe": Kind("probe.experiment:TrainProbes", "probes", "data.source", bundled=_SETS),
    "steering_bench": Kind("measure.steering_bench:SteeringBench", "steering_bench", "source"),
    "axbench": Kind("measure.axbench:AxBench", "axbench", "source"),
    "train_sae": Kind("train_sae:TrainSae", "sae", "corpus", several=True, base="smollm2"),
}
# What records and settings files call them.
_RECORDED = {"run": "steer", "probe-train": "probe", "sae-train": "train_sae"}


def kind_name(word: Any) -> str:
    """A kind's own name, where a record or a settings file may give another one."""
    return _RECORDED.get(str(word), str(word))


def experiment_named(kind: str) -> Any:
    """The class of a kind of experiment, by its own name or the one in records."""
    known = kind_name(kind)
    if known not in KINDS:
        raise ConfigError(f"experiment {kind!r} is unknown{nearest(kind, KINDS)}.")
    return imported(f"saesteer.experiments.{KINDS[known].experiment}")


def imported(place: str) -> Any:
    """What "module:name" stands for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
