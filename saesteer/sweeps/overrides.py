"""Settings that a sweep gives a run: as `key=value` words, and in the file of W&B's agent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from saesteer.utils.errors import ConfigError
from saesteer.utils.settings import put, read_word, read_yaml
from saesteer.utils.values import flatten

PARAMETER_FILE = "WANDB_SWEEP_PARAM_PATH"
# A parameter of this name, or of one that begins so, holds settings that change together.
TOGETHER = "together"
_OF_WANDB = ("wandb_version", "_wandb")


def swept_overrides(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return overrides of the form a.b=c that a trial's command line and environment ask for.

    Args:
        words: Arguments as W&B's `${args_no_hyphens}` renders them, such as "seed=1" or
            "selection={'n_features': 32}".
        environ: The environment; where an agent of W&B named a file of parameters, its values win.
    """
    found: dict[str, Any] = {}
    for word in words:
        found |= flattened(dict([read_word(word)]))
    file = environ.get(PARAMETER_FILE)
    if file:
        found |= flattened(_read_parameter_file(Path(file)))
    return [f"{name}={yaml_text(value)}" for name, value in found.items()]


def _read_parameter_file(file: Path) -> dict[str, Any]:
    """Return the parameters that W&B's agent wrote for one trial: YAML of `name: {value: v}`."""
    try:
        data = read_yaml(file, empty="parameters; unset the variable to run outside a sweep")
    except ConfigError as error:
        raise ConfigError(f"{PARAMETER_FILE}: {error}") from error
    held = {str(name): value for name, value in data.items() if name not in _OF_WANDB}
    for name, value in held.items():
        if not isinstance(value, dict) or "value" not in value:
            raise ConfigError(
                f"{PARAMETER_FILE}: {file}: {name} does not hold 'name: {{value: v}}' as W&B's "
                "agent writes it; unset the variable to run outside a sweep."
            )
    return {name: value["value"] for name, value in held.items()}


def flattened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with dotted names for what is nested, and without `together`."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        together = name == TOGETHER or name.startswith(f"{TOGETHER}.")
        if together and isinstance(value, Mapping) and value:
            flat |= flattened(value)
        else:
            flat |= flatten({name: value})
    return flat


def merged(settings: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with parameters in them: dotted names un-flattened, mappings merged."""
    found = deepcopy(dict(settings))
    for name, value in flattened(parameters).items():
        put(found, name, deepcopy(value))
    return found


def yaml_text(value: Any) -> str:
    """Return a value as one line of YAML that reads back as the same value."""
    import yaml

    text = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=2**31
    )
    text = text.strip().removesuffix("...").strip()
    # Text of several lines is folded by YAML, and is YAML as JSON too.
    return json.dumps(value) if "\n" in text else text
