"""Processes that make batches: in order, and never silently fewer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, write_store
from bart_hk.data.workers import WorkerError, Workers

ROOT = Path(__file__).parents[2]


def slow_square(number: int) -> tuple[int, np.ndarray]:
    time.sleep(0.02 * (number % 3))
    return os.getpid(), np.full(30_000, number**2)  # more than a pipe holds


def refuse_five(number: int) -> int:
    if number == 5:
        raise DataError("five is not allowed")
    return number


class Awkward(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def fail_awkwardly(number: int) -> int:
    raise Awkward(number, 2)


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exit_at_five(number: int) -> int:
    if number == 5:
        os._exit(3)
    return number


@pytest.fixture
def workers():
    made = []

    def make(*arguments) -> Workers:
        made.append(Workers(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_results_come_in_order_whatever_the_speeds(workers, count):
    found = list(workers(slow_square, list(range(7)), count).results())
    assert [int(result[0]) for _, result in found] == [n**2 for n in range(7)]
    processes = {process for process, _ in found}
    assert len(processes) == min(count, 7) and os.getpid() not in processes


def taken(workers: Workers) -> tuple[list[int], Exception]:
    """What came before the error, and the error."""
    found = []
    with pytest.raises(Exception) as error:  # noqa: PT011 - of any kind, looked at by the caller
        for result in workers.results():
            found.append(result)
    return found, error.value


def test_an_error_comes_at_its_place_with_its_type_and_its_origin(workers):
    found, error = taken(workers(refuse_five, list(range(9)), 2))
    assert found == [0, 1, 2, 3, 4]
    assert type(error) is DataError and str(error) == "five is not allowed"
    assert "in a worker process" in error.__notes__[0] and "refuse_five" in error.__notes__[0]
    _, error = taken(workers(fail_awkwardly, [1], 1))
    assert type(error) is WorkerError and str(error).endswith("failed: Awkward: 1 and 2")


def test_a_death_is_one_line(workers):
    found, error = taken(workers(die_at_five, list(range(9)), 2))
    assert found == [0, 1, 2, 3, 4] and type(error) is WorkerError
    message = "worker 2 of 2, which make batches, was killed by SIGKILL (is the memory used up?); "
    assert str(error).startswith(message) and "dataset.num_workers=0" in str(error)
    found, error = taken(workers(exit_at_five, list(range(9)), 3))
    assert found == [0, 1, 2, 3, 4]
    assert str(error).startswith("worker 3 of 3, which make batches, ended with exit code 3; ")


def test_whoever_starts_them_and_dies_takes_them_along():
    code = """
import multiprocessing, os, signal
from bart_hk.data.workers import Workers
from tests.data.test_workers import slow_square
if __name__ == "__main__":
    workers = Workers(slow_square, list(range(1000)), 2)
    next(workers.results())
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    children = [int(number) for number in done.stdout.split()]
    assert len(children) == 2
    end = time.monotonic() + 20
    while time.monotonic() < end and any(map(_runs, children)):
        time.sleep(0.05)
    assert not any(map(_runs, children))


@pytest.mark.parametrize("moment", ["while they are started", "before they are let go of"])
def test_an_interrupt_at_an_odd_moment_ends_them_too(moment):
    code = f"""
import signal
from multiprocessing.context import SpawnProcess
from bart_hk.data.workers import Workers
start = SpawnProcess.start
def interrupted(process):
    start(process)
    raise KeyboardInterrupt
if {moment == "while they are started"}:
    SpawnProcess.start = interrupted
found = Workers(abs, [1, -2], 2)
raise KeyboardInterrupt
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "KeyboardInterrupt" in done.stderr


def _runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_a_store_is_mapped_by_the_worker_and_must_be_the_same(workers, tmp_path):
    tokens, sizes = np.arange(4, 24), np.array([5, 15])
    write_store(tmp_path / "train", tokens, sizes, 100)
    store = TokenStore(tmp_path / "train")
    rows = list(workers(store.__getitem__, [1, 0], 2).results())
    np.testing.assert_array_equal(np.concatenate(rows), np.roll(tokens, -5))
    time.sleep(0.01)
    write_store(tmp_path / "train", tokens[::-1], sizes, 100)
    found, error = taken(workers(store.__getitem__, [1, 0], 1))
    assert not found and type(error) is DataError
    assert "train.bin was changed while it was in use" in str(error)
