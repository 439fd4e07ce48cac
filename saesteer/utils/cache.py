"""What several runs share: kept in memory within a process, and in files between processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from saesteer.utils.array_cache import content_key
from saesteer.utils.errors import OutputError
from saesteer.utils.files import write_atomic
from saesteer.utils.run_folder import RunFolder

Kept = TypeVar("Kept")
# Models and what is measured on them are large; two of each serve sweeps that take turns.
MOST = {"model": 1, "sae": 3}
OTHERS = 2
# These hold a model, which would stay in memory for as long as they do.
ON_A_MODEL = "comparison"


class Cache:
    """Keeps by content what is costly to make, so that equal work is done once.

    A run of its own has an empty cache; the trials of a sweep share one in each worker, and its
    folder between workers.

    Args:
        folder: Where activations and measured results go; only memory if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}

    def keep(
        self,
        kind: str,
        key: Hashable,
        make: Callable[[], Kept],
        *,
        room: Callable[[Sequence[Kept]], bool] = lambda kept: False,
    ) -> Kept:
        """Return what is kept in memory under a key, making it first where it is not there.

        Args:
            kind: What it is, such as "model"; of each kind the last few used are kept.
            key: All that it depends on.
            make: Makes it.
            room: Whether what is kept may stay beside it, although it is as many as may be.
        """
        kept = self._kept.setdefault(kind, OrderedDict())
        if key not in kept:
            # Before the new one is made, or both would be in memory for a while.
            while len(kept) >= MOST.get(kind, OTHERS) and not room(list(kept.values())):
                kept.popitem(last=False)
                if kind == "model":
                    self._kept.pop(ON_A_MODEL, None)
            kept[key] = make()
        kept.move_to_end(key)
        return kept[key]

    def clear(self) -> None:
        """Let go of everything in memory."""
        self._kept.clear()

    def record(self, kind: str, *parts: Any, compute: Callable[[], Any]) -> Any:
        """Return a JSON value from its file, computing it first where there is none.

        Args:
            kind: What it is; the first part of the file's name.
            *parts: All that it depends on, as `content_key` takes it.
            compute: Makes it.
        """
        if self.folder is None:
            return compute()
        files, name = RunFolder(self.folder), f"{kind}-{content_key(*parts)}.json"
        try:
            return files.once(name, compute)
        except OutputError:
            # Cut off while it was written by somebody else's hand; the cache is no result.
            return compute()

    def files(
        self,
        names: Mapping[Hashable, str],
        compute: Callable[[], Mapping[Any, Kept]],
        *,
        load: Callable[[Path], Kept],
        save: Callable[[Kept, Path], object],
    ) -> Mapping[Any, Kept]:
        """Return values from their files, computing all of them where one is not there.

        Args:
            names: Each value's key with its file's name, which stands for all that it depends on.
            compute: Makes them all.
            load: Reads one, raising `OutputError` where it is not there or damaged.
            save: Writes one.
        """
        if self.folder is None:
            return compute()
        try:
            return {key: load(self.folder / name) for key, name in names.items()}
        except OutputError:
            made = compute()
        for key, value in made.items():
            write_atomic(self.folder / names[key], lambda draft, kept=value: save(kept, draft))
        return made
