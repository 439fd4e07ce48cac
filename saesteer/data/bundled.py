"""Where the data that ships with saesteer lies."""

from __future__ import annotations

from pathlib import Path

from saesteer.utils.errors import DataError


def datasets_folder() -> Path:
    """Return the repository's `datasets/` in a checkout, else the installed package's copy.

    Raises:
        DataError: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package.parent / "datasets", package / "_datasets")
    for folder in candidates:
        # An unrelated installed package may be called "datasets" and lie beside this one, so the
        # folder counts only with our own content in it.
        if (folder / "pairs").is_dir() or (folder / "neutral_questions.jsonl").is_file():
            return folder
    raise DataError(
        f"the bundled data is in neither {candidates[0]} nor {candidates[1]}; "
        "install saesteer again, or give the path of your own file"
    )


def bundled_pair_names() -> tuple[str, ...]:
    """Name the bundled pair sets, in alphabetical order; empty where none is installed."""
    try:
        folder = datasets_folder()
    except DataError:
        return ()
    return tuple(sorted(path.stem for path in (folder / "pairs").glob("*.jsonl")))
