"""`saesteer probe`: train probes on every layer, read with them, intervene along them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saesteer.cli.experiment import DefaultGroup, experiment_command
from saesteer.cli.options import (
    AsJson,
    MaxNewTokens,
    Seed,
    Temperature,
    check_not_blank,
    check_samples,
)
from saesteer.utils.terminal import say, say_json

if TYPE_CHECKING:
    from saesteer.probes import ProbeSet
    from saesteer.utils.progress import Progress

app = typer.Typer(
    cls=DefaultGroup,
    no_args_is_help=True,
    help="Train probes on every layer (saesteer probe sentiment), read and intervene with them.",
)
RunFolderPath = Annotated[
    Path, typer.Argument(help="The folder that saesteer probe train names at its end.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="The model; the one of the probes if left out.")
]


app.command("train")(
    experiment_command(
        "probe", "From labelled texts to one scored probe per layer, in one pass over the texts."
    )
)


@app.command("read")
def read_command(
    run: RunFolderPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to read.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Such as 14, 9-14 or 4,8,12; eight spread out if left out.")
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Read what the model writes after each text.")
    ] = False,
    checks: Annotated[
        str | None,
        typer.Option(help="Score a list of plain cases: sentiment_checks or a labelled file."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the coloured tokens to a page.")] = None,
    max_new_tokens: MaxNewTokens = 32,
    model: ModelName = None,
) -> None:
    """Colour a text's tokens by each layer's reading, or score a list of plain cases."""
    from saesteer import steering
    from saesteer.cli.probe_show import show_checks, show_readings
    from saesteer.data.labelled import read_labelled
    from saesteer.experiments.recorded import recorded_look
    from saesteer.probes import ProbeSet, read_texts_with, reading_page, run_checks
    from saesteer.probes.interventions import parse_layers
    from saesteer.utils.errors import DataError
    from saesteer.utils.files import write_atomic
    from saesteer.utils.progress import terminal_progress

    probes = ProbeSet.load(run)
    chosen = _spread(probes) if layers is None else parse_layers(layers, probes)
    if not texts and checks is None:
        raise DataError("there is no text to read; give one, or --checks sentiment_checks.")
    check_not_blank(texts or (), "a text")
    cases = None if checks is None else read_labelled(checks)
    progress = terminal_progress()
    looked_at = {"texts": texts, "layers": chosen, "generate": generate, "checks": checks}
    looked_at |= {"max_new_tokens": max_new_tokens, "model": model or probes.model}
    with recorded_look(
        "probe-read", looked_at, name=probes.name, progress=progress, about=run
    ) as recorded:
        bridge = _load(probes, model, progress)
        if texts:
            if generate:
                made = steering.generate(bridge, texts, max_new_tokens=max_new_tokens, chat=False)
                texts = [record.prompt + record.text for record in made.records]
            readings = read_texts_with(bridge, probes, texts, chosen)
            show_readings(readings)
            recorded.keep("texts.json", texts)
            if html is not None:
                write_atomic(html, reading_page(readings, probes.name).encode())
                say(f"wrote {html}")
        if cases is not None:
            found = run_checks(bridge, probes, cases, chosen[0] if layers else None)
            show_checks(found)
            recorded.summary({key: found[key] for key in ("layer", "right", "n")})


@app.command("intervene")
def intervene_command(
    run: RunFolderPath,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts to continue.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompts", help="A labelled file, or sentiment_prompts; scores movement."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Only prompts of this group of the file.")
    ] = None,
    mode: Annotated[str, typer.Option(help="flip, ablate, add or set.")] = "flip",
    amount: Annotated[
        str | None, typer.Option(help="Scale (flip), strength (add), number or class (set).")
    ] = None,
    unit: Annotated[str, typer.Option(help="Unit of an added strength: norm or raw.")] = "norm",
    centre: Annotated[
        str, typer.Option(help="What flip and ablate are about: a number, a class or midpoint.")
    ] = "0",
    layers: Annotated[
        str | None, typer.Option(help="Such as 14 or 9-14; the best and five before if left out.")
    ] = None,
    direction: Annotated[
        str, typer.Option(help="probe: its weights; means: difference of the classes' means.")
    ] = "probe",
    towards: Annotated[str | None, typer.Option(help="The class v points to.")] = None,
    away: Annotated[str | None, typer.Option(help="The class v points from.")] = None,
    vector: Annotated[
        list[Path] | None, typer.Option(help="A steering vector instead of the probes' own.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help='Such as "0-15:set=negative,16-:set=positive".')
    ] = None,
    compound: Annotated[
        bool, typer.Option("--compound", help="Later layers see what earlier ones did.")
    ] = False,
    positions: Annotated[
        str, typer.Option(help="all, from_last_prompt_token or generated.")
    ] = "all",
    random: Annotated[
        int, typer.Option(min=0, help="Random directions at the same KL, for comparison.")
    ] = 0,
    max_new_tokens: MaxNewTokens = 32,
    temperature: Temperature = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions for each prompt.")] = 1,
    seed: Seed = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts in the chat template.")] = False,
    model: ModelName = None,
    as_json: AsJson = False,
) -> None:
    """Flip, ablate, add or set what the probes read, and measure what became of the text."""
    from saesteer.cli.probe_show import show_trial
    from saesteer.experiments.recorded import recorded_look
    from saesteer.probes import ProbeSet
    from saesteer.probes.interventions import make_intervention, parse_layers
    from saesteer.probes.trial import GenerationSettings, InterventionTrial
    from saesteer.steering import SteeringVector
    from saesteer.steering.positions import check_saved_positions
    from saesteer.steering.strength import check_unit
    from saesteer.utils.errors import ConfigError
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.run_folder import RunFolder
    from saesteer.utils.settings import short_hash

    probes = ProbeSet.load(run)
    words, labels = _prompts(prompts, prompt_file, group)
    towards, away = towards or probes.classes[-1], away or probes.classes[0]
    check_saved_positions(positions)
    vectors = [SteeringVector.load(path) for path in vector or ()]
    if direction not in ("probe", "means"):
        raise ConfigError(f"direction {direction!r} is unknown; use probe or means.")
    if not vectors:
        how: Any = {"towards": towards, "away": away, "kind": direction}
        vectors = [probes.vector(layer, **how) for layer in parse_layers(layers, probes)]
    intervention = make_intervention(
        vectors,
        mode=mode,
        amount=amount,
        unit=check_unit(unit),
        centre=centre,
        schedule=schedule,
        compound=compound,
        positions=positions,
    )
    settings = GenerationSettings(max_new_tokens, chat, temperature, samples, seed)
    check_samples(samples, temperature)
    progress = terminal_progress()
    asked = {"interventions": [edit.described() for edit in intervention.edits]}
    asked |= {"vectors": [edit.vector.name for edit in intervention.edits], "prompts": words}
    asked |= {"positions": positions, "compound": compound, "random": random, **vars(settings)}
    asked |= {"towards": towards, "away": away, "model": model or probes.model}
    with recorded_look(
        "probe-intervene", asked, name=probes.name, progress=progress, about=run
    ) as recorded:
        bridge = _load(probes, model, progress)
        progress.say(f"Completing {len(words)} prompts ...")
        measures = _measures(run, bridge, probes, towards, away)
        trial = InterventionTrial(bridge, words, measures, settings)
        record = trial.record(intervention, labels, towards=towards, away=away, random_draws=random)
        record["settings"] = vars(settings)
        name = f"interventions/{short_hash(record)}.json"
        path = RunFolder(run).write_json(name, record)
        recorded.artifact("record", path)
        recorded.summary({key: record[key] for key in ("kl", "perplexity", "movement")})
    if as_json:
        say_json(record)
    else:
        show_trial(record)
        say(f"wrote {path}")


def _spread(probes: ProbeSet) -> list[int]:
    """Return up to eight layers from first to last, the best one among them."""
    have = [probe.site.layer for probe in probes.probes]
    step = max(1, -(-len(have) // 8))
    return sorted({*have[::step], probes.best})


def _load(probes: ProbeSet, name: str | None, progress: Progress) -> Any:
    from saesteer.models import load_model

    wanted = name or probes.model
    progress.say(f"Loading model {wanted} ...")
    bridge = load_model(wanted, progress=progress)
    probes.check_belongs(bridge)
    return bridge


def _prompts(
    prompts: list[str] | None, file: str | None, group: str | None
) -> tuple[list[str], list[str | None]]:
    from saesteer.data.labelled import read_labelled
    from saesteer.utils.errors import DataError

    words = list(prompts or ())
    labels: list[str | None] = [None] * len(words)
    if file is not None:
        found = read_labelled(file).texts
        kept = [text for text in found if group is None or text.group == group]
        if not kept:
            raise DataError(f"{file}: no prompt is of group {group!r}; give another group.")
        words += [text.text for text in kept]
        labels += [text.label for text in kept]
    if not words:
        raise DataError("there is no prompt; give one, or --prompts sentiment_prompts.")
    check_not_blank(words)
    return words, labels


def _measures(run: Path, bridge: Any, probes: ProbeSet, towards: str, away: str) -> dict[str, Any]:
    from saesteer.experiments.probe.experiment import JUDGE
    from saesteer.probes import OWN_READING, probe_lean
    from saesteer.probes.independent import load_text_classifier
    from saesteer.probes.trial import independent_measures

    path = run / JUDGE
    classifier = load_text_classifier(path) if path.is_file() else None
    measures: dict[str, Any] = independent_measures(classifier, towards, away)
    measures[OWN_READING] = lambda texts: probe_lean(bridge, probes, texts, towards, away)
    return measures
