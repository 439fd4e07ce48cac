"""`saesteer generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saesteer.cli.options import (
    Kl,
    MaxNewTokens,
    Seed,
    Temperature,
    UnitName,
    check_not_blank,
    check_samples,
    check_strength_or_kl,
)
from saesteer.utils.terminal import say

if TYPE_CHECKING:
    from saesteer.steering import SteeringVector
    from saesteer.steering.strength import Unit
    from saesteer.utils.progress import Progress


def generate_command(
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    vector: Annotated[
        Path | None, typer.Option(help="A run's folder or a vector.safetensors.")
    ] = None,
    strength: Annotated[
        list[str] | None, typer.Option(help="A strength; give several to compare.")
    ] = None,
    kl: Kl = None,
    unit: UnitName = "norm",
    model: Annotated[
        str | None, typer.Option(help="The model; the one of the vector if left out.")
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions for each strength.")] = 1,
    seed: Seed = 0,
    plain: Annotated[bool, typer.Option("--plain", help="No chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    positions: Annotated[
        str | None,
        typer.Option(help="Where to write, such as everywhere; the vector's own if left out."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What writes: transformers, paged or openai (a server).")
    ] = "transformers",
    server: Annotated[
        str | None, typer.Option(help="Of openai: such as http://127.0.0.1:8000/v1.")
    ] = None,
    steering: Annotated[
        str, typer.Option(help="How the server steers: baked, vllm-lens or hotwire.")
    ] = "baked",
) -> None:
    """Generate with a vector at several strengths side by side; one row streams.

    saesteer generate --vector runs/kind --kl -0.3 --kl 0 --kl 0.3 "How was your day?"

    saesteer generate --vector runs/kind --strength 0.2 --positions everywhere
        --engine openai --server http://127.0.0.1:8000/v1 "How was your day?"
    """
    from saesteer.cli.show import show_completions
    from saesteer.steering import SteeringVector, parse, to_raw
    from saesteer.steering.divergence import DivergenceMeter, neutral_rows, strength_at_kl
    from saesteer.steering.engines import EngineSettings, make_engine
    from saesteer.steering.strength import check_unit
    from saesteer.utils.errors import SteeringError
    from saesteer.utils.progress import terminal_progress
    from saesteer.utils.settings import parse_config

    check_strength_or_kl(strength, kl)
    # What costs the KL targets is known once the model is.
    chosen = parse_config(
        {"name": engine, "server": server, "steering": steering},
        kind=EngineSettings,
        place="--engine",
    )
    if kl and positions is not None:
        raise SteeringError(
            "--kl is measured where the vector is written of itself; with --positions give "
            "--strength (saesteer vector bake --kl finds the one for everywhere)."
        )
    strengths = [parse(text) for text in strength or (["0.2"] if vector else ["0"])]
    strengths = list(kl) if kl else strengths
    known = check_unit(unit)
    loaded = SteeringVector.load(vector) if vector is not None else None
    if loaded is None and any(strengths):
        raise SteeringError("a strength needs a vector; give --vector RUN, or --strength 0.")
    if loaded is not None:
        for value in strengths:
            to_raw(value, known, loaded)
    check_not_blank(prompts)
    check_samples(samples, temperature)
    from saesteer.experiments.recorded import recorded_look
    from saesteer.models import load_model, resolve_model
    from saesteer.steering import generate
    from saesteer.steering.apply import check_shape_of

    name = model or (loaded.model if loaded else "smollm2")
    source = resolve_model(name)
    if loaded is not None:
        check_shape_of(loaded, source)
    single = len(prompts) == len(strengths) == samples == 1
    sampling = {
        "max_new_tokens": max_new_tokens,
        "chat": False if plain else "auto",
        "system": system,
        "temperature": temperature,
        "seed": seed,
        "n_samples": samples,
        "positions": positions,
    }
    settings = {"model": name, "dtype": dtype, "vector": vector and str(vector), "unit": unit}
    settings |= {"engine": chosen.model_dump(exclude_defaults=True)}
    settings |= {"kl" if kl else "strengths": strengths, "prompts": prompts, **sampling}
    called = loaded.name if loaded else "unsteered"
    progress = terminal_progress()
    with recorded_look("generate", settings, name=called, progress=progress) as recorded:
        if loaded is not None and not kl:
            _warn_of_strength(max(strengths, key=abs), known, loaded, progress)
        progress.say(f"Loading model {name} ...")
        bridge = load_model(name, dtype=dtype, progress=progress)
        if kl and loaded is not None:
            progress.say("Looking for the strengths that cost as much ...")
            meter = DivergenceMeter(bridge, neutral_rows(bridge), site=loaded.site)
            kl_at = partial(meter, loaded, unit=known)
            matches = [strength_at_kl(kl_at, loaded, target, known) for target in kl]
            strengths = [match.strength for match in matches]
            for match in matches:
                progress.say(f"strength {match.strength:+.3g} ({known}) costs KL {match.kl:.3g}")
        how = {"on_token": _print_piece if single else None, "engine": make_engine(chosen, bridge)}
        result = generate(bridge, prompts, loaded, strengths, known, **how, **sampling)
        recorded.keep("completions.json", result.to_dicts())
        recorded.summary({"completions": len(result.to_dicts())})
    if single:
        say()
        return
    show_completions(result.to_dicts())


def _warn_of_strength(
    strength: float, unit: Unit, vector: SteeringVector, progress: Progress
) -> None:
    from saesteer.steering import to_raw

    length = abs(to_raw(strength, unit, vector))
    if vector.residual_norm and length > vector.residual_norm:
        progress.say(
            f"strength {strength:+g} adds {length / vector.residual_norm:.3g} times the length of "
            "the residual stream itself, at\nwhich text falls apart; --kl 0.3 finds a strength by "
            "its cost."
        )


def _print_piece(piece: str) -> None:
    say(piece, end="")
