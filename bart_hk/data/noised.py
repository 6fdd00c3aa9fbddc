"""Blocks of text and their noise as the rows that a model is pretrained on.

Source: fairseq `data/denoising_dataset.py`. Without jax, so that a process which makes batches
(`bart_hk.data.workers`) starts quickly. Shapes: B rows, S source tokens, T target tokens.
"""

from collections.abc import Sequence

import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.batching import LENGTH_BUCKETS, bucket, buckets_up_to, pad_rows
from bart_hk.data.corpora import Corpora
from bart_hk.data.draws import KeyedDraws
from bart_hk.data.noising import Noiser
from bart_hk.data.readers import DataError

_AT_ONCE = 64  # rows that are noised together; more do not stay in the processor's cache
_VALID_EPOCH = 0  # of the noise that is validated on: always the same


class NoisedBlocks:
    """Blocks and their noise: the rows of an epoch.

    A row's noise depends on the seed, the epoch and its own number alone.

    Attributes:
        lengths: int64, tokens of each row's target in this epoch.
    """

    def __init__(
        self,
        corpora: Corpora,
        noiser: Noiser,
        config: BARTConfig,
        seed: int,
        eos: int | dict[str, int],
    ) -> None:
        self._noiser, self._model, self._seed, self._eos = noiser, config, seed, eos
        self._corpora, self._epoch = corpora, _VALID_EPOCH
        self._rows = np.arange(len(corpora))
        self.lengths = corpora.sizes + 2

    def begin(self, corpora: Corpora, epoch: int) -> None:
        """Makes the rows those of an epoch."""
        self._corpora, self._epoch = corpora, epoch
        self._rows = corpora.rows(self._seed, epoch)
        self.lengths = corpora.lengths(self._rows) + 2

    def pairs(self, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Sources and targets, int32, of some rows."""
        sources: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for start in range(0, len(rows), _AT_ONCE):
            noised, plain = self._noise(self._rows[rows[start : start + _AT_ONCE]])
            sources += noised
            targets += plain
        return sources, targets

    def _noise(self, chosen: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        tokens, lengths = self._corpora.take(chosen, self._model.bos_token_id, self._eos)
        draws = KeyedDraws(self._seed, self._epoch, chosen)
        noised, sizes = self._noiser.flat(tokens, lengths, draws)
        sources = np.split(noised, np.cumsum(sizes)[:-1])
        return sources, np.split(tokens, np.cumsum(lengths)[:-1])

    def batch(self, rows: np.ndarray, length: int, count: int) -> dict[str, np.ndarray]:
        """src_tokens int32 [B, S], prev_output_tokens and target int32 [B, T]: T is `length`, and
        S holds the longest source: 26, 27 or 28 of T's 32 parts, T, or a bucket above.

        An encoder_only model predicts in place, what was replaced alone: src_tokens int32
        [B, `length`]; places and target int32 [B, K], which positions those are and what was there.
        K is a multiple of an eighth of `length`, for each is a program.

        Raises:
            DataError: insertions have made a source longer than the model's positions.
        """
        sources, targets = self.pairs(rows)
        most, limit = max(map(len, sources)), self._model.max_source_positions
        if most > limit:
            row = int(rows[max(range(len(sources)), key=lambda i: len(sources[i]))])
            raise DataError(
                f"{self.where([row])}: noise has made {most} tokens of it, and the model takes "
                f"{limit}; lower task.tokens_per_sample or task.insert"
            )
        pad = self._model.pad_token_id
        if "decoder" not in self._model.sides:
            places = [np.flatnonzero(a != b) for a, b in zip(sources, targets, strict=True)]
            asked = [row[at] for row, at in zip(targets, places, strict=True)]
            step = max(length // 8, 1)
            room = step * max(1, -(-max(map(len, asked)) // step))
            return {
                "src_tokens": pad_rows(sources, pad, length, count),
                "places": pad_rows(places, 0, room, count),
                "target": pad_rows(asked, pad, room, count),
            }
        # fairseq's: the last token, </s> or the language, comes first.
        shifted = [np.concatenate([row[-1:], row[:-1]]) for row in targets]
        source_length = bucket(most, _source_lengths(length, limit))
        return {
            "src_tokens": pad_rows(sources, pad, source_length, count),
            "prev_output_tokens": pad_rows(shifted, pad, length, count),
            "target": pad_rows(targets, pad, length, count),
        }

    def where(self, rows: Sequence[int]) -> str:
        """Stores and blocks of some rows."""
        return ", ".join(self._corpora.where(int(self._rows[row])) for row in rows)


def _source_lengths(target: int, limit: int) -> list[int]:
    """Padded lengths for the sources of targets padded to some length: few, for each is a program.

    Masks take the place of spans, so sources are a fifth shorter, and the longest of a batch hardly
    less; insertions make them longer.
    """
    multiple = 8 if target >= 32 else 4
    parts = (-(-n * target // (32 * multiple)) * multiple for n in (26, 27, 28))
    shorter = sorted({length for length in parts if length < target})
    above = [b for b in buckets_up_to(limit, LENGTH_BUCKETS) if b > target]
    return [*shorter, target, *above]
