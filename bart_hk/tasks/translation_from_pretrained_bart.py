"""Translation with mBART, which knows languages by a symbol at the end of a text.

    source                decoder reads      decoder writes
    A </s> [en_XX]        [ro_RO] B </s>     B </s> [ro_RO]

Source: fairseq `tasks/translation_from_pretrained_bart.py` (which fails at its head); Liu et al.
2020. What is trained is stored as transformers' mBARTs are: `decoder_start_token_id` is the target
language, and generation ends at `</s>`. `bart.sample` puts the source language behind its texts.
"""

import re
from dataclasses import dataclass
from typing import Any

from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.tasks import TaskKind, translation
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.pairs import Splits, read_splits
from bart_hk.tasks.translation import Translation, TranslationConfig
from bart_hk.text import TextEncoder


@dataclass
class PretrainedTranslationConfig(TranslationConfig):
    """task=translation's options; `source_lang` and `target_lang` are needed: en_XX, ro_RO."""

    _name: str = "translation_from_pretrained_bart"
    prepend_bos: bool = False


class TranslationFromPretrainedBART(Translation):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: the languages are not given, or as `Translation`.
    """

    def __init__(self, config: PretrainedTranslationConfig, criterion: CrossEntropyConfig) -> None:
        if config.source_lang is None or config.target_lang is None:
            raise DataError(
                "task.source_lang and task.target_lang are needed: languages of the model, such as "
                "en_XX and ro_RO"
            )
        self._languages: dict[str, int] = {}
        super().__init__(config, criterion)

    def _read(self) -> Splits:
        return read_splits(self.config, languages_are_symbols=True)

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """Its decoder starts with the target language.

        Raises:
            DataError: the tokenizer does not have a language.
        """
        self._languages = {
            "source": _symbol(encoder, self.config.source_lang, "source_lang"),
            "target": _symbol(encoder, self.config.target_lang, "target_lang"),
        }
        config = super().model_config(config, encoder)
        return config.replace(decoder_start_token_id=self._languages["target"])

    def _end(self, side: str, config: BARTConfig) -> list[int]:
        return [config.eos_token_id, self._languages[side]]

    def extras(self) -> dict[str, Any]:
        """How texts are surrounded, and how the model generates."""
        return super().extras() | {"source_suffix": [self._languages["source"]]}


KIND = TaskKind(
    PretrainedTranslationConfig(), translation.KIND.criteria, TranslationFromPretrainedBART
)


def _symbol(encoder: TextEncoder, language: str | None, option: str) -> int:
    """The id of a language's symbol, as fairseq, transformers' mBART or PLBart write it."""
    for symbol in (f"[{language}]", f"{language}", f"__{language}__"):
        # Bare, other names are words or letters.
        if symbol == language and not re.fullmatch("[a-z]{2,3}_[A-Z]{2}", symbol):
            continue
        if symbol in encoder.dictionary:
            return encoder.dictionary.index(symbol)
    raise DataError(
        f"task.{option}={language} is no language of this model: its tokenizer has no symbol "
        f"[{language}]"
    )
