"""Configurations and data that come with saesteer, and what a word on a command line stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saesteer.utils.errors import ConfigError
from saesteer.utils.files import portable_name
from saesteer.utils.settings import read_yaml
from saesteer.utils.text import nearest

EMPTY = "settings; write 'name: value' lines"


class Layout(NamedTuple):
    """How the configurations of one kind of experiment look.

    Attributes:
        folder: The folder of the bundled ones.
        data: The setting that names an experiment's data.
        several: Whether it names a list of them.
        base: The bundled configuration that data alone is put into; the kind's defaults if None.
    """

    folder: str
    data: str
    several: bool = False
    base: str | None = None


LAYOUTS = {
    "steer": Layout(".", "pairs.source"),
    "compare": Layout("compare", "personas", several=True, base="personas"),
    "corrupt": Layout("corruption", "tasks.source", several=True, base="depth"),
    "patch": Layout("patching", "pairs.source", base="capitals"),
    "probe": Layout("probes", "data.source"),
    "train_sae": Layout("sae", "corpus", several=True, base="smollm2"),
}
# What else has bundled configurations: these are no experiments, and have commands of their own.
OTHERS = {"sweep": "sweeps", "agent": "agent"}


class Given(NamedTuple):
    """The settings of one experiment, unchecked, and where they come from."""

    data: dict[str, Any]
    place: str


class BundledConfig(NamedTuple):
    """A configuration that comes with saesteer."""

    name: str
    kind: str
    path: Path

    @property
    def about(self) -> str:
        """What it is for: the first line of the file, a comment."""
        return self.path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")

    def settings(self) -> Given:
        """Return what it holds."""
        return Given(read_yaml(self.path, empty=EMPTY), f"{self.kind}/{self.name}")


def configs_folder() -> Path:
    """Return `configs/` of a checkout, or what an installed package carries in its place.

    Raises:
        ConfigError: Neither is there.
    """
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
    """Return the bundled configurations, of one kind or of all, in the order of kinds and names."""
    folders = {name: layout.folder for name, layout in LAYOUTS.items()} | OTHERS
    return [
        BundledConfig(file.stem, name, file)
        for name, folder in folders.items()
        if kind in (None, name)
        for file in sorted((configs_folder() / folder).glob("*.yaml"))
    ]


def find_config(word: str, kind: str | None = None) -> BundledConfig | None:
    """Return the bundled configuration of a name such as "agreeableness" or "patch/sentiment".

    Raises:
        ConfigError: Several kinds have one of this name.
    """
    there = bundled_configs(kind)
    found = [one for one in there if word in (one.name, f"{one.kind}/{one.name}")]
    if len(found) > 1:
        names = " or ".join(f"{one.kind}/{one.name}" for one in found)
        raise ConfigError(f"{word!r} is the name of several configurations; give {names}.")
    return found[0] if found else None


def bundled_data(kind: str) -> tuple[str, ...]:
    """Return the names of the data that a kind of experiment can be run on."""
    if kind in ("steer", "compare"):
        from saesteer.data.bundled import bundled_pair_names

        return bundled_pair_names()
    if kind == "patch":
        from saesteer.patching.pairs import bundled_prompt_sets

        return bundled_prompt_sets()
    if kind == "corrupt":
        from saesteer.corruption.tasks import bundled_task_names

        return bundled_task_names()
    if kind == "probe":
        from saesteer.data.labelled import BUNDLED_SETS

        return BUNDLED_SETS
    return ()


def find_settings(words: Sequence[str], kind: str) -> list[Given]:
    """Return the settings that words stand for: one experiment or several, unchecked.

    A word is the name of a bundled configuration or of bundled data, a file of data, or a file of
    settings. Data becomes an experiment of its own, in a bundled configuration's settings or the
    kind's defaults; where a kind takes several sets of data in one experiment, all of them are
    one, in the settings of the configuration beside them.

    Args:
        words: The words.
        kind: The kind of experiment.

    Raises:
        ConfigError: A word stands for nothing, or for two things, or a file cannot be read.
    """
    given = [_named_settings(word, kind) or _checked_data(word, kind) for word in words]
    if not LAYOUTS[kind].several:
        return [
            _on_data(_base(kind), [one], kind) if isinstance(one, str) else one for one in given
        ]
    configs = [one for one in given if isinstance(one, Given)]
    data = [one for one in given if isinstance(one, str)]
    if not data:
        return configs
    if len(configs) > 1:
        raise ConfigError(
            f"{data[0]} could belong to {configs[0].place} or to {configs[1].place}; give one "
            "configuration with data."
        )
    return [_on_data(configs[0] if configs else _base(kind), data, kind)]


def _named_settings(word: str, kind: str) -> Given | None:
    """Return the settings that a word names, bundled or in a file; None if it names none."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml") or path.name == "config.json":
        near = find_config(path.stem, kind)
        if near is not None and not os.path.exists(word):
            raise ConfigError(f"{word} cannot be read; the bundled one is called {near.name!r}.")
        return Given(read_yaml(path, empty=EMPTY), str(path))
    found = find_config(word, kind)
    if found is None:
        return None
    if os.path.isfile(word):
        raise ConfigError(
            f"{word!r} is a bundled configuration and a file; give {found.kind}/{word} or ./{word}."
        )
    return found.settings()


def _checked_data(word: str, kind: str) -> str:
    known = bundled_data(kind)
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
    names = {*known, *(one.name for one in bundled_configs(kind))}
    raise ConfigError(
        f"{word!r} is no file and no bundled configuration or data{nearest(word, names)}; "
        "saesteer configs lists what is bundled."
    )


def _base(kind: str) -> Given:
    """Return the settings that data alone is put into, from no place of their own."""
    base = LAYOUTS[kind].base
    found = None if base is None else find_config(base, kind)
    return Given({} if found is None else found.settings().data, "")


def _on_data(base: Given, words: list[str], kind: str) -> Given:
    """Return a base's settings with other data; a base without a place gets a name of its own."""
    layout = LAYOUTS[kind]
    group, _, setting = layout.data.rpartition(".")
    texts: Any = words if kind != "train_sae" else [{"path": word} for word in words]
    changed: dict[str, Any] = {setting: texts if layout.several else texts[0]}
    if group:
        changed = {group: {**base.data.get(group, {}), **changed}}
    if not base.place and kind != "train_sae":
        changed["name"] = _name_of(words)
    return Given({**base.data, **changed}, base.place or " ".join(words))


def _name_of(words: list[str]) -> str:
    stems = [Path(word).name.split(".")[0] for word in words]
    more = [f"{len(stems) - 3}-more"] if len(stems) > 3 else []
    return re.sub(r"^[^A-Za-z0-9]+", "", portable_name("-".join([*stems[:3], *more]))) or "mine"
