"""Rows for processes that make batches; no jax here, so that they start quickly."""

import multiprocessing
import os
import signal
import time

import numpy as np

from bart_hk.data.noised import NoisedBlocks
from bart_hk.data.readers import DataError


class Numbers:
    """Rows of one number each; `trouble` says what comes of the row `bad`."""

    def __init__(self, trouble: str = "") -> None:
        self.lengths = np.random.default_rng(0).integers(1, 60, 101)
        self.trouble, self.made, self.bad = trouble, 0, 17

    def batch(self, rows: np.ndarray, length: int, count: int) -> dict[str, np.ndarray]:
        if self.bad in rows:
            if self.trouble == "error":
                raise DataError(f"row {self.bad} is bad")
            if self.trouble == "delay":
                time.sleep(0.5)
            if self.trouble == "hang":
                time.sleep(30)
            if self.trouble == "death":
                os._exit(1)
        self.made += 1
        ids = np.zeros((count, length), np.int32)
        ids[: len(rows)] = rows[:, None]
        return {"src_tokens": ids, "prev_output_tokens": ids, "target": ids}


class Deadly(NoisedBlocks):
    """Dies in a worker, in the second epoch, at a row."""

    def batch(self, rows: np.ndarray, length: int, count: int) -> dict[str, np.ndarray]:
        if self._epoch == 2 and 40 in rows and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows, length, count)
