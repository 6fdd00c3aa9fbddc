"""Which rows go into which update, and the padded arrays of a batch.

Batches are planned ahead from the stored lengths, so a run that goes on needs only the epoch and
the number of updates done in it.
"""

from typing import Any

import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.batching import LENGTH_BUCKETS, batch_rows, bucket, plan_batches
from bart_hk.tasks import Batch, Split, Task
from bart_hk.training.config import DatasetConfig


class Loader:
    """The batches of a task's files."""

    def __init__(
        self, config: DatasetConfig, task: Task, model: BARTConfig, seed: int, update_freq: int
    ) -> None:
        self.train, self.valid, self._task = task.train, task.valid, task
        self._seed, self._update_freq = seed, update_freq
        self._sizes: dict[str, Any] = {
            "max_tokens": config.max_tokens,
            "batch_size": config.batch_size,
        }
        self._sizes_valid: dict[str, Any] = {
            "max_tokens": config.max_tokens_valid,
            "batch_size": config.batch_size_valid,
        }
        limit = min(model.max_source_positions, model.max_target_positions)
        # The last bucket is whatever the model can take.
        self.buckets = [b for b in config.length_buckets or LENGTH_BUCKETS if b < limit] + [limit]

    def updates(self, epoch: int) -> list[list[np.ndarray]]:
        """For each update of an epoch the rows of its `update_freq` batches."""
        self._task.begin_epoch(epoch)
        shuffle = (self._seed, epoch)
        plan = plan_batches(
            self.train.lengths, **self._sizes, buckets=self.buckets, shuffle=shuffle
        )
        every = self._update_freq
        return [plan[i : i + every] for i in range(0, len(plan), every)]

    def train_batch(self, rows: np.ndarray) -> Batch:
        """The arrays of some training rows, in the shape of their bucket."""
        return self._batch(self.train, rows, self._sizes)

    def valid_batches(self) -> list[tuple[np.ndarray, Batch]]:
        """Rows and arrays of the whole validation file; the arrays may have more rows."""
        assert self.valid is not None  # who validates has looked
        plan = plan_batches(self.valid.lengths, **self._sizes_valid, buckets=self.buckets)
        return [(rows, self._batch(self.valid, rows, self._sizes_valid)) for rows in plan]

    def _batch(self, split: Split, rows: np.ndarray, sizes: dict[str, int | None]) -> Batch:
        length = bucket(int(split.lengths[rows].max()), self.buckets)
        return split.batch(rows, length, batch_rows(length, **sizes))
