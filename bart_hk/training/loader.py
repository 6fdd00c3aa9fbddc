"""Which rows go into which update, and their batches, made and on the device before their turn.

Batches are planned ahead from the stored lengths, and each is a function of the plan and the rows
alone; so a run that goes on needs only the epoch and the number of updates done in it, and may have
another number of worker processes. (grain's loader has no token budgets, and its position does not
survive a change of the number of workers: so this is a map over the plan.)
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.batching import LENGTH_BUCKETS, choose_buckets, plan_batches
from bart_hk.data.workers import MakeBatch, WorkerError, Workers
from bart_hk.tasks import Batch, Task
from bart_hk.training.config import DatasetConfig
from bart_hk.training.throughput import batch_costs

Plan = list[list[np.ndarray]]  # for each update the rows of its batches
_STEP = 0.1  # seconds after which a thread looks whether it is still wanted


@dataclass
class Loaded:
    """An update's batches.

    rows: of each batch.
    batches: their arrays, on the device.
    costs: as of `throughput.batch_costs`.
    waited: seconds that the update's turn had come, and they were not there.
    """

    rows: list[np.ndarray]
    batches: list[Any]
    costs: dict[str, float]
    waited: float = 0.0


class Loader:
    """The batches of a task's files."""

    def __init__(
        self, config: DatasetConfig, task: Task, model: BARTConfig, seed: int, update_freq: int
    ) -> None:
        self.train, self.valid, self._task = task.train, task.valid, task
        self._config, self._model = config, model
        self._seed, self._update_freq = seed, update_freq
        self._sizes: dict[str, Any] = {
            "max_tokens": config.max_tokens,
            "batch_size": config.batch_size,
        }
        self._sizes_valid: dict[str, Any] = {
            "max_tokens": config.max_tokens_valid,
            "batch_size": config.batch_size_valid,
        }
        limit = model.max_positions
        buckets: Sequence[int] = config.length_buckets
        if not buckets:
            # Batches of so many tokens have long rows most often: the fewest programs for them.
            by_tokens = config.max_tokens is not None and config.batch_size is None
            buckets = self._chosen_buckets() if by_tokens else LENGTH_BUCKETS
        # The last bucket is whatever the model can take.
        self.buckets = [b for b in buckets if b < limit] + [limit]

    def _chosen_buckets(self) -> list[int]:
        """For the present epoch's rows; of other epochs and of validation some may be longer."""
        chosen = choose_buckets(self.train.lengths)
        splits = [split for split in (self.train, self.valid) if split is not None]
        longest = max(self._task.longest, *(int(split.lengths.max()) for split in splits))
        return sorted({*chosen, longest})

    def misfit(self) -> str | None:
        """What to say of sizes that do not fit the model or the rows, if there are any."""
        limit, given = self.buckets[-1], self._config.length_buckets
        if given and given[-1] > limit:
            return (
                f"dataset.length_buckets={given} are lengths of batches, and the model has {limit} "
                "positions; leave out what is above"
            )
        for split, key, sizes in (
            (self.train, "max_tokens", self._sizes),
            (self.valid, "max_tokens_valid", self._sizes_valid),
        ):
            tokens = sizes["max_tokens"]
            if split is None or tokens is None or not len(split.lengths):
                continue
            row = int(split.lengths.argmax())
            if tokens < split.lengths[row]:
                return (
                    f"dataset.{key}={tokens} has no room for {split.where([row])}, which has "
                    f"{split.lengths[row]} tokens; raise it"
                )
        return None

    def updates(self, epoch: int) -> Plan:
        """For each update of an epoch the rows of its `update_freq` batches."""
        self._task.begin_epoch(epoch)
        self.train = self._task.train
        shuffle = (self._seed, epoch)
        plan = plan_batches(
            self.train.lengths, **self._sizes, buckets=self.buckets, shuffle=shuffle
        )
        every = self._update_freq
        return [plan[i : i + every] for i in range(0, len(plan), every)]

    @contextlib.contextmanager
    def batches(self, plan: Plan) -> Iterator[Iterator[Loaded]]:
        """Those of some updates of the present epoch, in their order, while the block runs.

        Raises (where they are taken from):
            WorkerError: a process that makes batches died, or made none for too long.
            DataError and others: a batch cannot be made.
        """
        make = MakeBatch(self.train, self.buckets, **self._sizes)
        with self._made_ahead(make, plan, self._config.num_workers) as found:
            yield found

    @contextlib.contextmanager
    def valid_batches(self) -> Iterator[Iterator[Loaded]]:
        """As `batches`, those of the whole validation file; their arrays may have more rows."""
        assert self.valid is not None  # who validates has looked
        make = MakeBatch(self.valid, self.buckets, **self._sizes_valid)
        plan = plan_batches(self.valid.lengths, **self._sizes_valid, buckets=self.buckets)
        with self._made_ahead(make, [[rows] for rows in plan], workers=0) as found:
            yield found

    @contextlib.contextmanager
    def _made_ahead(self, make: MakeBatch, plan: Plan, workers: int) -> Iterator[Iterator[Loaded]]:
        ready: queue.Queue[Loaded | BaseException] = queue.Queue(self._config.data_buffer_size)
        unwanted = threading.Event()
        rows = [rows for group in plan for rows in group]
        processes = Workers(make, rows, workers) if workers else None

        def results() -> Iterator[Batch]:
            return processes.results() if processes else map(make, rows)

        arguments = (results, plan, self._model, ready, unwanted)
        thread = threading.Thread(target=_fill, args=arguments, name="batches", daemon=True)
        thread.start()
        try:
            yield self._taken(len(plan), ready, processes)
        finally:
            unwanted.set()
            if processes is not None:
                processes.kill()  # a thread that waits for them goes on
            # Without processes a file system that stands still may hold it: it ends with the run.
            thread.join(None if processes else 10)
            if processes is not None:
                processes.close()

    def _taken(
        self, count: int, ready: "queue.Queue[Loaded | BaseException]", processes: Workers | None
    ) -> Iterator[Loaded]:
        limit = self._config.worker_timeout
        for _ in range(count):
            begun, empty = time.monotonic(), ready.empty()
            try:
                found = ready.get(timeout=limit)
            except queue.Empty:
                who = "the thread that makes batches"
                if processes is not None and processes.waiting_for is not None:
                    who = f"worker {processes.waiting_for + 1}, which makes batches,"
                raise WorkerError(
                    f"{who} has made none for {limit:g} s; if its disk is only slow, raise "
                    "dataset.worker_timeout"
                ) from None
            if isinstance(found, BaseException):
                raise found
            if empty:  # else it was the processor that was waited for
                found.waited = time.monotonic() - begun
            yield found


def _fill(
    results: Callable[[], Iterator[Batch]],
    plan: Sequence[list[np.ndarray]],
    model: BARTConfig,
    ready: "queue.Queue[Loaded | BaseException]",
    unwanted: threading.Event,
) -> None:
    """Puts what was loaded, or the error that ended it, until it is not wanted any more."""

    def put(item: Loaded | BaseException) -> None:
        while not unwanted.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=_STEP)

    try:
        source = results()
        for group in plan:
            batches = [next(source) for _ in group]
            put(Loaded(group, jax.device_put(batches), batch_costs(model, batches)))
            if unwanted.is_set():
                return
    except BaseException as error:
        put(error)
