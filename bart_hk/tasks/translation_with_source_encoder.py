"""Translation into a pretrained BART's language from one that it has never seen: a new encoder with
a vocabulary of its own stands in front of it, in place of its encoder's token embeddings.

It is trained in two stages, each a run: `experiment=source_encoder/first` trains the new encoder,
BART's positions and the input projections of its encoder's first self-attention, all else frozen;
`experiment=source_encoder/second` begins with what that left, and trains everything for a few
updates.

Source: Lewis et al. 2019, section 3.4 (fairseq never released it). That the new encoder is made
like BART's own, and feeds its position embeddings and first layer norm, is our choice: the paper
says that it has six layers.
"""

from dataclasses import dataclass

from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore
from bart_hk.tasks import TaskKind, translation
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.translation import Translation, TranslationConfig
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.zoo import load_tokenizer


@dataclass
class SourceEncoderTranslationConfig(TranslationConfig):
    """task=translation's options, and what is new. A model that has a new encoder keeps it."""

    _name: str = "translation_with_source_encoder"
    source_encoder_layers: int = 6
    # Of the sources: a name or directory with a tokenizer, or the size of a byte-level BPE to learn
    # from them; one of the two.
    source_tokenizer: str | None = None
    source_vocab_size: int | None = None


class TranslationWithSourceEncoder(Translation):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: as `Translation`, or the options of the new encoder make no sense.
    """

    config: SourceEncoderTranslationConfig

    def __init__(
        self, config: SourceEncoderTranslationConfig, criterion: CrossEntropyConfig
    ) -> None:
        if config.source_encoder_layers < 1:
            raise DataError(
                f"task.source_encoder_layers={config.source_encoder_layers} must be at least 1"
            )
        if config.source_tokenizer and config.source_vocab_size:
            raise DataError("give task.source_tokenizer or task.source_vocab_size, not both")
        super().__init__(config, criterion)

    def text_encoder(self, encoder: TextEncoder) -> TextEncoder:
        """With the sources' tokenizer beside the model's.

        Raises:
            DataError: none is given, or one although the model has one.
        """
        config = self.config
        asked = config.source_tokenizer or config.source_vocab_size
        if encoder.source is not None:
            if asked:
                raise DataError(
                    "the restored model has a tokenizer for its sources: leave out "
                    "task.source_tokenizer and task.source_vocab_size"
                )
            return encoder
        if not asked:
            raise DataError(
                "set task.source_tokenizer or task.source_vocab_size: the restored model has no "
                "encoder for other sources yet"
            )
        if config.source_tokenizer:
            source = load_tokenizer(config.source_tokenizer)
        else:
            texts = self._splits.train.sources
            if isinstance(texts, TokenStore):
                raise DataError(
                    "task.source_vocab_size learns from texts, and the data are ids: name their "
                    "tokenizer in task.source_tokenizer"
                )
            source = train_bpe(texts, config.source_vocab_size or 0)
        try:
            return encoder.with_source(source)
        except ValueError as error:
            raise DataError(str(error)) from None

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """With a new encoder, if it has none."""
        config = super().model_config(config, encoder)
        if config.source_encoder_layers:
            return config
        assert encoder.source is not None  # from `text_encoder`
        try:
            return config.replace(
                source_encoder_layers=self.config.source_encoder_layers,
                source_vocab_size=len(encoder.source.dictionary),
            )
        except ValueError as error:
            raise DataError(str(error)) from None


KIND = TaskKind(
    SourceEncoderTranslationConfig(), translation.KIND.criteria, TranslationWithSourceEncoder
)
