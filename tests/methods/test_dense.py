"""Directions without features are those of other packages and of formulas worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saesteer.data import pairs_from
from saesteer.evaluation.choices import QUESTION, choice_question
from saesteer.methods import CAA, PCA, LogisticProbe, RandomDirection, ReadingSettings, answer_pairs
from saesteer.methods.answer_letters import balanced_orders
from saesteer.models import Site, chat_prompt
from saesteer.utils.errors import DataError

SITE = Site(1)
WIDTH = 10
VARIANTS = ("pca_diff", "pca_center")
PAIRS = pairs_from(
    [
        ("i like the dog", "i hate the cat"),
        ("people are good", "people are bad and always will be"),
        ("sun", "rain"),
        ("i listen", "i talk"),
    ]
)


def texts(tokenizer, chat: bool, seed: int) -> tuple[list[str], list[str]]:
    """The matching and the other answer's whole text, written out."""
    made: tuple[list[str], list[str]] = ([], [])
    for pair, first in zip(PAIRS, balanced_orders(len(PAIRS), seed), strict=True):
        options = (pair.positive, pair.negative) if first else (pair.negative, pair.positive)
        asked = f"{QUESTION}\n\nChoices:\n (A) {options[0]}\n (B) {options[1]}"
        prompt = chat_prompt(tokenizer, asked) if chat else f"{asked}\n\nAnswer: "
        made[0].append(f"{prompt}({'A' if first else 'B'}")
        made[1].append(f"{prompt}({'B' if first else 'A'}")
    return made


@pytest.mark.parametrize("chat", [True, False])
def test_it_equals_a_loop_with_hugging_face_alone(tiny_model, hf_model, chat, given_of):
    model = tiny_model("llama")
    reference, tokenizer = hf_model("llama"), model.tokenizer
    answers = answer_pairs(model, PAIRS, [SITE], chat=chat, prepend_bos=False, seed=3)[SITE]
    vector = CAA().fit_in(given_of(answers, answers=answers)).vector_
    means = []
    for side in texts(tokenizer, chat, seed=3):
        hidden = []
        for text in side:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            assert tokenizer.decode(ids[0, -1:]) in ("A", "B")
            with torch.no_grad():
                hidden.append(reference(ids, output_hidden_states=True).hidden_states[2][0, -1])
        means.append(torch.stack(hidden).mean(dim=0))
    torch.testing.assert_close(vector.raw, means[0] - means[1], atol=1e-4, rtol=1e-4)


def test_it_equals_the_package_steering_vectors(tiny_model, hf_model, given_of):
    package = pytest.importorskip("steering_vectors")
    model = tiny_model("llama")
    pairs = list(zip(*texts(model.tokenizer, True, seed=0), strict=True))
    theirs = package.train_steering_vector(
        hf_model("llama"), model.tokenizer, pairs, layers=[SITE.layer], read_token_index=-1
    ).layer_activations[SITE.layer]
    answers = answer_pairs(model, PAIRS, [SITE], chat=True, prepend_bos=False)[SITE]
    ours = CAA().fit_in(given_of(answers, answers=answers)).vector_
    assert float(torch.cosine_similarity(ours.raw, theirs, dim=0)) > 0.9999
    assert ours.norm == pytest.approx(float(theirs.norm()), rel=1e-4)


def test_either_option_matches_in_half_of_the_questions_in_an_order_of_the_seed(tiny_model):
    for n in (2, 7, 100):
        orders = [balanced_orders(n, seed) for seed in range(5)]
        assert {int(order.sum()) for order in orders} == {(n + 1) // 2}
    assert len({tuple(order) for order in orders}) == 5
    read = [answer_pairs(tiny_model("llama"), PAIRS, [SITE], seed=seed)[SITE] for seed in (0, 0, 1)]
    assert torch.equal(read[0].deltas, read[1].deltas)
    assert not torch.allclose(read[0].deltas, read[2].deltas)
    # One token is read for each.
    assert read[0].positive.offsets.tolist() == list(range(len(PAIRS) + 1))


def test_a_pairs_own_prompt_is_the_question(tiny_model):
    def read(prompt: str | None) -> torch.Tensor:
        one = {"positive": "yes", "negative": "no", "prompt": prompt}
        return answer_pairs(tiny_model("llama"), pairs_from([one]), [SITE])[SITE].deltas

    assert torch.equal(read(None), read(QUESTION))
    assert not torch.allclose(read(None), read("Do you like dogs?"))
    assert choice_question("x", "y", "Do you?") == "Do you?\n\nChoices:\n (A) x\n (B) y"

    with pytest.raises(DataError, match=r"more than the model's context of 192"):
        answer_pairs(tiny_model("llama"), pairs_from([("word " * 200, "no")]), [SITE])


def repeng_by_hand(positive: np.ndarray, negative: np.ndarray, variant: str) -> np.ndarray:
    """repeng 0.4.0's `read_representations`, written out with numpy's own decomposition."""
    hidden = np.empty((2 * len(positive), positive.shape[1]))
    hidden[::2], hidden[1::2] = positive, negative
    if variant == "pca_diff":
        train = hidden[::2] - hidden[1::2]
    else:
        train = hidden - np.repeat((hidden[::2] + hidden[1::2]) / 2, 2, axis=0)
    train = train - train.mean(axis=0)
    direction = np.linalg.eigh(train.T @ train)[1][:, -1]
    projected = hidden @ direction
    if (projected[::2] < projected[1::2]).mean() > (projected[::2] > projected[1::2]).mean():
        direction = -direction
    return direction


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_repengs_formula_by_hand_with_its_sign(variant, given_sides):
    rng = np.random.default_rng(0)
    shape, shift = np.linspace(0.2, 3, 12), rng.normal(size=12)
    positive = rng.normal(size=(31, 12)) * shape + shift
    negative = rng.normal(size=(31, 12)) * shape - shift
    vector = PCA(variant).fit_in(given_sides(positive, negative)).vector_
    wanted = repeng_by_hand(positive, negative, variant)
    np.testing.assert_allclose(vector.direction.numpy(), wanted, atol=1e-4)
    assert vector.norm == pytest.approx(np.linalg.norm((positive - negative).mean(axis=0)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_the_package_repeng(variant, tiny_model, hf_model, monkeypatch):
    # repeng 0.4.0 names numpy 1's float_ in an annotation, and so fails to import on numpy 2.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    repeng = pytest.importorskip("repeng.extract")
    words = ["the cat", "a dog in the garden", "people", "sun and rain", "i listen to what you say"]
    pairs = pairs_from([(f"i like {word}", f"i hate {word}") for word in words])
    model = tiny_model("qwen3")
    theirs = repeng.read_representations(
        hf_model("qwen3"),
        model.tokenizer,
        [repeng.DatasetEntry(pair.positive, pair.negative) for pair in pairs],
        hidden_layers=[SITE.layer],
        method=variant,
    )[SITE.layer]
    # Without BOS, which this model's tokenizer does not have, and without a request.
    reading = ReadingSettings(positions="last", request=None)
    ours = PCA(variant).fit(model, pairs, site=SITE, reading=reading).vector_
    assert abs(float(ours.direction.numpy() @ theirs)) > 0.9999


def test_deltas_that_do_not_vary_are_the_direction_and_a_tie_goes_by_the_mean(given_sides):
    negative, delta = np.zeros((3, 4)), np.array([0.0, 2.0, 0.0, -1.0])
    vector = PCA().fit_in(given_sides(negative + delta, negative)).vector_
    np.testing.assert_allclose(vector.raw.numpy(), delta, atol=1e-5)
    deltas = np.array([[3.0, 0.0], [-1.0, 0.0]])
    for sign in (1, -1):
        vector = PCA().fit_in(given_sides(sign * deltas, np.zeros((2, 2)))).vector_
        assert float(vector.direction[0]) == pytest.approx(sign)


def sides(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = np.geomspace(0.1, 20, WIDTH)
    shift = np.linspace(-0.5, 0.5, WIDTH)
    topic = rng.normal(size=(n, WIDTH))
    noise = rng.normal(size=(2, n, WIDTH))
    both = (topic + noise + shift * np.array([1, -1])[:, None, None]) * scale
    return tuple(both.astype(np.float32).astype(np.float64))  # type: ignore[return-value]


def standardised(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = np.concatenate([positive, negative])
    return (both - both.mean(axis=0)) / both.std(axis=0), both.std(axis=0)


def by_scipy(x: np.ndarray, labels: np.ndarray, c: float) -> np.ndarray:
    """Weights and intercept that minimise |w|^2 / 2 + c * sum of log-losses."""
    from scipy.optimize import minimize

    signs = 2 * labels - 1

    def loss(parameters: np.ndarray) -> float:
        scores = signs * (x @ parameters[:-1] + parameters[-1])
        return parameters[:-1] @ parameters[:-1] / 2 + c * np.logaddexp(0, -scores).sum()

    return minimize(loss, np.zeros(x.shape[1] + 1), method="BFGS", options={"gtol": 1e-7}).x


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_direction_is_the_raw_gradient_of_the_penalised_fit(c, given_sides):
    positive, negative = sides()
    x, deviation = standardised(positive, negative)
    wanted = by_scipy(x, np.repeat([1, 0], 60), c)[:-1] / deviation
    vector = LogisticProbe(c=(c,)).fit_in(given_sides(positive, negative)).vector_
    np.testing.assert_allclose(
        vector.direction.numpy(), wanted / np.linalg.norm(wanted), rtol=1e-3, atol=1e-4
    )
    mean = (positive - negative).mean(axis=0)
    assert vector.norm == pytest.approx(abs(mean @ vector.direction.numpy()), rel=1e-4)


def test_the_penalty_is_that_of_least_loss_on_pairs_held_out_whole(given_sides):
    positive, negative = sides(25)
    strengths = (1e-3, 1e-2, 1e-1, 1.0)
    vector = LogisticProbe(strengths, folds=5).fit_in(given_sides(positive, negative)).vector_
    losses = []
    for c in strengths:
        per_fold = []
        for fold in range(5):
            out = np.arange(25) % 5 == _fold_of(fold)
            x, labels = np.concatenate([positive[~out], negative[~out]]), np.repeat([1, 0], 20)
            centre, deviation = x.mean(axis=0), x.std(axis=0)
            fit = by_scipy((x - centre) / deviation, labels, c)
            held = (np.concatenate([positive[out], negative[out]]) - centre) / deviation
            scores = (2 * np.repeat([1, 0], 5) - 1) * (held @ fit[:-1] + fit[-1])
            per_fold.append(np.logaddexp(0, -scores).mean())
        losses.append(np.mean(per_fold))
    fit = vector.provenance["fit"]
    assert isinstance(fit, dict)
    assert fit["c"] == strengths[int(np.argmin(losses))]
    assert fit["held_out_log_loss"] == pytest.approx(min(losses), rel=1e-3)


def _fold_of(number: int) -> int:
    # Groups of equal size go to folds in turn, from the last one back.
    return (25 - 1 - number) % 5


def test_sides_that_separate_perfectly_still_give_finite_weights(given_sides):
    positive, negative = sides(8)
    vector = LogisticProbe().fit_in(given_sides(positive + 1e4, negative - 1e4)).vector_
    assert torch.isfinite(vector.direction).all()
    assert float(vector.direction @ torch.ones(WIDTH)) > 0

    # A coordinate that never varies weighs nothing.
    positive, negative = sides()
    positive[:, 4] = negative[:, 4] = 3.0
    vector = LogisticProbe().fit_in(given_sides(positive, negative)).vector_
    assert vector.direction[4] == 0


def test_random_directions_are_as_long_as_the_delta_and_nearly_orthogonal(given_sides):
    sides = np.random.default_rng(0).normal(size=(2, 2, 2048))
    given = given_sides(*sides, seed=5)
    vectors = [RandomDirection(draw).fit_in(given).vector_ for draw in range(6)]
    length = float(given.deltas.mean(dim=0).norm())
    assert all(v.norm == pytest.approx(length, rel=1e-6) for v in vectors)
    directions = torch.stack([v.direction for v in vectors])
    # About 0.022 from 2048 dimensions at random; seven times that.
    assert float((directions @ directions.T - torch.eye(6)).abs().max()) < 0.15
    assert float((directions @ given.deltas.mean(dim=0)).abs().max()) < 0.15 * length
    assert len({v.name for v in vectors}) == 6

    # Draws and seeds repeat and differ.
    given = given_sides(np.ones((3, 8)), np.zeros((3, 8)))

    def direction(draw: int, seed: int) -> torch.Tensor:
        given.seed = seed
        return RandomDirection(draw).fit_in(given).vector_.direction

    assert torch.equal(direction(3, 7), direction(3, 7))
    assert not torch.allclose(direction(3, 7), direction(4, 7))
    assert not torch.allclose(direction(3, 7), direction(3, 8))
    assert torch.isfinite(direction(0, 2**32 - 1)).all()
