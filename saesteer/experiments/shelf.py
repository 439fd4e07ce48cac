"""What several runs share: kept in memory within a process, and in files between processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saesteer.utils.errors import OutputError

if TYPE_CHECKING:
    from saesteer.models import Site
    from saesteer.models.pair_activations import PairActivations

Kept = TypeVar("Kept")
# Models and what is measured on them are large; two of each serve sweeps that take turns.
MOST = {"model": 1, "sae": 3}
OTHERS = 2
# These hold a model, which would stay in memory for as long as they do.
ON_A_MODEL = "comparison"


class Shelf:
    """Keeps by content what is costly to make, so that equal work is done once.

    A run of its own has an empty shelf; the trials of a sweep share one in each worker, and its
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
        from saesteer.utils.array_cache import content_key
        from saesteer.utils.run_folder import RunFolder

        if self.folder is None:
            return compute()
        files, name = RunFolder(self.folder), f"{kind}-{content_key(*parts)}.json"
        try:
            return files.once(name, compute)
        except OutputError:
            # Cut off while it was written by somebody else's hand; the cache is no result.
            return compute()

    def pair_activations(
        self,
        sites: Sequence[Site],
        *parts: Any,
        compute: Callable[[], dict[Site, PairActivations]],
    ) -> dict[Site, PairActivations]:
        """Return both sides of pairs at sites from files, reading the model where there is none.

        Args:
            sites: Where they are read.
            *parts: All else that they depend on, as `content_key` takes it.
            compute: Reads them.
        """
        from saesteer.models.activation_files import load_pair_activations, save_pair_activations
        from saesteer.utils.array_cache import content_key
        from saesteer.utils.run_folder import RunFolder

        if self.folder is None:
            return compute()
        key = content_key(*parts)
        names = {site: f"activations-{key}.{site}.safetensors" for site in sites}
        try:
            return {site: load_pair_activations(self.folder / name) for site, name in names.items()}
        except OutputError:
            read = compute()
        for site, activations in read.items():
            RunFolder(self.folder).write(
                names[site], lambda draft, kept=activations: save_pair_activations(kept, draft)
            )
        return read
