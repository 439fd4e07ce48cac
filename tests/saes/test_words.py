"""Words of tokenised text are whole, whatever pieces the tokenizer makes of them."""

from __future__ import annotations

import pytest

from saesteer.models.tokens import encode_texts
from saesteer.saes.lens import TokenTexts
from saesteer.saes.naming import NAMELESS, NEVER, Place, name_feature
from saesteer.saes.words import RowWords, WordCounts, is_text, token_words


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def words_of_rows(tokenizer, texts):
    rows = encode_texts(tokenizer, texts, prepend_bos=False)
    shown = TokenTexts(tokenizer)
    return rows, [RowWords.of(row, shown) for row in rows]


def place_of(row: RowWords, word: str, size: float = 1.0, index: int = 0) -> Place:
    """The last token of a word's first appearance."""
    tokens = [t for t, unit in enumerate(row.unit_of) if unit >= 0 and row.unit(unit) == word]
    return Place(size, index, tokens[-1])


def test_every_token_has_its_whole_word_and_broken_characters_are_none(tokenizer):
    text = "Zürich's co-operative, “naïve” 1958: x_y!\n\nNext — 🙂 end"
    _, (row,) = words_of_rows(tokenizer, [text])
    named = list(dict.fromkeys(row.unit(unit) for unit in row.unit_of if unit >= 0))
    signs = ["comma", "quotation mark", "colon", "exclamation mark", "line break", "dash"]
    assert row.text.strip() == text
    for word in ("Zürich's", "co-operative", "naïve", "1958", "Next", "end", *signs):
        assert word in named
    at = place_of(row, "naïve").token
    assert row.around(at, 1, 2) == ("co-operative, “", "naïve", "” 1958: x")
    at = place_of(row, "line break").token
    assert row.around(at, 1, 1) == ("y!", "⏎", "Next")


def test_what_is_text():
    assert all(map(is_text, ("kind words", "I am a 1958's", "comma: “well, [I] see”")))
    assert not any(map(is_text, ("", "B movie", "half \N{REPLACEMENT CHARACTER}", "a\x07b", "...")))


def test_tokens_stand_for_words_that_text_makes_of_them(tokenizer):
    texts = ["The assistant listens while the garden", "an assistant listened"]
    rows, words = words_of_rows(tokenizer, texts)
    shown = TokenTexts(tokenizer)
    names = token_words(zip(rows, words, strict=True), shown, WordCounts(words))
    said = {w.casefold() for text in texts for w in text.split()}
    assert names and {name.casefold() for name in names.values()} <= said
    for token, name in names.items():
        piece = shown.one(token)
        assert piece.startswith(" ") and name.casefold().startswith(piece.strip().casefold())
        assert len(piece.strip()) >= 5 or piece.strip().casefold() == name.casefold()


def test_a_label_is_of_words_phrases_and_an_example(tokenizer):
    filler = [f"the dog ran home with the cat number {n} of the day" for n in range(30)]
    texts = [f"It is no matter how {w} they run" for w in ("fast", "far", "long")]
    _, words = words_of_rows(tokenizer, [*texts, "All gardens and B sides", *filler])
    counts = WordCounts(words)
    places = [place_of(words[i], "matter", 3.0 - i / 10, i) for i in range(3)]
    weak = place_of(words[3], "gardens", 1.6, 3)
    label, named = name_feature([*places, weak], words, counts)
    assert named == ["matter", "gardens"]
    assert label == "It is no matter, gardens: “It is no [matter] how fast”"
    # Weak places do not count, nor do words that stand everywhere.
    weaker = weak._replace(activation=1.4)
    assert name_feature([*places, weaker], words, counts)[1] == ["matter"]
    # Activations may be negative. A lone letter is not shown.
    alone = place_of(words[3], "gardens", -2.0, 3)
    assert name_feature([alone], words, counts) == ("gardens", ["gardens"])
    assert name_feature([place_of(words[3], "B", 1.0, 3)], words, counts) == (NAMELESS, [])
    assert name_feature([], words, counts) == (NEVER, [])
