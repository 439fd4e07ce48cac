"""`saesteer generate`."""

from __future__ import annotations

import pytest

from saesteer.steering import SteeringVector


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


def test_samples_are_rows_of_the_table(saesteer, finished):
    arguments = ["Why?", "--vector", finished, "--strength", "0", "--strength", "0.1"]
    sampled = [*arguments, "--samples", "3", "--temperature", "1.5", "--seed", "4"]
    answer = saesteer(*generate(*sampled))
    assert answer.code == 0
    assert answer.out == saesteer(*generate(*sampled)).out
    assert answer.out != saesteer(*generate(*sampled[:-1], "5")).out


def test_one_row_streams_what_the_table_would_hold(saesteer, finished, monkeypatch):
    from saesteer.cli import generate as module

    pieces = []
    show = module._print_piece
    monkeypatch.setattr(module, "_print_piece", lambda piece: pieces.append(piece) or show(piece))
    given = ["Why?", "--vector", finished, "--strength", "-0.2", "--dtype", "float32"]
    answer = saesteer("generate", *given, "--max-new-tokens", "60")
    assert answer.code == 0
    assert answer.out == "".join(pieces) + "\n"
    assert len(pieces) > 1


def test_without_a_vector_the_plain_model_answers(saesteer, tiny_model_folder):
    for arch, chat in (("qwen3", False), ("gpt2", False), ("llama", True)):
        answer = saesteer(*generate("Why?", "--model", tiny_model_folder(arch, chat)))
        assert answer.code == 0, answer
        assert answer.out.endswith("\n")


def test_a_chat_model_can_be_given_a_plain_prompt(saesteer, finished):
    chat = saesteer(*generate("Why?", "--vector", finished, "--strength", "0"))
    plain = saesteer(*generate("Why?", "--vector", finished, "--strength", "0", "--plain"))
    assert chat.code == plain.code == 0
    assert chat.out != plain.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--strength", "nan"], "strength nan is not finite"),
        (["--strength", "-inf"], "strength -inf is not finite"),
        (["--strength", "a lot"], "strength 'a lot' is not a number"),
        (["--strength", ""], "strength '' is not a number"),
        (["--unit", "percent"], "unit 'percent' is unknown; use one of norm, raw, max_act"),
        (["--unit", "max_act"], "needs max_act, which the vector 'tiny' does not carry"),
        (["--samples", "3"], "--samples 3 at temperature 0 would all be equal"),
        ([""], "a prompt is empty"),
        (["--vector", "nowhere"], "nowhere: there is no such steering vector"),
        (["--vector", "{cut}"], "cut.safetensors: cannot be read as safetensors"),
        (["--dtype", "int8"], "dtype 'int8' is not one of"),
    ],
)
def test_bad_input_is_one_sentence_before_the_model_is_loaded(
    arguments, text, refused, finished, tmp_path, monkeypatch
):
    def refuse(*args: object, **kwargs: object):
        raise AssertionError("the model may not be loaded")

    monkeypatch.setattr("saesteer.models.loading._load_plain", refuse)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((finished / "vector.safetensors").read_bytes()[:100])
    given = [word.replace("{cut}", str(cut)) for word in arguments]
    vector = [] if "--vector" in given else ["--vector", finished]
    assert text in refused("generate", "Why?", *vector, *given)


def test_what_the_options_alone_tell_is_refused(saesteer, refused, no_loading):
    told = refused("generate", "Why?", "--strength", "-0.2")
    assert "a strength needs a vector; give --vector RUN" in told
    for option in (["--max-new-tokens", "0"], ["--samples", "0"], ["--temperature", "-1"]):
        answer = saesteer("generate", "Why?", *option)
        assert answer.code == 2
        assert option[0] in answer.err


def test_what_only_the_model_can_tell_is_one_sentence_too(refused, finished, tiny_model_folder):
    vector = ["--vector", finished, "--strength", "0.2", "--dtype", "float32"]
    assert "is more than the model's context of 192" in refused("generate", "word " * 300, *vector)
    assert "was made on other weights" in refused(
        "generate", "Why?", *vector, "--model", tiny_model_folder("qwen3")
    )
    base = tiny_model_folder("gpt2", False)
    assert "chat template" in refused("generate", "Why?", "--model", base, "--system", "Be kind.")


def test_a_vector_of_brackets_is_printed_letter_by_letter(saesteer, finished, tmp_path):
    vector = SteeringVector.load(finished)
    path = vector.save(tmp_path / "[red]v.safetensors")
    prompt = "Is [bold]this[/bold] bold?"
    answer = saesteer(*generate(prompt, "--vector", path, "--strength", "0", "--strength", "0.1"))
    assert f"“{prompt}”" in answer.out
