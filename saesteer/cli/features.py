"""`saesteer features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.utils.errors import ConfigError, OutputError
from saesteer.utils.terminal import say

if TYPE_CHECKING:
    from saesteer.saes.sources import FeatureSource


def features_command(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    top: Annotated[int, typer.Option(min=0, help="How many features to show.")] = 32,
    quick_list: Annotated[
        bool,
        typer.Option("--quick-list", help="Print the link to all features on Neuronpedia (150)."),
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Ask Neuronpedia for descriptions not in the cache.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(help="MODEL/SOURCE on Neuronpedia; what the run's SAE says if left out."),
    ] = None,
) -> None:
    """Show the features of a run's vector, with links to Neuronpedia where it has the SAE."""
    from saesteer.report.features import cluster_colours, feature_table
    from saesteer.report.terminal import console, print_table
    from saesteer.saes.sources import known_source

    rows, sae, name, noted = _read(folder)
    where = known_source(sae, source, noted)
    try:
        kept = [row for row in rows if row["weight"]]
        if rows == []:
            console().print("The run's vector is dense: it is made of no SAE features.")
            return
        if not (isinstance(rows, list) and kept):
            raise ValueError("none of them has a weight")
        if quick_list:
            _print_quick_list(kept, where, name, sae)
            return
        if where is not None:
            _describe(kept[:top], where, fetch)
        table = feature_table(kept, cluster_colours([row["cluster"] for row in kept]), most=top)
        print_table(console(), table, where="features.parquet")
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{folder / 'features.json'} holds no features of a run ({error!r}); delete it and "
            "run saesteer run again."
        ) from error
    if where is None and fetch:
        console().print("The run's SAE is not on Neuronpedia, so nothing was asked there.")


def _read(folder: Path) -> tuple[list[dict[str, Any]], str | None, str, str | None]:
    """Return a run's features, SAE, name, and the SAE's place on Neuronpedia if it was noted."""
    from saesteer.saes.labels import PLACE_KEY
    from saesteer.utils.run_folder import RunFolder

    if not (folder / "features.json").is_file():
        raise OutputError(f"{folder} holds no features.json; give the folder of a finished run.")
    run = RunFolder(folder)
    rows = run.read_json("features.json")
    known: dict[str, Any] = {}
    for file in ("run.json", "config.json"):
        found = run.read_json(file) if run.has(file) else {}
        known |= found if isinstance(found, dict) else {}
    sae = known.get("sae")
    sae = sae if isinstance(sae, str) and sae else None
    return rows, sae, str(known.get("name") or folder.name), known.get(PLACE_KEY)


def _describe(rows: list[dict[str, Any]], where: FeatureSource, fetch: bool) -> None:
    """Put Neuronpedia's words and links into rows."""
    from saesteer.saes.neuronpedia import dashboard_url
    from saesteer.utils.progress import terminal_progress

    client = where.client
    if fetch and client.service.offline:
        terminal_progress().say("The network is switched off, so Neuronpedia is not asked.")
    labels = client.labels(where.there, [int(row["feature"]) for row in rows], ask=fetch)
    for row in rows:
        index = int(row["feature"])
        row["description"] = labels.get(index) or row.get("description")
        row["url"] = dashboard_url(where.there, index, site=client.service.site)
    where.say_what_is_left()


def _print_quick_list(
    rows: list[dict[str, Any]], where: FeatureSource | None, name: str, sae: str | None
) -> None:
    from saesteer.saes.neuronpedia import quick_list

    if where is None:
        raise ConfigError(
            f"the run's SAE ({sae or 'unknown'}) is not on Neuronpedia, so there is no list of its "
            "features there; name its place with --source MODEL/SOURCE if it is."
        )
    shown = [int(row["feature"]) for row in rows]
    made = quick_list(where.there, shown, name, site=where.client.service.site)
    # The link alone on standard output, for scripts.
    say(made.url)
    if made.n_left_out:
        say(
            f"shows the {made.n_shown} features with the largest weights; {made.n_left_out} more "
            "do not fit in one list.",
            err=True,
        )
