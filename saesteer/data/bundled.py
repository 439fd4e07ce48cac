"""Where the data that ships with saesteer lies, and how a name is told from a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saesteer.data.records import check_is_file
from saesteer.utils.errors import DataError
from saesteer.utils.text import did_you_mean, shorten, spoken_list


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


def bundled_names(folder: str) -> tuple[str, ...]:
    """Name the sets in a folder of the bundled data, in alphabetical order; none if not there."""
    try:
        files = (datasets_folder() / folder).glob("*.json*")
    except DataError:
        return ()
    return tuple(sorted(path.stem for path in files))


def bundled_pair_names() -> tuple[str, ...]:
    """Name the bundled pair sets, in alphabetical order; empty where none is installed."""
    return bundled_names("pairs")


def find_file(source: str | Path, bundled: Sequence[str], folder: str = "") -> tuple[Path, str]:
    """Tell a bundled name from a path; returns the file and what to call the source.

    `bundled` names the sets in `folder` of the bundled data. A file of the user's own that is
    called like one is `./name`.
    """
    path = Path(source)
    if isinstance(source, str) and path.name == source and not path.suffix and len(source) <= 100:
        if source in bundled:
            found = (datasets_folder() / folder).glob(f"{source}.*")
            return next(found), f"bundled:{source}"
        if not path.exists():
            known = f"the bundled sets are {spoken_list(bundled)}" if bundled else "none is bundled"
            raise DataError(
                f"there is no file and no bundled set called {shorten(source)}"
                f"{did_you_mean(source, bundled)}; {known}"
            )
    check_is_file(path)
    return path, str(path)
