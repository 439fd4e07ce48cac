"""The folder for what is fetched or converted once and used by every run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from saesteer.utils.errors import OutputError


def cache_folder() -> Path:
    """Return the cache folder: `$SAESTEER_CACHE`, else the platform's user cache."""
    chosen = os.environ.get("SAESTEER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("saesteer")


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, building it first if it is not there.

    The contents are made beside it and moved into place whole, so a build that is cut off leaves
    nothing that looks finished.

    Args:
        folder: The folder wanted.
        build: Fills the empty folder it is given.

    Raises:
        OutputError: The cache cannot be written, or not to the end.
    """
    if os.path.isdir(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}); "
            "set SAESTEER_CACHE to a folder that can."
        ) from error
    try:
        build(draft)
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster: its folder holds the same.
            if not folder.is_dir():
                raise
    except OSError as error:
        raise OutputError(
            f"the cache folder {folder.parent} could not be filled ({error.strerror or error}); "
            "free some space or set SAESTEER_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
