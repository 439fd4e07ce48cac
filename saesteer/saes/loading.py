"""Loading an SAE: the bundled one, a folder, or one of sae_lens's releases."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saesteer.models.resolve import ModelSource, check_shape
from saesteer.models.sites import Site
from saesteer.saes.adapter import LensSae
from saesteer.utils.errors import NetworkError, SaeError
from saesteer.utils.limits import check_declared, odd_file, read_json
from saesteer.utils.text import library_said, near_names

if TYPE_CHECKING:
    from sae_lens import SAE

BUNDLED = "smollm2"
_ASSETS = Path(__file__).resolve().parents[1] / "assets"
# The bundled SAEs by what stands behind the name's colon; the first one is meant without.
BUNDLED_SAES = {
    f"blocks.{layer}.hook_resid_post": _ASSETS / f"sae-smollm2-{layer}" for layer in (20, 15, 10)
}


def resolve_sae(name: str | os.PathLike[str]) -> Path | tuple[str, str]:
    """Return the folder, or the release and id, that a name points to; nothing is loaded.

    Args:
        name: "smollm2" (the bundled SAE; "smollm2:blocks.10.hook_resid_post" is that of another
            site), a folder, or "release:id" of sae_lens's registry or of a Hub repository, such as
            "gpt2-small-res-jb:blocks.6.hook_resid_pre".

    Raises:
        SaeError: The folder, release or id does not exist, with the nearest names.
    """
    text = os.fspath(name).strip()
    release, colon, sae_id = text.partition(":")
    if release == BUNDLED:
        return _bundled(sae_id if colon else next(iter(BUNDLED_SAES)))
    folder = _existing_folder(text)
    if folder is not None:
        if not (folder / "cfg.json").is_file():
            raise SaeError(f"{text} holds no cfg.json; give a folder written by sae.save_model.")
        return folder
    if not (release and colon and sae_id) or text[0] in "./~":
        raise SaeError(
            f"SAE {text!r} is neither an existing folder nor of the form 'release:id' such as "
            "'gpt2-small-res-jb:blocks.6.hook_resid_pre'; correct it, or use 'smollm2'."
        )
    _check_registered(release, sae_id)
    return release, sae_id


def _bundled(site: str) -> Path:
    if site not in BUNDLED_SAES:
        raise SaeError(
            f"no SAE of {BUNDLED} at {site!r} is bundled; those at {', '.join(BUNDLED_SAES)} are, "
            "and saesteer sae train makes one of any site."
        )
    return BUNDLED_SAES[site]


def check_planned(model: ModelSource, sae: Path | tuple[str, str], name: str) -> None:
    """Refuse an SAE whose configuration says that it cannot belong to a model; neither is loaded.

    Of one on the Hub the configuration alone is fetched.

    Raises:
        MismatchError: The model has another width.
        SiteError: The model has no such block.
    """
    try:
        record = _config(sae)
        said = record.get("metadata") or record
        site = Site.parse(said.get("hook_name") or record["hook_name"])
        width = record["d_in"]
    except Exception:
        # Loading says what is wrong with it, or that the Hub cannot be reached.
        return
    check_shape(model, site, width, f"SAE {name}")


def neuronpedia_id_of(name: str | os.PathLike[str]) -> str | None:
    """Return Neuronpedia's model and source of an SAE, such as "gpt2-small/6-res-jb".

    Its weights are not loaded and the network is not asked. None where the SAE is not on
    Neuronpedia, or does not say.

    Raises:
        SaeError: There is no such SAE, or its cfg.json cannot be read.
    """
    where = resolve_sae(name)
    if not isinstance(where, Path):
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        known = get_pretrained_saes_directory().get(where[0])
        return None if known is None else known.neuronpedia_id.get(where[1]) or None
    try:
        record = _config(where)
        metadata = record.get("metadata") or {}
        found = metadata.get("neuronpedia_id") or record.get("neuronpedia_id")
    except (OSError, ValueError, AttributeError) as error:
        raise SaeError(
            f"{where / 'cfg.json'}: cannot be read as an SAE's settings; write it again."
        ) from error
    return found if isinstance(found, str) and found.strip() else None


def _config(sae: Path | tuple[str, str]) -> dict[str, Any]:
    if isinstance(sae, Path):
        config = read_json(sae / "cfg.json")
        check_declared("cfg.json", config)
        return config
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    return load_sae_config_from_huggingface(*sae)


def load_sae(name: str | os.PathLike[str] = BUNDLED, *, device: str = "cpu") -> LensSae:
    """Load an SAE of any sae_lens inference architecture.

    Args:
        name: See `resolve_sae`.
        device: Where to put it; its weights are computed with in float32.

    Raises:
        SaeError: There is no such SAE, or its files cannot be read.
        NetworkError: It is not cached and the Hub cannot be reached.

    Example:
        >>> ss.load_sae(sae_folder).d_sae
        64
    """
    where = resolve_sae(name)
    if isinstance(where, Path) and not where.is_dir():
        raise SaeError(
            f"the bundled SAE {os.fspath(name)!r} is not at {where}; install saesteer again, whole."
        )
    from sae_lens import SAE

    try:
        with warnings.catch_warnings():
            # The conditions that it asks the user to see to are applied by LensSae.
            warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")
            if isinstance(where, Path):
                _check_layout(where)
                sae = SAE.load_from_disk(where, device=device, dtype="float32")
                _fold_stored_scaling(sae, where)
            else:
                sae = SAE.from_pretrained(*where, device=device, dtype="float32")
    except SaeError:
        raise
    except Exception as error:
        raise _load_error(os.fspath(name), isinstance(where, Path), error) from error
    return LensSae(sae, os.fspath(name), where if isinstance(where, Path) else None)


def _check_layout(folder: Path) -> None:
    if (odd := odd_file(folder)) is not None:
        raise SaeError(f"{odd} is no file on a disk; copy the SAE's folder again.")
    # sae_lens takes a file that names no version for one written before 6.0, which had no
    # metadata, and drops what is there.
    config = _config(folder)
    metadata = config.get("metadata") or {}
    if metadata and not (config.get("sae_lens_version") or metadata.get("sae_lens_version")):
        raise SaeError(
            f"{folder / 'cfg.json'} has metadata and no metadata.sae_lens_version, without which "
            "sae_lens leaves the metadata (hook_name and all) unread; add the version that wrote "
            'it, such as "6.0.0".'
        )


def _fold_stored_scaling(sae: SAE[Any], folder: Path) -> None:
    """Fold in the scaling that a training checkpoint of sae_lens keeps beside its weights."""
    kind = sae.cfg.normalize_activations
    if kind not in ("expected_average_only_in", "covariance_whitening"):
        return
    from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
    from sae_lens.training.activation_scaler import ActivationScaler

    scaler = ActivationScaler()
    if (folder / ACTIVATION_SCALER_CFG_FILENAME).is_file():
        scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
    if kind == "expected_average_only_in" and scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    elif kind == "covariance_whitening" and scaler.whitening is not None:
        whitening = scaler.whitening
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
    else:
        raise SaeError(
            f"SAE folder {folder} asks for {kind} and holds no {ACTIVATION_SCALER_CFG_FILENAME} "
            "with its factors; put that file of the checkpoint beside cfg.json."
        )


def _existing_folder(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if text and path.is_dir() else None
    except (OSError, RuntimeError):
        # A name too long for a file system, or a home that is nobody's.
        return None


def _check_registered(release: str, sae_id: str) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if release not in directory:
        if "/" in release:
            return
        near = near_names(release, directory, most=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see sae_lens's list of releases."
        raise SaeError(f"sae_lens has no release {release!r}; {hint}")
    ids = directory[release].saes_map
    if sae_id not in ids:
        near = near_names(sae_id, ids, most=3) or list(ids)[:3]
        raise SaeError(f"release {release} has no SAE {sae_id!r}; try {', '.join(near)}.")


def _load_error(name: str, on_disk: bool, error: Exception) -> SaeError | NetworkError:
    text = library_said(error).rstrip(".")
    if isinstance(error, KeyError):
        text = f"unknown or missing: {text}"
    if on_disk:
        return SaeError(f"SAE folder {name} cannot be read ({text}); write it again, whole.")
    if _is_offline(error):
        return NetworkError(
            f"SAE {name!r} is not in the local cache and the Hugging Face Hub cannot be reached; "
            "connect once, or use 'smollm2' or a local folder."
        )
    return SaeError(
        f"SAE {name!r} cannot be loaded ({text}); check the release and id and, "
        "for a gated repository, HF_TOKEN."
    )


def _is_offline(error: BaseException | None) -> bool:
    # By type, along the chain of causes: the addresses in the Hub's answers about missing files
    # hold words such as "resolve" as well.
    import requests
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        ConnectionError,
        requests.ConnectionError,
        requests.Timeout,
    )
    while error is not None:
        # The last is httpx's, under whichever name huggingface_hub imports that library.
        if isinstance(error, kinds) or "TransportError" in {k.__name__ for k in type(error).mro()}:
            return True
        error = error.__cause__ or error.__context__
    return False
