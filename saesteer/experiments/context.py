"""What a run's stages share: model, SAE and tables, loaded when first needed and once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saesteer.data.texts import ANSWERS_NAME
from saesteer.evaluation.embeddings import SentenceEmbedder
from saesteer.methods.base import Method
from saesteer.methods.fit_context import FitContext
from saesteer.methods.objective import TrainingCost
from saesteer.methods.registry import build_method
from saesteer.models import Site, load_model, model_info
from saesteer.models.placement import choose_device, choose_dtype, memory_of
from saesteer.models.resolve import check_shape
from saesteer.models.tokens import encode_statements
from saesteer.saes.adapter import LensSae
from saesteer.saes.doctor import check_fit
from saesteer.saes.labels import own_table
from saesteer.saes.loading import load_sae
from saesteer.saes.table import FeatureTable
from saesteer.steering.divergence import FEWEST_TOKENS
from saesteer.utils.cache import Cache, content_digest
from saesteer.utils.errors import ConfigError, DataError, MismatchError
from saesteer.utils.progress import Progress

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from saesteer.data import PairSet
    from saesteer.data.texts import Answer
    from saesteer.methods.features import PairCodes
    from saesteer.models.reading import PairActivations
    from saesteer.models.tokens import TokenRow
    from saesteer.utils.run_folder import RunFolder


# What the weights of one model in several dtypes may take of a machine's memory.
MEMORY_SHARE = 0.25


@cache
def _chosen_dtype(dtype: str, device: torch.device, threads: int) -> torch.dtype:
    # Measured once: all runs of a process have one answer, and with it one model.
    return choose_dtype(dtype, device)


@contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Compute on so many CPU threads inside, and on as many as before afterwards.

    Args:
        number: How many; as many as there are if None.
    """
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Context:
    """What an experiment works with, each loaded once and on first use.

    A resumed experiment so loads only what it still needs.

    Args:
        plan: The experiment's plan; its settings name the model, and the SAE where there is one.
        progress: Where to say what is being loaded.
        cache: What other experiments of this process have loaded already; nothing if None.
    """

    def __init__(self, plan: Any, progress: Progress, cache: Cache | None = None) -> None:
        self.plan: Any = plan
        self.progress = progress
        self.cache = cache or Cache()

    @cached_property
    def model(self) -> TransformerBridge:
        """The model."""
        settings = self.plan.config.model

        def load() -> TransformerBridge:
            self.progress.say(f"Loading model {settings.name} ...")
            return load_model(
                settings.name,
                device=self._device,
                dtype=self._dtype,
                device_map=settings.device_map,
                trust_remote_code=settings.trust_remote_code,
                progress=self.progress,
            )

        return self.cache.keep("model", self._model_key, load, room=self._has_room_beside)

    @cached_property
    def _device(self) -> torch.device | None:
        settings = self.plan.config.model
        mapped = settings.device_map is not None and settings.device == "auto"
        return None if mapped else choose_device(settings.device)

    @cached_property
    def _dtype(self) -> torch.dtype:
        device = self._device or choose_device()
        return _chosen_dtype(self.plan.config.model.dtype, device, torch.get_num_threads())

    @property
    def _model_key(self) -> tuple[str, ...]:
        left_out = {"threads", "device", "dtype"}
        settings = self.plan.config.model.model_dump_json(exclude=left_out)
        # What "auto" stands for, and where it was found, with the hash of a file: other weights
        # under one name are another.
        place = (str(self._device), str(self._dtype))
        return (settings, *place, str(self.plan.model))

    def _has_room_beside(self, others: Sequence[TransformerBridge]) -> bool:
        """Return whether models may stay in memory while this one is loaded."""
        infos = [model_info(other) for other in others]
        # Only of the same weights the size is known before they are loaded.
        if self._device is None or any(info.source != self.plan.model for info in infos):
            return False
        numbers = sum(weight.numel() for weight in infos[0].plain.parameters())
        each = [self._dtype.itemsize, *(info.plain.dtype.itemsize for info in infos)]
        return numbers * sum(each) <= MEMORY_SHARE * memory_of(self._device)

    @cached_property
    def arrays(self) -> Cache:
        """Where gradients and metrics are kept, by content."""
        return Cache(self.plan.cache)

    @cached_property
    def sae(self) -> LensSae:
        """The SAE, checked against the model.

        Raises:
            MismatchError: It does not belong to the model.
            ConfigError: The settings name another site than the SAE's.
        """
        config = self.plan.config
        sae = self.cache.keep("sae", self._sae_key, self._load_sae)
        if config.site is not None and Site.parse(config.site) != sae.write_site:
            raise ConfigError(
                f"site {config.site} is not where SAE {config.sae} lives ({sae.write_site}); leave "
                "site out or choose an SAE of that site."
            )
        self.cache.keep("fit", (*self._model_key, *self._sae_key), lambda: self._check_fit(sae))
        return sae

    def _load_sae(self) -> LensSae:
        self.progress.say(f"Loading SAE {self.plan.config.sae} ...")
        sae = load_sae(self.plan.config.sae)
        check_shape(self.plan.model, sae.site, sae.d_in, f"SAE {sae.name}")
        return sae

    @property
    def _sae_key(self) -> tuple[str, ...]:
        where = self.plan.sae
        digest = content_digest(where) if isinstance(where, Path) else ""
        return (self.plan.config.sae, str(where), digest)

    def _check_fit(self, sae: LensSae) -> bool:
        # Read as the SAE was trained; without its BOS, perhaps, is how the model is scored.
        remark = check_fit(self.model, sae, self._neutral_rows(sae.prepend_bos))
        if remark:
            self.progress.say(remark)
        return True

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's feature table, where its folder has one."""
        table = self.cache.keep("table", self._sae_key, lambda: own_table(self.plan.sae))
        if table is not None and len(table) != self.sae.d_sae:
            raise MismatchError(
                f"feature table {table.source} lists {len(table)} features and the SAE beside it "
                f"has {self.sae.d_sae}; remove the table or build it for this SAE."
            )
        return table

    @property
    def site(self) -> Site:
        """Where vectors are read and written."""
        return self.sae.write_site

    @cached_property
    def weights_key(self) -> tuple[str, ...]:
        """What tells these weights, in this precision and at this site, from others."""
        info = model_info(self.model)
        return (info.fingerprint, str(self.model.cfg.dtype), str(self.site), self.sae.fingerprint)

    @cached_property
    def neutral_rows(self) -> list[TokenRow]:
        """The neutral answers as the assistant's words.

        Raises:
            DataError: They are too long for the model, or too few to measure on.
        """
        return self._neutral_rows()

    def _neutral_rows(self, prepend_bos: bool | None = None) -> list[TokenRow]:
        rows = self.answer_rows(self.plan.answers, prepend_bos=prepend_bos)
        tokens = sum(sum(row.kept) for row in rows)
        if tokens < FEWEST_TOKENS:
            raise DataError(
                f"evaluation.neutral {self.plan.config.evaluation.neutral}: its first {len(rows)} "
                f"answers have {tokens} tokens and KL needs at least {FEWEST_TOKENS}; give more "
                "with evaluation.neutral_answers, or longer ones."
            )
        return rows

    def answer_rows(
        self,
        answers: Sequence[Answer],
        *,
        system: str | None = None,
        prepend_bos: bool | None = None,
    ) -> list[TokenRow]:
        """Return answers as the assistant's words after their questions."""
        assert self.model.tokenizer is not None
        source = self.plan.config.evaluation.neutral
        file = f"the bundled {ANSWERS_NAME}.jsonl" if source == ANSWERS_NAME else source
        return encode_statements(
            self.model.tokenizer,
            [answer.answer for answer in answers],
            [answer.question for answer in answers],
            chat=self.plan.config.reading.chat,
            system=system,
            prepend_bos=prepend_bos,
            max_length=int(self.model.cfg.n_ctx),
            what=[f"a neutral answer of {file}"] * len(answers),
            remedy="give shorter ones with evaluation.neutral, or use a model of longer context",
        )

    @cached_property
    def training_rows(self) -> list[TokenRow]:
        """Neutral answers that no evaluation uses.

        Raises:
            DataError: They are too few to measure on.
        """
        rows = self.answer_rows(self.plan.training_answers)
        tokens = sum(sum(row.kept[1:]) for row in rows)
        if tokens < FEWEST_TOKENS:
            raise DataError(
                f"evaluation.neutral {self.plan.config.evaluation.neutral}: the {len(rows)} "
                f"answers that train have {tokens} tokens and KL needs at least {FEWEST_TOKENS}; "
                "give more with objective.neutral_answers, or longer ones."
            )
        return rows

    @cached_property
    def training_cost(self) -> TrainingCost:
        """What steering costs on the training answers; its metric is kept on disk."""
        return TrainingCost(
            self.model,
            self.training_rows,
            self.site,
            fisher_samples=self.plan.config.objective.fisher_samples,
            arrays=self.arrays,
            key=self.weights_key,
        )

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        assert self.model.tokenizer is not None
        return self.model.tokenizer

    @property
    def context(self) -> int:
        """The longest row that the model takes, in tokens."""
        return int(self.model.cfg.n_ctx)

    @cached_property
    def embedder(self) -> SentenceEmbedder:
        """What embeds sentences for judges."""
        return SentenceEmbedder()


class ExperimentFit(FitContext):
    """Fits methods to pairs, sharing with an experiment's other fits what knows of no pairs.

    Args:
        experiment: What loads model, SAE and neutral texts.
        train: The pairs that vectors are fitted on.
        read: Returns the activations of "train" or "validation" pairs at one of the SAE's sites.
        name: What to call vectors.
        seed: Seeds methods that draw at random.
        max_new_tokens: Length of what the model writes itself to be fitted on.
        folder: Where that is kept.
    """

    def __init__(
        self,
        experiment: Context,
        train: PairSet,
        read: Callable[[str, Site], PairActivations],
        *,
        name: str,
        seed: int,
        max_new_tokens: int,
        folder: RunFolder,
    ) -> None:
        config = experiment.plan.config
        super().__init__(
            experiment.model,
            train,
            sae=experiment.sae,
            name=name,
            seed=seed,
            reading=config.reading,
            objective=config.objective,
            max_new_tokens=max_new_tokens,
            cache=experiment.cache,
            folder=folder,
            progress=experiment.progress,
        )
        self._experiment = experiment
        self._stored = read
        self.model_name = config.model.name

    def fit(self, name: str, settings: Mapping[str, Any]) -> Method:
        """Return a method, fitted."""
        method = build_method(name, settings)
        assert isinstance(method, Method)
        return method.fit_in(self)

    def read(self, part: str, site: Site) -> PairActivations:
        """Return what was read."""
        return self._stored(part, site)

    @cached_property
    def validation_codes(self) -> PairCodes:
        """Features of the pairs that chose nothing."""
        return self._codes("validation")

    @cached_property
    def table(self) -> FeatureTable | None:
        """The SAE's feature table."""
        return self._experiment.table

    @cached_property
    def cost(self) -> TrainingCost:
        """What steering costs on neutral answers that train."""
        return self._experiment.training_cost

    @cached_property
    def questions(self) -> Sequence[str]:
        """Neutral questions that no completion answers."""
        return self._experiment.plan.training_questions

    @cached_property
    def embedder(self) -> SentenceEmbedder:
        """What embeds sentences."""
        return self._experiment.embedder
