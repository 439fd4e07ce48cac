"""Reading labelled texts: the bundled sets, the three layouts, and files that cannot be used."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from saesteer.data.labelled import check_trainable, read_labelled
from saesteer.data.near_duplicates import near_duplicate_groups
from saesteer.utils.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a CSV file: name, header, rows, encoding."""

    def make(name: str, header: str, *rows: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        return path

    return make


def test_the_bundled_texts_are_many_balanced_and_not_alike():
    texts = read_labelled("sentiment")
    assert len(texts) >= 1200
    assert texts.classes == ("negative", "neutral", "positive")
    assert len(set(np.bincount(texts.labels).tolist())) == 1
    words = {c: np.mean([len(t.text.split()) for t in texts.texts if t.label == c])
             for c in texts.classes}  # fmt: skip
    assert max(words.values()) / min(words.values()) < 1.03
    groups = near_duplicate_groups([text.text for text in texts.texts])
    assert len(set(groups.tolist())) == len(texts)


def test_a_group_of_the_bundled_texts_holds_one_reaction_and_so_one_class():
    by_group: dict[str, set[str]] = {}
    for text in read_labelled("sentiment").texts:
        by_group.setdefault(text.group, set()).add(text.label)
    assert all(len(labels) == 1 for labels in by_group.values())
    assert len(by_group) > 300


def test_the_plain_cases_hold_those_that_earlier_probes_missed():
    checks = read_labelled("sentiment_checks")
    by_text = {text.text: text.label for text in checks.texts}
    assert by_text["I am feeling happy today"] == "positive"
    assert by_text["I am feeling sad today"] == "negative"
    assert len(checks) >= 42
    trained = {text.text.lower().rstrip(".!") for text in read_labelled("sentiment").texts}
    assert not trained & {text.lower() for text in by_text}


def test_the_bundled_prompts_are_balanced_and_divided():
    prompts = read_labelled("sentiment_prompts")
    assert Counter(t.label for t in prompts.texts) == {"positive": 24, "negative": 24}
    assert {t.group for t in prompts.texts} == {"tune", "score"}


def test_valence_becomes_three_classes_at_half_a_point(write):
    path = write("v.csv", "id,mean_valence,text", "1_1,0.5,a", "1_2,-0.5,b", "2,0.49,c", "3,-4,d")
    texts = read_labelled(path)
    assert [t.label for t in texts.texts] == ["positive", "negative", "neutral", "negative"]
    # Sentences of one review belong together.
    assert [t.group for t in texts.texts] == ["1", "1", "2", "3"]
    strict = read_labelled(path, threshold=2.0)
    assert [t.label for t in strict.texts] == ["neutral", "neutral", "neutral", "negative"]


def test_files_of_a_folder_do_not_share_ids_or_groups(write, tmp_path):
    for name in ("a.csv", "b.csv"):
        write(name, "id,mean_valence,text", f"1_1,2,good {name}", f"1_2,-2,bad {name}")
    texts = read_labelled(tmp_path)
    assert [t.id for t in texts.texts] == ["a:1_1", "a:1_2", "b:1_1", "b:1_2"]
    assert len({t.group for t in texts.texts}) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_tweets_are_read_in_either_encoding_with_their_spans(write, encoding):
    path = write(
        "t.csv",
        "textID,text,selected_text,sentiment,Country",
        'x1,"I love the café, truly",love the café,positive,France',
        "x2,so so,so so,Neutral,Peru",
        encoding=encoding,
    )
    texts = read_labelled(path)
    assert texts.texts[0].text == "I love the café, truly"
    assert texts.texts[0].span == "love the café"
    assert [t.label for t in texts.texts] == ["positive", "neutral"]
    assert texts.texts[1].id == "x2"


def test_a_blank_tweet_is_refused_by_its_line_or_left_out_on_request(write):
    path = write("t.csv", "text,selected_text,sentiment", "fine,fine,neutral", ",,neutral")
    with pytest.raises(DataError, match=r"t\.csv:3: .*'text' is blank.*skip_blank"):
        read_labelled(path)
    texts = read_labelled(path, skip_blank=True)
    assert (len(texts), texts.dropped) == (1, 1)


def test_any_fields_can_be_named(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"body": "yes", "stars": 5, "shop": "a"}, {"body": "no", "stars": 1, "shop": "a"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = read_labelled(path, text_key="body", label_key="stars", group_key="shop")
    assert texts.classes == ("1", "5")
    assert {t.group for t in texts.texts} == {"a"}


def test_a_label_that_the_config_does_not_name_is_refused_by_its_line(write):
    path = write("l.csv", "text,label", "a,good", "b,bad", "c,godo")
    with pytest.raises(DataError, match=r"l\.csv:4: label 'godo' \(did you mean 'good'\?\)"):
        read_labelled(path, classes=["bad", "good"])
    texts = read_labelled(path, classes=["bad", "good"], drop_other=True)
    assert (texts.classes, texts.dropped) == (("bad", "good"), 1)
    assert texts.labels.tolist() == [1, 0]


def test_one_class_only_is_refused(write):
    texts = read_labelled(write("l.csv", "text,label", "a,good", "b,good"))
    with pytest.raises(DataError, match="all 2 texts have the label 'good'"):
        check_trainable(texts)


def test_a_class_with_too_few_texts_is_named(write):
    texts = read_labelled(write("l.csv", "text,label", "a,good", "b,good", "c,bad"))
    with pytest.raises(DataError, match="class 'bad' has 1 texts"):
        check_trainable(texts)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("v.csv", ("id,mean_valence,text", "1,much,a"), r"v\.csv:2: mean_valence is 'much'"),
        ("v.csv", ("id,mean_valence,text", "1,nan,a"), r"v\.csv:2: mean_valence is 'nan'"),
        ("v.csv", ("id,mean_valence,text", "1,44,a"), r"v\.csv:2: mean_valence is '44'"),
        ("l.csv", ("text,label", "a,"), r"l\.csv:2: the field 'label' is blank"),
        ("l.csv", ("words,label", "a,b"), r"l\.csv:1: there is no column 'text'"),
        ("l.csv", ("id,text,label", "1,a,b", "1,c,d"), r"l\.csv:3: the id '1' stands at .*:2"),
        ("l.csv", ("text,label,span", "a b,x,c"), r"l\.csv:2: span 'c' does not stand in the"),
        ("t.csv", ("text,selected_text,sentiment", "a,z,b"), r"t\.csv:2: selected_text 'z' does"),
    ],
)
def test_a_bad_record_is_named_by_its_line(write, name, rows, message):
    with pytest.raises(DataError, match=message):
        read_labelled(write(name, *rows))


def test_a_broken_latin1_file_is_named_by_its_line(write):
    path = write("t.csv", "text,sentiment", "café,neutral", "a,b,c", encoding="latin-1")
    with pytest.raises(DataError, match=r"t\.csv:3: the row has 3 fields and the header 2"):
        read_labelled(path)


def test_a_long_text_in_latin1_is_told_as_such(write):
    path = write("t.csv", "text,label", "café,a", f"{'x' * 140_000},b", encoding="latin-1")
    with pytest.raises(DataError, match=r"t\.csv:3: the field 'text' has 140,000 characters"):
        read_labelled(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "sentimnt"}, DataError, "did you mean 'sentiment'"),
        ({"source": "no/such.csv"}, DataError, "there is no such file"),
        ({"source": "sentiment", "format": "tweet"}, ConfigError, "did you mean 'tweets'"),
        ({"source": "sentiment", "classes": ["positive"]}, ConfigError, "fewer than two"),
        ({"source": "sentiment", "classes": ["a", "a"]}, ConfigError, "name one twice"),
        ({"source": "sentiment", "classes": ["a", "b"]}, DataError, "is not among the classes"),
        ({"source": "sentiment", "threshold": 0}, ConfigError, "threshold is 0"),
    ],
)
def test_a_bad_argument_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        read_labelled(**arguments)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.csv file"):
        read_labelled(tmp_path)


def test_the_digest_follows_texts_labels_and_groups(write):
    one = read_labelled(write("a.csv", "text,label,group", "a,x,1", "b,y,2"))
    same = read_labelled(write("b.csv", "text,label,group", "a,x,1", "b,y,2"))
    other = read_labelled(write("c.csv", "text,label,group", "a,x,1", "b,y,1"))
    assert one.digest == same.digest != other.digest


def test_the_human_rated_texts_are_all_read(shared_data):
    texts = read_labelled(shared_data / "sentiment", format="valence")
    with (shared_data / "sentiment" / "tweets.csv").open(encoding="utf-8") as file:
        tweets = list(csv.DictReader(file))
    assert len(texts) == 23703
    own = [t for t in texts.texts if t.id.startswith("tweets:")]
    expected = ["positive" if float(r["mean_valence"]) >= 0.5 else
                "negative" if float(r["mean_valence"]) <= -0.5 else "neutral"
                for r in tweets]  # fmt: skip
    assert [t.label for t in own] == expected
