"""Every kind of experiment, by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from saesteer.experiments.base import Experiment
from saesteer.experiments.bundled import EMPTY, Given, find_config, find_settings
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError
from saesteer.utils.progress import Progress
from saesteer.utils.settings import apply_override, parse_config, read_yaml
from saesteer.utils.text import nearest

# Loaded when named, so that a command pays for its own kind alone.
KINDS = {
    "steer": "saesteer.experiments.steer.experiment:Steer",
    "compare": "saesteer.experiments.compare.experiment:Compare",
    "corrupt": "saesteer.experiments.corrupt.experiment:Corrupt",
    "patch": "saesteer.experiments.patch.experiment:Patch",
    "probe": "saesteer.experiments.probe.experiment:TrainProbes",
    "train_sae": "saesteer.experiments.train_sae:TrainSae",
}
# What records and settings files call them.
RECORDED = {"run": "steer", "probe-train": "probe", "sae-train": "train_sae"}


def experiment_named(kind: str) -> type[Experiment]:
    """Return a kind of experiment.

    Raises:
        ConfigError: There is no such kind.
    """
    known = RECORDED.get(kind, kind)
    if known not in KINDS:
        raise ConfigError(f"experiment {kind!r} is unknown{nearest(kind, KINDS)}.")
    module, name = KINDS[known].split(":")
    return getattr(import_module(module), name)


def load_experiment(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Any:
    """Read the settings of an experiment of any kind.

    Args:
        source: A YAML file, or the name of a bundled configuration; `kind:` in it says which kind
            it is where its other fields do not.
        overrides: Settings that win over the file's, such as "seed=1".

    Raises:
        ConfigError: The file cannot be read, fits no kind, or a value does not fit.
    """
    bundled = None if os.path.isfile(source) else find_config(str(source))
    if bundled is not None:
        return parse_experiment(bundled.settings(), overrides, bundled.kind)
    return parse_experiment(Given(read_yaml(Path(source), empty=EMPTY), str(source)), overrides)


def load_experiments(
    words: Sequence[str], overrides: Sequence[str] = (), *, kind: str
) -> list[Any]:
    """Read the settings that words stand for, as `find_settings` has it, and check them.

    Raises:
        ConfigError: As in `find_settings`, or a value does not fit, or a file is of another kind.
    """
    return [parse_experiment(given, overrides, kind) for given in find_settings(words, kind)]


def parse_experiment(given: Given, overrides: Sequence[str] = (), kind: str | None = None) -> Any:
    """Check the settings of an experiment; which kind it is its fields say if `kind` is None.

    Raises:
        ConfigError: A value does not fit, or the settings are of another kind.
    """
    data = dict(given.data)
    for override in overrides:
        apply_override(data, override)
    named = data.pop("kind", None)
    if named is not None and kind is not None and RECORDED.get(str(named), str(named)) != kind:
        raise ConfigError(f"{given.place} is of kind {named} and not {kind}; run it as {named}.")
    kinds = [kind or named] if kind or named else list(KINDS)
    configs = [experiment_named(str(one)).Config for one in kinds]
    # The one that knows most of the fields; of several, the main one.
    config = max(configs, key=lambda one: len(one.model_fields.keys() & data.keys()))
    return parse_config(data, kind=config, place=given.place)


def full_yaml(config: Any) -> str:
    """Return all of an experiment's settings, as a YAML file that is the same experiment."""
    import yaml

    record = {"kind": RECORDED.get(config.kind, config.kind), **config.model_dump(mode="json")}
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=100)


def run_experiment(
    experiment: Any,
    progress: Progress | None = None,
    cache: Cache | None = None,
    *,
    overrides: Sequence[str] = (),
    **record: Any,
) -> Any:
    """Run an experiment of any kind; what its folder holds already is not done again.

    Args:
        experiment: Its settings, the YAML file that holds them, or a bundled configuration's name.
        progress: Where to show progress.
        cache: What other experiments of this process have loaded already; nothing if None.
        overrides: Settings that win over the file's.
        record: What else its record says: `tags`, `group` and `parent` of `recorded_run`.

    Returns:
        The `Results` of its kind, which read from its folder what they are asked for.

    Raises:
        SaesteerError: Something does not fit; said before the model is loaded where possible.

    Example:
        >>> from saesteer.experiments.steer.config import RunConfig
        >>> results = ss.run(RunConfig(**settings))
        >>> str(results.vector.site)
        'blocks.1.hook_resid_post'
    """
    config = experiment
    if isinstance(experiment, str | os.PathLike):
        config = load_experiment(experiment, overrides)
    return experiment_named(config.kind)(config, progress, cache).run(**record)


# What it is called as `saesteer.run`.
run = run_experiment
