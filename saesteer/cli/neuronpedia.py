"""`saesteer neuronpedia`: look features up, search them, steer there, import labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.utils.errors import ConfigError

if TYPE_CHECKING:
    from saesteer.cli.feature_source import FeatureSource
    from saesteer.saes.neuronpedia import FeatureHit
    from saesteer.saes.table import FeatureCard

app = typer.Typer(
    no_args_is_help=True,
    help="Features on Neuronpedia: look up, search, steer; labels for offline use.",
)
SaeName = Annotated[str, typer.Option(help="smollm2, a folder, or release:id.")]
Source = Annotated[
    str | None,
    typer.Option(help="MODEL/SOURCE on Neuronpedia; what the SAE says if left out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("feature")
def feature_command(
    features: Annotated[list[int], typer.Argument(help="One feature's number or several.")],
    sae: SaeName = "smollm2",
    source: Source = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts to show of each.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what features stand for, where they fire and which tokens they promote."""
    from saesteer.cli.feature_source import feature_source
    from saesteer.cli.show_neuronpedia import show_cards

    cards = _cards(feature_source(sae, source), features, texts)
    if as_json:
        typer.echo(json.dumps([card.as_dict() for card in cards], indent=2))
    else:
        show_cards(cards)


@app.command("search")
def search_command(
    words: Annotated[str, typer.Argument(help="What the features are to stand for.")],
    sae: SaeName = "smollm2",
    source: Source = None,
    limit: Annotated[int, typer.Option(min=1, help="The most features to show.")] = 10,
    save: Annotated[
        Path | None, typer.Option(help="Write a steering vector of the first features here.")
    ] = None,
    take: Annotated[int, typer.Option(min=1, help="How many features go into it.")] = 3,
    pick: Annotated[
        list[int] | None, typer.Option(help="These features go into it instead; repeat.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The vector's model; the SAE's own if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """From words to features, and with --save to a steering vector."""
    from saesteer.cli.feature_source import feature_source
    from saesteer.cli.show_neuronpedia import show_hits

    where = feature_source(sae, source)
    hits, note = _hits(where, words, limit)
    if as_json:
        typer.echo(json.dumps([vars(hit) for hit in hits], indent=2))
    else:
        show_hits(hits, words, note)
    if save is None:
        return
    chosen = list(pick or [hit.feature for hit in hits[:take]])
    if not chosen:
        raise ConfigError(f"no feature was found for {words!r}, so there is no vector to write.")
    typer.echo(_saved_vector(where, chosen, words, save, model), err=as_json)


@app.command("steer")
def steer_command(
    vector: Annotated[Path, typer.Argument(help="A run's folder or a vector.safetensors.")],
    prompt: Annotated[str, typer.Option(help="What is completed.")],
    strength: Annotated[str, typer.Option(help="How much is added, there and here.")] = "0.2",
    unit: Annotated[str, typer.Option(help="norm, raw or max_act.")] = "norm",
    source: Source = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer as a chat.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=256, help="Most tokens.")] = 48,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the sampling.")] = 16,
    model: Annotated[str | None, typer.Option(help="The local model; the vector's own.")] = None,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Generate here as well, to compare.")
    ] = True,
) -> None:
    """Steer on Neuronpedia with a vector's features, beside the same steering here."""
    from saesteer.cli.neuronpedia_steer import steer_there_and_here
    from saesteer.cli.show import show_completions
    from saesteer.saes.neuronpedia import SteerSettings

    settings = SteerSettings(n_tokens=max_new_tokens, temperature=temperature, seed=seed)
    result = steer_there_and_here(
        vector,
        prompt,
        (strength, unit),
        settings,
        source=source,
        chat=chat,
        model=model,
        local=local,
    )
    for title, records in result.completions.items():
        typer.echo(f"\n{title}")
        show_completions(records)
    for note in result.notes:
        typer.echo(f"\n{note}")


@app.command("import")
def import_command(
    source: Annotated[str, typer.Argument(help="MODEL/SOURCE, such as gpt2-small/6-res-jb.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help=".jsonl(.gz) files or folders; the public bucket if none."),
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Also maximum activation, density and logits.")
    ] = False,
) -> None:
    """Import an SAE's labels for offline use; run again to go on where it stopped."""
    from saesteer.cli.feature_source import neuronpedia_client
    from saesteer.saes.labels import label_cache
    from saesteer.saes.neuronpedia import Cache, SourceId, import_from_bucket, import_from_files
    from saesteer.utils.progress import terminal_progress

    place, progress, cache = SourceId.parse(source), terminal_progress(), Cache(label_cache())
    if files:
        done = import_from_files(cache, place, files, progress=progress)
    else:
        kinds = ("explanations", "features") if features else ("explanations",)
        transport = neuronpedia_client(progress).transport
        done = import_from_bucket(cache, transport, place, kinds=kinds, progress=progress)
    typer.echo(
        f"{done.labels:,} features of {place} have a label now: {done.lines:,} lines of "
        f"{done.files} files imported, {done.skipped} files were in already ({cache.path})"
    )


@app.command("text")
def text_command(
    text: Annotated[str, typer.Argument(help="The text that is to make features fire.")],
    sae: SaeName = "smollm2",
    source: Source = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="The most features.")] = 10,
) -> None:
    """Show the features that fire most on a text."""
    from saesteer.cli.feature_source import feature_source, neuronpedia_client
    from saesteer.cli.show_neuronpedia import show_firing
    from saesteer.utils.progress import terminal_progress

    place = _there(feature_source(sae, source))
    client = neuronpedia_client(terminal_progress())
    show_firing(client.firing_on(place, text, limit=limit), place, client.service.site)


@app.command("similar")
def similar_command(
    feature: Annotated[int, typer.Argument(min=0, help="The feature's number.")],
    sae: SaeName = "smollm2",
    source: Source = None,
) -> None:
    """Show the features whose decoder rows are closest to a feature's."""
    from saesteer.cli.feature_source import feature_source, neuronpedia_client
    from saesteer.cli.show_neuronpedia import show_hits
    from saesteer.saes.neuronpedia import FeatureHit, dashboard_url
    from saesteer.utils.progress import terminal_progress

    place = _there(feature_source(sae, source))
    client = neuronpedia_client(terminal_progress())
    found = client.similar(place, feature)
    labels = client.labels(place, [one.index for one in found])
    hits = [
        FeatureHit(
            one.index,
            labels.get(one.index, ""),
            one.cosine,
            dashboard_url(place, one.index, site=client.service.site),
        )
        for one in found
    ]
    show_hits(hits, f"feature {feature}", "")


@app.command("upload")
def upload_command(
    vector: Annotated[Path, typer.Argument(help="A run's folder or a vector.safetensors.")],
    strength: Annotated[str, typer.Option(help="The strength that is offered there.")] = "0.2",
    unit: Annotated[str, typer.Option(help="norm, raw or max_act.")] = "norm",
    label: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Neuronpedia's name of the model; the SAE's if left out.")
    ] = None,
) -> None:
    """Upload a vector of the residual stream to your account; needs NEURONPEDIA_API_KEY."""
    from saesteer.cli.neuronpedia_steer import upload

    made = upload(vector, (strength, unit), label, model_id)
    typer.echo(f"{made.url}\nsteer there with {made.vector.source}, number {made.vector.index}")


@app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(help="A run's folder or a vector.safetensors.")],
    name: Annotated[str, typer.Option(help="The list's name.")],
    source: Source = None,
) -> None:
    """Make a lasting list of a vector's features in your account; needs NEURONPEDIA_API_KEY."""
    from saesteer.cli.feature_source import feature_source, neuronpedia_client
    from saesteer.saes.labels import noted_place
    from saesteer.steering import SteeringVector
    from saesteer.utils.progress import terminal_progress

    vector = SteeringVector.load(folder)
    place = _there(feature_source(vector.sae or "", source or noted_place(vector.provenance)))
    words = {f.index: f"weight {f.weight:+.3g}" for f in vector.sae_features}
    client = neuronpedia_client(terminal_progress())
    typer.echo(client.new_list(place, words, name, description="made by saesteer").url)


def _cards(where: FeatureSource, features: list[int], texts: int) -> list[FeatureCard]:
    from saesteer.cli.feature_source import neuronpedia_client, say_what_is_left
    from saesteer.saes.neuronpedia import feature_card
    from saesteer.utils.progress import terminal_progress

    if where.source is None:
        table = where.table()
        return [table.row(index, n_contexts=texts) for index in features]
    progress = terminal_progress()
    client = neuronpedia_client(progress)
    cards = []
    for index in features:
        found = client.feature(where.source, index)
        if found is None:
            raise ConfigError(
                f"Neuronpedia has no feature {index} of {where.source}; check the number, model "
                "and source."
            )
        cards.append(feature_card(found, n_contexts=texts, site=client.service.site))
    say_what_is_left(client, progress)
    return cards


def _hits(where: FeatureSource, words: str, limit: int) -> tuple[list[FeatureHit], str]:
    """Return the features found for some words, and what is to be said of the search."""
    from saesteer.cli.feature_source import neuronpedia_client, say_what_is_left
    from saesteer.saes.neuronpedia import FeatureHit, dashboard_url, search_labels, search_table
    from saesteer.utils.errors import NetworkError
    from saesteer.utils.progress import terminal_progress

    if where.source is None:
        found = search_table(where.table(), words, limit)
        return list(found), "by the tokens and texts of the SAE's own table, not by meaning"
    progress = terminal_progress()
    client = neuronpedia_client(progress)
    place, site = where.source, client.service.site
    try:
        hits = client.search(place, words, limit=limit)
    except NetworkError:
        labels = client.cache.labels(str(place)) if client.cache is not None else {}
        if not labels:
            raise
        found = search_labels(labels, words, limit, source=str(place), site=site)
        return list(found), f"Neuronpedia was not asked; by the words of {len(labels):,} labels"
    say_what_is_left(client, progress)
    # One feature may have several explanations.
    kept: dict[int, Any] = {}
    for hit in hits:
        link = dashboard_url(place, hit.index, site=site)
        kept.setdefault(hit.index, FeatureHit(hit.index, hit.description, hit.similarity, link))
    return list(kept.values()), "by meaning, on Neuronpedia"


def _there(where: FeatureSource) -> Any:
    if where.source is None:
        raise ConfigError(
            f"SAE {where.sae or '(none)'} is not on Neuronpedia, which this needs; name its place "
            "with --source MODEL/SOURCE if it is there, or use the commands feature and search."
        )
    return where.source


def _saved_vector(
    where: FeatureSource, chosen: list[int], words: str, save: Path, model: str | None
) -> str:
    from saesteer.cli.neuronpedia_steer import vector_of_words

    vector = vector_of_words(where, chosen, words, model)
    path = vector.save(save)
    amount = "--strength 0.2" if vector.residual_norm else "--strength 1 --unit max_act"
    amount = amount if vector.residual_norm or vector.max_act else "--strength 10 --unit raw"
    return (
        f"\nwrote {path}: features {', '.join(map(str, chosen))} at their largest activations\n"
        f'Next: saesteer generate --vector {path} {amount} "How was your day?"'
    )
