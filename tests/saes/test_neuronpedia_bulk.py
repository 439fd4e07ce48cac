"""Bulk files: whole, line by line, resumable, fast to load."""

from __future__ import annotations

import gzip
import json

import pytest

from saesteer.saes.neuronpedia import (
    Cache,
    Imported,
    SourceId,
    import_from_bucket,
    import_from_files,
)
from saesteer.utils.errors import DataError, NetworkError
from tests.saes.player import MODEL, PLACE, SOURCE, label_line

PLACE_ID = SourceId.parse(PLACE)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache" / "neuronpedia.sqlite")


def facts_line(index: int, **fields: object) -> str:
    rest = {"maxActApprox": 4.5, "frac_nonzero": 0.02, "pos_str": ["a"], "pos_values": [1.0]}
    return json.dumps({"modelId": MODEL, "layer": SOURCE, "index": str(index), **rest, **fields})


def test_labels_of_the_bucket_page_by_page(player, service_to, cache):
    player.page = 2
    for batch in range(5):
        player.put(f"batch-{batch}", [label_line(batch * 10 + n) for n in range(10)])
    # Another SAE whose name starts alike, and a file of another kind.
    player.objects[f"v1/{PLACE}x/explanations/batch-0.jsonl.gz"] = b"no gzip"
    player.objects[f"v1/{PLACE}/explanations/index.html"] = b"<html>"
    service, _ = service_to()
    done = import_from_bucket(cache, service, PLACE_ID)
    assert done == Imported(files=5, skipped=0, lines=50, labels=50)
    assert cache.labels(PLACE) == {n: f"label of {n}" for n in range(50)}
    assert sum("list-type=2" in path for path in player.paths) == 3
    for body in (b"<html>hello</html>", b"<ListBucketResult><Conte"):
        player.faults = [(200, body, {})]
        with pytest.raises(NetworkError, match="NEURONPEDIA_BUCKET_URL"):
            import_from_bucket(cache, service, PLACE_ID)


def test_an_import_that_was_cut_off_goes_on_where_it_stopped(player, service_to, cache):
    for batch in range(3):
        player.put(f"batch-{batch}", [label_line(batch)])
    last = f"v1/{PLACE}/explanations/batch-2.jsonl.gz"
    player.objects[last] = gzip.compress(b"[1]")
    service, waits = service_to(timeout=0.5)
    with pytest.raises(DataError, match=r"explanations/batch-2\.jsonl\.gz:1: .*no JSON object"):
        import_from_bucket(cache, service, PLACE_ID)
    assert cache.labels(PLACE) == {0: "label of 0", 1: "label of 1"}
    player.put("batch-2", [label_line(2)])
    player.calls.clear()
    # A download that breaks off is begun again.
    player.faults = ["", "cut"]
    assert import_from_bucket(cache, service, PLACE_ID) == Imported(1, 2, 1, 3)
    assert waits == [1.0]
    assert {path for path in player.paths if path.endswith(".gz")} == {f"/bucket/{last}"}
    # A file that changed replaces what it held.
    player.put("batch-0", [label_line(0, "better words")])
    assert import_from_bucket(cache, service, PLACE_ID).files == 1
    assert cache.labels(PLACE)[0] == "better words"


def test_imported_features_answer_offline_in_the_same_form(player, service_to, client_to):
    client = client_to(offline=True)
    player.put("batch-0", [label_line(3, "kind words")])
    player.put("batch-0", [facts_line(3)], kind="features")
    kinds = ("explanations", "features")
    import_from_bucket(client.cache, service_to()[0], PLACE_ID, kinds=kinds)
    player.calls.clear()
    found = client.feature(PLACE, 3)
    assert (found.description, found.max_activation, found.density) == ("kind words", 4.5, 0.02)
    assert (found.top_tokens, found.activations) == (("a",), ())
    assert client.features(PLACE, [3])[3] == found
    assert player.calls == []
    with pytest.raises(NetworkError):
        client.features(PLACE, [3, 4])


def test_local_files_gzipped_or_not_and_folders(tmp_path, cache):
    folder = tmp_path / "files" / "deep"
    folder.mkdir(parents=True)
    # Of several explanations the first is the label, and empty ones are none.
    lines = [label_line(2, "  first "), label_line(2, "second"), "", label_line(3, " ")]
    (folder / "batch-2.jsonl").write_text("\n".join([*lines, label_line(3, "words")]))
    (folder / "batch-10.jsonl.gz").write_bytes(gzip.compress(label_line(10).encode()))
    (folder / "notes.txt").write_text("nothing")
    done = import_from_files(cache, PLACE_ID, [tmp_path / "files"])
    assert (done.files, done.skipped, done.lines) == (2, 0, 5)
    assert import_from_files(cache, PLACE_ID, [folder / "batch-2.jsonl"]).skipped == 1
    assert cache.labels(PLACE) == {2: "first", 3: "words", 10: "label of 10"}
    feature = cache.feature(PLACE, 2)
    assert [e["description"] for e in feature["explanations"]] == ["first", "second"]
    with pytest.raises(DataError, match=r"nothing\.jsonl: there is no such file"):
        import_from_files(cache, PLACE_ID, [tmp_path / "nothing.jsonl"])
    # A file that is cut off, whatever it is called.
    body = gzip.compress("\n".join(label_line(n, "x" * 50 + str(n)) for n in range(900)).encode())
    (tmp_path / "a.jsonl").write_bytes(body[: len(body) // 2])
    with pytest.raises(DataError, match=r"local/a\.jsonl:\d+: the gzip file is damaged"):
        import_from_files(cache, PLACE_ID, [tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "no JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "no JSON"),
        (label_line(3, layer="7-res-jb"), "of gpt2-small/7-res-jb and not of"),
        (label_line(-3), "another kind of index"),
        (label_line(3).replace('"3"', "null"), "another kind of index"),
        (label_line(3).replace('"label of 3"', "null"), "another kind of description"),
        (json.dumps({"modelId": MODEL, "layer": SOURCE, "index": "3"}), "neither a description"),
        (facts_line(3, maxActApprox=float("nan")), "another kind of maxActApprox"),
        (facts_line(3, pos_str=[1]), "another kind of pos_str.0"),
    ],
)
def test_a_wrong_line_is_named_and_the_file_not_taken(tmp_path, cache, line, said):
    raw = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(f"{label_line(1)}\n{label_line(2)}\n".encode() + raw)
    with pytest.raises(DataError, match=r"local/a\.jsonl:3: ") as caught:
        import_from_files(cache, PLACE_ID, [tmp_path / "a.jsonl"])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert cache.labels(PLACE) == {}
