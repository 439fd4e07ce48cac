"""Any SAE behind one small protocol, with the conditions it was trained under applied."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from saesteer.models.loading import check_weights
from saesteer.models.sites import Site, check_site
from saesteer.utils.errors import MismatchError, SaeError

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.saes.table import FeatureCard


# Sites whose activations are as wide as the residual stream, and are added to it.
RESIDUAL_HOOKS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_mlp_out",
    "hook_attn_out",
)


@runtime_checkable
class Sae(Protocol):
    """What the rest of saesteer needs of an SAE; `LensSae` says what each part is."""

    @property
    def name(self) -> str: ...
    @property
    def site(self) -> Site: ...
    @property
    def write_site(self) -> Site: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def prepend_bos(self) -> bool | None: ...
    @property
    def neuronpedia_id(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def model_name(self) -> str | None: ...
    @property
    def model_fingerprint(self) -> str | None: ...

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_out"]: ...

    def encode(self, activations: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]: ...
    def reconstruct(
        self, activations: Float[Tensor, "token d_in"]
    ) -> Float[Tensor, "token d_out"]: ...


@dataclass(frozen=True)
class LensSae:
    """A sae_lens SAE of any inference architecture.

    Applied here, so that nobody else has to think of them: the centred residual that SAEs trained
    on `center_writing_weights` models saw; the SAE's own dtype and device; its normalisation;
    flattened heads at `hook_z`; and whole sequences for architectures that look at context.
    """

    sae: SAE[Any]  # The sae_lens module.
    name: str  # How the user called it.
    folder: Path | None = None  # Where it lies, with its feature table; None for one of a release.

    def __post_init__(self) -> None:
        if not self.sae.cfg.metadata.hook_name:
            raise SaeError(
                f"SAE {self.name} does not say at which site it was trained; add "
                "metadata.hook_name to its cfg.json, and metadata.sae_lens_version if that is "
                "missing too."
            )
        _check_finite(self.sae, self.name)
        # Activations arrive flattened, so the module must not unfold heads itself.
        self.sae.turn_off_forward_pass_hook_z_reshaping()
        self.sae.eval().requires_grad_(False)

    @property
    def site(self) -> Site:
        """Where the SAE's input is read."""
        return Site.parse(self.sae.cfg.metadata.hook_name)

    @property
    def write_site(self) -> Site:
        """Where its decoder's directions live."""
        out = self.sae.cfg.metadata.hook_name_out
        return Site.parse(out) if out else self.site

    @property
    def d_in(self) -> int:
        return int(self.sae.cfg.d_in)

    @property
    def d_sae(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def architecture(self) -> str:
        return self.sae.cfg.architecture()

    @property
    def prepend_bos(self) -> bool | None:
        """Whether training rows started with BOS; None if the SAE does not say."""
        return self.sae.cfg.metadata.prepend_bos

    @property
    def neuronpedia_id(self) -> str | None:
        return self.sae.cfg.metadata.neuronpedia_id

    @property
    def model_name(self) -> str | None:
        """What the model that it was trained on was called."""
        return self.sae.cfg.metadata.model_name

    @property
    def model_fingerprint(self) -> str | None:
        """The fingerprint of the model that it was trained on, which saesteer records."""
        recorded = self.sae.cfg.metadata.model_fingerprint
        return None if recorded is None else str(recorded)

    @property
    def centred(self) -> bool:
        """Whether the SAE was trained on `x - x.mean(-1)`, as folded transformer_lens models."""
        kwargs = self.sae.cfg.metadata.model_from_pretrained_kwargs or {}
        return bool(kwargs.get("center_writing_weights", False))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and a sample of every weight."""
        digest = hashlib.sha256(f"{self.architecture} {self.d_in} {self.d_sae}".encode())
        for name, tensor in sorted(self.sae.state_dict().items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 256)].to(torch.float32).cpu().numpy()
            digest.update(name.encode() + sample.tobytes())
        return digest.hexdigest()

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder rows in float32 on the CPU: what one unit of a feature's activation adds.

        Where the input is normalised token by token (layer_norm, constant_norm_rescale) that is
        the direction alone; its size then depends on the token.
        """
        rows = self.sae.W_dec.detach().to("cpu", torch.float32)
        cfg = self.sae.cfg
        if getattr(cfg, "rescale_acts_by_decoder_norm", False):
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        if cfg.normalize_activations == "constant_scalar_rescale":
            rows = rows / float(cfg.activation_normalization_factor)
        return rows

    def encode(self, activations: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_sae"]:
        """Return the feature activations of one text's tokens, in float32.

        Raises:
            MismatchError: The activations have another width than the SAE.
        """
        with torch.no_grad():
            codes = self.sae.encode(self._prepared(activations)[0])
        codes = codes.to_dense() if codes.is_sparse else codes
        return codes.reshape(-1, self.d_sae).to(torch.float32)

    def reconstruct(self, activations: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
        """Return the reconstruction of one text's tokens, in float32.

        What centring took away is given back, so the result stands for the raw activation.
        """
        prepared, mean = self._prepared(activations)
        with torch.no_grad():
            out = self.sae(prepared)
        out = out.reshape(activations.shape[0], -1).to(torch.float32)
        return out + mean if self.write_site == self.site else out

    def feature(self, index: int) -> FeatureCard:
        """Return what is known offline of a feature: its label, where it fires, what it promotes.

        From the SAE's own feature table, and from labels imported with `saesteer neuronpedia
        import`, which win. A notebook shows the result as a table.

        Raises:
            SaeError: The SAE has no such feature.
        """
        from saesteer.saes.labels import feature_card_of

        return feature_card_of(self, index)

    def _prepared(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        if activations.ndim != 2 or activations.shape[1] != self.d_in:
            raise MismatchError(
                f"SAE {self.name} takes activations of width {self.d_in}, and these are "
                f"{tuple(activations.shape)}; read them at {self.site} of its own model."
            )
        x = activations.to(self.sae.device, torch.float32)
        mean = x.mean(dim=-1, keepdim=True) if self.centred else torch.zeros_like(x[:, :1])
        x = (x - mean).to(self.sae.dtype)
        if self.architecture == "temporal":
            x = x.unsqueeze(0)
        return x, mean


def check_compatible(model: TransformerBridge, sae: Sae) -> None:
    """Check, without running anything, that an SAE can belong to a model.

    Raises:
        MismatchError: The widths differ, or the SAE records that it was trained on other weights.
        SiteError: The model has no such site.
    """
    for site in dict.fromkeys((sae.site, sae.write_site)):
        check_site(model, site)
    ends = {"takes": (sae.site, sae.d_in), "gives": (sae.write_site, int(sae.decoder.shape[1]))}
    for verb, (site, has) in ends.items():
        width = expected_width(model, site)
        if width is not None and width != has:
            raise MismatchError(
                f"SAE {sae.name} {verb} {has} dimensions and {model.cfg.model_name} has {width} at "
                f"{site}; choose an SAE trained on this model."
            )
    made = f"SAE {sae.name} was trained"
    otherwise = (
        "to use the SAE with a tuned or quantised version of it, take model_fingerprint out of its "
        "cfg.json"
    )
    check_weights(model, made, sae.model_name, sae.model_fingerprint, otherwise)


def _check_finite(sae: SAE[Any], name: str) -> None:
    bad = {}
    for key, tensor in sae.state_dict().items():
        rows = (~torch.isfinite(tensor)).reshape(len(tensor) if tensor.ndim else 1, -1).any(dim=1)
        if bool(rows.any()):
            bad[key] = (
                f"{int(rows.sum())} of {len(rows)} {'rows' if tensor.ndim > 1 else 'entries'}"
            )
    if bad:
        raise SaeError(
            f"SAE {name} holds NaN or infinity in its weights "
            f"({'; '.join(f'{key}: {count}' for key, count in bad.items())}); fetch it again, or "
            "train it anew."
        )


def expected_width(model: TransformerBridge, site: Site) -> int | None:
    """Return the width of activations at a site, or None where it is not known beforehand."""
    if site.hook in RESIDUAL_HOOKS:
        return int(model.cfg.d_model)
    if site.hook == "attn.hook_z":
        return int(model.cfg.n_heads) * int(model.cfg.d_head)
    return None
