"""Every kind of experiment, by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from saesteer.experiments.base import Experiment
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
}
# What records and settings files call them.
_RECORDED = {"run": "steer", "probe-train": "probe"}


def experiment_named(kind: str) -> type[Experiment]:
    """Return a kind of experiment.

    Raises:
        ConfigError: There is no such kind.
    """
    known = _RECORDED.get(kind, kind)
    if known not in KINDS:
        raise ConfigError(f"experiment {kind!r} is unknown{nearest(kind, KINDS)}.")
    module, name = KINDS[known].split(":")
    return getattr(import_module(module), name)


def load_experiment(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Any:
    """Read the settings of an experiment of any kind.

    Args:
        path: A YAML file; `kind:` in it says which kind it is where its other fields do not.
        overrides: Settings that win over the file's, such as "seed=1".

    Raises:
        ConfigError: The file cannot be read, fits no kind, or a value does not fit.
    """
    data = read_yaml(Path(path), empty="settings; write 'name: value' lines")
    for override in overrides:
        apply_override(data, override)
    named = data.pop("kind", None)
    kinds = [experiment_named(kind).Config for kind in ([str(named)] if named else KINDS)]
    # The one that knows most of the fields; of several, the main one.
    config = max(kinds, key=lambda kind: len(kind.model_fields.keys() & data.keys()))
    return parse_config(data, kind=config, place=str(path))


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
        experiment: Its settings, or the YAML file that holds them.
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
