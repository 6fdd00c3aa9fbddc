"""Between text and the ids of a loaded BART, in the words of fairseq's hub."""

import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.errors import CutTextWarning
from bart_hk.hub.arrays import Rows, as_array
from bart_hk.hub.loaded import LoadedBART
from bart_hk.model import Params
from bart_hk.text import Dictionary, TextEncoder
from bart_hk.text.framing import frame, truncate

_TASK_HEAD = "sentence_classification_head"  # fairseq's name for a sentence_prediction task's head


class TextBART(LoadedBART):
    """A loaded BART and its tokenizer.

    Attributes:
        text: its `TextEncoder`; `bpe` is the part that cuts text into symbols.
        task: fairseq's `source_dictionary`, `target_dictionary` and `label_dictionary`.
        rows_cut: how many rows have been cut without a warning so far, to fit the positions.
    """

    def __init__(
        self,
        config: BARTConfig,
        params: Params,
        text: TextEncoder | None = None,
        heads: Mapping[str, HeadFiles] | None = None,
        **kwargs: Any,
    ) -> None:
        """From parts; `text=None` makes a model that takes ids only. See `LoadedBART`."""
        super().__init__(config, params, heads, **kwargs)
        self._text = text
        self.rows_cut = 0

    def save(self, directory: str | Path, head: str | None = None) -> None:  # type: ignore[override]
        """Writes the model, its heads and its tokenizer as a directory that `load` opens.

        transformers opens it too, as BartForConditionalGeneration, or with `head` as
        BartForSequenceClassification with that head.

        Raises:
            ValueError: it is an ensemble, which is no single model.
        """
        if self._other_params:
            raise ValueError(
                f"an ensemble of {1 + len(self._other_params)} models cannot be saved as one; "
                "tools/average_checkpoints.py makes one of them"
            )

        def write_text(folder: Path) -> None:
            if self._text is not None:
                self._text.save(folder, self.config.max_positions)

        super().save(directory, head, also=write_text)

    @property
    def text(self) -> TextEncoder:
        if self._text is None:
            raise ValueError("this model was made without a tokenizer; it takes token ids only")
        return self._text

    @property
    def bpe(self) -> Any:
        return self.text.bpe

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and the longest target, in tokens: those of the model, or if it is
        less the sources that it was fine-tuned to read, as in fairseq."""
        source, target = self.config.max_source_positions, self.config.max_target_positions
        return min(source, self.extras.get("max_positions", source)), target

    @property
    def task(self) -> types.SimpleNamespace:
        labels = None
        head = self.heads.get(_TASK_HEAD) or (
            next(iter(self.heads.values())) if len(self.heads) == 1 else None
        )
        if head is not None and head.labels is not None:
            labels = Dictionary()
            for label in head.labels:
                labels.add_symbol(label)
        dictionary = self.text.dictionary
        return types.SimpleNamespace(
            source_dictionary=self.text.for_sources.dictionary,
            target_dictionary=dictionary,
            label_dictionary=labels,
        )

    def encode(
        self,
        sentence: Any,
        *addl_sentences: str,
        no_separator: bool = True,
        truncate: bool = False,
    ) -> Any:
        """Ids of a sentence that the model is to read, `<s> A </s>`, or of several,
        `<s> A </s> B </s>`: int32 [N].

        Where the model was trained without `<s>` (`prepend_bos` of task=translation) there is none.
        As in fairseq, a first sentence that is too long is cut, further ones are not (then the
        row is too long for the model). Special symbols written in the text are ordinary characters.

        Args:
            sentence: a string; or a list of strings and of tuples of strings, for a list of arrays.
            *addl_sentences: further sentences for the same row.
            no_separator: False puts a second `</s>` between sentences.
            truncate: cut the longest sentences until the row fits, keeping every `</s>`.

        Raises:
            TypeError: something else than text.

        Warns:
            CutTextWarning: a text was cut without `truncate`; once for a list, or for a loop.
        """
        longest = min(self.max_positions)
        if isinstance(sentence, list):
            if addl_sentences:
                raise TypeError("give pairs as a list of tuples: encode([(a, b), (c, d)])")
            found = [
                self._encoded(as_texts(item), longest, no_separator, truncate) for item in sentence
            ]
            self._warn_of_cuts([(i, cut) for i, (_, cut) in enumerate(found) if cut], longest)
            return [as_array(ids) for ids, _ in found]
        ids, cut = self._encoded(
            as_texts((*as_texts(sentence), *addl_sentences)), longest, no_separator, truncate
        )
        self._warn_of_cuts([(None, cut)] if cut else [], longest)
        return as_array(ids)

    def _encode_target(self, text: str | tuple[str, ...]) -> np.ndarray:
        """As `encode`; a target may be longer than the sources that a model was tuned to read."""
        longest = self.config.max_target_positions
        ids, cut = self._encoded(as_texts(text), longest)
        self._warn_of_cuts([(None, cut)] if cut else [], longest)
        return ids

    def _encoded(
        self,
        texts: Sequence[str],
        longest: int,
        no_separator: bool = True,
        may_cut: bool = False,
    ) -> tuple[np.ndarray, int]:
        """A row's ids, and how many tokens its first text had if it was cut without leave; else
        0."""
        separator = [] if no_separator else [self.config.eos_token_id]
        parts: list[Sequence[int]] = list(self.text.for_sources.encode_batch(texts))
        suffix = self.extras.get("source_suffix", [])
        limit, cut = longest - len(suffix), 0
        if may_cut:
            fitting = _fit(parts, limit, len(separator))
            self.rows_cut += sum(map(len, fitting)) < sum(map(len, parts))
            parts = fitting
        elif len(parts[0]) > limit - 2:
            cut, parts[0] = len(parts[0]), parts[0][: limit - 2]
        # A model that was fine-tuned without <s> reads none; mBART's read a language at the end.
        bos = self.config.bos_token_id if self.extras.get("prepend_bos", True) else None
        ids = frame(parts, bos, self.config.eos_token_id, separator)
        return (np.concatenate([ids, suffix]).astype(np.int32) if suffix else ids), cut

    def _warn_of_cuts(self, cuts: Sequence[tuple[int | None, int]], longest: int) -> None:
        """Of the (number of a text, its tokens) that were cut."""
        if cuts:
            (number, size), more = cuts[0], len(cuts) - 1
            room = longest - len(self.extras.get("source_suffix", [])) - 2
            # One text is named without its size: Python says the same words once in a loop.
            which = f"text {number} of {size}" if number is not None else f"a text of over {room}"
            warnings.warn(
                f"{which} tokens was cut to the {room} that fit this model, as in fairseq"
                + (f", and {more} more" if more else "")
                + "; truncate=True cuts without a word",
                CutTextWarning,
                stacklevel=3,
            )

    def decode(self, tokens: Any) -> Any:
        """The text of ids: a string, or where two `</s>` meet a list of strings.

        One leading `<s>` and all padding are dropped. A padded [B, N] or a list of arrays gives a
        list.

        Raises:
            TypeError: something else than token ids.
        """
        if _nested(tokens) if isinstance(tokens, (list, tuple)) else np.ndim(tokens) > 1:
            return [self.decode(row) for row in tokens]
        config = self.config
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise TypeError(f"decode takes token ids, which are whole numbers, not {tokens!r:.80}")
        ids = ids[ids != config.pad_token_id]
        if len(ids) and ids[0] == config.bos_token_id:
            ids = ids[1:]
        is_eos = ids == config.eos_token_id
        pieces = np.split(ids, np.flatnonzero(is_eos[1:] & is_eos[:-1]) + 1)
        sentences = [self.text.decode(piece) for piece in pieces]
        return sentences[0] if len(sentences) == 1 else sentences

    def _rows(self, tokens: Any, of_target: bool = False) -> Rows:
        config = self.config
        size = config.vocab_size if of_target else config.source_vocabulary
        return Rows(tokens, config.pad_token_id, size)

    def _check_one_vocabulary(self, what: str) -> None:
        """Raises ValueError where the decoder cannot read what the encoder reads."""
        if self.config.source_encoder_layers:
            raise ValueError(
                f"{what} needs a model that reads the vocabulary that it writes; this one has an "
                "encoder of other sources in front (source_encoder_layers="
                f"{self.config.source_encoder_layers}): it generates and scores targets"
            )


def as_texts(item: Any) -> tuple[str, ...]:
    """What is encoded as one row: a text, or several.

    Raises:
        TypeError: something else than text.
    """
    texts = (item,) if isinstance(item, str) else item
    if not texts or not isinstance(texts, tuple) or any(not isinstance(t, str) for t in texts):
        raise TypeError(
            f"{item!r:.80} is no text: give a string, a tuple of strings for one row, or a list of "
            "those"
        )
    return texts


def _fit(parts: Sequence[Sequence[int]], limit: int, separator: int) -> list[Sequence[int]]:
    """`parts`, cut so that they fit `limit` positions with `<s>` and every `</s>`."""
    return truncate(parts, limit - 1 - len(parts) - separator * (len(parts) - 1))


def _nested(tokens: Sequence[Any]) -> bool:
    return any(np.ndim(token) for token in tokens)
