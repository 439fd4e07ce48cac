"""`saesteer agent` from the command line."""

from __future__ import annotations


def test_it_plans_answers_and_says_where_the_report_is(saesteer, agent_file, tmp_path):
    answer = saesteer("agent", agent_file, "--goal", "Why?", "--dry-run")
    assert answer.code == 0 and "Why?" in answer.out
    assert "seeded, without a language model" in answer.out
    assert not (tmp_path / "runs").exists()
    answer = saesteer("agent", agent_file, "--budget", 2)
    assert answer.code == 0, answer
    assert "the layer that costs most is" in " ".join(answer.out.split())
    assert "supported" in answer.out and "Next:" in answer.out
    # Paths are for copying, so they are never broken.
    lines = [line for line in answer.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 100
    (folder,) = [path for path in (tmp_path / "runs").glob("tiny-*") if "corrupt" not in path.name]
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    again = saesteer("agent", agent_file, "--budget", 2)
    assert again.code == 0 and "Spent: 1 experiments" in again.out
    listed = saesteer("runs", "list", "--root", tmp_path / "runs")
    assert "agent" in listed.out and "corrupt" in listed.out
