"""Batches made ahead: the same whoever makes them, in order, and never fewer without a word."""

import threading
import time

import jax
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.data.workers import WorkerError
from bart_hk.training.config import DatasetConfig
from bart_hk.training.loader import Loader
from tests.training.rows import Numbers

MODEL = BARTConfig(max_source_positions=64, max_target_positions=64)


class FakeTask:
    def __init__(self, trouble: str = "") -> None:
        self.train = self.valid = Numbers(trouble)

    def begin_epoch(self, epoch: int) -> None:
        del epoch


def loader(trouble: str = "", **config) -> Loader:
    options = {"batch_size": None, "max_tokens": 256, "max_tokens_valid": 512, **config}
    options |= {"batch_size_valid": None, "length_buckets": [16, 32]}
    return Loader(DatasetConfig(**options), FakeTask(trouble), MODEL, seed=1, update_freq=2)


def contents(one: Loader, begin: int = 0) -> list[tuple]:
    plan = one.updates(1)[begin:]
    with one.batches(plan) as batches:
        found = list(batches)
    assert [made.rows for made in found] == plan
    return [(made.costs, [jax.device_get(batch) for batch in made.batches]) for made in found]


def test_the_number_of_workers_changes_nothing():
    expected = contents(loader())
    assert len(expected) > 8 and {len(batches) for _, batches in expected} == {2, 1}
    for workers, begin in ((1, 0), (3, 5)):
        found = contents(loader(num_workers=workers), begin)
        for (costs, batches), (expected_costs, others) in zip(found, expected[begin:], strict=True):
            assert costs == expected_costs
            for batch, other in zip(batches, others, strict=True):
                assert batch.keys() == other.keys()
                assert all(np.array_equal(batch[name], other[name]) for name in batch)


def test_batches_are_on_the_device_before_their_turn_and_not_too_many_of_them():
    one = loader("delay", data_buffer_size=2)
    plan = one.updates(1)
    one.train.bad = plan[0][0][0]
    with one.batches(plan) as batches:
        first = next(batches)
        assert all(isinstance(a, jax.Array) for b in first.batches for a in b.values())
        # One is taken, two wait, and the thread holds the next.
        expected = sum(len(group) for group in plan[:4])
        end = time.monotonic() + 30
        while one.train.made < expected and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)
        assert one.train.made == expected
        assert next(batches).waited == 0
    assert first.waited > 0
    assert not any(thread.name == "batches" for thread in threading.enumerate())


def test_validation_has_every_row_once():
    one = loader(num_workers=1)
    with one.valid_batches() as batches:
        rows = np.concatenate([made.rows[0] for made in batches])
    assert sorted(rows) == list(range(101))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_when_its_batch_would(workers):
    one = loader("error", num_workers=workers)
    plan = one.updates(1)
    one.train.bad = int(plan[4][1][0])
    taken = 0
    with pytest.raises(DataError, match="row .* is bad"), one.batches(plan) as batches:
        for _ in batches:
            taken += 1
    assert taken == 4


def test_a_worker_that_dies_ends_the_epoch_with_an_error():
    one = loader("death", num_workers=2)
    with pytest.raises(WorkerError, match="ended with exit code 1; dataset.num_workers=0"):
        contents(one)


@pytest.mark.parametrize(
    ("workers", "who"),
    [(0, "the thread that makes batches"), (2, "worker [12], which makes batch")],
)
def test_who_stands_still_is_not_waited_for_forever(workers, who, monkeypatch):
    hanging = threading.Event()
    if not workers:  # a thread cannot be ended: let it go on after a while
        monkeypatch.setattr(time, "sleep", hanging.wait)
        threading.Timer(1.0, hanging.set).start()
    one = loader("hang", num_workers=workers, worker_timeout=6.0 if workers else 0.3)
    begun = time.monotonic()
    with pytest.raises(WorkerError, match=f"{who}.* has made none for .* raise dataset.worker_"):
        contents(one)
    assert time.monotonic() - begun < 25
