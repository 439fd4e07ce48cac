"""Which SAE of Neuronpedia an SAE is, found without loading its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from saesteer.saes.loading import resolve_sae
from saesteer.utils.errors import SaeError


def neuronpedia_id_of(name: str | os.PathLike[str]) -> str | None:
    """Return Neuronpedia's model and source of an SAE, such as "gpt2-small/6-res-jb".

    Args:
        name: The SAE, as `load_sae` takes it.

    Returns:
        None where the SAE is not on Neuronpedia, or does not say.

    Raises:
        SaeError: There is no such SAE, or its cfg.json cannot be read.
    """
    where = resolve_sae(name)
    if isinstance(where, Path):
        return _from_folder(where)
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, sae_id = where
    known = get_pretrained_saes_directory().get(release)
    return None if known is None else known.neuronpedia_id.get(sae_id) or None


def _from_folder(folder: Path) -> str | None:
    path = folder / "cfg.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        metadata = config.get("metadata") or {}
        found = metadata.get("neuronpedia_id") or config.get("neuronpedia_id")
    except (OSError, ValueError, AttributeError) as error:
        raise SaeError(f"{path}: cannot be read as an SAE's settings; write it again.") from error
    return found if isinstance(found, str) and found.strip() else None
