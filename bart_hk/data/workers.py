"""Processes that make batches, for data that one process cannot make fast enough.

What is to be made is known before it begins, and process k of n makes the items k, k + n, ...; so
results come in their order whatever the processes' speeds, and nothing is ever asked for twice. A
process that is ahead waits for its pipe to empty.
"""

import atexit
import contextlib
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from bart_hk.data.batching import batch_rows, bucket

_ENDS = (EOFError, OSError)  # of a pipe whose other side is gone
_ASKED_TO_END = {signal.SIGINT, signal.SIGTERM}  # which a terminal sends to every process


class WorkerError(RuntimeError):
    """A process that makes batches died or stands still; one line says which, and the remedy."""


class Rows(Protocol):
    """What makes the arrays of some of its rows; see `bart_hk.tasks.Split`."""

    @property
    def lengths(self) -> np.ndarray: ...

    def batch(self, rows: np.ndarray, length: int, count: int) -> dict[str, np.ndarray]: ...


@dataclass
class MakeBatch:
    """Some rows -> the arrays of their batch, in the shape of the bucket of the longest."""

    split: Rows
    buckets: Sequence[int]
    max_tokens: int | None
    batch_size: int | None

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        length = bucket(int(self.split.lengths[rows].max()), self.buckets)
        count = batch_rows(length, max_tokens=self.max_tokens, batch_size=self.batch_size)
        return self.split.batch(rows, length, count)


class Workers:
    """Processes that compute `make(item)` for each of `items`.

    A process starts as a new interpreter (a fork would copy the locks of jax's threads), and so
    imports the main module. Signals that ask a run to end are for the process that started it;
    those here end when that one does, or lets go of them.

    Args:
        make: what can be pickled, as its results can.
        items: likewise.
        count: of the processes; no more are started than there are items.

    Attributes:
        waiting_for: the number of the process whose result is being waited for, or None.
    """

    def __init__(self, make: Callable[[Any], Any], items: Sequence[Any], count: int) -> None:
        self._make = pickle.dumps(make, pickle.HIGHEST_PROTOCOL)
        self._parts = [items[k::count] for k in range(min(count, len(items)))]
        self._count = len(items)
        self.waiting_for: int | None = None
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        # Where an interrupt comes before anybody could let go of them, they end at the exit. There
        # multiprocessing would ask them, and wait; but they hear no signal that asks.
        atexit.register(self.kill)
        try:
            for number in range(len(self._parts)):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs,), name=f"batches-{number}", daemon=True
                )
                self._processes.append(process)
                self._pipes.append(ours)
                with _blocked():  # the new process inherits this
                    process.start()
                theirs.close()  # else its end would not be noticed
        except BaseException:
            self.close()
            raise

    def results(self) -> Iterator[Any]:
        """`make(item)` for one item after the other.

        Raises:
            WorkerError: a process died.
            Exception: what `make` raised, at the place of its item.
        """
        for number, part in enumerate(self._parts):
            self.waiting_for = number
            try:
                self._pipes[number].send_bytes(self._make)
                self._pipes[number].send(part)
            except OSError:
                raise self._died(number) from None
        for item in range(self._count):
            number = item % len(self._pipes)
            self.waiting_for = number
            try:
                error, result = self._pipes[number].recv()
            except _ENDS:
                raise self._died(number) from None
            self.waiting_for = None
            if error is not None:
                raise error
            yield result

    def _died(self, number: int) -> WorkerError:
        process = self._processes[number]
        process.join(5)  # its pipe may have been closed a moment before its end
        code = process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (is the memory used up?)" if -code == signal.SIGKILL else ""
        return WorkerError(
            f"worker {number + 1} of {len(self._processes)}, which make batches, {how}; "
            "dataset.num_workers=0 makes them without other processes (a script of your own that "
            "trains with workers must do so under `if __name__ == '__main__':`)"
        )

    def kill(self) -> None:
        """Ends the processes, whatever they do: they have nothing that could be lost. Whoever waits
        in `results` gets a WorkerError."""
        started = [process for process in self._processes if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()

    def close(self) -> None:
        """Ends the processes and lets go of the pipes, where nobody is in `results` any more."""
        self.kill()
        atexit.unregister(self.kill)
        for pipe in self._pipes:
            pipe.close()


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """Keeps away from this thread, and from what it starts, the signals that end a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED_TO_END)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection) -> None:
    """What a process does: reads its job, and writes (error, result) for each item."""
    with contextlib.suppress(*_ENDS):  # nobody reads any more
        for answer in _answers(pipe.recv_bytes(), pipe.recv_bytes()):
            pipe.send_bytes(answer)


def _answers(make: bytes, items: bytes) -> Iterator[bytes]:
    try:
        compute = pickle.loads(make)
        for item in pickle.loads(items):
            yield pickle.dumps((None, compute(item)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        yield pickle.dumps((_portable(error), None))


def _portable(error: Exception) -> Exception:
    """The error as another process can raise it; its notes say where it comes from."""
    error.add_note("in a worker process: " + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception may want other arguments than it has
        return WorkerError(f"a worker that makes batches failed: {type(error).__name__}: {error}")
    return error
