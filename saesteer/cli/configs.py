"""`saesteer configs`: the bundled configurations."""

from __future__ import annotations

from typing import Annotated

import typer

from saesteer.utils.terminal import say


def configs_command(
    name: Annotated[
        str | None, typer.Argument(help="Print this one in full, as YAML to start from.")
    ] = None,
) -> None:
    """List the bundled configurations, or print one with all its settings."""
    from saesteer.experiments.registry import OTHERS, bundled_configs, find_config
    from saesteer.report.terminal import console, grid
    from saesteer.utils.errors import ConfigError
    from saesteer.utils.text import nearest

    if name is None:
        listed = grid("name", "kind", "about")
        for one in bundled_configs():
            listed.add_row(one.name, one.kind, one.about)
        console().print(listed)
        return
    found = find_config(name)
    if found is None:
        known = nearest(name, {one.name for one in bundled_configs()})
        raise ConfigError(f"no bundled configuration is called {name!r}{known}.")
    if found.kind in OTHERS:
        say(found.path.read_text(encoding="utf-8"), end="")
        return
    from saesteer.experiments.registry import full_yaml, load_experiment

    say(full_yaml(load_experiment(f"{found.kind}/{found.name}")), end="")
