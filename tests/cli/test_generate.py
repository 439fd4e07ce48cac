"""`saesteer generate`."""

from __future__ import annotations

import json

import pytest

from saesteer.utils.terminal import cleaned


def generate(*arguments: object) -> list[object]:
    return ["generate", *arguments, "--dtype", "float32", "--max-new-tokens", "6"]


def test_three_strengths_stand_side_by_side(saesteer, finished):
    strengths = ["--strength", "-0.2", "--strength", "0", "--strength", "0.2"]
    answer = saesteer(*generate("Why?", "--vector", finished, *strengths))
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "“Why?”" in lines
    head = next(line for line in lines if "strength" in line)
    assert head.split() == ["strength", "-0.2", "strength", "0", "strength", "+0.2"]
    assert max(map(len, lines)) <= 100
    assert answer.err.startswith("Loading model ")


def test_four_strengths_stand_below_each_other(saesteer, finished):
    strengths = [part for s in ("-9", "-0.2", "0.2", "1e-3") for part in ("--strength", s)]
    arguments = ["Why?", "Who?", "--vector", finished, "--unit", "raw", *strengths]
    lines = saesteer(*generate(*arguments)).out.splitlines()
    heads = [line for line in lines if line.startswith("strength")]
    assert heads == [f"strength {s} raw" for s in ("-9", "-0.2", "+0.2", "+0.001")] * 2
    assert [line for line in lines if line.startswith("“")] == ["“Why?”", "“Who?”"]


def test_a_kl_stands_for_the_strength_that_a_run_found(saesteer, refused, finished, monkeypatch):
    from saesteer.data import read_answers

    measured = json.loads((finished / "config.json").read_text())["evaluation"]["neutral"]
    monkeypatch.setattr(
        "saesteer.steering.divergence.read_answers", lambda name: read_answers(measured)
    )
    targets = ["--kl", "-0.05", "--kl", "0", "--kl", "0.05"]
    answer = saesteer(*generate("Why?", "--vector", finished, *targets))
    assert answer.code == 0
    said = [line.split() for line in answer.err.splitlines() if " costs KL " in line]
    found = json.loads((finished / "metrics.json").read_text())["vector"]
    wanted = [found["minus"]["strength"], 0.0, found["plus"]["strength"]]
    assert [float(words[1]) for words in said] == pytest.approx(wanted, rel=0.05)
    assert [float(words[-1]) for words in said] == pytest.approx([0.05, 0.0, 0.05], rel=0.04)
    head = next(line for line in answer.out.splitlines() if "strength" in line).split()
    assert head[1::2] == [said[0][1], "0", said[2][1]]
    told = refused("generate", "Why?", "--vector", finished, "--kl", "0.05", "--strength", "1")
    assert told == "--strength and --kl both say how much; give one of them."


def test_a_strength_beyond_the_residual_stream_is_warned_of(saesteer, finished):
    for strength, warned in (("0.2", 0), ("-5", 1)):
        answer = saesteer(*generate("Why?", "--vector", finished, "--strength", strength))
        assert answer.code == 0
        assert answer.err.count("adds 5 times the length of the residual stream") == warned


def test_samples_depend_on_the_seed(saesteer, finished):
    arguments = ["Why?", "--vector", finished, "--strength", "0", "--strength", "0.1"]
    sampled = [*arguments, "--samples", "3", "--temperature", "1.5", "--seed"]
    answer, again, other = (saesteer(*generate(*sampled, seed)) for seed in "445")
    assert answer.code == 0
    assert answer.out == again.out != other.out


def test_one_row_streams_what_the_table_would_hold(saesteer, finished, monkeypatch):
    from saesteer.cli import generate as module

    pieces = []
    show = module._print_piece
    monkeypatch.setattr(module, "_print_piece", lambda piece: pieces.append(piece) or show(piece))
    given = ["Why?", "--vector", finished, "--strength", "-0.2", "--dtype", "float32"]
    answer = saesteer("generate", *given, "--max-new-tokens", "60")
    assert answer.code == 0
    assert answer.out == "".join(map(cleaned, pieces)) + "\n"
    assert len(pieces) > 1


def test_without_a_vector_the_plain_model_answers(saesteer, tiny_model_folder):
    for arch, chat in (("qwen3", False), ("gpt2", False), ("llama", True)):
        answer = saesteer(*generate("Why?", "--model", tiny_model_folder(arch, chat)))
        assert answer.code == 0, answer
        assert answer.out.endswith("\n")
    # A chat model can be given a plain prompt.
    assert saesteer(*generate("Why?", "--model", tiny_model_folder("llama"), "--plain")) != answer


def test_what_only_the_model_can_tell_is_one_sentence_too(refused, finished, tiny_model_folder):
    vector = ["--vector", finished, "--strength", "0.2", "--dtype", "float32"]
    assert "is more than the model's context of 192" in refused("generate", "word " * 300, *vector)
    assert "was made on other weights" in refused(
        "generate", "Why?", *vector, "--model", tiny_model_folder("qwen3")
    )
    base = tiny_model_folder("gpt2", False)
    assert "chat template" in refused("generate", "Why?", "--model", base, "--system", "Be kind.")


def test_another_engine_writes_the_same(saesteer, refused, finished):
    asked = ["Why?", "Who are you?", "--vector", finished, "--strength", "0", "--strength", "0.2"]
    paged = saesteer(*generate(*asked, "--engine", "paged"))
    assert paged.code == 0, paged
    assert paged.out == saesteer(*generate(*asked)).out
    told = refused("generate", "Why?", "--engine", "openai")
    assert told.startswith("--engine: the engine openai needs a server, such as http://127.0.0.1")
    server = ["--engine", "openai", "--server", "http://127.0.0.1:9/v1", "--strength", "0.2"]
    told = refused("generate", "Why?", "--vector", finished, *server)
    assert "use positions everywhere" in told
