"""The terminal's summary fits 100 columns and shows the metrics' numbers."""

from __future__ import annotations

from saesteer.cli.show import console
from saesteer.report.terminal import show_comparison


def _shown(metrics, capsys) -> str:
    show_comparison(metrics, console())
    return capsys.readouterr().out


def test_twelve_methods_fit_one_hundred_columns(made_up, capsys):
    metrics = made_up()
    lines = _shown(metrics, capsys).splitlines()
    assert max(map(len, lines)) <= 100
    for row in metrics["summary"]:
        if row["kl_target"] == 0.3:
            shown = f"{row['effect']:.3f}".replace("-", "\N{MINUS SIGN}")
            assert any(shown in line for line in lines)


def test_headline_and_every_method_are_printed(small, capsys):
    out = _shown(small, capsys)
    assert "2.80 times as far as with difference in means" in " ".join(out.split())
    assert "0.50 to 0.90" in out
    assert "random direction" in out
    assert "KL target not reached: random direction at KL 0.3 (1 of 1)." in out


def test_long_and_bracketed_names_stand_as_they_are(small, capsys):
    small["methods"][2]["label"] = "[bold]ours[/bold] " + "very " * 20
    out = _shown(small, capsys)
    assert "[bold]ours[/bold]" in out
    assert max(map(len, out.splitlines())) <= 100


def test_empty_metrics_are_said_to_be_empty(capsys):
    assert "Nothing was summarised" in _shown({}, capsys)
