"""Denoising, BART's pretraining: the model reads a noised block of text and writes the original.

An encoder_only model predicts the tokens that noise has replaced, each in its place: with
`task.noise=token_masking` this is masked language modelling.

Source: fairseq `tasks/denoising.py`, `data/denoising_dataset.py`. Data folders are those of
`bart-hk-preprocess` and of `fairseq-preprocess --only-source`. Shapes: B rows, S source tokens,
T target tokens.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.config import BARTConfig, Flavour
from bart_hk.data.blocks import TokenBlocks
from bart_hk.data.corpora import Corpora, smoothed_weights
from bart_hk.data.folders import (
    find_tokenizer,
    open_stores,
    shard_of_epoch,
    split_shards,
    warn_of_what_is_left_out,
)
from bart_hk.data.noised import NoisedBlocks
from bart_hk.data.noising import PRESETS, NoiseConfig, Noiser, full_stops, word_starts
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.tasks import TaskKind, files, losses
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.writing import TextWriting
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)


@dataclass
class NoiseOptions:
    """What is done to a text before the model reads it."""

    noise: str = (
        "bart"  # a preset of bart_hk/data/noising.py; what is set below replaces its values
    )
    mask: float | None = None
    mask_random: float | None = None
    mask_length: str | None = None
    poisson_lambda: float | None = None
    replace_length: int | None = None
    permute_sentences: float | None = None
    permute: float | None = None
    insert: float | None = None
    rotate: float | None = None
    # Characters that end a sentence, in any vocabulary; "." alone is nearest to fairseq's.
    sentence_ends: str = ".!?\u3002\uff01\uff1f\u0964\u2026"


@dataclass
class DenoisingConfig(NoiseOptions):
    """Where the text is, how it becomes blocks, and what is done to them."""

    _name: str = "denoising"
    # A folder with train.bin and train.idx (and valid.*), or with one folder of those for each
    # corpus. Several, with ":" between: shards, one for each epoch in turn.
    data: str | None = None
    tokens_per_sample: int = 512  # of a block, <s> and </s> included
    sample_break_mode: str = "complete_doc"  # none, complete, complete_doc, eos
    # Sentences longer than a block: split, keep (fairseq's: a block that is too long), error.
    oversized: str = "split"
    # Of several corpora, which may be in several shards: how often each is seen in an epoch, or
    # fairseq's smoothing of their sizes.
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    multilang_sampling_alpha: float = 1.0
    # As fairseq's multilingual_denoising: corpora are languages, a block ends with its folder's
    # symbol ([en_XX] of en_XX) in place of </s>, and its sentences keep their own </s>.
    add_lang_token: bool = False
    seed: int = "${common.seed}"  # type: ignore[assignment]


def noise_config(config: NoiseOptions) -> NoiseConfig:
    """The preset, with what the configuration says otherwise.

    Raises:
        DataError: there is no such preset, or a value makes no sense.
    """
    if config.noise not in PRESETS:
        raise DataError(f"task.noise={config.noise} is not one of {', '.join(PRESETS)}")
    names = [field.name for field in dataclasses.fields(NoiseConfig)]
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    try:
        return dataclasses.replace(PRESETS[config.noise], **given)
    except ValueError as error:
        raise DataError(f"task.{error}") from None


def unread_noise(options: NoiseOptions) -> str | None:
    """What to say of a value that replaces the preset's and that this noise does not read."""
    noise, preset = noise_config(options), PRESETS[options.noise]
    spans = noise.mask > 0 and noise.mask_length == "span-poisson"
    masks = noise.insert > 0 or spans or (noise.mask > 0 and noise.replace_length != 0)
    values = {
        name: getattr(noise, name)
        for name in ("mask_length", "replace_length", "poisson_lambda", "mask_random")
        if getattr(noise, name) != getattr(preset, name)
    }
    if options.sentence_ends != NoiseOptions.sentence_ends:
        values["sentence_ends"] = options.sentence_ends
    read_by = {
        "mask_length": (noise.mask, "task.mask"),
        "replace_length": (noise.mask, "task.mask"),
        "poisson_lambda": (spans, "task.mask with task.mask_length=span-poisson"),
        "mask_random": (masks, "masks, of which there are none"),
        "sentence_ends": (noise.permute_sentences, "task.permute_sentences"),
    }
    for name, value in values.items():
        read, what = read_by[name]
        if not read:
            return (
                f"task.{name}={value} does nothing with task.noise={options.noise}, as it is set: "
                f"it is for {what}; leave it out"
            )
    return None


def make_noiser(
    options: NoiseOptions, encoder: TextEncoder, config: BARTConfig, also: Sequence[int] = ()
) -> Noiser:
    """The noise of a configuration over a model's vocabulary.

    Args:
        also: ids that end a sentence, besides those that are found.

    Raises:
        DataError: the vocabulary does not have what the noise needs.
    """
    noise, dictionary = noise_config(options), encoder.dictionary
    stops: tuple[int, ...] = ()
    if noise.permute_sentences:
        stops = full_stops(encoder.bpe, dictionary, options.sentence_ends)
    try:
        return Noiser(
            noise,
            vocab_size=config.vocab_size,
            mask_id=encoder.mask_id,
            full_stops=(*stops, *also),
            word_starts=_padded(word_starts(encoder.bpe, dictionary), config.vocab_size)
            if noise.mask and noise.mask_length != "subword"
            else None,
        )
    except ValueError as error:
        raise DataError(f"task.noise={options.noise}: {error}") from None


class Denoising(TextWriting):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Attributes:
        tokenizer_folder: the data folder, or that of a corpus in it, with the tokenizer's files.

    Raises (when made):
        DataError: a store is missing or damaged, or an option is not as it should be.
    """

    flavours: tuple[str, ...] = (Flavour.encoder_decoder, Flavour.encoder_only)
    train: NoisedBlocks
    valid: NoisedBlocks | None
    metric_names: tuple[str, ...] = ("nll_loss", "ppl", "accuracy")

    def __init__(self, config: DenoisingConfig, criterion: CrossEntropyConfig) -> None:
        self.config, self.criterion = config, criterion
        self._noise = noise_config(config)
        losses.check(criterion)
        if not config.data:
            raise DataError("task.data is not set; give it a folder that bart-hk-preprocess made")
        if config.tokens_per_sample < 3:
            raise DataError(
                f"task.tokens_per_sample={config.tokens_per_sample} has no room for a token "
                "between <s> and </s>"
            )
        self._shards = split_shards(config.data)
        self.shards = len(self._shards)
        self._stores = [open_stores(Path(shard), "train") for shard in self._shards]
        for shard, stores in zip(self._shards, self._stores, strict=True):
            if not stores:
                raise DataError(
                    f"task.data={shard} has no train.bin and train.idx, nor has a folder in it; "
                    "bart-hk-preprocess makes them"
                )
            warn_of_what_is_left_out(Path(shard))
        # fairseq validates on the shard of the first epoch, too.
        self._valid_stores = open_stores(Path(self._shards[0]), "valid")
        self.validates = bool(self._valid_stores)
        self.tokenizer_folder = find_tokenizer(self._shards[0], self._stores[0])
        self._opened: dict[str, Corpora] = {}

    def unread(self) -> str | None:
        """An option of the noise, the blocks or the corpora."""
        config = self.config
        if config.oversized != "split" and config.sample_break_mode == "none":
            return (
                f"task.oversized={config.oversized} does nothing with task.sample_break_mode=none, "
                "whose blocks end anywhere; leave it out"
            )
        alpha = config.multilang_sampling_alpha
        if alpha != 1 and all(len(stores) == 1 for stores in self._stores):
            return (
                f"task.multilang_sampling_alpha={alpha} does nothing with one corpus; set it to 1, "
                "or give task.data a folder for each language"
            )
        return unread_noise(config)

    def fingerprint(self) -> dict[str, Any]:
        """The stores' digests, those of a shard together."""
        found = {}
        for role, shards in (("train", self._stores), ("valid", [self._valid_stores])):
            digests = [" ".join(store.digest() for store in shard.values()) for shard in shards]
            if any(digests):
                found[role] = ", ".join(digests)
        return found

    def texts(self) -> Iterable[str]:
        """None: a store has a vocabulary."""
        return ()

    def symbols(self) -> Sequence[str]:
        """Those of the languages, where blocks end with them: before `<mask>`, as fairseq's."""
        names = {name for stores in (*self._stores, self._valid_stores) for name in stores}
        return [f"[{name}]" for name in sorted(names)] if self.config.add_lang_token else []

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Cuts blocks; makes sure that stores, vocabulary and model belong together.

        Raises:
            DataError: they do not, or a block does not fit the model's positions.
        """
        if "decoder" not in config.sides and not self._noise.keeps_places:
            raise DataError(
                f"task.noise={self.config.noise}, as it is set, moves tokens, and an encoder_only "
                "model predicts them in place; take task.noise=token_masking"
            )
        if "decoder" not in config.sides and not self._noise.mask:
            raise DataError(
                f"task.noise={self.config.noise}, as it is set, masks nothing, and an encoder_only "
                "model predicts what is masked; take task.noise=token_masking"
            )
        longest = config.max_positions
        if self.config.tokens_per_sample > longest:
            raise DataError(
                f"task.tokens_per_sample={self.config.tokens_per_sample} is more than the model's "
                f"{longest} positions; lower it, or raise model.max_source_positions and "
                "max_target_positions"
            )
        for stores in (*self._stores, self._valid_stores):
            for store in stores.values():
                files.check_tokenizer(encoder, store.prefix.parent)
                store.check_vocabulary(len(encoder.dictionary), "the model's tokenizer")
        self._model, seed = config, self.config.seed
        opened = [self._corpora(*shard) for shard in zip(self._shards, self._stores, strict=True)]
        # Where languages end blocks, there is always one between sentences.
        also = [config.eos_token_id] if self.config.add_lang_token else []
        noiser = make_noiser(self.config, encoder, config, also)
        self.train = NoisedBlocks(opened[0], noiser, config, seed, self._last_tokens(encoder))
        self.begin_epoch(1)
        self.valid = None
        if self._valid_stores:
            corpora = self._corpora(f"{self._shards[0]} (valid)", self._valid_stores, plain=True)
            self.valid = NoisedBlocks(corpora, noiser, config, seed, self._last_tokens(encoder))
            opened.append(corpora)
        # Tokens of the longest row of all shards, and of validation.
        self.longest = max(int(corpora.sizes.max()) + 2 for corpora in opened)

    def _last_tokens(self, encoder: TextEncoder) -> int | dict[str, int]:
        """What a block ends with, for each corpus if that depends on it."""
        if not self.config.add_lang_token:
            return self._model.eos_token_id
        for symbol in self.symbols():
            if symbol not in encoder.dictionary:
                raise DataError(
                    f"task.add_lang_token: the tokenizer has no symbol {symbol} for the corpus "
                    f"{symbol[1:-1]}; name the folder as the language, or insert the symbol"
                )
        return {symbol[1:-1]: encoder.dictionary.index(symbol) for symbol in self.symbols()}

    def begin_epoch(self, epoch: int) -> None:
        """Gives `train` the shard, the rows and the noise of an epoch, counted from 1."""
        shard = shard_of_epoch(self._shards, epoch)
        stores = self._stores[self._shards.index(shard)]
        self.train.begin(self._corpora(shard, stores), epoch)

    def _corpora(self, name: str, stores: dict[str, TokenStore], plain: bool = False) -> Corpora:
        if name in self._opened:
            return self._opened[name]
        config = self.config
        try:
            blocks = {
                corpus: TokenBlocks(
                    store,
                    config.tokens_per_sample - 2,
                    config.sample_break_mode,
                    strip=None if config.add_lang_token else self._model.eos_token_id,
                    document_sep_len=1 if config.add_lang_token else 0,
                    oversized=config.oversized,
                )
                for corpus, store in stores.items()
            }
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"task: {error}") from None
        for corpus, found in blocks.items():
            _log.info("%s, %s: %d blocks", name, corpus, len(found))
        # Those of other shards' corpora are theirs; what no shard has is refused.
        known = {corpus for shard in self._stores for corpus in shard}
        weights = {c: w for c, w in config.weights.items() if c in stores or c not in known}
        if config.multilang_sampling_alpha != 1:
            if config.weights:
                raise DataError("give task.weights or task.multilang_sampling_alpha, not both")
            sizes = {corpus: len(found) for corpus, found in blocks.items()}
            weights = smoothed_weights(sizes, config.multilang_sampling_alpha)
        corpora = Corpora(blocks, {} if plain else weights)
        longest = int(corpora.sizes.argmax())
        tokens, limit = int(corpora.sizes[longest]) + 2, self._model.max_positions
        if tokens > limit:
            raise DataError(
                f"{corpora.where(longest)} has {tokens} tokens, and the model {limit} positions: "
                f"take task.oversized=split instead of {config.oversized}, or raise "
                "model.max_source_positions and max_target_positions"
            )
        self._opened[name] = corpora
        return corpora


KIND = TaskKind(DenoisingConfig(), losses.SEQUENCE_CRITERIA, Denoising)


def _padded(table: np.ndarray, size: int) -> np.ndarray:
    """A table with True for the rows that only fill the embedding."""
    return np.concatenate([table, np.ones(max(0, size - len(table)), bool)])
