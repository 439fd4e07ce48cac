"""`saesteer generate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

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
) -> None:
    """Generate with a vector at several strengths side by side; one row streams.

    saesteer generate --vector runs/kind --kl -0.3 --kl 0 --kl 0.3 "How was your day?"
    """
    from saesteer.cli.show import show_completions
    from saesteer.steering import SteeringVector, parse, to_raw
    from saesteer.steering.divergence import DivergenceMeter, neutral_rows, strength_at_kl
    from saesteer.steering.strength import check_unit
    from saesteer.utils.errors import SteeringError
    from saesteer.utils.progress import terminal_progress

    check_strength_or_kl(strength, kl)
    # What costs the KL targets is known once the model is.
    strengths = [parse(text) for text in strength or (["0.2"] if vector else ["0"])]
    strengths = list(kl) if kl else strengths
    known = check_unit(unit)
    steering = SteeringVector.load(vector) if vector is not None else None
    if steering is None and any(strengths):
        raise SteeringError("a strength needs a vector; give --vector RUN, or --strength 0.")
    if steering is not None:
        for value in strengths:
            to_raw(value, known, steering)
    check_not_blank(prompts)
    check_samples(samples, temperature)
    from saesteer.experiments.recorded import recorded_look
    from saesteer.models import load_model, resolve_model
    from saesteer.models.resolve import check_shape
    from saesteer.steering import generate

    name = model or (steering.model if steering else "smollm2")
    source = resolve_model(name)
    if steering is not None:
        check_shape(source, steering.site, steering.d_model, f"vector {steering.name!r}")
    single = len(prompts) == len(strengths) == samples == 1
    sampling = {
        "max_new_tokens": max_new_tokens,
        "chat": False if plain else "auto",
        "system": system,
        "temperature": temperature,
        "seed": seed,
        "n_samples": samples,
    }
    settings = {"model": name, "dtype": dtype, "vector": vector and str(vector), "unit": unit}
    settings |= {"kl" if kl else "strengths": strengths, "prompts": prompts, **sampling}
    called = steering.name if steering else "unsteered"
    progress = terminal_progress()
    with recorded_look("generate", settings, name=called, progress=progress) as recorded:
        progress.say(f"Loading model {name} ...")
        bridge = load_model(name, dtype=dtype, progress=progress)
        if kl and steering is not None:
            progress.say("Looking for the strengths that cost as much ...")
            meter = DivergenceMeter(bridge, neutral_rows(bridge), site=steering.site)
            kl_at = partial(meter, steering, unit=known)
            matches = [strength_at_kl(kl_at, steering, target, known) for target in kl]
            strengths = [match.strength for match in matches]
            for match in matches:
                progress.say(f"strength {match.strength:+.3g} ({known}) costs KL {match.kl:.3g}")
        on_token = _print_piece if single else None
        result = generate(
            bridge, prompts, steering, strengths, known, on_token=on_token, **sampling
        )
        recorded.keep("completions.json", result.to_dicts())
        recorded.summary({"completions": len(result.to_dicts())})
    if single:
        say()
        return
    show_completions(result.to_dicts())


def _print_piece(piece: str) -> None:
    say(piece, end="")
