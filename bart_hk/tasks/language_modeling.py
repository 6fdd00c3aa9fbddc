"""Causal language modelling: a decoder_only model reads a text and predicts each next token.

    decoder reads    </s> a  b  c
    decoder writes   a    b  c  </s>

A text is a stream of lines, each with `</s>` behind it; an empty line is none. The stream is cut
into windows wherever they end, and a window's first token is predicted from the one before it, or
from `</s>` where the stream begins: so `</s>` always means that a line begins. In every epoch the
cuts are elsewhere; those of fairseq's `tasks/language_modeling.py` (sample_break_mode=none), which
this follows otherwise, stay.

Shapes: B rows, T tokens.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.config import BARTConfig, Flavour
from bart_hk.data.batching import pad_rows
from bart_hk.data.documents import JSON_LINES, MARKDOWN, PACKED, TEXT, TextFile, find_files
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, store_exists
from bart_hk.tasks import Batch, TaskKind, files, losses
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.writing import TextWriting
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)

Text = list[TextFile] | TokenStore


@dataclass
class LanguageModelingConfig(files.FilesConfig):
    """Where the text is, and how it becomes rows.

    `data` is a folder of bart-hk-preprocess, with train.bin and train.idx (and valid.*); or one
    with train.txt and valid.txt, which may be .md or .jsonl, packed or not. `train` and `valid` are
    such files, or folders of them.
    """

    _name: str = "language_modeling"
    tokens_per_sample: int = 512  # of a window
    seed: int = "${common.seed}"  # type: ignore[assignment]


class Windows:
    """A stream of tokens in windows: the rows of an epoch.

    Attributes:
        lengths: int64, tokens of each window; the first and the last may be shorter.
    """

    def __init__(self, stream: np.ndarray | TokenStore, name: str, size: int, config: BARTConfig):
        """`stream` is int32 [N], or a store whose items are lines."""
        self._stream, self._name, self._size = stream, name, size
        self._pad, self._start = config.pad_token_id, config.decoder_start_token_id
        self._count = len(stream) if isinstance(stream, np.ndarray) else int(stream.sizes.sum())
        self.cut(0)

    def cut(self, offset: int) -> None:
        """Makes the first window that long, unless it is 0."""
        begins = np.arange(offset, self._count, self._size)
        self._begins = np.union1d([0], begins).astype(np.int64)
        self.lengths = np.diff(self._begins, append=self._count)

    def _at(self, positions: np.ndarray) -> np.ndarray:
        stream = self._stream
        return stream[positions] if isinstance(stream, np.ndarray) else stream.at(positions)

    def batch(self, rows: np.ndarray, length: int, count: int) -> Batch:
        """prev_output_tokens and target int32 [B, T]; T is `length`."""
        targets, previous = [], []
        for begin, size in zip(self._begins[rows], self.lengths[rows], strict=True):
            window = self._at(np.arange(max(begin - 1, 0), begin + size))
            if not begin:
                window = np.concatenate([[self._start], window])
            targets.append(window[1:])
            previous.append(window[:-1])
        return {
            "prev_output_tokens": pad_rows(previous, self._pad, length, count),
            "target": pad_rows(targets, self._pad, length, count),
        }

    def where(self, rows: Sequence[int]) -> str:
        """The text, and where in it the windows of some rows begin."""
        begins = ", ".join(str(begin) for begin in self._begins[list(rows)])
        return f"{self._name}, tokens from {begins}"


class LanguageModeling(TextWriting):
    """The task; see `bart_hk.tasks.Task` for what its methods are for.

    Raises (when made):
        DataError: there is no text, a file is damaged, or an option is not as it should be.
    """

    flavours: tuple[str, ...] = (Flavour.decoder_only,)
    train: Windows
    valid: Windows | None
    metric_names: tuple[str, ...] = ("nll_loss", "ppl", "accuracy")

    def __init__(self, config: LanguageModelingConfig, criterion: CrossEntropyConfig) -> None:
        self.config, self.criterion = config, criterion
        losses.check(criterion)
        if config.tokens_per_sample < 1:
            raise DataError(f"task.tokens_per_sample={config.tokens_per_sample} must be at least 1")
        self._train, self._valid = _texts_of(config)
        self.validates = self._valid is not None
        if isinstance(self._train, TokenStore):
            self.tokenizer_folder = config.data

    def fingerprint(self) -> dict[str, Any]:
        """The files' digests."""
        found = {"train": _digest(self._train)}
        return found if self._valid is None else found | {"valid": _digest(self._valid)}

    def texts(self) -> Iterable[str]:
        """The lines to train on."""
        return () if isinstance(self._train, TokenStore) else _lines(self._train)

    def model_config(self, config: BARTConfig, encoder: TextEncoder) -> BARTConfig:
        """No text begins with `<s>`."""
        return config.replace(forced_bos_token_id=None)

    def extras(self) -> dict[str, Any]:
        """No text begins with `<s>`."""
        return {"prepend_bos": False}

    def encode(self, encoder: TextEncoder, config: BARTConfig) -> None:
        """Makes the streams.

        Raises:
            DataError: windows are longer than the model's positions, a text is empty, or a store's
                ids are not of the model's vocabulary.
        """
        size = self.config.tokens_per_sample
        longest = config.max_positions
        if size > longest:
            raise DataError(
                f"task.tokens_per_sample={size} is more than the model's {longest} positions; "
                "lower it, or raise model.max_source_positions and max_target_positions"
            )
        self.train = self._windows(self._train, encoder, config)
        self.valid = None if self._valid is None else self._windows(self._valid, encoder, config)
        self.begin_epoch(1)

    def _windows(self, text: Text, encoder: TextEncoder, config: BARTConfig) -> Windows:
        if isinstance(text, TokenStore):
            text.check_vocabulary(len(encoder.dictionary), "the model's tokenizer")
            files.check_tokenizer(encoder, text.prefix.parent)
            stream: np.ndarray | TokenStore = text
            name, count = str(text.prefix), int(text.sizes.sum())
        else:
            eos, rows = config.eos_token_id, encoder.encode_batch(_lines(text))
            stream = np.array([token for row in rows for token in (*row, eos)], np.int32)
            name, count = str(text[0].path), len(stream)
        if not count:
            raise DataError(f"{name} holds no text")
        _log.info("%s: %d tokens", name, count)
        return Windows(stream, name, self.config.tokens_per_sample, config)

    def begin_epoch(self, epoch: int) -> None:
        """Cuts the stream elsewhere in each epoch, counted from 1, by (seed, epoch)."""
        draw = np.random.default_rng((self.config.seed, epoch))
        self.train.cut(int(draw.integers(self.config.tokens_per_sample)))


KIND = TaskKind(LanguageModelingConfig(), losses.SEQUENCE_CRITERIA, LanguageModeling)


def _texts_of(config: LanguageModelingConfig) -> tuple[Text, Text | None]:
    """What to train and to validate on."""
    folder = files.folder_of(config)
    if folder is None:
        if not config.train:
            raise DataError("task.train is not set; give it a text file or a folder of them")
        valid = find_files([config.valid]) if config.valid else None
        return find_files([config.train]), valid
    if store_exists(folder / "train"):
        valid_name = next((n for n in files.VALID_NAMES if store_exists(folder / n)), None)
        return TokenStore(folder / "train"), TokenStore(folder / valid_name) if valid_name else None
    ends = [f"{kind}{end}" for kind in (*TEXT, *MARKDOWN, *JSON_LINES) for end in ("", *PACKED)]
    found = [
        next((p for n in names for end in ends if (p := folder / f"{n}{end}").is_file()), None)
        for names in (("train",), files.VALID_NAMES)
    ]
    train, held = found
    if train is None:
        raise DataError(f"task.data={folder} has neither train.bin and train.idx nor a train.txt")
    return find_files([train]), find_files([held]) if held else None


def _lines(texts: Iterable[TextFile]) -> list[str]:
    return [line for text in texts for piece in text.pieces() for line in piece.lines if line]


def _digest(text: Text) -> str:
    if isinstance(text, TokenStore):
        return text.digest()
    return files.digest(*(Path(file.path) for file in text))
