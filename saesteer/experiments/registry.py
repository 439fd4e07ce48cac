"""The settings of experiments: bundled, read from files, or what words on a command line mean."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saesteer.experiments.kinds import KINDS, experiment_named, imported, kind_name
from saesteer.utils.cache import Cache
from saesteer.utils.errors import ConfigError
from saesteer.utils.files import portable_name
from saesteer.utils.progress import Progress
from saesteer.utils.settings import apply_override, parse_config, read_yaml
from saesteer.utils.text import nearest

# What else has bundled configurations: these are no experiments, and have commands of their own.
OTHERS = {"sweep": "sweeps", "agent": "agent"}


class Given(NamedTuple):
    """The settings of one experiment, unchecked, and where they come from."""

    data: dict[str, Any]
    place: str

    @classmethod
    def read(cls, path: Path, place: str) -> Given:
        """What a YAML file holds."""
        return cls(read_yaml(path, empty="settings; write 'name: value' lines"), place)


class BundledConfig(NamedTuple):
    """A configuration that comes with saesteer."""

    name: str
    kind: str
    path: Path

    @property
    def full_name(self) -> str:
        """The name that no other one has."""
        return f"{self.kind}/{self.name}"

    @property
    def about(self) -> str:
        """What it is for: the first line of the file, a comment."""
        return self.path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def configs_folder() -> Path:
    """The folder `configs/` of a checkout, or what an installed package carries in its place."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package.parent / "configs", package / "_configs")
    for folder in candidates:
        if (folder / "agreeableness.yaml").is_file():
            return folder
    raise ConfigError(
        f"the bundled configurations are in neither {candidates[0]} nor {candidates[1]}; install "
        "saesteer again, or give a YAML file of your own."
    )


def bundled_configs(kind: str | None = None) -> list[BundledConfig]:
    """The bundled configurations, of one kind or of all, in the order of kinds and names."""
    folders = {name: known.folder for name, known in KINDS.items()} | OTHERS
    return [
        BundledConfig(file.stem, name, file)
        for name, folder in folders.items()
        if kind in (None, name)
        for file in sorted((configs_folder() / folder).glob("*.yaml"))
    ]


def find_config(word: str, kind: str | None = None) -> BundledConfig | None:
    """The bundled configuration of a name such as "agreeableness" or "patch/sentiment"."""
    found = [one for one in bundled_configs(kind) if word in (one.name, one.full_name)]
    if len(found) > 1:
        names = " or ".join(one.full_name for one in found)
        raise ConfigError(f"{word!r} is the name of several configurations; give {names}.")
    return found[0] if found else None


def find_settings(words: Sequence[str], kind: str) -> list[Given]:
    """The settings that words stand for: one experiment or several, unchecked.

    A word is the name of a bundled configuration or of bundled data, a file of data, or a file of
    settings. Data becomes an experiment of its own, in a bundled configuration's settings or the
    kind's defaults; where a kind takes several sets of data in one experiment, all of them are
    one, in the settings of the configuration beside them.
    """
    given = [_named_settings(word, kind) or _checked_data(word, kind) for word in words]
    if not KINDS[kind].several:
        return [_on_data(None, [one], kind) if isinstance(one, str) else one for one in given]
    configs = [one for one in given if isinstance(one, Given)]
    data = [one for one in given if isinstance(one, str)]
    if data and len(configs) > 1:
        raise ConfigError(
            f"{data[0]} could belong to {configs[0].place} or to {configs[1].place}; give one "
            "configuration with data."
        )
    return [_on_data(configs[0] if configs else None, data, kind)] if data else configs


def _named_settings(word: str, kind: str) -> Given | None:
    """The settings that a word names, bundled or in a file; None if it names none."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml") or path.name == "config.json":
        near = find_config(path.stem, kind)
        if near is not None and not os.path.exists(word):
            raise ConfigError(f"{word} cannot be read; the bundled one is called {near.name!r}.")
        return Given.read(path, str(path))
    found = find_config(word, kind)
    if found is not None and os.path.isfile(word):
        raise ConfigError(
            f"{word!r} is a bundled configuration and a file; give {found.kind}/{word} or ./{word}."
        )
    return None if found is None else Given.read(found.path, found.full_name)


def _checked_data(word: str, kind: str) -> str:
    """A word that names bundled data or a file of data."""
    bundled = KINDS[kind].bundled
    names = imported(bundled) if bundled else ()
    known: Any = names() if callable(names) else names
    if word in known or (kind == "corrupt" and word == "bundled"):
        if os.path.isfile(word):
            raise ConfigError(f"{word!r} is bundled data and a file; give ./{word}, or rename it.")
        return word
    if os.path.exists(word):
        return word
    if Path(word).suffix or "/" in word:
        raise ConfigError(f"{word} is not there; give a file, or a name from saesteer configs.")
    other = find_config(word)
    if other is not None:
        raise ConfigError(
            f"{word!r} is a configuration of kind {other.kind} and not {kind}; run it as that."
        )
    all_names = {*known, *(one.name for one in bundled_configs(kind))}
    raise ConfigError(
        f"{word!r} is no file and no bundled configuration or data{nearest(word, all_names)}; "
        "saesteer configs lists what is bundled."
    )


def _on_data(config: Given | None, words: list[str], kind: str) -> Given:
    """A configuration's settings with other data; a kind's own settings get a name of their own."""
    known, base = KINDS[kind], config or Given({}, " ".join(words))
    if config is None and known.base is not None:
        found = find_config(known.base, kind)
        base = base if found is None else Given.read(found.path, base.place)
    group, _, setting = known.data.rpartition(".")
    texts: Any = words if kind != "train_sae" else [{"path": word} for word in words]
    changed: dict[str, Any] = {setting: texts if known.several else texts[0]}
    if group:
        changed = {group: {**base.data.get(group, {}), **changed}}
    if config is None and kind != "train_sae":
        stems = [Path(word).name.split(".")[0] for word in words]
        more = [f"{len(stems) - 3}-more"] if len(stems) > 3 else []
        name = portable_name("-".join([*stems[:3], *more]))
        changed["name"] = re.sub(r"^[^A-Za-z0-9]+", "", name) or "mine"
    return Given({**base.data, **changed}, base.place)


def load_experiment(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Any:
    """Read the settings of an experiment of any kind; overrides, such as "seed=1", win over them.

    The source is a YAML file or the name of a bundled configuration; `kind:` in it says which kind
    it is where its other fields do not.
    """
    bundled = None if os.path.isfile(source) else find_config(str(source))
    if bundled is not None:
        return _parsed(Given.read(bundled.path, bundled.full_name), overrides, bundled.kind)
    return _parsed(Given.read(Path(source), str(source)), overrides)


def load_experiments(
    words: Sequence[str], overrides: Sequence[str] = (), *, kind: str
) -> list[Any]:
    """Read the settings that words stand for, as `find_settings` has it, and check them."""
    return [_parsed(given, overrides, kind) for given in find_settings(words, kind)]


def _parsed(given: Given, overrides: Sequence[str], kind: str | None = None) -> Any:
    """Check settings; which kind of experiment they are of their fields say if it is None."""
    data = dict(given.data)
    for override in overrides:
        apply_override(data, override)
    named = data.pop("kind", None)
    if named is not None and kind is not None and kind_name(named) != kind:
        raise ConfigError(f"{given.place} is of kind {named} and not {kind}; run it as {named}.")
    kinds = [kind or named] if kind or named else list(KINDS)
    configs = [experiment_named(str(one)).Config for one in kinds]
    # The one that knows most of the fields; of several, the main one.
    config = max(configs, key=lambda one: len(one.model_fields.keys() & data.keys()))
    return parse_config(data, kind=config, place=given.place)


def full_yaml(config: Any) -> str:
    """All of an experiment's settings, as a YAML file that is the same experiment."""
    import yaml

    record = {"kind": kind_name(config.kind), **config.model_dump(mode="json")}
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
