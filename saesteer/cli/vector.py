"""`saesteer vector`: show, combine, bake, export and import vectors."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from saesteer.cli.options import Cost, UnitName
from saesteer.utils.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.steering import SteeringVector, Unit
    from saesteer.utils.progress import Progress

app = typer.Typer(no_args_is_help=True, help="Show, combine, bake, export and import vectors.")
Source = Annotated[Path, typer.Argument(help="A run's folder or a vector.safetensors.")]


@app.command("show")
def show_command(
    source: Source,
    top: Annotated[int, typer.Option(min=0, help="How many features to show.")] = 32,
) -> None:
    """Show where a vector belongs and what it is made of."""
    from saesteer.report import Table
    from saesteer.report.terminal import console, print_fields, print_table
    from saesteer.saes.labels import feature_url, noted_place
    from saesteer.steering import SteeringVector

    vector, out = SteeringVector.load(source), console()
    lengths = {"residual norm": vector.residual_norm, "length at max_act": vector.max_act}
    fields = {
        "name": f"{vector.name} ({vector.method})",
        "site": vector.place,
        "model": f"{vector.model}, {vector.d_model} wide",
        "SAE": vector.sae or "none",
        "norm": f"{vector.norm:.4g}",
        **{name: "unknown" if value is None else f"{value:.4g}" for name, value in lengths.items()},
        "read at": vector.read_positions,
        "written at": vector.positions,
        "features": sum(len(piece.sae_features) for piece in vector.pieces),
    }
    print_fields(out, fields)
    for piece in vector.pieces:
        if vector.parts:
            sae = f", features of SAE {piece.sae}" if piece.sae_features else ""
            out.print(f"\nAt {piece.site}, norm {piece.norm:.4g}{sae}:", highlight=False)
        if piece.sae_features:
            place = noted_place(piece.provenance)
            columns = ("feature=index", "weight:+.3f", "cluster", "description")
            rows = [asdict(feature) for feature in piece.sae_features]
            links = [feature_url(place, row["index"]) or "" for row in rows]
            out.print()
            print_table(out, Table.of(rows, columns, links=links, most=top), where="the vector")


@app.command("bake")
def bake_command(
    sources: Annotated[
        list[Path], typer.Argument(help="A run's folder or a vector.safetensors, or several.")
    ],
    target: Annotated[Path, typer.Argument(help="A new folder for the model.")],
    strength: Annotated[
        list[str] | None,
        typer.Option(help="A strength for all vectors, or one for each, in their order."),
    ] = None,
    kl: Cost = None,
    unit: UnitName = "norm",
    model: Annotated[
        str | None, typer.Option(help="The model; the one of the vector if left out.")
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(help="Bake into a copy of this .gguf file, its weights as they are."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the model's own if left out.")
    ] = None,
) -> None:
    """Write a model that is always steered, which every engine serves as it is.

    Every position is steered, the prompt's too, and KL is measured so.

    saesteer vector bake runs/kind kind-model --strength 0.2

    saesteer vector bake runs/kind kind-gguf --kl 0.3 --gguf SmolLM2.Q4_1.gguf
    """
    from saesteer.steering import SteeringVector, parse, to_raw
    from saesteer.steering.bake import bake, bake_gguf, check_free, kl_everywhere
    from saesteer.steering.divergence import strength_at_kl
    from saesteer.steering.strength import check_unit
    from saesteer.utils.errors import SteeringError
    from saesteer.utils.progress import terminal_progress

    if (kl is None) == (not strength):
        raise SteeringError("a model is baked at one strength; give --strength 0.2 or --kl 0.3.")
    if kl is not None:
        _check_cost(kl)
    strengths, known = [parse(text) for text in strength or []], check_unit(unit)
    vectors = [SteeringVector.load(source) for source in sources]
    for vector in vectors:
        to_raw(1.0, known, vector)
    check_free(target)
    from saesteer.models.resolve import resolve_model, stored_dtype

    name, bridge, progress = model or vectors[0].model, None, terminal_progress()
    if kl is not None or gguf is None:
        bridge = _loaded(name, vectors, dtype or stored_dtype(resolve_model(name)), progress)
    cost = None
    if kl is not None and bridge is not None:
        progress.say(f"Looking for the strength that costs KL {kl:g} ...")
        match = strength_at_kl(kl_everywhere(bridge, vectors, known), vectors[0], kl, known)
        strengths, cost = [match.strength], match.kl
    if gguf is not None:
        bake_gguf(gguf, vectors, strengths, target, known, kl=cost)
    elif bridge is not None:
        bake(bridge, vectors, strengths, target, known, kl=cost)
    said = ", ".join(f"{value:.4g}" for value in strengths)
    say(f"wrote {target} at strength {said} ({known}); try: saesteer doctor {target}")


def _loaded(
    name: str, vectors: Sequence[SteeringVector], dtype: Any, progress: Progress
) -> TransformerBridge:
    """Load a model that the vectors fit, which is checked before."""
    from saesteer.models import load_model
    from saesteer.models.resolve import resolve_model
    from saesteer.steering.apply import check_shape_of

    for vector in vectors:
        check_shape_of(vector, resolve_model(name))
    progress.say(f"Loading model {name} ...")
    return load_model(name, dtype=dtype, progress=progress)


def _check_cost(kl: float) -> None:
    from saesteer.utils.errors import SteeringError

    if not 0 < kl < float("inf"):
        raise SteeringError(f"--kl {kl} is no cost; give a number above 0, such as 0.3.")


def costing(vector: SteeringVector, kl: float, unit: Unit, model: str | None) -> float:
    """Return the strength that costs as much where every position is steered, and say it.

    Raises:
        SteeringError: It is no cost, or no strength costs as much.
    """
    from saesteer.steering import to_raw
    from saesteer.steering.bake import kl_everywhere
    from saesteer.steering.divergence import strength_at_kl
    from saesteer.utils.progress import terminal_progress

    _check_cost(kl)
    to_raw(1.0, unit, vector)
    progress = terminal_progress()
    bridge = _loaded(model or vector.model, [vector], None, progress)
    match = strength_at_kl(kl_everywhere(bridge, vector, unit), vector, kl, unit)
    progress.say(f"strength {match.strength:+.3g} ({unit}) costs KL {match.kl:.3g}")
    return match.strength


@app.command("export")
def export_command(
    source: Source,
    target: Annotated[Path, typer.Argument(help="The .gguf file to write; for vLLM a new folder.")],
    strength: Annotated[
        list[str] | None,
        typer.Option(
            help="Bake this strength in; the natural vector if left out. For vLLM: of the requests."
        ),
    ] = None,
    kl: Cost = None,
    unit: UnitName = "norm",
    model: Annotated[
        str | None, typer.Option(help="What --kl is measured on; the vector's if left out.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", help="gguf, or for vLLM: vllm-lens or hotwire.")
    ] = "gguf",
) -> None:
    """Write a vector for an engine that adds it at every position.

    A control vector for llama.cpp and repeng, or what a package for vLLM takes, with the bodies of
    requests at several strengths.

    saesteer vector export runs/kind kind-vllm --format vllm-lens --strength -0.2 --strength 0.2
    """
    from saesteer.cli.options import check_strength_or_kl
    from saesteer.models.resolve import known_outside
    from saesteer.steering import SteeringVector, export_gguf, parse
    from saesteer.steering.bake import check_free
    from saesteer.steering.strength import check_unit
    from saesteer.steering.vllm_vectors import LIVE_FORMATS, REQUESTS, LiveFormat, export_live
    from saesteer.utils.errors import SteeringError

    check_strength_or_kl(strength, kl)
    if kind != "gguf" and kind not in LIVE_FORMATS:
        raise SteeringError(
            f"format {kind!r} is unknown; use one of gguf, {', '.join(LIVE_FORMATS)}."
        )
    if kind == "gguf" and len(strength or ()) > 1:
        raise SteeringError("a control vector holds one strength; give one, or export again.")
    vector, known = SteeringVector.load(source), check_unit(unit)
    strengths = [parse(text) for text in strength or ()]
    if kind != "gguf":
        check_free(target)
    if kl is not None:
        strengths = [costing(vector, kl, known, model)]
        # Requests write where that was measured.
        vector = replace(vector, positions="all")
    if kind != "gguf":
        export_live(vector, target, cast(LiveFormat, kind), strengths or [0.2], known)
        loading = f"HOTWIRE_VECTORS={target} " if kind == "hotwire" else ""
        say(f"wrote {target}; requests are in {target / REQUESTS}")
        say(f"try: {loading}vllm serve {known_outside(vector.model)}")
        return
    export_gguf(vector, target, strength=strengths[0] if strengths else None, unit=known)
    say(f"wrote {target}; try: llama-cli -m MODEL.gguf --control-vector {target}")


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A control vector's .gguf file.")],
    model: Annotated[str, typer.Argument(help="The model that it belongs to.")],
    target: Annotated[Path, typer.Argument(help="A folder for one vector per layer.")],
) -> None:
    """Read a control vector of llama.cpp or repeng."""
    from saesteer.models.resolve import model_shape, resolve_model
    from saesteer.steering import import_gguf

    for vector in import_gguf(source, model=model):
        say(f"wrote {vector.save(target / f'{vector.site}.safetensors')}")
    if model_shape(resolve_model(model)) is None:
        say(
            f"model {model} is not on this machine, so its depth and width were not compared with "
            "the vector's; steering will refuse what does not fit."
        )


@app.command("combine")
def combine_command(
    target: Annotated[Path, typer.Argument(help="The file to write.")],
    sources: Annotated[
        list[str], typer.Argument(help="PATH or PATH*FACTOR, such as runs/kind*0.5 runs/calm*-1.")
    ],
) -> None:
    """Add scaled vectors of one site."""
    from functools import reduce

    from saesteer.steering import SteeringVector, parse
    from saesteer.utils.errors import SteeringError

    scaled = []
    for source in sources:
        path, star, factor = source.rpartition("*")
        try:
            chosen = (path, parse(factor)) if star else (source, 1.0)
        except SteeringError:
            raise SteeringError(
                f"{source!r}: {factor!r} is no finite number; write PATH or PATH*FACTOR."
            ) from None
        scaled.append(SteeringVector.load(chosen[0]).scaled(chosen[1]))
    combined = reduce(lambda a, b: a + b, scaled)
    say(f"wrote {combined.save(target)}")
