"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.real
def test_the_python_example_runs(smollm2, monkeypatch, capsys):
    import saesteer
    from saesteer.saes.loading import bundled_sae_folder

    if not bundled_sae_folder().is_dir():
        pytest.fail("the bundled SAE is missing from the checkout")
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    # The session's model is the one that the example would load.
    monkeypatch.setattr("saesteer.models.load_model", lambda name: smollm2)
    names: dict[str, object] = {}
    exec(compile(block[1], "README.md", "exec"), names)
    vector = names["vector"]
    assert isinstance(vector, saesteer.SteeringVector)
    assert 1 <= len(vector.features) <= 64
    assert capsys.readouterr().out.strip()


def test_it_opens_with_the_two_commands():
    text = README.read_text(encoding="utf-8")
    first = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]
    assert text.index("make demo") < 500


def test_every_command_it_names_exists():
    from typer.testing import CliRunner

    from saesteer.cli.main import app

    help_text = CliRunner().invoke(app, ["--help"]).output
    named = set(re.findall(r"`saesteer (\w+)", README.read_text(encoding="utf-8")))
    assert named
    for command in named:
        assert re.search(rf"\b{command}\b", help_text), command
