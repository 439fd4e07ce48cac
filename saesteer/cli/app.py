"""`saesteer app`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from saesteer.cli.options import Model
from saesteer.utils.errors import ConfigError
from saesteer.utils.terminal import say


def app_command(
    run: Annotated[Path | None, typer.Argument(help="A run's folder that holds a vector.")] = None,
    vector: Annotated[
        list[Path] | None,
        typer.Option(help="A vector.safetensors; repeat for others to compare with."),
    ] = None,
    model: Model = None,
    sae: Annotated[
        str | None, typer.Option(help="The SAE to take features from; the vector's if left out.")
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="A run of saesteer probe, to colour tokens by.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8123,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine the page needs a token.")
    ] = "127.0.0.1",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Open a page on this machine to steer by hand: move a slider, read what changes.

    Without a vector one is fitted to the bundled pairs, which takes seconds.
    """
    from saesteer.utils.progress import terminal_progress

    try:
        from saesteer.app.guard import address_of, is_loopback
        from saesteer.app.server import listen, serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs {error.name}, which is not installed; run pip install 'saesteer[app]'."
        ) from error
    from saesteer.app.opening import open_bundled, open_sae, open_vectors
    from saesteer.models import load_model, resolve_model
    from saesteer.probes import ProbeSet
    from saesteer.steering import SteeringVector
    from saesteer.steering.apply import check_shape_of

    vectors = [SteeringVector.load(file) for file in [*([run] if run else []), *(vector or [])]]
    probes = None if probe is None else ProbeSet.load(probe)
    first = vectors[0] if vectors else None
    name = model or (first.model if first else probes.model if probes else "smollm2")
    source = resolve_model(name)
    for one in vectors:
        check_shape_of(one, source)
    progress = terminal_progress()
    with listen(port, host) as listening:
        progress.say(f"Loading model {name} ...")
        bridge = load_model(name, dtype=dtype, progress=progress)
        features = open_sae(sae, first, name, progress)
        if vectors:
            bench = open_vectors(bridge, features, vectors, run, probes=probes)
        else:
            bench = open_bundled(bridge, features, progress, probes=probes)
        token = None if is_loopback(host) else secrets.token_urlsafe(32)
        address = address_of(host, listening.getsockname()[1], token)
        say(f"The page is at {address} (Ctrl-C ends it).")
        if token is not None:
            say(
                "Whoever has this address can use the page, and the network can read along; where "
                "you do not\ntrust it, leave --host out and use ssh -L."
            )
        serve(bench, listening, host, token)
