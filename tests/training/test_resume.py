"""A run may be killed at any moment; the same command ends with the same bits."""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.huggingface import read_model
from bart_hk.training import log, loop, state
from bart_hk.training.log import RunLog
from bart_hk.training.loop import train
from tests.training.conftest import WITH_DROPOUT, final_bytes, logged

# Trains as argv[1] says and kills itself at the argv[3]-th call of the function argv[2]; no file
# may grow beyond argv[4] bytes.
RUNNER = """
import functools, importlib, json, os, resource, signal, sys
from bart_hk.training.loop import train

config, name, count, limit = json.loads(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if name:
    module, _, function = name.rpartition(".")
    module = importlib.import_module(module)
    plain, calls = getattr(module, function), []

    @functools.wraps(plain)
    def fatal(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    setattr(module, function, fatal)
train(config)
"""


def command(
    config: dict, killer: str = "", count: int = 0, limit: int = resource.RLIM_INFINITY
) -> list[str]:
    return [sys.executable, "-c", RUNNER, json.dumps(config), killer, str(count), str(limit)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is compiled by one process is there for the next."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.getcwd()}


@pytest.fixture(scope="session")
def configured(configured: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Runs with dropout, whose draws have to go on, too."""
    return functools.partial(configured, **WITH_DROPOUT)


def test_kills_inside_a_step_and_inside_a_checkpoints_write(
    configured, finished, tmp_path, environment
):
    config = configured(tmp_path / "run", checkpoint={"save_interval_updates": 2})
    killers = [
        ("optax.apply_updates", 1),  # before the first update
        ("os.replace", 1),  # among the first files that a save moves into place
        ("os.replace", 12),
        ("os.fsync", 30),  # while a save waits for the disk
        ("bart_hk.checkpoint.files.write_json", 8),  # between the files of a save
        ("hashlib.file_digest", 3),  # between a state's arrays and its manifest
    ]
    for killer, count in killers:
        run = subprocess.run(command(config, killer, count), env=environment, capture_output=True)
        assert run.returncode == -signal.SIGKILL, (killer, run.stderr.decode())
    draw = random.Random()  # any moment will do
    for _ in range(3):
        process = subprocess.Popen(command(config), env=environment, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(1.0, 6.0))
        process.kill()
        process.wait()
    subprocess.run(command(config), env=environment, check=True, capture_output=True)
    assert final_bytes(tmp_path / "run") == final_bytes(finished)
    assert logged(tmp_path / "run") == logged(finished)


def test_sigterm_saves_first(configured, finished, tmp_path, monkeypatch, caplog):
    config = configured(tmp_path / "run", checkpoint={"save_interval_updates": 2})
    plain = loop.Run._update

    def update(self: loop.Run, group: list) -> None:
        plain(self, group)
        if self.progress.update in (5, 9):  # neither is saved otherwise
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_update", update)
    before = signal.getsignal(signal.SIGTERM)
    for done in (5, 9):
        with pytest.raises(SystemExit) as ended:
            train(config)
        assert ended.value.code == 128 + signal.SIGTERM
        assert f"stopped by SIGTERM after update {done}, which is saved" in caplog.text
        assert states(tmp_path / "run")[-1].name == f"update_{done}"
        assert signal.getsignal(signal.SIGTERM) is before
    train(config)
    assert final_bytes(tmp_path / "run") == final_bytes(finished)
    assert logged(tmp_path / "run") == logged(finished)


def test_an_average_goes_on_as_if_nothing_had_happened(configured, tmp_path, monkeypatch):
    changes = {"ema": {"store_ema": True, "ema_decay": 0.8, "ema_update_freq": 2}}
    train(configured(tmp_path / "whole", **changes))
    config = configured(tmp_path / "parts", **changes)
    plain = loop.Run._update

    def update(self: loop.Run, group: list) -> None:
        plain(self, group)
        if self.progress.update == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_update", update)
    with pytest.raises(SystemExit):
        train(config)
    train(config)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before(configured, tmp_path, environment):
    config = configured(
        tmp_path / "run", lr_scheduler={"_name": "fixed"}, optimization={"max_epoch": 1}
    )
    train(config)
    before = read_model(tmp_path / "run")
    config["optimization"]["max_epoch"] = 6
    limit = 20_000  # bytes of any file: enough for the log, not for the parameters
    run = subprocess.run(
        command(config, limit=limit), env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert re.fullmatch("OSError: cannot save in .*File too large; .* is unchanged", last)
    # Neither of absl's log nor of orbax's threads, which would tell the same once more each.
    assert "absl" not in run.stderr and "asyncio" not in run.stderr
    after = read_model(tmp_path / "run")
    for x, y in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(x, y)
    # With room again the run goes on, to the end of one that never stopped.
    train(config)
    other = configured(
        tmp_path / "other", lr_scheduler={"_name": "fixed"}, optimization={"max_epoch": 6}
    )
    train(other)
    assert final_bytes(tmp_path / "run") == final_bytes(tmp_path / "other")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(state: Path) -> Path:
    """The file of a state in which most of its arrays are."""
    return max((state / "arrays").rglob("*"), key=lambda path: path.is_file() * path.stat().st_size)


DAMAGES = {
    "a flipped bit": lambda state: flip_a_bit(largest(state)),
    "a flipped bit in the progress": lambda state: flip_a_bit(state / "progress.json"),
    "a truncated file": lambda state: os.truncate(largest(state), 1000),
    "a missing file": lambda state: largest(state).unlink(),
    "a spoilt manifest": lambda state: flip_a_bit(state / "manifest.json"),
    "a missing manifest": lambda state: (state / "manifest.json").unlink(),
}


def states(folder: Path) -> list[Path]:
    return sorted((folder / "training").glob("update_*"), key=lambda path: int(path.name[7:]))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_skipped_for_the_one_before(
    damage, configured, finished, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    shutil.copytree(finished, tmp_path / "run")
    before, newest = states(tmp_path / "run")
    DAMAGES[damage](newest)
    train(configured(tmp_path / "run", checkpoint={"save_interval_updates": 2}))
    assert f"{newest} is damaged" in caplog.text
    assert f"going on in {tmp_path / 'run'} after update {before.name[7:]}" in caplog.text
    assert final_bytes(tmp_path / "run") == final_bytes(finished)


def test_when_every_state_is_damaged_the_run_says_so(configured, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for folder in states(tmp_path / "run"):
        (folder / "manifest.json").unlink()
    for _ in range(2):  # nor does the next command begin again without a word
        with pytest.raises(ValueError, match="every state in .* is damaged; remove it to begin ag"):
            train(configured(tmp_path / "run", checkpoint={"save_interval_updates": 2}))


def test_a_log_that_is_gone_is_begun_again(tmp_path, caplog):
    (tmp_path / "log.jsonl").write_text("one\n")
    record = RunLog(tmp_path / "log.jsonl", 100, None, 1.0)
    record.write("train", 7, 1.0)
    record.close()
    assert "log.jsonl is shorter than when the run was saved: lines are missing" in caplog.text
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert lines[0] == "one" and json.loads(lines[1])["update"] == 7 and len(lines) == 2


def test_times_are_those_of_the_updates_they_stand_beside(configured, tmp_path, monkeypatch):
    """Neither an interruption nor a validation in between hides some: every lap is a second here,
    and the look at an update is one, and so is a validation."""
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__, time=time.time)
    monkeypatch.setattr(log, "time", clock)
    config = configured(
        tmp_path / "run",
        common={"log_interval": 4},
        dataset={"validate_interval_updates": 3},
        optimization={"max_epoch": 1000, "max_update": 14},
    )
    plain = loop.Run._update

    def update(self: loop.Run, group: Any) -> None:
        plain(self, dataclasses.replace(group, waited=0.25))
        if self.progress.update == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_update", update)
    with pytest.raises(SystemExit):
        train(config)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    before = 0
    for line in lines:
        if line["event"] == "valid":
            assert line["seconds"] == 1
            continue
        assert line["seconds"] == line["update"] - before  # of which each was waited for
        assert line["tokens_per_second"] == round(line["tokens"] / line["seconds"])
        assert line["data_wait"] == 0.25
        before = line["update"]
    assert before == 14


def tree(value: float) -> dict:
    return {"a": np.full((2, 3), value, np.float32), "count": np.int32(value)}


def test_states_are_kept_and_come_back(tmp_path):
    assert state.load(tmp_path, tree(0)) is None
    for update in (1, 2, 10, 10):
        state.save(tmp_path, update, tree(update), {"update": update, "best": 0.1})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["update_10", "update_2"]
    listed = json.loads((tmp_path / "update_10" / "manifest.json").read_text())
    found = [path for path in (tmp_path / "update_10").rglob("*") if path.is_file()]
    assert len(found) == len(listed) + 1  # and nothing of the first update_10
    loaded, progress = state.load(tmp_path, tree(0))
    np.testing.assert_array_equal(loaded["a"], np.full((2, 3), 10, np.float32))
    assert loaded["count"] == 10 and loaded["count"].dtype == np.int32
    assert progress == {"update": 10, "best": 0.1}


def test_an_interrupt_waits_for_the_arrays(tmp_path, monkeypatch):
    plain = state._checkpointer

    def interrupting():
        os.kill(os.getpid(), signal.SIGINT)
        return plain()

    monkeypatch.setattr(state, "_checkpointer", interrupting)
    with pytest.raises(KeyboardInterrupt):
        state._write_arrays(tmp_path / "arrays", {"a": np.ones(3, np.float32)})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    np.testing.assert_array_equal(state._read_arrays(tmp_path / "arrays")["a"], np.ones(3))


def test_where_there_is_no_room_nothing_is_begun(tmp_path, monkeypatch):
    state.save(tmp_path, 1, tree(1), {})
    no_room = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: no_room)
    with pytest.raises(OSError, match="cannot save in .*update_2: No space left on device; what"):
        state.save(tmp_path, 2, tree(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["update_1"]


def test_a_disk_that_fills_up_while_orbax_writes(tmp_path, monkeypatch):
    state.save(tmp_path, 1, tree(1), {})
    monkeypatch.setattr(state, "_check_room", lambda folder, size: None)
    large = {"a": np.random.default_rng(0).normal(size=(1024, 1024))}
    told = "cannot save in .*update_2: File too large; what was"
    with no_file_beyond(1 << 20), pytest.raises(OSError, match=told):
        state.save(tmp_path, 2, large, {})
    assert [path.name for path in tmp_path.iterdir()] == ["update_1"]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    record = RunLog(tmp_path / "log.jsonl", 0, None, 1.0)
    with no_file_beyond(20), pytest.raises(OSError, match="cannot write .*log.jsonl: File too lar"):
        record.write("train", 1, 1.0, loss=1.0)
    record.close()


def test_room_is_asked_of_the_file_system(tmp_path, monkeypatch):
    def none(file: int, offset: int, length: int) -> None:
        asked.append(length)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", none, raising=False)
    monkeypatch.setattr(state, "_LARGEST_FILE", 16)
    asked, code = [], errno.EDQUOT
    with pytest.raises(OSError, match="update_1: Disk quota exceeded; what was saved there"):
        state.save(tmp_path, 1, tree(1), {})
    assert not any(tmp_path.iterdir())
    code = errno.EOPNOTSUPP  # by file systems that cannot tell
    state.save(tmp_path, 1, tree(1), {})
    monkeypatch.setattr(os, "posix_fallocate", lambda *given: asked.append(given[2]))
    asked.clear()
    state.save(tmp_path, 2, tree(2), {})
    assert asked == [16, 12]  # 24 bytes of numbers and four of a count
    monkeypatch.delattr(os, "posix_fallocate")
    state.save(tmp_path, 3, tree(3), {})


def test_the_state_of_another_tree_is_refused(tmp_path):
    state.save(tmp_path, 1, tree(1), {})
    with pytest.raises(ValueError, match="another model or optimizer"):
        state.load(tmp_path, {"b": np.zeros(3, np.float32)})
    other = tree(1) | {"a": np.zeros((3, 2), np.float32)}
    with pytest.raises(ValueError, match=r"\['a'\] has shape \(2, 3\), not \(3, 2\)"):
        state.load(tmp_path, other)


def test_a_folder_that_cannot_be_written(configured, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        OSError, match="checkpoint.save_dir=.*file/run cannot be written: Not a dir"
    ):
        train(configured(tmp_path / "file" / "run"))
