"""Public measures as they are published: steering-bench's samples, AxBench's labelled texts."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from saesteer.data.checks import collect
from saesteer.data.pairs import ContrastivePair, PairSet
from saesteer.data.records import check_is_file, read_records, read_text
from saesteer.data.schema import Field, Schema
from saesteer.utils.errors import DataError
from saesteer.utils.text import shorten

_SIDE = Schema((Field("prompt", required=True), Field("response", required=True)), open=True)
_SAMPLE = Schema(
    tuple(Field(side, "record", required=True, of=_SIDE) for side in ("positive", "negative")),
    open=True,
)
PERSONA_PROMPTS = "persona_prompts.py"
TRAIN, EVALUATED = "generate/train_data.parquet", "inference/latent_eval_data.parquet"
_ROW = Schema(
    (
        Field("input", strip=False, required=True),
        Field("output", strip=False, required=True),
        Field("output_concept", required=True),
        Field("concept_genre", required=True),
        Field("category", required=True),
        Field("concept_id", "name", required=True),
    ),
    open=True,
)


class Concept(NamedTuple):
    """A concept of AxBench: pairs to fit on, and texts to find it in."""

    name: str
    pairs: PairSet  # A text with the concept and one of the same genre without.
    texts: tuple[str, ...]
    categories: tuple[str, ...]  # Of each text: positive, negative or hard negative.


class SteeringBench(NamedTuple):
    """Datasets of steering-bench, and the files of a folder that are none, with the reason."""

    sets: tuple[PairSet, ...]
    left_out: dict[str, str]


def read_steering_bench(source: str | Path) -> SteeringBench:
    """Read steering-bench's processed datasets, a JSON file each, or all below a folder.

    A file is a list of `{"positive": {"prompt", "response"}, "negative": {...}}`: one question with
    the answer letter that matches and the other one. A pair's sides are written "(A", whose letter
    is the last token. Of a folder, files in another layout are left out.

    Raises:
        DataError: There is no such dataset.
    """
    path = Path(source)
    if not path.is_dir():
        return SteeringBench((_bench_set(path),), {})
    sets, left_out = [], {}
    for file in sorted(path.rglob("*.json")):
        try:
            sets.append(_bench_set(file))
        except DataError as error:
            left_out[file.relative_to(path).as_posix()] = str(error)
    if not sets:
        said = f" (such as {next(iter(left_out.values()))})" if left_out else ""
        raise DataError(
            f"{path}: there is no dataset of steering-bench in it{said}; give its "
            "assets/processed_datasets or one JSON file of it."
        )
    twin = next((s.name for i, s in enumerate(sets) if s.name in {t.name for t in sets[:i]}), None)
    if twin is not None:
        raise DataError(f"{path}: two files are called {twin}.json; give one folder of them.")
    return SteeringBench(tuple(sets), left_out)


def _bench_set(path: Path) -> PairSet:
    records = read_records(path, "json").records

    def pair(numbered: tuple[int, object]) -> ContrastivePair:
        number, record = numbered
        said, place = _SAMPLE.read(record), record.place  # type: ignore[attr-defined, arg-type]
        prompt, other = said["positive"]["prompt"], said["negative"]["prompt"]
        if prompt != other:
            raise DataError(
                f"{place}: the two sides have different prompts, so no answer letter tells them "
                "apart; leave this file out"
            )
        sides = (said[side]["response"].removesuffix(")") for side in ("positive", "negative"))
        return ContrastivePair(str(number), *sides, prompt=prompt)

    pairs = collect(list(enumerate(records, start=1)), pair)
    return PairSet(path.stem, tuple(pairs), str(path))


def read_persona_prompts(source: str | Path) -> dict[str, tuple[str, str]]:
    """Read steering-bench's prompts that ask for the persona, or for its opposite, by dataset.

    The file `persona_prompts.py` of its experiments is read and never run: every dictionary that
    is written out in it counts, if it maps texts to two texts each. A folder is searched for the
    file, and gives nothing where there is none.

    Raises:
        DataError: The file holds no such dictionary.
    """
    path = Path(source)
    if path.is_dir():
        path = next(iter(sorted(path.rglob(PERSONA_PROMPTS))), path / PERSONA_PROMPTS)
        if not path.is_file():
            return {}
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: this is no Python file ({error}); give {PERSONA_PROMPTS}."
        ) from None
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found.update(_prompts_in(node))
    if not found:
        raise DataError(f"{path}: there are no pairs of prompts in it; give {PERSONA_PROMPTS}.")
    return found


def _prompts_in(node: ast.Dict) -> Iterator[tuple[str, tuple[str, str]]]:
    for key, value in zip(node.keys, node.values, strict=True):
        try:
            name, prompts = ast.literal_eval(key), ast.literal_eval(value)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            continue
        pair = isinstance(prompts, tuple) and len(prompts) == 2
        if isinstance(name, str) and pair and all(isinstance(one, str) for one in prompts):
            yield name, prompts


def read_axbench(folder: str | Path) -> tuple[Concept, ...]:
    """Read a folder of AxBench, such as `concept10/prod_2b_l20_v1`.

    A text is an instruction with its response. The texts with a concept are paired, in their order,
    with those without any concept of the same genre.

    Raises:
        DataError: A file is missing or has another layout, or a concept has nothing to compare.
    """
    place = Path(folder)
    if not place.is_dir():
        check_is_file(place)
        raise DataError(f"{place}: this is a file; give the folder that holds {TRAIN}.")
    train, evaluated = (_rows(place / name) for name in (TRAIN, EVALUATED))
    names = dict.fromkeys(r["output_concept"] for r in train if r["category"] == "positive")
    return tuple(_concept(name, train, evaluated, place) for name in names)


def _rows(path: Path) -> list[dict[str, str]]:
    return _ROW.read_file(read_records(path, "parquet"), lambda said, place: said)


def _text(row: Mapping[str, str]) -> str:
    return f"{row['input']}\n{row['output']}"


def _concept(
    name: str, train: Sequence[dict[str, str]], evaluated: Sequence[dict[str, str]], place: Path
) -> Concept:
    with_it = [r for r in train if r["output_concept"] == name and r["category"] == "positive"]
    own = {key: with_it[0][key] for key in ("concept_genre", "concept_id")}
    without = [
        row
        for row in train
        if row["category"] == "negative" and row["concept_genre"] == own["concept_genre"]
    ]
    texts = [row for row in evaluated if row["concept_id"] == own["concept_id"]]
    kinds = {row["category"] for row in texts}
    if not without or not {"positive", "negative"} <= kinds:
        where = TRAIN if not without else EVALUATED
        raise DataError(
            f"{place / where}: for concept {shorten(name)} there are not both texts with it and "
            "texts without; fetch the folder again, whole."
        )
    pairs = [
        ContrastivePair(str(number), _text(one), _text(other))
        for number, (one, other) in enumerate(zip(with_it, without, strict=False), start=1)
    ]
    return Concept(
        name,
        PairSet(name, tuple(pairs), str(place)),
        tuple(map(_text, texts)),
        tuple(row["category"] for row in texts),
    )
