"""`saesteer neuronpedia`: look features up, search them, steer there, import labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.options import Cost, UnitName
from saesteer.utils.errors import ConfigError
from saesteer.utils.terminal import say, say_json

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
Vector = Annotated[Path, typer.Argument(help="A run's folder or a vector.safetensors.")]


@app.command("feature")
def feature_command(
    features: Annotated[list[int], typer.Argument(help="One feature's number or several.")],
    sae: SaeName = "smollm2",
    source: Source = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts to show of each.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what features stand for, where they fire and which tokens they promote."""
    from saesteer.cli.show_neuronpedia import show_cards
    from saesteer.saes.sources import FeatureSource

    cards = FeatureSource(sae, source).cards(features, texts)
    if as_json:
        say_json([card.as_dict() for card in cards])
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
    from saesteer.cli.show_neuronpedia import show_hits
    from saesteer.saes.sources import FeatureSource

    where = FeatureSource(sae, source)
    hits, note = where.search(words, limit)
    if as_json:
        say_json([asdict(hit) for hit in hits])
    else:
        show_hits(hits, words, note)
    if save is None:
        return
    chosen = list(pick or [hit.feature for hit in hits[:take]])
    if not chosen:
        raise ConfigError(f"no feature was found for {words!r}, so there is no vector to write.")
    from saesteer.cli.neuronpedia_steer import vector_of_words

    vector = vector_of_words(where, chosen, words, model)
    path = vector.save(save)
    amount = "--strength 0.2" if vector.residual_norm else "--strength 1 --unit max_act"
    amount = amount if vector.residual_norm or vector.max_act else "--strength 10 --unit raw"
    say(
        f"\nwrote {path}: features {', '.join(map(str, chosen))} at their largest activations\n"
        f'Next: saesteer generate --vector {path} {amount} "How was your day?"',
        err=as_json,
    )


@app.command("steer")
def steer_command(
    vector: Vector,
    prompt: Annotated[str, typer.Option(help="What is completed.")],
    strength: Annotated[
        str | None, typer.Option(help="How much is added, there and here; 0.2 if left out.")
    ] = None,
    kl: Cost = None,
    unit: UnitName = "norm",
    source: Source = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer as a chat.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=256, help="Most tokens.")] = 48,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=10**8, help="Seeds the sampling.")] = 16,
    model: Annotated[str | None, typer.Option(help="The local model; the vector's own.")] = None,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Generate here as well, to compare.")
    ] = True,
) -> None:
    """Steer on Neuronpedia with a vector's features, beside the same steering here."""
    from saesteer.cli.neuronpedia_steer import Amount, steer_here, steer_there
    from saesteer.cli.show import show_completions
    from saesteer.saes.neuronpedia import SteerSettings

    settings = SteerSettings(n_tokens=max_new_tokens, temperature=temperature, seed=seed)
    added = Amount.read(vector, strength, kl, unit, model)
    place, records, notes = steer_there(added, prompt, settings, source=source, chat=chat)
    completions = {f"Neuronpedia ({place})": records}
    if local:
        completions["Here"] = steer_here(added, prompt, settings, chat=chat, model=model)
    for title, found in completions.items():
        say(f"\n{title}")
        show_completions(found)
    for note in notes:
        say(f"\n{note}")


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
    from saesteer.saes.labels import label_cache
    from saesteer.saes.neuronpedia import Cache, import_from_bucket, import_from_files
    from saesteer.saes.sources import FeatureSource
    from saesteer.utils.progress import terminal_progress

    where, cache, progress = FeatureSource("", source), Cache(label_cache()), terminal_progress()
    if files:
        done = import_from_files(cache, where.there, files, progress=progress)
    else:
        kinds = ("explanations", "features") if features else ("explanations",)
        service = where.client.service
        done = import_from_bucket(cache, service, where.there, kinds=kinds, progress=progress)
    say(
        f"{done.labels:,} features of {where.there} have a label now: {done.lines:,} lines of "
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
    from saesteer.cli.show_neuronpedia import show_firing
    from saesteer.saes.sources import FeatureSource

    where = FeatureSource(sae, source)
    found = where.client.firing_on(where.there, text, limit=limit)
    show_firing(found, where.there, where.client.service.site)


@app.command("similar")
def similar_command(
    feature: Annotated[int, typer.Argument(min=0, help="The feature's number.")],
    sae: SaeName = "smollm2",
    source: Source = None,
) -> None:
    """Show the features whose decoder rows are closest to a feature's."""
    from saesteer.cli.show_neuronpedia import show_hits
    from saesteer.saes.sources import FeatureSource

    where = FeatureSource(sae, source)
    show_hits(where.client.similar(where.there, feature), f"feature {feature}", "")


@app.command("upload")
def upload_command(
    vector: Vector,
    strength: Annotated[
        str | None, typer.Option(help="The strength that is offered there; 0.2 if left out.")
    ] = None,
    kl: Cost = None,
    unit: UnitName = "norm",
    label: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Neuronpedia's name of the model; the SAE's if left out.")
    ] = None,
) -> None:
    """Upload a vector of the residual stream to your account; needs NEURONPEDIA_API_KEY."""
    from saesteer.cli.neuronpedia_steer import Amount, upload

    made = upload(Amount.read(vector, strength, kl, unit), label, model_id)
    say(f"{made.url}\nsteer there with {made.vector.source}, number {made.vector.index}")


@app.command("list")
def list_command(
    vector: Vector,
    name: Annotated[str, typer.Option(help="The list's name.")],
    source: Source = None,
) -> None:
    """Make a lasting list of a vector's features in your account; needs NEURONPEDIA_API_KEY."""
    from saesteer.saes.labels import noted_place
    from saesteer.saes.sources import FeatureSource
    from saesteer.steering import SteeringVector

    made = SteeringVector.load(vector)
    where = FeatureSource(made.sae or "", source or noted_place(made.provenance))
    words = {f.index: f"weight {f.weight:+.3g}" for f in made.sae_features}
    say(where.client.new_list(where.there, words, name, description="made by saesteer").url)
