"""Settings and configurations that would never end, or end in a traceback, are sentences."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

import saesteer as ss
from saesteer.data import load_pairs
from saesteer.sweeps.sweep_file import read_sweep
from saesteer.utils.errors import ConfigError, DataError
from saesteer.utils.limits import check_declared, read_json
from saesteer.utils.settings import TrackingSettings, parse_config, read_word, read_yaml

# 600 bytes for 10**10 values.
BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "anchors written out it has more than 4,000,000 characters"),
        ("a: &a [*a]", "stands within &a"),
        ("a: " + "[" * 20_000, "nested more than 50 deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("a: " + "9" * 6000, "more than 300 digits"),
        ("a: 0x" + "f" * 6000, "more than 300 digits"),
        ("a: 2001-02-31", "day"),
        ("a: " + "x" * 2_000_000, "and may have 1,000,000"),
    ],
    ids=["anchors", "itself", "deep", "deep enough", "digits", "hexadecimal", "date", "long"],
)
def test_yaml_keeps_to_its_limits_in_files_sweeps_and_words(tmp_path, text, message):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    start = time.process_time()
    for read in (lambda: read_yaml(file, empty="settings"), lambda: read_sweep(file)):
        with pytest.raises(ConfigError, match=message):
            read()
    with pytest.raises(ConfigError, match=message) as caught:
        read_word(f"name={text}")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 400


def test_what_is_within_the_limits_is_read_as_it_was():
    text = "{a: &a [1e-3, 0x10, 2001-02-03], b: *a, c: {<<: {d: 1}}, e: '9999', f: yes}"
    name, found = read_word(f"x.y={text}")
    assert name == "x.y" and found["a"][:2] == [0.001, 16] and found["b"] is found["a"]
    assert (found["c"], found["e"], found["f"]) == ({"d": 1}, "9999", True)


def test_json_and_what_a_configuration_declares_have_limits_too(tmp_path):
    file = tmp_path / "f.json"
    for text in ("[" * 100_000, "[" * 60 + "]" * 60):
        file.write_text(text)
        with pytest.raises(ValueError, match="nested more than 50 deep"):
            read_json(file)
    usual = {"n_layer": 126, "hidden_size": 16384, "rope_theta": 5e8, "vocab_size": 256_000}
    check_declared("config", {**usual, "text_config": usual, "max_position_embeddings": 10**9})
    for name in ("n_layer", "num_hidden_layers", "vocab_size", "d_model", "d_sae"):
        with pytest.raises(ValueError, match=f"{name} is 1,000,000,000 and may be"):
            check_declared("config", {"text_config": {name: 10**9}})


def test_a_name_of_a_million_letters_is_refused_at_once(tmp_path):
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{"positiv" + "e" * 1_000_000: "a", "negative": "b"}]))
    start = time.process_time()
    with pytest.raises(DataError, match="unknown field") as caught:
        load_pairs(file)
    with pytest.raises(ConfigError, match="is not a known setting") as misspelt:
        parse_config({"s\ned" * 200_000: 1}, kind=TrackingSettings, place="here")
    assert time.process_time() - start < 1
    for error in (caught, misspelt):
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("load", "settings", "weights"),
    [
        (ss.load_model, "config.json", "model.safetensors"),
        (ss.load_sae, "cfg.json", "sae_weights.safetensors"),
    ],
)
def test_weights_that_are_a_pipe_are_refused_and_not_waited_for(load, settings, weights, tmp_path):
    (tmp_path / settings).write_text("{}")
    os.mkfifo(tmp_path / weights)
    with pytest.raises(ss.SaesteerError, match="no file on a disk"):
        load(tmp_path)


def test_a_pipe_that_nobody_writes_into_is_empty_and_one_that_is_written_is_read(tmp_path):
    pipe = tmp_path / "f.yaml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="holds no settings"):
        read_yaml(pipe, empty="settings")
    # Held open, so that what is written waits to be read.
    with open(pipe, "r+b", buffering=0) as held:
        held.write(b"{a: 1}")
        writer = threading.Timer(0.3, held.close)
        writer.start()
        assert read_yaml(pipe, empty="settings") == {"a": 1}
        writer.join()
