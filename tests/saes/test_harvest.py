"""What an SAE is trained on: packed texts, and their activations at its site."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch

from saesteer.models.reading import read_rows
from saesteer.models.sites import Site
from saesteer.saes.corpus import CorpusSource, pack_corpus
from saesteer.saes.harvest import Harvest, harvest, harvest_key
from saesteer.saes.training import SaeTrainingConfig
from saesteer.utils.errors import ConfigError, DataError, NetworkError, OutputError

SITES = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"]
MODULE = sys.modules["saesteer.saes.harvest"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(MODULE, "ROWS_PER_SHARD", 7)


def contents(folder) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def whole(model, rows, tmp_path) -> Harvest:
    return harvest(model, rows, SITES, tmp_path / "whole")


def test_shards_hold_every_kept_token_at_every_site(model, rows, whole, tmp_path):
    assert whole.shards == (0, 1, 2, 3)
    for site in SITES:
        stored = torch.cat([whole.load(shard, site) for shard in whole.shards])
        read = read_rows(model, rows, [Site.parse(site)])[Site.parse(site)].values
        torch.testing.assert_close(stored, read, atol=1e-3, rtol=1e-3)
        assert stored.dtype == torch.float32
    # `max_tokens` stops after the shard that reaches it.
    first = sum(sum(row.kept) for row in rows[:7])
    assert harvest(model, rows, SITES, tmp_path / "a", max_tokens=first).shards == (0,)
    assert harvest(model, rows, SITES, tmp_path / "b", max_tokens=first + 1).shards == (0, 1)


def test_a_harvest_that_breaks_off_goes_on_where_it_stopped(
    model, rows, whole, tmp_path, monkeypatch
):
    calls = []

    def breaking(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read_rows(*args, **kwargs)

    monkeypatch.setattr(MODULE, "read_rows", breaking)
    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        harvest(model, rows, SITES, folder)
    assert sorted(os.listdir(folder)) == ["00000", "00001"]
    harvest(model, rows, SITES, folder)
    assert len(calls) == 3 + 2
    assert contents(folder) == contents(whole.folder)
    shutil.rmtree(folder / "00003")
    assert harvest(model, rows, SITES, folder).shards == whole.shards
    assert contents(folder) == contents(whole.folder)


def test_too_little_room_is_told_before_the_model_runs(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "read_rows", None)
    tokens = sum(sum(row.kept) for row in rows)
    needed = tokens * 32 * 4 * len(SITES)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, needed - 1))
    with pytest.raises(OutputError, match=r"room for .* kB and activations need .* kB more"):
        harvest(model, rows, SITES, tmp_path / "again")


def test_the_key_changes_with_all_that_the_activations_depend_on(rows):
    base = harvest_key("model", rows, SITES, torch.float32)
    assert harvest_key("model", list(rows), SITES[::-1], torch.float32) == base
    others = [
        harvest_key("other", rows, SITES, torch.float32),
        harvest_key("model", rows[::-1], SITES, torch.float32),
        harvest_key("model", rows, SITES[:1], torch.float32),
        harvest_key("model", rows, SITES, torch.bfloat16),
    ]
    assert len({base, *others}) == 5


BOS, EOS, USER, BOT = 0, 1, 3, 4


@pytest.fixture
def corpus_file(tmp_path):
    def write(texts: list[str], name: str = "texts.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
        return str(path)

    return write


def config(*sources: CorpusSource, **fields: Any) -> SaeTrainingConfig:
    base: dict[str, Any] = {"site": "blocks.1.hook_resid_post", "context": 32, "held_out": 0.2}
    return SaeTrainingConfig(corpus=list(sources), **(base | fields))


def documents(rows) -> list[tuple[int, ...]]:
    return [tuple(i for i, kept in zip(row.ids, row.kept, strict=True) if kept) for row in rows]


def test_every_token_is_packed_once_and_no_document_stands_on_both_sides(
    tokenizer, corpus_file, make_texts
):
    texts = make_texts(200)
    sources = [corpus_file(texts, "a.jsonl"), corpus_file(texts[::-1], "b.jsonl")]
    packed = pack_corpus(tokenizer, config(*(CorpusSource(path=path) for path in sources)))
    train, held = set(documents(packed.train)), set(documents(packed.held_out))
    assert train and held
    assert not train & held
    assert len(train | held) == len(set(texts))
    # Each text is there twice, and both times on the same side.
    assert len(packed.train) == 2 * len(train)
    assert 0.1 < len(held) / len(texts) < 0.3
    words = sum(len(text.split()) for text in texts)
    assert packed.train_tokens + sum(map(len, documents(packed.held_out))) == 2 * words
    # Rows fit the context and do not keep BOS.
    texts = make_texts(40, low=5, high=200)
    packed = pack_corpus(tokenizer, config(CorpusSource(path=corpus_file(texts))))
    for row in packed.train + packed.held_out:
        assert len(row) <= 32 and row.ids[0] == BOS
        assert row.kept == (False, *[True] * (len(row) - 1))


def test_special_tokens_inside_a_text_are_not_kept(tokenizer, corpus_file, make_texts):
    texts = [f"w1 </s> {text}" for text in make_texts(40)] + ["</s>", "</s> <s> </s>"]
    for style in ("plain", "chat"):
        source = CorpusSource(path=corpus_file(texts), style=style)
        packed = pack_corpus(tokenizer, config(source, context=64))
        assert any(EOS in row.ids for row in packed.train)
        for row in packed.train + packed.held_out:
            assert any(row.kept)
            kept = np.array(row.ids)[np.array(row.kept)]
            assert not set(kept.tolist()) & {BOS, EOS}


def test_chat_style_keeps_the_statements_alone(tokenizer, corpus_file, make_texts):
    texts = make_texts(80, low=3, high=9)
    source = CorpusSource(path=corpus_file(texts), style="chat")
    packed = pack_corpus(tokenizer, config(source, context=48))
    several = 0
    for row in packed.train + packed.held_out:
        start = row.ids.index(BOT) + 1
        assert row.ids[:2] == (BOS, USER)
        assert row.kept == (False,) * start + (True,) * (len(row) - start)
        assert len(row) <= 48
        words = " ".join(tokenizer.convert_ids_to_tokens(list(row.ids[start:])))
        inside = [text for text in texts if f" {text} " in f" {words} "]
        assert inside
        several += len(inside) > 1
    assert several > 5
    assert packed.train_tokens + sum(map(len, documents(packed.held_out))) == sum(
        len(text.split()) for text in texts
    )
    # Rows start with BOS whatever the template says: so says the card, and so it will be read.
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}bot "
    assert pack_corpus(bare, config(source, context=48)) == packed
    with pytest.raises(ConfigError, match=r"context is 16 .* template alone takes \d+ tokens"):
        pack_corpus(tokenizer, config(source, context=16))


def test_a_tiny_corpus_is_refused(tokenizer, corpus_file):
    with pytest.raises(DataError, match="too small"):
        pack_corpus(tokenizer, config(CorpusSource(path=corpus_file(["w1 w2"]))))


def test_a_hub_data_set_is_streamed_no_further_than_asked_and_one_that_fails_is_a_sentence(
    tokenizer, make_texts, monkeypatch
):
    taken = []

    def load_dataset(name, **kwargs):
        assert (name, kwargs) == ("her/texts", {"split": "train", "streaming": True})
        for text in make_texts(1000):
            taken.append(text)
            yield {"body": text}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = CorpusSource(hub="her/texts", text_field="body", limit=50)
    packed = pack_corpus(tokenizer, config(source))
    assert len(packed.train) + len(packed.held_out) == len(taken) == 50

    def fail(error):
        def load_dataset(name, **kwargs):
            raise error

        return load_dataset

    away = ConnectionError("Couldn't reach 'her/texts' on the Hub")
    wrong = ValueError('Unknown split "train".\nShould be one of')
    for load, kind, text in (
        (load_dataset, DataError, "no field 'text'; set text_field"),
        (fail(away), NetworkError, "connect, or give"),
        (fail(wrong), DataError, "check its id and split"),
    ):
        monkeypatch.setattr("datasets.load_dataset", load)
        with pytest.raises(kind, match=text) as caught:
            pack_corpus(tokenizer, config(CorpusSource(hub="her/texts")))
        assert "her/texts" in str(caught.value) and "\n" not in str(caught.value)
